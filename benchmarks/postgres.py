"""A PostgreSQL of our own for the time of a measurement: private folder, 127.0.0.1 only, fsync on."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_UNPRIVILEGED = "nobody"


@contextlib.contextmanager
def private_postgres() -> Iterator[str | None]:
    """Yield the URL of a new, empty database; None where PostgreSQL is not installed. Ends with the block."""
    binaries = _binaries()
    if binaries is None:
        yield None
        return
    # PostgreSQL refuses to run as root.
    user = _UNPRIVILEGED if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="exoflow-postgres-") as folder:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = Path(folder) / "data"

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)

        run("initdb", "--pgdata", str(data), "--username", "bench", "--auth", "trust", "--no-sync")
        port = _free_port()
        settings = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=on -c synchronous_commit=on"
        run("pg_ctl", "--pgdata", str(data), "--wait", "--log", f"{folder}/log", "-o", settings, "start")
        try:
            yield f"postgresql://bench@127.0.0.1:{port}/bench"
        finally:
            run("pg_ctl", "--pgdata", str(data), "--mode", "immediate", "stop")


def _binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs; distributions keep most of them off the PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return folders[-1] if folders else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

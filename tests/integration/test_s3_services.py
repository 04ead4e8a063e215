"""The script that starts and stops local services: once, on this machine alone, and without a trace."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from exoflow.storage import open_store
from tests.integration.services import LOCAL, S3, answers, program


class Services:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"

    def __call__(self, verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LOCAL / "services.sh", verb],
            env={**os.environ, "EXOFLOW_SERVICES": str(self.folder), "S3_PORT": str(self.port)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def pid(self) -> int:
        return int((self.folder / "s3" / "pid").read_text())


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    program()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    services = Services(tmp_path / "services", port)
    yield services
    services("down")


def test_services_go_up_once_and_down_without_a_trace(services):
    assert services("status").stdout == "s3: not running\n"
    first = services("up")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    pid = services.pid()
    assert services("up").stdout == services("status").stdout == first.stdout
    assert services.pid() == pid
    assert {connection.laddr.ip for connection in psutil.Process(pid).net_connections()} == {"127.0.0.1"}

    store = open_store(S3(services.endpoint).new_store())
    store.put("a/b", b"data")
    assert store.get("a/b") == b"data"

    assert services("down").returncode == 0
    assert not answers(services.endpoint)
    # Whoever took the process over may not have looked at its end yet.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not services.folder.exists()
    assert services("down").returncode == 0


def test_a_service_that_died_is_started_again_with_what_it_stored(services):
    services("up")
    store = open_store(S3(services.endpoint).new_store())
    store.put("a/b", b"data")
    psutil.Process(services.pid()).kill()
    assert services("up").returncode == 0
    assert store.get("a/b") == b"data"


def test_a_port_that_is_taken_is_told(services):
    with socket.create_server(("127.0.0.1", services.port)):
        refused = services("up")
    assert refused.returncode == 1
    assert f"Port {services.port} is in use by another process" in refused.stderr
    assert not answers(services.endpoint)


def test_without_go_the_message_says_what_to_install(tmp_path):
    tools = {name: Path("/bin") / name for name in ("bash", "mkdir", "mktemp", "rm", "mv")}
    path = tmp_path / "bin"
    path.mkdir()
    for name, tool in tools.items():
        (path / name).symlink_to(tool)
    built = subprocess.run(
        [tools["bash"], LOCAL / "versitygw.sh"],
        env={"PATH": str(path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 1
    assert "install Go" in built.stderr
    assert built.stdout == ""

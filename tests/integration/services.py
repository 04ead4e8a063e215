"""Servers that tests talk to: the one that runs already, or one of the tests' own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

LOCAL = Path(__file__).parents[2] / "clusters" / "local"
BUCKET = "exoflow"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "exoflow", "AWS_SECRET_ACCESS_KEY": "exoflowsecret"}
HEALTH = ("--health", "/health")
START_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class S3:
    """An S3 server with a bucket for tests."""

    endpoint: str

    def new_store(self, endpoint: str | None = None) -> str:
        """Return the URI of a store that nobody has used; on another way to the server, if given."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint={endpoint or self.endpoint}"


class S3Server:
    """A server of one test, that may be killed and started again with what it stored.

    Parameters
    ----------
    folder : Path
        Where it stores; a new one.
    tls : (Path, Path), optional
        Certificate and key; makes it speak https.
    """

    def __init__(self, folder: Path, tls: tuple[Path, Path] | None = None) -> None:
        self._tls = tls
        self._data = folder / "data"
        (self._data / BUCKET).mkdir(parents=True)
        self._program = program()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Kill it."""
        self.kill()

    @property
    def s3(self) -> S3:
        """The server as tests use it."""
        return S3(f"{'http' if self._tls is None else 'https'}://{self._address}")

    def start(self) -> None:
        """Start it, and return once it answers."""
        keys = {"ROOT_ACCESS_KEY": "exoflow", "ROOT_SECRET_KEY": "exoflowsecret"}
        tls = () if self._tls is None else ("--cert", self._tls[0], "--key", self._tls[1])
        self._process = subprocess.Popen(
            [self._program, "--port", self._address, "--keep-alive", "--quiet", *HEALTH, *tls, "posix", self._data],
            env={**os.environ, **keys},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.s3.endpoint):
            assert self._process.poll() is None, "the S3 server ended while it started"
            assert time.monotonic() < deadline, "the S3 server did not start in time"
            time.sleep(0.02)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it for as long as the block runs: it accepts connections and answers none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it with SIGKILL, requests in flight and all."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def program() -> str:
    """Return the path of the server's program; skip the test where it cannot be had, outside CI."""
    built = subprocess.run([LOCAL / "versitygw.sh"], capture_output=True, text=True, check=False)
    if built.returncode:
        why = f"there is no S3 server: {built.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return built.stdout.strip()


def answers(endpoint: str) -> bool:
    """Whether the S3 server of `program` listens there."""
    anyone = ssl._create_unverified_context() if endpoint.startswith("https") else None
    with (
        contextlib.suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(f"{endpoint}/health", context=anyone) as answer,
    ):
        return bool(answer.headers["Server"] == "VERSITYGW")
    return False


@contextlib.contextmanager
def s3_credentials() -> Iterator[None]:
    """Let this process, and those that it starts, know the servers' credentials and no others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in (CREDENTIALS | {"AWS_EC2_METADATA_DISABLED": "true"}).items():
            patch.setenv(name, value)
        yield


@contextlib.contextmanager
def s3_service(folder: Path) -> Iterator[S3]:
    """Yield the server that runs on ``S3_PORT``, else one started in a new folder for this."""
    running = S3(f"http://127.0.0.1:{os.environ.get('S3_PORT', '9000')}")
    if answers(running.endpoint):
        yield running
    else:
        with S3Server(folder) as server:
            yield server.s3

"""The script that starts and stops local services: once, on this machine alone, and without a trace."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer

from exoflow.storage import open_store
from tests.integration.services import LOCAL, S3, Kafka, answers, free_port, kafka_jars, program, speaks_kafka


class Service:
    """One of the services, alone."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.port = free_port()

    def __call__(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LOCAL / "services.sh", verb, *arguments],
            env={**os.environ, "EXOFLOW_SERVICES": str(self.folder), f"{self.name.upper()}_PORT": str(self.port)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        return self("up", self.name)

    def pid(self) -> int:
        return int((self.folder / self.name / "pid").read_text())

    def answers(self) -> bool:
        if self.name == "s3":
            return answers(f"http://127.0.0.1:{self.port}")
        return speaks_kafka(f"127.0.0.1:{self.port}")

    def store(self) -> None:
        """Store a piece of data."""
        if self.name == "s3":
            self._uri = S3(f"http://127.0.0.1:{self.port}").new_store()
            open_store(self._uri).put("a/b", b"data")
        else:
            kafka = Kafka(f"127.0.0.1:{self.port}")
            self._topic = kafka.new_topic()
            with kafka.producer() as producer:
                producer.send(self._topic, b"data")

    def stored(self) -> bytes:
        """Return what `store` stored."""
        if self.name == "s3":
            return open_store(self._uri).get("a/b")
        consumer = KafkaConsumer(self._topic, bootstrap_servers=f"127.0.0.1:{self.port}", auto_offset_reset="earliest")
        try:
            return next(consumer).value
        finally:
            consumer.close()


@pytest.fixture(params=["s3", "kafka"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    {"s3": program, "kafka": kafka_jars}[request.param]()
    service = Service(request.param, tmp_path / "services")
    yield service
    service("down")


def test_a_service_goes_up_once_comes_again_with_what_it_stored_and_goes_down_without_a_trace(service):
    assert service("status").stdout == "s3: not running\nkafka: not running\n"
    first = service.up()
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    pid = service.pid()
    assert service.up().stdout == first.stdout
    assert first.stdout in service("status").stdout
    assert service.pid() == pid
    assert {connection.laddr.ip for connection in psutil.Process(pid).net_connections()} == {"127.0.0.1"}
    service.store()
    assert service.stored() == b"data"

    psutil.Process(pid).kill()
    assert service.up().returncode == 0
    assert service.pid() != pid
    assert service.stored() == b"data"

    pid = service.pid()
    assert service("down").returncode == 0
    assert not service.answers()
    # Whoever took the process over may not have looked at its end yet.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not service.folder.exists()
    assert service("down").returncode == 0


def test_a_port_that_is_taken_is_told(service):
    with socket.create_server(("127.0.0.1", service.port)):
        refused = service.up()
    assert refused.returncode == 1
    assert f"Port {service.port} is in use by another process" in refused.stderr
    assert f"{service.name.upper()}_PORT" in refused.stderr
    assert not service.answers()


def test_a_service_that_is_not_there_is_told(tmp_path):
    refused = Service("ftp", tmp_path).up()
    assert refused.returncode == 2
    assert "no service 'ftp'; known are s3 kafka" in refused.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "tools", "wanted"),
    [
        ("versitygw.sh", [], [], "install Go"),
        ("kafka.sh", ["jars"], [], "apt-get install openjdk-17-jre-headless"),
        ("kafka.sh", ["jars"], ["java"], "apt-get install maven"),
    ],
)
@pytest.mark.parametrize("ci", ["true", "false"])
def test_what_a_service_needs_is_told_and_skips_it_outside_ci(tmp_path, script, arguments, tools, wanted, ci):
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("bash", "cat", "cksum", "cut", "dirname", "flock", "mkdir", "mktemp", "rm", "mv"):
        (path / name).symlink_to(shutil.which(name))
    for name in tools:
        (path / name).symlink_to("/bin/true")
    environment = {"PATH": str(path), "HOME": str(tmp_path), "EXOFLOW_SERVICES": str(tmp_path / "services"), "CI": ci}
    built = subprocess.run([LOCAL / script, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 1
    assert wanted in built.stderr
    assert built.stdout == ""

    name = "s3" if script == "versitygw.sh" else "kafka"
    skipped = subprocess.run(
        [LOCAL / "services.sh", "up", name], env=environment, capture_output=True, text=True, check=False
    )
    assert skipped.returncode == (ci == "true")
    assert wanted in skipped.stderr
    assert f"the service {name} is skipped" in skipped.stderr

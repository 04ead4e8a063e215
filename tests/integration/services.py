"""Servers that tests talk to: the one that runs already, or one of the tests' own."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import ssl
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic, ScramMechanism, UserScramCredentialUpsertion

from ingest.kafka_uri import CONFLUENT

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


class Server(abc.ABC):
    """A server of one test, that may be killed and started again with what it stored."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start its process."""

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Whether it does what it is asked for."""

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Kill it."""
        self.kill()

    def start(self) -> None:
        """Start it, and return once it answers."""
        self._process = self._spawn()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"the {type(self).__name__} ended while it started"
            assert time.monotonic() < deadline, f"the {type(self).__name__} did not start in time"
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


class S3Server(Server):
    """An S3 server of one test.

    Parameters
    ----------
    folder : Path
        Where it stores; a new one.
    tls : (Path, Path), optional
        Certificate and key; makes it speak https.
    """

    def __init__(self, folder: Path, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__()
        self._tls = tls
        self._data = folder / "data"
        (self._data / BUCKET).mkdir(parents=True)
        self._program = program()
        self._address = f"127.0.0.1:{free_port()}"

    @property
    def s3(self) -> S3:
        """The server as tests use it."""
        return S3(f"{'http' if self._tls is None else 'https'}://{self._address}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        keys = {"ROOT_ACCESS_KEY": "exoflow", "ROOT_SECRET_KEY": "exoflowsecret"}
        tls = () if self._tls is None else ("--cert", self._tls[0], "--key", self._tls[1])
        return subprocess.Popen(
            [self._program, "--port", self._address, "--keep-alive", "--quiet", *HEALTH, *tls, "posix", self._data],
            env={**os.environ, **keys},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _answers(self) -> bool:
        return answers(self.s3.endpoint)


@dataclasses.dataclass(frozen=True)
class Kafka:
    """A Kafka broker."""

    address: str

    def new_topic(self, partitions: int = 1, **settings: str) -> str:
        """Create a topic that nobody has used, with settings such as ``cleanup_policy``; return its name."""
        configs = {setting.replace("_", "."): value for setting, value in settings.items()}
        return self._create(lambda name: NewTopic(name, partitions, 1, topic_configs=configs))

    def new_topic_at(self, *brokers: list[int]) -> str:
        """Create a topic with a partition for each list of ids of brokers, the first of which is to lead it."""
        return self._create(lambda name: NewTopic(name, replica_assignments=dict(enumerate(brokers))))

    def _create(self, describe: Callable[[str], NewTopic]) -> str:
        name = f"edges-{uuid.uuid4().hex}"
        with self.admin() as admin:
            admin.create_topics([describe(name)])
        return name

    @contextlib.contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """Yield a client that changes topics."""
        client = KafkaAdminClient(bootstrap_servers=self.address)
        try:
            yield client
        finally:
            client.close()

    @contextlib.contextmanager
    def producer(self, **options: Any) -> Iterator[KafkaProducer]:
        """Yield a producer; what was sent has been stored when the block ends."""
        client = KafkaProducer(bootstrap_servers=self.address, acks="all", **options)
        try:
            yield client
            client.flush()
        finally:
            # It would wait without end for brokers that are gone.
            client.close(timeout=30)


class KafkaServer(Server):
    """A Kafka broker of one test.

    Parameters
    ----------
    folder : Path
        Where it stores; a new one.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        kafka_jars()
        self._folder = folder
        self._port = free_port()
        self._more: list[object] = []

    @property
    def kafka(self) -> Kafka:
        """The broker as tests use it."""
        return Kafka(f"127.0.0.1:{self._port}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log").open("wb") as log:
            return subprocess.Popen(
                [LOCAL / "kafka.sh", "serve", self._folder / "data", str(self._port), *self._more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _answers(self) -> bool:
        return "Kafka Server started" in self.log()

    def log(self) -> str:
        """Return what the broker has told since it started."""
        return (self._folder / "log").read_text(errors="replace")


class KafkaNode(KafkaServer):
    """One broker of a cluster.

    Parameters
    ----------
    folder : Path
        Where it stores; a new one.
    number : int
        Its id; the first one is the controller, too.
    controller : str
        Address at which the controller listens to the brokers.
    """

    def __init__(self, folder: Path, number: int, controller: str) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True)
        leads = number == 1
        properties = folder / "node.properties"
        lines = [
            f"node.id={number}",
            f"process.roles={'broker,controller' if leads else 'broker'}",
            f"listeners=PLAINTEXT://{self.kafka.address}{f',CONTROLLER://{controller}' if leads else ''}",
            f"controller.quorum.voters=1@{controller}",
        ]
        properties.write_text("\n".join(lines) + "\n")
        self._more = ["", properties]


class KafkaCluster:
    """Kafka brokers of one test; the first one is the controller, and has to live.

    Parameters
    ----------
    folder : Path
        Where they store; a new one.
    brokers : int
        How many there are.

    Attributes
    ----------
    nodes : list of KafkaNode
        The brokers, in the order of their ids, which begin with 1.
    """

    def __init__(self, folder: Path, brokers: int) -> None:
        controller = f"127.0.0.1:{free_port()}"
        self.nodes = [KafkaNode(folder / str(number), number, controller) for number in range(1, brokers + 1)]

    @property
    def kafka(self) -> Kafka:
        """All brokers as tests use them."""
        return Kafka(",".join(node.kafka.address for node in self.nodes))

    def __enter__(self) -> Self:
        """Start them."""
        with contextlib.ExitStack() as started:
            for node in self.nodes:
                started.enter_context(node)
            self._started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill them."""
        self._started.close()


class SecureKafkaServer(KafkaServer):
    """A Kafka broker with two more doors: one asks for a certificate, one for a password (`USER`); both show one.

    Attributes
    ----------
    certificate, key : Path
        What both sides show, and trust.
    tls, sasl : Kafka
        The broker behind each door.
    """

    USER = ("reader", "reader-secret")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key = new_certificate(folder)
        self.tls, self.sasl = (Kafka(f"127.0.0.1:{free_port()}") for _ in range(2))
        store, properties = folder / "store.pem", folder / "more.properties"
        store.write_text(self.key.read_text() + self.certificate.read_text())
        lines = [
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={store}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self.certificate}",
            "listener.name.ssl.ssl.client.auth=required",
            "sasl.enabled.mechanisms=SCRAM-SHA-256",
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config="
            "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        ]
        properties.write_text("\n".join(lines) + "\n")
        self._more = [f"SSL://{self.tls.address},SASL_SSL://{self.sasl.address}", properties]

    def start(self) -> None:
        """Start it, and let it know the user."""
        super().start()
        user, password = self.USER
        with self.kafka.admin() as admin:
            knows = UserScramCredentialUpsertion(user, ScramMechanism.SCRAM_SHA_256, password)
            assert admin.alter_user_scram_credentials([knows]) == {user: None}


def new_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a certificate for 127.0.0.1, which signs itself, and of its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", key, "-out", certificate]
    subprocess.run(["openssl", "req", "-x509", *curve, *names, *files], check=True, capture_output=True)
    return certificate, key


def program() -> str:
    """Return the path of the S3 server's program; skip the test where it cannot be had, outside CI."""
    return _output_of("versitygw.sh")


def kafka_jars() -> str:
    """Return the folder of the Kafka broker's jars; skip the test where they cannot be had, outside CI."""
    return _output_of("kafka.sh", "jars")


def _output_of(script: str, *arguments: str) -> str:
    ran = subprocess.run([LOCAL / script, *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        why = f"a service is missing: {ran.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return ran.stdout.strip()


def use_client(name: str, patch: pytest.MonkeyPatch) -> str:
    """Let sources read topics through a client; skip the test where it is not installed, outside CI."""
    if name == CONFLUENT and importlib.util.find_spec("confluent_kafka") is None:
        why = "confluent-kafka is not installed: pip install 'exoflow[confluent]'"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    patch.setenv("KAFKA_CLIENT", name)
    return name


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(endpoint: str) -> bool:
    """Whether the S3 server of `program` listens there."""
    anyone = ssl._create_unverified_context() if endpoint.startswith("https") else None
    with (
        contextlib.suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(f"{endpoint}/health", context=anyone) as answer,
    ):
        return bool(answer.headers["Server"] == "VERSITYGW")
    return False


def speaks_kafka(address: str) -> bool:
    """Whether a Kafka broker listens there."""
    host, port = address.split(":")
    api_versions = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # size, which request, its version, its number, no name
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, int(port)), timeout=5) as broker,
    ):
        broker.sendall(api_versions)
        return broker.recv(8)[4:] == struct.pack(">i", 1)
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


@contextlib.contextmanager
def kafka_service(folder: Path) -> Iterator[Kafka]:
    """Yield the broker that runs on ``KAFKA_PORT``, else one started in a new folder for this."""
    running = Kafka(f"127.0.0.1:{os.environ.get('KAFKA_PORT', '9092')}")
    if speaks_kafka(running.address):
        yield running
    else:
        with KafkaServer(folder) as server:
            yield server.kafka

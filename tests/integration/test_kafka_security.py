"""A broker that asks who one is, and shows who it is: sources, group mirrors and sinks connect as they are told to."""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from graph_stream.errors import ConfigError
from graph_stream.kafka_sink import KafkaSink
from ingest import EpochReader, SourceError, group_mirror, open_source
from ingest.kafka_uri import CLIENTS
from tests.integration.services import Kafka, SecureKafkaServer, new_certificate, use_client
from tests.integration.test_publishing_kafka import publication
from tests.integration.topic import epochs_once, merged

REFUSED = "invalid credentials"
"""In the broker's log, once for each time that it refuses a password."""
CLEAR_SECONDS = 30.0
"""In which what will not become right by itself has to be told; a source's patience is 600."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafkaServer]:
    with SecureKafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="module")
def topic(server: SecureKafkaServer) -> str:
    """Return a topic with three edges."""
    topic = server.kafka.new_topic()
    with server.kafka.producer() as producer:
        for number in range(3):
            producer.send(topic, b"%d 9" % number)
    return topic


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let kafka-python leave its loop to the collector where it was refused, and no log hold on to it."""
    caplog.set_level(logging.CRITICAL, logger="kafka")
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def environment(server: SecureKafkaServer, door: str, patch: pytest.MonkeyPatch) -> Kafka:
    """Say how to come in through a door as its guard wants it; return the broker behind it."""
    user, password = server.USER
    said = {
        "tls": {
            "SECURITY_PROTOCOL": "SSL",
            "SSL_CAFILE": str(server.certificate),
            "SSL_CERTFILE": str(server.certificate),
            "SSL_KEYFILE": str(server.key),
        },
        "sasl": {
            "SECURITY_PROTOCOL": "SASL_SSL",
            "SSL_CAFILE": str(server.certificate),
            "SASL_MECHANISM": "SCRAM-SHA-256",
            "SASL_USERNAME": user,
            "SASL_PASSWORD": password,
        },
    }[door]
    for name, value in said.items():
        patch.setenv(f"KAFKA_{name}", value)
    return server.tls if door == "tls" else server.sasl


doors = pytest.mark.parametrize("door", ["tls", "sasl"])
clients = pytest.mark.parametrize("client", CLIENTS)


@doors
@clients
def test_a_source_reads(
    server: SecureKafkaServer, topic: str, door: str, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_client(client, monkeypatch)
    kafka = environment(server, door, monkeypatch)
    with EpochReader([open_source(f"kafka://{kafka.address}/{topic}?until=end")], 100) as epochs:
        assert epochs.read(epochs.start()).src.tolist() == [0, 1, 2]


@doors
def test_a_group_is_told(server: SecureKafkaServer, topic: str, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = environment(server, door, monkeypatch)
    mirror = group_mirror(f"kafka://{kafka.address}/{topic}?group={door}", pytest.fail)
    assert mirror is not None
    mirror.committed({f"{topic}-0": [0, 2]})
    mirror.close()
    with server.kafka.admin() as admin:
        (offset,) = admin.list_group_offsets(door)[door].values()
    assert offset.offset == 2


@doors
def test_a_sink_publishes(server: SecureKafkaServer, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = environment(server, door, monkeypatch)
    topic = server.kafka.new_topic()
    sink = KafkaSink(f"kafka://{kafka.address}/{topic}", "mine")
    sink.check(new=True)
    assert all(sink.publish(publication(epoch)) for epoch in (1, 2))
    sink.close()
    assert epochs_once(merged(server.kafka.address, topic), 2)


# What is wrong, at which door, and what is told of it.
WRONG = {
    "password": ("sasl", "(?i)authentication"),
    "stranger": ("tls", "(?i)certificate"),
    "file": ("tls", "nowhere.pem"),
}


def spoil(what: str, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """Make one thing wrong of what is said about the connection."""
    match what:
        case "password":
            patch.setenv("KAFKA_SASL_PASSWORD", "wrong")
        case "stranger":  # the broker shows a certificate that nobody here has heard of
            patch.setenv("KAFKA_SSL_CAFILE", str(new_certificate(tmp_path)[0]))
        case "file":
            patch.setenv("KAFKA_SSL_CAFILE", str(tmp_path / "nowhere.pem"))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("what", WRONG)
@clients
def test_a_source_that_is_refused_says_so_and_does_not_wait(
    server: SecureKafkaServer, topic: str, what: str, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, told = WRONG[what]
    use_client(client, monkeypatch)
    kafka = environment(server, door, monkeypatch)
    spoil(what, tmp_path, monkeypatch)
    began = time.monotonic()
    with pytest.raises(SourceError, match=told):
        open_source(f"kafka://{kafka.address}/{topic}?until=end").splits()
    assert time.monotonic() - began < CLEAR_SECONDS


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("what", WRONG)
def test_a_sink_that_is_refused_says_so_before_anything_runs(
    server: SecureKafkaServer, topic: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, told = WRONG[what]
    kafka = environment(server, door, monkeypatch)
    spoil(what, tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=told):
        KafkaSink(f"kafka://{kafka.address}/{topic}", "mine").check(new=True)


@pytest.mark.usefixtures("quiet")
def test_a_refusal_is_heard_at_the_first_try(
    server: SecureKafkaServer, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = environment(server, "sasl", monkeypatch)
    spoil("password", tmp_path, monkeypatch)
    # The broker says why and hangs up in one go, so whoever misses it asks once more.
    for _ in range(5):
        before = server.log().count(REFUSED)
        with pytest.raises(ConfigError, match=WRONG["password"][1]):
            KafkaSink(f"kafka://{kafka.address}/{topic}", "mine").check(new=True)
        assert server.log().count(REFUSED) == before + 1


@pytest.mark.usefixtures("quiet")
def test_a_group_that_cannot_be_told_stops_nothing(
    server: SecureKafkaServer, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = environment(server, "sasl", monkeypatch)
    spoil("password", tmp_path, monkeypatch)
    told: list[str] = []
    mirror = group_mirror(f"kafka://{kafka.address}/{topic}?group=watched", told.append)
    assert mirror is not None
    mirror.committed({f"{topic}-0": [0, 2]})
    mirror._thread.join()
    assert "consumer group watched is refused" in told[-1]
    assert told[-1].endswith("the run is not")

"""The Kafka sink on a real broker: an epoch is committed once, whoever is stopped, fenced or cut off."""

from __future__ import annotations

import dataclasses
import gc
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer

from graph_stream.changed import Best, Changed
from graph_stream.errors import ConfigError, SinkConflict, SinkUnavailable
from graph_stream.kafka_sink import KafkaSink
from graph_stream.publication import Marker, Publication, assemble, encode_share
from tests.integration.services import Kafka, KafkaServer, free_port
from tests.integration.topic import epochs_once, merged

NOBODY = Best(np.empty(0, np.int64), np.empty(0, np.int64))


def publication(epoch: int, stream: str = "mine", rows: int = 20) -> Publication:
    """Return an epoch of some rows, one of them a deletion."""
    vertex = np.arange(epoch, epoch + rows)
    share = encode_share(Changed(vertex, vertex << 32, vertex == epoch, NOBODY, NOBODY), best_only=False)
    marker = Marker("run", stream, epoch, "tunkrank", None, f"{epoch:032x}", 1e-3, 0, 0, rows, rows)
    return assemble([share], marker, 2.0**32)


def sink_of(kafka: Kafka, topic: str, stream: str = "mine") -> KafkaSink:
    return KafkaSink(f"kafka://{kafka.address}/{topic}", stream)


@pytest.mark.parametrize("partitions", [1, 3])
def test_epochs_come_whole_and_in_order_from_every_partition(kafka: Kafka, partitions: int) -> None:
    topic = kafka.new_topic(partitions)
    sink = sink_of(kafka, topic)
    sink.check(new=True)
    assert all(sink.publish(publication(epoch)) for epoch in (1, 2, 3))
    sink.close()
    seen = merged(kafka.address, topic)
    assert epochs_once(seen, 3)
    for epoch, each in enumerate(seen, 1):
        assert {vertex for vertex, row in each.rows.items() if row is None} == {epoch}
        assert {v: row["influence"] for v, row in each.rows.items() if row} == {
            v: float(v) for v in range(epoch + 1, epoch + 20)
        }


def test_what_is_committed_is_not_sent_again_by_anyone(kafka: Kafka) -> None:
    topic = kafka.new_topic(2)
    first = sink_of(kafka, topic)
    assert first.publish(publication(1))
    assert not first.publish(publication(1))
    second = sink_of(kafka, topic)
    assert not second.publish(publication(1))
    assert second.publish(publication(2))
    # The first has been fenced: it finds out, looks again, and has nothing to do.
    with pytest.raises(SinkUnavailable, match=r"Fenced|Epoch"):
        first.publish(publication(2))
    assert not first.publish(publication(2))
    for sink in (first, second):
        sink.close()
    assert epochs_once(merged(kafka.address, topic), 2)


class Stopped(KafkaSink):
    """A sink that is held up with all its records sent, right before it commits."""

    def _send(self, producer: KafkaProducer, publication: Publication) -> None:
        super()._send(producer, publication)
        self.meanwhile()

    def meanwhile(self) -> None:
        raise NotImplementedError


def test_a_zombie_that_wakes_up_before_its_commit_is_fenced(kafka: Kafka) -> None:
    topic = kafka.new_topic(2)
    zombie, successor = Stopped(f"kafka://{kafka.address}/{topic}", "mine"), sink_of(kafka, topic)
    zombie.meanwhile = lambda: None  # type: ignore[method-assign]
    assert zombie.publish(publication(1))
    done: list[bool] = []

    def replaced() -> None:
        done.extend([successor.publish(publication(2)), successor.publish(publication(3))])

    zombie.meanwhile = replaced  # type: ignore[method-assign]
    with pytest.raises(SinkUnavailable, match=r"Fenced|Epoch"):
        zombie.publish(publication(2))
    assert done == [True, True]
    # Awake for good, it may even have its turn again: it fences the successor, sees, and does nothing.
    assert not zombie.publish(publication(3))
    with pytest.raises(SinkUnavailable, match=r"Fenced|Epoch"):
        successor.publish(publication(4))
    assert successor.publish(publication(4))
    for sink in (zombie, successor):
        sink.close()
    assert epochs_once(merged(kafka.address, topic), 4)


def test_what_a_dead_sender_left_open_is_aborted(kafka: Kafka) -> None:
    topic = kafka.new_topic(1)
    dead = Stopped(f"kafka://{kafka.address}/{topic}", "mine")

    def dies() -> None:
        raise KeyboardInterrupt

    dead.meanwhile = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        dead.publish(publication(1))
    sink = sink_of(kafka, topic)
    assert sink.publish(publication(1))
    sink.close()
    assert epochs_once(merged(kafka.address, topic), 1)


def test_the_newest_marker_is_found_behind_others_records(kafka: Kafka) -> None:
    topic = kafka.new_topic(1)
    sink = sink_of(kafka, topic)
    assert sink.publish(publication(1))
    sink.close()
    other = sink_of(kafka, topic, "other")
    assert other.publish(publication(9, "other", rows=3_000))
    other.close()
    again = sink_of(kafka, topic)
    assert not again.publish(publication(1))
    again.close()


def test_an_open_transaction_of_another_hides_no_marker(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = kafka.new_topic(1)
    producer = KafkaProducer(bootstrap_servers=kafka.address, transactional_id=f"other-{topic}")
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, b"{}", b"other").get(10)
    sink = sink_of(kafka, topic)
    monkeypatch.setattr("graph_stream.kafka_sink.PATIENCE_SECONDS", 1.0)
    with pytest.raises(SinkUnavailable, match="open transaction of another"):
        sink.publish(publication(1))
    producer.commit_transaction()
    producer.close()
    monkeypatch.undo()
    assert sink.publish(publication(1))
    sink.close()


def test_an_epoch_of_another_state_is_a_conflict(kafka: Kafka) -> None:
    topic = kafka.new_topic(1)
    sink, found = sink_of(kafka, topic), publication(1)
    assert sink.publish(found)
    with pytest.raises(SinkConflict, match="another state"):
        sink.publish(Publication(dataclasses.replace(found.marker, state_hash="0" * 32), found.rows))
    sink.close()


def test_a_compacted_topic_keeps_the_newest_marker(kafka: Kafka) -> None:
    """What compaction may drop are older records of a key, and the newest marker is of no older one's."""
    topic = kafka.new_topic(1, cleanup_policy="compact")
    sink = sink_of(kafka, topic)
    for epoch in (1, 2):
        assert sink.publish(publication(epoch))
    sink.close()
    again = sink_of(kafka, topic)
    assert not again.publish(publication(2))
    again.close()


@pytest.fixture
def refused(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let the client leave sockets to the collector that were refused a connection, and no log hold on to them."""
    caplog.set_level(logging.CRITICAL, logger="kafka")
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


client_leaves_sockets = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.mark.usefixtures("refused")
@client_leaves_sockets
def test_what_cannot_be_published_to_is_said_before_anything_runs(kafka: Kafka, monkeypatch: Any) -> None:
    with pytest.raises(ConfigError, match="there is no topic 'absent'"):
        sink_of(kafka, "absent").check(new=True)
    monkeypatch.setattr("graph_stream.kafka_sink.PATIENCE_SECONDS", 1.0)
    with pytest.raises(SinkUnavailable, match="cannot publish to kafka://127"):
        sink_of(Kafka(f"127.0.0.1:{free_port()}"), "edges").check(new=True)


@pytest.mark.usefixtures("refused")
@client_leaves_sockets
def test_a_broker_that_is_killed_and_comes_back_has_every_epoch_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph_stream.kafka_sink.PATIENCE_SECONDS", 2.0)
    with KafkaServer(tmp_path) as server:
        topic = server.kafka.new_topic(2)
        sink = sink_of(server.kafka, topic)
        assert sink.publish(publication(1))
        server.kill()
        with pytest.raises(SinkUnavailable, match="cannot publish"):
            sink.publish(publication(2))
        server.start()
        monkeypatch.setattr("graph_stream.kafka_sink.PATIENCE_SECONDS", 30.0)
        for epoch in (2, 3):
            assert sink.publish(publication(epoch))
        sink.close()
        assert epochs_once(merged(server.kafka.address, topic), 3)

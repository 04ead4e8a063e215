"""Epochs as transactions on a Kafka topic.

A record for each changed vertex, keyed by it, and behind them in every partition of the topic a marker. All of
an epoch is one transaction, so a reader with ``isolation.level=read_committed`` sees whole epochs or nothing; in
each partition the marker says that the epoch's records there are all read.

Exactly once, by two things that Kafka keeps: the transactional id names the run's publications to this sink, so
beginning to publish fences whoever did before and settles what it left open; and the newest marker then says
which epoch is the last that was committed. Nobody else can have published between that look and the next
transaction, for that would have fenced this producer.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from graph_stream.errors import ConfigError, SinkConflict, SinkUnavailable
from graph_stream.publication import Marker, Publication
from ingest.kafka_client import BrokersRefuse, BrokersUnavailable
from ingest.kafka_python import connection_options, translated
from ingest.kafka_uri import KafkaUri

PATIENCE_SECONDS = 30.0
"""How long one request may take before the broker counts as unreachable."""
TRANSACTION_SECONDS = 300.0
"""How long the broker waits for the end of a transaction; what a dead run leaves open holds readers up so long."""
_WINDOW = 256  # records read back at first in search of a marker
_AT_ONCE = 10_000  # records that may be on their way
_LINGER_MS = 5


class KafkaSink:
    """A topic; see `graph_stream.sinks.Sink`."""

    def __init__(self, place: str, stream: str) -> None:
        self._uri = KafkaUri.parse(place)
        self._topic = self._uri.topic
        self._place = place
        self._stream = stream
        self._producer: KafkaProducer | None = None
        self._newest: dict[str, Any] | None = None

    def check(self, *, new: bool) -> None:
        """Look whether the topic is there; several runs may publish to it."""
        with self._reported(refused=ConfigError), self._consumer() as consumer:
            partitions = consumer.partitions_for_topic(self._topic)
        if not partitions:
            message = f"there is no topic {self._topic!r} at {', '.join(self._uri.servers)}; create it"
            raise ConfigError(message)

    def publish(self, publication: Publication) -> bool:
        """Send the epoch's records and markers in one transaction unless the topic has them."""
        marker = publication.marker
        try:
            with self._reported():
                producer = self._fencing_producer()
                if self._has(marker):
                    return False
                producer.begin_transaction()
                self._send(producer, publication)
                producer.commit_transaction()
        except BaseException:
            self.close()
            raise
        self._newest = marker.to_json()
        return True

    def close(self) -> None:
        """Close the producer; what it has not committed never becomes visible."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=1)
        except KafkaError:
            # It first waits for what was sent, and gives up, thread and all, where no broker takes it.
            producer._sender.force_close()
            producer.close(timeout=1)

    def _fencing_producer(self) -> KafkaProducer:
        """Return a producer beside which no older one can commit, and know which epoch is the last."""
        if self._producer is None:
            self._producer = KafkaProducer(
                transactional_id=f"exoflow-{self._stream}",
                transaction_timeout_ms=int(TRANSACTION_SECONDS * 1e3),
                max_block_ms=PATIENCE_SECONDS * 1e3,
                bootstrap_timeout_ms=PATIENCE_SECONDS * 1e3,
                # Records that are not taken in time fail, and so leave nothing behind that a close would wait for.
                delivery_timeout_ms=int(PATIENCE_SECONDS * 1e3),
                request_timeout_ms=int(PATIENCE_SECONDS * 1e3 / 2),
                allow_auto_create_topics=False,
                batch_size=1 << 16,
                linger_ms=_LINGER_MS,
                **connection_options(self._uri),
            )
            self._producer.init_transactions()
            self._newest = self._newest_marker()
        return self._producer

    def _has(self, marker: Marker) -> bool:
        """Whether an epoch has been committed."""
        if self._newest is None or self._newest["epoch"] < marker.epoch:
            return False
        if self._newest["epoch"] == marker.epoch and self._newest["state_hash"] != marker.state_hash:
            message = (
                f"{self._place} has epoch {marker.epoch} of this run with another state, so the run's store was put "
                "back to an older one; begin a new run that publishes to a new topic"
            )
            raise SinkConflict(message)
        return True

    def _send(self, producer: KafkaProducer, publication: Publication) -> None:
        marker = publication.marker
        partitions = len(producer.partitions_for(self._topic))
        counts = [0] * partitions
        failed: list[Exception] = []
        for number, (key, value) in enumerate(_records(publication), 1):
            partition = (murmur2(key) & 0x7FFFFFFF) % partitions
            counts[partition] += 1
            headers = [("epoch", b"%d" % marker.epoch)] if value is None else None
            sent = producer.send(self._topic, value, key, headers, partition)
            sent.add_errback(failed.append)
            if number % _AT_ONCE == 0:
                _flush(producer, failed)
        for partition, count in enumerate(counts):
            shown = {**marker.to_json(), "partitions": partitions, "partition_rows": count}
            producer.send(self._topic, _json(shown), self._marker_key, partition=partition).add_errback(failed.append)
        _flush(producer, failed)

    # --- what is there already --------------------------------------------------------------------------

    @property
    def _marker_key(self) -> bytes:
        return f"epoch:{self._stream}".encode()

    def _newest_marker(self) -> dict[str, Any] | None:
        """Return the newest marker of this stream; every epoch has one in every partition, so one will do."""
        first = TopicPartition(self._topic, 0)
        with self._consumer(isolation_level="read_uncommitted") as consumer:
            end = consumer.end_offsets([first])[first]
        with self._consumer(isolation_level="read_committed") as consumer:
            self._await_stable(consumer, first, end)
            consumer.assign([first])
            begin = consumer.beginning_offsets([first])[first]
            window = _WINDOW
            while end > begin:
                start = max(begin, end - window)
                markers = self._markers(consumer, first, start, end)
                if markers:
                    return markers[-1]
                end, window = start, window * 4
        return None

    def _await_stable(self, consumer: KafkaConsumer, partition: TopicPartition, end: int) -> None:
        """Wait until no transaction of others is open before ``end``: what lies behind it cannot be read."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while consumer.end_offsets([partition])[partition] < end:
            if time.monotonic() > deadline:
                message = f"{self._place} has an open transaction of another producer"
                raise SinkUnavailable(message)
            time.sleep(0.1)

    def _markers(
        self, consumer: KafkaConsumer, partition: TopicPartition, start: int, end: int
    ) -> list[dict[str, Any]]:
        """Return the markers of this stream from ``start`` to before ``end``, oldest first."""
        consumer.seek(partition, start)
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while consumer.position(partition) < end:
            if time.monotonic() > deadline:
                message = f"{self._place} did not give back its last records within {PATIENCE_SECONDS:.0f} s"
                raise SinkUnavailable(message)
            for records in consumer.poll(timeout_ms=500).values():
                found += [json.loads(each.value) for each in records if each.key == self._marker_key]
        return found

    @contextlib.contextmanager
    def _consumer(self, **options: Any) -> Iterator[KafkaConsumer]:
        consumer = KafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=PATIENCE_SECONDS * 1e3,
            **options,
            **connection_options(self._uri),
        )
        try:
            yield consumer
        finally:
            consumer.close()

    @contextlib.contextmanager
    def _reported(self, refused: type[Exception] = SinkUnavailable) -> Iterator[None]:
        """Raise what a sink raises; ``refused`` where trying again would not help by itself."""
        try:
            with translated():
                yield
        except (BrokersUnavailable, BrokersRefuse) as error:
            kind = refused if isinstance(error, BrokersRefuse) else SinkUnavailable
            message = f"cannot publish to {self._place}: {error}"
            raise kind(message) from error


def _flush(producer: KafkaProducer, failed: list[Exception]) -> None:
    """Return once all that was sent is stored; raises KafkaError."""
    producer.flush(timeout=2 * PATIENCE_SECONDS)
    if failed:
        raise failed[0]


def _records(publication: Publication) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield key and value of every row; a vertex that left has no value, which compaction takes for its end.

    The key is the vertex as JSON has it: of a name with its quotes, so that it is never that of a marker.
    """
    epoch, algorithm = publication.marker.epoch, json.dumps(publication.marker.algorithm)
    names = ("vertex", "influence", "error_bound", "deleted")
    for vertex, influence, bound, deleted in zip(*(publication.rows[name].to_pylist() for name in names), strict=True):
        key = json.dumps(vertex, ensure_ascii=False)
        shown = (
            f'{{"epoch":{epoch},"vertex":{key},"influence":{influence!r},'
            f'"error_bound":{repr(bound) if math.isfinite(bound) else "null"},"algorithm":{algorithm}}}'
        )
        yield key.encode(), None if deleted else shown.encode()


def _json(shown: Any) -> bytes:
    return json.dumps(shown, separators=(",", ":")).encode()

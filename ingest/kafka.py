"""A Kafka topic as a source: each partition is a split, each position an offset.

Positions come from whoever reads, never from Kafka: partitions are assigned, not subscribed to, and no consumer
group is asked. So a run reads on exactly where its own commits stand. What is settled when a run begins, and
then stays, is where each partition of that moment begins, and with ``until=end`` where it ends; partitions added
later are read from their beginning.

Kafka's client is imported when a topic is first read.
"""

import contextlib
import gc
import importlib.util
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np

from ingest.kafka_uri import EARLIEST, LATEST, KafkaUri
from ingest.messages import MessageParser
from ingest.patience import Patience, PatienceExhausted
from ingest.reader import Chunk, ChunkedReader, LiveChunks
from ingest.source import BadRecord, JsonValue, SourceError, no_records

if TYPE_CHECKING:
    from kafka import KafkaConsumer, TopicPartition

Settled: TypeAlias = dict[str, list[Any]]
"""By number of the partition, as JSON: where it begins, and where it ends or None."""

Tell = Callable[[str], None]
Result = TypeVar("Result")

ON_LOST_OFFSET: Final = ("fail", "skip")

FULL_RECORDS: Final = 4000
"""A split with so many messages waiting here is paused: the memory for messages does not grow with the topic."""
FETCH_BYTES: Final = 1024 * 1024
SPLIT_FETCH_BYTES: Final = 256 * 1024
"""Bytes the client asks for at a time, of a broker and of a partition."""
POLL_RECORDS: Final = 2**31
"""Messages taken from the client at a time: all that it has. A part of a fetch that it keeps for a partition which
is paused meanwhile is not always given out when that is resumed (kafka-python 3.0.12)."""
WAIT_SECONDS: Final = 0.2
CHECK_SECONDS: Final = 2.0
"""After so long without messages a broker is asked whether it is there at all."""
ANSWER_SECONDS: Final = 1.0
BOOTSTRAP_SECONDS: Final = 5.0
REFRESH_SECONDS: Final = 5.0
"""How old what is known of a topic's partitions may be."""


class KafkaSource:
    """The partitions of a topic.

    Parameters
    ----------
    uri
        The source as the user named it.
    names
        The column list, as `ingest.formats.parse_columns` returns it.
    settled
        What `settle` returned when the run began; None settles it anew.
    on_lost_offset
        What to do where the topic has not kept what was to be read next: ``fail``, or ``skip`` it, which is
        told and leaves a bad record that says which offsets are gone.
    tell
        Gets lines about brokers that do not answer and offsets that are lost.

    Raises
    ------
    SourceError
        The URI says nothing that could be read, or the client is not installed.
    """

    def __init__(
        self,
        uri: str,
        names: tuple[str, ...],
        settled: JsonValue | None = None,
        on_lost_offset: str = "fail",
        tell: Tell | None = None,
    ) -> None:
        self.uri = uri
        self._names = names
        self._kafka = KafkaUri.parse(uri)
        if importlib.util.find_spec("kafka") is None:
            raise SourceError(uri, "Kafka topics need the extra kafka: pip install 'exoflow[kafka]'")
        self._settled: Settled | None = settled
        self._skips_lost = on_lost_offset == "skip"
        self._tell = tell or logging.getLogger(__name__).warning
        self._connection = _Connection(uri, self._kafka, self._tell)

    @property
    def bounded(self) -> bool:
        """Whether it is read up to where it ended when the run began."""
        return self._kafka.ends

    def splits(self) -> list[str]:
        """Return the partitions as ``TOPIC-NUMBER``, in the order of their numbers."""
        numbers = range(len(self._starts())) if self.bounded else range(self._connection.partitions())
        return [f"{self._kafka.topic}-{number}" for number in numbers]

    def settle(self) -> Settled:
        """Ask the brokers where each partition begins, and ends with ``until=end``, by number."""
        numbers = list(range(self._connection.partitions()))
        begins = self._connection.offsets_at(numbers, self._kafka.begin)
        ends = self._connection.offsets_at(numbers, LATEST) if self._kafka.ends else {}
        return {str(number): [begins[number], ends.get(number)] for number in numbers}

    def open(self, split: str, position: JsonValue | None, until: JsonValue | None = None) -> ChunkedReader:
        """Open a partition at an offset; see `ingest.source.Source.open`."""
        number = int(split.rpartition("-")[2])
        begin, end = self._starts().get(str(number), [0, None])
        start = begin if position is None else int(position)
        stop = end if until is None else int(until)
        return ChunkedReader(self._chunks(split, number, start, stop), start, "time" in self._names, stop)

    def wait(self, seconds: float) -> None:
        """Return when messages have come; see `ingest.source.LiveSource.wait`."""
        self._connection.wait(seconds)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _starts(self) -> Settled:
        if self._settled is None:
            self._settled = self.settle()
        return self._settled

    def _chunks(self, split: str, number: int, offset: int, until: int | None) -> LiveChunks:
        parser = MessageParser(self.uri, split, self._kafka.format, self._names)
        feed = self._connection.follow(number, offset)
        try:
            while True:
                if feed.lost is not None:
                    yield self._skip(split, feed)
                elif feed.values or feed.reached > offset:
                    offset = feed.reached
                    since = feed.since
                    values, offsets = self._connection.take(feed)
                    yield replace(parser.chunk(values, np.array(offsets, np.int64), offset), since=since)
                elif not self._connection.poll(0.0) and not feed.reached > offset:
                    if until is None:
                        yield None
                    else:
                        self._connection.wait(WAIT_SECONDS)
        finally:
            self._connection.leave(feed)

    def _skip(self, split: str, feed: "_Feed") -> Chunk:
        """Go on behind offsets that are lost, if that is wanted."""
        assert feed.lost is not None
        wanted, earliest = feed.lost
        lost = f"the messages of {split} from offset {wanted} up to {earliest} are gone: the topic has not kept them"
        if not self._skips_lost:
            detail = (
                f"{lost}. Nothing was skipped: a new run with --on-lost-offset skip would go on without them, or "
                "one with from=earliest begin with what is left"
            )
            raise SourceError(self.uri, detail)
        self._tell(f"{self.uri}: {lost}; skipped")
        self._connection.skip(feed)
        bad = BadRecord(self.uri, split, wanted, b"", f"lost: {earliest - wanted} offsets, up to {earliest}")
        nothing = no_records("time" in self._names)
        empty = np.empty(0, np.int64)
        return Chunk(nothing, empty, empty, (bad,), (earliest,), earliest)


class _Feed:
    """What has come of a partition and is not read yet.

    Attributes
    ----------
    values, offsets
        The messages: what each holds, and where it is.
    reached
        The offset up to which the partition is known: messages, and gaps that transactions and compaction leave.
    since
        Unix seconds of the first of the messages; None where it has no timestamp.
    lost
        The offset that was wanted and the earliest that is left, where the partition has not kept it.
    """

    def __init__(self, partition: "TopicPartition", offset: int) -> None:
        self.partition = partition
        self.values: list[bytes | None] = []
        self.offsets: list[int] = []
        self.reached = offset
        self.since: float | None = None
        self.lost: tuple[int, int] | None = None


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking again and again at the tuples of messages while they are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Connection:
    """One client for all partitions of a topic that are read, made when it is needed."""

    def __init__(self, uri: str, kafka: KafkaUri, tell: Tell) -> None:
        self._uri = uri
        self._kafka = kafka
        self._patience = Patience(f"Kafka at {','.join(kafka.servers)}", kafka.patience_seconds, tell)
        self._consumer: KafkaConsumer | None = None
        self._feeds: dict[TopicPartition, _Feed] = {}
        self._partitions = 0
        self._heard_at = 0.0
        self._check_at = 0.0

    def partitions(self) -> int:
        """Return how many partitions the topic has; that number only grows."""

        def ask(consumer: "KafkaConsumer") -> int:
            return len(consumer.partitions_for_topic(self._kafka.topic))

        # Of a topic that is read the client keeps it at hand, and up to date.
        found = ask(self._connected()) if self._feeds else self._insist(ask)
        self._partitions = max(self._partitions, found)
        if not self._partitions:
            raise SourceError(self._uri, f"there is no topic {self._kafka.topic!r} at {','.join(self._kafka.servers)}")
        return self._partitions

    def offsets_at(self, numbers: Sequence[int], at: str | float) -> dict[int, int]:
        """Return by number of the partition the offset at its beginning, its end, or a time."""
        partitions = [self._partition(number) for number in numbers]

        def ask(consumer: "KafkaConsumer") -> Mapping["TopicPartition", int]:
            timeout_ms = ANSWER_SECONDS * 1000
            if at == EARLIEST:
                return consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)  # type: ignore[no-any-return]
            ends = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
            if at == LATEST:
                return ends  # type: ignore[no-any-return]
            times = {partition: int(float(at) * 1000) for partition in partitions}
            found = consumer.offsets_for_times(times, timeout_ms=timeout_ms)
            return {each: ends[each] if found[each] is None else found[each].offset for each in partitions}

        return {partition.partition: offset for partition, offset in self._insist(ask).items()}

    def follow(self, number: int, offset: int) -> _Feed:
        """Begin to read a partition at an offset."""
        feed = _Feed(self._partition(number), offset)
        self._feeds[feed.partition] = feed
        consumer = self._connected()
        consumer.assign(list(self._feeds))
        consumer.resume(feed.partition)
        consumer.seek(feed.partition, offset)
        return feed

    def leave(self, feed: _Feed) -> None:
        """Read a partition no more."""
        if self._feeds.get(feed.partition) is feed:
            del self._feeds[feed.partition]
            if self._consumer is not None:
                self._consumer.assign(list(self._feeds))

    def take(self, feed: _Feed) -> tuple[list[bytes | None], list[int]]:
        """Return the values and offsets of the messages that wait, and let more come."""
        taken = feed.values, feed.offsets
        feed.values, feed.offsets = [], []
        if len(taken[0]) >= FULL_RECORDS and self._consumer is not None:
            self._consumer.resume(feed.partition)
        return taken

    def skip(self, feed: _Feed) -> None:
        """Go on at the earliest offset that is left."""
        assert feed.lost is not None
        feed.reached, feed.lost = feed.lost[1], None
        self._connected().seek(feed.partition, feed.reached)

    def poll(self, seconds: float) -> bool:
        """Let messages come to the partitions that are read; tell whether any have.

        Raises
        ------
        SourceError
            The brokers refuse.
        """
        from kafka import errors

        consumer = self._connected()
        try:
            with _uncollected():
                found = consumer.poll(timeout_ms=int(seconds * 1000), max_records=POLL_RECORDS)
        except errors.OffsetOutOfRangeError as error:
            for partition, wanted in error.args[0].items():
                self._find_lost(partition, wanted)
            return True
        except errors.KafkaError as error:
            self._fail_unless_retriable(error)
            return False
        for partition, messages in found.items():
            feed = self._feeds[partition]  # what is not assigned is not returned
            if not feed.values:
                feed.since = messages[0].timestamp / 1000 if messages[0].timestamp > 0 else None
            feed.values.extend([message.value for message in messages])
            feed.offsets.extend([message.offset for message in messages])
            feed.reached = messages[-1].offset + 1
            if len(feed.values) >= FULL_RECORDS:
                consumer.pause(partition)
        if found:
            self._heard()
        return bool(found)

    def wait(self, seconds: float) -> None:
        """Wait until messages come, ask for signs of life where none do, and look how far the gaps go."""
        if not self._feeds:
            time.sleep(seconds)
            return
        if self.poll(seconds):
            return
        self._look_for_life()
        consumer = self._connected()
        for feed in self._feeds.values():
            if not feed.values and feed.lost is None:
                feed.reached = max(feed.reached, consumer.position(feed.partition, timeout_ms=0) or 0)

    def close(self) -> None:
        """Close the client."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=ANSWER_SECONDS * 1000)
            self._consumer = None

    def _partition(self, number: int) -> "TopicPartition":
        from kafka import TopicPartition

        return TopicPartition(self._kafka.topic, number)

    def _connected(self) -> "KafkaConsumer":
        if self._consumer is None:
            self._consumer = self._patiently(self._connect)
            self._heard()
        return self._consumer

    def _connect(self) -> "KafkaConsumer":
        from kafka import KafkaConsumer, errors

        self._reach()
        # What it has to say about connections is told by `Patience`, once.
        logging.getLogger("kafka").addHandler(logging.NullHandler())
        try:
            return KafkaConsumer(
                **self._kafka.connection(),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                max_poll_records=POLL_RECORDS,
                fetch_max_bytes=FETCH_BYTES,
                max_partition_fetch_bytes=SPLIT_FETCH_BYTES,
                fetch_max_wait_ms=100,
                request_timeout_ms=10_000,
                metadata_max_age_ms=int(REFRESH_SECONDS * 1000),
                bootstrap_timeout_ms=int(BOOTSTRAP_SECONDS * 1000),
                reconnect_backoff_max_ms=2000,
                metrics_enabled=False,
            )
        except errors.KafkaTimeoutError as error:
            message = f"{error}; somebody listens there, so the cause may be security.protocol, sasl.* or ssl.*"
            raise errors.KafkaTimeoutError(message) from error
        except (AssertionError, ValueError, OSError) as error:  # what the client makes of wrong options and files
            raise SourceError(self._uri, f"the connection cannot be made: {error}") from error

    def _reach(self) -> None:
        """Make sure that somebody listens: a client that cannot connect leaves its thread behind.

        Raises
        ------
        kafka.errors.KafkaConnectionError
            Nobody does.
        """
        from kafka import errors

        for server in self._kafka.servers:
            host, _, port = server.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), BOOTSTRAP_SECONDS).close()
            except OSError as error:
                reason = f"{server}: {error}"
            else:
                return
        raise errors.KafkaConnectionError(reason)

    def _insist(self, ask: Callable[["KafkaConsumer"], Result]) -> Result:
        """Return the answer to a question, however long the brokers take."""
        consumer = self._connected()
        return self._patiently(lambda: ask(consumer))

    def _patiently(self, do: Callable[[], Result]) -> Result:
        from kafka import errors

        while True:
            try:
                result = do()
            except errors.KafkaError as error:
                time.sleep(self._fail_unless_retriable(error))
            else:
                self._heard()
                return result

    def _look_for_life(self) -> None:
        """Ask a broker for something where nothing has come for long: a topic at rest is no topic out of reach."""
        now = time.monotonic()
        if now < max(self._check_at, self._heard_at + CHECK_SECONDS):
            return
        from kafka import errors

        try:
            self._connected().end_offsets(list(self._feeds), timeout_ms=ANSWER_SECONDS * 1000)
        except errors.KafkaError as error:
            self._check_at = time.monotonic() + self._fail_unless_retriable(error)
        else:
            self._heard()

    def _heard(self) -> None:
        self._patience.answered()
        self._heard_at = time.monotonic()

    def _fail_unless_retriable(self, error: Exception) -> float:
        """Return how long to wait before trying again.

        Raises
        ------
        SourceError
            Trying again would not help, or has not for too long.
        """
        if not getattr(error, "retriable", False):
            raise SourceError(self._uri, f"the brokers refuse: {error}") from error
        try:
            return self._patience.failed(error)
        except PatienceExhausted as exhausted:
            detail = f"{exhausted}. Nothing is lost: resume when it is back (patience=SECONDS in the URI says how long)"
            raise SourceError(self._uri, detail) from error

    def _find_lost(self, partition: "TopicPartition", wanted: int) -> None:
        number = partition.partition
        earliest, end = (self.offsets_at([number], at)[number] for at in (EARLIEST, LATEST))
        if wanted > end:
            detail = (
                f"{self._kafka.topic}-{number} ends at offset {end}, but was read up to {wanted} before: the topic was "
                "made anew or cut back, so that offsets mean something else now; start a new run"
            )
            raise SourceError(self._uri, detail)
        if wanted < earliest:
            self._feeds[partition].lost = (wanted, earliest)

"""A Kafka topic as a source: each partition is a split, each position an offset.

Positions come from whoever reads, never from Kafka: partitions are assigned, not subscribed to, and no consumer
group is asked. So a run reads on exactly where its own commits stand. What is settled when a run begins, and
then stays, is where each partition of that moment begins, and with ``until=end`` where it ends; partitions added
later are read from their beginning.

Which client reads it is told by `ingest.kafka_client`; it is imported when a topic is first read.
"""

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ingest.kafka_client import Batch, BrokersRefuse, BrokersUnavailable, Client, client_name, connected
from ingest.kafka_uri import EARLIEST, LATEST, KafkaUri
from ingest.messages import MessageParser
from ingest.patience import Patience, seconds_until_retry
from ingest.reader import Chunk, ChunkedReader, LiveChunks
from ingest.source import BadRecord, Int64s, JsonValue, SourceError, no_records

Settled: TypeAlias = dict[str, list[Any]]
"""By number of the partition, as JSON: where it begins, and where it ends or None."""

Tell = Callable[[str], None]
Result = TypeVar("Result")

ON_LOST_OFFSET: Final = ("fail", "skip")

FULL_BYTES: Final = 1024 * 1024
"""A split for which so much waits here is paused: the memory for messages does not grow with the topic."""
MESSAGE_BYTES: Final = 80
"""What a message takes beside its value: two objects and their places in lists."""
WAIT_SECONDS: Final = 0.2
CHECK_SECONDS: Final = 2.0
"""After so long without messages a broker is asked whether it is there at all."""


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
        What to do where the topic has not kept what was to be read next, or, compacted, what was between: ``fail``,
        or ``skip`` it, which is told and leaves a bad record that says which offsets are gone.
    tell
        Gets lines about brokers that do not answer and offsets that are lost.

    Raises
    ------
    SourceError
        The URI says nothing that could be read, or no client is installed.
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
        self._settled: Settled | None = settled
        self._skips_lost = on_lost_offset == "skip"
        self._tell = tell or logging.getLogger(__name__).warning
        self._told_of_gaps: set[str] = set()
        self._connection = _Connection(uri, self._kafka, client_name(uri, self._kafka), self._tell)

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
                    chunk = self._skip(split, feed)
                    offset = feed.reached
                    yield chunk
                elif feed.values or feed.reached > offset:
                    since, reached = feed.since, feed.reached
                    values, taken = self._connection.take(feed)
                    offsets = np.array(taken, np.int64)
                    gaps = gaps_in(offset, offsets, reached if until is None else min(reached, until))
                    offset = reached
                    chunk = replace(parser.chunk(values, offsets, reached), since=since)
                    yield self._with_gaps(split, chunk, gaps) if gaps else chunk
                elif not self._connection.poll(0.0) and not feed.reached > offset:
                    if until is None:
                        yield None
                    else:
                        self._connection.wait(WAIT_SECONDS)
        finally:
            self._connection.leave(feed)

    def _with_gaps(self, split: str, chunk: Chunk, gaps: "Gaps") -> Chunk:
        """Tell of gaps that compaction may have left, if it is wanted to go on behind them."""
        if not self._connection.is_compacted():
            return chunk
        empty = (
            f"there is no message at {gaps.offsets} of the offsets of {split} from {gaps.first} up to {gaps.end}: the "
            "topic is compacted, and what it has not kept cannot be told from the ends of transactions"
        )
        if not self._skips_lost:
            detail = f"{empty}. Nothing was skipped: a new run with --on-lost-offset skip would go on without them"
            raise SourceError(self.uri, detail)
        if split not in self._told_of_gaps:
            self._told_of_gaps.add(split)
            self._tell(f"{self.uri}: {empty}; skipped, as others will be")
        reason = f"lost: {gaps.offsets} offsets, up to {gaps.end}; the topic is compacted"
        bad = sorted([*chunk.bad, BadRecord(self.uri, split, gaps.first, b"", reason)], key=lambda each: each.offset)
        return replace(chunk, bad=tuple(bad), bad_ends=tuple(each.offset + 1 for each in bad))

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


class Gaps(NamedTuple):
    """Offsets that hold no message: how many, the first, and where they end; messages may lie between."""

    offsets: int
    first: int
    end: int


def gaps_in(begin: int, offsets: Int64s, end: int) -> Gaps | None:
    """Return the gaps that messages leave in a stretch of offsets; None where they leave none.

    Parameters
    ----------
    begin, end
        Bounds of the stretch.
    offsets
        int64[n], rising: where the messages are; those behind the end do not count.
    """
    here = offsets[: int(np.searchsorted(offsets, end))]
    if end - begin <= len(here):
        return None
    bounds = np.concatenate([[begin - 1], here, [end]])
    holes = np.flatnonzero(np.diff(bounds) > 1)
    return Gaps(end - begin - len(here), int(bounds[holes[0]]) + 1, int(bounds[holes[-1] + 1]))


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
    bytes
        About what they take.
    paused
        Whether no more of them come for now.
    """

    def __init__(self, number: int, offset: int) -> None:
        self.number = number
        self.values: list[bytes | None] = []
        self.offsets: list[int] = []
        self.reached = offset
        self.since: float | None = None
        self.lost: tuple[int, int] | None = None
        self.bytes = 0
        self.paused = False

    def put(self, batch: Batch) -> None:
        """Take in what has come."""
        if not self.values:
            self.since = batch.since
        self.values += batch.values
        self.offsets += batch.offsets
        self.reached = max(self.reached, batch.reached)
        self.bytes += MESSAGE_BYTES * len(batch.values) + sum(map(len, filter(None, batch.values)))

    def take(self) -> tuple[list[bytes | None], list[int]]:
        """Hand out what has come."""
        taken = self.values, self.offsets
        self.values, self.offsets, self.bytes = [], [], 0
        return taken


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

    def __init__(self, uri: str, kafka: KafkaUri, client: str, tell: Tell) -> None:
        self._uri = uri
        self._kafka = kafka
        self._client_name = client
        self._patience = Patience(f"Kafka at {','.join(kafka.servers)}", kafka.patience_seconds, tell)
        self._client: Client | None = None
        self._feeds: dict[int, _Feed] = {}
        self._partitions = 0
        self._is_compacted: bool | None = None
        self._tell = tell
        self._heard_at = 0.0
        self._check_at = 0.0

    def partitions(self) -> int:
        """Return how many partitions the topic has; that number only grows."""
        try:
            # Of a topic that is read it is known already, and nobody waits to hear of another one.
            found = self._connected().partitions() if self._feeds else self._insist(lambda client: client.partitions())
        except BrokersUnavailable:
            found = 0
        self._partitions = max(self._partitions, found)
        if not self._partitions:
            raise SourceError(self._uri, f"there is no topic {self._kafka.topic!r} at {','.join(self._kafka.servers)}")
        return self._partitions

    def offsets_at(self, numbers: Sequence[int], at: str | float) -> dict[int, int]:
        """Return by number of the partition the offset at its beginning, its end, or a time."""
        return self._insist(lambda client: client.offsets(numbers, at))

    def is_compacted(self) -> bool:
        """Tell whether gaps may have held messages; asked once, where there are gaps."""
        if self._is_compacted is None:
            found = self._insist(lambda client: client.is_compacted())
            if found is None:
                self._tell(
                    f"{self._uri}: who reads it may not ask whether the topic is compacted (DescribeConfigs); offsets "
                    "that hold no message are taken for the ends of transactions"
                )
            self._is_compacted = bool(found)
        return self._is_compacted

    def follow(self, number: int, offset: int) -> _Feed:
        """Begin to read a partition at an offset."""
        feed = self._feeds[number] = _Feed(number, offset)
        self._connected().follow(number, offset)
        return feed

    def leave(self, feed: _Feed) -> None:
        """Read a partition no more."""
        if self._feeds.get(feed.number) is feed:
            del self._feeds[feed.number]
            if self._client is not None:
                self._client.leave(feed.number)

    def take(self, feed: _Feed) -> tuple[list[bytes | None], list[int]]:
        """Return the values and offsets of the messages that wait, and let more come."""
        if feed.paused and self._client is not None:
            feed.paused = False
            self._client.resume(feed.number)
        return feed.take()

    def skip(self, feed: _Feed) -> None:
        """Go on at the earliest offset that is left."""
        assert feed.lost is not None
        feed.reached, feed.lost = feed.lost[1], None
        self._connected().follow(feed.number, feed.reached)

    def poll(self, seconds: float) -> bool:
        """Let messages come to the partitions that are read; tell whether any have, or are lost.

        Raises
        ------
        SourceError
            The brokers refuse.
        """
        client = self._connected()
        try:
            with _uncollected():
                batches = client.poll(seconds)
        except (BrokersUnavailable, BrokersRefuse) as error:
            self._fail_unless_passing(error)
            return False
        for number, batch in batches.items():
            feed = self._feeds[number]  # of what is not followed nothing comes
            feed.put(batch)
            if batch.out_of_range is not None:
                self._find_lost(feed, batch.out_of_range)
            elif feed.bytes >= FULL_BYTES and not feed.paused:
                feed.paused = True
                client.pause(number)
        if batches:
            self._heard()
        return any(batch.values or batch.out_of_range is not None for batch in batches.values())

    def wait(self, seconds: float) -> None:
        """Wait until messages come, and ask for signs of life where none do."""
        if not self._feeds:
            time.sleep(seconds)
        elif not self.poll(seconds):
            self._look_for_life()

    def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Client:
        if self._client is None:
            self._client = self._patiently(lambda: connected(self._client_name, self._kafka))
            self._heard()
        return self._client

    def _insist(self, ask: Callable[[Client], Result]) -> Result:
        """Return the answer to a question, however long the brokers take."""
        client = self._connected()
        return self._patiently(lambda: ask(client))

    def _patiently(self, do: Callable[[], Result]) -> Result:
        while True:
            try:
                result = do()
            except (BrokersUnavailable, BrokersRefuse) as error:
                time.sleep(self._fail_unless_passing(error))
            else:
                self._heard()
                return result

    def _look_for_life(self) -> None:
        """Ask a broker for something where nothing has come for long: a topic at rest is no topic out of reach."""
        now = time.monotonic()
        if now < max(self._check_at, self._heard_at + CHECK_SECONDS):
            return
        try:
            self._connected().offsets(list(self._feeds), LATEST)
        except (BrokersUnavailable, BrokersRefuse) as error:
            self._check_at = time.monotonic() + self._fail_unless_passing(error)
        else:
            self._heard()

    def _heard(self) -> None:
        self._patience.answered()
        self._heard_at = time.monotonic()

    def _fail_unless_passing(self, error: Exception) -> float:
        """Return how long to wait before trying again.

        Raises
        ------
        SourceError
            Trying again would not help, or has not for too long.
        """
        if isinstance(error, BrokersRefuse):
            raise SourceError(self._uri, f"the brokers refuse: {error}") from error
        return seconds_until_retry(self._patience, self._uri, error)

    def _find_lost(self, feed: _Feed, wanted: int) -> None:
        """Find out what an offset that the topic has not says of the ones before."""
        number = feed.number
        earliest, end = (self.offsets_at([number], at)[number] for at in (EARLIEST, LATEST))
        if wanted > end:
            detail = (
                f"{self._kafka.topic}-{number} ends at offset {end}, but was read up to {wanted} before: the topic was "
                "made anew or cut back, so that offsets mean something else now; start a new run"
            )
            raise SourceError(self._uri, detail)
        if wanted < earliest:
            feed.lost = (wanted, earliest)
        else:  # a broker that has just become the leader may not have known better
            self._connected().follow(number, wanted)

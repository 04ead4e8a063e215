"""What has been committed, told to a consumer group, so that tools that watch Kafka see how far a run is behind.

Nobody reads it back: a run's position is in its own commits alone. So it is told when there is time, the newest
state only, and not being able to tell it stops nothing.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from ingest.kafka_client import BrokersRefuse, BrokersUnavailable
from ingest.kafka_uri import KafkaUri
from ingest.patience import TELL_SECONDS, Patience, PatienceExhausted
from ingest.source import JsonValue, SourceError

CLOSE_SECONDS: Final = 5.0


class GroupMirror:
    """Tells one consumer group what has been committed of one topic; in a thread of its own.

    Parameters
    ----------
    uri
        The source; it names a group.
    tell
        Gets a line when the group cannot be told.
    """

    def __init__(self, uri: str, tell: Callable[[str], None]) -> None:
        self._uri = uri
        self._kafka = KafkaUri.parse(uri)
        self._tell = tell
        self._newest: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-group", daemon=True)
        self._thread.start()

    def committed(self, offsets: Mapping[str, list[JsonValue]]) -> None:
        """Take in what an epoch that is committed has read; see `ingest.EpochBatch.offsets`."""
        for label, (_, after) in offsets.items():
            uri, named, split = label.rpartition("#")
            topic, _, number = split.rpartition("-")
            if topic == self._kafka.topic and (not named or uri == self._uri):
                self._newest = {**self._newest, int(number): after}
        self._changed.set()

    def close(self) -> None:
        """Tell the group the last of it, if it answers in time."""
        self._closing.set()
        self._changed.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        from kafka import KafkaConsumer

        from ingest.kafka_python import connection_options, translated

        patience = Patience(f"consumer group {self._kafka.group}", 2 * TELL_SECONDS, self._tell)
        consumer: KafkaConsumer | None = None
        while not (self._closing.is_set() and self._told == self._newest):
            self._changed.wait()
            self._changed.clear()
            newest = self._newest
            if newest == self._told:
                continue
            try:
                with translated():
                    consumer = consumer or KafkaConsumer(
                        **connection_options(self._kafka),
                        group_id=self._kafka.group,
                        enable_auto_commit=False,
                        bootstrap_timeout_ms=int(CLOSE_SECONDS * 1000),
                        metrics_enabled=False,
                    )
                    consumer.commit(self._as_told_to_kafka(newest), timeout_ms=CLOSE_SECONDS * 1000)
            except BrokersRefuse as error:
                self._give_up(f"consumer group {self._kafka.group} is refused: {error}")
                break
            except BrokersUnavailable as error:
                try:
                    self._closing.wait(patience.failed(error))
                except PatienceExhausted as exhausted:
                    self._give_up(exhausted)
                    break
                if self._closing.is_set():
                    break
                self._changed.set()
            else:
                patience.answered()
                self._told = newest
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=CLOSE_SECONDS * 1000)

    def _give_up(self, reason: object) -> None:
        self._tell(f"{self._uri}: {reason}; its lag is wrong from here on, the run is not")

    def _as_told_to_kafka(self, offsets: Mapping[int, int]) -> dict[Any, Any]:
        from kafka import OffsetAndMetadata, TopicPartition

        return {
            TopicPartition(self._kafka.topic, number): OffsetAndMetadata(offset, "", -1)
            for number, offset in offsets.items()
        }


def group_mirror(uri: str, tell: Callable[[str], None]) -> GroupMirror | None:
    """Return what tells the consumer group of a source; None where it names none."""
    if not uri.lower().startswith("kafka://"):
        return None
    try:
        return GroupMirror(uri, tell) if KafkaUri.parse(uri).group else None
    except SourceError:
        return None  # told by whoever opens it

"""A topic through confluent-kafka: librdkafka's threads fetch, so that Python only takes what is there."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, cast

import numpy as np
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]  # no __all__

from ingest.kafka_client import (
    ANSWER_SECONDS,
    BOOTSTRAP_SECONDS,
    FETCH_BYTES,
    FETCH_WAIT_SECONDS,
    RECONNECT_SECONDS,
    REFRESH_SECONDS,
    REQUEST_SECONDS,
    SPLIT_FETCH_BYTES,
    Batch,
    BrokersRefuse,
    BrokersUnavailable,
    files_of,
    reach,
)
from ingest.kafka_uri import EARLIEST, LATEST, KafkaUri

_GROUP: Final = "exoflow"
"""librdkafka wants a name; no such group is joined, and nothing is committed to it."""
_BATCH_RECORDS: Final = 4000
"""Messages taken from the client at a time."""
_QUEUED_RECORDS: Final = 4000
_QUEUED_KIB: Final = 2 * SPLIT_FETCH_BYTES // 1024
"""Of a partition, what the client has in store before it fetches more, and the most of it."""
_LOOK_AGAIN_MS: Final = 10
"""How long after it had enough in store the client looks again; by default a second, in which it runs dry."""

_REFUSALS: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError._FATAL,
        KafkaError._INVALID_ARG,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.UNSUPPORTED_VERSION,
    }
)
"""Errors that trying again does not cure. A group that one may not use is none: there is no group."""

_NAMES: Final = {
    "security_protocol": "security.protocol",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
    "sasl_kerberos_service_name": "sasl.kerberos.service.name",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
}


class ConfluentClient:
    """See `ingest.kafka_client.Client`."""

    def __init__(self, kafka: KafkaUri) -> None:
        self._topic = kafka.topic
        self._trouble: Exception | None = None
        self._known = 0
        self._known_at = -REFRESH_SECONDS
        self._answered = False
        self._followed: set[int] = set()
        logger = logging.getLogger("confluent_kafka")
        logger.addHandler(logging.NullHandler())  # what it has to say is told by whoever waits, once
        reach(kafka.servers)[1].close()  # at once, where the client would try for long
        connection = kafka.connection()
        self._connection = librdkafka_options(connection)
        options = {
            **self._connection,
            "group.id": _GROUP,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
            "enable.partition.eof": True,
            "fetch.max.bytes": FETCH_BYTES,
            "max.partition.fetch.bytes": SPLIT_FETCH_BYTES,
            "fetch.wait.max.ms": int(FETCH_WAIT_SECONDS * 1000),
            "queued.min.messages": _QUEUED_RECORDS,
            "queued.max.messages.kbytes": _QUEUED_KIB,
            "fetch.queue.backoff.ms": _LOOK_AGAIN_MS,
            "socket.timeout.ms": int(REQUEST_SECONDS * 1000),
            "topic.metadata.refresh.interval.ms": int(REFRESH_SECONDS * 1000),
            "reconnect.backoff.max.ms": int(RECONNECT_SECONDS * 1000),
            "error_cb": self._take_error,
        }
        try:
            self._consumer = Consumer(options, logger=logger)
        except (KafkaException, ValueError) as error:
            message = f"the connection cannot be made{files_of(connection)}: {_text(error)}"
            raise BrokersRefuse(message) from error

    def partitions(self) -> int:
        """Return how many there are; not asked again while that is fresh."""
        if self._known and monotonic() < self._known_at + REFRESH_SECONDS:
            return self._known
        found = self._ask(lambda timeout: self._consumer.list_topics(self._topic, timeout).topics[self._topic])
        if found.error is not None and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise _translated(found.error)
        self._known, self._known_at = len(found.partitions), monotonic()
        return self._known

    def offsets(self, numbers: Sequence[int], at: str | float) -> dict[int, int]:
        """Return where the partitions begin, end, or come to a time."""
        if at in (EARLIEST, LATEST):
            which = 0 if at == EARLIEST else 1
            return {number: self._bounds(number)[which] for number in numbers}
        asked = [TopicPartition(self._topic, number, int(float(at) * 1000)) for number in numbers]
        found = self._ask(lambda timeout: self._consumer.offsets_for_times(asked, timeout))
        for each in found:
            if each.error is not None:
                raise _translated(each.error)
        # The end stands for a time that no message has come to.
        return {each.partition: self._bounds(each.partition)[1] if each.offset < 0 else each.offset for each in found}

    def _bounds(self, number: int) -> tuple[int, int]:
        partition = TopicPartition(self._topic, number)
        bounds: tuple[int, int] = self._ask(
            lambda timeout: self._consumer.get_watermark_offsets(partition, timeout, cached=False)
        )
        return bounds

    def is_compacted(self) -> bool | None:
        """Ask for the topic's policy; who may not know it is refused."""
        admin = AdminClient(self._connection, logger=logging.getLogger("confluent_kafka"))
        (asked,) = admin.describe_configs(
            [ConfigResource(ResourceType.TOPIC, self._topic)], request_timeout=ANSWER_SECONDS
        ).values()
        try:
            return "compact" in asked.result()["cleanup.policy"].value
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return None
            raise _translated(error.args[0]) from error

    def follow(self, number: int, offset: int) -> None:
        """Begin to read a partition, or go on elsewhere."""
        if number in self._followed:
            self.leave(number)
        self._followed.add(number)
        self._consumer.incremental_assign([TopicPartition(self._topic, number, offset)])

    def leave(self, number: int) -> None:
        """Read a partition no more."""
        self._followed.remove(number)
        self._consumer.incremental_unassign([TopicPartition(self._topic, number)])

    def pause(self, number: int) -> None:
        """Let no messages come; those in store are fetched again."""
        self._consumer.pause([TopicPartition(self._topic, number)])

    def resume(self, number: int) -> None:
        """Let them come again."""
        self._consumer.resume([TopicPartition(self._topic, number)])

    def poll(self, seconds: float) -> dict[int, Batch]:
        """Return what has come."""
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble
        # It waits until it has as many as it is asked for: so for the first only.
        messages = self._consumer.consume(_BATCH_RECORDS, 0)
        if not messages and seconds > 0:
            messages = self._consumer.consume(1, seconds)
            if messages:
                messages += self._consumer.consume(_BATCH_RECORDS - 1, 0)
        return self._batches(messages)

    def _batches(self, messages: list[Message]) -> dict[int, Batch]:
        batches: dict[int, Batch] = {}
        failed = list(map(Message.error, messages))
        if any(error is not None for error in failed):
            events = [(message, error) for message, error in zip(messages, failed, strict=True) if error is not None]
            messages = [message for message, error in zip(messages, failed, strict=True) if error is None]
        else:
            events = []
        numbers = np.fromiter(map(Message.partition, messages), np.int64, len(messages))
        values, offsets = list(map(Message.value, messages)), cast(list[int], list(map(Message.offset, messages)))
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(messages)] if messages else []
        for begin, end in itertools.pairwise(bounds):
            batch = batches.setdefault(int(numbers[begin]), Batch([], [], 0))
            if not batch.values:
                batch.since = _seconds_of(messages[begin])
            batch.values += values[begin:end]
            batch.offsets += offsets[begin:end]
            batch.reached = offsets[end - 1] + 1
        for message, error in events:
            self._take_event(batches, message, error)
        return batches

    def _take_event(self, batches: dict[int, Batch], message: Message, error: KafkaError) -> None:
        """Note what the client says of a partition, or of its connections, between the messages."""
        # Only messages that are still to be sent have no place.
        number, offset = cast(tuple[int, int], (message.partition(), message.offset()))
        match error.code():
            case KafkaError._PARTITION_EOF:
                # Behind the last message lie only gaps.
                batch = batches.setdefault(number, Batch([], [], offset))
                batch.reached = max(batch.reached, offset)
            case KafkaError._AUTO_OFFSET_RESET:
                batch = batches.setdefault(number, Batch([], [], offset))
                batch.out_of_range = offset
            case _:
                self._trouble = _translated(error)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _ask(self, question: Callable[[float], Any]) -> Any:
        """Return an answer; the first may take longer, for nobody is connected yet.

        What the client has found out meanwhile says more than that a question timed out.
        """
        deadline = monotonic() + (0 if self._answered else BOOTSTRAP_SECONDS)
        while True:
            try:
                answer = question(ANSWER_SECONDS)
            except KafkaException as error:
                if not self._followed:  # else `poll` hears of it
                    self._consumer.poll(0)
                trouble, self._trouble = self._trouble or _translated(error.args[0]), None
                if isinstance(trouble, BrokersRefuse) or monotonic() >= deadline:
                    raise trouble from error
            else:
                self._answered = True
                return answer

    def _take_error(self, error: KafkaError) -> None:
        """Note an error of a connection; those that cure themselves show in that nothing comes."""
        if error.code() in _REFUSALS:
            self._trouble = _translated(error)


def _seconds_of(message: Message) -> float | None:
    kind, milliseconds = message.timestamp()
    return None if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds / 1000


def librdkafka_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return librdkafka's options for kafka-python's about the connection."""
    translated = {name: options[ours] for ours, name in _NAMES.items() if ours in options}
    if "ssl_certfile" in options:  # which may hold the key, too
        translated.setdefault("ssl.key.location", options["ssl_certfile"])
    if not options.get("ssl_check_hostname", True):
        translated["ssl.endpoint.identification.algorithm"] = "none"
    return {"bootstrap.servers": ",".join(options["bootstrap_servers"]), **translated}


def _translated(error: KafkaError) -> Exception:
    return (BrokersRefuse if error.code() in _REFUSALS else BrokersUnavailable)(error.str())


def _text(error: Exception) -> str:
    first = error.args[0] if error.args else error
    return str(first.str() if isinstance(first, KafkaError) else first)

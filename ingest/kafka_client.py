"""What a Kafka client has to do for a source, and which of two does it: kafka-python or confluent-kafka.

A client reads partitions of one topic from offsets that it is told. It decides nothing: how long to wait for brokers
that do not answer, and what lost offsets mean, is the source's business. What is read, and its positions, are the
same through either, so that a run may be resumed with the other.
"""

import importlib.util
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ingest.kafka_uri import CLIENTS, CONFLUENT, KAFKA_PYTHON, KafkaUri
from ingest.source import SourceError

FETCH_BYTES: Final = 1024 * 1024
SPLIT_FETCH_BYTES: Final = 256 * 1024
"""Bytes that are asked for at a time, of a broker and of a partition."""
FETCH_WAIT_SECONDS: Final = 0.1
ANSWER_SECONDS: Final = 1.0
BOOTSTRAP_SECONDS: Final = 5.0
REQUEST_SECONDS: Final = 10.0
RECONNECT_SECONDS: Final = 2.0
REFRESH_SECONDS: Final = 5.0
"""How old what is known of a topic's partitions may be."""

_MODULES: Final = {KAFKA_PYTHON: "kafka", CONFLUENT: "confluent_kafka"}
_EXTRAS: Final = {KAFKA_PYTHON: "kafka", CONFLUENT: "confluent"}


class BrokersUnavailable(Exception):
    """The brokers did not answer, or not now: try again."""


class BrokersRefuse(Exception):
    """Trying again would not help: credentials, certificates, permissions, options."""


@dataclass(slots=True)
class Batch:
    """What has come of a partition.

    Attributes
    ----------
    values, offsets
        The messages: what each holds, and where it is.
    reached
        The offset up to which the partition is known: messages, and gaps that transactions and compaction leave.
    out_of_range
        The offset that was wanted, if the topic has none such; nothing more comes until another is followed.
    since
        Unix seconds of the first message; None where it has no timestamp.
    """

    values: list[bytes | None]
    offsets: list[int]
    reached: int
    out_of_range: int | None = None
    since: float | None = None


class Client(Protocol):
    """A connection for the partitions of one topic.

    Raises
    ------
    BrokersUnavailable, BrokersRefuse
        From every method that asks a broker, and from `poll` also for what went wrong before.
    """

    def partitions(self) -> int:
        """Return how many partitions the topic has; 0 where there is no such topic."""

    def offsets(self, numbers: Sequence[int], at: str | float) -> dict[int, int]:
        """Return by partition the offset at its beginning, its end for readers of what is committed, or a time."""

    def is_compacted(self) -> bool | None:
        """Tell whether the topic keeps only the newest messages of a key; None where one may not ask."""

    def follow(self, number: int, offset: int) -> None:
        """Begin to read a partition at an offset, or go on there."""

    def leave(self, number: int) -> None:
        """Read a partition no more."""

    def pause(self, number: int) -> None:
        """Let no messages of a partition come for a while."""

    def resume(self, number: int) -> None:
        """Let them come again; none is left out."""

    def poll(self, seconds: float) -> dict[int, Batch]:
        """Return what has come of the partitions that are followed, at once or within some seconds."""

    def close(self) -> None:
        """Close the connection."""


def client_name(uri: str, kafka: KafkaUri, environment: Mapping[str, str] = os.environ) -> str:
    """Return which client reads a topic: the one that is asked for, else the faster one that is installed.

    Raises
    ------
    SourceError
        It is not installed, or there is none such.
    """
    asked = kafka.client or environment.get("KAFKA_CLIENT")
    if asked and asked not in CLIENTS:
        raise SourceError(uri, f"KAFKA_CLIENT must be one of {', '.join(CLIENTS)}, not {asked!r}")
    name = asked or (CONFLUENT if _installed(CONFLUENT) else KAFKA_PYTHON)
    if not _installed(name):
        detail = f"reading with {name} needs the extra {_EXTRAS[name]}: pip install 'exoflow[{_EXTRAS[name]}]'"
        raise SourceError(uri, detail)
    return name


def connected(name: str, kafka: KafkaUri) -> Client:
    """Return a new client; imports its library.

    Raises
    ------
    BrokersUnavailable, BrokersRefuse
        Nobody answers, or in the wrong way.
    """
    if name == CONFLUENT:
        from ingest.kafka_confluent import ConfluentClient

        return ConfluentClient(kafka)
    from ingest.kafka_python import PythonClient

    return PythonClient(kafka)


def reach(servers: Sequence[str]) -> tuple[str, socket.socket]:
    """Return the host of the first broker that accepts a connection, and the connection.

    Raises
    ------
    BrokersUnavailable
        None does.
    """
    reason = ""
    for server in servers:
        name, _, port = server.rpartition(":")
        host = name.strip("[]")
        try:
            return host, socket.create_connection((host, int(port)), BOOTSTRAP_SECONDS)
        except OSError as error:
            reason = f"{server}: {error}"
    raise BrokersUnavailable(reason)


def files_of(options: Mapping[str, Any]) -> str:
    """Return the files that options about the connection name, for a message about what is wrong with them."""
    named = [str(options[name]) for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile") if name in options]
    return f" with {', '.join(named)}" if named else ""


def _installed(name: str) -> bool:
    return importlib.util.find_spec(_MODULES[name]) is not None

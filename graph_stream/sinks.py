"""The contract of a sink, and which one a place stands for."""

from __future__ import annotations

from typing import Protocol

from graph_stream.errors import ConfigError
from graph_stream.publication import Publication
from graph_stream.targets import KAFKA_SCHEME


class Sink(Protocol):
    """Takes an epoch's publication once, however often it is offered."""

    def check(self, *, new: bool) -> None:
        """Look whether it can be published to; for a ``new`` run also, that nobody else's epochs are there.

        Raises
        ------
        ConfigError
            When this will not become right by itself; says what to do.
        SinkUnavailable
            When it cannot be reached now.
        """

    def publish(self, publication: Publication) -> bool:
        """Make a publication visible, whole, if it is not; return whether this call did.

        Epochs of a stream come in order, and the next only after the one before has returned.

        Raises
        ------
        SinkUnavailable
            When it may not be visible; offer it again.
        SinkConflict
            When something else is in its place.
        """

    def close(self) -> None:
        """Let go of connections; for good."""


def open_sink(place: str, stream: str = "") -> Sink:
    """Return the sink at a place; connects to nothing yet.

    Parameters
    ----------
    place : str
        See `graph_stream.targets.Target`.
    stream : str
        Names the publications that will be made, as in `graph_stream.publication.Marker`; not needed to `check`.

    Raises
    ------
    ConfigError
        When what it needs is not installed.
    """
    try:
        if place.startswith(KAFKA_SCHEME):
            from graph_stream.kafka_sink import KafkaSink

            return KafkaSink(place, stream)
        from graph_stream.parquet_sink import ParquetSink

        return ParquetSink(place)
    except ModuleNotFoundError as error:
        extra = "kafka" if place.startswith(KAFKA_SCHEME) else "s3"
        message = f"publishing to {place} needs {error.name}; install it with: pip install 'exoflow[{extra}]'"
        raise ConfigError(message) from error

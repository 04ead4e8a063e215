"""Epochs as Parquet files, which together are one table.

One file ``epoch-000000000012.parquet`` for each epoch, also for one that changed nothing, with the marker in
the file's metadata. A file appears whole or not at all, under a name that no other epoch has: locally it gets its
name once it is durable, on S3 a put is one step. Every file in the folder is a whole epoch, so plain readers
need to know nothing.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import exoflow
from exoflow.storage import Store, open_store
from graph_stream.errors import ConfigError, SinkConflict, SinkUnavailable
from graph_stream.publication import Marker, Publication

MARKER_KEY = b"graph_stream.epoch"
_PROBE = ".exoflow-probe"  # no reader of Parquet folders looks at names that begin with a dot


class ParquetSink:
    """A folder of Parquet files, local or on S3; see `graph_stream.sinks.Sink`."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._opened: Store | None = None

    def check(self, *, new: bool) -> None:
        """Look whether files can be written, and for a new run, that none of another one's are there."""
        try:
            store = self._store()
            found = [key for key in store.list("") if key.endswith(".parquet")] if new else []
            store.put_if_absent(_PROBE, b"")
            store.delete(_PROBE)
        except exoflow.DefinitionError as error:
            raise ConfigError(str(error)) from error
        except exoflow.StorageUnavailable as error:
            raise SinkUnavailable(str(error)) from error
        if found:
            message = f"{self._place} holds Parquet files already, such as {found[0]}; publish to an empty folder"
            raise ConfigError(message)

    def publish(self, publication: Publication) -> bool:
        """Write the epoch's file unless it is there."""
        name = file_name(publication.marker.epoch)
        try:
            if self._store().put_if_absent(name, encode(publication)):
                return True
            found = self._store().get(name)
        except exoflow.StorageUnavailable as error:
            raise SinkUnavailable(str(error)) from error
        if found is None or _marker_of(found) != publication.marker.to_json():
            message = f"{self._place}/{name} is not this run's; move it away, then resume the run"
            raise SinkConflict(message)
        return False

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def _store(self) -> Store:
        if self._opened is None:
            self._opened = open_store(self._place, create=False)
        return self._opened


def file_name(epoch: int) -> str:
    """Return the name of an epoch's file."""
    return f"epoch-{epoch:012d}.parquet"


def encode(publication: Publication) -> bytes:
    """Return a publication as a Parquet file; equal ones give equal bytes."""
    schema = publication.rows.schema.with_metadata({MARKER_KEY: _as_bytes(publication.marker)})
    sink = pa.BufferOutputStream()
    pq.write_table(publication.rows.cast(schema), sink, compression="zstd")
    return bytes(sink.getvalue())


def _as_bytes(marker: Marker) -> bytes:
    return json.dumps(marker.to_json(), separators=(",", ":")).encode()


def _marker_of(data: bytes) -> dict[str, Any] | None:
    try:
        metadata = pq.read_schema(pa.BufferReader(data)).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    shown = metadata.get(MARKER_KEY)
    return None if shown is None else json.loads(shown)

"""Records that could not be parsed, kept as one Parquet object per epoch.

An object is named by epoch and content, and the epoch's row says the name: what an epoch that was never committed
has left, or one that was cut elsewhere before a crash, is nobody's. Objects live as long as their run.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import exoflow
from ingest import BadRecord

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("split", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("raw", pa.binary()),
        pa.field("reason", pa.string()),
        pa.field("cut", pa.bool_()),
    ]
)
TABLE_SCHEMA = pa.schema([pa.field("epoch", pa.int64()), *SCHEMA])
"""Bad records of several epochs."""

_ROWS_AT_ONCE = 1000
"""In a group of rows: so many records are copied at a time, for each may have kilobytes."""
_DIGEST_DIGITS = 32
_SHOWN_CHARACTERS = 80
_FIRST_RAW_BYTES = 1024
"""Where the first release cut records, without a column that says so."""


def encode(bad: Sequence[BadRecord]) -> bytes:
    """Return bad records as Parquet bytes with the columns of `SCHEMA`."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, use_dictionary=["source", "split", "reason"]) as writer:
        for start in range(0, len(bad), _ROWS_AT_ONCE):
            columns = [[getattr(each, name) for each in bad[start : start + _ROWS_AT_ONCE]] for name in SCHEMA.names]
            writer.write_table(pa.table(columns, SCHEMA))
    return sink.getvalue()


def name_of(epoch: int, data: bytes) -> str:
    """Return the name of the object that holds an epoch's bad records."""
    return f"quarantine/epoch-{epoch:012d}-{_digest(data)}.parquet"


def name_in(row: Mapping[str, Any]) -> str | None:
    """Return the name of the object that belongs to the row of an epoch; None where no record was bad."""
    return _named_by(row) if row["rejected"] else None


def decode(row: Mapping[str, Any], data: bytes | None) -> list[BadRecord]:
    """Return the bad records of an epoch, in the order of the epoch.

    Parameters
    ----------
    row
        The epoch's row, of which `name_in` says the name of an object.
    data
        What that object holds; None where there is none.

    Raises
    ------
    exoflow.CorruptRecord
        When the object is missing, damaged, or another epoch's.
    """
    name = _named_by(row)
    if data is None:
        message = f"{name} is missing from the store; restore it from a backup"
        raise exoflow.CorruptRecord(name, message)
    if "quarantine" in row and name != name_of(row["epoch"], data):
        message = f"{name} is damaged: its bytes are not those that were written; restore it from a backup"
        raise exoflow.CorruptRecord(name, message)
    try:
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        message = f"{name} is damaged: {error}; restore it from a backup"
        raise exoflow.CorruptRecord(name, message) from error
    if len(rows) != row["rejected"]:
        message = f"{name} holds {len(rows)} records, and its epoch refused {row['rejected']}: it is another cut's"
        raise exoflow.CorruptRecord(name, message)
    return [BadRecord(**{"cut": len(each["raw"]) >= _FIRST_RAW_BYTES, **each}) for each in rows]


# --- as they are shown ------------------------------------------------------------------------------------


def table_of(epoch: int, bad: Sequence[BadRecord]) -> pa.Table:
    """Return the bad records of an epoch with the columns of `TABLE_SCHEMA`."""
    rows = [{"epoch": epoch, **dataclasses.asdict(each)} for each in bad]
    return pa.Table.from_pylist(rows, TABLE_SCHEMA)


def as_json(epoch: int, record: BadRecord) -> dict[str, Any]:
    """Return a bad record as it is printed: ``raw`` as text, where it is none with marks, and exactly as base64."""
    shown = {"epoch": epoch, **dataclasses.asdict(record)}
    raw = {"raw": record.raw.decode(errors="replace"), "raw_base64": base64.b64encode(record.raw).decode()}
    return {**shown, **raw}


def as_line(epoch: int, record: BadRecord) -> str:
    """Return a bad record as one line that is safe to print: what it holds is escaped, and cut where it is long."""
    text = record.raw.decode(errors="backslashreplace")
    more = "..." if record.cut or len(text) > _SHOWN_CHARACTERS else ""
    escaped = as_printed(text[:_SHOWN_CHARACTERS])
    place = f"{record.split}, {record.offset}"
    return f"{epoch:>7}  {record.source}  {place}: {record.reason}: {escaped}{more}"


def as_printed(value: object) -> str:
    """Return a value as text that is safe to print: what would move the cursor is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(value))


def _named_by(row: Mapping[str, Any]) -> str:
    return row.get("quarantine") or f"quarantine/epoch-{row['epoch']:012d}.parquet"  # of the first release


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_DIGITS]

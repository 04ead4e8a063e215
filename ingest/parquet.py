"""Parquet files as chunks of records: batches of rows, checked column by column."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from ingest.formats import COLUMNS, holds_names
from ingest.names import MAX_NAME_BYTES, Names, not_utf8
from ingest.normalise import MAX_SECONDS_DIGITS
from ingest.parse import op_signs
from ingest.reader import Chunk, Chunks
from ingest.source import BadRecord, Float64s, Records, SourceError
from ingest.streams import CHANGED

BATCH_ROWS: Final = 32 * 1024
_MAX_INT64: Final = 2**63 - 1

_UNITS_PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_WANTED_TYPES: Final = {
    "src": "an integer",
    "dst": "an integer",
    "op": "a string",
    "time": "a number or a timestamp",
}
_WANTED_NAMES: Final = {"src": "a string", "dst": "a string"}
_PUT_RIGHT: Final = "Write the file with such a column, as its rows stand, and resume"


@dataclass(frozen=True, slots=True)
class ParquetSplit:
    """A Parquet file as a split of a source.

    Attributes
    ----------
    uri, split
        The names of the source and the split, for errors and bad records.
    open
        Opens the file for random access.
    names
        The column list; its order means nothing here.
    batch_rows
        How many rows are read at a time.
    """

    uri: str
    split: str
    open: Callable[[], pa.NativeFile]
    names: tuple[str, ...]
    batch_rows: int = BATCH_ROWS


def parquet_chunks(split: ParquetSplit, position: int) -> Chunks:
    """Read a Parquet file from a row on, a batch at a time.

    Raises
    ------
    SourceError
        A column is missing or has a type its values cannot come from.
    OSError, pyarrow.ArrowException
        The file cannot be read, is damaged, or ends before `position`.
    """
    with split.open() as stream, pq.ParquetFile(stream) as file:
        _check_schema(split, file.schema_arrow)
        if position > file.metadata.num_rows:
            message = f"it ends before row {position}, up to which it was read before: {CHANGED}"
            raise OSError(message)
        row = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row + rows <= position:
                row += rows
                continue
            for batch in file.iter_batches(split.batch_rows, row_groups=[group], columns=list(split.names)):
                skip = min(max(position - row, 0), batch.num_rows)
                yield _chunk(split, batch.slice(skip), row + skip)
                row += batch.num_rows


def _check_schema(split: ParquetSplit, schema: pa.Schema) -> None:
    for name in split.names:
        found = schema.get_all_field_indices(name)
        if len(found) != 1:
            count = "no column" if not found else "more than one column"
            detail = f"{split.split} has {count} {name!r}; it has {', '.join(schema.names)}. {_PUT_RIGHT}"
            raise SourceError(split.uri, detail)
        kind = schema.field(name).type
        named = holds_names(split.names)
        if not _fits(name, kind, named):
            wanted = (_WANTED_TYPES | _WANTED_NAMES if named else _WANTED_TYPES)[name]
            hint = "; names are read with --ids string" if _fits(name, kind, named=True) else ""
            detail = f"{split.split}: column {name!r} holds {kind}; it must be {wanted}{hint}. {_PUT_RIGHT}"
            raise SourceError(split.uri, detail)


def _fits(name: str, kind: pa.DataType, named: bool) -> bool:
    types = pa.types
    if name == "op" or (named and name in _WANTED_NAMES):
        value = kind.value_type if types.is_dictionary(kind) else kind
        return bool(types.is_string(value) or types.is_large_string(value) or types.is_string_view(value))
    if name == "time" and (types.is_floating(kind) or types.is_decimal(kind) or types.is_timestamp(kind)):
        return True
    return bool(types.is_integer(kind))


def _chunk(split: ParquetSplit, batch: pa.RecordBatch, row: int) -> Chunk:
    """Check a batch whose first row is number `row` of the file."""
    columns = {name: batch.column(name) for name in split.names}
    named = holds_names(split.names)
    records = Records(
        _names(columns["src"]) if named else _integers(columns["src"]).astype(np.int64),
        _names(columns["dst"]) if named else _integers(columns["dst"]).astype(np.int64),
        op_signs(_texts(columns["op"])) if "op" in columns else np.ones(batch.num_rows, np.int8),
        _seconds(columns["time"]) if "time" in columns else None,
    )
    faults = _faults(columns, records, named)
    starts = np.arange(row, row + batch.num_rows)
    masks = np.array([mask for _, mask in faults])
    wrong: npt.NDArray[np.bool_] = np.logical_or.reduce(masks)
    if not wrong.any():
        return Chunk(records, starts, starts + 1)
    fine = ~wrong
    reasons = [faults[first][0] for first in masks[:, wrong].argmax(axis=0)]
    offsets = starts[wrong].tolist()
    shown = _shown(columns, pa.array(wrong))
    bad = tuple(
        BadRecord.of(split.uri, split.split, offset, row, reason)
        for offset, row, reason in zip(offsets, shown, reasons, strict=True)
    )
    return Chunk(
        records.where(fine),
        starts[fine],
        starts[fine] + 1,
        bad,
        tuple(record.offset + 1 for record in bad),
    )


def _faults(columns: dict[str, pa.Array], records: Records, named: bool) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Return what can be wrong with a row, most telling first, and the rows it is wrong for."""
    present = [name for name in COLUMNS if name in columns]
    faults = [(f"{name} is null", columns[name].is_null().to_numpy(zero_copy_only=False)) for name in present]
    faults += [
        (f"{name} is out of the int64 range", _integers(columns[name]) > _MAX_INT64)
        for name in ("src", "dst")
        if pa.types.is_uint64(columns[name].type)
    ]
    if named:
        faults += [*_faults_of_names("src", records.src), *_faults_of_names("dst", records.dst)]
    if "op" in columns:
        faults.append(("op is neither + nor -", records.op == 0))
    if records.time is not None:
        faults.append(("time is not Unix seconds", ~(np.abs(records.time) < 10.0**MAX_SECONDS_DIGITS)))
    return faults


def _faults_of_names(column: str, names: Names) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    lengths = compute.binary_length(names).to_numpy()
    return [
        (f"{column} is empty", lengths == 0),
        (f"{column} is longer than {MAX_NAME_BYTES} bytes", lengths > MAX_NAME_BYTES),
        (f"{column} is not UTF-8", not_utf8(names)),
    ]


def _shown(columns: dict[str, pa.Array], wrong: pa.BooleanArray) -> list[bytes]:
    """Return rows as JSON objects, whatever is in them."""
    values = {name: _json_values(column.filter(wrong)) for name, column in columns.items()}
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return [json.dumps(row, default=str).encode() for row in rows]


def _json_values(column: pa.Array) -> list[Any]:
    """Return values as JSON can hold them.

    Times become Unix seconds, for Python's own end with the year 9999 and with microseconds. Text need not be
    UTF-8: those who write Parquet do not always check it.
    """
    kind = column.type
    if pa.types.is_timestamp(kind):
        seconds = _seconds(column).tolist()
        return [value if valid else None for value, valid in zip(seconds, column.is_valid().to_pylist(), strict=True)]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return cast(list[Any], column.to_pylist())
    texts = _texts(column).cast(pa.binary()).to_pylist()
    return [None if text is None else text.decode(errors="replace") for text in texts]


def _texts(column: pa.Array) -> pa.StringArray:
    """Return text of any type as plain strings, unchecked: a cast between text types may refuse what is not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.binary()).view(pa.string())


def _names(column: pa.Array) -> Names:
    """Return text of any type as names; an empty one for a null."""
    return _texts(column).cast(pa.binary()).fill_null(b"").cast(pa.large_binary())


def _integers(column: pa.Array) -> npt.NDArray[np.integer]:
    return cast(npt.NDArray[np.integer], column.fill_null(0).to_numpy(zero_copy_only=False))


def _seconds(column: pa.Array) -> Float64s:
    """Return Unix seconds; any value for a null."""
    kind = column.type
    if pa.types.is_timestamp(kind):  # without a zone: UTC
        return _integers(column.cast(pa.int64())) / _UNITS_PER_SECOND[kind.unit]
    if pa.types.is_integer(kind):
        return _integers(column).astype(np.float64)
    return cast(Float64s, column.cast(pa.float64()).to_numpy(zero_copy_only=False))

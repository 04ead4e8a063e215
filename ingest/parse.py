"""Blocks of whole lines to records, at the speed of pyarrow's CSV reader and with no Python per good line.

A block of nothing but digits and single separators goes to the reader as it is. Any other (comments, runs of
spaces, quotes, dates, a bad line) is rewritten first by `ingest.normalise`, which also says which lines are
bad. Both ways give the same records, so how a file happens to be cut into blocks cannot be seen.
"""

import codecs
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv

from ingest.formats import COLUMNS, holds_names
from ingest.names import column_of
from ingest.normalise import MAX_SECONDS_DIGITS, REASONS, normalise
from ingest.source import Int8s, Int64s, Records

_PLAIN_BYTES: Final = b"0123456789-+.\n"
_TYPES: Final = dict(zip(COLUMNS, (pa.int64(), pa.int64(), pa.string(), pa.float64()), strict=True))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the columns of a line are.

    Attributes
    ----------
    delimiter
        The byte between columns; empty for runs of spaces and tabs.
    index
        The column of src, dst, op and time (the order of `ingest.formats.COLUMNS`), counted from 0; None for
        no such column.
    named
        Whether src and dst are names.
    """

    delimiter: bytes
    index: tuple[int | None, ...]
    named: bool = False


def layout_of(delimiter: bytes, names: tuple[str, ...]) -> Layout:
    """Return the layout of lines whose columns have these names, in this order."""
    index = tuple(names.index(name) if name in names else None for name in COLUMNS)
    return Layout(delimiter, index, holds_names(names))


@dataclass(frozen=True, slots=True, eq=False)
class ParsedLines:
    """The records of a block of lines.

    Attributes
    ----------
    records
        The n good records.
    starts, ends
        int64[n], where the line of each good record starts and ends in the block.
    bad
        Start, end and reason of each bad line, in order.
    """

    records: Records
    starts: Int64s
    ends: Int64s
    bad: list[tuple[int, int, str]]


def parse_lines(block: bytes, layout: Layout, max_line_bytes: int) -> ParsedLines:
    """Parse whole lines.

    Parameters
    ----------
    block
        Lines, each with its line feed.
    layout
        Where the columns are.
    max_line_bytes
        A longer line is bad.
    """
    plain = None if layout.named else parse_plain(block, layout, max_line_bytes)
    return plain or parse_any(block, layout, max_line_bytes)


def parse_plain(block: bytes, layout: Layout, max_line_bytes: int) -> ParsedLines | None:
    """Parse lines with nothing but numbers, signs and single separators; None where `parse_any` must."""
    text = block.replace(b"\r\n", b"\n") if b"\r" in block else block
    delimiter = layout.delimiter or (b"\t" if b"\t" in text else b" ")
    if text.translate(None, _PLAIN_BYTES + delimiter):
        return None
    columns = text[: text.find(b"\n")].split(delimiter)
    if b"" in columns or any(column is not None and column >= len(columns) for column in layout.index):
        return None
    try:
        records = _records(_read_values(text, delimiter, layout.index, len(columns)))
    except pa.ArrowInvalid:  # a bad line, or lines of different lengths
        return None
    bounds = _line_bounds(block)
    if len(records) != len(bounds) - 1:  # the reader skips blank lines
        return None
    if records.time is not None and not np.all(np.abs(records.time) < 10.0**MAX_SECONDS_DIGITS):
        return None
    if len(block) > max_line_bytes and np.max(np.diff(bounds)) > max_line_bytes + 1:
        return None
    return ParsedLines(records, bounds[:-1], bounds[1:], [])


def parse_any(block: bytes, layout: Layout, max_line_bytes: int) -> ParsedLines:
    """Parse any lines, good, bad and neither; see `parse_lines`."""
    bounds = _line_bounds(block)
    good = np.empty(len(bounds) - 1, np.int64)
    faults = np.empty((len(bounds) - 1, 2), np.int64)
    text = np.empty(len(block), np.uint8)
    name_bytes = np.empty((2, len(block) if layout.named else 0), np.uint8)
    name_bounds = np.zeros((2, len(bounds) if layout.named else 0), np.int64)
    n_good, n_bad, n_bytes = normalise(
        np.frombuffer(block, np.uint8),
        bounds,
        ord(layout.delimiter or b"\0"),
        np.array([-1 if column is None else column for column in layout.index]),
        _invalid_utf8(block),
        max_line_bytes,
        text,
        name_bytes,
        name_bounds,
        good,
        faults,
    )
    written = COLUMNS[2:] if layout.named else COLUMNS
    names = tuple(name for name in written if layout.index[COLUMNS.index(name)] is not None)
    plain = layout_of(b"\t", names)
    values = _read_values(pa.py_buffer(text[:n_bytes]), plain.delimiter, plain.index, len(names)) if names else {}
    for name, data, places in zip(COLUMNS[:2], name_bytes, name_bounds, strict=True) if layout.named else ():
        # Copies, for else a few short names would keep the whole block.
        values[name] = column_of(data[: places[n_good]].copy(), places[: n_good + 1].copy())
    records = _records(values)
    if any(len(column) != n_good for column in values.values()):
        message = f"{n_good} lines were found to be well formed, but not all of them can be read"
        raise AssertionError(message)
    bad = [(int(bounds[line]), int(bounds[line + 1]), REASONS[reason]) for line, reason in faults[:n_bad].tolist()]
    return ParsedLines(records, bounds[good[:n_good]], bounds[good[:n_good] + 1], bad)


def _line_bounds(block: bytes) -> Int64s:
    """Return where each line starts, and the length of the block."""
    line_feeds = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    bounds = np.zeros(len(line_feeds) + 1, np.int64)
    np.add(line_feeds, 1, out=bounds[1:])
    return bounds


def _records(columns: dict[str, Any]) -> Records:
    op = columns["op"] if "op" in columns else np.ones(len(columns["src"]), np.int8)
    return Records(columns["src"], columns["dst"], op, columns.get("time"))


def _read_values(
    text: bytes | pa.Buffer, delimiter: bytes, index: tuple[int | None, ...], n_columns: int
) -> dict[str, Any]:
    """Read plain text; return its columns by name.

    Raises
    ------
    pyarrow.ArrowInvalid
        A line has another number of columns, an op is no sign or another column no number.
    """
    names = [f"column {column}" for column in range(n_columns)]
    wanted = {name: names[column] for name, column in zip(COLUMNS, index, strict=True) if column is not None}
    if not len(text):
        text = b"\n"  # the reader refuses nothing at all
    table = csv.read_csv(
        pa.BufferReader(text),
        csv.ReadOptions(use_threads=False, column_names=names, block_size=len(text) + 1),
        csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False),
        csv.ConvertOptions(
            column_types={column: _TYPES[name] for name, column in wanted.items()},
            include_columns=list(wanted.values()),
            null_values=[],
            check_utf8=False,
        ),
    )
    arrays = {name: table.column(column).combine_chunks() for name, column in wanted.items()}
    return {name: _signs(array) if name == "op" else array.to_numpy() for name, array in arrays.items()}


def _signs(ops: pa.StringArray) -> Int8s:
    signs = op_signs(ops)
    if not np.all(signs):
        message = "an op is neither + nor -"
        raise pa.ArrowInvalid(message)
    return signs


def op_signs(ops: pa.StringArray) -> Int8s:
    """Return int8[n]: +1 for a text "+", -1 for "-" and 0 for any other and for null."""
    plus, minus = (
        compute.fill_null(compute.equal(ops, sign), False).to_numpy(zero_copy_only=False).astype(np.int8)
        for sign in ("+", "-")
    )
    return cast(Int8s, plus - minus)


def _invalid_utf8(block: bytes) -> Int64s:
    """Return for each line that is not UTF-8 the offset of a byte in it."""
    invalid: list[int] = []
    view = memoryview(block)
    at = 0
    while at < len(block) and not block.isascii():
        try:
            codecs.utf_8_decode(view[at:], "strict", True)
            break
        except UnicodeDecodeError as error:
            invalid.append(at + error.start)
            at = block.index(b"\n", invalid[-1]) + 1
    return np.array(invalid, np.int64)

"""Messages as records: each holds one line of text, or one JSON object with a field per column.

A message is read by the same rules as a line of a file (`ingest.parse`); JSON is rewritten as such a line first.
Names do not travel in it, for in JSON they may hold what ends a line or a column: it has the number of the message
in their place.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ingest.formats import holds_names
from ingest.names import MAX_NAME_BYTES
from ingest.parse import Layout, layout_of, parse_lines
from ingest.reader import Chunk
from ingest.source import BadRecord, Int64s, Records, no_records

MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""A longer message is a bad record."""

_DELIMITERS: Final = {"txt": b"", "tsv": b"\t", "csv": b",", "json": b"\t"}


class MessageParser:
    """Turns the messages of one split into chunks of records.

    Parameters
    ----------
    uri, split
        The names of the source and the split, for bad records.
    kind
        ``txt``, ``tsv``, ``csv`` or ``json``.
    names
        The column list, as `ingest.formats.parse_columns` returns it.
    """

    def __init__(self, uri: str, split: str, kind: str, names: tuple[str, ...]) -> None:
        self._uri = uri
        self._split = split
        self._names = names
        self._is_json = kind == "json"
        self._has_named_fields = self._is_json and holds_names(names)
        # Of JSON there is no more than numbers in a line.
        self._layout: Layout = layout_of(_DELIMITERS[kind], tuple(names) if self._is_json else names)

    def chunk(self, values: Sequence[bytes | None], offsets: Int64s, reached: int) -> Chunk:
        """Parse messages.

        Parameters
        ----------
        values
            What each holds; None for a message without a value.
        offsets
            int64[n], ascending.
        reached
            Where the split goes on after them.
        """
        if not len(values):
            nothing = no_records("time" in self._names)
            return Chunk(nothing, offsets, offsets, reached=reached)
        if not self._is_json:
            text = _joined(values)
            if text is not None:
                return self._parsed(text, values, offsets, reached)
        lines: list[bytes] = []
        kept: list[int] = []
        faults: dict[int, str] = {}
        fields: list[tuple[bytes, bytes]] | None = [] if self._has_named_fields else None
        for number, value in enumerate(values):
            line = _json_line(value, self._names, fields) if self._is_json else _text_line(value)
            if isinstance(line, str):
                faults[int(offsets[number])] = line
            else:
                lines.append(line)
                kept.append(number)
        values_at = dict(zip(offsets.tolist(), values, strict=True)) if faults else {}
        chunk = self._parsed(b"".join(lines), [values[number] for number in kept], offsets[kept], reached)
        records = chunk.records if fields is None else _with_names(chunk.records, fields)
        bad = [self._bad_record(at, values_at[at], reason) for at, reason in faults.items()]
        merged = tuple(sorted([*chunk.bad, *bad], key=lambda record: record.offset))
        ends = tuple(record.offset + 1 for record in merged)
        return Chunk(records, chunk.starts, chunk.ends, merged, ends, reached)

    def _parsed(self, text: bytes, values: Sequence[bytes | None], offsets: Int64s, reached: int) -> Chunk:
        """Parse lines of which each is a message."""
        parsed = parse_lines(text, self._layout, MAX_MESSAGE_BYTES)
        if len(parsed.records) == len(offsets):
            return Chunk(parsed.records, offsets, offsets + 1, reached=reached)
        firsts = np.zeros(len(offsets), np.int64)
        feeds = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        np.add(feeds[:-1], 1, out=firsts[1:])
        starts = offsets[np.searchsorted(firsts, parsed.starts)]
        bad = []
        for start, _end, reason in parsed.bad:
            number = int(np.searchsorted(firsts, start))
            bad.append(self._bad_record(int(offsets[number]), values[number], reason))
        return Chunk(parsed.records, starts, starts + 1, tuple(bad), tuple(each.offset + 1 for each in bad), reached)

    def _bad_record(self, offset: int, value: bytes | None, reason: str) -> BadRecord:
        whole = (value or b"").removesuffix(b"\n").removesuffix(b"\r")
        return BadRecord.of(self._uri, self._split, offset, whole, reason)


def _joined(values: Sequence[bytes | None]) -> bytes | None:
    """Return messages as lines; None where one has no value or is not exactly one line."""
    if None in values:
        return None
    text = b"\n".join([*values, b""])  # type: ignore[list-item]  # None was looked for
    return text if text.count(b"\n") == len(values) else None


def _text_line(value: bytes | None) -> bytes | str:
    """Return a message as one line, or what is wrong with it."""
    if value is None:
        return "the message has no value"
    line = value.removesuffix(b"\n")
    if b"\n" in line:
        return "the message has more than one line"
    return line + b"\n"


def _with_names(records: Records, fields: list[tuple[bytes, bytes]]) -> Records:
    """Put names in the place of their numbers."""
    src, dst = (pa.array(column, pa.large_binary()) for column in (zip(*fields, strict=True) if fields else ((), ())))
    return Records(src.take(pa.array(records.src)), dst.take(pa.array(records.dst)), records.op, records.time)


def _json_line(value: bytes | None, names: tuple[str, ...], fields: list[tuple[bytes, bytes]] | None) -> bytes | str:
    """Return the line that says the same as a JSON object, or what is wrong with it.

    Names are added to ``fields``, where that is given, and the line has their place there.
    """
    if value is None:
        return "the message has no value"
    if len(value) > MAX_MESSAGE_BYTES:
        return "the message is too long"
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return "the message is not JSON"
    if not isinstance(found, dict):
        return "the message is no JSON object"
    pair: dict[str, bytes] = {}
    columns = []
    for name in names:
        if name not in found:
            return f"the object has no field {name}"
        if fields is not None and name in ("src", "dst"):
            given = _name(found[name])
            if isinstance(given, str):
                return f"{name} {given}"
            pair[name] = given
            columns.append(str(len(fields)))
            continue
        text = _column(name, found[name])
        if text is None:
            return f"{name} is not {_WANTED[name]}"
        columns.append(text)
    if fields is not None:
        fields.append((pair["src"], pair["dst"]))
    return "\t".join(columns).encode() + b"\n"


def _name(value: Any) -> bytes | str:
    """Return the bytes of a name of a JSON object, or what is wrong with it."""
    if not isinstance(value, str):
        return "is not a string"
    try:
        data = value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return "is not UTF-8"
    if not data:
        return "is empty"
    return data if len(data) <= MAX_NAME_BYTES else f"is longer than {MAX_NAME_BYTES} bytes"


_WANTED: Final = {"src": "an integer", "dst": "an integer", "op": "+ or -", "time": "Unix seconds or RFC 3339"}


def _column(name: str, value: Any) -> str | None:
    """Return the text of a field of a JSON object; None where it cannot stand for one."""
    if isinstance(value, bool):
        return None
    if name in ("src", "dst"):
        return str(value) if isinstance(value, int) and value.bit_length() <= 128 else None
    if name == "time" and isinstance(value, int | float):
        return f"{value:.9f}" if abs(value) < 1e18 else None
    text = value if isinstance(value, str) and value.isprintable() and value.isascii() else None
    return text if name == "time" or text in ("+", "-") else None

"""Any bytes at all: no parser fails but as it promises, and every byte, message and row is accounted for.

What the values of a record are is the business of the oracles. Here the input is hostile instead: noise, fragments
of the grammars put together at random, damaged compression, damaged Parquet. ``EXOFLOW_FUZZ`` says how many examples
each property gets.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.files import FileSource
from ingest.formats import parse_columns
from ingest.messages import MessageParser
from ingest.reader import Chunk
from ingest.source import MAX_RAW_BYTES, SourceError
from ingest.text import TextSplit, header_of, pieces_of_line, text_chunks

pytestmark = pytest.mark.fuzz
fuzz = settings(
    max_examples=int(os.environ.get("EXOFLOW_FUZZ", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
COLUMN_LISTS = ("src,dst", "dst,src", "time,src,dst", "src,dst,time,op")
MARK = b"\xef\xbb\xbf"
Interval = tuple[int, int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def hostile_text() -> st.SearchStrategy[bytes]:
    """Return noise, and fragments of lines in any order."""
    fragment = st.one_of(
        st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b" ", b"\t", b",", b'"', b'""', b"#", b"-", b"+", b".", MARK]),
        st.sampled_from([b"src,dst", b"time", b"2026-11-22T00:00:00Z", b"\x00", b"\xff", b"\xc3", "é".encode()]),
        st.integers(-(2**64), 2**64).map(lambda number: b"%d" % number),
        st.sampled_from(
            [b"1 2\n", b"1\t2\n", b"1,2\n", b"1 2 3 +\n", b"9" * 40, b"x" * 300, b"1" * (MAX_RAW_BYTES + 1)]
        ),
        st.binary(max_size=5),
    )
    return st.one_of(st.binary(max_size=200), st.lists(fragment, max_size=40).map(b"".join))


def intervals(chunks: Iterator[Chunk]) -> tuple[list[Interval], dict[int, tuple[bytes, bool]]]:
    """Return where the records of some chunks lie, in order, and what was kept of the bad ones."""
    good: list[Interval] = []
    bad: list[Interval] = []
    raw = {}
    for chunk in chunks:
        good += zip(chunk.starts.tolist(), chunk.ends.tolist(), strict=True)
        bad += [(record.offset, end) for record, end in zip(chunk.bad, chunk.bad_ends, strict=True)]
        raw |= {record.offset: (record.raw, record.cut) for record in chunk.bad}
    return sorted(good + bad), raw


def is_no_record(line: bytes) -> bool:
    return line.startswith(b"#") or not line.removesuffix(b"\r").strip(b" \t")


# --- text ---------------------------------------------------------------------------------------------------


@fuzz
@given(
    data=hostile_text(),
    kind=st.sampled_from([".txt", ".tsv", ".csv"]),
    columns=st.sampled_from(COLUMN_LISTS),
    chunk_bytes=st.sampled_from([1, 7, 64, 256 * 1024]),
    max_line_bytes=st.sampled_from([16, 1024 * 1024]),
)
def test_every_byte_of_a_text_is_in_one_record_or_in_none_that_counts(data, kind, columns, chunk_bytes, max_line_bytes):
    def opened(offset: int) -> pa.NativeFile:
        return pa.BufferReader(data[offset:])

    split = TextSplit("uri", "split", opened, kind, parse_columns("uri", columns), chunk_bytes, max_line_bytes)
    found, raw = intervals(text_chunks(split, 0))
    kept = min(MAX_RAW_BYTES, max_line_bytes)
    header = header_of(split)
    at = len(MARK) if data.startswith(MARK) else 0
    for start, end in [*found, (len(data), len(data))]:
        assert at <= start <= end
        rest = [line for line in data[at:start].split(b"\n") if not is_no_record(line)]
        if header is not None and at <= len(MARK) and rest:
            first = rest.pop(0).removesuffix(b"\r")
            assert header[:max_line_bytes] == first[:max_line_bytes]
            header = None
        assert rest == []
        line = data[start:end]
        assert b"\n" not in line[:-1]
        assert line.endswith(b"\n") or end == len(data)
        whole = line.removesuffix(b"\n")
        if start in raw:
            bytes_kept, cut = raw[start]
            assert whole.startswith(bytes_kept)
            assert cut == (len(whole) > kept and len(bytes_kept) == kept)
            if not cut:
                assert bytes_kept == whole.removesuffix(b"\r")
            assert b"".join(pieces_of_line(split, start)) == whole
        at = end
    for number, (start, _) in enumerate(found):
        assert intervals(text_chunks(split, start))[0] == found[number:]


@fuzz
@given(
    data=hostile_text(), suffix=st.sampled_from([".txt", ".tsv", ".txt.gz", ".tsv.zst"]), position=st.integers(0, 250)
)
def test_a_text_is_read_from_any_place_or_the_place_is_refused(folder, data, suffix, position):
    path = folder / f"any{suffix}"
    path.write_bytes(COMPRESS[suffix[4:]](data))
    source = FileSource(str(path), str(path), ("src", "dst"))
    position_read = max(position, len(MARK)) if data.startswith(MARK) else position
    marked = data.startswith(MARK) and position_read == len(MARK)
    begins_a_line = position_read == 0 or data[position_read - 1 : position_read] == b"\n"
    raised = None
    with contextlib.closing(source.open(path.name, position)) as reader:
        try:
            while not reader.read(100).end:
                pass
        except SourceError as error:
            raised = error
    assert (raised is None) == (begins_a_line or marked or position_read == len(data))
    assert raised is None or "has changed since" in str(raised)


# --- damage -------------------------------------------------------------------------------------------------


def small_parquet() -> bytes:
    out = io.BytesIO()
    table = pa.table(
        {
            "src": range(300),
            "dst": [None if i % 7 == 0 else i for i in range(300)],
            "op": ["+-"[i % 2] for i in range(300)],
        }
    )
    pq.write_table(table, out, row_group_size=100, compression="zstd")
    return out.getvalue()


TEXT = b"".join(b"%d %d %s\n" % (i, i * i, b"x" if i % 7 == 0 else b"+") for i in range(300))
WHOLE = {
    "edges.txt": TEXT,
    "edges.txt.gz": gzip.compress(TEXT),
    "edges.txt.zst": zstandard.compress(TEXT),
    "edges.parquet": small_parquet(),
    "edges.parquet.gz": gzip.compress(small_parquet()),
}


def read_on(source: FileSource, name: str, position: int | None) -> tuple[list[object], int, SourceError | None]:
    """Return the records of a file from a position on, where that ends, and by which error."""
    found: list[object] = []
    with contextlib.closing(source.open(name, position)) as reader:
        while True:
            try:
                block = reader.read(50)
            except SourceError as error:
                return found, reader.position, error
            found += zip(block.records.src.tolist(), block.records.dst.tolist(), block.records.op.tolist(), strict=True)
            found += [(record.offset, record.raw) for record in block.bad]
            if block.end:
                return found, reader.position, None


@fuzz
@given(name=st.sampled_from([name for name in WHOLE if name != "edges.txt"]), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_short_anywhere_is_an_error_and_goes_on_once_it_is_whole(folder, name, share):
    path = folder / name
    path.write_bytes(WHOLE[name])
    source = FileSource(str(path), str(path), ("src", "dst", "op"))
    whole, _, error = read_on(source, name, None)
    assert error is None
    assert len(whole) == 300
    path.write_bytes(WHOLE[name][: int(share * len(WHOLE[name]))])
    before, position, error = read_on(source, name, None)
    assert error is not None
    path.write_bytes(WHOLE[name])
    after, _, error = read_on(source, name, position)
    assert error is None
    assert sorted(map(str, before + after)) == sorted(map(str, whole))


@fuzz
@given(
    name=st.sampled_from(list(WHOLE)),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(folder, name, changes):
    data = bytearray(WHOLE[name])
    for share, noise in changes:
        at = int(share * len(data))
        data[at : at + len(noise)] = noise
    path = folder / f"damaged-{name}"
    path.write_bytes(data)
    source = FileSource(str(path), str(path), ("src", "dst", "op"))
    _, position, error = read_on(source, path.name, None)
    assert position >= 0
    if error is not None:
        assert path.name in str(error)


# --- messages -----------------------------------------------------------------------------------------------


def hostile_json() -> st.SearchStrategy[bytes]:
    """Return JSON of any shape, much of it nearly an edge, and JSON with bytes that do not belong there."""
    scalars = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["+", "-", 1e400, 10**30]),
    )
    value = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
    edge = st.dictionaries(st.sampled_from(["src", "dst", "op", "time", "more"]), value)
    text = st.one_of(edge, value).map(lambda each: json.dumps(each).encode())
    nearly = st.builds(
        lambda each, at, noise: each[:at] + noise + each[at:], text, st.integers(0, 60), st.binary(max_size=4)
    )
    return st.one_of(
        text,
        nearly,
        st.sampled_from([b'{"src": ' + b"1" * 5000 + b', "dst": 2}', b"[" * 100_000, b'{"src": "\\ud800"}']),
    )


@fuzz
@given(
    values=st.lists(st.one_of(st.none(), hostile_json(), hostile_text()), max_size=12),
    kind=st.sampled_from(["txt", "tsv", "csv", "json", "json"]),
    columns=st.sampled_from(COLUMN_LISTS),
)
def test_every_message_is_one_record_good_or_bad_or_a_comment(values, kind, columns):
    parser = MessageParser("uri", "t-0", kind, parse_columns("uri", columns))
    offsets = np.arange(10, 10 + 3 * len(values), 3)
    chunk = parser.chunk(values, offsets, 10 + 3 * len(values))
    found, raw = intervals(iter([chunk]))
    assert len(set(found)) == len(found) == len(chunk.records) + len(chunk.bad)
    places = {start for start, _ in found}
    assert all(end == start + 1 for start, end in found)
    for offset, value in zip(offsets.tolist(), values, strict=True):
        whole = (value or b"").removesuffix(b"\n").removesuffix(b"\r")
        if offset in raw:
            assert raw[offset] == (whole[:MAX_RAW_BYTES], len(whole) > MAX_RAW_BYTES)
        elif offset not in places:
            assert kind != "json"
            assert is_no_record(whole)
    assert chunk.end(0) == (10 + 3 * len(values))


# --- rows ---------------------------------------------------------------------------------------------------

ID_TYPES = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
ANY_TYPES = [
    *ID_TYPES,
    pa.string(),
    pa.binary(),
    pa.float64(),
    pa.bool_(),
    pa.null(),
    pa.list_(pa.int64()),
    pa.date32(),
]
TIME_TYPES = [pa.float32(), pa.float64(), pa.int64(), pa.decimal128(30, 9), *map(pa.timestamp, ("ms", "us", "ns"))]
OP_TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


@st.composite
def columns_of(draw: st.DrawFn, kinds: list[pa.DataType], rows: int) -> pa.Array:
    """Return a column of any of these types, with any values and nulls."""
    kind = draw(st.sampled_from(kinds))
    mask = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), bool)
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # Arrow itself refuses a file with dictionaries that are not UTF-8.
        noise = [] if pa.types.is_dictionary(kind) else [b"\xff", b"\xc3"]
        words = draw(st.lists(st.sampled_from([b"+", b"-", b"", b"++", *noise]), min_size=rows, max_size=rows))
        text = pa.array(words, pa.large_binary() if pa.types.is_large_string(kind) else pa.binary(), mask=mask)
        return text.cast(kind.value_type).cast(kind) if pa.types.is_dictionary(kind) else text.view(kind)
    if pa.types.is_null(kind):
        return pa.nulls(rows)
    width = 1 if pa.types.is_boolean(kind) else getattr(kind, "bit_width", 64) if pa.types.is_primitive(kind) else 64
    noise = draw(st.binary(min_size=rows * 16, max_size=rows * 16))
    if pa.types.is_decimal(kind):
        numbers = np.frombuffer(noise, np.int64)[:rows].tolist()
        return pa.array([None if out else number for number, out in zip(numbers, mask, strict=True)], pa.int64()).cast(
            kind
        )
    if pa.types.is_list(kind) or pa.types.is_binary(kind):
        return pa.array([None if out else ([1] if pa.types.is_list(kind) else b"+") for out in mask], kind)
    valid = pa.py_buffer(np.packbits(~mask, bitorder="little").tobytes() or b"\0")
    return pa.Array.from_buffers(kind, rows, [valid, pa.py_buffer(noise[: max(1, rows * width // 8 + 1)])])


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 40))
    ids = draw(st.sampled_from([ID_TYPES, ID_TYPES, ID_TYPES, ANY_TYPES]))
    columns = {name: draw(columns_of(ids, rows)) for name in ("src", "dst")}
    columns["time"] = draw(columns_of(TIME_TYPES, rows))
    columns["op"] = draw(columns_of(OP_TYPES, rows))
    return pa.table(columns)


@fuzz
@given(
    table=tables(), columns=st.sampled_from(COLUMN_LISTS), group_rows=st.integers(1, 50), position=st.integers(0, 50)
)
def test_every_row_is_one_record_good_or_bad(folder, table, columns, group_rows, position):
    path = folder / "rows.parquet"
    pq.write_table(table, path, row_group_size=group_rows, version="2.6")
    source = FileSource(str(path), str(path), parse_columns("uri", columns))

    def rows_from(start: int) -> list[int]:
        found: list[Interval] = []
        with contextlib.closing(source._chunks(path.name, start)) as chunks:
            found, _ = intervals(chunks)
        assert all(end == begin + 1 for begin, end in found)
        return [begin for begin, _ in found]

    fits = all(pa.types.is_integer(table.schema.field(name).type) for name in ("src", "dst"))
    if not fits:
        with pytest.raises(
            SourceError, match=r"it must be an integer(; names are read with --ids string)?\. Write the file"
        ):
            rows_from(0)
    elif position > len(table):
        with pytest.raises(SourceError, match=f"it ends before row {position}"):
            rows_from(position)
    else:
        assert rows_from(0) == list(range(len(table)))
        assert rows_from(position) == list(range(position, len(table)))

"""Names as ids, from every kind of source: their exact bytes, and what is no name."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream.replay import replay
from ingest import MAX_NAME_BYTES, BadRecord, EpochReader, Records, SourceError, open_source
from ingest.files import FileSource
from ingest.formats import NamedColumns, parse_columns
from ingest.messages import MessageParser
from ingest.parquet import BATCH_ROWS
from ingest.parse import layout_of, parse_lines

MIB = 1024 * 1024
TXT, TSV, CSV = (layout_of(delimiter, NamedColumns(("src", "dst"))) for delimiter in (b"", b"\t", b","))
SIGNED = layout_of(b",", NamedColumns(("op", "src", "time", "dst")))
LONGEST = "é" * (MAX_NAME_BYTES // 2)


def pairs(records: Records) -> list[tuple[bytes, bytes]]:
    return list(zip(records.src.to_pylist(), records.dst.to_pylist(), strict=True)) if len(records) else []


def rows(records: Records) -> list[tuple[Any, ...]]:
    times = [None] * len(records) if records.time is None else records.time.tolist()
    return [(*pair, op, time) for pair, op, time in zip(pairs(records), records.op.tolist(), times, strict=True)]


# --- text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "line", "pair"),
    [
        (TXT, b"alice bob", (b"alice", b"bob")),
        (TXT, b"  alice \t bob and more", (b"alice", b"bob")),
        (TXT, b"1 01", (b"1", b"01")),
        (TXT, b'"a b"', (b'"a', b'b"')),
        (TXT, b"a\0 \0", (b"a\0", b"\0")),
        (TSV, b"Alice B.\tBob, C", (b"Alice B.", b"Bob, C")),
        (TSV, b"\xc3\xb1\t\xe5\x90\x8d\xe5\x89\x8d\r", ("ñ".encode(), "名前".encode())),
        (CSV, b" alice , bob ", (b"alice", b"bob")),
        (CSV, b'"a, ""b"" "," c\t"', (b'a, "b" ', b" c\t")),
        (CSV, b'"""",a"b', (b'"', b'a"b')),
        (CSV, f"{LONGEST},x".encode(), (LONGEST.encode(), b"x")),
    ],
)
def test_a_name_is_its_exact_bytes(layout, line, pair):
    parsed = parse_lines(line + b"\n", layout, MIB)
    assert pairs(parsed.records) == [pair]
    assert not parsed.bad


@pytest.mark.parametrize(
    ("layout", "line", "reason"),
    [
        (TXT, b"alice", "the line has too few columns"),
        (TXT, b"alice \xff", "the line is not UTF-8"),
        (TSV, b"\tbob", "src is empty"),
        (TSV, b"alice\t", "dst is empty"),
        (TSV, b"alice\t \t", "dst is empty"),
        (CSV, b'"",bob', "src is empty"),
        (CSV, b'alice,"bob', "dst begins with a quote that does not end it"),
        (CSV, b'"a"b,bob', "src begins with a quote that does not end it"),
        (CSV, b"x," + b"a" * (MAX_NAME_BYTES + 1), f"dst is longer than {MAX_NAME_BYTES} bytes"),
        (CSV, f"{LONGEST}x,y".encode(), f"src is longer than {MAX_NAME_BYTES} bytes"),
    ],
)
def test_what_is_no_name_is_a_bad_record(layout, line, reason):
    parsed = parse_lines(b"before it\n".replace(b" ", layout.delimiter or b" ") + line + b"\n", layout, MIB)
    assert pairs(parsed.records) == [(b"before", b"it")]
    assert [fault for _, _, fault in parsed.bad] == [reason]


def test_a_bad_record_leaves_nothing_among_the_names():
    block = b"+,a,1,b\n?,lost,1,lost\n-,c,1.5,d\n+,lost,x,lost\n+,e,2026-11-22T00:00:00Z,f\n"
    parsed = parse_lines(block, SIGNED, MIB)
    assert rows(parsed.records) == [(b"a", b"b", 1, 1.0), (b"c", b"d", -1, 1.5), (b"e", b"f", 1, 1795305600.0)]
    assert [reason for _, _, reason in parsed.bad] == [
        "op is neither + nor -",
        "time is neither Unix seconds nor RFC 3339",
    ]


csv_names = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(csv_names, csv_names), max_size=20))
def test_any_names_that_are_written_as_csv_are_read(written):
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(written)
    parsed = parse_lines(out.getvalue().encode(), CSV, MIB)
    assert pairs(parsed.records) == [(src.encode(), dst.encode()) for src, dst in written]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("src,dst\nalice,bob\n", ["alice>bob"]),
        ('# note\n"dst", src ,x\nalice,bob,1\n', ["bob>alice"]),
        ("alice,bob\nsrc,dst\n", ["alice>bob", "src>dst"]),
        ("from,to\nalice,bob\n", ["from>to", "alice>bob"]),
        ("src\nalice,bob\n", ["alice>bob"]),
    ],
)
def test_the_header_of_a_csv_file_names_all_columns(tmp_path, text, found):
    path = tmp_path / "edges.csv"
    path.write_text(text)
    block = open_source(str(path), ids="string").open(path.name, None).read(10)
    assert [f"{src.decode()}>{dst.decode()}" for src, dst in pairs(block.records)] == found
    assert len(block.bad) == ("src\n" in text)


@pytest.mark.parametrize("chunk_bytes", [3, 64, MIB])
def test_every_position_is_one_to_go_on_from(tmp_path, chunk_bytes):
    path = tmp_path / "edges.txt"
    lines = [f"{'a' * (number % 5 + 1)}{number} b{number % 3}" for number in range(40)]
    path.write_text("\n".join([*lines[:20], "alone", *lines[20:]]))
    source = FileSource("uri", str(path), NamedColumns(("src", "dst")), chunk_bytes)
    position, found, bad = None, [], 0
    while True:
        reader = source.open(path.name, position)
        block = reader.read(7)
        position = reader.position
        reader.close()
        found += pairs(block.records)
        bad += len(block.bad)
        if block.end:
            break
    assert found == [tuple(part.encode() for part in line.split()) for line in lines]
    assert bad == 1


def test_epochs_of_names_are_read_again_as_they_were(tmp_path):
    for split in range(3):
        (tmp_path / f"{split}.txt").write_text("".join(f"v{i % 7} w{split}\n" for i in range(25)) + "bad\n")
    sources = [open_source(str(tmp_path), ids="string")]
    with EpochReader(sources, 20, block_records=4) as reader:
        position, last, total = reader.start(), False, 0
        while not last:
            batch = reader.read(position)
            assert rows(reader.reread(batch.ranges)) == list(
                zip(
                    batch.src.to_pylist(),
                    batch.dst.to_pylist(),
                    batch.op.tolist(),
                    [None] * len(batch.src),
                    strict=True,
                )
            )
            total += len(batch.src)
            position, last = batch.end, batch.last
    assert total == 75


def test_bad_lines_of_csv_are_read_again_with_the_column_list_as_their_header(tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("alice,bob\n,carol\n")
    block = open_source(str(path), ids="string").open(path.name, None).read(10)
    out = io.BytesIO()
    assert replay(block.bad, ".csv", "src, dst", out, ids="string").written == 1
    assert out.getvalue() == b"src,dst\n,carol\n"


# --- Parquet ------------------------------------------------------------------------------------------------

STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_parquet_columns_of_every_string_type(tmp_path, kind):
    path = tmp_path / "edges.parquet"
    src, dst = (
        ["alice", "ñ", None, "", "a" * (MAX_NAME_BYTES + 1), "a\0", "x"],
        ["b", "名前", "c", "d", "e", "\n", None],
    )
    pq.write_table(pa.table({"dst": pa.array(dst, kind), "src": pa.array(src, kind)}), path)
    block = open_source(str(path), ids="string").open(path.name, None).read(10)
    assert pairs(block.records) == [(b"alice", b"b"), ("ñ".encode(), "名前".encode()), (b"a\0", b"\n")]
    assert [(each.offset, each.reason) for each in block.bad] == [
        (2, "src is null"),
        (3, "src is empty"),
        (4, f"src is longer than {MAX_NAME_BYTES} bytes"),
        (6, "dst is null"),
    ]
    assert json.loads(block.bad[1].raw) == {"src": "", "dst": "d"}


def test_parquet_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "edges.parquet"
    column = pa.array([b"a", b"\xff", b"b"]).view(pa.string())
    pq.write_table(pa.table({"src": column, "dst": pa.array(["x", "y", "z"])}), path)
    block = open_source(str(path), ids="string").open(path.name, None).read(10)
    assert pairs(block.records) == [(b"a", b"x"), (b"b", b"z")]
    assert [(each.offset, each.reason) for each in block.bad] == [(1, "src is not UTF-8")]


def test_parquet_is_entered_at_any_row(tmp_path):
    path = tmp_path / "edges.parquet"
    count = BATCH_ROWS + 10
    names = [f"n{i}" for i in range(count)]
    pq.write_table(pa.table({"src": names, "dst": names[::-1]}), path, row_group_size=BATCH_ROWS // 2 + 3)
    for start in (0, 5, BATCH_ROWS // 2 + 3, count - 1):
        records = open_source(str(path), ids="string").open(path.name, start).read(count).records
        assert records.src.to_pylist() == [name.encode() for name in names[start:]]


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [("string", "it must be a string"), ("int64", "it must be an integer; names are read with --ids string")],
)
def test_parquet_columns_of_the_other_kind_are_refused(tmp_path, ids, wanted):
    path = tmp_path / "edges.parquet"
    values = pa.array([1]) if ids == "string" else pa.array(["a"])
    pq.write_table(pa.table({"src": values, "dst": values}), path)
    with pytest.raises(SourceError, match=wanted):
        open_source(str(path), ids=ids).open(path.name, None).read(1)


# --- messages -----------------------------------------------------------------------------------------------


def chunk_of(values: list[bytes | None], kind: str, columns: str = "src,dst"):
    parser = MessageParser("uri", "t-0", kind, parse_columns("uri", columns, "string"))
    return parser.chunk(values, np.arange(5, 5 + len(values)), 5 + len(values))


def test_messages_of_json_may_hold_any_names():
    values = [
        json.dumps({"src": "a\tb\n", "dst": " \0 ", "time": "1.5", "more": 1}).encode(),
        b"[]",
        json.dumps({"dst": "名前", "src": '"', "time": 7}, ensure_ascii=False).encode(),
        json.dumps({"src": "a", "dst": "b", "time": "soon"}).encode(),
        b'{"src": "late", "dst": "\xc3\xb1", "time": 8}',
    ]
    chunk = chunk_of(values, "json", "src,dst,time")
    assert rows(chunk.records) == [
        (b"a\tb\n", b" \0 ", 1, 1.5),
        (b'"', "名前".encode(), 1, 7.0),
        (b"late", "ñ".encode(), 1, 8.0),
    ]
    assert chunk.starts.tolist() == [5, 7, 9]
    assert [each.offset for each in chunk.bad] == [6, 8]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"src": 5, "dst": "b"}, "src is not a string"),
        ({"src": "a", "dst": None}, "dst is not a string"),
        ({"src": "a", "dst": ""}, "dst is empty"),
        ({"src": "\ud800", "dst": "b"}, "src is not UTF-8"),
        ({"src": LONGEST + "x", "dst": "b"}, f"src is longer than {MAX_NAME_BYTES} bytes"),
        ({"src": "a"}, "the object has no field dst"),
    ],
)
def test_what_is_no_name_in_json(value, reason):
    chunk = chunk_of([json.dumps(value).encode()], "json")
    assert [(each.offset, each.reason) for each in chunk.bad] == [(5, reason)]
    assert not len(chunk.records)


@pytest.mark.parametrize("kind", ["txt", "tsv", "csv"])
def test_messages_of_text(kind):
    between = {"txt": b" ", "tsv": b"\t", "csv": b","}[kind]
    chunk = chunk_of([b"alice" + between + b"bob", None, b"x", b"c" + between + b"d\n"], kind)
    assert pairs(chunk.records) == [(b"alice", b"bob"), (b"c", b"d")]
    assert [each.offset for each in chunk.bad] == [6, 7]


# --- what does not go together ------------------------------------------------------------------------------


def test_ids_that_are_neither():
    with pytest.raises(SourceError, match="int64, string"):
        open_source("edges.txt", ids="uuid")


def test_a_generator_has_no_names():
    with pytest.raises(SourceError, match="numbers"):
        open_source("rmat://?scale=4&edges=10", ids="string")


def test_bad_names_are_kept_as_they_came(tmp_path: Path):
    path = tmp_path / "edges.tsv"
    path.write_bytes(b"a\xff\tb\n")
    (bad,) = open_source(str(path), ids="string").open(path.name, None).read(1).bad
    assert bad == BadRecord(str(path), path.name, 0, b"a\xff\tb", "the line is not UTF-8")


def test_files_that_arrive_and_files_that_grow_hold_names(tmp_path):
    (tmp_path / "a.tsv").write_text("alice\tbob\n\tbob\n")
    for uri in (f"watch://{tmp_path}?until=end", f"follow://{tmp_path}/a.tsv?until=end"):
        with EpochReader([open_source(uri, ids="string")], 10) as reader:
            batch = reader.read(reader.start())
            assert pairs(reader.reread(batch.ranges)) == [(b"alice", b"bob")]
        assert [each.reason for each in batch.bad] == ["src is empty"]

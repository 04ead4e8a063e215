"""Every way an input is known to be broken: what was wrong, where, and that what comes after it is not touched.

Broken records are quarantined and passed over; a broken file is an error that names the place, says what to do, and
leaves a position from which reading goes on once the file was put right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ingest import EpochReader, Position, SourceError, open_source
from ingest.messages import MAX_MESSAGE_BYTES, MessageParser
from ingest.source import MAX_RAW_BYTES
from ingest.text import MAX_LINE_BYTES

MAX_ID, MIN_ID = 2**63 - 1, -(2**63)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}

# --- broken records -----------------------------------------------------------------------------------------

BROKEN = {
    "invalid UTF-8": (b"1 2 caf\xe9", "the line is not UTF-8"),
    "UTF-8 cut short": (b"1 2 \xe2\x82", "the line is not UTF-8"),
    "UTF-16": ("1 2".encode("utf-16"), "the line is not UTF-8"),
    "zero bytes": (b"\x00\x00", "the line has too few columns"),
    "a longer line than may be": (b"1 2 " + b"x" * MAX_LINE_BYTES, "the line is too long"),
    "a long line": (b"1 x " + b"y" * MAX_RAW_BYTES, "dst is not an integer"),
    "too few columns": (b"1", "the line has too few columns"),
    "other columns": (b"alice bob", "src is not an integer"),
    "another delimiter": (b"1,2", "the line has too few columns"),
    "no whole number": (b"1.5 2", "src is not an integer"),
    "one more than the greatest id": (b"%d 2" % (MAX_ID + 1), "src is out of the int64 range"),
    "one less than the least id": (b"1 %d" % (MIN_ID - 1), "dst is out of the int64 range"),
    "an unsigned id": (b"%d 2" % (2**64 - 1), "src is out of the int64 range"),
    "an id that wraps around": (b"1 %d" % (2**64 + 5), "dst is out of the int64 range"),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_told_and_its_neighbours_are_read(tmp_path, broken, suffix):
    line, reason = BROKEN[broken]
    path = tmp_path / f"edges.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"1 2\n" + line + b"\n3 4\n"))
    source = open_source(str(path))
    with contextlib.closing(source.open(path.name, None)) as reader:
        block = reader.read(10)
    assert block.records.src.tolist() == [1, 3]
    (bad,) = block.bad
    assert (bad.source, bad.split, bad.offset, bad.reason) == (str(path), path.name, 4, reason)
    assert (bad.raw, bad.cut) == (line[:MAX_RAW_BYTES], len(line) > MAX_RAW_BYTES)
    with contextlib.closing(source.open(path.name, 4 + len(line) + 1)) as reader:
        assert reader.read(10).records.src.tolist() == [3]


def test_negative_ids_are_ids_like_any_other(tmp_path):
    ids = [-1, MIN_ID, MAX_ID, 0]
    (tmp_path / "edges.txt").write_bytes(b"".join(b"%d -7\n" % each for each in ids))
    pq.write_table(pa.table({"src": ids, "dst": [-7] * 4}), tmp_path / "edges.parquet")
    for name in ("edges.txt", "edges.parquet"):
        block = open_source(str(tmp_path / name)).open(name, None).read(10)
        assert (block.records.src.tolist(), block.records.dst.tolist(), block.bad) == (ids, [-7] * 4, ())


MESSAGES = [
    ("txt", None, "the message has no value"),
    ("txt", b"", None),  # a blank line is no record
    ("txt", b"1", "the line has too few columns"),
    ("txt", b"1 2\n3 4", "the message has more than one line"),
    ("txt", b"1 caf\xe9", "the line is not UTF-8"),
    ("txt", b"1 9223372036854775808", "dst is out of the int64 range"),
    ("txt", b"1 2" + b" " * MAX_MESSAGE_BYTES, "the line is too long"),
    ("csv", b'1,"2', "dst is not an integer"),
    ("json", None, "the message has no value"),
    ("json", b"", "the message is not JSON"),
    ("json", b'{"src": 1, "dst": "caf\xe9"}', "the message is not JSON"),
    ("json", b'{"src": 1, "dst": 2', "the message is not JSON"),
    ("json", b"[1, 2]", "the message is no JSON object"),
    ("json", b'{"src": 1}', "the object has no field dst"),
    ("json", b'{"src": 1, "dst": null}', "dst is not an integer"),
    ("json", b'{"src": 1, "dst": -9223372036854775809}', "dst is out of the int64 range"),
]


@pytest.mark.parametrize(("kind", "value", "reason"), MESSAGES)
def test_a_broken_message_is_told_and_its_neighbours_are_read(kind, value, reason):
    good = {"txt": b"-1 2", "csv": b"-1,2", "json": b'{"src": -1, "dst": 2}'}[kind]
    parser = MessageParser("kafka://h:9/t", "t-3", kind, ("src", "dst"))
    chunk = parser.chunk([good, value, good], np.array([70, 75, 76]), 77)
    assert chunk.records.src.tolist() == [-1, -1]
    assert chunk.starts.tolist() == [70, 76]
    assert chunk.end(0) == 77
    found = [(bad.source, bad.split, bad.offset, bad.reason, bad.raw) for bad in chunk.bad]
    assert found == ([] if reason is None else [("kafka://h:9/t", "t-3", 75, reason, (value or b"")[:MAX_RAW_BYTES])])
    assert all(bad.cut == (len(value or b"") > MAX_RAW_BYTES) for bad in chunk.bad)


# --- broken files -------------------------------------------------------------------------------------------

ROWS = 3_000
LINES = b"".join(b"%d %d\n" % (i, i * i) for i in range(ROWS))


def parquet_of(**columns: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=1_000)
    return out.getvalue()


PARQUET = parquet_of(src=range(ROWS), dst=range(ROWS))

BROKEN_FILES = {
    "half a gzip file": ("b.txt.gz", lambda: gzip.compress(LINES)[: len(gzip.compress(LINES)) // 2], "cannot be read"),
    "gzip without its end": ("b.txt.gz", lambda: gzip.compress(LINES)[:-8], "cannot be read"),
    "half a zstd file": ("b.txt.zst", lambda: zstandard.compress(LINES)[:-900], "cannot be read"),
    "an empty gzip file": ("b.txt.gz", lambda: b"", "it is empty, which no gzip file is"),
    "an empty zstd file": ("b.csv.zst", lambda: b"", "it is empty, which no zstd file is"),
    "text that is called gzip": ("b.txt.gz", lambda: LINES, "cannot be read from position 0 on"),
    "half a Parquet file": ("b.parquet", lambda: PARQUET[: len(PARQUET) // 2], "cannot be read from position 0 on"),
    "an empty Parquet file": ("b.parquet", lambda: b"", "cannot be read from position 0 on"),
    "half a Parquet file in gzip": ("b.parquet.gz", lambda: gzip.compress(PARQUET)[:-900], "cannot be read"),
    "a column less": ("b.parquet", lambda: parquet_of(src=range(ROWS)), "b.parquet has no column 'dst'; it has src"),
    "text for ids": ("b.parquet", lambda: parquet_of(src=["1"], dst=[2]), "column 'src' holds string"),
    "fractions for ids": ("b.parquet", lambda: parquet_of(src=[1.0], dst=[2]), "column 'src' holds double"),
}


def whole_of(name: str) -> bytes:
    data = PARQUET if ".parquet" in name else LINES.replace(b" ", b",") if ".csv" in name else LINES
    return COMPRESS[Path(name).suffix if Path(name).suffix in COMPRESS else ""](data)


@dataclasses.dataclass
class Reading:
    """What has been read of a folder, and where that ends."""

    folder: Path
    position: Position | None = None
    src: list[int] = dataclasses.field(default_factory=list)

    def go_on(self) -> None:
        with EpochReader([open_source(str(self.folder))], epoch_edges=700) as reader:
            last = False
            while not last:
                batch = reader.read(self.position or reader.start())
                self.position, last = batch.end, batch.last
                self.src += batch.src.tolist()


@pytest.mark.parametrize("broken", BROKEN_FILES)
def test_a_broken_file_stops_reading_which_goes_on_once_it_was_put_right(tmp_path, broken):
    """Between two whole ones, so that the position holds more than the broken one's."""
    name, data, says = BROKEN_FILES[broken]
    for other in ("a.txt", "c.txt"):
        (tmp_path / other).write_bytes(LINES)
    (tmp_path / name).write_bytes(data())
    reading = Reading(tmp_path)
    with pytest.raises(SourceError, match=r"put the file right and resume|Write the file with such a column") as raised:
        reading.go_on()
    told = str(raised.value)
    assert told.startswith(str(tmp_path))
    assert name in told
    assert says in told
    (tmp_path / name).write_bytes(whole_of(name))
    reading.go_on()
    assert sorted(reading.src) == sorted([*range(ROWS)] * 3)


@pytest.mark.parametrize(
    ("columns", "raw"),
    [
        (  # in the year 4,568,632
            {"time": pa.array([72057594037927936 * 2], pa.timestamp("ms"))},
            b'{"src": null, "dst": 2, "time": 144115188075855.88}',
        ),
        ({"time": pa.array([1_500_000_001], pa.timestamp("ns"))}, b'{"src": null, "dst": 2, "time": 1.500000001}'),
        ({"time": pa.array([None], pa.timestamp("us", "UTC"))}, b'{"src": null, "dst": 2, "time": null}'),
        ({"op": pa.array([b"caf\xe9"]).view(pa.string())}, b'{"src": null, "dst": 2, "op": "caf\\ufffd"}'),
    ],
)
def test_any_row_of_parquet_can_be_told(tmp_path, columns, raw):
    path = tmp_path / "edges.parquet"
    pq.write_table(pa.table({"src": pa.nulls(1, pa.int64()), "dst": [2], **columns}), path)
    block = open_source(str(path), ",".join(["src", "dst", *columns])).open(path.name, None).read(10)
    assert [(bad.offset, bad.reason, bad.raw) for bad in block.bad] == [(0, "src is null", raw)]


def test_ids_that_do_not_fit_are_rows_of_parquet_that_are_told(tmp_path):
    path = tmp_path / "edges.parquet"
    pq.write_table(pa.table({"src": pa.array([1, 2**63, 3], pa.uint64()), "dst": [1, 2, None]}), path)
    block = open_source(str(path)).open(path.name, None).read(10)
    assert block.records.src.tolist() == [1]
    assert [(bad.offset, bad.reason, bad.raw) for bad in block.bad] == [
        (1, "src is out of the int64 range", b'{"src": 9223372036854775808, "dst": 2}'),
        (2, "dst is null", b'{"src": 3, "dst": null}'),
    ]

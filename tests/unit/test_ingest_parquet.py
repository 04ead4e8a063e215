"""Parquet files: columns by name, every type an id or a time may have, bad rows, and every resume point."""

import datetime
import decimal
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import SourceError, open_source


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def read_on(reader, src):
    """Add the followers of what is left, as far as it can be read."""
    while not (block := reader.read(777)).end:
        src += block.records.src.tolist()


def read_all(path, columns="src,dst", block_records=1000, reopen=False):
    source = open_source(str(path), columns)
    reader = source.open(path.name, None)
    rows, bad = [], []
    while True:
        block = reader.read(block_records)
        records = block.records
        times = [None] * len(records) if records.time is None else records.time.tolist()
        rows += zip(records.src.tolist(), records.dst.tolist(), records.op.tolist(), times, strict=True)
        bad += [(record.offset, record.reason, record.raw) for record in block.bad]
        if block.end:
            return rows, bad
        if reopen:
            reader.close()
            reader = source.open(path.name, reader.position)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64()], ids=str)
def test_ids_of_every_integer_type(tmp_path, kind):
    path = write(tmp_path / "edges.parquet", {"dst": pa.array([1, 2], kind), "src": pa.array([3, 4], kind)})
    assert read_all(path) == ([(3, 1, 1, None), (4, 2, 1, None)], [])


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        (pa.array([1082040961, -5], pa.int64()), [1082040961.0, -5.0]),
        (pa.array([1.5, -0.25], pa.float64()), [1.5, -0.25]),
        (pa.array([1.5, -0.25], pa.float32()), [1.5, -0.25]),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal("-0.25")]), [1.5, -0.25]),
        (pa.array([1500, -250], pa.timestamp("ms")), [1.5, -0.25]),
        (pa.array([datetime.datetime(2026, 11, 22)] * 2, pa.timestamp("us", "UTC")), [1795305600.0] * 2),
        (pa.array([1, 2], pa.timestamp("s", "Europe/Paris")), [1.0, 2.0]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_times_of_every_type(tmp_path, values, seconds):
    path = write(tmp_path / "edges.parquet", {"src": [1, 2], "dst": [3, 4], "time": values})
    assert [row[3] for row in read_all(path, "src,dst,time")[0]] == seconds


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_ops_of_every_type(tmp_path, kind):
    ops = pa.array(["+", "-", None, "x"]).cast(kind)
    rows, bad = read_all(write(tmp_path / "e.parquet", {"src": [1] * 4, "dst": [2] * 4, "op": ops}), "src,dst,op")
    assert [row[2] for row in rows] == [1, -1]
    assert [reason for _, reason, _ in bad] == ["op is null", "op is neither + nor -"]


def test_bad_rows_are_told_apart_by_row_number(tmp_path):
    path = write(
        tmp_path / "edges.parquet",
        {
            "src": pa.array([1, None, 2**63, 4, 5, None], pa.uint64()),
            "dst": pa.array([1, 2, 3, None, 5, None], pa.int64()),
            "time": pa.array([1.0, 2.0, 3.0, 4.0, float("nan"), 6.0]),
        },
    )
    rows, bad = read_all(path, "src,dst,time")
    assert rows == [(1, 1, 1, 1.0)]
    assert [(offset, reason) for offset, reason, _ in bad] == [
        (1, "src is null"),
        (2, "src is out of the int64 range"),
        (3, "dst is null"),
        (4, "time is not Unix seconds"),
        (5, "src is null"),
    ]
    assert bad[0][2] == b'{"src": null, "dst": 2, "time": 2.0}'


@pytest.mark.parametrize(
    ("columns", "wanted", "says"),
    [
        ({"src": [1], "followed": [2]}, "src,dst", "has no column 'dst'; it has src, followed"),
        ({"src": ["1"], "dst": [2]}, "src,dst", "column 'src' holds string; it must be an integer"),
        ({"src": [1], "dst": [2.0]}, "src,dst", "column 'dst' holds double; it must be an integer"),
        ({"src": [1], "dst": [2], "op": [1]}, "src,dst,op", "column 'op' holds int64; it must be a string"),
        ({"src": [1], "dst": [2], "time": ["x"]}, "src,dst,time", "it must be a number or a timestamp"),
    ],
)
def test_a_file_without_the_wanted_columns(tmp_path, columns, wanted, says):
    with pytest.raises(SourceError, match=says):
        read_all(write(tmp_path / "edges.parquet", columns), wanted)


def test_every_resume_point_in_and_between_row_groups(tmp_path):
    src = pa.array([None if i % 11 == 0 else i for i in range(100)], pa.int64())
    path = write(tmp_path / "edges.parquet", {"src": src, "dst": range(100)}, row_group_size=17)
    whole = read_all(path)
    assert [row[0] for row in whole[0]] == [i for i in range(100) if i % 11]
    for block_records in (1, 2, 5, 16, 17, 18, 90):
        assert read_all(path, block_records=block_records, reopen=True) == whole


def test_a_compressed_file(tmp_path):
    plain = write(tmp_path / "edges.parquet", {"src": [1, 2, 3], "dst": [4, 5, 6]})
    path = tmp_path / "edges.parquet.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_all(path, block_records=2, reopen=True) == read_all(plain)


def test_a_damaged_file_loses_nothing_that_is_whole(tmp_path):
    n = 100_000
    path = write(
        tmp_path / "edges.parquet",
        {"src": range(n), "dst": range(n)},
        row_group_size=10_000,
        compression="zstd",
        use_dictionary=False,
    )
    whole = path.read_bytes()
    start = pq.ParquetFile(path).metadata.row_group(6).column(0).data_page_offset
    path.write_bytes(whole[:start] + b"\xff" * 64 + whole[start + 64 :])
    source = open_source(str(path))
    reader = source.open(path.name, None)
    src: list[int] = []
    with pytest.raises(SourceError, match=r"edges\.parquet' cannot be read from position 60000 on"):
        read_on(reader, src)
    assert reader.position == 60_000
    path.write_bytes(whole)
    src += source.open(path.name, reader.position).read(n).records.src.tolist()
    assert src == list(range(n))

    path.write_bytes(whole[:-5])
    with pytest.raises(SourceError, match=r"edges\.parquet' cannot be read from position 0 on"):
        source.open(path.name, None).read(1)


def test_a_file_that_became_shorter(tmp_path):
    path = write(tmp_path / "edges.parquet", {"src": range(10), "dst": range(10)})
    source = open_source(str(path))
    assert source.open(path.name, 10).read(1).end
    with pytest.raises(SourceError, match="it ends before row 11"):
        source.open(path.name, 11).read(1)

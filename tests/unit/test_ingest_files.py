"""Files as a source: which files, in which order, and what happens to damaged, changed and enormous ones."""

import gzip
import pickle
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from ingest import SourceError, open_source
from ingest.source import MAX_BAD_PER_BLOCK, MAX_RAW_BYTES, IngestError
from ingest.text import MAX_LINE_BYTES

N = 200_000
LINES = b"".join(b"%d\t%d\n" % (i, i * i) for i in range(N))


def read_on(reader, src):
    """Add the followers of what is left, as far as it can be read."""
    while not (block := reader.read(700)).end:
        src += block.records.src.tolist()
    src += block.records.src.tolist()


def read_all(path, columns="src,dst", split=None):
    """Return the follower of every record of a split, and the bad records."""
    source = open_source(str(path), columns)
    reader = source.open(split or source.splits()[0], None)
    src, bad = [], []
    while True:
        block = reader.read(1000)
        src += block.records.src.tolist()
        bad += block.bad
        if block.end:
            reader.close()
            return src, bad


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- which files --------------------------------------------------------------------------------------------


def test_a_folder_is_its_files_in_name_order(tmp_path):
    for name in ("b.tsv", "a.txt", "c.csv.gz", ".hidden", "_SUCCESS", "deeper/x.txt"):
        write(tmp_path / name, gzip.compress(b"1,2\n") if name.endswith(".gz") else b"1\t2\n")
    source = open_source(str(tmp_path))
    assert source.splits() == ["a.txt", "b.tsv", "c.csv.gz"]
    assert source.bounded
    assert [read_all(tmp_path, split=split)[0] for split in source.splits()] == [[1], [1], [1]]


def test_a_glob_is_the_files_it_matches(tmp_path):
    for name in ("2025/edges.txt", "2026/edges.txt", "2026/notes.md", "other.txt"):
        write(tmp_path / name, b"1 2\n")
    assert open_source(f"{tmp_path}/20*/*.txt").splits() == ["2025/edges.txt", "2026/edges.txt"]
    assert open_source(f"file://{tmp_path}/**/*.txt").splits() == [
        "2025/edges.txt",
        "2026/edges.txt",
        "other.txt",
    ]


def test_a_name_that_looks_like_a_glob_is_a_file_where_there_is_one(tmp_path):
    write(tmp_path / "edges[1].txt", b"1 2\n")
    assert open_source(f"{tmp_path}/edges[1].txt").splits() == ["edges[1].txt"]


def test_file_uris_are_percent_decoded(tmp_path):
    write(tmp_path / "my edges.txt", b"1 2\n")
    assert open_source(f"file://{tmp_path}/my%20edges.txt").splits() == ["my edges.txt"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "no path is given"),
        ("missing.txt", "there is no file or folder '.*missing.txt'"),
        ("*.txt", "no file matches '.*[*].txt'"),
        ("empty", "the folder '.*empty' holds no files"),
        (
            "edges.json",
            "the name of '.*edges.json' says no format; known are .txt, .tsv, .csv, .parquet, each also",
        ),
        ("mixed", "the name of '.*README' says no format"),
        ("edges.json/x.txt", "there is no file or folder|Not a directory"),
    ],
)
def test_what_cannot_be_opened_says_why(tmp_path, path, says):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "edges.json", b"{}")
    write(tmp_path / "mixed" / "README", b"not data")
    write(tmp_path / "mixed" / "edges.tsv", b"1\t2\n")
    uri = path and str(tmp_path / path)
    with pytest.raises(SourceError, match=says) as raised:
        open_source(uri)
    assert raised.value.uri == uri


# --- what can go wrong in the middle ------------------------------------------------------------------------


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def flip(data: bytes) -> bytes:
    at = len(data) * 2 // 3
    return data[:at] + bytes([data[at] ^ 0xFF, data[at + 1] ^ 0xFF]) + data[at + 2 :]


@pytest.mark.parametrize(
    ("name", "compress", "damage"),
    [
        ("edges.txt.gz", gzip.compress, cut),
        ("edges.txt.gz", gzip.compress, lambda data: data[:-1]),
        ("edges.txt.zst", zstandard.compress, cut),
        ("edges.txt.zst", zstandard.ZstdCompressor(write_checksum=True).compress, flip),
    ],
)
def test_damage_loses_nothing_that_is_whole_and_a_repair_resumes(tmp_path, name, compress, damage):
    path = write(tmp_path / name, damage(compress(LINES)))
    source = open_source(str(path))
    reader = source.open(name, None)
    src: list[int] = []
    with pytest.raises(SourceError, match=rf"{name}' cannot be read from position \d+ on: .*resume") as raised:
        read_on(reader, src)
    assert 0 < len(src) < N
    assert f"position {reader.position} on" in str(raised.value)
    with pytest.raises(SourceError):  # the end of what can be read is not the end of the split
        reader.read(700)

    write(path, compress(LINES))
    reader = source.open(name, reader.position)
    src += reader.read(N).records.src.tolist()
    assert src == list(range(N))


def test_damage_that_only_a_checksum_shows_is_still_an_error(tmp_path):
    """The checksum of gzip stands at its end: records may be wrong before it, but no reader gets past it."""
    compressed = bytearray(gzip.compress(LINES))
    compressed[-6] ^= 1
    with pytest.raises(SourceError, match="incorrect data check"):
        read_all(write(tmp_path / "edges.txt.gz", bytes(compressed)))


@pytest.mark.parametrize("name", ["edges.txt.gz", "edges.csv.zst", "edges.parquet", "edges.parquet.gz"])
def test_a_file_that_is_not_what_its_name_says(tmp_path, name):
    path = write(tmp_path / name, b"1\t2\n" * 10)
    with pytest.raises(SourceError, match=rf"{name}' cannot be read from position 0 on: "):
        read_all(path)


def test_compressed_files_may_have_several_parts(tmp_path):
    half = LINES[: LINES.index(b"\n", len(LINES) // 2) + 3]  # the parts meet inside a line
    for name, compress in (("edges.txt.gz", gzip.compress), ("edges.txt.zst", zstandard.compress)):
        path = write(tmp_path / name, compress(half) + compress(LINES[len(half) :]))
        assert read_all(path)[0] == list(range(N))


def test_a_file_that_vanishes_is_an_error_and_not_an_end(tmp_path):
    path = write(tmp_path / "edges.txt", b"1 2\n")
    source = open_source(str(path))
    path.unlink()
    with pytest.raises(SourceError, match=r"edges\.txt' cannot be read from position 0 on"):
        source.open("edges.txt", None).read(1)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "edges.txt", b"1 2\n")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pa, "OSFile", refuse)
    with pytest.raises(SourceError, match="Permission denied"):
        read_all(path)


@pytest.mark.parametrize("name", ["edges.txt", "edges.txt.gz"])
def test_a_file_that_changed_behind_a_position(tmp_path, name):
    compress = gzip.compress if name.endswith(".gz") else bytes
    path = write(tmp_path / name, compress(b"10 20\n30 40\n50 60\n"))
    source = open_source(str(path))
    reader = source.open(name, None)
    reader.read(2)
    assert reader.position == 12
    for changed, says in [
        (b"10 20\n", "it ends before byte 12"),
        (b"10 20\n300 400\n", "no line begins at byte 12"),
    ]:
        write(path, compress(changed))
        with pytest.raises(SourceError, match=says):
            source.open(name, 12).read(1)
    write(path, compress(b"10 20\n30 40\n"))
    assert source.open(name, 12).read(1).end


# --- memory -------------------------------------------------------------------------------------------------


def test_an_enormous_line_is_one_bad_record_in_bounded_memory(tmp_path):
    size = 64 * 1024 * 1024
    path = write(tmp_path / "edges.txt", b"1 2\n" + b"7" * size + b"\n3 4\n")
    read_all(write(tmp_path / "small.txt", b"{}\n"))  # what compiling takes does not count
    tracemalloc.start()
    try:
        src, bad = read_all(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert src == [1, 3]
    assert [(record.offset, record.raw, record.reason) for record in bad] == [
        (4, b"7" * MAX_RAW_BYTES, "the line is too long")
    ]
    assert peak < 10 * MAX_LINE_BYTES


def test_a_file_that_is_no_edge_list_is_read_in_small_blocks(tmp_path):
    path = write(tmp_path / "edges.txt", b"{}\n" * 100_000 + b"1 2\n")
    reader = open_source(str(path)).open("edges.txt", None)
    counts = []
    while True:
        block = reader.read(10)
        counts.append((len(block.records), len(block.bad)))
        if block.end:
            break
    assert counts == [(0, MAX_BAD_PER_BLOCK)] * 99 + [(1, MAX_BAD_PER_BLOCK)]


# --- headers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "columns", "row", "src"),
    [
        ("src,dst", "src,dst", "1,2", [1]),
        ("dst,src", "src,dst", "1,2", [2]),
        ("id, src ,weight,dst", "src,dst", "7,1,0.5,2", [1]),
        ('"dst","src"', "src,dst", '"1","2"', [2]),
        ("follower,followed", "src,dst", "1,2", [1]),
        ("src,dst,when", "dst,src,time", "1,2,3", [2]),
        ("time,src,dst", "src,dst,time", "3,1,2", [1]),
    ],
)
def test_a_csv_header_names_the_columns_or_is_passed_over(tmp_path, header, columns, row, src):
    path = write(tmp_path / "edges.csv", f"# made by hand\n\n{header}\n{row}\n".encode())
    assert read_all(path, columns) == (src, [])


def test_a_long_header(tmp_path):
    names = ",".join(f"column{i}" for i in range(1000))
    path = write(tmp_path / "edges.csv", f"{names},dst,src\n{'0,' * 1000}1,2\n".encode())
    assert read_all(path) == ([2], [])


def test_only_csv_has_a_header(tmp_path):
    for name, line in (("edges.txt", b"src dst"), ("edges.tsv", b"src\tdst")):
        _, bad = read_all(write(tmp_path / name, line + b"\n"))
        assert [record.raw for record in bad] == [line]


# --- contract -----------------------------------------------------------------------------------------------


def test_reads_of_nothing_are_refused(tmp_path):
    reader = open_source(str(write(tmp_path / "edges.txt", b"1 2\n"))).open("edges.txt", None)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        reader.read(0)


def test_errors_and_sources_survive_pickling(tmp_path):
    error = pickle.loads(pickle.dumps(SourceError("edges.txt", "is not there")))
    assert isinstance(error, IngestError)
    assert (error.uri, error.detail, str(error)) == ("edges.txt", "is not there", "edges.txt: is not there")
    source = pickle.loads(pickle.dumps(open_source(str(write(tmp_path / "edges.txt", b"1 2\n")))))
    assert source.open("edges.txt", None).read(1).records.src.tolist() == [1]

"""R-MAT streams: the same from any index, skewed as they should be, deletes that mean something; as files."""

import hashlib
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from ingest import IngestError, open_source, write_rmat
from ingest.synthetic import CHUNK_RECORDS, Rmat

FIRST = [(38836, 576, 1), (684648, 589953, 1), (427808, 18180, 1)]
DIGEST = "9a11acef78b895f81820efab9ff9ea92caa56e72c2b9580a64d839647ea977cc"
FORMATS = ["txt", "tsv", "csv", "txt.gz", "tsv.zst", "csv.gz", "parquet"]


def digest(records) -> str:
    return hashlib.sha256(records.src.tobytes() + records.dst.tobytes() + records.op.tobytes()).hexdigest()


def test_the_stream_is_the_same_on_every_machine_and_in_every_version():
    """A run is resumed from an index: a change of the stream would silently change what follows it."""
    records = Rmat(20, 1000, seed=1, deletes=0.25).records(0, 1000)
    assert list(zip(records.src[:3].tolist(), records.dst[:3].tolist(), records.op[:3].tolist(), strict=True)) == FIRST
    assert digest(records) == DIGEST


@pytest.mark.parametrize("deletes", [0.0, 0.3])
def test_every_record_is_a_function_of_its_index(deletes):
    rmat = Rmat(10, 500, seed=7, deletes=deletes)
    whole = rmat.records(0, 500)
    for start, stop in [(0, 1), (499, 500), (17, 300), (250, 250)]:
        part = rmat.records(start, stop)
        assert digest(part) == digest(whole[start:stop])
    assert digest(Rmat(10, 10_000, seed=7, deletes=deletes).records(0, 500)) == digest(whole)
    assert digest(Rmat(10, 500, seed=8, deletes=deletes).records(0, 500)) != digest(whole)


def test_reading_resumes_at_any_index():
    n = CHUNK_RECORDS + 100
    source = open_source(f"rmat://?scale=9&edges={n}&seed=3&deletes=0.2")
    whole = source.open("rmat", None).read(n)
    assert whole.end
    assert len(whole.records) == n
    for position in (0, 1, CHUNK_RECORDS - 1, CHUNK_RECORDS, n - 1, n):
        reader = source.open("rmat", position)
        first = reader.read(60)
        assert reader.position == min(position + 60, n)
        rest = reader.read(n)
        assert (first.end, rest.end) == (n - position <= 60, True)
        src = np.concatenate([first.records.src, rest.records.src])
        assert np.array_equal(src, whole.records.src[position:])


def test_quadrants_have_the_given_shares():
    """Each bit of (src, dst) is a draw of its own, so counts are binomial: 6 sigma are allowed."""
    n = 200_000
    scale = 12
    records = Rmat(scale, n, seed=5).records(0, n)
    for bit in range(scale):
        down, right = records.src >> bit & 1, records.dst >> bit & 1
        for quadrant, share in enumerate([0.57, 0.19, 0.19, 0.05]):
            seen = np.count_nonzero(2 * down + right == quadrant)
            assert abs(seen - n * share) < 6 * np.sqrt(n * share * (1 - share))
    assert records.src.min() >= 0
    assert max(records.src.max(), records.dst.max()) < 2**scale


def test_bits_are_independent():
    n = 50_000
    records = Rmat(62, n, seed=5).records(0, n)
    down = np.array([records.src >> bit & 1 for bit in range(62)], float)
    correlation = np.corrcoef(down) - np.eye(62)
    assert np.abs(correlation).max() < 6 / np.sqrt(n)
    assert len(set(zip(records.src.tolist(), records.dst.tolist(), strict=True))) > 0.99 * n


@pytest.mark.parametrize("share", [0.1, 0.3, 0.99])
def test_a_delete_names_an_edge_inserted_before_it(share):
    n = 10_000
    records = Rmat(14, n, seed=2, deletes=share).records(0, n)
    inserted: Counter = Counter()
    present: set = set()
    removed = 0
    for edge, op in zip(zip(records.src.tolist(), records.dst.tolist(), strict=True), records.op.tolist(), strict=True):
        if op > 0:
            inserted[edge] += 1
            present.add(edge)
        else:
            assert inserted[edge] > 0
            removed += edge in present
            present.discard(edge)
    deletes = np.count_nonzero(records.op < 0)
    assert abs(deletes - share * n) < 6 * np.sqrt(n * share * (1 - share))
    assert removed > min(deletes, n - deletes) / 2  # most that can take something away do
    assert records.op[0] == 1


def test_deletes_do_not_change_the_inserts():
    plain = Rmat(10, 200, seed=4).records(0, 200)
    mixed = Rmat(10, 200, seed=4, deletes=0.5).records(0, 200)
    kept = mixed.op > 0
    assert np.array_equal(plain.src[kept], mixed.src[kept])
    assert np.array_equal(plain.dst[kept], mixed.dst[kept])


# --- as files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("deletes", [0.0, 0.4])
def test_a_file_holds_the_records_of_the_stream(tmp_path, monkeypatch, suffix, deletes):
    monkeypatch.setattr("ingest.generate.BATCH_RECORDS", 300)
    path = tmp_path / f"edges.{suffix}"
    write_rmat(path, 12, 1000, seed=9, deletes=deletes)
    columns = "src,dst,op" if deletes else "src,dst"
    block = open_source(str(path), columns).open(path.name, None).read(1001)
    assert digest(block.records) == digest(Rmat(12, 1000, 9, deletes).records(0, 1000))
    assert block.bad == ()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_files_are_the_same_byte_by_byte(tmp_path):
    for suffix in FORMATS:
        paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
        for path in paths:
            write_rmat(path, 10, 500, 1, 0.1)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_columns_of_files(tmp_path):
    write_rmat(tmp_path / "a.txt", 4, 2)
    assert (tmp_path / "a.txt").read_text().count("\t") == 2
    write_rmat(tmp_path / "a.csv", 4, 2, deletes=0.5)
    assert (tmp_path / "a.csv").read_text().startswith("src,dst,op\n")
    write_rmat(tmp_path / "a.parquet", 4, 2, deletes=0.5)
    assert pq.read_schema(tmp_path / "a.parquet").names == ["src", "dst", "op"]


@pytest.mark.parametrize("edges", [0, 1])
@pytest.mark.parametrize("suffix", FORMATS)
def test_tiny_files(tmp_path, suffix, edges):
    path = tmp_path / f"a.{suffix}"
    write_rmat(path, 4, edges)
    block = open_source(str(path)).open(path.name, None).read(5)
    assert (len(block.records), block.end) == (edges, True)


@pytest.mark.parametrize(
    ("name", "scale", "says"),
    [
        ("a.json", 4, "cannot write '.*a.json': use a name that ends in .txt"),
        ("a.parquet.gz", 4, "but .parquet as it is"),
        ("a.txt", 63, "scale must be from 1 to 62, not 63"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, scale, says):
    with pytest.raises(IngestError, match=says):
        write_rmat(tmp_path / name, scale, 10)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ingest.generate.Rmat.records", fail)
    with pytest.raises(OSError, match="No space left"):
        write_rmat(path, 4, 10)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]

"""Epochs over real sources: order, counts, offsets for display, what is refused, and what an error leaves."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from ingest import EpochReader, SourceError, open_source, write_rmat
from ingest import epochs as epochs_module
from ingest.source import Block, Records, no_records

EPINIONS_RECORDS = 508_837
COLLEGE_RECORDS = 59_835


def read_all(epochs):
    batches = [epochs.read(epochs.start())]
    read_on(epochs, batches)
    return batches


def read_on(epochs, batches):
    """Add what follows the last of the batches."""
    while not batches[-1].last:
        batches.append(epochs.read(batches[-1].end))


def write(path: Path, first: int, count: int) -> str:
    path.write_text("".join(f"{i} {-i}\n" for i in range(first, first + count)))
    return str(path)


def test_blocks_of_a_thousand_are_taken_in_turns(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.txt", 10_000, 2500)
    write(folder / "b.txt", 20_000, 1200)
    sources = [open_source(str(folder)), open_source("rmat://?scale=8&edges=1500")]
    batches = read_all(EpochReader(sources, epoch_edges=1700))
    assert [len(batch.src) for batch in batches] == [1700, 1700, 1700, 100]
    assert [batch.last for batch in batches] == [False, False, False, True]
    first, second, third, _ = batches
    assert first.src.tolist() == [*range(10_000, 11_000), *range(20_000, 20_700)]
    assert second.src[:700].tolist() == [*range(11_000, 11_400), *range(20_700, 21_000)]
    assert third.src[:1200].tolist() == [*range(11_400, 12_400), *range(21_000, 21_200)]
    assert third.begin == second.end


def test_the_order_in_an_epoch_is_source_split_offset(tmp_path):
    later, earlier = write(tmp_path / "z.txt", 100, 30), write(tmp_path / "a.txt", 200, 30)
    batch = EpochReader([open_source(later), open_source(earlier)], 100, block_records=7).read(
        EpochReader([open_source(later), open_source(earlier)], 100).start()
    )
    assert batch.src.tolist() == [*range(100, 130), *range(200, 230)]
    assert batch.dst.tolist() == [-i for i in batch.src.tolist()]
    assert (batch.src.dtype, batch.dst.dtype, batch.op.dtype) == (np.int64, np.int64, np.int8)
    assert batch.src.flags.writeable
    assert batch.offsets == {"z.txt": [0, 30 * len("100 -100\n")], "a.txt": [0, 30 * len("200 -200\n")]}


def test_the_records_of_an_epoch_do_not_depend_on_how_it_is_cut(tmp_path):
    for name, first, count in (("a.txt", 0, 50), ("b.txt", 1000, 20), ("c.txt", 2000, 90)):
        write(tmp_path / name, first, count)

    def sequence(epoch_edges):
        """Put the records back into the order they were taken in, as far as the epochs show it."""
        return [batch.src.tolist() for batch in read_all(EpochReader([open_source(str(tmp_path))], epoch_edges, 8))]

    taken = [src for epoch in sequence(1) for src in epoch]
    assert taken[:24] == [*range(8), *range(1000, 1008), *range(2000, 2008)]
    for epoch_edges in (2, 7, 8, 9, 24, 159, 160, 161):
        expected = [sorted(taken[at : at + epoch_edges]) for at in range(0, 160, epoch_edges)]
        assert sequence(epoch_edges) == expected


def test_splits_of_the_same_name_are_told_apart(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "edges.txt", 1, 1)
    uris = [str(tmp_path / folder) for folder in ("one", "two")]
    epochs = EpochReader([open_source(uri) for uri in uris], 10)
    assert list(epochs.read(epochs.start()).offsets) == [f"{uri}#edges.txt" for uri in uris]


def test_bad_records_come_with_the_epoch_they_lie_in(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("x\n1 1\ny\n2 2\nz\n3 3\nw\n")
    first, second = read_all(EpochReader([open_source(str(path))], 2))
    assert [record.raw for record in first.bad] == [b"x", b"y", b"z"]
    assert [record.raw for record in second.bad] == [b"w"]
    assert (len(first.src), len(second.src)) == (2, 1)


def test_a_flood_of_bad_records_closes_epochs_early(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_bytes(b"1 2\n" + b"{}\n" * 25_500 + b"3 4\n")
    batches = read_all(EpochReader([open_source(str(path))], 1000))
    assert [(len(batch.src), len(batch.bad)) for batch in batches] == [(1, 10_000), (0, 10_000), (1, 5500)]


def test_a_source_without_records_is_one_empty_last_epoch(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_bytes(b"# nothing yet\n")
    (batch,) = read_all(EpochReader([open_source(str(path))], 10))
    assert (len(batch.src), batch.bad, batch.last) == (0, [], True)


def test_an_error_leaves_the_position_good(tmp_path):
    write(tmp_path / "a.txt", 0, 5000)
    whole = gzip.compress("".join(f"{i} 7\n" for i in range(200_000)).encode())
    (tmp_path / "b.txt.gz").write_bytes(whole[: len(whole) // 2])
    source = open_source(str(tmp_path))
    epochs = EpochReader([source], 3000)
    batches = [epochs.read(epochs.start())]
    for _ in range(2):
        with pytest.raises(SourceError, match=r"b\.txt\.gz' cannot be read from position"):
            read_on(epochs, batches)
    (tmp_path / "b.txt.gz").write_bytes(whole)
    assert not batches[-1].last
    read_on(epochs, batches)
    assert sum(len(batch.src) for batch in batches) == 205_000


def test_an_interrupted_read_is_not_taken_for_an_end(tmp_path, monkeypatch):
    """Whatever stops a read half-way, the next read from the same position must not see a dead reader."""
    source = open_source(write(tmp_path / "a.txt", 0, 100_000))
    epochs = EpochReader([source], 1000)
    batches = [epochs.read(epochs.start())]

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ingest.text.parse_lines", interrupt)
        with pytest.raises(KeyboardInterrupt):
            read_on(epochs, batches)
    read_on(epochs, batches)
    assert [src for batch in batches for src in batch.src.tolist()] == list(range(100_000))


def test_a_reader_that_failed_is_not_read_again():
    """It may be dead although its position has not moved; the position is what a new one begins from."""

    class Once:
        """Returns a record, fails where it stands, and is at its end ever after."""

        def __init__(self, position):
            self.position = position
            self.reads = 0

        def read(self, max_records):
            self.reads += 1
            if self.reads == 2:
                raise OSError
            if self.reads > 2 or self.position == 5:
                return Block(no_records(timed=False), (), True)
            self.position += 1
            one = np.array([self.position])
            return Block(Records(one, one, np.ones(1, np.int8), None), (), False)

        def close(self):
            pass

    class Failing:
        uri = "failing://"
        bounded = True

        def splits(self):
            return ["only"]

        def open(self, split, position):
            return Once(position or 0)

    epochs = EpochReader([Failing()], 1)
    position = epochs.start()
    src = []
    while len(src) < 5:
        try:
            batch = epochs.read(position)
        except OSError:
            continue
        position = batch.end
        src += batch.src.tolist()
        assert not batch.last
    assert src == [1, 2, 3, 4, 5]


def test_only_so_many_splits_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(epochs_module, "MAX_OPEN_SPLITS", 3)
    for number in range(8):
        write(tmp_path / f"{number}.txt", number * 1000, 25)
    before = len(os.listdir("/proc/self/fd"))
    with EpochReader([open_source(str(tmp_path))], 40, block_records=10) as epochs:
        batches = [epochs.read(epochs.start())]
        while not batches[-1].last:
            assert len(os.listdir("/proc/self/fd")) <= before + 3
            batches.append(epochs.read(batches[-1].end))
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(src for batch in batches for src in batch.src.tolist()) == [
        number * 1000 + i for number in range(8) for i in range(25)
    ]


# --- what is refused ----------------------------------------------------------------------------------------


def test_what_is_no_epoch(tmp_path):
    source = open_source(write(tmp_path / "a.txt", 0, 5))
    for epoch_edges, block_records in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            EpochReader([source], epoch_edges, block_records)
    with pytest.raises(SourceError, match="is given twice"):
        EpochReader([source, open_source(source.uri)], 10)


def test_a_position_of_other_splits_is_refused(tmp_path):
    write(tmp_path / "a.txt", 0, 5)
    write(tmp_path / "b.txt", 0, 5)
    position = EpochReader([open_source(str(tmp_path))], 10).start()
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    with pytest.raises(SourceError, match=r"'b\.txt' is new, gone or .* put the old files back"):
        EpochReader([open_source(str(tmp_path))], 10).read(position)


# --- real graphs --------------------------------------------------------------------------------------------


def real_or_like(name: str, folder: Path, records: int) -> str:
    """Return the path of a real graph, or of a generated one with the same quirks of format."""
    data = os.environ.get("EXOFLOW_DATA_DIR")
    if data and (Path(data) / name).exists():
        return str(Path(data) / name)
    plain = folder / "plain.txt"
    write_rmat(plain, 16, records)
    lines = plain.read_bytes().splitlines()
    if name.startswith("soc"):
        text = b"# a generated graph\r\n#\r\n" + b"".join(line + b"\r\n" for line in lines)
    else:
        text = b"".join(b"%s %d\n" % (line.replace(b"\t", b" "), 1_082_040_961 + i) for i, line in enumerate(lines))
    (folder / name).write_bytes(gzip.compress(text, 1))
    return str(folder / name)


def test_epinions(tmp_path):
    path = real_or_like("soc-Epinions1.txt.gz", tmp_path, EPINIONS_RECORDS)
    batches = read_all(EpochReader([open_source(path)], 10_000))
    assert [len(batch.src) for batch in batches] == [10_000] * 50 + [8837]
    assert sum(len(batch.bad) for batch in batches) == 0
    assert all(np.all(batch.op == 1) for batch in batches)
    lines = [line for line in gzip.decompress(Path(path).read_bytes()).splitlines() if not line.startswith(b"#")]
    assert lines[-1].split() == [b"%d" % batches[-1].src[-1], b"%d" % batches[-1].dst[-1]]
    assert sum(int(batch.src.sum()) for batch in batches) == sum(int(line.split()[0]) for line in lines)


def test_college_messages(tmp_path):
    path = real_or_like("CollegeMsg.txt.gz", tmp_path, COLLEGE_RECORDS)
    (batch,) = read_all(EpochReader([open_source(path, "src,dst,time")], 100_000))
    rows = [line.split() for line in gzip.decompress(Path(path).read_bytes()).splitlines()]
    assert len(rows) == COLLEGE_RECORDS
    assert batch.src.tolist() == [int(row[0]) for row in rows]
    assert batch.dst.tolist() == [int(row[1]) for row in rows]
    assert batch.time is not None
    assert batch.time.tolist() == [float(row[2]) for row in rows]

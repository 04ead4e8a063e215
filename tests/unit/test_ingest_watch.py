"""Files that keep arriving: which are read, once, in which order, and what is said of those that cannot be."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ingest import EpochReader, SourceError, SplitReader, open_source
from ingest.held import Held
from ingest.places import Found
from tests.unit.arriving import Run, arrive, lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "arriving"
    made.mkdir()
    return made


def test_new_files_are_read_in_the_order_of_their_names_and_those_that_come_later_after_them(folder):
    arrive(folder, "b.txt", lines(10, 3))
    arrive(folder, "day/a.txt", lines(20, 3))
    run = Run(folder)
    assert run.read(6) == [10, 11, 12, 20, 21, 22]
    arrive(folder, "a.txt", lines(30, 2))
    assert run.read(2) == [30, 31]
    assert run.files() == ["b.txt", "day/a.txt", "a.txt"]
    assert run.again() == [[10, 11, 12, 20, 21, 22], [30, 31]]


def test_hidden_and_unfinished_files_and_what_does_not_match_are_left_alone(folder):
    names = [".a.csv", "_b.csv", "c.csv.tmp", "d.CSV.PART", "_temporary/e.csv", ".spool/f.csv", "g.txt", "README"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(lines(1, 1))
    arrive(folder, "sub/h.csv", b"7,8\n")
    run = Run(folder, "patience=0&pattern=*.csv")
    assert run.source.splits() == ["sub/h.csv"]
    assert run.read(1) == [7]
    assert Run(folder, "pattern=sub/*.csv").source.splits() == ["sub/h.csv"]
    assert Run(folder, "pattern=other/*").source.splits() == []


def test_the_same_content_again_is_nothing_new_and_costs_no_second_look(folder):
    arrive(folder, "a.txt", lines(1, 3))
    run = Run(folder)
    assert run.read(3) == [1, 2, 3]
    os.utime(folder / "a.txt", (1, 1))
    arrive(folder, "b.txt", lines(5, 1))
    assert run.read(1) == [5]
    arrive(folder, "a.txt", lines(1, 3))  # uploaded again
    run.begin()
    arrive(folder, "c.txt", lines(6, 1))
    assert run.read(1) == [6]
    assert run.told == []
    assert run.files() == ["a.txt", "b.txt", "c.txt"]


def test_a_file_that_was_read_may_go_and_even_come_back(folder):
    arrive(folder, "a.txt", lines(1, 3))
    run = Run(folder)
    assert run.read(3) == [1, 2, 3]
    (folder / "a.txt").unlink()
    arrive(folder, "b.txt", lines(5, 1))
    assert run.read(1) == [5]
    run.begin()
    arrive(folder, "a.txt", lines(1, 3))
    arrive(folder, "c.txt", lines(6, 1))
    assert run.read(1) == [6]


def test_other_content_under_a_name_that_was_read_is_an_error_that_says_what_to_do(folder):
    arrive(folder, "a.txt", lines(1, 3))
    run = Run(folder)
    run.read(3)
    arrive(folder, "a.txt", lines(1, 4))
    with pytest.raises(
        SourceError, match=r"'a.txt' has other content than what was read under this name\. Nothing of it"
    ):
        run.read(1)
    run.begin()
    with pytest.raises(SourceError, match="give it another name"):  # as long as it is so, also in another process
        run.read(1)
    arrive(folder, "a.txt", lines(1, 3))
    arrive(folder, "a2.txt", lines(4, 1))
    run.begin()
    assert run.read(1) == [4]


def test_other_content_is_passed_over_once_where_that_is_wanted(folder):
    arrive(folder, "a.txt", lines(1, 3))
    run = Run(folder, on_lost_offset="skip")
    run.read(3)
    arrive(folder, "a.txt", lines(1, 4))
    arrive(folder, "b.txt", lines(7, 1))
    assert run.read(1) == [7]
    (bad,) = run.batches[-1].bad
    assert (bad.split, bad.offset, bad.raw) == ("a.txt", 0, b"")
    assert bad.reason.startswith("passed over: 'a.txt' has other content")
    assert len(run.told) == 1
    run.begin()
    arrive(folder, "c.txt", lines(8, 1))
    assert run.read(1) == [8]
    assert run.batches[-1].bad == []
    assert len(run.told) == 1
    with pytest.raises(SourceError, match="other content than when it was read: what it held then is needed again"):
        run.again()
    arrive(folder, "a.txt", lines(1, 3))
    assert run.again() == [[1, 2, 3], [7], [8]]


BROKEN = {
    "cut.txt.gz": gzip.compress(lines(1, 5000))[:-10],
    "empty.csv.gz": b"",
    "cut.txt.zst": zstandard.compress(lines(1, 5000))[:-10],
    "half.parquet": b"PAR1" + b"\0" * 100,
    "edges.json": b"{}",
}


def parquet(first: int, count: int, path: Path) -> bytes:
    pq.write_table(pa.table({"src": range(first, first + count), "dst": range(count)}), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_counts_for_nothing_and_stops_the_run_until_it_is_put_right(folder, tmp_path, name):
    arrive(folder, "a.txt", lines(1, 2))
    run = Run(folder)
    assert run.read(2) == [1, 2]
    arrive(folder, name, BROKEN[name])
    says = "says no format" if name == "edges.json" else "cannot be read to its end"
    with pytest.raises(SourceError, match=f"'{re.escape(name)}'.*{says}.*Nothing of it was read"):
        run.read(1)
    if name == "edges.json":
        (folder / name).unlink()
        arrive(folder, "put.txt", lines(1, 3))
    else:
        put_right = {
            ".gz": gzip.compress(lines(1, 3) if "txt" in name else b"1,1\n2,2\n3,3\n"),
            ".zst": zstandard.compress(lines(1, 3)),
            ".parquet": parquet(1, 3, tmp_path / "right.parquet"),
        }
        arrive(folder, name, put_right[Path(name).suffix])
    run.begin()
    assert run.read(3) == [1, 2, 3]


def test_a_broken_file_is_passed_over_where_that_is_wanted_and_read_when_it_was_put_right(folder):
    for name, data in BROKEN.items():
        arrive(folder, name, data)
    arrive(folder, "z.txt", lines(1, 2))
    run = Run(folder, on_lost_offset="skip")
    assert run.read(2) == [1, 2]
    assert {bad.split: bad.offset for bad in run.batches[0].bad} == dict.fromkeys(BROKEN, 0)
    assert len(run.told) == len(BROKEN)
    run.begin()
    arrive(folder, "cut.txt.gz", gzip.compress(lines(5, 3)))
    assert run.read(3) == [5, 6, 7]
    assert len(run.told) == len(BROKEN)


def test_a_wrong_column_is_found_before_anything_of_the_file_counts(folder, tmp_path):
    pq.write_table(pa.table({"src": [1], "to": [2]}), tmp_path / "wrong.parquet")
    arrive(folder, "a.parquet", (tmp_path / "wrong.parquet").read_bytes())
    with pytest.raises(SourceError, match=r"a\.parquet has no column 'dst'"):
        Run(folder).read(1)


def test_a_file_that_goes_before_it_was_read_is_told(folder):
    for name in ("a.txt", "b.txt"):
        arrive(folder, name, lines(1, 3))
    run = Run(folder)
    run.read(2)
    (folder / "b.txt").unlink()
    with pytest.raises(SourceError, match=r"'b.txt' is gone before it was read\. Nothing is lost: put it back"):
        run.read(4)


def test_a_file_that_goes_while_it_is_read_is_told_and_read_on_when_it_is_back(folder):
    arrive(folder, "a.txt", lines(1, 5))
    run = Run(folder)
    assert run.read(2) == [1, 2]
    (folder / "a.txt").unlink()
    run.begin()
    with pytest.raises(SourceError, match=r"'a.txt' is gone before it was read to its end"):
        run.read(3)
    arrive(folder, "a.txt", lines(1, 5))
    run.begin()
    assert run.read(3) == [3, 4, 5]


def test_other_content_in_the_middle_of_a_file_is_never_read_on(folder):
    arrive(folder, "a.txt", lines(1, 5))
    run = Run(folder)
    assert run.read(2) == [1, 2]
    arrive(folder, "a.txt", lines(11, 5))
    run.begin()
    with pytest.raises(SourceError, match=r"'a\.txt' has other content than when it was read up to 10"):
        run.read(3)
    with pytest.raises(SourceError, match="is needed again; put that back"):
        run.again()


def test_the_rest_of_a_file_that_is_another_now_is_passed_over_where_that_is_wanted(folder):
    arrive(folder, "a.txt", lines(1, 5))
    arrive(folder, "b.txt", lines(7, 2))
    run = Run(folder, on_lost_offset="skip")
    assert run.read(2) == [1, 2]
    arrive(folder, "a.txt", lines(11, 5))
    run.begin()
    assert run.read(2) == [7, 8]
    (bad,) = run.batches[-1].bad
    assert (bad.split, bad.offset) == ("a.txt", 10)
    assert run.files() == ["a.txt", "b.txt"]


def test_a_file_that_is_written_in_place_while_it_is_read_is_noticed(folder):
    arrive(folder, "a.txt", lines(100_000, 100_000))  # of several chunks
    run = Run(folder)
    with EpochReader([run.source], 10) as reader:
        first = reader.read(reader.start())
        with (folder / "a.txt").open("ab") as file:
            file.write(b"9 9\n")
        reader = EpochReader([run.source], 100_000)
        with reader, pytest.raises(SourceError, match=r"'a\.txt' (was changed|has other content)"):
            reader.read(first.end)


def test_what_changes_behind_a_reader_is_never_emitted(folder):
    arrive(folder, "a.txt", lines(100_000, 100_000))
    source = open_source(f"watch://{folder}")
    reader = source.open("a.txt", None)
    assert len(reader.read(10).records) == 10
    with (folder / "a.txt").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"9 9\n")
    found: list[int] = []
    with pytest.raises(SourceError, match=r"'a\.txt' was changed while it was read"):
        read_to_end(reader, found)
    assert 9 not in found
    reader.close()


def read_to_end(reader: SplitReader, found: list[int]) -> None:
    while not (block := reader.read(1000)).end:
        found += block.records.src.tolist()


def test_until_end_reads_what_was_there_when_the_run_began(folder):
    for name, data in {"b.txt": lines(5, 4), "a.txt": lines(1, 4), "e.txt": b"", "f.txt": b"# nothing\n"}.items():
        arrive(folder, name, data)
    run = Run(folder, "until=end")
    arrive(folder, "aa.txt", lines(90, 5))
    assert run.read(3) == [1, 2, 3]
    run.begin()
    assert run.read(5) == [4, 5, 6, 7, 8]
    assert run.batches[-1].last
    assert not run.batches[0].last


def test_until_end_of_nothing_is_one_empty_epoch(folder):
    run = Run(folder, "until=end")
    assert run.read(5) == []
    assert run.batches[-1].last


def test_epochs_of_a_bounded_watch_do_not_depend_on_where_they_are_cut(folder):
    for number in range(5):
        arrive(folder, f"{number}.txt", lines(100 * number, 11))
    everything = [100 * number + each for number in range(5) for each in range(11)]
    for epoch_edges in (1, 6, 11, 55):
        run, found = Run(folder, "until=end"), []
        while not run.batches or not run.batches[-1].last:
            found += run.read(epoch_edges)
        assert found == everything
        assert run.again() == [everything[at : at + epoch_edges] for at in range(0, 55, epoch_edges)]


@pytest.mark.parametrize("parameters", ["patience=0", "until=end"])
def test_what_failed_is_read_again_by_the_same_process(folder, parameters):
    for name in ("a.txt", "b.txt"):
        arrive(folder, name, lines(1, 2))
    arrive(folder, "c.txt.gz", b"broken")
    run = Run(folder, parameters)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"c\.txt\.gz"):
            run.read(5)
    arrive(folder, "c.txt.gz", gzip.compress(lines(5, 1)))
    assert run.read(5) == [1, 2, 1, 2, 5]


def test_a_folder_that_cannot_be_read_is_waited_for_and_told(folder):
    arrive(folder, "a.txt", lines(1, 2))
    run = Run(folder, "patience=30")
    folder.rename(folder.with_name("away"))
    with EpochReader([run.source, open_source("rmat://?scale=4&edges=5")], 5) as reader:
        assert len(reader.read(reader.start()).src) == 5  # the other source is not held up
    assert re.search(r"waiting for the folder .*arriving: .*No such file", run.told[0])
    folder.with_name("away").rename(folder)
    assert run.read(2) == [1, 2]
    assert re.search("is back after", run.told[1])


def test_a_file_that_comes_slowly_does_not_hold_up_other_sources(folder):
    arrive(folder, "a.txt", lines(1, 2))
    run = Run(folder)
    comes = threading.Event()
    fetch = run.source._place.fetch

    def slow(name: str) -> Held:
        assert comes.wait(60)
        return fetch(name)

    run.source._place.fetch = slow
    generated = open_source("rmat://?scale=4&edges=100000")
    with EpochReader([run.source, generated], 10) as reader:
        batch = reader.read(reader.start())
        assert {each[1] for each in batch.ranges} == {"rmat"}
        comes.set()
        while {each[1] for each in batch.ranges} == {"rmat"}:
            assert not batch.last
            batch = reader.read(batch.end)
    assert {each[1] for each in batch.ranges} <= {"rmat", "a.txt"}


@pytest.mark.parametrize(("took", "pause"), [(0.01, 2.0), (0.5, 5.0), (60.0, 20.0)])
def test_slow_listings_come_less_often_but_never_seldom(folder, took, pause):
    run = Run(folder, "every=2")
    ends: list[float] = []

    def listed() -> list[Found]:
        run.clock.now += took
        ends.append(run.clock.now)
        return []

    run.source._place.listed = listed
    while len(ends) < 3:
        assert run.source.next() is None
        while run.source._listing is not None:
            run.source.wait(1.0)
            assert run.source.next() is None
        run.clock.now += 0.125
    assert [after - took - before for before, after in itertools.pairwise(ends)] == pytest.approx([pause] * 2, abs=0.2)


def test_patience_ends(folder):
    run = Run(folder, "patience=0")
    folder.rmdir()
    with pytest.raises(SourceError, match=r"has not answered for 0 s.*resume when it is back \(patience=SECONDS"):
        run.read(1)


def test_a_new_run_on_no_folder_does_not_wait(tmp_path):
    with pytest.raises(SourceError, match=r"cannot be read: .*No such file"):
        open_source(f"watch://{tmp_path}/nothing").splits()


def test_the_position_stays_small_however_many_files_were_read(folder):
    sizes: Sequence[int] = []
    run = Run(folder)
    for number in range(300):
        arrive(folder, f"{number:03}.txt", lines(number, 1))
    for _ in range(300):
        run.read(1)
        sizes = [*sizes, len(json.dumps(run.position))]
    assert max(sizes) <= min(sizes) + 100
    assert len(run.source.register) >= 299


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("watch://folder", "name it by its absolute path: watch:///FOLDER"),
        ("watch:///f?patern=*", "unknown parameter 'patern'; known are pattern, until, every, patience, endpoint"),
        ("watch:///f?until=now", "until must be end"),
        ("watch:///f?every=0", "every must be seconds, at least 0.1"),
        ("watch:///f?patience=-1", "patience must be seconds, at least 0"),
        ("watch:///f?every=1&every=2", "'every' is given twice"),
        ("watch:///f?endpoint=http://h", "endpoint goes with watch://s3"),
        ("watch://s3://", "a prefix of a bucket is named as"),
        ("watch://s3://bucket/p?endpoint=h:1", "endpoint must be a URL"),
        ("watch://s3://bucket/p?endpoint=http://u:p@h", "holds credentials"),
        ("follow://edges.txt", "name it by its absolute path: follow:///PATH"),
        ("follow:///edges.txt.gz", "only lines of .txt, .tsv and .csv files can be followed"),
        ("follow:///edges.txt?pattern=*", "unknown parameter 'pattern'; known are until, patience"),
    ],
)
def test_what_is_no_place(uri, says):
    with pytest.raises(SourceError) as raised:
        open_source(uri)
    assert re.search(re.escape(says), str(raised.value))
    assert "u:p" not in str(raised.value)

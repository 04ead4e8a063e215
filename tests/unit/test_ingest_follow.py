"""A growing text file: whole lines only, through rotation, and what is told where bytes may be lost."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import EpochReader, Originals, SourceError, open_source
from ingest.follow import ROTATED_SECONDS, FollowSource
from ingest.source import Block
from tests.unit.arriving import Clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "edges.txt"
    made.touch()
    return made


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


class Following:
    """What follows a file split by split, and can be begun anew from its position."""

    def __init__(self, path: Path, **options: str) -> None:
        self.path = path
        self.options = options
        self.told: list[str] = []
        self.clock = Clock()
        self.position = None
        self.split: str | None = None
        self.rows = b""
        self.bad = []
        self.begin()

    def begin(self) -> None:
        self.source = FollowSource(
            f"follow://{self.path}?patience=30", ("src", "dst"), tell=self.told.append, clock=self.clock, **self.options
        )
        self.source.register.load(self.rows)
        self.reader = None

    def read(self, max_records: int = 1000) -> list[list[int]]:
        """Read what is there now, of one file after the other."""
        found: list[list[int]] = []
        while True:
            if self.split is None:
                self.split, self.position = self.source.next(), None
            if self.reader is None:
                self.reader = self.source.open(self.split, self.position)
            block: Block = self.reader.read(max_records)
            found += [list(each) for each in zip(block.records.src.tolist(), block.records.dst.tolist(), strict=True)]
            self.bad += block.bad
            self.position = json.loads(json.dumps(self.reader.position))
            if block.end:
                self.source.finish(self.split, self.position)
                self.source.commit()
                self.rows = self.source.register.rows(0, len(self.source.register))
                self.split = self.reader = None
            elif not len(block.records) and not block.bad:
                return found


def test_only_whole_lines_are_taken_and_the_rest_waits(path):
    following = Following(path)
    assert following.read() == []
    append(path, b"1 2\n3 4\n5 ")
    assert following.read() == [[1, 2], [3, 4]]
    assert following.position["at"] == 8
    append(path, b"6")
    assert following.read() == []
    append(path, b"7\n")
    assert following.read() == [[5, 67]]


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from([".txt", ".csv", ".tsv"]),
)
def test_no_line_is_ever_split_wherever_the_writer_stops(tmp_path_factory, cuts, seed, kind):
    drawn = random.Random(seed)
    path = tmp_path_factory.mktemp("follow") / f"edges{kind}"
    path.touch()
    separator = {".txt": b"  ", ".csv": b", ", ".tsv": b"\t"}[kind]
    edges = [[drawn.randrange(-(10**6), 10**6), drawn.randrange(10**9)] for _ in range(sum(cuts) // 8)]
    text = drawn.choice([b"", b"\xef\xbb\xbf"]) if kind == ".csv" else b""
    text += b"# about\n\ndst,weight,src\n" if kind == ".csv" else b"# about\n"
    for src, dst in edges:
        text += separator.join([b"%d" % dst, b"7", b"%d" % src] if kind == ".csv" else [b"%d" % src, b"%d" % dst])
        text += drawn.choice([b"\n", b"\r\n", b"\n\n", b"\n# a note\n"])
    following, found, at = Following(path), [], 0
    for size in [*cuts, len(text)]:
        append(path, text[at : at + size])
        at += size
        if drawn.random() < 0.3:
            following.begin()
        found += following.read(drawn.choice([1, 3, 1000]))
    assert found == edges
    assert following.bad == []
    assert following.told == []


def test_a_long_line_is_waited_for_and_then_bad(path):
    following = Following(path)
    append(path, b"1 2\n" + b"x" * 3_000_000)
    assert following.read() == [[1, 2]]
    append(path, b"\n3 4\n")
    assert following.read() == [[3, 4]]
    (bad,) = following.bad
    assert (bad.offset, bad.reason, bad.cut) == (4, "the line is too long", True)


def test_a_rotated_file_is_read_to_its_end_and_the_new_one_from_its_beginning(path):
    following = Following(path)
    append(path, b"1 2\n")
    assert following.read() == [[1, 2]]
    path.rename(path.with_name("edges.1"))
    assert following.read() == []  # nobody has the name yet
    append(path.with_name("edges.1"), b"3 4\n")  # its writer has it open still
    path.write_bytes(b"5 6\n")
    assert following.read() == [[3, 4]]
    following.clock.now += ROTATED_SECONDS
    append(path.with_name("edges.1"), b"7 8\n")
    assert following.read() == [[7, 8]]
    following.clock.now += ROTATED_SECONDS
    assert following.read() == [[5, 6]]
    assert following.split == "2:edges.txt"
    assert following.told == [f"{following.source.uri}: another file has its name now; 'edges.txt' was read to its end"]
    following.begin()
    append(path, b"9 9\n")
    assert following.read() == [[9, 9]]


LOSSES = {
    "cut back": lambda path: path.write_bytes(b""),
    "written anew": lambda path: path.write_bytes(b"7 8\n9 9\n11 12\n13 14\n"),
    "replaced while nobody looked": lambda path: (path.unlink(), path.write_bytes(b"7 8\n9 9\n11 12\n13 14\n")),
}


# A file that is replaced while somebody looks is rotated, and nothing of it is lost.
CASES = [(loss, restarted) for loss in LOSSES for restarted in (False, True) if restarted or "nobody" not in loss]


@pytest.mark.parametrize(("loss", "restarted"), CASES)
def test_bytes_that_may_be_lost_are_told(path, loss, restarted):
    append(path, b"1 2\n3 4\n5 6\n")
    following = Following(path)
    assert following.read() == [[1, 2], [3, 4], [5, 6]]
    LOSSES[loss](path)
    if restarted:
        following.begin()
    with pytest.raises(SourceError, match=r"'edges\.txt' was read up to 12, and what followed.*Nothing was skipped"):
        following.read()
    following.begin()
    with pytest.raises(SourceError, match="Nothing was skipped"):
        following.read()


@pytest.mark.parametrize(("loss", "restarted"), CASES)
def test_bytes_that_may_be_lost_are_skipped_and_told_where_that_is_wanted(path, loss, restarted):
    append(path, b"1 2\n3 4\n5 6\n")
    following = Following(path, on_lost_offset="skip")
    following.read()
    LOSSES[loss](path)
    if restarted:
        following.begin()
    wanted = [] if loss == "cut back" else [[7, 8], [9, 9], [11, 12], [13, 14]]
    assert following.read() == wanted
    (bad,) = following.bad
    assert (bad.split, bad.offset, bad.raw) == ("edges.txt", 12, b"")
    assert bad.reason.startswith("lost: it was cut back")
    assert len(following.told) == 1


def test_what_was_lost_is_in_the_epoch_that_goes_on_behind_it(path):
    append(path, b"1 2\n3 4\n")
    uri = f"follow://{path}"
    with EpochReader([open_source(uri)], 2) as reader:
        first = reader.read(reader.start())
    path.write_bytes(b"5 6\n7 8\n9 10\n11 12\n")
    with EpochReader([open_source(uri, on_lost_offset="skip", tell=print)], 3) as reader:
        second = reader.read(json.loads(json.dumps(first.end)))
    assert second.src.tolist() == [5, 7, 9]
    assert [(bad.split, bad.offset) for bad in second.bad] == [("edges.txt", 8)]
    assert [each[1] for each in second.ranges] == ["edges.txt", "2:edges.txt"]


def test_a_file_that_is_cut_back_while_it_is_read_gives_no_half_line(path):
    append(path, b"".join(b"%d %d\n" % (each, each) for each in range(10**6, 10**6 + 200_000)))
    following = Following(path, on_lost_offset="skip")
    following.split = following.source.next()
    following.reader = following.source.open(following.split, None)
    found = following.reader.read(10).records.src.tolist()
    with path.open("r+b") as file:
        file.truncate(1_000_003)
    rest = following.read()
    assert found == [*range(10**6, 10**6 + 10)]
    assert all(src == dst for src, dst in rest)
    (bad,) = following.bad
    assert bad.reason.startswith("lost: ")


def test_half_a_line_at_the_end_of_a_rotated_file_is_told(path):
    following = Following(path, on_lost_offset="skip")
    append(path, b"1 2\n3")
    following.read()
    path.rename(path.with_name("edges.1"))
    path.write_bytes(b"5 6\n")
    assert following.read() == []
    following.clock.now += ROTATED_SECONDS
    assert following.read() == [[5, 6]]
    (bad,) = following.bad
    assert (bad.offset, bad.reason) == (4, "lost: another file has its name, and it ended in the middle of a line")


def test_a_file_that_is_not_there_is_waited_for_and_told(path):
    append(path, b"1 2\n")
    following = Following(path)
    following.read()
    path.rename(path.with_name("away"))
    following.begin()
    assert following.read() == []
    assert re.search(r"waiting for the file .*edges\.txt: .*No such file", following.told[0])
    path.with_name("away").rename(path)
    append(path, b"3 4\n")
    following.clock.now += 10
    assert following.read() == [[3, 4]]
    assert "is back after 10.0 s" in following.told[1]


def test_until_end_is_where_the_last_whole_line_ended_when_the_run_began(path):
    append(path, b"1 2\n3 4\n5 ")
    uri = f"follow://{path}?until=end"
    settled = json.loads(json.dumps(open_source(uri).settle()))
    append(path, b"6\n7 8\n")
    reader = EpochReader([open_source(uri, settled=settled)], 1)
    first = reader.read(reader.start())
    second = reader.read(first.end)
    assert [first.src.tolist(), second.src.tolist()] == [[1], [3]]
    assert [first.last, second.last] == [False, True]
    reader.close()
    again = EpochReader([open_source(uri, settled=settled)], 1)
    assert again.reread(json.loads(json.dumps(second.ranges))).src.tolist() == [3]


def test_epochs_of_a_followed_file_are_read_again_by_what_was_recorded(path):
    uri = f"follow://{path}"
    reader = EpochReader([open_source(uri)], 2)
    append(path, b"# a\n1 2\n3 4\n# b\n5 6\n7 8\n")
    first = reader.read(reader.start())
    second = reader.read(first.end)
    reader.close()
    again = EpochReader([open_source(uri)], 2)
    found = [again.reread(json.loads(json.dumps(batch.ranges))).src.tolist() for batch in (first, second)]
    assert found == [[1, 3], [5, 7]]
    path.write_bytes(b"# a\n1 2\n")
    with pytest.raises(SourceError, match="it was cut back, or another file has its name"):
        again.reread(second.ranges)


def test_a_new_run_on_no_file_does_not_wait(tmp_path):
    with pytest.raises(SourceError, match=r"cannot be followed: .*No such file"):
        open_source(f"follow://{tmp_path}/edges.txt").splits()


def test_bad_lines_of_followed_and_watched_files_are_found_in_their_files_again(tmp_path):
    long = b"1 " + b"x" * 5000
    (tmp_path / "edges.txt").write_bytes(b"1 2\n" + long + b"\n")
    (tmp_path / "edges.csv").write_bytes(b"dst,src\n1,2\n")
    originals = Originals("src,dst")
    for uri, split in ((f"follow://{tmp_path}/edges.txt", "edges.txt"), (f"watch://{tmp_path}", "edges.txt")):
        reader = open_source(uri).open(split, None)
        (bad,) = reader.read(10).bad
        reader.close()
        assert bad.cut
        assert b"".join(originals.whole(bad)) == long
    assert originals.header(f"watch://{tmp_path}", "edges.csv") == b"dst,src"
    assert originals.header(f"follow://{tmp_path}/edges.csv", "2:edges.csv") == b"dst,src"

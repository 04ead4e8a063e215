"""The dictionary: names and numbers, as it grows, where hashes collide, and out of its store again."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream import nametable
from graph_stream.namelist import NameList
from graph_stream.namestore import FANOUT, Dictionary, Part, decode, encode, load, merged
from graph_stream.nametable import UNKNOWN, NameTable
from graph_stream.naming import load_table
from graph_stream.snapshot import CorruptSnapshot
from ingest import MAX_NAME_BYTES, Names

ODD = [
    "",
    "a",
    "ab",
    "a" * 7,
    "a" * 8,
    "a" * 9,
    "a" * 16,
    "a" * MAX_NAME_BYTES,
    "ñ",
    "n\u0303",
    "名前",
    "\0",
    "a\0",
    "a\0\0",
]
ODD += ["ab\0", " a", "a ", "\t", '"a"', "1", "01", "\U0001f600", "a\nb"]

names = st.one_of(st.sampled_from(ODD), st.text("ab\0é", max_size=10), st.text(max_size=3).filter(str.isprintable))


def column(*texts: str) -> Names:
    return pa.array([text.encode() for text in texts], pa.large_binary())


def texts(found: Names) -> list[str]:
    return [each.decode() for each in found.to_pylist()]


def collide(bits: int):
    """Return hashes that differ in so few bits, of those that make the tag."""
    original = nametable._hash_names

    def planted(data, bounds, seed, hashes):
        original(data, bounds, np.uint64(0), hashes)
        hashes &= np.uint64(((1 << bits) - 1) << 32)

    return planted


class Blobs:
    """A store of bytes."""

    def __init__(self) -> None:
        self.data: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.data.append(data)
        return len(self.data) - 1

    def read(self, blob: Any) -> bytes:
        return self.data[blob]


def stored(blobs: Blobs, table: NameTable, dictionary: Dictionary) -> Dictionary:
    """Write what is new of a table."""
    first, count = len(dictionary), len(table) - len(dictionary)
    if not count:
        return dictionary
    blob = blobs.write(encode(table.names.stretch(first, len(table)), first))
    return dictionary.append(Part(first, count, blob), table.names.digest)


# --- numbers ------------------------------------------------------------------------------------------------


def check_numbers(batches: list[list[tuple[str, str]]]) -> tuple[NameTable, dict[str, int]]:
    """Hold the numbers of a stream, batch by batch, against those that a dict gives."""
    table: NameTable = NameTable()
    known: dict[str, int] = {}
    for rows in batches:
        wanted = [tuple(known.setdefault(name, len(known)) for name in row) for row in rows]
        src, dst = (column(*each) for each in (zip(*rows, strict=True) if rows else ((), ())))
        numbered = table.number(src, dst)
        assert list(zip(*(each.tolist() for each in numbered), strict=True)) == wanted
        found = table.find(dst, src)
        assert [each.tolist() for each in found] == [each.tolist() for each in reversed(numbered)]
    unknown = [name for name in ODD if name not in known]
    assert table.find(column(*unknown))[0].tolist() == [UNKNOWN] * len(unknown)
    return table, known


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(names, names), max_size=30), max_size=6), st.sampled_from([None, 0, 2]))
def test_numbers_are_those_of_a_dict(batches, bits):
    with pytest.MonkeyPatch.context() as patch:
        if bits is not None:
            patch.setattr(nametable, "hash_names", collide(bits))
        table, known = check_numbers(batches)
    assert len(table) == len(known)
    assert texts(table.names.stretch(0, len(table))) == list(known)
    assert texts(table.names.take(np.arange(len(known))[::-1].copy())) == list(known)[::-1]


def test_a_table_grows_and_keeps_every_number():
    table = NameTable()
    batch = [f"name {i % 70_000:x}" for i in range(200_000)]
    for begin in range(0, len(batch), 30_001):
        (numbers,) = table.number(column(*batch[begin : begin + 30_001]))
        assert numbers.tolist() == [i % 70_000 for i in range(begin, min(begin + 30_001, len(batch)))]
    assert len(table) == 70_000
    # A part of a column begins somewhere in its buffers.
    assert table.find(column(*batch)[100:103])[0].tolist() == [100, 101, 102]


def test_one_thread_looks_up_while_another_adds():
    table = NameTable()
    first = [f"first {i}" for i in range(1000)]
    table.number(column(*first))
    added = threading.Event()
    wrong: list[Any] = []

    def look_up() -> None:
        while not added.is_set():
            numbers = table.find(column(*first))[0]
            if not np.array_equal(numbers, np.arange(1000)):
                wrong.append(numbers)

    reader = threading.Thread(target=look_up)
    reader.start()
    for batch in range(20):
        table.number(column(*(f"{batch} {i}" for i in range(20_000))))
    added.set()
    reader.join()
    assert not wrong
    assert len(table) == 401_000


def test_a_number_that_nobody_has_is_refused():
    names = NameList()
    names.extend(column("a", "b"))
    for number in (-1, 2):
        with pytest.raises(IndexError, match="0 to 1"):
            names.take(np.array([0, number]))


# --- stored -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.lists(names, max_size=20), max_size=12), st.data())
def test_what_is_restored_is_what_there_was(batches, data):
    blobs, table, dictionary = Blobs(), NameTable(), Dictionary()
    for batch in batches:
        table.number(column(*batch))
        dictionary = stored(blobs, table, dictionary)
        if data.draw(st.booleans()) and (due := dictionary.due()) is not None:
            count, merged_bytes = merged(dictionary.entries[due], blobs.read)
            dictionary = dictionary.replace(Part(dictionary.entries[due][0].first, count, blobs.write(merged_bytes)))
    dictionary = Dictionary.from_json(dictionary.to_json())
    again = load_table(dictionary, blobs.read)
    known = texts(table.names.stretch(0, len(table)))
    assert texts(again.names.stretch(0, len(again))) == known
    assert again.names.digest == table.names.digest == load(dictionary, blobs.read).digest
    assert again.find(column(*known))[0].tolist() == list(range(len(known)))
    count = data.draw(st.integers(0, len(known)))
    older = load(dictionary, blobs.read, count=count)
    assert texts(older.stretch(0, len(older))) == known[:count]
    assert len(load(dictionary, blobs.read, older)) == len(known)


def test_an_object_is_a_table_of_numbers_and_names():
    data = encode(column("ñandú", "a\0"), 7)
    assert pq.read_table(pa.BufferReader(data)).to_pylist() == [
        {"number": 7, "name": "ñandú"},
        {"number": 8, "name": "a\0"},
    ]
    assert texts(decode(data, Part(7, 2, None))) == ["ñandú", "a\0"]


@pytest.mark.parametrize(
    "sizes", [[1] * 3000, [500, 530] * 1500, [10**7, *[300] * 2000], [3**i % 1000 + 1 for i in range(3000)]]
)
def test_there_are_never_many_objects_and_names_are_seldom_written_again(sizes):
    dictionary, written, most = Dictionary(), 0, 0
    for size in sizes:
        dictionary = dictionary.append(Part(len(dictionary), size, None), 0)
        if (due := dictionary.due()) is not None:
            parts = dictionary.entries[due]
            count = sum(part.count for part in parts)
            dictionary = dictionary.replace(Part(parts[0].first, count, None))
            written += count
        most = max(most, len(dictionary.entries))
    assert len(dictionary) == sum(sizes)
    assert most <= len(dictionary).bit_length() + FANOUT
    assert written <= sum(sizes) * len(sizes).bit_length()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda parts: parts[1:], id="first missing"),
        pytest.param(lambda parts: [parts[0], parts[2]], id="one missing"),
        pytest.param(lambda parts: [parts[0], *parts], id="one twice"),
        pytest.param(lambda parts: [*parts, Part(3, 0, 0)], id="empty"),
    ],
)
def test_objects_that_leave_a_gap_are_no_dictionary(spoil):
    with pytest.raises(CorruptSnapshot, match="comes next"):
        Dictionary(tuple(spoil([Part(number, 1, number) for number in range(3)])))


@pytest.mark.parametrize("data", [b"", b"PAR1", encode(column("a"), 1), encode(column("a", "b"), 0)])
def test_other_bytes_are_no_names(data):
    with pytest.raises(CorruptSnapshot):
        decode(data, Part(0, 1, None))


# --- planted bugs -------------------------------------------------------------------------------------------


def spoiled(change) -> Dictionary:
    """Store a dictionary whose delta is not what was captured; the blobs are those of `spoiled_blobs`."""
    table, dictionary, blobs = NameTable(), Dictionary(), Blobs()
    table.number(column("a", "b"))
    dictionary = stored(blobs, table, dictionary)
    table.number(column("c", "d"))
    written = change(["c", "d"])
    blob = blobs.write(encode(column(*written), 2))
    return load_table(dictionary.append(Part(2, len(written), blob), table.names.digest), blobs.read)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda new: new[:1], id="a name lost"),
        pytest.param(lambda new: [new[1], new[0]], id="two exchanged"),
        pytest.param(lambda new: [new[0], "a"], id="a name given two numbers"),
        pytest.param(lambda new: [new[0], "x"], id="another name"),
        pytest.param(lambda new: [*new, "e"], id="one too many"),
    ],
)
def test_a_delta_that_is_not_what_was_captured_is_found(change):
    with pytest.raises(CorruptSnapshot):
        spoiled(change)
    assert len(spoiled(lambda new: new)) == 4


ROWS = [[("a", "b"), ("c", "a")], [("d", "e"), ("b", "f")]]


def one_number_for_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash is taken for the name."""
    monkeypatch.setattr(nametable, "hash_names", collide(2))
    monkeypatch.setattr(nametable, "_look_up", nametable._look_up.py_func)
    monkeypatch.setattr(nametable, "_is_same", lambda *arguments: True)


def one_number_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of a batch falls behind by one."""
    original = NameList.written
    monkeypatch.setattr(NameList, "written", lambda names, count: original(names, count - 1))


def two_numbers_for_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is there is not found."""
    monkeypatch.setattr(nametable, "_look_up", nametable._look_up.py_func)
    monkeypatch.setattr(nametable, "_is_same", lambda *arguments: False)


@pytest.mark.parametrize("bug", [one_number_for_two_names, one_number_given_again, two_numbers_for_one_name])
def test_a_wrong_number_is_found(bug, monkeypatch):
    check_numbers(ROWS)
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        check_numbers(ROWS)

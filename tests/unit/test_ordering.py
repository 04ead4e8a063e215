"""The order of a snapshot's rows, against sorting and merging as one would write them."""

from __future__ import annotations

import numpy as np
import pytest

from graph_stream.ordering import NO_TIMES, SHORT_RUN, Ordered, Rows, in_order, merged, ordered
from graph_stream.ownership import virtual_partition

Subject = tuple[int, ...]
KINDS = (-1, 0, 1, 2, 3)


def some_rows(n: int, keys: int, seed: int, timed: bool = False) -> Rows:
    random = np.random.default_rng(seed)
    key, value = random.integers(-keys, keys, n), random.integers(-3, 3, n)
    kind = random.choice(KINDS, n).astype(np.int8)
    return Rows(kind, key, value, random.integers(0, 2**60, n) if timed else NO_TIMES)


def class_of(kind: int) -> int:
    return {-1: 0, 1: 0, 0: 1}.get(kind, kind)


def subject_of(kind: int, key: int, value: int) -> Subject:
    return (0, key, value) if class_of(kind) == 0 else (class_of(kind), key)


def subjects(rows: Rows) -> dict[Subject, tuple[int, ...]]:
    """Return each subject's newest row."""
    columns = [column.tolist() for column in rows if len(column)]
    return {subject_of(*row[:3]): row for row in zip(*columns, strict=True)}


def of_subjects(found: dict[Subject, tuple[int, ...]], timed: bool) -> Rows:
    columns = list(zip(*found.values(), strict=True)) or [()] * (4 if timed else 3)
    kind, key, value, time = (*columns, ()) if len(columns) == 3 else columns
    return Rows(np.array(kind, np.int8), *(np.array(column, np.int64) for column in (key, value, time)))


def assert_in_order(found: Ordered) -> None:
    shares = virtual_partition(found.rows.key).tolist()
    rows = zip(*(column.tolist() for column in found.rows[:3]), strict=True)
    places = [(share, *subject_of(*row)) for share, row in zip(shares, rows, strict=True)]
    assert places == sorted(places)
    assert found.starts.tolist() == np.searchsorted(shares, np.arange(257)).tolist()


@pytest.mark.parametrize("n", [0, 1, 2, SHORT_RUN - 1, SHORT_RUN, SHORT_RUN + 1, 1_000, 20_000])
@pytest.mark.parametrize("keys", [1, 40, 2**62])
@pytest.mark.parametrize("timed", [False, True])
def test_rows_are_ordered_and_equal_ones_stay_as_they_were(n, keys, timed):
    rows = some_rows(n, keys, n, timed)
    classes = np.array([class_of(kind) for kind in rows.kind.tolist()], int)
    order = np.lexsort((rows.value, rows.key, classes, virtual_partition(rows.key)))
    found = ordered(rows)
    for column, wanted in zip(found.rows, rows, strict=True):
        assert np.array_equal(column, wanted[order] if len(wanted) else wanted)
    assert_in_order(found)


def test_rows_in_order_are_not_copied():
    found = ordered(some_rows(500, 40, seed=1))
    assert in_order(*found).rows is found.rows


@pytest.mark.parametrize("wrong", ["class", "key", "value"])
def test_rows_in_another_order_are_put_in_order(wrong):
    rows = some_rows(5_000, 40, seed=1)
    share = virtual_partition(rows.key)
    columns = {"class": rows.kind, "key": -rows.key, "value": -rows.value}
    order = np.lexsort((rows.value, rows.key, columns[wrong], share))
    found = in_order(rows.where(order), np.searchsorted(share[order], np.arange(257)))
    assert_in_order(found)
    assert sorted(zip(*found.rows[:3], strict=True)) == sorted(zip(*rows[:3], strict=True))


@pytest.mark.parametrize("lengths", [(0, 0), (0, 50), (50, 0), (300, 300), (3_000, 10), (10, 0, 500, 70, 300)])
@pytest.mark.parametrize("timed", [False, True])
def test_of_rows_about_one_subject_the_newest_stays(lengths, timed):
    parts = [subjects(some_rows(length, 200, seed, timed)) for seed, length in enumerate(lengths)]
    wanted: dict[Subject, tuple[int, ...]] = {}
    for part in parts:
        wanted |= part
    assert len(wanted) < sum(len(part) for part in parts) or min(lengths) < 300
    found = merged([ordered(of_subjects(part, timed)) for part in parts])
    assert subjects(found.rows) == wanted
    assert len(found.rows.key) == len(wanted)
    assert_in_order(found)


@pytest.mark.parametrize("timed", [False, True])
def test_chosen_rows_know_where_their_virtual_partitions_start(timed):
    whole = ordered(some_rows(3_000, 10_000, 5, timed))
    chosen = whole.rows.value > 0
    found = whole.where(chosen)
    for column, of_whole in zip(found.rows, whole.rows, strict=True):
        assert np.array_equal(column, of_whole[chosen] if len(of_whole) else of_whole)
    assert_in_order(found)

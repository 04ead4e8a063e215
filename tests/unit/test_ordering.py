"""The order of a snapshot's rows, against sorting and merging as one would write them."""

from __future__ import annotations

import numpy as np
import pytest

from graph_stream.ordering import NO_TIMES, SHORT_RUN, Rows, dealt, in_order, merged
from graph_stream.ownership import virtual_partition


def some_rows(n: int, keys: int, seed: int, timed: bool = False) -> Rows:
    random = np.random.default_rng(seed)
    key, value = random.integers(-keys, keys, n), random.integers(-3, 3, n)
    kind = random.integers(-1, 2, n).astype(np.int8)
    return Rows(kind, key, value, random.integers(0, 2**60, n) if timed else NO_TIMES)


def subjects(rows: Rows, by_value: bool) -> dict[tuple[int, ...], tuple[int, ...]]:
    found = {}
    columns = [column.tolist() for column in rows if len(column)]
    for kind, key, value, *time in zip(*columns, strict=True):
        found[(key, value) if by_value else (key,)] = (kind, value, *time)
    return found


def of_subjects(found: dict[tuple[int, ...], tuple[int, ...]]) -> Rows:
    return Rows(
        np.array([row[0] for row in found.values()], np.int8),
        np.array([subject[0] for subject in found], np.int64),
        np.array([row[1] for row in found.values()], np.int64),
        np.array([time for row in found.values() for time in row[2:]], np.int64),
    )


def is_in_order(rows: Rows) -> bool:
    shares = virtual_partition(rows.key).tolist()
    found = list(zip(shares, rows.key.tolist(), rows.value.tolist(), strict=True))
    return found == sorted(found)


@pytest.mark.parametrize("n", [0, 1, 2, SHORT_RUN - 1, SHORT_RUN, SHORT_RUN + 1, 1_000, 20_000])
@pytest.mark.parametrize("keys", [1, 40, 2**62])
@pytest.mark.parametrize("timed", [False, True])
def test_rows_are_ordered_and_equal_ones_stay_as_they_were(n, keys, timed):
    rows = some_rows(n, keys, n, timed)
    order = np.lexsort((rows.value, rows.key, virtual_partition(rows.key)))
    for found, wanted in zip(in_order(rows), rows, strict=True):
        assert np.array_equal(found, wanted[order] if len(wanted) else wanted)


def test_rows_in_order_are_not_copied():
    rows = in_order(some_rows(500, 40, seed=1))
    assert in_order(rows) is rows


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize(("older_rows", "newer_rows"), [(0, 0), (0, 50), (50, 0), (300, 300), (3_000, 10)])
@pytest.mark.parametrize("timed", [False, True])
def test_of_two_rows_about_one_subject_the_newer_stays(by_value, older_rows, newer_rows, timed):
    older = subjects(some_rows(older_rows, 200, 2, timed), by_value)
    newer = subjects(some_rows(newer_rows, 200, 3, timed), by_value)
    if min(older_rows, newer_rows) >= 300:
        assert older.keys() & newer.keys()
    found = merged(in_order(of_subjects(older)), in_order(of_subjects(newer)), by_value)
    assert subjects(found, by_value) == older | newer
    assert len(found.key) == len(older | newer)
    assert is_in_order(found)


@pytest.mark.parametrize("timed", [False, True])
def test_parts_are_joined_by_virtual_partition_part_after_part(timed):
    parts = [
        in_order(Rows(np.full(n, number, np.int8), *some_rows(n, 10_000, number, timed)[1:]))
        for number, n in enumerate((700, 0, 30))
    ]
    rows, starts = dealt(parts)
    share = virtual_partition(rows.key)
    assert starts[0] == 0
    assert starts[-1] == len(rows.key) == 730
    found = list(zip(share.tolist(), *(column.tolist() for column in rows[:3]), strict=True))
    assert found == sorted(found)
    if timed:
        assert sorted(rows.time.tolist()) == sorted(time for part in parts for time in part.time.tolist())
    for virtual in range(256):
        assert set(share[starts[virtual] : starts[virtual + 1]].tolist()) <= {virtual}

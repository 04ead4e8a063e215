"""What waits in front of Ray, and what leaves together."""

from __future__ import annotations

import pytest

from exoflow.backlog import BUNDLE_TASKS, SHORT_SECONDS, SUBMISSIONS_PER_SLOT, Backlog


def names(count: int, first: int = 0) -> list[tuple[str, int]]:
    return [(f"t{number}", number) for number in range(first, first + count)]


def filled(count: int, cpus: float = 2.0, cpus_each: float = 1.0) -> Backlog:
    backlog = Backlog(cpus)
    for name in names(count):
        backlog.add("kind", cpus_each, name)
    return backlog


def test_before_anything_is_known_attempts_leave_alone_and_in_order():
    backlog = filled(100)
    taken = backlog.take()
    assert taken == [("kind", [name]) for name in names(int(2 * SUBMISSIONS_PER_SLOT))]
    assert backlog.take() == []
    assert names(1, 50)[0] in backlog


def test_a_kind_that_takes_more_slots_has_fewer_submissions():
    assert len(filled(100, 4.0, 2.0).take()) == 2 * SUBMISSIONS_PER_SLOT
    assert len(filled(100, 1.0, 0.5).take()) == 2 * SUBMISSIONS_PER_SLOT


def test_short_ones_leave_together_in_order():
    backlog = filled(1000)
    backlog.take()
    backlog.ended("kind", [1e-5])
    ((_, together),) = backlog.take()
    assert together == names(BUNDLE_TASKS, int(2 * SUBMISSIONS_PER_SLOT))


def test_never_so_many_that_a_slot_stays_empty():
    backlog = filled(int(2 * SUBMISSIONS_PER_SLOT) + 8)
    backlog.take()
    for _ in range(int(2 * SUBMISSIONS_PER_SLOT)):
        backlog.ended("kind", [1e-5])
    sizes = [len(together) for _, together in backlog.take()]
    assert sizes[0] == 2
    assert sum(sizes) == 8


@pytest.mark.parametrize("seconds", [2 * SHORT_SECONDS, 10.0])
def test_long_ones_leave_alone(seconds):
    backlog = filled(1000)
    backlog.take()
    backlog.ended("kind", [seconds])
    assert [len(together) for _, together in backlog.take()] == [1]


def test_one_long_body_among_short_ones_ends_the_bundles_for_a_while():
    backlog = filled(1000)
    backlog.take()
    backlog.ended("kind", [1e-5] * 5 + [1.0])
    assert [len(together) for _, together in backlog.take()] == [1]
    backlog.ended("kind", [1e-5] * 40)
    assert [len(together) for _, together in backlog.take()] == [BUNDLE_TASKS]


def test_what_nobody_wants_any_more_does_not_leave():
    backlog = filled(20)
    backlog.drop(("t3", 3))
    backlog.drop(("unknown", 1))
    assert ("kind", [("t3", 3)]) not in backlog.take()
    assert ("t3", 3) not in backlog


def test_kinds_do_not_wait_for_each_other():
    backlog = filled(100)
    backlog.add("other", 1.0, ("other", 1))
    assert ("other", [("other", 1)]) in backlog.take()

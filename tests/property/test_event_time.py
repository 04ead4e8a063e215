"""Event time, against its definition after every epoch, and with one hash however the work is divided."""

from __future__ import annotations

import dataclasses
import itertools
from functools import reduce
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream import records
from graph_stream.algorithms import Parameters
from graph_stream.epoch import combine
from graph_stream.eventtime import EventTime
from graph_stream.graph import InvariantViolated, PartitionState
from graph_stream.snapshot import Changes, decode, encode
from graph_stream.wheel import BUCKETS, file, unfile
from tests.property.online_model import (
    Run,
    always_threads,
    assert_tolerance_met,
    assert_within,
    base_of,
    exact_influence,
    joined,
    merge,
    restored,
)
from tests.property.test_online_oracle_shapes import influence_by_networkx
from tests.property.time_model import TimedModel, TimedStream, timed_parameters, timed_streams

DIVISIONS = list(itertools.product([1, 2, 3], [1, 2], ["sparse", "dense"]))


@settings(max_examples=300, deadline=None)
@given(parameters=timed_parameters, stream=timed_streams(), partitions=st.sampled_from([1, 2]))
def test_every_epoch_has_the_edges_of_the_definition_and_scores_within_the_bound(parameters, stream, partitions):
    run, model = Run(parameters, partitions), TimedModel(parameters)
    p = parameters.retweet_probability
    for epoch in stream:
        summary = run.apply(epoch)
        counts = model.apply(epoch)
        assert {name: getattr(summary, name) for name in counts} == counts
        assert summary.state_hash == model.state_hash()
        scores = run.scores()
        assert_within(scores, exact_influence(model.edges(), p), summary.error_bound)
        assert_tolerance_met(summary, parameters.tolerance)
        run.check_invariants()
        if p >= 0.05:
            assert_within(scores, influence_by_networkx(model.edges(), p), summary.error_bound, absolute=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    parameters=timed_parameters,
    stream=timed_streams(),
    divisions=st.lists(st.sampled_from(DIVISIONS), min_size=4, max_size=4, unique=True),
    cut=st.integers(0, 6),
)
def test_one_hash_for_any_division_and_through_a_restore(parameters, stream, divisions, cut):
    model = TimedModel(parameters)
    expected = []
    for epoch in stream:
        model.apply(epoch)
        expected.append(model.state_hash())
    # More than one go also for few expired edges.
    with always_threads(), patch.object(records, "_BLOCK_EXPIRED", 1):
        for before, after in itertools.pairwise([*divisions, divisions[0]]):
            run = Run(parameters, *before)
            for number, epoch in enumerate(stream):
                if number == min(cut, len(stream) - 1):
                    run = restored(run, base_of(run), *after)
                    run.check_invariants()
                assert run.apply(epoch).state_hash == expected[number], (before, after)


@settings(max_examples=80, deadline=None)
@given(parameters=timed_parameters, stream=timed_streams(), partitions=st.sampled_from([1, 3]))
def test_deltas_add_up_to_the_state_with_its_times_and_tombstones(parameters, stream, partitions):
    run, model = Run(parameters, partitions), TimedModel(parameters)
    base = Changes.none()
    deltas = []
    for epoch in stream:
        run.apply(epoch)
        model.apply(epoch)
        deltas.append(joined([decode(encode(each.capture(), run.epoch, run.epoch)) for each in run.states]))
        base = merge(base, deltas[-1], base=True)
        edges = {(1, *edge): model.stands[edge][0] for edge in model.edges()}
        buried = {(-1, *pair): time for pair, time in model.tombstones().items()}
        assert pairs_of(base) == edges | buried
        assert pairs_of(joined([each.capture_all() for each in run.states])) == edges | buried
        assert base.watermark == model.used_watermark
    folded = reduce(lambda older, newer: merge(older, newer, base=False), deltas)
    assert rows_of(merge(folded, Changes.none(), base=True)) == rows_of(base)
    twin = restored(run, encode(base, 1, run.epoch), partitions % 3 + 1)
    assert twin.apply([]).state_hash == run.apply([]).state_hash


def pairs_of(changes: Changes) -> dict[tuple[int, int, int], int]:
    kind, key, value, time = (column.tolist() for column in changes.rows())
    rows = zip(kind, key, value, time, strict=True)
    return {(kind, key, value): time for kind, key, value, time in rows if abs(kind) == 1}


def rows_of(changes: Changes) -> set[tuple[int, ...]]:
    return set(zip(*(column.tolist() for column in changes.rows()), strict=True))


def long_stream(seed: int, epochs: int, records: int, ids: int, disorder: int) -> TimedStream:
    """Return a stream whose time goes on by a record a microsecond, give or take ``disorder``."""
    random = np.random.default_rng(seed)
    stream = []
    for epoch in range(epochs):
        pairs = (ids * random.random((records, 2)) ** 2).astype(np.int64)
        op = np.where(random.random(records) < 0.25, -1, 1)
        time = epoch * records + np.arange(records) - random.integers(0, disorder, records)
        stream.append(list(map(tuple, np.column_stack([pairs, op, time]).tolist())))
    return stream


@pytest.mark.parametrize(
    "event_time", [EventTime(window=3000), EventTime(window=3000, allowed_lateness=200), EventTime(None, 200)]
)
def test_a_long_stream_keeps_only_what_counts(event_time):
    parameters = Parameters(retweet_probability=0.5, tolerance=1e-2, event_time=event_time)
    model, seen = TimedModel(parameters), {"late": 0, "expired": 0, "tombstones": 0}
    runs = [Run(parameters, 1, 1, "sparse"), Run(parameters, 3, 2, "dense")]
    for number, epoch in enumerate(long_stream(3, 14, 1000, 300, disorder=400)):
        counts = model.apply(epoch)
        seen = {name: count + counts[name] for name, count in seen.items()}
        for run in runs:
            assert run.apply(epoch).state_hash == model.state_hash()
        if number == 7:
            runs.append(restored(runs[1], base_of(runs[1]), 2))
    for run in runs:
        run.check_invariants()
    assert seen["tombstones"] > 0
    assert (seen["expired"] > 0) == (event_time.window is not None)
    assert (seen["late"] > 0) == (event_time.allowed_lateness is not None)


# --- the tests can fail -------------------------------------------------------------------------------------

WINDOW = Parameters(retweet_probability=0.5, event_time=EventTime(window=10))
REFRESHED = [[(1, 2, 1, 1), (3, 2, 1, 6)], [(1, 2, 1, 10)], [(4, 2, 1, 13)], [], [(4, 2, 1, 26)], []]
BURIED = [[(1, 2, 1, 0), (3, 2, 1, 5)], [(1, 2, -1, 6)], [(3, 2, 1, 7)], [], [(1, 2, 1, 4)], [(1, 2, 1, 6)]]


def epochs_with_other_edges(stream: TimedStream) -> list[int]:
    """Return the epochs at which a run has not the edges of the definition."""
    run, model = Run(WINDOW), TimedModel(WINDOW)
    wrong = []
    for number, epoch in enumerate(stream, 1):
        run.apply(epoch)
        model.apply(epoch)
        adjacency = run.states[0]._adjacency
        slots = adjacency.edge_slots()[:2]
        if set(zip(*(adjacency.vertices.id[each].tolist() for each in slots), strict=True)) != model.edges():
            wrong.append(number)
    return wrong


def test_nothing_is_wrong_with_these_streams():
    assert epochs_with_other_edges(REFRESHED) == epochs_with_other_edges(BURIED) == []


def test_a_tombstone_dropped_too_early_is_caught(monkeypatch):
    original = records.forget

    def early(tombstones, horizon, first, chains, *rest):
        return original(tombstones, horizon + 9, 0, BUCKETS, *rest)

    monkeypatch.setattr(records, "forget", early)
    assert epochs_with_other_edges(BURIED) == [5]


def test_a_refresh_that_does_not_move_the_expiry_is_caught(monkeypatch):
    original = records.link

    def forgetful(vertices, storage, *rest):
        before = storage.times.copy()
        answer = original(vertices, storage, *rest)
        # The stream's first edge lies where the arena begins.
        storage.times[0] = before[0] or storage.times[0]
        return answer

    monkeypatch.setattr(records, "link", forgetful)
    assert epochs_with_other_edges(REFRESHED) == [4, 5]


def test_an_edge_that_outlives_its_time_is_caught(monkeypatch):
    original = records.expire
    monkeypatch.setattr(
        records,
        "expire",
        lambda vertices, storage, oldest, bound, *rest: original(vertices, storage, oldest, bound - 1, *rest),
    )
    run = Run(WINDOW)
    run.apply([(1, 2, 1, 0), (3, 2, 1, 10)])
    run.apply([])
    with pytest.raises(InvariantViolated, match="expired edges: 1 differ"):
        run.check_invariants()


def test_an_edge_older_than_its_follower_is_filed_is_caught():
    run = Run(WINDOW)
    run.apply([(1, 2, 1, 0), (1, 3, 1, 5)])
    adjacency = run.states[0]._adjacency
    (slot,) = adjacency.slots_of(np.array([1]))
    unfile(adjacency.oldest, slot)
    file(adjacency.oldest, slot, 5)
    with pytest.raises(InvariantViolated, match="edges older than filed"):
        run.check_invariants()


def test_members_at_different_watermarks_are_caught():
    results = [PartitionState(WINDOW, 0, 2).result, PartitionState(WINDOW, 1, 2).result]
    with pytest.raises(ValueError, match="disagree on epoch, rounds or watermark"):
        combine([results[0], dataclasses.replace(results[1], watermark=5)], WINDOW)

"""Event time in small: times from records, bounds from a watermark, and the wheel against a sorted list."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream import wheel
from graph_stream.algorithms import Parameters
from graph_stream.config import RunConfig
from graph_stream.epoch import combine
from graph_stream.eventtime import GREATEST_TIME, NEVER, EventTime, EventTimes, advanced, in_seconds, microseconds
from graph_stream.graph import PartitionState
from graph_stream.rounds import alone
from graph_stream.snapshot import Changes, decode, encode, read_header
from tests.property.online_model import Run, merge

WINDOW = Parameters(event_time=EventTime(window=10))


# --- times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, 0),
        (-1.5, -1_500_000),
        (1_700_000_000.123456, 1_700_000_000_123_456),
        (1.0000004, 1_000_000),
        (1.0000006, 1_000_001),
        (1e18, GREATEST_TIME),
        (-1e18, -GREATEST_TIME),
    ],
)
def test_times_are_rounded_to_microseconds_and_cut_off_far_from_today(seconds, expected):
    assert microseconds(np.array([seconds])).tolist() == [expected]


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="time of record 1 is not finite"):
        microseconds(np.array([1.0, seconds]))


@given(st.lists(st.floats(-1e18, 1e18), min_size=1))
def test_rounding_keeps_the_order(seconds):
    made = microseconds(np.array(sorted(seconds)))
    assert np.all(np.diff(made) >= 0)
    assert advanced(NEVER, np.array(seconds)) == made[-1]
    assert advanced(int(made[-1]), np.array(seconds)) == made[-1]


def test_a_watermark_never_falls_and_nothing_moves_it_but_records():
    assert advanced(7, None) == advanced(7, np.empty(0)) == advanced(7, np.array([-5.0])) == 7
    assert (in_seconds(NEVER), in_seconds(1_500_000)) == (None, 1.5)


@pytest.mark.parametrize(
    ("event_time", "expiry", "horizon", "reach"),
    [
        (EventTime(window=100), -99, -99, 100),
        (EventTime(window=100, allowed_lateness=30), -99, -30, 30),
        (EventTime(window=100, allowed_lateness=0), -99, 0, 0),
        (EventTime(window=100, allowed_lateness=300), -99, -99, 100),
        (EventTime(allowed_lateness=30), NEVER, -30, 30),
    ],
)
def test_bounds_follow_from_the_watermark(event_time, expiry, horizon, reach):
    assert (event_time.expiry(0), event_time.horizon(0), event_time.reach) == (expiry, horizon, reach)
    assert (event_time.expiry(NEVER), event_time.horizon(NEVER)) == (NEVER, NEVER)
    at_the_end = event_time.horizon(-GREATEST_TIME)
    assert -(2**63) < at_the_end < 0


def test_an_event_time_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="needs a window or an allowed lateness"):
        EventTime()
    assert EventTime.of_seconds(None, None) is None
    assert EventTime.of_seconds(0.5, 0) == EventTime(500_000, 0)


def test_a_lateness_beyond_the_window_is_as_none_also_for_the_hash():
    digests = [
        Parameters(event_time=event_time).digest()
        for event_time in (
            None,
            EventTime(10),
            EventTime(10, 10),
            EventTime(10, 99),
            EventTime(10, 9),
            EventTime(None, 10),
        )
    ]
    assert digests[1] == digests[2] == digests[3]
    assert len(set(digests)) == 4


# --- a member -----------------------------------------------------------------------------------------------


def records(*rows: tuple[int, int, int, int]) -> tuple[np.ndarray, ...]:
    src, dst, op, time = np.array(rows, np.int64).reshape(-1, 4).T.copy()
    return src, dst, op.astype(np.int8), time


def test_times_that_do_not_fit_are_refused_and_nothing_changes():
    src, dst, op, time = records((1, 2, 1, 5), (2, 3, 1, 6))
    state, untimed = PartitionState(WINDOW), PartitionState(Parameters())
    with pytest.raises(ValueError, match="exactly if the parameters have an event time"):
        state.apply(1, src, dst, op, alone)
    with pytest.raises(ValueError, match="exactly if the parameters have an event time"):
        untimed.apply(1, src, dst, op, alone, EventTimes(time, NEVER))
    with pytest.raises(ValueError, match=r"one for each of 2 records, not \(1,\)"):
        state.apply(1, src, dst, op, alone, EventTimes(time[:1], NEVER))
    assert state.apply(1, src, dst, op, alone, EventTimes(time, 3)).edges == 2
    with pytest.raises(ValueError, match="a watermark of 2 cannot follow 3"):
        state.apply(2, src, dst, op, alone, EventTimes(time, 2))
    with pytest.raises(ValueError, match="rankings over one graph have one event time"):
        PartitionState((WINDOW, Parameters()))


def test_a_state_is_restored_with_event_time_or_without_as_it_was():
    run = Run(WINDOW)
    run.apply([(1, 2, 1, 5)])
    base = run.states[0].capture_all()
    with pytest.raises(ValueError, match="one has event time and the other has not"):
        PartitionState(Parameters()).restore([base], alone, 1)
    untimed = Run(Parameters())
    untimed.apply([(1, 2, 1)])
    with pytest.raises(ValueError, match="one has event time and the other has not"):
        PartitionState(WINDOW).restore([untimed.states[0].capture_all()], alone, 1)


def test_the_watermark_alone_changes_the_hash():
    run, twin = Run(WINDOW), Run(WINDOW)
    assert run.apply([(1, 2, 1, 5)]).state_hash == twin.apply([(1, 2, 1, 5)]).state_hash
    run.watermark = 6
    assert run.apply([]).state_hash != twin.apply([]).state_hash


def test_state_hash_with_event_time_of_this_format_version():
    # A change of this literal breaks every stored run with event time: it needs a new format version.
    run = Run(Parameters(retweet_probability=0.5, event_time=EventTime(window=10)))
    run.apply([(1, 2, 1, 5), (2, 3, 1, 1), (3, 1, -1, 9), (-1, 2**62, 1, 12)])
    assert run.apply([(2, 3, -1, 1)]).state_hash == "a617e81415f78002018094aadc878f96"


def test_vertices_that_only_a_tombstone_names_do_not_exist():
    run = Run(Parameters(event_time=EventTime(allowed_lateness=100)), partitions=2)
    summary = run.apply([(1, 2, -1, 5), (3, 4, 1, 5), (3, 4, -1, 6)])
    assert (summary.vertices, summary.edges, summary.tombstones) == (0, 0, 2)
    run.check_invariants()


def test_memory_without_event_time_is_what_it_was():
    untimed, timed = PartitionState(Parameters()), PartitionState(WINDOW)
    assert (
        len(untimed._storage.times) == len(untimed._adjacency.oldest.due) == len(untimed._adjacency.tombstones.src) == 0
    )
    assert len(timed._storage.times) == len(timed._storage.arena)


def test_slots_of_vertices_that_come_and_go_leave_nothing_in_the_wheel():
    run = Run(WINDOW)
    for epoch in range(60):
        run.apply([(1000 * epoch + vertex, vertex, 1, 12 * epoch) for vertex in range(200)])
        run.check_invariants()
    # Two epochs are alive at a time, before the older one expires.
    assert len(run.states[0]._vertices.id) <= 1024


# --- snapshots ----------------------------------------------------------------------------------------------


def test_an_object_without_event_time_has_no_column_for_it():
    run = Run(Parameters())
    run.apply([(1, 2, 1)])
    assert pq.read_table(pa.BufferReader(encode(run.states[0].capture(), 1, 1))).schema.names == [
        "kind",
        "key",
        "value",
    ]


def test_an_object_with_event_time_has_the_documented_layout():
    run = Run(WINDOW)
    run.apply([(1, 2, 1, 5), (3, 4, -1, 6)])
    run.apply([(1, 2, 1, 7), (5, 6, 1, 30)])
    run.apply([])
    data = encode(run.states[0].capture(), 3, 3)
    rows = sorted(map(tuple, (row.values() for row in pq.read_table(pa.BufferReader(data)).to_pylist())))
    assert [row for row in rows if abs(row[0]) == 1] == [(-1, 1, 2, None), (-1, 3, 4, None)]
    assert all(row[3] is None for row in rows)
    assert read_header(data).watermark == 30
    base = decode(encode(merge(run.states[0].capture_all(), Changes.none(), base=True), 1, 3))
    assert (base.inserted_time.tolist(), base.deleted_time.tolist(), base.watermark) == ([30], [], 30)


# --- options ------------------------------------------------------------------------------------------------


def test_options_that_are_not_given_leave_no_trace_in_the_record_of_a_run():
    plain = RunConfig(("edges.txt",)).checked()
    assert not {"window", "allowed_lateness"} & plain.to_json().keys()
    timed = RunConfig(("edges.txt",), columns="src,dst, time", window=60.0).checked()
    assert RunConfig.from_json(json.loads(json.dumps(timed.to_json()))) == timed
    assert "--window: None -> 60.0" in plain.difference(timed)
    assert "--window: 60.0 -> None" in timed.difference(plain)
    assert [each.event_time for each in timed.parameters()] == [EventTime(60_000_000)]


# --- the wheel ----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    span=st.sampled_from([1, 50, 10**4, 10**9]),
    steps=st.lists(
        st.tuples(st.integers(0, 2 * 10**4), st.lists(st.integers(0, 10**5), max_size=6), st.integers(0, 5)),
        max_size=12,
    ),
)
def test_a_sweep_finds_what_is_due_and_nothing_else(span, steps):
    made = wheel.fitted(wheel.wheel_for(span), 128)
    due: dict[int, int] = {}
    before, bound, entries = NEVER, -30_000, iter(range(128))
    for step, delays, taken in steps:
        for delay in delays:
            due[entry := next(entries)] = bound + delay
            wheel.file(made, entry, bound + delay)
        for entry in sorted(due)[:taken]:
            wheel.unfile(made, entry)
            del due[entry]
        bound += step
        first, chains = wheel.sweep_of(made, before, bound)
        found = set()
        for chain in range(chains):
            entry = int(made.heads[(first + chain) % wheel.BUCKETS])
            while entry >= 0:
                if made.due[entry] < bound:
                    found.add(entry)
                entry = int(made.following[entry])
        assert found == {entry for entry, time in due.items() if time < bound}
        for entry in found:
            wheel.unfile(made, entry)
            del due[entry]
        before = bound
    assert {entry for entry in range(128) if wheel.is_filed(made, entry)} == due.keys()


def test_a_wheel_that_takes_no_entries_has_nothing_to_sweep():
    assert wheel.sweep_of(wheel.no_wheel(), NEVER, 5) == (0, 0)
    assert len(wheel.fitted(wheel.no_wheel(), 100).due) == 0
    assert combine([PartitionState(Parameters()).result], Parameters()).watermark is None

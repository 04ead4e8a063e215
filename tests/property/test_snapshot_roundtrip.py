"""Snapshots of any epoch, folded in any way, restored into any number of members, continue identically."""

from __future__ import annotations

from functools import reduce
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream.epoch import combine
from graph_stream.snapshot import Changes, Entry, Manifest, decode, encode, plan_compaction
from tests.property.online_model import Model, Record, Run, joined, merge, parameters, random_stream, restored, streams

ALL = range(256)


def state_hash(run: Run) -> str:
    return combine([state.result for state in run.states], run.parameters).state_hash


def delta(run: Run) -> Changes:
    """Return what all members captured of the last epoch, by way of their encoded objects."""
    return joined([decode(encode(state.capture(), run.epoch, run.epoch)) for state in run.states])


def rows_of(changes: Changes) -> set[tuple[int, int, int]]:
    return set(zip(*(column.tolist() for column in changes.rows()[:3]), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    parameters=parameters,
    stream=streams,
    before=st.sampled_from([1, 2, 4]),
    after=st.sampled_from([1, 2, 3, 4]),
    cut=st.integers(0, 5),
)
def test_restored_state_continues_identically(parameters, stream, before, after, cut):
    run = Run(parameters, before)
    cut = min(cut, len(stream))
    folded = Changes.none()
    for records in stream[:cut]:
        run.apply(records)
        folded = merge(folded, delta(run), base=True)
    twin = restored(run, encode(folded, 1, max(cut, 1)), after)
    assert state_hash(twin) == state_hash(run)
    twin.check_invariants()
    assert twin.scores() == run.scores()
    for records in stream[cut:]:
        assert run.apply(records).state_hash == twin.apply(records).state_hash
    assert twin.scores() == run.scores()


def state_of(model: Model) -> dict[tuple[int, ...], int]:
    """Return what a snapshot of the model's state says: 1 per edge, c per vertex."""
    contributions = {(vertex,): c for vertex, c in model.contribution.items() if c}
    return dict.fromkeys(model.edges(), 1) | contributions


def difference(before: dict[tuple[int, ...], int], after: dict[tuple[int, ...], int]) -> set[tuple[int, int, int]]:
    """Return the rows a delta between two states must have."""
    rows: set[tuple[int, int, int]] = set()
    for subject in before.keys() | after.keys():
        if before.get(subject, 0) != after.get(subject, 0):
            if len(subject) == 1:
                rows.add((0, subject[0], after.get(subject, 0)))
            else:
                rows.add((1 if subject in after else -1, *subject))
    return rows


@settings(max_examples=80, deadline=None)
@given(parameters=parameters, stream=streams)
def test_capture_is_the_net_change_of_the_epoch(parameters, stream):
    run, model = Run(parameters, 2), Model(parameters)
    for records in stream:
        before = state_of(model)
        run.apply(records)
        model.apply(records)
        captured = delta(run)
        assert len(captured) == len(rows_of(captured))
        assert rows_of(captured) == difference(before, state_of(model))
        whole = rows_of(run.states[0].capture_all()) | rows_of(run.states[1].capture_all())
        assert whole == difference({}, state_of(model))


def fold(epochs: list[Changes], from_start: bool) -> dict[tuple[int, ...], int]:
    """Fold changes by dictionary: per edge the last sign, per vertex the last contribution."""
    last: dict[tuple[int, ...], int] = {}
    for changes in epochs:
        for kind, key, value in rows_of(changes):
            last[(key, value) if kind else (key,)] = kind or value
    if from_start:
        return {about: what for about, what in last.items() if what != (0 if len(about) == 1 else -1)}
    return last


@settings(max_examples=100, deadline=None)
@given(stream=streams, base=st.booleans())
def test_merge_is_last_writer_wins_and_associative(stream, base):
    run = Run(parameters_of_half())
    epochs: list[Changes] = []
    for records in stream:
        run.apply(records)
        epochs.append(run.states[0].capture())
    left = reduce(lambda older, newer: merge(older, newer, base), epochs)
    tail = reduce(lambda older, newer: merge(older, newer, False), epochs[1:], Changes.none())
    right = merge(epochs[0], tail, base)
    assert rows_of(left) == rows_of(right)
    # A first delta alone was never merged, so nothing was dropped from it; it has nothing to drop either.
    assert fold([left], False) == fold(epochs, base)


def parameters_of_half() -> Any:
    from graph_stream.algorithms import Parameters

    return Parameters(retweet_probability=0.5)


def test_base_over_compacted_deltas_restores_every_tenth_epoch():
    run = Run(parameters_of_half(), 2)
    manifest = Manifest()
    stream: list[list[Record]] = random_stream(seed=1, epochs=70, records=60, ids=50, deletes=0.45)
    for epoch, records in enumerate(stream, 1):
        run.apply(records)
        changes = delta(run)
        entry = Entry(epoch, epoch, len(changes), encode(changes, epoch, epoch))
        manifest = manifest.append(entry, sum(state.rows for state in run.states))
        while (due := plan_compaction(manifest, fanout=4)) is not None:
            entries = manifest.entries[due]
            is_base = entries[0].first_epoch == 1
            merged = reduce(lambda older, newer: merge(older, newer, is_base), [decode(e.blob) for e in entries])
            first, last = entries[0].first_epoch, entries[-1].last_epoch
            manifest = manifest.replace(Entry(first, last, len(merged), encode(merged, first, last)))
        if epoch % 10 == 0:
            objects = [decode(entry.blob) for entry in manifest.entries]
            folded = reduce(lambda older, newer: merge(older, newer, True), objects, Changes.none())
            twin = restored(run, encode(folded, 1, epoch), 3)
            assert state_hash(twin) == state_hash(run)
            assert len(manifest.entries) <= 12

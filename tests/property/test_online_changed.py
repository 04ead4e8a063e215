"""What an epoch is said to have changed is what tells the state after it from the one before: no more, no less."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream import ranking
from graph_stream.algorithms import Parameters
from graph_stream.graph import PartitionState
from tests.property.online_model import Record, Run, base_of, restored, streams

BEST = 3


class Watched(Run):
    """A run that tells what its epochs change."""

    def __init__(
        self, parameters: Parameters, partitions: int = 1, threads: int = 1, execution: str = "auto", best: int = BEST
    ) -> None:
        super().__init__(parameters, partitions, threads, execution)
        self.states = [
            PartitionState(parameters, index, partitions, threads, execution, watched={0: best})
            for index in range(partitions)
        ]

    def changes(self) -> dict[int, tuple[int, bool]]:
        found: dict[int, tuple[int, bool]] = {}
        for state in self.states:
            changed = state.changed[0]
            columns = (changed.vertex, changed.influence, changed.left)
            for vertex, influence, left in zip(*(column.tolist() for column in columns), strict=True):
                assert vertex not in found
                found[vertex] = (influence, left)
        return found

    def best(self, when: str) -> list[tuple[int, int]]:
        """Return the best vertices of all members, before or after the last epoch."""
        lists = [getattr(state.changed[0], when) for state in self.states]
        pairs = [pair for each in lists for pair in zip(each.influence.tolist(), each.vertex.tolist(), strict=True)]
        return sorted(((vertex, influence) for influence, vertex in pairs), key=lambda pair: (-pair[1], pair[0]))[:BEST]


def exactly(run: Run) -> dict[int, int]:
    """Return the influence of all vertices in fixed point."""
    return {vertex: round(score * run.parameters.scale) for vertex, score in run.scores().items()}


def check_epochs(run: Watched, epochs: Sequence[Sequence[Record]], before: dict[int, int] | None = None) -> None:
    before = before or {}
    for records in epochs:
        run.apply(records)
        after = exactly(run)
        came = {vertex: (x, False) for vertex, x in after.items() if before.get(vertex, -1) != x}
        left = dict.fromkeys(before.keys() - after.keys(), (0, True))
        assert run.changes() == came | left
        for when, state in (("before", before), ("after", after)):
            assert run.best(when) == sorted(state.items(), key=lambda pair: (-pair[1], pair[0]))[:BEST]
        before = after


@pytest.mark.parametrize("execution", ["sparse", "dense"])
@given(streams, st.sampled_from([0.00037, 0.5, 0.95]), st.sampled_from([1, 2, 3]))
@settings(max_examples=20, deadline=None)
def test_changes_are_the_difference_of_two_states(
    execution: str, epochs: Sequence[Sequence[Record]], p: float, partitions: int
) -> None:
    check_epochs(Watched(Parameters(retweet_probability=p), partitions, execution=execution), epochs)


@given(streams, st.sampled_from(["sparse", "dense"]), st.sampled_from([1, 2]))
@settings(max_examples=15, deadline=None)
def test_also_where_rounds_are_cut_off(epochs: Sequence[Sequence[Record]], execution: str, partitions: int) -> None:
    with patch.object(ranking, "ROUND_CAP", 2):
        check_epochs(Watched(Parameters(retweet_probability=0.9), partitions, execution=execution), epochs)


@given(streams, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]))
@settings(max_examples=15, deadline=None)
def test_after_a_restore_an_epoch_changes_what_it_would_have(
    epochs: Sequence[Sequence[Record]], partitions: int, restored_partitions: int
) -> None:
    parameters = Parameters(retweet_probability=0.5)
    run = Watched(parameters, partitions)
    half = len(epochs) // 2
    check_epochs(run, epochs[:half])
    before = exactly(run)
    twin = restored(run, base_of(run), restored_partitions, kind=Watched)
    for each in (twin, run):
        assert isinstance(each, Watched)
        check_epochs(each, epochs[half:], before)
    assert exactly(twin) == exactly(run)


def test_an_influence_that_comes_back_has_not_changed() -> None:
    run = Watched(Parameters(retweet_probability=0.5))
    run.apply([(1, 2, 1), (3, 2, 1)])
    run.apply([(1, 2, -1), (1, 2, 1)])
    assert run.changes() == {}


def test_nothing_is_kept_where_nobody_watches() -> None:
    run = Run(Parameters())
    run.apply([(1, 2, 1)])
    assert run.states[0].changed == {}

"""What the online tier is measured against computes what the online tier computes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.reference import (
    Answer,
    OutOfRoom,
    PlainRanking,
    ReferenceKernel,
    WrongState,
    check,
    fingerprint,
)
from graph_stream.algorithms import Parameters
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState
from graph_stream.rounds import alone
from ingest.source import Records
from ingest.synthetic import Rmat

SCALE, EPOCH_EDGES = 8, 400


def epochs(edges: int, deletes: float) -> list[Records]:
    rmat = Rmat(SCALE, edges, seed=7, deletes=deletes)
    return [rmat.records(start, min(start + EPOCH_EDGES, edges)) for start in range(0, edges, EPOCH_EDGES)]


def reference_after(parameters: Parameters, parts: list[Records]) -> ReferenceKernel:
    kernel = ReferenceKernel(parameters, 1 << SCALE, 1 << 16)
    for part in parts:
        kernel.apply(part.src, part.dst, part.op)
    return kernel


def same(one: Answer, other: Answer) -> bool:
    def edges(answer: Answer) -> set[tuple[int, int]]:
        return set(zip(answer.follower.tolist(), answer.followed.tolist(), strict=True))

    columns = ("vertex", "influence", "contribution")
    return edges(one) == edges(other) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in columns
    )


@pytest.mark.parametrize("probability", [0.0, 0.00037, 0.5, 0.9])
def test_all_three_agree_after_every_epoch(probability):
    parameters = Parameters(retweet_probability=probability)
    state = PartitionState(parameters)
    kernel, plain = reference_after(parameters, []), PlainRanking(parameters)
    deleted = 0
    for number, part in enumerate(epochs(8_000, deletes=0.4), 1):
        result = state.apply(number, part.src, part.dst, part.op, alone)
        deleted += result.deleted
        kernel.apply(part.src, part.dst, part.op)
        plain.apply(zip(part.src.tolist(), part.dst.tolist(), part.op.tolist(), strict=True))
        answer = kernel.answer()
        assert same(answer, plain.answer())
        assert fingerprint(answer, parameters) == combine([result], parameters).state_hash
        vertex, influence = state.scores()
        order = np.argsort(vertex)
        assert np.array_equal(vertex[order], answer.vertex)
        assert np.array_equal(influence[order], answer.influence / parameters.scale)
        assert check(answer, parameters) <= result.e_plus + result.e_minus
    assert deleted > 1_000
    assert state.max_degree > 64


def test_a_graph_that_goes_away_leaves_nothing():
    parameters = Parameters(retweet_probability=0.5)
    parts = epochs(2_000, deletes=0.0)
    kernel, plain = reference_after(parameters, parts), PlainRanking(parameters)
    for part in parts:
        plain.apply(zip(part.src.tolist(), part.dst.tolist(), part.op.tolist(), strict=True))
    for part in parts:
        kernel.apply(part.src, part.dst, -part.op)
        plain.apply(zip(part.src.tolist(), part.dst.tolist(), (-part.op).tolist(), strict=True))
    for answer in (kernel.answer(), plain.answer()):
        assert not len(answer.vertex)
        assert check(answer, parameters) == 0.0
    assert not kernel._influence.any()
    assert not kernel._contribution.any()


def test_what_was_inserted_and_deleted_again_in_one_epoch_changes_nothing():
    parameters = Parameters(retweet_probability=0.5)
    parts = epochs(2_000, deletes=0.0)
    kernel = reference_after(parameters, parts)
    before = kernel.answer()
    src, dst = np.array([3, 3, 3, 9], np.int64), np.array([200, 200, 200, 9], np.int64)
    assert not np.any((before.follower == 3) & (before.followed == 200))
    kernel.apply(src, dst, np.array([1, 1, -1, 1], np.int8))
    assert same(before, kernel.answer())


@pytest.mark.parametrize("spoilt", ["influence", "contribution", "edge", "twice"])
def test_the_check_finds_what_is_wrong(spoilt):
    parameters = Parameters(retweet_probability=0.5)
    answer = reference_after(parameters, epochs(2_000, deletes=0.1)).answer()
    assert 0 < check(answer, parameters) <= parameters.tolerance * (1 + 2.0**-20)
    follower, followed = answer.follower.copy(), answer.followed.copy()
    influence, contribution = answer.influence.copy(), answer.contribution.copy()
    if spoilt == "influence":
        influence[5] += 1
    elif spoilt == "contribution":
        contribution[np.searchsorted(answer.vertex, follower[0])] *= 2
    elif spoilt == "edge":
        follower, followed = follower[1:], followed[1:]
    else:
        follower[1], followed[1] = follower[0], followed[0]
    with pytest.raises(WrongState):
        check(Answer(answer.vertex, influence, contribution, follower, followed), parameters)


def test_a_lag_beyond_the_tolerance_is_found():
    parameters = Parameters(retweet_probability=0.5, tolerance=0.1)
    answer = reference_after(parameters, epochs(2_000, deletes=0.1)).answer()
    check(answer, parameters)
    with pytest.raises(WrongState, match="lag"):
        check(answer, dataclasses.replace(parameters, tolerance=1e-6))


def test_too_little_room_is_said():
    part = Rmat(SCALE, 500, seed=1).records(0, 500)
    kernel = ReferenceKernel(Parameters(), 1 << SCALE, 64)
    with pytest.raises(OutOfRoom, match="64"):
        kernel.apply(part.src, part.dst, part.op)

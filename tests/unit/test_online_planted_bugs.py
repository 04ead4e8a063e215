"""The checks can fail: typical bugs, planted in kernels and exchange, are caught."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from graph_stream import kernels, records
from graph_stream.algorithms import Parameters
from graph_stream.graph import InvariantViolated
from graph_stream.offline import Comparison, compare
from graph_stream.rounds import LocalExchange, Message, alone, together
from tests.property.online_model import Model, Run, exact_influence, random_stream

PARAMETERS = Parameters(retweet_probability=0.85)


def healthy_run(partitions: int = 1) -> tuple[Run, Model]:
    run, model = Run(PARAMETERS, partitions), Model(PARAMETERS)
    for stream in random_stream(seed=8, epochs=2, records=300, ids=50, deletes=0.2):
        run.apply(stream)
        model.apply(stream)
    run.check_invariants()
    return run, model


NEXT = [(vertex, vertex + 1, 1) for vertex in range(60)]


def audit(run: Run, model: Model, e: float) -> Comparison:
    """Hold a run against the exact answer the way an audit does, with SciPy in place of Spark."""
    vertex, influence = (np.concatenate(column) for column in zip(*(each.scores() for each in run.states), strict=True))
    exact = exact_influence(model.edges(), PARAMETERS.retweet_probability)
    exact_vertex, exact_values = np.array(list(exact), np.int64), np.array(list(exact.values()))
    return compare(vertex, influence, e, exact_vertex, exact_values, exact_relative_error=1e-10)


def lost_contribution(monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernels.deliver_each
    to_lose = [1]

    def losing(vertices, ranks, slots, deltas, listing, found):
        kept = deltas != 0
        if to_lose and kept.any():
            kept[np.flatnonzero(kept)[: to_lose.pop()]] = False
        original(vertices, ranks, slots[kept], deltas[kept], listing, found)

    monkeypatch.setattr(kernels, "deliver_each", losing)


def missed_emission(monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernels.touch
    monkeypatch.setattr(kernels, "touch", lambda *arguments: original(*arguments) - 1)


def overflow_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernels.deliver

    def narrow(vertices, ranks, targets, ends, bucket, deltas, *rest):
        original(vertices, ranks, targets, ends, bucket, deltas.astype(np.int32).astype(np.int64), *rest)

    monkeypatch.setattr(kernels, "deliver", narrow)


def overflow_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    original = kernels.deliver

    def narrow(vertices, ranks, *rest):
        original(vertices, ranks, *rest)
        # As if influence had one bit too few for the most influential vertices.
        ranks.influence[:] %= 1 << 34

    monkeypatch.setattr(kernels, "deliver", narrow)


NEWCOMER = [(0, 999, 1)]
PAIR = [(300, 301, 1), (301, 302, 1)]
CROWD = [(follower, 998, 1) for follower in range(400, 410)]


@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize(
    ("plant", "stream", "text"),
    [
        (lost_contribution, NEWCOMER, "influence: 1 differ"),
        (missed_emission, PAIR, "1 vertices should have emitted"),
        (overflow_of_a_message, PAIR, "influence: [12] differ"),
        (overflow_of_a_sum, CROWD, "influence: .* differ"),
    ],
)
def test_a_wrong_kernel_is_caught_by_the_invariants_and_by_an_audit(plant, stream, text, partitions, monkeypatch):
    run, model = healthy_run(partitions)
    assert audit(run, model, run.apply([]).error_bound).within_bound
    plant(monkeypatch)
    summary = run.apply(stream)
    model.apply(stream)
    with pytest.raises(InvariantViolated, match=text):
        run.check_invariants()
    found = audit(run, model, summary.error_bound)
    assert not found.within_bound
    assert found.max_relative_drift > summary.error_bound


@pytest.mark.parametrize("stream", [NEWCOMER, PAIR, CROWD])
def test_the_same_streams_pass_on_right_kernels(stream):
    run, model = healthy_run()
    summary = run.apply(stream)
    model.apply(stream)
    run.check_invariants()
    assert audit(run, model, summary.error_bound).within_bound


def test_an_emission_delivered_twice_is_caught(monkeypatch):
    run, _ = healthy_run()
    original = kernels.deliver
    monkeypatch.setattr(kernels, "deliver", lambda *arguments: (original(*arguments), original(*arguments)))
    run.apply(NEXT)
    with pytest.raises(InvariantViolated, match="influence"):
        run.check_invariants()


def test_reading_influence_of_the_same_round_changes_the_hash(monkeypatch):
    # Asynchronous updates converge too, and pass every invariant: only the model's rounds tell them apart.
    run, model = healthy_run()
    original = kernels.evaluate

    def eager(vertices, ranks, rule, frontier, *rest):
        ranks.influence[frontier] += 1 << 24
        answer = original(vertices, ranks, rule, frontier, *rest)
        ranks.influence[frontier] -= 1 << 24
        return answer

    monkeypatch.setattr(kernels, "evaluate", eager)
    model.apply(NEXT)
    assert run.apply(NEXT).state_hash != model.state_hash()


def test_a_certificate_not_brought_up_to_date_is_caught(monkeypatch):
    run, _ = healthy_run()
    original = kernels.settle

    def forgetful(vertices, ranks, rule, visits, visited, lags, *rest):
        return original(vertices, ranks, rule, visits, visited, np.zeros_like(lags), *rest)

    monkeypatch.setattr(kernels, "settle", forgetful)
    run.apply(NEXT)
    with pytest.raises(InvariantViolated, match="count of lags"):
        run.check_invariants()


def test_a_hash_that_misses_an_edge_is_caught(monkeypatch):
    run, _ = healthy_run()
    original = records.link

    def unhashed(*arguments):
        (lanes,) = (each.lanes for each in arguments if hasattr(each, "lanes"))
        before = lanes.copy()
        answer = original(*arguments)
        lanes[:] = before
        return answer

    monkeypatch.setattr(records, "link", unhashed)
    run.apply([(100, 101, 1)])
    with pytest.raises(InvariantViolated, match="lane sum of the edges"):
        run.check_invariants()


@pytest.mark.parametrize(
    ("field", "text"), [("deltas", "influence: .*differ"), ("followers", "number of followers: .*differ")]
)
def test_a_message_that_lost_a_value_is_caught(field, text):
    run, _ = healthy_run(partitions=2)
    exchange = LocalExchange(2)

    def lossy(member):
        def through(messages: list[Message]) -> list[Message]:
            zeroed = [
                dataclasses.replace(
                    message,
                    **{field: np.where(np.arange(len(getattr(message, field))), getattr(message, field), 0)},
                )
                for message in messages
            ]
            return exchange.of(member)(zeroed)

        return through

    columns = np.array(NEXT, np.int64).T
    src, dst, op = columns[0].copy(), columns[1].copy(), columns[2].astype(np.int8)
    together(2, lambda member, _: run.states[member].apply(3, src, dst, op, lossy(member)))
    with pytest.raises(InvariantViolated, match=text):
        run.check_invariants()


def test_a_leaked_vertex_is_caught(monkeypatch):
    run, _ = healthy_run()
    monkeypatch.setattr(records, "release", lambda *_: None)
    run.apply([(200, 201, 1)])
    run.apply([(200, 201, -1)])
    with pytest.raises(InvariantViolated, match="vertices without an edge: 1 differ"):
        run.check_invariants()


def test_one_failing_member_stops_the_others():
    run = Run(PARAMETERS, partitions=2)

    def work(member, exchange):
        if member == 1:
            message = "planted"
            raise RuntimeError(message)
        return run.states[0].apply(1, *(np.array([1], kind) for kind in (np.int64, np.int64, np.int8)), exchange)

    with pytest.raises(RuntimeError, match="planted"):
        together(2, work)
    assert together(1, lambda member, exchange: exchange is alone) == [True]

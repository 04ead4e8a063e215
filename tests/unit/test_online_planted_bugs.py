"""The checks can fail: typical bugs, planted in kernels and exchange, are caught."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from graph_stream import kernels, records
from graph_stream.algorithms import Parameters
from graph_stream.graph import InvariantViolated
from graph_stream.rounds import LocalExchange, Message, alone, together
from tests.property.online_model import Model, Run, assert_within, exact_influence, random_stream

PARAMETERS = Parameters(retweet_probability=0.85)


def healthy_run(partitions: int = 1) -> tuple[Run, Model]:
    run, model = Run(PARAMETERS, partitions), Model(PARAMETERS)
    for stream in random_stream(seed=8, epochs=2, records=300, ids=50, deletes=0.2):
        run.apply(stream)
        model.apply(stream)
    run.check_invariants()
    return run, model


NEXT = [(vertex, vertex + 1, 1) for vertex in range(60)]


def test_a_lost_contribution_is_caught(monkeypatch):
    run, _ = healthy_run()
    original = kernels.deliver_each

    def losing(vertices, ranks, slots, deltas, listing, found):
        original(vertices, ranks, slots[1:], deltas[1:], listing, found)

    monkeypatch.setattr(kernels, "deliver_each", losing)
    run.apply([(0, 999, 1)])
    with pytest.raises(InvariantViolated, match="influence: 1 differ"):
        run.check_invariants()


def test_an_emission_delivered_twice_is_caught(monkeypatch):
    run, _ = healthy_run()
    original = kernels.deliver
    monkeypatch.setattr(kernels, "deliver", lambda *arguments: (original(*arguments), original(*arguments)))
    run.apply(NEXT)
    with pytest.raises(InvariantViolated, match="influence"):
        run.check_invariants()


def test_a_missed_emission_is_caught(monkeypatch):
    run, model = healthy_run()
    original = kernels.touch
    monkeypatch.setattr(kernels, "touch", lambda *arguments: original(*arguments) - 1)
    stream = [(300, 301, 1), (301, 302, 1)]
    summary = run.apply(stream)
    model.apply(stream)
    with pytest.raises(InvariantViolated, match="1 vertices should have emitted"):
        run.check_invariants()
    with pytest.raises(AssertionError):
        assert_within(run.scores(), exact_influence(model.edges(), 0.85), summary.error_bound)


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
        before = arguments[10].lanes.copy()
        answer = original(*arguments)
        arguments[10].lanes[:] = before
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

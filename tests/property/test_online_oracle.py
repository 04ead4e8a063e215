"""Oracle: after every epoch every vertex is within its bound of an exact solution; no bound is too wide."""

from __future__ import annotations

import networkx
import pytest
from hypothesis import given, settings

from graph_stream.algorithms import Parameters
from tests.property.online_model import (
    Model,
    Run,
    assert_tolerance_met,
    assert_within,
    exact_influence,
    parameters,
    random_stream,
    streams,
)


@settings(max_examples=400, deadline=None)
@given(parameters=parameters, stream=streams)
def test_every_epoch_is_within_its_bound_of_the_exact_solution(parameters, stream):
    run, model = Run(parameters), Model(parameters)
    for records in stream:
        summary = run.apply(records)
        counts = model.apply(records)
        scores = run.scores()
        assert_within(scores, exact_influence(model.edges(), parameters.retweet_probability), summary.error_bound)
        assert_tolerance_met(summary, parameters.tolerance)
        run.check_invariants()
        assert scores.keys() == model.vertices()
        assert {name: getattr(summary, name) for name in counts} == counts


@settings(max_examples=150, deadline=None)
@given(parameters=parameters, stream=streams)
def test_published_lags_bound_the_exact_ones_and_are_tight(parameters, stream):
    run, model = Run(parameters, partitions=2), Model(parameters)
    for records in stream:
        summary = run.apply(records)
        model.apply(records)
        for published, exact in zip((summary.e_plus, summary.e_minus), model.largest_lags(), strict=True):
            assert published >= exact
            assert published <= max(float(exact) * 1.05, 1e-12)


@pytest.mark.parametrize(("p", "tolerance"), [(0.00037, 1e-3), (0.5, 1e-4), (0.85, 1e-2), (0.95, 1e-3)])
def test_skewed_stream_against_the_exact_solution(p, tolerance):
    parameters = Parameters(retweet_probability=p, tolerance=tolerance)
    run, model = Run(parameters, partitions=2), Model(parameters)
    for records in random_stream(seed=7, epochs=6, records=1500, ids=600, deletes=0.3):
        summary = run.apply(records)
        model.apply(records)
        assert_within(run.scores(), exact_influence(model.edges(), p), summary.error_bound)
        assert_tolerance_met(summary, tolerance)
        assert summary.state_hash == model.state_hash()
    run.check_invariants()


@pytest.mark.parametrize("p", [0.00037, 0.5, 0.95])
def test_against_pagerank_of_networkx(p):
    # TunkRank is PageRank with leaking dangling vertices: undo the normalisation and the redistribution.
    run, model = Run(Parameters(retweet_probability=p, tolerance=1e-4)), Model(Parameters())
    for records in random_stream(seed=3, epochs=4, records=300, ids=80, deletes=0.2):
        summary = run.apply(records)
        model.apply(records)
        graph = networkx.DiGraph(model.edges())
        rank = networkx.pagerank(graph, alpha=p, tol=1e-16, max_iter=5000)
        dangling = sum(rank[vertex] for vertex in graph if graph.out_degree(vertex) == 0)
        unit = ((1 - p) + p * dangling) / len(graph)
        exact = {vertex: (value / unit - 1) / p for vertex, value in rank.items()}
        # The power iteration is good to about 1e-13 of 1 + p*I; undoing the map divides that by p.
        assert_within(run.scores(), exact, summary.error_bound, solver=1e-12, absolute=1e-12 / p)


def test_mass_unfollow_leaves_nothing_behind():
    run = Run(Parameters(retweet_probability=0.85), partitions=2)
    edges = [(follower, followed, 1) for follower in range(40) for followed in range(40)]
    assert run.apply(edges).vertices == 40
    summary = run.apply([(follower, followed, -1) for follower, followed, _ in edges])
    assert (summary.vertices, summary.edges, summary.max_degree) == (0, 0, 0)
    assert (summary.lane_low, summary.lane_high) == (0, 0)
    assert run.scores() == {}
    run.check_invariants()

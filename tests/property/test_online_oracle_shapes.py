"""Oracle by shape: whatever the stream does to the graph, SciPy and NetworkX find every answer within its bound.

And at the limits of fixed point: where it says that it cannot go on, where it rounds, and where rounds are cut off.
"""

from __future__ import annotations

from unittest.mock import patch

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream import ranking
from graph_stream.algorithms import Parameters
from graph_stream.certificate import CapacityExceeded, tolerance_limit
from tests.property.online_model import (
    Model,
    Record,
    Run,
    assert_tolerance_met,
    assert_within,
    exact_influence,
    streams,
)
from tests.property.online_shapes import SHAPES

probabilities = st.sampled_from([0.0, 0.00037, 0.95]) | st.floats(0.0, 0.95)
tolerances = st.sampled_from([1e-1, 1e-3, 1e-5])


@pytest.mark.parametrize("execution", ["sparse", "dense"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@settings(max_examples=100, deadline=None)
@given(p=probabilities, tolerance=tolerances, data=st.data())
def test_every_shape_is_within_its_bound_after_every_epoch(shape, execution, p, tolerance, data):
    parameters = Parameters(retweet_probability=p, tolerance=tolerance)
    run, model = Run(parameters, execution=execution), Model(parameters)
    for records in data.draw(shape()):
        summary = run.apply(records)
        counts = model.apply(records)
        scores = run.scores()
        assert_within(scores, exact_influence(model.edges(), p), summary.error_bound)
        assert_tolerance_met(summary, tolerance)
        assert summary.state_hash == model.state_hash()
        assert {name: getattr(summary, name) for name in counts} == counts
        run.check_invariants()
        if p >= 0.05:
            assert_within(scores, influence_by_networkx(model.edges(), p), summary.error_bound, absolute=1e-7)


def influence_by_networkx(edges: set[tuple[int, int]], p: float) -> dict[int, float]:
    """Return influence from PageRank, without its normalisation and its links out of dangling vertices.

    The power iteration stops within ``1e-14 * n / (1 - p)`` of the rank; undoing the map divides that by ``p``
    and by a unit of at least ``(1 - p) / n``: with at most 20 vertices and p from 0.05 to 0.95, less than 1e-7.
    """
    links = networkx.DiGraph(edges)
    if not links:
        return {}
    rank = networkx.pagerank(links, alpha=p, tol=1e-14, max_iter=5000)
    dangling = sum(rank[vertex] for vertex in links if links.out_degree(vertex) == 0)
    unit = ((1 - p) + p * dangling) / len(links)
    return {vertex: (value / unit - 1) / p for vertex, value in rank.items()}


# --- the limits ---------------------------------------------------------------------------------------------


@st.composite
def growing(draw: st.DrawFn, vertices: int) -> list[list[Record]]:
    """Draw a tree that each vertex joins by following an earlier one, cut into epochs."""
    joins = [(vertex, draw(st.integers(0, vertex - 1)), 1) for vertex in range(1, vertices)]
    cuts = sorted(draw(st.sets(st.integers(1, vertices - 1), max_size=4)))
    return [joins[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(joins)], strict=True)]


# On a tree influence stays far below capacity, so everything up to the limit is exact, however close p is to 1.
@pytest.mark.parametrize("bits", [24, 26, 28])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_first_epoch_past_capacity_is_refused_and_all_before_it_hold(bits, data):
    p, limit = 1 - 2.0**-bits, 2 ** (30 - bits)
    run, model = Run(Parameters(retweet_probability=p), partitions=2), Model(Parameters(retweet_probability=p))
    for records in data.draw(growing(limit)):
        model.apply(records)
        if len(model.vertices()) >= limit:
            with pytest.raises(CapacityExceeded, match=f"{limit} vertices at retweet probability"):
                run.apply(records)
            return
        summary = run.apply(records)
        assert summary.state_hash == model.state_hash()
        assert_within(run.scores(), exact_influence(model.edges(), p), summary.error_bound)
    pytest.fail("the limit was never reached")


@settings(max_examples=60, deadline=None)
@given(p=probabilities, tolerance=st.sampled_from([1e-6, 1e-7]), stream=streams)
def test_where_degrees_are_limited_by_rounding_the_measured_bound_is_published(p, tolerance, stream):
    parameters = Parameters(retweet_probability=p, tolerance=tolerance, fixed_point_bits=24)
    run, model = Run(parameters), Model(parameters)
    for records in stream:
        summary = run.apply(records)
        model.apply(records)
        assert summary.rounding_limited == (summary.max_degree * 2.0**-25 > tolerance / 2)
        assert summary.state_hash == model.state_hash()
        assert summary.error_bound >= max(model.largest_lags())
        assert_within(run.scores(), exact_influence(model.edges(), p), summary.error_bound)
        if not summary.rounding_limited:
            assert summary.error_bound <= tolerance_limit(tolerance)


@settings(max_examples=60, deadline=None)
@given(p=probabilities, tolerance=tolerances, stream=streams, cap=st.integers(1, 5), partitions=st.sampled_from([1, 2]))
def test_where_rounds_are_cut_off_the_measured_bound_is_published(p, tolerance, stream, cap, partitions):
    parameters = Parameters(retweet_probability=p, tolerance=tolerance)
    run, model = Run(parameters, partitions), Model(parameters)
    with patch.object(ranking, "ROUND_CAP", cap):
        for records in stream:
            summary = run.apply(records)
            model.apply(records)
            assert summary.rounds == cap if summary.capped else summary.rounds <= cap
            assert_within(run.scores(), exact_influence(model.edges(), p), summary.error_bound)
            if not summary.capped:
                assert summary.error_bound <= tolerance_limit(tolerance)
            run.check_invariants()
    summary = run.apply([])
    assert not summary.capped
    assert summary.error_bound <= tolerance_limit(tolerance)
    assert_within(run.scores(), exact_influence(model.edges(), p), summary.error_bound)
    run.check_invariants()

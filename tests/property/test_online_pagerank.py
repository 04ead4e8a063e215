"""PageRank online: against networkx after every epoch, with and without weights, alone and beside TunkRank."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream.algorithms import ALGORITHMS, Parameters, Weights
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState
from graph_stream.rounds import run_members, together
from tests.property.online_model import IDS, Model, Run, assert_within, exact_influence, random_stream, streams

weights = st.dictionaries(st.sampled_from(IDS), st.sampled_from([2.0**-10, 0.3, 1.0, 50.0, 2.0**20])).map(
    lambda given: Weights(np.array(list(given), np.int64), np.array(list(given.values())))
)
pageranks = st.builds(
    Parameters,
    st.just("pagerank"),
    damping=st.sampled_from([0.0, 0.5, 0.85, 0.95]),
    tolerance=st.sampled_from([1e-1, 1e-3, 1e-5]),
    weights=weights,
)


def networkx_pagerank(edges: set[tuple[int, int]], parameters: Parameters) -> dict[int, float]:
    """Return the answer of a library that knows nothing of residuals: jumps also from those that follow no one."""
    graph = networkx.DiGraph(sorted(edges))
    ids = np.array(list(graph), np.int64)
    bases = dict(zip(ids.tolist(), parameters.weights.of(ids).tolist(), strict=True))
    found: dict[int, float] = networkx.pagerank(
        graph, parameters.factor, personalization=bases, tol=1e-13 / max(len(ids), 1), max_iter=10_000
    )
    return found


@settings(max_examples=60, deadline=None)
@given(parameters=pageranks, stream=streams)
def test_scores_are_within_the_certificate_after_every_epoch(parameters, stream):
    run, model = Run(parameters), Model(parameters)
    for records in stream:
        summary = run.apply(records)
        model.apply(records)
        assert summary.state_hash == model.state_hash()
        run.check_invariants()
        if model.edges():
            # Where edges are few, what networkx leaves undone is more than the certificate: its own tolerance
            # is absolute.
            assert_within(run.scores(), networkx_pagerank(model.edges(), parameters), summary.error_bound, 1e-9, 1e-11)
            assert sum(run.scores().values()) == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(parameters=pageranks, stream=streams)
def test_influence_under_weights_is_within_the_two_sided_bound(parameters, stream):
    run, model = Run(parameters), Model(parameters)
    for records in stream:
        summary = run.apply(records)
        model.apply(records)
        for published, exact in zip((summary.e_plus, summary.e_minus), model.largest_lags(), strict=True):
            assert published >= exact
    exact_scores = exact_influence(model.edges(), parameters.factor, parameters.weights)
    for vertex, influence in model.influence.items():
        if vertex in exact_scores:
            x, exact = influence / parameters.scale, exact_scores[vertex]
            assert x / (1 + summary.e_minus) <= exact * (1 + 1e-9)
            if summary.e_plus < 1:
                assert exact * (1 - 1e-9) <= x / (1 - summary.e_plus)


@pytest.mark.parametrize(("partitions", "threads", "execution"), [(1, 1, "sparse"), (2, 2, "auto"), (3, 1, "dense")])
def test_several_rankings_over_one_graph_are_each_what_they_are_alone(partitions, threads, execution):
    favoured = Weights(np.array([3, 5]), np.array([100.0, 0.5]))
    parameters = (
        Parameters("tunkrank", 0.3),
        Parameters("pagerank", weights=favoured),
        Parameters("pagerank", damping=0.5, tolerance=1e-5),
    )
    together_states = [PartitionState(parameters, k, partitions, threads, execution) for k in range(partitions)]
    alone_runs = [Run(each) for each in parameters]
    for epoch, records in enumerate(random_stream(7, 4, 300, 60, 0.3), 1):
        columns = np.array(records, np.int64).reshape(-1, 3).T
        run_members(together_states, epoch, columns[0].copy(), columns[1].copy(), columns[2].astype(np.int8))
        for ranking, run in enumerate(alone_runs):
            summary = run.apply(records)
            joint = combine([state.results[ranking] for state in together_states], parameters[ranking])
            assert joint.state_hash == summary.state_hash
            assert joint.error_bound == summary.error_bound
        together(partitions, lambda member, exchange: together_states[member].check_invariants(exchange))
    if partitions == 1:
        for ranking, run in enumerate(alone_runs):
            ids, scores = together_states[0].scores(ranking)
            assert dict(zip(ids.tolist(), scores.tolist(), strict=True)) == pytest.approx(run.scores(), rel=1e-14)


def test_a_base_of_several_rankings_restores_each():
    parameters = (Parameters("pagerank"), Parameters("tunkrank", 0.5))
    state = PartitionState(parameters)
    for epoch, records in enumerate(random_stream(8, 3, 200, 40, 0.3), 1):
        columns = np.array(records, np.int64).reshape(-1, 3).T
        run_members([state], epoch, columns[0].copy(), columns[1].copy(), columns[2].astype(np.int8))
    members = [PartitionState(parameters, member, 2) for member in range(2)]
    together(2, lambda member, exchange: members[member].restore([state.capture_all()], exchange, 3))
    for ranking, each in enumerate(parameters):
        restored = combine([member.results[ranking] for member in members], each)
        assert restored.state_hash == combine([state.results[ranking]], each).state_hash
    together(2, lambda member, exchange: members[member].check_invariants(exchange))


@pytest.mark.parametrize(
    ("vertex", "weight", "text"),
    [
        ([1, 2, 1], [1.0, 1.0, 2.0], "vertex 1 has more than one weight"),
        ([4], [0.0], "vertex 4 has weight 0.0"),
        ([4], [float("nan")], "vertex 4 has weight nan"),
        ([4], [2.0**21], "vertex 4 has weight 2097152.0"),
    ],
)
def test_weights_out_of_range_are_refused(vertex, weight, text):
    with pytest.raises(ValueError, match=text):
        Weights(np.array(vertex), np.array(weight))


def test_weights_belong_to_pagerank_and_count_in_the_hash():
    favoured = Weights(np.array([3]), np.array([2.0]))
    with pytest.raises(ValueError, match="tunkrank has no weights"):
        Parameters(weights=favoured)
    digests = {
        Parameters("pagerank", damping=damping, weights=each).digest()
        for damping in (0.5, 0.85)
        for each in (Weights.none(), favoured, Weights(np.array([3]), np.array([3.0])))
    }
    assert len(digests) == 6
    # Of the other algorithm's parameter nothing depends.
    assert Parameters("pagerank", 0.5).digest() == Parameters("pagerank", 0.25).digest()
    assert set(ALGORITHMS) == {"tunkrank", "pagerank"}

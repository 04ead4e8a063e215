"""Differential: one state hash per epoch, however the work is divided, equal to the slow model's."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream import ranking
from graph_stream.algorithms import Parameters
from tests.property.online_model import (
    Model,
    Run,
    always_threads,
    base_of,
    parameters,
    random_stream,
    restored,
    streams,
)

DIVISIONS = list(itertools.product([1, 2, 3, 4, 8], [1, 2], ["sparse", "dense", "auto"]))


@settings(max_examples=40, deadline=None)
@given(
    parameters=parameters,
    stream=streams,
    divisions=st.lists(st.sampled_from(DIVISIONS), min_size=6, max_size=6, unique=True),
)
def test_one_hash_for_any_division_of_the_work(parameters, stream, divisions):
    model = Model(parameters)
    expected = []
    for records in stream:
        counts = model.apply(records)
        expected.append((model.state_hash(), counts))
    influence = {vertex: model.influence.get(vertex, 0) / 2**32 for vertex in model.vertices()}
    certificates = set()
    with always_threads():
        for division in divisions:
            run = Run(parameters, *division)
            summaries = [run.apply(records) for records in stream]
            for summary, (state_hash, counts) in zip(summaries, expected, strict=True):
                assert summary.state_hash == state_hash, division
                assert {name: getattr(summary, name) for name in counts} == counts, division
            assert run.scores() == influence
            certificates.add(tuple((summary.e_plus, summary.e_minus) for summary in summaries))
    assert len(certificates) == 1


@pytest.mark.parametrize("p", [0.00037, 0.85])
def test_one_hash_on_a_larger_stream(p):
    parameters = Parameters(retweet_probability=p)
    stream = random_stream(seed=11, epochs=5, records=6000, ids=4000, deletes=0.25)
    hashes = set()
    with always_threads():
        for division in DIVISIONS:
            run = Run(parameters, *division)
            hashes.add(tuple(run.apply(records).state_hash for records in stream))
            run.check_invariants()
    assert len(hashes) == 1


@pytest.mark.parametrize("p", [0.00037, 0.85])
def test_one_hash_through_restores_on_other_divisions(p):
    parameters = Parameters(retweet_probability=p, tolerance=1e-2)
    stream = random_stream(seed=13, epochs=6, records=400, ids=200, deletes=0.25)
    undisturbed = Run(parameters)
    expected = [undisturbed.apply(records).state_hash for records in stream]
    with always_threads():
        for place, division in enumerate(DIVISIONS):
            run = Run(parameters, *division)
            # Steps of more than six: each time the number of partitions is another one.
            others = iter(DIVISIONS[(place + step) % len(DIVISIONS)] for step in (6, 13, 20))
            for number, records in enumerate(stream):
                if number in (1, 3, 5):
                    run = restored(run, base_of(run), *next(others))
                    run.check_invariants()
                assert run.apply(records).state_hash == expected[number], division
            assert run.scores() == undisturbed.scores()


@settings(max_examples=25, deadline=None)
@given(stream=streams)
def test_one_hash_when_rounds_are_cut_off(stream):
    parameters = Parameters(retweet_probability=0.95, tolerance=1e-4)
    outcomes = set()
    with patch.object(ranking, "ROUND_CAP", 2):
        for partitions, mode in [(1, "auto"), (1, "dense"), (2, "sparse"), (4, "auto")]:
            run = Run(parameters, partitions, 1, mode)
            outcomes.add(tuple((each.state_hash, each.error_bound) for each in map(run.apply, stream)))
    assert len(outcomes) == 1


def test_order_of_records_of_different_edges_does_not_matter():
    stream = random_stream(seed=5, epochs=4, records=400, ids=60, deletes=0.0)
    forward, backward = Run(Parameters()), Run(Parameters(), partitions=2)
    for records in stream:
        assert forward.apply(records).state_hash == backward.apply(records[::-1]).state_hash

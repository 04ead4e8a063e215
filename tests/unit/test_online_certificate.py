"""Lag buckets, the published bound, and the limits of fixed point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graph_stream import ranking
from graph_stream.algorithms import Parameters
from graph_stream.certificate import (
    BUCKETS,
    CapacityExceeded,
    bucket_of,
    check_capacity,
    error_bound,
    largest_lag,
    rounding_limited,
    tolerance_limit,
    upper_edge,
)
from graph_stream.rounds import together
from graph_stream.snapshot import Changes
from tests.property.online_model import Model, Run, assert_within, exact_influence, random_stream


def test_buckets_hold_what_they_say_and_are_narrow():
    lags = np.exp(np.random.default_rng(0).uniform(np.log(2.0**-43), np.log(2.0**30), 5000)).tolist()
    for lag in [*lags, 1.0, 0.5, 2.0**-30, 1e-3]:
        bucket = bucket_of(lag)
        assert upper_edge(bucket - 1) <= lag < upper_edge(bucket) <= lag * (1 + 1 / 16)
        assert bucket == bucket_of.py_func(lag)


def test_buckets_at_the_ends():
    assert bucket_of(0.0) == bucket_of(-1.0) == bucket_of(2.0**-44) == 0
    assert bucket_of(2.0**40) == BUCKETS - 1
    assert upper_edge(BUCKETS - 1) == math.inf
    assert upper_edge(BUCKETS - 2) == 2.0**31
    assert [upper_edge(bucket) for bucket in range(BUCKETS)] == sorted({upper_edge(b) for b in range(BUCKETS)})


def test_largest_lag_is_cut_at_the_tolerance_and_not_above_it():
    limit = tolerance_limit(1e-3)
    counts = np.zeros(BUCKETS, np.int64)
    assert largest_lag(counts, 1e-3) == upper_edge(0)
    counts[bucket_of(1e-3)] = 1
    assert largest_lag(counts, 1e-3) == limit < 1e-3 * (1 + 1e-5)
    counts[bucket_of(limit) + 1] = 1
    assert largest_lag(counts, 1e-3) == upper_edge(bucket_of(limit) + 1) > limit


def test_error_bound_is_zero_without_followers():
    assert error_bound(np.array([0.0, 2.0]), 0.5).tolist() == [0.0, 2.0]
    assert error_bound(np.array([0.0, 2.0]), 1.5).tolist() == [0.0, math.inf]


def test_capacity_counts_the_vertices_of_all_members():
    check_capacity(2**30 - 1, Parameters(retweet_probability=0.0))
    with pytest.raises(CapacityExceeded, match="1073741824 vertices at retweet probability"):
        check_capacity(2**30, Parameters(retweet_probability=0.0))
    run = Run(Parameters(retweet_probability=1 - 2e-9), partitions=2)
    run.apply([(1, 2, 1)])
    with pytest.raises(CapacityExceeded, match="3 vertices"):
        run.apply([(2, 3, 1)])


def test_sums_stay_exact_just_below_capacity():
    # On a ring of three at p = 1 - 2**-28 influence settles at 2**28, that is 2**60 in fixed point.
    parameters = Parameters(retweet_probability=1 - 2.0**-28)
    ring = {0: {1}, 1: {2}, 2: {0}}
    none, ids = np.empty(0, np.int64), np.arange(3)
    settled = Changes(ids, np.array([1, 2, 0]), none, none, ids, np.full(3, 2**60))
    run, model = Run(parameters, 2), Model(parameters)
    together(2, lambda member, exchange: run.states[member].restore([settled], exchange, 0))
    model.follows, model.contribution = ring, dict.fromkeys(range(3), 2**60)
    model.influence = dict.fromkeys(range(3), 2**60)
    stream = [(0, 2, 1), (1, 0, 1)]
    summary = run.apply(stream)
    model.apply(stream)
    assert max(model.influence.values()) > 2**60
    assert summary.state_hash == model.state_hash()
    assert run.scores() == {vertex: value / 2**32 for vertex, value in model.influence.items()}
    assert summary.error_bound >= max(model.largest_lags())
    run.check_invariants()


def test_rounding_limited_runs_publish_the_wider_bound():
    parameters = Parameters(retweet_probability=0.85, tolerance=1e-6, fixed_point_bits=24)
    run, model = Run(parameters), Model(parameters)
    widest = 0.0
    for records in random_stream(seed=2, epochs=3, records=1500, ids=120, deletes=0.1):
        summary = run.apply(records)
        model.apply(records)
        assert summary.state_hash == model.state_hash()
        assert summary.rounding_limited == (summary.max_degree * 2.0**-25 > 5e-7)
        assert_within(run.scores(), exact_influence(model.edges(), 0.85), summary.error_bound)
        assert summary.error_bound >= max(model.largest_lags())
        widest = max(widest, summary.error_bound)
    assert widest > 1e-6
    assert not rounding_limited(4, parameters)


def test_round_cap_publishes_the_measured_lag_and_the_next_epoch_goes_on(monkeypatch):
    parameters = Parameters(retweet_probability=0.85, tolerance=1e-5)
    run, model = Run(parameters, 2), Model(parameters)
    monkeypatch.setattr(ranking, "ROUND_CAP", 6)
    for records in random_stream(seed=4, epochs=3, records=400, ids=60, deletes=0.2):
        summary = run.apply(records)
        model.apply(records)
        exact = exact_influence(model.edges(), 0.85)
        assert summary.capped
        assert summary.rounds == 6
        assert summary.error_bound > 1e-5
        assert_within(run.scores(), exact, summary.error_bound)
        run.check_invariants()
    twin = Run(parameters, 3)
    twin.epoch = run.epoch
    rows = (np.concatenate(columns) for columns in zip(*(s.capture_all().rows() for s in run.states), strict=True))
    whole = Changes.of_rows(*rows)
    together(3, lambda member, exchange: twin.states[member].restore([whole], exchange, run.epoch))
    twin.check_invariants()
    monkeypatch.setattr(ranking, "ROUND_CAP", 10_000)
    summary = run.apply([])
    assert twin.apply([]).state_hash == summary.state_hash
    assert not summary.capped
    assert summary.rounds > 1
    assert summary.error_bound <= tolerance_limit(1e-5)
    assert_within(run.scores(), exact, summary.error_bound)
    run.check_invariants()

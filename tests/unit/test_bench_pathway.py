"""What Pathway is measured with: its stream, what it is asked to compute, and its time limit."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCALE, EDGES = 8, 1_500


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("online_pathway")


@pytest.mark.parametrize("bulk", [1, 700, 100_000])
def test_every_measured_epoch_begins_where_one_of_a_run_does(bench, bulk):
    parts = bench.plan(bulk, (100, 1_000, 10_000), measured=2)
    assert parts[0] == (bulk, 0)
    at = 0
    for edges, measured_as in parts:
        if measured_as:
            assert edges == measured_as
            assert at % measured_as == 0
        at += edges
    assert [size for _, size in parts if size] == [100, 100, 1_000, 1_000, 10_000, 10_000]


def test_the_stream_has_no_repetitions_and_is_refused_where_there_are_too_few(bench):
    edges = bench.distinct_stream(SCALE, EDGES)
    pairs = set(zip(edges.follower.tolist(), edges.followed.tolist(), strict=True))
    assert len(pairs) == EDGES
    assert all(follower != followed for follower, followed in pairs)
    shorter = bench.distinct_stream(SCALE, EDGES - 1)
    assert np.array_equal(shorter.followed, edges.followed[:-1])
    with pytest.raises(ValueError, match="16 are wanted"):
        bench.distinct_stream(2, 16)


@pytest.mark.parametrize("p", [0.00037, 0.5, 0.9])
@pytest.mark.parametrize("error", [1e-2, 1e-5])
def test_the_fewest_steps_reach_the_error_and_one_less_does_not(bench, p, error):
    edges = bench.distinct_stream(SCALE, EDGES)
    steps, grid = bench.fewest_steps(edges, p, error)
    exact = bench.exact_ranks(edges, "tunkrank", p)
    scale = bench.pathway_peer.SCALE
    after = itertools.islice(bench.tunkrank_steps(edges, Fraction(str(p)), grid), steps)
    errors = [bench.largest_error(influence / scale, exact) for influence in after]
    assert errors[-1] <= error
    assert all(each > error for each in errors[:-1])


def test_the_library_s_pagerank_comes_near_the_exact_one_but_not_to_it(bench):
    edges = bench.distinct_stream(SCALE, EDGES)
    exact = bench.exact_ranks(edges, "pagerank", bench.pathway_peer.STDLIB_DAMPING)
    ranks = next(itertools.islice(bench.stdlib_ranks(edges), 100, None))
    assert 0 < bench.largest_error(ranks / bench.pathway_peer.STDLIB_SCALE, exact) < 0.1
    assert np.array_equal(ranks > 0, exact > 0)


def test_what_was_answered_before_the_time_limit_counts(bench):
    edges = bench.distinct_stream(SCALE, 12)
    exact = bench.exact_ranks(edges.head(4), "tunkrank", 0.5)
    values = [1_000 * value if value else None for value in exact.tolist()]
    values[edges.followed[0]] *= 1.25
    line = json.dumps(
        {"edges": 4, "seconds": 2.0, "computing_seconds": 0.5, "processor_seconds": 1.0, "values": values}
    )
    said = json.dumps({"version": "1"}) + "\n" + line + "\n" + line[:9]
    stuck = f"import time; print({said!r}, end='', flush=True); time.sleep(60)"
    answers = bench.answers_of([sys.executable, "-I", "-S", "-c", stuck], 2, limit_seconds=5)
    assert answers.version == "1"
    ranking = bench.Ranking("tunkrank", 0.5, 3, (), 1_000)
    first, second = bench.rows_of(ranking, [(4, 4), (8, 8)], {4: (16.0, 1e-3), 8: (16.0, 1e-3)}, answers, edges)
    assert (first["edges"], second["edges"]) == (4, 12)
    assert (first["pathway_per_second"], first["pathway_per_second_with_wait"]) == (8.0, 2.0)
    assert first["pathway_per_processor_second"] == 4.0
    assert first["pathway_error"] == pytest.approx(0.25)
    assert {second[name] for name in second if name.startswith("pathway_") and name != "pathway_steps"} == {None}


def test_a_side_that_fails_says_why(bench):
    with pytest.raises(RuntimeError, match="no such room"):
        bench.answers_of([sys.executable, "-c", "raise SystemExit('no such room')"], 2, limit_seconds=30)

"""Comparing the online answer with the exact one: a wrong answer at any vertex is caught."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_stream.offline import compare

E = 1e-3
PROVEN = 1e-10


def answers(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    """Return vertices, exact influence, and an online one anywhere within the certificate."""
    random = np.random.default_rng(seed)
    vertex = random.permutation(10 * count)[:count].astype(np.int64)
    exact = random.uniform(0.01, 100, count) * (random.random(count) < 0.8)
    return vertex, exact, exact * (1 + random.uniform(-0.99, 0.99, count) * E), random


@given(st.integers(1, 50), st.integers(0, 2**32))
def test_an_answer_within_its_certificate_holds_in_any_order(count, seed):
    vertex, exact, online, random = answers(count, seed)
    order = random.permutation(count)
    found = compare(vertex[order], online[order], E, vertex, exact, PROVEN)
    assert found.within_bound
    assert 0 <= found.mean_relative_drift <= found.max_relative_drift <= E


@given(st.integers(1, 50), st.integers(0, 2**32), st.sampled_from([-1, 1]))
def test_one_answer_outside_is_caught(count, seed, sign):
    vertex, exact, online, random = answers(count, seed)
    wrong = random.integers(count)
    exact[wrong] = max(exact[wrong], 0.01)
    online[wrong] = exact[wrong] * (1 + sign * 1.1 * E)
    found = compare(vertex, online, E, vertex, exact, PROVEN)
    assert not found.within_bound
    assert found.max_relative_drift == pytest.approx(1.1 * E)


def test_influence_where_nobody_follows_is_caught():
    vertex = np.array([1, 2])
    assert not compare(vertex, np.array([1.0, 1e-9]), E, vertex, np.array([1.0, 0.0]), PROVEN).within_bound


@pytest.mark.parametrize("others", [[1], [1, 3], [1, 2, 3]])
def test_other_vertices_are_caught(others):
    found = compare(np.array([1, 2]), np.ones(2), E, np.array(others), np.ones(len(others)), PROVEN)
    assert not found.within_bound
    assert math.isinf(found.max_relative_drift)


def test_no_vertices_at_all_agree():
    none, nothing = np.empty(0, np.int64), np.empty(0)
    assert compare(none, nothing, E, none, nothing, PROVEN).within_bound

"""The certified top k: what is claimed is true, what the intervals prove is claimed, and wrong rules are caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from graph_stream import ledger, topk
from graph_stream.algorithms import Parameters
from graph_stream.certificate import upper_edge
from graph_stream.topk import TopK, top_k
from tests.property.online_model import Run, streams

# --- by hand ------------------------------------------------------------------------------------------------


def chosen(influence: Mapping[int, float], e_plus: float, e_minus: float, k: int) -> tuple[list[int], TopK]:
    """Return the ids of the top k, and what is proven of them."""
    vertex = np.array(list(influence), np.int64)
    found = top_k(vertex, np.array(list(influence.values()), np.float64), e_plus, e_minus, k)
    return vertex[found.index].tolist(), found


def test_membership_is_decided_by_the_first_vertex_left_out():
    # Intervals: 8 in [9.1, 11.1], 3 in [4.5, 5.6], 9 in [4.5, 5.4], 1 in [0.9, 1.1].
    ids, found = chosen({1: 1.0, 9: 4.9, 8: 10.0, 3: 5.0, 5: 0.0}, 0.1, 0.1, k=2)
    assert ids == [8, 3]
    assert found.proven.tolist() == [True, False]
    assert found.in_order.tolist() == [True, False]
    ids, found = chosen({1: 1.0, 9: 4.9, 8: 10.0, 3: 5.0, 5: 0.0}, 0.1, 0.1, k=3)
    assert ids == [8, 3, 9]
    assert found.proven.tolist() == [True, True, True]
    assert found.in_order.tolist() == [True, False, True]
    assert found.comes_before(0, 2)
    assert not found.comes_before(1, 2)
    assert not found.comes_before(2, 1)
    assert not found.comes_before(1, 1)


def test_each_side_of_the_certificate_widens_its_own_bound():
    apart = {1: 10.0, 2: 9.0}
    assert chosen(apart, 0.09, 0.0, k=1)[1].proven.all()
    assert not chosen(apart, 0.11, 0.0, k=1)[1].proven.any()
    assert chosen(apart, 0.0, 0.1, k=1)[1].proven.all()
    assert not chosen(apart, 0.0, 0.12, k=1)[1].proven.any()


def test_intervals_that_touch_prove_nothing():
    ids, found = chosen({1: 9.0, 2: 10.0}, 0.1, 0.0, k=1)
    assert ids == [2]
    assert not found.proven.any()
    ids, found = chosen({2: 1.0, 1: 1.0}, 0.0, 0.0, k=1)
    assert ids == [1]
    assert not found.proven.any()


def test_vertices_without_followers_are_zero_exactly_and_come_by_id():
    ids, found = chosen({7: 0.0, 3: 0.0, 5: 2.0, 4: 0.0}, 0.5, 0.5, k=3)
    assert ids == [5, 3, 4]
    assert found.proven.all()
    assert found.in_order.all()
    assert found.comes_before(1, 2)
    assert not found.comes_before(2, 1)
    assert found.upper[1:].tolist() == found.lower[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("e_plus", [1.0, 3.0, np.inf])
def test_without_an_upper_bound_only_vertices_without_followers_are_beaten(e_plus):
    ids, found = chosen({1: 100.0, 2: 1.0, 3: 0.0}, e_plus, 0.25, k=2)
    assert ids == [1, 2]
    assert found.proven.tolist() == [True, True]
    assert found.in_order.tolist() == [False, True]
    assert not chosen({1: 100.0, 2: 1.0, 3: 0.0}, e_plus, 0.25, k=1)[1].proven.any()


def test_where_none_is_left_out_all_are_in():
    ids, found = chosen({1: 5.0, 2: 5.0}, 0.9, 0.9, k=2)
    assert ids == [1, 2]
    assert found.proven.tolist() == [True, True]
    assert found.in_order.tolist() == [False, True]
    assert len(chosen({1: 5.0, 2: 5.0}, 0.9, 0.9, k=10)[0]) == 2
    assert chosen({}, 0.1, 0.1, k=3)[0] == []


def test_no_top_zero():
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        chosen({1: 1.0}, 0.1, 0.1, k=0)


def test_a_row_of_an_older_version_has_one_bound_for_both_sides():
    assert ledger.two_sided({"error_bound": 0.5}) == (0.5, 0.5)
    assert ledger.two_sided({"error_bound": 0.5, "e_plus": 0.5, "e_minus": 0.25}) == (0.5, 0.25)


# --- against the exact ranking ------------------------------------------------------------------------------


def false_claims(
    choose: Callable[..., TopK],
    published: Mapping[int, float],
    exact: Mapping[int, Fraction],
    e: tuple[float, float],
    k: int,
) -> list[str]:
    """Return what is claimed of a top k and is not so in the exact ranking."""
    vertex = np.array(list(published), np.int64)
    found = choose(vertex, np.array(list(published.values()), np.float64), *e, k)
    place = {each: i for i, each in enumerate(sorted(exact, key=lambda each: (-exact[each], each)))}
    listed = [place[each] for each in vertex[found.index].tolist()]
    wrong = [f"{at} is in" for at, proven in zip(listed, found.proven, strict=True) if proven and at >= k]
    pairs = [(i, j) for i in range(len(listed)) for j in range(len(listed)) if found.comes_before(i, j)]
    wrong += [f"{listed[i]} before {listed[j]}" for i, j in pairs if listed[i] >= listed[j]]
    wrong += [f"{i} before the next" for i in range(len(listed) - 1) if found.in_order[i] and (i, i + 1) not in pairs]
    return wrong


def proven_by_counting(published: Mapping[int, float], e: tuple[float, float], k: int) -> dict[int, bool]:
    """Return of every vertex whether fewer than k others can come before it; by the definition, pair by pair."""
    lower, upper = (
        dict(zip(published, bound.tolist(), strict=True))
        for bound in topk.bounds(np.array(list(published.values()), np.float64), *e)
    )
    return {
        v: sum(upper[w] >= lower[v] and not (upper[w] == lower[v] == 0 and v < w) for w in published if w != v) < k
        for v in published
    }


# Few values, so that many are equal or nearly so.
_exact = st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(1), Fraction(10, 9), Fraction(100, 81), Fraction(7)])
_side = st.sampled_from([0.0, upper_edge(0), 1e-9, 1e-3, 0.05, 0.1, 0.5, 1.5])


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """Draw exact influence, a certificate, and a published answer anywhere within it, often at its very ends."""
    exact = dict(enumerate(draw(st.lists(_exact, max_size=9))))
    e_plus, e_minus = draw(_side), draw(_side)
    lowest, highest = max(Fraction(0), 1 - Fraction(e_plus)), 1 + Fraction(e_minus)
    inside = st.sampled_from([Fraction(0), Fraction(1)]) | st.fractions(0, 1, max_denominator=64)
    shares = {v: lowest + (highest - lowest) * draw(inside) for v in exact}
    # Influence of 0 says that there are no followers, so nobody else publishes it.
    published = {v: max(float(value * shares[v]), 2.0**-40 * (value > 0)) for v, value in exact.items()}
    return {"published": published, "exact": exact, "e": (e_plus, e_minus), "k": draw(st.integers(1, 10))}


@settings(max_examples=400, deadline=None)
@given(answers())
def test_nothing_claimed_is_false_and_nothing_proven_is_left_unclaimed(answer):
    assert not false_claims(top_k, **answer)
    published, e, k = answer["published"], answer["e"], answer["k"]
    ids, found = chosen(published, *e, k)
    proven = proven_by_counting(published, e, k)
    assert found.proven.tolist() == [proven[each] for each in ids]
    assert not any(proven[each] for each in published.keys() - set(ids))


def one_sided_from_above(influence: np.ndarray, e_plus: float, e_minus: float) -> tuple[np.ndarray, np.ndarray]:
    return influence * (1 - topk.ROUNDING), TRUE_BOUNDS(influence, e_plus, e_minus)[1]


def one_sided_from_below(influence: np.ndarray, e_plus: float, e_minus: float) -> tuple[np.ndarray, np.ndarray]:
    return TRUE_BOUNDS(influence, e_plus, e_minus)[0], influence * (1 + topk.ROUNDING)


def sides_exchanged(influence: np.ndarray, e_plus: float, e_minus: float) -> tuple[np.ndarray, np.ndarray]:
    return TRUE_BOUNDS(influence, e_minus, e_plus)


TRUE_BOUNDS = topk.bounds


@pytest.mark.parametrize("bounds", [one_sided_from_above, one_sided_from_below, sides_exchanged])
def test_wrong_bounds_are_caught(bounds):
    with patch.object(topk, "bounds", bounds):
        assert find(answers(), lambda answer: bool(false_claims(top_k, **answer)), settings=THOROUGH)


def test_forgetting_the_first_one_left_out_is_caught():
    def among_themselves(vertex: Any, influence: Any, e_plus: float, e_minus: float, k: int) -> TopK:
        best = np.lexsort((vertex, -influence))[:k]
        found = top_k(vertex[best], influence[best], e_plus, e_minus, k)
        return TopK(best[found.index], found.lower, found.upper, found.proven, found.in_order)

    assert find(answers(), lambda answer: bool(false_claims(among_themselves, **answer)), settings=THOROUGH)


def test_taking_equal_published_influence_for_an_exact_tie_is_caught():
    def ties_by_id(lower: Any, upper: Any, first: Any, second: Any) -> Any:
        return (lower[first] > upper[second]) | ((upper[first] == upper[second]) & (first < second))

    with patch.object(topk, "_comes_before", ties_by_id):
        assert find(answers(), lambda answer: bool(false_claims(top_k, **answer)), settings=THOROUGH)


THOROUGH = settings(max_examples=5_000, deadline=None, derandomize=True, database=None)


# --- on graphs ----------------------------------------------------------------------------------------------


def exact_by_elimination(edges: set[tuple[int, int]], p: Fraction) -> dict[int, Fraction]:
    """Solve ``I = W^T (1 + p*I)`` in fractions."""
    ids = sorted({vertex for edge in edges for vertex in edge})
    place = {vertex: i for i, vertex in enumerate(ids)}
    degree = {follower: sum(1 for each, _ in edges if each == follower) for follower, _ in edges}
    rows = [[Fraction(i == j) for j in range(len(ids))] + [Fraction(0)] for i in range(len(ids))]
    for follower, followed in edges:
        given = Fraction(1, degree[follower])
        rows[place[followed]][place[follower]] -= p * given
        rows[place[followed]][-1] += given
    for i, pivot in enumerate(rows):
        rows[i] = pivot = [value / pivot[i] for value in pivot]
        for j, row in enumerate(rows):
            if j != i and row[i]:
                rows[j] = [value - row[i] * own for value, own in zip(row, pivot, strict=True)]
    return {vertex: rows[i][-1] for i, vertex in enumerate(ids)}


@settings(max_examples=60, deadline=None)
@given(
    p=st.sampled_from([0.0, 0.25, 0.75, 0.9375]),
    tolerance=st.sampled_from([0.5, 0.1, 1e-3, 1e-6]),
    stream=streams,
    k=st.integers(1, 14),
)
def test_nothing_claimed_of_a_graph_is_false(p, tolerance, stream, k):
    run = Run(Parameters(retweet_probability=p, tolerance=tolerance))
    edges: set[tuple[int, int]] = set()
    for records in stream:
        summary = run.apply(records)
        for follower, followed, op in records:
            if follower != followed:
                (edges.add if op > 0 else edges.discard)((follower, followed))
    exact = exact_by_elimination(edges, Fraction(p))
    published = run.scores()
    assert published.keys() == exact.keys()
    assert not false_claims(top_k, published, exact, (summary.e_plus, summary.e_minus), k)

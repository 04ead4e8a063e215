"""Streams of the shapes that hurt: each a strategy of its own, over few vertices so that everything meets."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import strategies as st

from tests.property.online_model import Record

Stream = list[list[Record]]

_ids = st.integers(0, 15)
_op = st.sampled_from([1, 1, 1, -1])
_edges = st.lists(st.tuples(_ids, _ids), max_size=25)


def _records(edges: list[tuple[int, int]], op: int) -> list[Record]:
    return [(follower, followed, op) for follower, followed in edges]


def _crowd(least: int) -> st.SearchStrategy[list[int]]:
    return st.lists(_ids, min_size=least, max_size=16, unique=True)


@st.composite
def inserts_and_deletes(draw: st.DrawFn) -> Stream:
    """Draw edges that come and go, deletes of absent ones among them."""
    return draw(st.lists(st.lists(st.tuples(_ids, _ids, _op), max_size=20), min_size=1, max_size=5))


@st.composite
def hub_flaps(draw: st.DrawFn) -> Stream:
    """Draw a hub that follows and unfollows a crowd again and again, within an epoch and from one to the next."""
    hub, crowd = 100, draw(_crowd(4))
    back = _records([(each, hub) for each in draw(_crowd(0))], 1)
    stream = [_records(draw(_edges), 1) + back]
    for _ in range(draw(st.integers(1, 4))):
        flaps = draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, -1])), min_size=1, max_size=5))
        stream.append([(hub, each, op) for begin, op in flaps for each in crowd[begin:]])
    return stream


@st.composite
def celebrity_joins(draw: st.DrawFn) -> Stream:
    """Draw a newcomer whom a whole crowd follows within one epoch, who follows some back, and leaves again."""
    celebrity, crowd = 200, draw(_crowd(6))
    joins = _records([(fan, celebrity) for fan in crowd], 1)
    follows = _records([(celebrity, each) for each in draw(_crowd(0))], 1)
    leaves = _records([(fan, celebrity) for fan in crowd[draw(st.integers(0, 3)) :]], -1)
    return [_records(draw(_edges), 1), joins + follows, _records(draw(_edges), 1), leaves]


@st.composite
def chains(draw: st.DrawFn) -> Stream:
    """Draw a chain, each follower of one only, that grows at either end, is cut, and may close to a ring."""
    length = draw(st.integers(3, 14))
    links = list(itertools.pairwise(range(length)))
    first = draw(st.integers(0, length - 1))
    stream = [_records(links[first:], 1), _records(links[:first], 1)]
    for at in draw(st.lists(st.integers(0, length - 2), max_size=2)):
        stream.append([(*links[at], -1)])
        if draw(st.booleans()):
            stream.append([(*links[at], 1)])
    if draw(st.booleans()):
        stream.append([(length - 1, 0, 1)])
    return stream


@st.composite
def mass_unfollows(draw: st.DrawFn) -> Stream:
    """Draw a dense graph that loses all edges of one follower, or to one followed, or all there are."""
    crowd = draw(_crowd(4))
    edges = [(follower, followed) for follower in crowd for followed in crowd if follower != followed]
    one = draw(st.sampled_from(crowd))
    gone = draw(
        st.sampled_from([[edge for edge in edges if edge[0] == one], [edge for edge in edges if edge[1] == one], edges])
    )
    return [_records(edges, 1), _records(gone, -1), _records(draw(_edges), 1)]


@st.composite
def duplicates(draw: st.DrawFn) -> Stream:
    """Draw records that repeat within an epoch and in later ones, inserts and deletes alike."""
    some = draw(st.lists(st.tuples(_ids, _ids, _op), min_size=1, max_size=8))
    epoch = st.lists(st.sampled_from(some), max_size=25)
    return draw(st.lists(epoch, min_size=2, max_size=5))


@st.composite
def self_loops(draw: st.DrawFn) -> Stream:
    """Draw self-loops between edges of the same vertices, and of vertices that have no edge besides."""
    loops = st.builds(lambda each, op: (each, each, op), _ids | st.integers(300, 303), _op)
    epoch = st.lists(loops | st.tuples(_ids, _ids, _op), min_size=1, max_size=20)
    return draw(st.lists(epoch, min_size=1, max_size=4))


SHAPES: list[Callable[[], st.SearchStrategy[Stream]]] = [
    inserts_and_deletes,
    hub_flaps,
    celebrity_joins,
    chains,
    mass_unfollows,
    duplicates,
    self_loops,
]

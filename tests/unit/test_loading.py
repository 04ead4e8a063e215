"""Loading edges of a stored state does what stating them one by one does, in any order and across growth."""

import numpy as np
import pytest

from graph_stream import invariants
from graph_stream.adjacency import ARENA
from graph_stream.eventtime import NEVER, EventTime, EventTimes
from graph_stream.records import Adjacency


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("event_time", [None, EventTime(10**9, None)], ids=["plain", "timed"])
def test_loaded_edges_are_those_that_were_stated(grouped, event_time):
    random = np.random.default_rng(3)
    # A hub on either side, and thousands of vertices, so that everything has to grow.
    src = np.concatenate([np.zeros(3000, np.int64), random.integers(0, 5000, 9000)])
    dst = np.concatenate([np.arange(1, 3001), random.integers(5000, 9000, 9000)])
    pairs = np.unique(np.stack([src, dst], axis=1), axis=0)
    src, dst = (pairs if grouped else random.permutation(pairs)).T.copy()
    time = random.integers(1, 10**6, len(src)) if event_time else np.empty(0, np.int64)
    loaded, stated = (Adjacency(0, 1, event_time) for _ in range(2))
    lanes = [np.zeros(2, np.uint64) for _ in range(2)]
    for part in np.array_split(np.arange(len(src)), 3):
        loaded.load_edges(src[part], dst[part], lanes[0], time[part] if event_time else time)
    times = EventTimes(time, NEVER) if event_time else None
    stated.change_edges(src, dst, np.ones(len(src), np.int8), lanes[1], times)
    assert lanes[0].tolist() == lanes[1].tolist()
    assert edges_of(loaded) == edges_of(stated)
    followers = loaded.vertices.followers.astype(np.int64)
    assert not invariants.graph_violations(loaded, followers, lanes[0])
    assert not invariants.time_violations(loaded)
    # What was loaded in order of followers has rows no longer than stating gives them.
    if grouped:
        assert loaded.storage.counters[ARENA] <= stated.storage.counters[ARENA]


def edges_of(adjacency: Adjacency) -> set[tuple[int, ...]]:
    follower, followed, time = adjacency.edge_slots()
    ids = adjacency.vertices.id
    columns = [ids[follower], ids[followed], *([time] if len(time) else [])]
    return set(zip(*(column.tolist() for column in columns), strict=True))

"""An epoch's records arrive as they left, whatever ids and operations they have, and few bytes travel."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graph_stream.eventtime import EventTimes
from graph_stream.travelling import Records

RAYS_LIMIT = 100 * 1024
"""What Ray passes inside its messages, unless it is told otherwise."""


def ids(size: int, low: int = -(2**63), high: int = 2**63 - 1) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.int64, size, elements=st.integers(low, high))


@st.composite
def epochs(draw: st.DrawFn) -> Records:
    size = draw(st.integers(0, 5))
    edge = st.sampled_from([-1, 0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63)])
    columns = [draw(ids(size) | arrays.arrays(np.int64, size, elements=edge) | ids(size, 0, 2**32 - 1)) for _ in "sd"]
    op = draw(arrays.arrays(np.int8, size, elements=st.sampled_from([1, -1])) | st.just(np.ones(size, np.int8)))
    times = EventTimes(draw(ids(size)), draw(st.integers(-9, 9))) if draw(st.booleans()) else None
    return Records(draw(st.integers(1, 9)), draw(st.booleans()), *columns, op, 1.5, 0.25, 2.5, times)


@given(epochs())
def test_records_arrive_as_they_left(records):
    arrived = pickle.loads(pickle.dumps(records))
    for name in ("src", "dst", "op"):
        left, came = getattr(records, name), getattr(arrived, name)
        assert came.dtype == left.dtype
        assert np.array_equal(came, left)
    for name in ("epoch", "last", "read_started", "read_seconds", "scheduled_time"):
        assert getattr(arrived, name) == getattr(records, name)
    if records.times is None:
        assert arrived.times is None
    else:
        assert np.array_equal(arrived.times.time, records.times.time)
        assert arrived.times.watermark == records.times.watermark


@pytest.mark.parametrize(("highest", "bytes_each"), [(2**32 - 1, 8), (2**32, 12)])
def test_small_ids_and_inserts_alone_take_little(highest, bytes_each):
    src = np.arange(10_000)
    dst = np.full(10_000, highest)
    size = len(pickle.dumps(Records(1, False, src, dst, np.ones(10_000, np.int8), 0.0, 0.0, 0.0)))
    assert bytes_each * 10_000 < size < bytes_each * 10_000 + 1_000
    assert (size < RAYS_LIMIT) == (bytes_each == 8)

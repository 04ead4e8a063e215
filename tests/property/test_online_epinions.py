"""A real graph, in epochs of 10,000 records, against an exact solution at the end."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from graph_stream.algorithms import Parameters
from graph_stream.certificate import error_bound, tolerance_limit
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState
from graph_stream.rounds import run_members, together

EPOCH_RECORDS = 10_000


@pytest.fixture(scope="module")
def edges() -> tuple[np.ndarray, np.ndarray]:
    """Return Epinions, or a synthetic graph of its size where it is not at hand."""
    path = Path(os.environ.get("EXOFLOW_DATA_DIR", "")) / "soc-Epinions1.txt.gz"
    if path.is_file():
        lines = gzip.decompress(path.read_bytes()).split(b"\n")
        pairs = np.array(b" ".join(line for line in lines if not line.startswith(b"#")).split(), np.int64)
        pairs = pairs.reshape(-1, 2)
    else:
        random = np.random.default_rng(0)
        pairs = (76_000 * random.random((509_000, 2)) ** 4).astype(np.int64)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def exact_influence(src: np.ndarray, dst: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and influence by Jacobi sweeps down to the last bit that moves."""
    pairs = np.unique(np.column_stack([src, dst])[src != dst], axis=0)
    ids, flat = np.unique(pairs, return_inverse=True)
    follower, followed = flat.reshape(-1, 2).T
    degree = np.bincount(follower, minlength=len(ids))
    shares = scipy.sparse.csr_matrix((1.0 / degree[follower], (followed, follower)), shape=(len(ids), len(ids)))
    influence = np.zeros(len(ids))
    for _ in range(2000):
        following = shares @ (1 + p * influence)
        if np.allclose(following, influence, rtol=1e-13, atol=0):
            return ids, following
        influence = following
    pytest.fail("the exact solution does not settle")


@pytest.mark.parametrize(("p", "tolerance", "partitions", "threads"), [(0.00037, 1e-3, 1, 2), (0.85, 1e-2, 2, 1)])
def test_real_graph_in_epochs(edges, p, tolerance, partitions, threads):
    src, dst = edges
    parameters = Parameters(retweet_probability=p, tolerance=tolerance)
    states = [PartitionState(parameters, index, partitions, threads) for index in range(partitions)]
    op = np.ones(len(src), np.int8)
    for epoch, begin in enumerate(range(0, len(src), EPOCH_RECORDS), 1):
        part = slice(begin, begin + EPOCH_RECORDS)
        summary = combine(run_members(states, epoch, src[part], dst[part], op[part]), parameters)
        assert summary.error_bound <= tolerance_limit(tolerance)
    together(partitions, lambda member, exchange: states[member].check_invariants(exchange))
    vertices, influence = (np.concatenate(column) for column in zip(*(s.scores() for s in states), strict=True))
    order = np.argsort(vertices)
    ids, exact = exact_influence(src, dst, p)
    assert (vertices[order] == ids).all()
    bounds = error_bound(influence[order], summary.error_bound)
    assert (np.abs(influence[order] - exact) <= bounds + 1e-11 * exact).all()
    assert (bounds[exact == 0] == 0).all()
    assert states[0].nbytes / states[0].edges < 60

"""The offline TunkRank job against exact solutions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

from spark.session import close_session, open_session
from tests.integration.test_spark_session import PROJECT, need_java

pytestmark = pytest.mark.java
JOB_FILE = PROJECT / "spark" / "jobs" / "tunkrank.py"

Edges = Sequence[tuple[int, int]]
Changes = Sequence[tuple[int, int, int]]

# SciPy's own rounding: its answer is the yardstick, and is not exact either.
YARDSTICK = 1e-12


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    need_java()
    before = set(psutil.Process().children(recursive=True))
    session = open_session("local[2]", "test", scratch=tmp_path_factory.mktemp("spark"))
    yield session
    close_session(session)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture
def run(session: Any, tmp_path: Path) -> Any:
    """Run the job on changes, one list per file, and return its manifest and its influences by vertex."""
    from spark.jobs.tunkrank import main

    def run_job(*files: Changes, **options: Any) -> tuple[dict[str, Any], dict[int, float]]:
        place = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        inputs = [(write_changes(place / f"{i}.parquet", changes), i) for i, changes in enumerate(files)]
        manifest = main(session, inputs, place / "out", **options)
        return manifest, read_result(place / "out")

    return run_job


def write_changes(path: Path, changes: Changes) -> Path:
    kind, key, value = np.array(changes, dtype=np.int64).reshape(-1, 3).T
    pq.write_table(pa.table({"kind": kind.astype(np.int8), "key": key, "value": value}), path)
    return path


def read_result(folder: Path) -> dict[int, float]:
    table = pq.read_table(folder)
    assert table.schema.names == ["vertex", "influence"]
    assert (table.schema.field("vertex").type, table.schema.field("influence").type) == (pa.int64(), pa.float64())
    influence = dict(zip(table["vertex"].to_pylist(), table["influence"].to_pylist(), strict=True))
    assert len(influence) == table.num_rows
    return influence


def inserts(edges: Edges) -> Changes:
    return [(1, follower, followed) for follower, followed in edges]


def exact(edges: Edges, p: float) -> dict[int, float]:
    """Solve ``(Id - p*W^T) I = W^T 1`` directly."""
    vertices, flat = np.unique(np.array(edges, dtype=np.int64), return_inverse=True)
    follower, followed = flat.reshape(-1, 2).T
    n = len(vertices)
    weight = 1.0 / np.bincount(follower, minlength=n)[follower]
    transposed = sp.csc_matrix((weight, (followed, follower)), shape=(n, n))
    solution = spsolve(sp.identity(n, format="csc") - p * transposed, transposed @ np.ones(n))
    return dict(zip(vertices.tolist(), np.atleast_1d(solution).tolist(), strict=True))


def assert_within(manifest: dict[str, Any], found: dict[int, float], expected: dict[int, float]) -> None:
    assert manifest["relative_error"] <= 1e-10
    assert found.keys() == expected.keys()
    for vertex, influence in expected.items():
        allowed = (manifest["relative_error"] + YARDSTICK) * influence
        assert abs(found[vertex] - influence) <= allowed, (vertex, found[vertex], influence)


def zoo() -> list[tuple[int, int]]:
    """Shapes with known dangers, as components of one graph, so that one run covers them."""
    chain = [(v, v + 1) for v in range(100, 160)]
    cycle = [(v, 200 + (v + 1 - 200) % 7) for v in range(200, 207)]
    hub = [(v, 1000) for v in range(1001, 3500)] + [(1000, 999), (999, 1000)]
    collector = [(4000, v) for v in range(4001, 6000)]
    extremes = [(-(2**63), 2**63 - 1), (2**63 - 1, 0), (0, -1)]
    generator = np.random.default_rng(7)
    tangle = {(int(a), int(b)) for a, b in generator.integers(7000, 7200, (1500, 2)) if a != b}
    return [*chain, *cycle, *hub, *collector, *extremes, *sorted(tangle)]


@pytest.mark.parametrize("p", [0, 0.00037, 0.5, 0.85, 0.95])
def test_every_vertex_is_within_the_promised_error(run, p):
    edges = zoo()
    manifest, found = run(inserts(edges), retweet_probability=p)
    assert_within(manifest, found, exact(edges, p))
    assert manifest["edges"] == len(edges)
    assert manifest["vertices"] == len(found)
    assert manifest["retweet_probability"] == p
    unfollowed = {follower for follower, _ in edges} - {followed for _, followed in edges}
    assert {vertex for vertex, influence in found.items() if influence == 0} == unfollowed

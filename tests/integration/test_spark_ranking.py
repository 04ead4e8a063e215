"""The offline job against exact solutions."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import spsolve

from spark.output import OutputFolder
from spark.session import close_session, open_session
from tests.integration.test_spark_session import PROJECT, need_java

pytestmark = pytest.mark.java
JOB_FILE = PROJECT / "spark" / "jobs" / "ranking.py"

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
    from spark.jobs.ranking import main

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
    assert found.keys() == expected.keys()
    for vertex, influence in expected.items():
        allowed = (manifest["relative_error"] + YARDSTICK) * influence
        assert abs(found[vertex] - influence) <= allowed, (vertex, found[vertex], influence)


def zoo() -> list[tuple[int, int]]:
    """Shapes with known dangers, as components of one graph, so that one run covers them."""
    chain = [(v, v + 1) for v in range(100, 160)]
    cycle = [(v, 200 + (v + 1 - 200) % 7) for v in range(200, 207)]
    hub = [(v, 1000) for v in range(1001, 3500)] + [(1000, 900), (900, 901)]
    collector = [(4000, v) for v in range(4001, 6000)]
    extremes = [(-(2**63), 2**63 - 1), (2**63 - 1, 0), (0, -1)]
    generator = np.random.default_rng(7)
    tangle = {(int(a), int(b)) for a, b in generator.integers(7000, 7200, (1500, 2)) if a != b}
    return [*chain, *cycle, *hub, *collector, *extremes, *sorted(tangle)]


# The last one only as far as its many iterations are worth: there the truncation is most of the error.
@pytest.mark.parametrize(("p", "tolerance"), [(0, 1e-10), (0.00037, 1e-10), (0.5, 1e-10), (0.85, 1e-10), (0.95, 0.1)])
def test_every_vertex_is_within_the_promised_error(run, p, tolerance):
    edges = zoo()
    manifest, found = run(inserts(edges), factor=p, tolerance=tolerance)
    assert manifest["relative_error"] <= tolerance
    assert_within(manifest, found, exact(edges, p))
    assert manifest["edges"] == len(edges)
    assert manifest["vertices"] == len(found)
    assert manifest["factor"] == p
    unfollowed = {follower for follower, _ in edges} - {followed for _, followed in edges}
    assert {vertex for vertex, influence in found.items() if influence == 0} == unfollowed


def test_large_influence_at_a_high_probability(run):
    """A hub's influence of 10^5 goes down a chain; without cycles the answer is known in closed form."""
    p, fans, chain = 0.95, 100_000, 12
    edges = [(v, 0) for v in range(1000, 1000 + fans)] + [(v, v + 1) for v in range(chain)]
    expected = dict.fromkeys((follower for follower, _ in edges), 0.0) | {0: float(fans)}
    for v in range(chain):
        expected[v + 1] = 1 + p * expected[v]
    manifest, found = run(inserts(edges), factor=p)
    assert manifest["relative_error"] <= 1e-10
    assert_within(manifest, found, expected)
    assert manifest["iterations"] <= chain + 8


@st.composite
def change_files(draw: st.DrawFn) -> list[Changes]:
    """Files of changes to many small graphs at once, each graph on vertices of its own."""
    files: list[list[tuple[int, int, int]]] = [[], [], []]
    small = st.integers(0, 4)
    for graph in range(40):
        for file in files:
            edges = draw(st.sets(st.tuples(small, small), max_size=8))
            kinds = draw(st.lists(st.sampled_from([1, 1, -1, 0]), min_size=len(edges), max_size=len(edges)))
            file += [(kind, 10 * graph + a, 10 * graph + b) for kind, (a, b) in zip(kinds, sorted(edges), strict=True)]
    return files


def fold(files: Sequence[Changes]) -> list[tuple[int, int]]:
    """Apply changes in order, the plain way."""
    edges: set[tuple[int, int]] = set()
    for file in files:
        for kind, follower, followed in file:
            if kind > 0 and follower != followed:
                edges.add((follower, followed))
            elif kind < 0:
                edges.discard((follower, followed))
    return sorted(edges)


@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(files=change_files(), p=st.sampled_from([0.0, 0.00037, 0.1]))
def test_deletes_and_reinserts_over_several_files(run, files, p):
    edges = fold(files)
    manifest, found = run(*files, factor=p)
    assert manifest["edges"] == len(edges)
    assert_within(manifest, found, exact(edges, p) if edges else {})


def test_one_file_may_stand_for_several_epochs(session, tmp_path):
    """Content-addressed stores keep equal deltas once: here epochs 1 and 3 insert, epoch 2 deletes."""
    from spark.jobs.ranking import main

    insert = write_changes(tmp_path / "insert", [(1, 1, 2)])
    delete = write_changes(tmp_path / "delete", [(-1, 1, 2)])
    inputs = [(insert, 1), (delete, 2), (insert, 3)]
    assert main(session, inputs, tmp_path / "kept", factor=0.5)["edges"] == 1
    assert main(session, inputs[:2], tmp_path / "gone", factor=0.5)["edges"] == 0


def test_the_result_has_the_same_bits_for_every_layout(run, monkeypatch):
    edges = [edge for edge in zoo() if edge[0] >= 7000]
    _, expected = run(inserts(edges), factor=0.1)
    monkeypatch.setattr("spark.jobs.ranking.ROWS_PER_PARTITION", 500)
    shuffled = inserts([edges[i] for i in np.random.default_rng(1).permutation(len(edges))])
    _, found = run(shuffled[:700], shuffled[700:], factor=0.1)
    assert found == expected


@pytest.mark.parametrize("files", [[], [[]], [[(1, 1, 2)], [(-1, 1, 2)]], [[(0, 1, 2), (1, 3, 3)]]])
def test_no_edges(run, files):
    manifest, found = run(*files, factor=0.85)
    assert found == {}
    assert (manifest["vertices"], manifest["edges"], manifest["relative_error"]) == (0, 0, 0.0)


def test_the_iteration_cap_is_an_error(run, tmp_path):
    from spark.jobs.ranking import NotConverged

    with pytest.raises(NotConverged, match=r"p = 0\.9 .* after 3 iterations.*allow more iterations"):
        run(inserts([(1, 2), (2, 1)]), factor=0.9, max_iterations=3)
    assert not list(tmp_path.glob("*/out/*.json"))


@pytest.mark.parametrize("edges", [[(1, 2), (2, 1)], [(1, 2), (2, 3)]])
def test_a_tolerance_beyond_float64_is_an_error(run, edges):
    from spark.jobs.ranking import NotConverged

    with pytest.raises(NotConverged, match="float64 does not reach"):
        run(inserts(edges), factor=0.1, tolerance=1e-16)


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 1.0},
        {"factor": -0.1},
        {"factor": float("nan")},
        {"factor": 0.5, "tolerance": 0.0},
        {"factor": 0.5, "max_iterations": 0},
    ],
)
def test_parameters_out_of_range(run, options):
    with pytest.raises(ValueError, match=r"(factor|tolerance|max_iterations) is"):
        run(inserts([(1, 2)]), **options)


def test_output_that_holds_something_is_left_alone(session, tmp_path):
    from spark.jobs.ranking import main

    (tmp_path / "precious").write_text("mine")
    with pytest.raises(FileExistsError, match="give a new or empty folder"):
        main(session, [], tmp_path, factor=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_folders_are_not_inputs(session, tmp_path):
    from spark.jobs.ranking import main

    (tmp_path / "in").mkdir()
    write_changes(tmp_path / "in" / "a.parquet", [(1, 1, 2)])
    with pytest.raises(ValueError, match="list files, not folders"):
        main(session, [(tmp_path / "in", 1)], tmp_path / "out", factor=0.5)


def test_awkward_paths_and_a_committed_output(session, tmp_path):
    """The way of a batch: odd names, an attempt's folder, a commit that finds the manifest true."""
    from spark.jobs.ranking import main

    place = tmp_path / "we ird[1]%20é+{a,b}*"
    place.mkdir()
    inputs = [(write_changes(place / "in put?.parquet", [(1, 1, 2), (1, 2, 3)]), 4)]
    folder = OutputFolder(place / "out")
    attempt = folder.begin("key")
    held = session.sparkContext._jsc.getPersistentRDDs().size()
    adaptive = session.conf.get("spark.sql.adaptive.enabled")
    manifest = main(session, inputs, attempt, factor=0.5)
    assert session.conf.get("spark.sql.adaptive.enabled") == adaptive == "true"
    assert read_result(folder.commit(attempt)) == pytest.approx({1: 0.0, 2: 1.0, 3: 1.5}, rel=1e-10)
    assert json.loads((attempt / "_manifest.json").read_text()) == manifest
    assert {path.name for path in attempt.iterdir()} == {
        "_manifest.json",
        *(file["name"] for file in manifest["files"]),
    }
    assert session.sparkContext._jsc.getPersistentRDDs().size() == held


def test_the_job_stands_alone():
    imported = set()
    for node in ast.walk(ast.parse(JOB_FILE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"pyspark"}


def test_spark_submit_runs_the_file_alone(tmp_path):
    need_java()
    for name in ("cwd", "tmp", "in"):
        (tmp_path / name).mkdir()
    job = shutil.copy(JOB_FILE, tmp_path / "job.py")
    edges = [(1, 2), (2, 3), (3, 1), (4, 1)]
    write_changes(tmp_path / "in" / "base", inserts([*edges, (9, 1)]))
    write_changes(tmp_path / "in" / "delta", [(-1, 9, 1), (0, 9, 5)])
    listing = tmp_path / "in" / "list.json"
    listing.write_text(json.dumps([{"path": "delta", "sequence": 2}, {"path": "base", "sequence": 1}]))
    submit = Path(sys.executable).with_name("spark-submit")
    defaults = PROJECT / "clusters" / "spark" / "spark-defaults.conf"
    arguments = ["--factor", "0.1", "--output", "out", "--inputs", listing]
    done = subprocess.run(
        [submit, "--master", "local[1]", "--properties-file", defaults, job, *arguments],
        cwd=tmp_path / "cwd",
        env={
            "PATH": f"{submit.parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path / "tmp"),
        }
        | {name: os.environ[name] for name in ["JAVA_HOME"] if name in os.environ},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout.splitlines()[-1])
    assert_within(manifest, read_result(tmp_path / "cwd" / "out"), exact(edges, 0.1))
    assert [path.name for path in (tmp_path / "cwd").iterdir()] == ["out"]


@pytest.mark.parametrize("weights", [{}, {7001: 500.0, 900: 0.25, 10**12: 3.0}])
def test_pagerank_is_what_networkx_says(run, weights):
    edges = zoo()
    manifest, found = run(inserts(edges), algorithm="pagerank", factor=0.85, weights=weights)
    assert (manifest["algorithm"], manifest["factor"]) == ("pagerank", 0.85)
    assert manifest["relative_error"] <= 1e-10
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
    graph = networkx.DiGraph(edges)
    bases = {vertex: weights.get(vertex, 1.0) for vertex in graph}
    # Its tolerance is on the sum of all errors, divided by the number of vertices.
    expected = networkx.pagerank(graph, 0.85, personalization=bases, tol=1e-18, max_iter=1000)
    assert_within({"relative_error": 1e-9}, found, expected)


def test_weights_and_algorithms_that_do_not_fit_are_refused(session, tmp_path):
    from spark.jobs.ranking import main

    for options, text in (
        ({"algorithm": "hits"}, "algorithm is hits"),
        ({"weights": {1: 2.0}}, "weights are for PageRank"),
        ({"algorithm": "pagerank", "weights": {1: 0.0}}, "weights have to be greater than 0"),
    ):
        with pytest.raises(ValueError, match=text):
            main(session, [], tmp_path / "out", factor=0.5, **options)

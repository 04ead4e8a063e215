"""Runs that publish: what readers of a sink add up is what the run itself says, epoch by epoch, wherever it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

import exoflow
from exoflow.storage import open_store
from exoflow.storage.location import S3Location
from graph_stream import Pipeline, runs
from graph_stream.errors import ConfigError, SinkUnavailable
from graph_stream.parquet_sink import MARKER_KEY, file_name
from graph_stream.pipeline import resume
from ingest import write_rmat
from spark.session import close_session, open_session
from tests.integration.services import CREDENTIALS, S3, Kafka, free_port
from tests.integration.test_spark_session import need_java
from tests.integration.topic import Seen, epochs_once, merged

pytestmark = pytest.mark.usefixtures("ray_cluster")

EPOCHS, EPOCH_EDGES, TOP = 8, 500, 7


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edges") / "edges.txt.gz"
    write_rmat(path, 9, EPOCHS * EPOCH_EDGES, seed=5, deletes=0.3)
    return path


def run(edges: Path, store: Path | str, *publish: str, **options: Any) -> dict[str, Any]:
    options = {"columns": "src,dst,op", "epoch_edges": EPOCH_EDGES, "publish": publish, **options}
    return Pipeline(str(edges), **options).run(run_id="r", store=str(store))


def folded(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Return the newest influence of every vertex that has not left, from rows by epoch."""
    table: dict[int, float] = {}
    for row in rows:
        if row["deleted"]:
            del table[row["vertex"]]
        else:
            table[row["vertex"]] = row["influence"]
    return table


def by_epoch(table: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.sort_by([("epoch", "ascending"), ("vertex", "ascending")]).to_pylist()
    return found


@pytest.fixture(scope="module")
def published(edges: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two partitions, which holds its store and what it published, all and best."""
    folder = tmp_path_factory.mktemp("published")
    run(edges, folder / "store", str(folder / "all"), f"{folder / 'best'}?top={TOP}", partitions=2)
    return folder


def test_rows_add_up_to_the_scores_of_every_epoch(published: Path) -> None:
    opened = runs.open_run("r", str(published / "store"))
    rows = by_epoch(pq.read_table(published / "all"))
    for epoch in range(1, EPOCHS + 1):
        scores = runs.scores(opened, epoch)
        expected = dict(zip(scores["vertex"].to_pylist(), scores["influence"].to_pylist(), strict=True))
        assert folded([row for row in rows if row["epoch"] <= epoch]) == expected
        bounds = dict(zip(scores["vertex"].to_pylist(), scores["error_bound"].to_pylist(), strict=True))
        now = [row for row in rows if row["epoch"] == epoch and not row["deleted"]]
        assert now
        assert all(row["error_bound"] == bounds[row["vertex"]] for row in now)
    assert any(row["deleted"] for row in rows)


def test_the_best_add_up_to_the_top_of_every_epoch(published: Path) -> None:
    opened = runs.open_run("r", str(published / "store"))
    rows = by_epoch(pq.read_table(published / "best"))
    for epoch in range(1, EPOCHS + 1):
        top = runs.top(opened, epoch, TOP)
        expected = dict(zip(top["vertex"].to_pylist(), top["influence"].to_pylist(), strict=True))
        assert folded([row for row in rows if row["epoch"] <= epoch]) == expected


def test_every_epoch_has_a_file_with_its_marker(published: Path) -> None:
    committed = runs.open_run("r", str(published / "store")).entries
    names = sorted(path.name for path in (published / "all").glob("*.parquet"))
    assert names == [file_name(epoch) for epoch in range(1, EPOCHS + 1)]
    for entry, name in zip(committed, names, strict=True):
        marker = json.loads(pq.read_schema(published / "all" / name).metadata[MARKER_KEY])
        row = entry["row"]
        same = ("epoch", "state_hash", "error_bound", "vertices", "edges")
        assert {key: marker[key] for key in same} == {key: row[key] for key in same}
        assert marker["rows"] == pq.read_metadata(published / "all" / name).num_rows


def test_everyone_reads_one_table(published: Path) -> None:
    folder = published / "all"
    expected = by_epoch(ds.dataset(folder, format="parquet").to_table())
    frame = pd.read_parquet(folder)
    assert by_epoch(pa.Table.from_pandas(frame, preserve_index=False)) == expected
    relation = duckdb.connect().sql(f"SELECT * FROM read_parquet('{folder}/*.parquet') ORDER BY epoch, vertex")
    names = relation.columns
    assert [dict(zip(names, row, strict=True)) for row in relation.fetchall()] == expected


@pytest.mark.java
def test_spark_reads_the_same_table(published: Path, tmp_path: Path) -> None:
    need_java()
    session = open_session("local[1]", "test", scratch=tmp_path)
    try:
        rows = session.read.parquet(str(published / "all")).orderBy("epoch", "vertex").collect()
    finally:
        close_session(session)
    assert [row.asDict() for row in rows] == by_epoch(pq.read_table(published / "all"))


def test_every_sink_gets_the_same_however_the_graph_is_shared(
    edges: Path, published: Path, s3: S3, kafka: Kafka, tmp_path: Path
) -> None:
    place, topic, best = s3.new_store(), kafka.new_topic(3), tmp_path / "best"
    sinks = (place, f"kafka://{kafka.address}/{topic}", f"{best}?top={TOP}")
    run(edges, tmp_path / "store", *sinks, partitions=1, checkpoint="sync")
    expected = [pq.read_table(published / "all" / file_name(epoch)) for epoch in range(1, EPOCHS + 1)]

    objects = open_store(place, create=False)
    assert objects.list("") == [file_name(epoch) for epoch in range(1, EPOCHS + 1)]
    for epoch, table in enumerate(expected, 1):
        data = objects.get(file_name(epoch))
        assert data is not None
        assert pq.read_table(pa.BufferReader(data)).equals(table)
    assert as_s3_dataset(place).equals(pa.concat_tables(expected))

    seen = merged(kafka.address, topic)
    assert epochs_once(seen, EPOCHS)
    for each, table in zip(seen, expected, strict=True):
        assert_same_rows(each, table)

    for epoch in range(1, EPOCHS + 1):
        assert pq.read_table(best / file_name(epoch)).equals(pq.read_table(published / "best" / file_name(epoch)))


def as_s3_dataset(place: str) -> pa.Table:
    """Read a folder on S3 as anyone would, without this project."""
    location = S3Location.parse(place)
    scheme, _, address = str(location.endpoint).partition("://")
    keys = {"access_key": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secret_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
    files = pyarrow.fs.S3FileSystem(endpoint_override=address, scheme=scheme, region="us-east-1", **keys)
    return ds.dataset(f"{location.bucket}/{location.prefix}", format="parquet", filesystem=files).to_table()


def assert_same_rows(seen: Seen, table: pa.Table) -> None:
    rows = {row["vertex"]: row for row in table.to_pylist()}
    assert {vertex for vertex, row in rows.items() if row["deleted"]} == {
        vertex for vertex, row in seen.rows.items() if row is None
    }
    for vertex, row in seen.rows.items():
        if row is not None:
            assert row == {name: value for name, value in rows[vertex].items() if name != "deleted"}


def test_a_run_that_finds_something_else_in_a_place_of_its_sink_has_failed_at_once(
    edges: Path, published: Path, tmp_path: Path
) -> None:
    """Nothing is tried again, for that would take minutes and change nothing; what to do is told, and helps."""
    out, store = tmp_path / "out", str(tmp_path / "store")
    in_the_way = out / file_name(EPOCHS)

    def put_in_the_way(row: Any) -> None:
        in_the_way.write_bytes(b"somebody else's")

    told: list[str] = []
    pipeline = Pipeline(str(edges), columns="src,dst,op", epoch_edges=EPOCH_EDGES, publish=(str(out),), partitions=2)
    with pytest.raises(exoflow.TaskFailed, match="not this run's; move it away, then resume the run") as failed:
        pipeline.run(run_id="r", store=store, progress=put_in_the_way, tell=told.append)
    assert failed.value.task == f"sink_1[{EPOCHS}]"
    (text,) = told
    assert f"epoch {EPOCHS} cannot be published" in text
    assert in_the_way.name in text
    in_the_way.unlink()
    resumed_to_the_end(store, out, published)


def test_a_run_whose_sink_stays_out_of_reach_has_failed_and_goes_on_when_resumed(
    edges: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph_stream.publishing.RETRIES", 1)
    out, aside, store = tmp_path / "out", tmp_path / "aside", str(tmp_path / "store")

    def take_away(row: Any) -> None:
        if not aside.exists():
            out.rename(aside)
            out.write_bytes(b"no folder")

    told: list[str] = []
    pipeline = Pipeline(str(edges), columns="src,dst,op", epoch_edges=EPOCH_EDGES, publish=(str(out),), partitions=2)
    with pytest.raises(exoflow.TaskFailed) as failed:
        pipeline.run(run_id="r", store=store, progress=take_away, tell=told.append)
    assert failed.value.task.startswith("sink_1[")
    assert exoflow.get_status("r", store=store) is exoflow.Status.FAILED
    assert len(told) == 2
    assert all("is not published" in text for text in told)
    out.unlink()
    aside.rename(out)
    resumed_to_the_end(store, out, published)


def resumed_to_the_end(store: str, out: Path, published: Path) -> None:
    resume("r", store, partitions=1)
    for epoch in range(1, EPOCHS + 1):
        assert pq.read_table(out / file_name(epoch)).equals(pq.read_table(published / "all" / file_name(epoch)))


def test_a_run_that_cannot_be_published_does_not_begin(
    edges: Path, published: Path, kafka: Kafka, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    for place, error, why in (
        (str(published / "all"), ConfigError, "empty folder"),
        (f"kafka://{kafka.address}/absent", ConfigError, "there is no topic 'absent'"),
        (f"s3://absent/x?endpoint=http://127.0.0.1:{free_port()}", SinkUnavailable, "cannot"),
    ):
        with pytest.raises(error, match=why):
            run(edges, store, place)
        with pytest.raises(exoflow.WorkflowNotFound):
            exoflow.get_status("r", store=store)


def test_another_place_is_another_run(edges: Path, published: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)--publish: .*all.* -> "):
        run(edges, published / "store", str(published / "elsewhere"), partitions=2)

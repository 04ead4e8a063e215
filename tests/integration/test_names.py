"""Runs whose ids are names: each answer is that of the same stream with the names numbered by a plain dict."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import exoflow
import exoflow.cli
from exoflow.blobs import Blobs
from graph_stream import Pipeline, runs
from graph_stream.cli import cli
from graph_stream.epoch import combine
from graph_stream.errors import ConfigError
from graph_stream.graph import PartitionState
from graph_stream.personalization import sha256_of
from graph_stream.pipeline import resume
from graph_stream.rounds import alone
from ingest import write_rmat
from tests.fault.command import Command
from tests.integration.test_pipeline import Interrupt, expected, hashes, run_until
from tests.integration.test_spark_session import need_java
from tests.integration.topic import committed_records, epochs_once, merged

pytestmark = pytest.mark.usefixtures("ray_cluster")

OPTIONS = {"columns": "src,dst,op", "epoch_edges": 500}


def name_of(vertex: int) -> str:
    """Return a name for a number: long and short, of several alphabets, one the beginning of another."""
    prefixes = ("", "user_", "ñandú-", "名前:", "a" * (vertex % 40))
    return f"{prefixes[vertex % len(prefixes)]}{vertex:x}"


@dataclasses.dataclass(frozen=True)
class Streams:
    """One stream twice."""

    named: Path
    numbered: Path
    """With the numbers that a plain dict gives to the names."""
    names: list[str]
    """By number."""

    def in_names(self, scores: pa.Table) -> list[dict[str, Any]]:
        """Return the rows of scores in numbers, with names."""
        return [{**row, "vertex": self.names[row["vertex"]]} for row in scores.to_pylist()]

    def check(self, store: str, **options: Any) -> None:
        """Compare what a run has committed with the stream of numbers."""
        wanted = expected(str(self.numbered), **OPTIONS, **options)
        assert hashes(store) == wanted.hashes
        run = runs.open_run("r", store)
        for epoch in (run.newest, 7):
            assert runs.scores(run, epoch).to_pylist() == self.in_names(wanted.scores[epoch - 1])


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Streams:
    folder = tmp_path_factory.mktemp("streams")
    plain, named, numbered = (folder / f"{name}.tsv" for name in ("plain", "named", "numbered"))
    write_rmat(plain, 10, 6000, seed=5, deletes=0.2)
    numbers: dict[str, int] = {}
    with named.open("w") as names_out, numbered.open("w") as numbers_out:
        for line in plain.read_text().splitlines():
            src, dst, op = line.split("\t")
            pair = [name_of(int(each)) for each in (src, dst)]
            names_out.write("\t".join([*pair, op]) + "\n")
            numbers_out.write("\t".join([*(str(numbers.setdefault(name, len(numbers))) for name in pair), op]) + "\n")
    return Streams(named, numbered, list(numbers))


def pipeline(streams: Streams, **options: Any) -> Pipeline:
    return Pipeline(str(streams.named), ids="string", **OPTIONS, **options)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture(scope="module")
def finished(streams: Streams, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the store of a run that nothing happened to."""
    store = str(tmp_path_factory.mktemp("finished"))
    pipeline(streams, checkpoint="sync", partitions=3).run(run_id="r", store=store)
    return store


def test_a_run_in_names_is_the_run_of_their_numbers(streams, finished):
    streams.check(finished)
    run = runs.open_run("r", finished)
    assert run.row(run.newest)["names"] == len(streams.names) == len(runs.names_at(run, run.newest))
    names = runs.names_at(run, 2)
    known = run.row(2)["names"]
    assert [each.decode() for each in names.stretch(0, len(names)).to_pylist()] == streams.names[:known]
    assert known < len(streams.names)


@pytest.mark.parametrize(
    ("mode", "before", "after", "checkpoint_every"), [("async", 1, 3, 1), ("sync", 2, 1, 5), ("none", 2, 1, 1)]
)
def test_a_run_in_names_goes_on_with_other_partitions(streams, mode, before, after, checkpoint_every, store):
    interrupted = pipeline(streams, checkpoint=mode, partitions=before, checkpoint_every=checkpoint_every)
    run_until(interrupted, store, Interrupt(8))
    resume("r", store, partitions=after)
    if mode != "none":
        streams.check(store)
    run = runs.open_run("r", store)
    last = expected(str(streams.numbered), **OPTIONS).scores[-1]
    assert runs.scores(run, run.newest).to_pylist() == streams.in_names(last)


def test_the_dictionary_outlives_its_epochs(streams, store):
    """Objects are merged and collected all the time, and the reader starts from what is left."""
    options = {**OPTIONS, "epoch_edges": 100}
    run = Pipeline(str(streams.named), ids="string", keep_epochs=2, checkpoint="async", **options)
    run_until(run, store, Interrupt(40))
    resume("r", store)
    opened = runs.open_run("r", store)
    wanted = expected(str(streams.numbered), **options)
    assert hashes(store) == wanted.hashes
    assert runs.scores(opened, opened.newest).to_pylist() == streams.in_names(wanted.scores[-1])
    with runs.dictionary_of(opened, opened.newest) as dictionary:
        assert len(dictionary) == len(streams.names)
        assert dictionary.entries[0].count > opened.row(3)["names"]
    assert CliRunner().invoke(exoflow.cli.cli, ["verify", "r", "--store", store]).exit_code == 0


def test_a_damaged_object_of_names_is_made_again_from_the_source(streams, store):
    run_until(pipeline(streams), store, Interrupt(6))
    opened = runs.open_run("r", store)
    with runs.dictionary_of(opened, opened.newest) as dictionary:
        newest = dictionary.entries[-1]
    blobs = Blobs(opened.store, "r")
    opened.store.put(blobs.key(newest.blob), blobs.read(newest.blob)[:-1])
    with pytest.raises(exoflow.CorruptRecord, match="damaged"):
        runs.scores(opened, opened.newest)
    resume("r", store)
    assert hashes(store) == expected(str(streams.numbered), **OPTIONS).hashes
    opened = runs.open_run("r", store)
    last = expected(str(streams.numbered), **OPTIONS).scores[-1]
    assert runs.scores(opened, opened.newest).to_pylist() == streams.in_names(last)


def by_vertex(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    return {row["vertex"]: (row["influence"], row["error_bound"]) for row in rows}


def test_sinks_and_favoured_vertices_go_by_names(streams, store, tmp_path):
    """Names of favoured vertices have the first numbers: which ones makes no difference to any influence."""
    favoured = {streams.names[40]: 500.0, 'never "seen", ever': 7.0, streams.names[3]: 0.25}
    in_names, in_numbers = (tmp_path / f"favoured.{suffix}" for suffix in ("csv", "parquet"))
    pyarrow.csv.write_csv(pa.table({"vertex": list(favoured), "weight": list(favoured.values())}), in_names)
    numbered = {number: favoured[name] for number, name in enumerate(streams.names) if name in favoured}
    pq.write_table(pa.table({"vertex": list(numbered), "weight": list(numbered.values())}), in_numbers)
    folder = tmp_path / "published"
    both = {"algorithm": ("tunkrank", "pagerank"), "personalization": str(in_names), "publish": (str(folder),)}
    run_until(pipeline(streams, partitions=2, **both), store, Interrupt(7))
    resume("r", store, partitions=1)

    run = runs.open_run("r", store)
    weights = {"personalization": str(in_numbers), "personalization_sha256": sha256_of(str(in_numbers))}
    for algorithm, options in {"tunkrank": {}, "pagerank": weights}.items():
        wanted = expected(str(streams.numbered), algorithm=(algorithm,), **options, **OPTIONS)
        scores = runs.scores(run, run.newest, algorithm).to_pylist()
        assert by_vertex(scores) == by_vertex(streams.in_names(wanted.scores[-1]))
    table: dict[str, float] = {}
    for epoch, path in enumerate(sorted(folder.glob("*.parquet")), 1):
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            table[row["vertex"]] = row["influence"]
        for row in rows:
            if row["deleted"]:
                del table[row["vertex"]]
        wanted = expected(str(streams.numbered), **OPTIONS)
        assert table == {row["vertex"]: row["influence"] for row in streams.in_names(wanted.scores[epoch - 1])}
    assert epoch == run.newest


def test_commands_answer_in_names(streams, finished, tmp_path):
    last = streams.in_names(expected(str(streams.numbered), **OPTIONS).scores[-1])
    command = ["--run-id", "r", "--store", finished]
    out = tmp_path / "scores.csv"
    assert CliRunner().invoke(cli, ["scores", *command, "--out", str(out)]).exit_code == 0
    assert pyarrow.csv.read_csv(out)["vertex"].to_pylist() == [row["vertex"] for row in last]
    best = [row["vertex"] for row in sorted(last, key=lambda row: -row["influence"])[:3]]
    told = CliRunner().invoke(cli, ["top", *command, "-k", "3", "--json"])
    assert [row["vertex"] for row in json.loads(told.stdout)["top"]] == best
    shown = CliRunner().invoke(cli, ["top", *command, "-k", "3"]).stdout.splitlines()
    assert [line.split()[1] for line in shown[1:4]] == best


def test_a_batch_answers_in_names_and_is_audited(streams, finished):
    need_java()
    command = ["--run-id", "r", "--store", finished, "--master", "local[1]", "--json"]
    audited = CliRunner().invoke(cli, ["audit", *command])
    assert audited.exit_code == 0, audited.output
    shown = json.loads(audited.stdout.splitlines()[-1])
    assert shown["within_bound"]
    exact = pq.read_table(shown["path"]).to_pylist()
    assert {row["vertex"]: row["number"] for row in exact} == {
        streams.names[row["number"]]: row["number"] for row in exact
    }
    last = expected(str(streams.numbered), **OPTIONS).scores[-1]
    assert {row["vertex"] for row in exact} == {row["vertex"] for row in streams.in_names(last)}


def message(line: str) -> bytes:
    src, dst, op = line.split("\t")
    return json.dumps({"src": src, "dst": dst, "op": op}).encode()


def rows_of(store: str) -> list[dict[str, Any]]:
    try:
        return [entry["row"] for entry in runs.open_run("r", store).entries]
    except exoflow.WorkflowNotFound:
        return []


def reached(store: str) -> int:
    ends: dict[str, int] = {}
    for row in rows_of(store):
        ends |= {split: end for split, (_, end) in row["offsets"].items()}
    return sum(ends.values())


def markers(address: str, topic: str) -> int:
    return sum(record.key.startswith(b"epoch:") for record in committed_records(address, topic))


def test_a_killed_run_over_a_live_topic_keeps_every_name(streams, kafka, store):
    """Cut by time and killed: the same as if a dict had numbered what each committed epoch took."""
    epochs_before = random.Random(3).randint(1, 5)
    topic, out = kafka.new_topic(2), kafka.new_topic(3)
    lines = streams.named.read_text().splitlines()[:2500]
    parts = {f"{topic}-0": lines[0::2], f"{topic}-1": lines[1::2]}
    source = f"kafka://{kafka.address}/{topic}?format=json"
    arguments = ["--run-id", "r", "--store", store, "--source", source, "--columns", "src,dst,op", "--ids", "string"]
    arguments += ["--epoch-seconds", 0.2, "--epoch-edges", 200, "--publish", f"kafka://{kafka.address}/{out}"]

    def send(which: slice) -> None:
        with kafka.producer() as producer:
            for number, given in enumerate(parts.values()):
                for line in given[which]:
                    producer.send(topic, message(line), partition=number)

    send(slice(0, 800))
    with Command("run", *arguments) as run:
        run.until(lambda: len(rows_of(store)) >= epochs_before)
        run.kill()
        run.until_nothing_is_left()
    before = rows_of(store)
    assert 0 < reached(store) < len(lines)
    send(slice(800, None))
    with Command("resume", "--run-id", "r", "--store", store, "--partitions", 2) as resumed:
        resumed.until(lambda: reached(store) == len(lines))
        resumed.until(lambda: markers(kafka.address, out) == 3 * len(rows_of(store)))
        resumed.interrupt(group=False)
        resumed.end()

    opened, rows = runs.open_run("r", store), rows_of(store)
    assert rows[: len(before)] == before
    (parameters,) = opened.config.parameters()
    state, numbers = PartitionState(parameters), {}
    for row in rows:
        lines_of_epoch = [line for split in parts for line in parts[split][slice(*row["offsets"].get(split, (0, 0)))]]
        taken = [line.split("	") for line in lines_of_epoch]
        pairs = [[numbers.setdefault(name, len(numbers)) for name in record[:2]] for record in taken]
        src, dst = np.array(pairs).T
        signs = np.array([1 if record[2] == "+" else -1 for record in taken], np.int8)
        summary = combine([state.apply(row["epoch"], src, dst, signs, alone)], parameters)
        assert (summary.state_hash, len(numbers)) == (row["state_hash"], row["names"])
    scores = {row["vertex"]: row["influence"] for row in runs.scores(opened, opened.newest).to_pylist()}
    names = list(numbers)
    wanted = zip(*(column.tolist() for column in state.scores()), strict=True)
    assert scores == {names[number]: influence for number, influence in wanted}

    seen = merged(kafka.address, out)
    assert epochs_once(seen, len(rows))
    table: dict[str, dict[str, Any]] = {}
    for epoch in seen:
        table |= epoch.rows
    told = {vertex: row for vertex, row in table.items() if row is not None}
    assert {vertex: row["influence"] for vertex, row in told.items()} == scores
    assert all(row["vertex"] == vertex for vertex, row in told.items())


def test_a_run_in_names_is_no_run_in_numbers(streams, finished):
    with pytest.raises(ConfigError, match="--ids: string -> int64"):
        Pipeline(str(streams.named), checkpoint="sync", partitions=3, **OPTIONS).run(run_id="r", store=finished)
    with pytest.raises(ConfigError, match="ids must be one of int64, string, got 'uuid'"):
        Pipeline(str(streams.named), ids="uuid")

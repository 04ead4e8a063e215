"""Runs whose ids are names: each answer is that of the same stream with the names numbered by a plain dict."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest

from graph_stream import Pipeline, runs
from graph_stream.pipeline import resume
from ingest import write_rmat
from tests.integration.test_pipeline import Interrupt, expected, hashes, run_until

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


@pytest.mark.parametrize(
    ("mode", "partitions", "checkpoint_every"), [("async", 1, 1), ("sync", 3, 1), ("async", 2, 5), ("none", 2, 1)]
)
def test_a_run_in_names_is_the_run_of_their_numbers(streams, mode, partitions, checkpoint_every, store):
    row = pipeline(streams, checkpoint=mode, partitions=partitions, checkpoint_every=checkpoint_every).run(
        run_id="r", store=store
    )
    if mode != "none":
        streams.check(store)
    run = runs.open_run("r", store)
    assert row["names"] == len(streams.names) == len(runs.names_at(run, run.newest))
    last = expected(str(streams.numbered), **OPTIONS).scores[-1]
    assert runs.scores(run, run.newest).to_pylist() == streams.in_names(last)


@pytest.mark.parametrize(("mode", "before", "after"), [("async", 1, 3), ("sync", 2, 1), ("none", 2, 1)])
def test_a_run_in_names_goes_on_with_other_partitions(streams, mode, before, after, store):
    run_until(pipeline(streams, checkpoint=mode, partitions=before), store, Interrupt(5))
    resume("r", store, partitions=after)
    assert hashes(store) == expected(str(streams.numbered), **OPTIONS).hashes
    run = runs.open_run("r", store)
    assert [each["vertex"] for each in runs.scores(run, run.newest).to_pylist()] == [
        row["vertex"] for row in streams.in_names(expected(str(streams.numbered), **OPTIONS).scores[-1])
    ]

"""One state hash per epoch: partitions, threads, executions of rounds, modes and crashes do not change it."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from graph_stream import Pipeline, pipeline, runs
from graph_stream.algorithms import Parameters
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState
from graph_stream.rounds import alone
from ingest import EpochReader, open_source

pytestmark = pytest.mark.usefixtures("ray_cluster")

SOURCE = "rmat://?scale=8&edges=5000&seed=5&deletes=0.2"
OPTIONS: dict[str, Any] = {"columns": "src,dst,op", "epoch_edges": 500, "retweet_probability": 0.5}
PARTITIONS = (1, 2, 3, 4, 8)
CRASHES = ("cut[5]", "apply[6]", "publish[7]")
ALL = list(itertools.product(PARTITIONS, (1, 2), ("sparse", "dense", "auto"), ("none", "async", "sync"), CRASHES))
IN_CI = 5


class Crash:
    """Ends the run at the moment in which the output of a task is known and nothing has been done with it."""

    def __init__(self, task: str) -> None:
        self._task = task

    def produced(self, event: Any) -> None:
        if event.task == self._task:
            raise KeyboardInterrupt

    def committed(self, records: Sequence[Any], at: float) -> None:
        pass

    def told(self, actor: str, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def expected() -> list[str]:
    parameters = Parameters(retweet_probability=OPTIONS["retweet_probability"])
    state = PartitionState(parameters)
    found = []
    with EpochReader([open_source(SOURCE, OPTIONS["columns"])], OPTIONS["epoch_edges"]) as reader:
        position, last = reader.start(), False
        while not last:
            batch = reader.read(position)
            result = state.apply(state.epoch + 1, batch.src, batch.dst, batch.op, alone)
            found.append(combine([result], parameters).state_hash)
            position, last = batch.end, batch.last
    return found


def sampled() -> list[Any]:
    """Return all combinations, of which some run with the short suites: each value of each axis at least once."""
    chosen = random.Random(7)
    while True:
        short = chosen.sample(ALL, IN_CI)
        if all(len({each[axis] for each in short}) == len({each[axis] for each in ALL}) for axis in range(5)):
            return [pytest.param(*each, marks=() if each in short else pytest.mark.soak) for each in ALL]


@pytest.mark.parametrize(("partitions", "threads", "execution", "mode", "crash"), sampled())
def test_one_state_hash_per_epoch(partitions, threads, execution, mode, crash, expected, tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    # How rounds are executed is nobody's option: it is chosen by cost, and a test may insist.
    monkeypatch.setattr(pipeline, "_hints", lambda *_: {"execution": execution})
    after = PARTITIONS[(PARTITIONS.index(partitions) + 2) % len(PARTITIONS)]
    described = Pipeline(SOURCE, checkpoint=mode, partitions=partitions, threads=threads, **OPTIONS)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_RunObserver", lambda *_: contextlib.nullcontext(Crash(crash)))
        with pytest.raises(KeyboardInterrupt):
            described.run(run_id="r", store=store)
    survived = hashes(store)
    assert survived == expected[: len(survived)]
    pipeline.resume("r", store, partitions=after)
    assert hashes(store) == expected


def hashes(store: str) -> list[str]:
    return [entry["row"]["state_hash"] for entry in runs.open_run("r", store).entries]

"""Runs that are killed: when, how, and what has to come out of them all the same."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fault.command import Command, graph_stream

RECORDS = 100_000
EPOCH_EDGES = 2_000
EPOCHS = RECORDS // EPOCH_EDGES
# Slow enough for a run to last some seconds, so that moments in it differ.
RATE = 20_000
# Moments lie so early that a run is not over by the time that they are noticed.
LATEST_MOMENT = 25


@dataclasses.dataclass(frozen=True)
class Stream:
    """The input of a run."""

    path: Path

    def options(
        self, run_id: str, store: Path | str, mode: str, rate: float | None = RATE, **more: object
    ) -> list[object]:
        """Return the options of ``graph-stream run`` over this stream."""
        given = {"run-id": run_id, "store": store, "source": self.path, "checkpoint": mode, "rate": rate}
        given |= {"epoch-edges": EPOCH_EDGES, **{name.replace("_", "-"): value for name, value in more.items()}}
        return [
            *(part for name, value in given.items() if value is not None for part in (f"--{name}", value)),
            "--json",
        ]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run has committed: its epochs in order, and the scores at the newest."""

    epochs: list[dict[str, Any]]
    scores: pa.Table

    @property
    def hashes(self) -> list[str]:
        """The state hash of each epoch."""
        return [epoch["state_hash"] for epoch in self.epochs]


def epochs_of(run_id: str, store: Path | str) -> list[dict[str, Any]]:
    """Return what ``graph-stream epochs`` says."""
    ended = graph_stream("epochs", "--run-id", run_id, "--store", store, "--json").checked()
    return [json.loads(line) for line in ended.out.splitlines()]


def outcome_of(run_id: str, store: Path | str) -> Outcome:
    """Return what readers get of a run, through the commands they use."""
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores.parquet"
        graph_stream("scores", "--run-id", run_id, "--store", store, "--out", scores).checked()
        return Outcome(epochs_of(run_id, store), pq.read_table(scores))


def published(command: Command) -> int:
    """Return the newest epoch that a command with a terminal has told of; 0 before the first."""
    return max(map(int, re.findall(r"epoch (\d+) ", command.told)), default=0)


def wait_for_moment(command: Command, seed: str, first: int = 1) -> None:
    """Wait for a random moment of a run that publishes epoch ``first`` first."""
    chance = random.Random(seed)
    epoch = chance.randint(first, max(first, LATEST_MOMENT))
    command.until(lambda: published(command) >= epoch)
    # Somewhere inside an epoch, too.
    time.sleep(chance.uniform(0, EPOCH_EDGES / RATE))


def epochs_published(result: dict[str, Any]) -> int:
    """Return how many epochs the process that printed ``result`` has published itself."""
    return round(result["seconds"] * result["edges_per_second"] / EPOCH_EDGES)

"""SIGKILL and SIGSTOP of runs that publish: readers of a sink see each epoch once, in order, and whole."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from graph_stream.parquet_sink import file_name
from tests.fault.command import Command, graph_stream
from tests.fault.crashes import LATEST_MOMENT, Stream, wait_for_moment
from tests.integration.services import Kafka, kafka_service
from tests.integration.topic import Seen, epochs_once, merged

EPOCHS = LATEST_MOMENT + 5
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with kafka_service(tmp_path_factory.mktemp("kafka")) as service:
        yield service


@dataclasses.dataclass(frozen=True)
class Published:
    """What readers find of a run: the topic's epochs, and the folder's files."""

    epochs: list[Seen]
    tables: list[Any]

    def __eq__(self, other: object) -> bool:
        """Whether the content is the same; only the names of runs and streams differ."""
        assert isinstance(other, Published)
        same = all(mine.equals(its) for mine, its in zip(self.tables, other.tables, strict=True))
        return same and [_content(each) for each in self.epochs] == [_content(each) for each in other.epochs]

    __hash__ = None  # type: ignore[assignment]


def _content(seen: Seen) -> tuple[dict[str, Any], dict[int, Any]]:
    return {name: value for name, value in seen.marker.items() if name not in ("run_id", "stream")}, seen.rows


@dataclasses.dataclass(frozen=True)
class Places:
    """Where one run publishes to."""

    kafka: Kafka
    topic: str
    folder: Path

    def options(self) -> list[object]:
        return ["--publish", f"kafka://{self.kafka.address}/{self.topic}", "--publish", self.folder]

    def read(self) -> Published:
        seen = merged(self.kafka.address, self.topic)
        names = sorted(path.name for path in self.folder.glob("*.parquet"))
        assert names == [file_name(epoch) for epoch in range(1, len(names) + 1)]
        return Published(seen, [pq.read_table(self.folder / name) for name in names])

    def read_whole(self) -> Published:
        found = self.read()
        assert epochs_once(found.epochs, EPOCHS)
        assert len(found.tables) == EPOCHS
        return found


@pytest.fixture
def places(kafka: Kafka, tmp_path: Path) -> Places:
    return Places(kafka, kafka.new_topic(2), tmp_path / "out")


@pytest.fixture(scope="module")
def expected(stream: Stream, kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Return what a run publishes that nothing happens to."""
    folder = tmp_path_factory.mktemp("expected")
    places = Places(kafka, kafka.new_topic(1), folder / "out")
    graph_stream(
        "run", *stream.options("r", folder / "store", "async", rate=None, epochs=EPOCHS), *places.options()
    ).checked()
    return places.read_whole()


def resume(store: Path) -> None:
    ended = graph_stream("resume", "--run-id", "r", "--store", store, "--json").checked()
    assert ended.result["status"] == "SUCCESSFUL"


def test_a_killed_run_publishes_each_epoch_once(
    stream: Stream, places: Places, expected: Published, tmp_path: Path
) -> None:
    store, chance = tmp_path / "store", random.Random(1)
    with Command("run", *stream.options("r", store, "async", epochs=EPOCHS), *places.options(), terminal=True) as run:
        wait_for_moment(run, "published and killed")
        run.kill()
        run.until_nothing_is_left()
    before = places.read()
    with Command("resume", "--run-id", "r", "--store", store, terminal=True) as resumed:
        # Before it has read anything: what the first one left open is what it begins with.
        files = len(before.tables) + chance.randint(1, 10)
        resumed.until(lambda: len(list(places.folder.glob("*.parquet"))) >= files)
        resumed.kill_driver()
        resumed.until_nothing_is_left()
    resume(store)
    found = places.read_whole()
    assert found == without_partitions(expected, found)
    # What could be read before is what can be read after.
    assert found.epochs[: len(before.epochs)] == before.epochs


def without_partitions(expected: Published, found: Published) -> Published:
    """Return what is expected, said of a topic with as many partitions as the one that was found."""
    partitions = found.epochs[0].marker["partitions"]
    epochs = [Seen({**each.marker, "partitions": partitions}, each.rows) for each in expected.epochs]
    return Published(epochs, expected.tables)


def test_a_run_that_was_stopped_and_replaced_publishes_nothing_more(
    stream: Stream, places: Places, expected: Published, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with Command("run", *stream.options("r", store, "sync", epochs=EPOCHS), *places.options(), terminal=True) as zombie:
        wait_for_moment(zombie, "stopped while it publishes")
        tree = zombie.tree()
        for process in tree:
            process.send_signal(signal.SIGSTOP)
        graph_stream("resume", "--run-id", "r", "--store", store, "--take-over", "--json").checked()
        replaced = places.read_whole()
        for process in tree:
            process.send_signal(signal.SIGCONT)
        ended = zombie.end()
    assert ended.code == 1
    assert "r" in ended.err
    again = places.read_whole()
    assert again == replaced == without_partitions(expected, again)


def publishers(run: Command, kafka: Kafka) -> list[psutil.Process]:
    """Return the processes that are connected to the broker."""
    port = int(kafka.address.rpartition(":")[2])
    return [each for each in run.tree() if any(link.raddr and link.raddr.port == port for link in connections(each))]


def connections(process: psutil.Process) -> list[Any]:
    with contextlib.suppress(psutil.Error):
        return list(process.net_connections("tcp"))
    return []


def test_a_publisher_that_dies_is_replaced(stream: Stream, places: Places, expected: Published, tmp_path: Path) -> None:
    """Its process alone is killed, twice, in the midst of what it does; the run goes on by itself."""
    options = stream.options("r", tmp_path / "store", "async", epochs=EPOCHS)
    with Command("run", *options, *places.options(), terminal=True) as run:
        for first in (1, 10):
            wait_for_moment(run, f"a publisher dies {first}", first)
            run.until(lambda: publishers(run, places.kafka) != [])
            for process in publishers(run, places.kafka):
                process.kill()
        run.end().checked()
    found = places.read_whole()
    assert found == without_partitions(expected, found)

"""Whole runs on files that keep arriving, killed somewhere: the same as on one file with the same records."""

from __future__ import annotations

import functools
import gzip
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import exoflow
from graph_stream import Pipeline, runs
from graph_stream.pipeline import resume
from tests.fault.command import Command
from tests.integration.services import BUCKET, S3, S3Server
from tests.integration.test_pipeline import RMAT, Interrupt, expected, hashes

EPOCH_EDGES = 500
Put = Callable[[str, bytes], None]


def edges_of(drawn: random.Random, count: int) -> list[str]:
    """Return edges with duplicates and deletes."""
    return [f"{drawn.randrange(60)} {drawn.randrange(60)} {'+-'[drawn.random() < 0.2]}" for _ in range(count)]


def encoded(edges: Sequence[str], kind: str, scratch: Path) -> bytes:
    """Return edges as a file of a kind, and in text also what is none."""
    rows = [edge.split() for edge in edges]
    if kind == ".parquet":
        src, dst, op = zip(*rows, strict=True)
        pq.write_table(pa.table({"src": map(int, src), "dst": map(int, dst), "op": op}), scratch)
        return scratch.read_bytes()
    if kind == ".csv.gz":
        return gzip.compress(("op,dst,src\n" + "".join(f"{op},{dst},{src}\n" for src, dst, op in rows)).encode())
    text = "".join(f"{edge}\n" for edge in edges).encode() + b"poison\n"
    return zstandard.compress(text) if kind == ".txt.zst" else text


KINDS = (".txt", ".csv.gz", ".parquet", ".txt.zst")


class Arriving:
    """Files of all kinds that arrive one after the other, and the records they hold."""

    def __init__(self, seed: int, scratch: Path) -> None:
        drawn = random.Random(seed)
        self.files = {}
        for number in range(24):
            edges, kind = edges_of(drawn, drawn.randrange(1, 250)), KINDS[number % len(KINDS)]
            # A name says nothing about when its file comes.
            self.files[f"{drawn.randrange(10)}/{number}{kind}"] = (edges, encoded(edges, kind, scratch))
        rest = -sum(len(edges) for edges, _ in self.files.values()) % EPOCH_EDGES
        edges = edges_of(drawn, rest)
        self.files["z.txt"] = (edges, encoded(edges, ".txt", scratch))

    @property
    def count(self) -> int:
        return sum(len(edges) for edges, _ in self.files.values())

    @property
    def poison(self) -> int:
        return sum(".txt" in name for name in self.files)


def rows(store: Path) -> list[dict]:
    try:
        return [entry["row"] for entry in runs.open_run("run", str(store)).entries]
    except exoflow.ExoflowError:
        return []


def counted(store: Path) -> int:
    found = rows(store)
    return found[-1]["total_records"] if found else 0


def run_and_kill(
    sources: Sequence[str], store: Path, feeds: Sequence[Sequence[Callable[[], None]]], count: int, seed: int
) -> list[dict]:
    """Run while records come, kill everything somewhere, resume, and return the epochs once all records count.

    A third of each feed is there when the run begins, the others come one by one once the run has got going.
    """
    moment = random.Random(seed)
    arguments = ["--store", store, "--run-id", "run"]
    options = [word for source in sources for word in ("--source", source)]
    options += ["--columns", "src,dst,op", "--epoch-edges", EPOCH_EDGES]
    going = threading.Event()

    def feed() -> None:
        for number in range(max(map(len, feeds))):
            if number * 3 > max(map(len, feeds)):
                going.wait()
                time.sleep(0.05)  # they come while others are read
            for each in feeds:
                if number < len(each):
                    each[number]()

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        with Command("run", *arguments, *options) as run:
            run.until(lambda: len(rows(store)) >= 1)
            going.set()
            time.sleep(moment.uniform(0.0, 1.0))  # the moment is what the test is about
            run.kill()
            run.until_nothing_is_left()
    finally:
        going.set()
        feeding.join()
    before = rows(store)
    with Command("resume", *arguments) as resumed:
        resumed.until(lambda: counted(store) == count)
        resumed.interrupt(group=False)  # while it waits for more, which never comes
        assert resumed.end().code == 130
    found = rows(store)
    assert [row["state_hash"] for row in found[: len(before)]] == [row["state_hash"] for row in before]
    return found


def order_of(found: Sequence[dict]) -> list[str]:
    """Check that the epochs' offsets join up in each file from its beginning, and return the files in their order."""
    reached: dict[str, int] = {}
    for row in found:
        for name, (begin, end) in row["offsets"].items():
            assert begin == reached.get(name, 0)
            reached[name] = end
    return list(reached)


def kill_and_resume(tmp_path: Path, seed: int) -> None:
    folder, store = tmp_path / "arriving", tmp_path / "store"
    folder.mkdir()
    arriving, put = Arriving(seed, tmp_path / "scratch.parquet"), mover(folder)
    feed = [functools.partial(put, name, data) for name, (_, data) in arriving.files.items()]
    found = run_and_kill([f"watch://{folder}?every=0.1"], store, [feed], arriving.count, seed)
    names = order_of(found)
    assert sorted(names) == sorted(arriving.files)
    assert names != sorted(names)  # else nothing has arrived while others were read
    one = tmp_path / "one.txt"
    one.write_text("".join(f"{edge}\n" for name in names for edge in arriving.files[name][0]))
    from_one_file = expected(str(one), **{**RMAT, "epoch_edges": EPOCH_EDGES})
    assert [row["state_hash"] for row in found] == from_one_file.hashes
    opened = runs.open_run("run", str(store))
    assert runs.scores(opened, opened.newest).equals(from_one_file.scores[-1])
    told = [record.split for _, records in runs.bad_records(opened) for record in records]
    # What comes behind the last record of the last epoch was not part of it.
    poisoned = sorted(name for name in arriving.files if ".txt" in name)
    assert sorted(told) in (poisoned, sorted(set(poisoned) - {names[-1]}))


def prefix_of(s3: S3) -> tuple[str, Put]:
    place, _, query = s3.new_store().partition("?")
    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    prefix = place.removeprefix(f"s3://{BUCKET}/")

    def put(name: str, data: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=data)

    return f"watch://{place}?{query}&every=0.2", put


def mover(folder: Path) -> Put:
    """Return what moves whole files into a folder."""

    def put(name: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(data)
        part.rename(path)

    return put


@pytest.mark.timeout(240)
def test_a_killed_run_reads_each_file_once(tmp_path):
    kill_and_resume(tmp_path, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(3, 13))
def test_a_killed_run_reads_each_file_once_whenever_it_is_killed(tmp_path, seed):
    kill_and_resume(tmp_path, seed)


@pytest.mark.timeout(240)
def test_a_killed_run_on_a_bucket_and_a_growing_file_counts_each_record_once(s3, tmp_path):
    source, put = prefix_of(s3)
    arriving, store, path = Arriving(2, tmp_path / "scratch.parquet"), tmp_path / "store", tmp_path / "edges.txt"
    drawn = random.Random(2)
    # Vertices of the two sources are apart, so that what is left in the end does not depend on who was read when.
    grown = "".join(f"{100 + drawn.randrange(40)} {100 + drawn.randrange(40)} +\n" for _ in range(4 * EPOCH_EDGES))
    cuts = sorted([0, len(grown), *(drawn.randrange(len(grown)) for _ in range(40))])
    path.touch()

    def append(begin: int, end: int) -> None:
        with path.open("a") as file:
            file.write(grown[begin:end])

    feeds = [
        [functools.partial(put, name, data) for name, (_, data) in arriving.files.items()],
        [functools.partial(append, *run) for run in itertools.pairwise(cuts)],
    ]
    found = run_and_kill([source, f"follow://{path}"], store, feeds, arriving.count + 4 * EPOCH_EDGES, seed=2)
    names = order_of(found)
    assert sorted(names) == sorted([*arriving.files, path.name])
    one = tmp_path / "one.txt"
    arrived = "".join(f"{edge}\n" for name in names if name != path.name for edge in arriving.files[name][0])
    one.write_text(arrived + grown)
    exact = expected(str(one), **RMAT).scores[-1].to_pylist()
    opened = runs.open_run("run", str(store))
    scores = runs.scores(opened, opened.newest).to_pylist()
    assert [row["vertex"] for row in scores] == [row["vertex"] for row in exact]
    for row, wanted in zip(scores, exact, strict=True):
        wide = row["error_bound"] + wanted["error_bound"] + 1e-12
        assert row["influence"] == pytest.approx(wanted["influence"], abs=wide)


@pytest.mark.usefixtures("ray_cluster")
def test_an_s3_server_that_dies_in_the_middle_is_waited_for(tmp_path):
    told: list[str] = []
    arriving = Arriving(4, tmp_path / "scratch.parquet")
    with S3Server(tmp_path / "s3") as server:
        source, put = prefix_of(server.s3)
        for name, (_, data) in arriving.files.items():
            put(name, data)

        def progress(row: dict) -> None:
            if row["epoch"] == 1:
                server.kill()
                restarting.start()

        def tell(line: str) -> None:
            told.append(line)
            if line.startswith(f"waiting for s3://{BUCKET}/"):
                noticed.set()

        def restart() -> None:
            noticed.wait(60)
            server.start()

        noticed = threading.Event()
        restarting = threading.Thread(target=restart)
        Pipeline(f"{source}&until=end", rate=1000, **RMAT).run(
            run_id="run", store=str(tmp_path / "store"), progress=progress, tell=tell
        )
        restarting.join()
    found = rows(tmp_path / "store")
    assert order_of(found) == sorted(arriving.files)
    assert found[-1]["total_records"] == arriving.count
    assert found[-1]["total_rejected"] == arriving.poison
    assert noticed.is_set(), told


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("mode", ["none", "sync"])
def test_what_there_was_when_a_run_began_comes_to_what_it_comes_to_as_a_folder(tmp_path, mode):
    folder, store = tmp_path / "arriving", str(tmp_path / "store")
    arriving = Arriving(5, tmp_path / "scratch.parquet")
    for name, (_, data) in arriving.files.items():
        mover(folder)(name, data)
    pipeline = Pipeline(f"watch://{folder}?until=end", checkpoint=mode, rate=2000, **RMAT)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(run_id="r", store=store, progress=Interrupt(2))
    mover(folder)("0/late.txt", b"1 2 +\n")
    resume("r", store)
    one = tmp_path / "one.txt"
    one.write_text("".join(f"{edge}\n" for name in sorted(arriving.files) for edge in arriving.files[name][0]))
    assert hashes(store) == expected(str(one), **RMAT).hashes

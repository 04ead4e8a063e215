"""Values that hold references: passed on as they are, made durable where they lie, read back as references."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

import exoflow
from exoflow.journal import read_journal
from exoflow.storage import LocalStore
from tests.integration import engine_flows as flows

pytestmark = pytest.mark.usefixtures("ray_cluster")
PART = 300_000


@dataclasses.dataclass
class Parts:
    """A value that only pickling can hold, with references at several depths."""

    first: Any
    others: dict[str, list[Any]]


@exoflow.task(num_cpus=0, deterministic=True)
def make(folder: str, shape: str) -> Any:
    flows.note(folder, "make")
    refs = [ray.put(np.full(PART, number, np.uint8)) for number in range(3)]
    return {"list": refs, "bare": refs[0], "deep": Parts(refs[0], {"rest": refs[1:]})}[shape]


@exoflow.task(num_cpus=0, deterministic=True)
def forward(value: Any) -> Any:
    return value


@exoflow.task(num_cpus=0)
def total(folder: str, value: Any) -> list[int]:
    refs = {"list": lambda: value, "ObjectRef": lambda: [value], "Parts": lambda: [value.first, *value.others["rest"]]}
    kind = type(value).__name__
    found = [int(part.sum()) for part in ray.get(refs[kind]())]
    if not (Path(folder) / "gate").exists():
        message = "the gate is closed"
        raise RuntimeError(message)
    return found


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def blobs(store: str) -> list[str]:
    return LocalStore(store).list("workflows/w/blobs")


@pytest.mark.parametrize("mode", ["none", "async", "sync"])
@pytest.mark.parametrize("shape", ["list", "bare", "deep"])
def test_references_at_any_depth_are_passed_checkpointed_and_read_back(shape, mode, store, tmp_path):
    folder = str(tmp_path)
    made = make.options(checkpoint=mode).bind(folder, shape)
    node = total.bind(folder, forward.options(checkpoint=mode).bind(made))
    with pytest.raises(exoflow.TaskFailed, match="the gate is closed"):
        exoflow.run(node, workflow_id="w", store=store)
    parts = 1 if shape == "bare" else 3
    durable = "make" in read_journal(LocalStore(store), "w").history.committed
    assert durable or mode != "sync"
    if mode != "async":  # there, what was on its way to the store may still arrive
        assert len(blobs(store)) == (0 if mode == "none" else parts)
    (tmp_path / "gate").touch()
    assert exoflow.resume("w", store=store) == [PART * number for number in range(parts)]
    assert flows.noted(folder) == ["make"] * (1 if durable else 2)


def test_equal_content_is_stored_once_and_stays_while_any_record_names_it(store, tmp_path):
    (tmp_path / "gate").touch()
    made = make.bind(str(tmp_path), "list")
    node = total.bind(str(tmp_path), forward.options(name="again").bind(forward.bind(made)))
    exoflow.run(node, workflow_id="w", store=store)
    assert len(blobs(store)) == 3
    committed = read_journal(LocalStore(store), "w").history.committed
    names = [{blob.name for blob in committed[task].blobs} for task in ("make", "forward", "again")]
    assert names[0] == names[1] == names[2]


def test_a_reader_gets_references_too(store, tmp_path):
    exoflow.run(forward.bind(make.bind(str(tmp_path), "deep")), workflow_id="w", store=store)
    found = exoflow.get_output("w", task="make", store=store)
    assert isinstance(found, Parts)
    assert int(ray.get(found.others["rest"][1]).sum()) == 2 * PART


@exoflow.task(num_cpus=0)
def make_and_die(folder: str) -> list[Any]:
    """Return references whose data dies with this process, the first time soon after the return."""
    flows.note(folder, "make")
    if flows.once(folder, "die"):
        threading.Timer(0.5, os._exit, [1]).start()
    return [ray.put(np.full(PART, 1, np.uint8))]


@exoflow.task(num_cpus=0)
def read_later(folder: str, parts: list[Any]) -> int:
    flows.note(folder, "read")
    time.sleep(1.5)
    return int(ray.get(parts[0]).sum())


@pytest.mark.parametrize("mode", ["none", "async", "sync"])
def test_data_lost_with_its_process_is_made_again_or_read_from_the_store(mode, store, tmp_path):
    made = make_and_die.options(checkpoint=mode, deterministic=True).bind(str(tmp_path))
    assert exoflow.run(read_later.bind(str(tmp_path), made), workflow_id="w", store=store) == PART
    runs = Counter(flows.noted(tmp_path))
    assert runs["make"] == (2 if mode == "none" else 1)


@exoflow.task(num_cpus=0)
def spread(count: int, size: int, salt: int) -> list[Any]:
    return [ray.put(np.full(size, salt * count + number, np.uint64)) for number in range(count)]


@exoflow.task(num_cpus=0)
def count_bytes(parts: list[Any]) -> int:
    return sum(ray.get(part).nbytes for part in parts)


@exoflow.task
def add(*counts: int) -> int:
    return sum(counts)


@pytest.mark.parametrize("megabytes", [256, pytest.param(2048, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_large_data_passes_by_the_controller(megabytes, store):
    """Ray spills what its small object store cannot hold; the controller sees references alone."""
    size = 4 * 1024 * 1024
    per_task = 4
    tasks = megabytes * 1024 * 1024 // (size * 8) // per_task
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    nodes: list[Any] = []
    for salt in range(tasks):
        # One after the other, so that the parts need not all be in memory at once.
        made = spread.options(checkpoint="async").bind(per_task, size, salt)
        if nodes:
            nodes[-1] >> made
        nodes.append(count_bytes.bind(forward.options(checkpoint="async").bind(made)))
    assert exoflow.run(add.bind(*nodes), workflow_id="w", store=store) == megabytes * 1024 * 1024
    grown = process.memory_info().rss - before
    assert grown < 100 * 1024 * 1024, f"the controller grew by {grown} bytes"

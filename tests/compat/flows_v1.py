"""Workflows whose stores are kept under ``stores/v1``. Never edit: the stores name this code by its source."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import exoflow
from exoflow.dag import Node


def stop_here_the_first_time() -> None:
    """Fail until the workflow has an object ``gate``: where the kept workflows were cut off."""
    gate = exoflow.context().object_path("gate")
    if gate is None or not gate.exists():
        message = "the gate is closed"
        raise RuntimeError(message)


@exoflow.task(checkpoint="async", num_cpus=0)
def numbers(count: int) -> Any:
    return np.arange(count, dtype=np.int64)


@exoflow.task(num_cpus=0)
def describe(values: Any) -> dict[str, Any]:
    return {"sum": int(values.sum()), "pair": (1, 2), "text": "ü"}


@exoflow.task(num_cpus=0)
def finish(found: dict[str, Any]) -> list[Any]:
    stop_here_the_first_time()
    return [found["sum"], list(found["pair"]), found["text"]]


def dag() -> Node:
    return finish.bind(describe.bind(numbers.bind(9_000)))


@exoflow.actor(deterministic=True)
class Shelf:
    """A list that lies in blobs from its first snapshot on."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def put(self, number: int) -> int:
        self.items.append(str(number) * 10)
        return len(self.items)

    def capture(self) -> list[str]:
        return list(self.items)

    def persist(self, items: list[str]) -> dict[str, Any]:
        return {"items": exoflow.context().write_blob("\n".join(items).encode())}

    def restore(self, kept: dict[str, Any]) -> None:
        self.items = exoflow.context().read_blob(kept["items"]).decode().split("\n")


@exoflow.task(deterministic=True, num_cpus=0)
def carry_on(carry: Any, length: int, last: int, i: int) -> Any:
    if i > last // 2:
        stop_here_the_first_time()
    return exoflow.stop(length) if i == last else [i, length]


def body(mode: str, last: int, carry: Node, i: int) -> Node:
    shelf = Shelf.options(name="shelf", checkpoint=mode, num_cpus=0).bind()
    return carry_on.options(checkpoint=mode).bind(carry, shelf.put.bind(i), last, i)


def loop(mode: str) -> Node:
    return exoflow.loop(functools.partial(body, mode, 160), 0, max_in_flight=3)


@exoflow.task(external=True, num_cpus=0)
def send(text: str) -> str:
    message = "the line went dead"
    raise ConnectionError(message)


def doubtful() -> Node:
    return finish_text.bind(send.bind("hello"))


@exoflow.task(num_cpus=0)
def finish_text(receipt: str) -> str:
    return f"got {receipt}"


WORKFLOWS = {
    "dag": dag,
    "loop-async": functools.partial(loop, "async"),
    "loop-sync": functools.partial(loop, "sync"),
    "doubtful": doubtful,
}
EXPECTED = {
    "dag": [40_495_500, [1, 2], "ü"],
    "loop-async": 160,
    "loop-sync": 160,
    "doubtful": "got receipt",
}

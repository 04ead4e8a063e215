"""Workflows for the simulator, and the oracles that judge what came out of them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import exoflow
from exoflow.dag import Node
from exoflow.records import History

_executions = itertools.count(1)
MODES = ("none", "async", "sync")


@exoflow.task(deterministic=True)
def join(name: str, size: int, *inputs: Any) -> Any:
    """Return a value that tells which task made it from what; ``size`` pads it past the inline limit."""
    return [name, 0, "x" * size, list(inputs)]


@exoflow.task
def draw(name: str, size: int, *inputs: Any) -> Any:
    """Return another value at every execution."""
    return [name, next(_executions), "x" * size, list(inputs)]


effects: dict[str, list[Any]] = {}


@exoflow.task(external=True, idempotent=True)
def emit(name: str, size: int, *inputs: Any) -> Any:
    """Have an effect that is seen outside, under the key."""
    effects.setdefault(exoflow.context().idempotency_key, []).append(list(inputs))
    return [name, 0, "x" * size, list(inputs)]


@exoflow.actor(deterministic=True)
class Ledger:
    """An actor whose state is everything it was ever told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, item: Any) -> list[Any]:
        self.told = [*self.told, item]
        return self.told

    def capture(self) -> list[Any]:
        return list(self.told)

    def restore(self, told: list[Any]) -> None:
        self.told = told


def random_dag(seed: int) -> Node:
    """Return a DAG of up to nine tasks with random annotations."""
    rng = random.Random(seed)
    nodes: list[Node] = []
    for number in range(rng.randint(2, 9)):
        chosen = rng.choice((join, draw, draw, emit))
        mode = rng.choice(MODES[1:] if chosen is emit else MODES)
        size = rng.choice((0, 0, 100_000))
        inputs = rng.sample(nodes, min(len(nodes), rng.randint(0, 3)))
        node = chosen.options(checkpoint=mode, name=f"t{number}", retries=0).bind(f"t{number}", size, *inputs)
        if nodes and rng.random() < 0.2:
            rng.choice(nodes) >> node
        nodes.append(node)
    used = {id(given) for node in nodes for given in node.args}
    loose = [node for node in nodes[:-1] if id(node) not in used]
    return join.options(checkpoint=rng.choice(MODES)).bind("root", 0, nodes[-1], *loose)


@exoflow.task(deterministic=True)
def step(carry: list[Any], told: list[Any], last: int) -> Any:
    """Return the carry of an iteration: how much was told so far, iteration by iteration."""
    grown = [*carry, [len(told), told[-1]]]
    return exoflow.stop(grown) if len(grown) == last else grown


@exoflow.task(deterministic=True)
def item(number: int, carry: Any) -> Any:
    """Return what the ledger is told."""
    return [number, 0 if carry is None else len(carry)]


@exoflow.task(external=True, idempotent=True, checkpoint="async")
def audit(number: int, told: list[Any]) -> int:
    """A branch: an effect that later iterations do not wait for."""
    effects.setdefault(exoflow.context().idempotency_key, []).append([number, told])
    return number


class LoopFlow:
    """A loop body over a ledger, in one checkpoint mode.

    ``snapshot_every`` leaves state snapshots out in between; ``audit_every`` adds a branch that reads one.
    """

    def __init__(self, mode: str, last: int, snapshot_every: int = 1, audit_every: int = 0) -> None:
        self.mode = mode
        self.last = last
        self.snapshot_every = snapshot_every
        self.audit_every = audit_every

    def __call__(self, carry: Node, i: int) -> Node:
        ledger = Ledger.options(name="ledger", checkpoint=self.mode).bind()
        made = item.options(checkpoint="none").bind(i, None)
        keeps = self.mode == "none" or i % self.snapshot_every == 0
        told = ledger.tell.options(snapshot=keeps).bind(made)
        node = step.options(checkpoint=self.mode).bind(carry, told, self.last)
        if self.audit_every and i % self.audit_every == 0:
            node.also(audit.bind(i, told.snapshot()))
        return node


def archive(iterations: list[exoflow.IterationView]) -> bytes:
    """Keep nothing but the numbers."""
    return ",".join(str(iteration.number) for iteration in iterations).encode()


def body(mode: str, last: int, snapshot_every: int, audit_every: int, carry: Node, i: int) -> Node:
    """A loop body for `functools.partial`."""
    return LoopFlow(mode, last, snapshot_every, audit_every)(carry, i)


def expected_carry(last: int) -> list[Any]:
    """What a loop over a ledger must come to."""
    return [[i, [i, 0]] for i in range(1, last + 1)]


def assert_one_value_per_task(value: Any, seen: dict[str, Any]) -> None:
    """Assert that a task shows the same value wherever it appears; ``seen`` collects across calls."""
    if isinstance(value, list) and len(value) == 4 and isinstance(value[0], str):
        name, stamp = value[0], value[1]
        assert seen.setdefault(name, stamp) == stamp, f"{name} was seen as {seen[name]} and as {stamp}"
        for given in value[3]:
            assert_one_value_per_task(given, seen)


def assert_nothing_past_the_end(history: History, last: int) -> None:
    """Assert that no iteration after the one that ended its loop has left a record or an effect."""
    for record in (*history.committed.values(), *history.snapshots.values(), *history.intended.values()):
        assert record.iteration <= last, f"{record.task} lies past the end of its loop"

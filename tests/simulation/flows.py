"""A loop over a ledger, with a known answer."""

from __future__ import annotations

from typing import Any

import exoflow
from exoflow.dag import Node

MODES = ("none", "async", "sync")


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

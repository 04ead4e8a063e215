"""Random workflows whose values tell where they come from.

A value names the task that made it, a *stamp* (another one at every execution of a nondeterministic task) and
the stamps of everything it was computed from. So an oracle sees at once when two things that count were
computed from different executions of one task.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import exoflow
from exoflow.dag import Node
from exoflow.effects import Cure, Done, NotDone, Unknown
from exoflow.plan import Plan, build
from exoflow.testing.outside import outside

MODES = ("none", "async", "sync")
LARGE = 66_000  # bytes; more than fits into a record
Made = dict[str, Any]


def made(stamp: int, size: int, inputs: tuple[Any, ...], task: str | None = None) -> Made:
    """Return the value of the running task."""
    of: dict[str, int | str] = {}
    for given in inputs:
        for name, seen in {**given["of"], given["task"]: given["stamp"]}.items():
            if of.setdefault(name, seen) != seen:
                of[name] = f"{of[name]} and {seen}"
    return {"task": task or exoflow.context().task_id, "stamp": stamp, "of": of, "pad": "x" * size}


@exoflow.task(deterministic=True)
def join(size: int, *inputs: Made) -> Made:
    """Put values together."""
    return made(0, size, inputs)


@exoflow.task
def draw(size: int, *inputs: Made) -> Made:
    """Return another value at every execution."""
    return made(outside.draw(), size, inputs)


def _effect(cure: Cure, inputs: tuple[Made, ...]) -> Made:
    value = made(0, 0, inputs)
    outside.apply(value["task"], exoflow.context().idempotency_key, cure, value)
    return value


def ask(key: str) -> Done | NotDone | Unknown:
    """Ask the outside what became of an effect."""
    return outside.resolve(key)


def undo(output: Any, key: str) -> None:
    """Take an effect back."""
    outside.undo(key)


@exoflow.task(external=True, idempotent=True, checkpoint="async")
def emit(size: int, *inputs: Made) -> Made:
    """Have an effect that may be repeated under its key."""
    return _effect(Cure.REPEAT, inputs)


@exoflow.task(external=True, resolve=ask, checkpoint="async")
def send(size: int, *inputs: Made) -> Made:
    """Have an effect that the outside can be asked about."""
    return _effect(Cure.RESOLVE, inputs)


@exoflow.task(external=True, rollback=undo, checkpoint="async")
def book(size: int, *inputs: Made) -> Made:
    """Have an effect that can be undone."""
    return _effect(Cure.ROLLBACK, inputs)


@exoflow.task(external=True, checkpoint="async")
def shout(size: int, *inputs: Made) -> Made:
    """Have an effect that nothing can be done about."""
    return _effect(Cure.ASK, inputs)


EFFECTS = (emit, send, book, shout)


@exoflow.actor(deterministic=True)
class Ledger:
    """An actor that remembers what every call was given; a call's stamp is the number of calls so far."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = 0
        self.of: Made = {"task": "ledger", "stamp": 0, "of": {}}

    def tell(self, *inputs: Made) -> Made:
        """Take in values."""
        self.calls += 1
        value = made(self.calls, 0, (self.of, *inputs))
        self.of = {"task": value["task"], "stamp": value["stamp"], "of": value["of"]}
        return value

    def capture(self) -> Made:
        """Return the state."""
        return {**self.of, "calls": self.calls, "pad": "x" * self.size}

    def restore(self, captured: Made) -> None:
        """Invert `capture`."""
        self.calls = captured["calls"]
        self.of = {name: captured[name] for name in ("task", "stamp", "of")}


def turn(task: str) -> int | None:
    """Return which call of its ledger a task is, if it is one: in a loop there is one in each iteration."""
    return int(task[5:-1]) if task.startswith("tell[") else None


@exoflow.task(deterministic=True)
def step(last: int, *inputs: Made) -> Any:
    """Make the carry of an iteration; the ``last`` one ends the loop."""
    value = made(0, 0, inputs)
    return exoflow.stop(value) if exoflow.context().iteration == last else value


def archive(iterations: list[exoflow.IterationView]) -> bytes:
    """Keep nothing but the numbers."""
    return ",".join(str(iteration.number) for iteration in iterations).encode()


def random_plan(seed: int) -> Plan:
    """Return a workflow of up to nine tasks, or a loop with what comes before and after it."""
    chooser = random.Random(seed)
    return build(_random_loop(chooser) if chooser.random() < 0.4 else _random_dag(chooser))


def _random_dag(chooser: random.Random) -> Node:
    nodes: list[Node] = []
    used: set[Node] = set()
    for number in range(chooser.randint(2, 9)):
        inputs = chooser.sample(nodes, min(len(nodes), chooser.randint(0, 3)))
        node = _random_task(chooser, f"t{number}", inputs)
        if nodes and chooser.random() < 0.2:
            chooser.choice(nodes) >> node
        nodes.append(node)
        used.update(inputs)
    loose = [node for node in nodes[:-1] if node not in used]
    result: Node = join.options(checkpoint=chooser.choice(MODES)).bind(0, nodes[-1], *loose)
    return result


def _random_task(chooser: random.Random, name: str, inputs: list[Node]) -> Node:
    chosen = chooser.choice((join, draw, draw, chooser.choice(EFFECTS)))
    external = chosen in EFFECTS
    mode = chooser.choice(MODES[1:] if external else MODES)
    size = chooser.choice((0, 0, LARGE))
    retries = 0 if chosen is shout else chooser.choice((0, 2))
    node: Node = chosen.options(checkpoint=mode, name=name, retries=retries, backoff=0.1).bind(size, *inputs)
    return node


def _random_loop(chooser: random.Random) -> Node:
    mode = chooser.choice(MODES)
    shape = {
        "mode": mode,
        "last": chooser.randint(1, 6),
        "draws": chooser.random() < 0.5,
        "size": chooser.choice((0, LARGE)),
        "actor": chooser.random() < 0.7,
        "snapshot_every": 1 if mode == "none" else chooser.choice((1, 1, 3)),
        "effect_every": chooser.choice((0, 1, 2)),
        "effect": chooser.randrange(len(EFFECTS)),
        "reads_snapshot": chooser.random() < 0.5,
    }
    first = draw.options(checkpoint=chooser.choice(MODES), name="first").bind(0)
    loop = exoflow.loop(
        functools.partial(_body, shape),
        first,
        max_in_flight=chooser.randint(1, 4),
        archive=archive if chooser.random() < 0.5 else None,
    )
    if chooser.random() < 0.5:
        return loop
    after: Node = join.options(checkpoint=chooser.choice(MODES), name="after").bind(0, loop, first)
    return after


def _body(shape: dict[str, Any], carry: Node, i: int) -> Node:
    mode = shape["mode"]
    source = draw if shape["draws"] else join
    drawn = source.options(checkpoint="none", name="drawn").bind(0)
    inputs: list[Node] = [carry, drawn]
    effect_on: Any = drawn
    if shape["actor"]:
        actor: Any = Ledger
        ledger = actor.options(name="ledger", checkpoint=mode).bind(shape["size"])
        keeps = mode == "none" or i % shape["snapshot_every"] == 0
        told = ledger.tell.options(snapshot=keeps).bind(drawn)
        inputs.append(told)
        effect_on = told.snapshot() if shape["reads_snapshot"] else told
    node: Node = step.options(checkpoint=mode, name="step").bind(shape["last"], *inputs)
    if shape["effect_every"] and i % shape["effect_every"] == 0:
        node.also(EFFECTS[shape["effect"]].options(name="effect").bind(0, effect_on))
    return node

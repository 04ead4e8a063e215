"""Random workflows whose values tell where they come from.

A value names the task that made it, a *stamp* (another one at every execution of a nondeterministic task) and
the stamps of everything it was computed from. So an oracle sees at once when two things that count were
computed from different executions of one task. Errors that bodies raise tell the same of themselves: caught,
they are values like others.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import exoflow
from exoflow.dag import ActorHandle, Node, Task
from exoflow.effects import Cure, Done, NotDone, Unknown
from exoflow.errors import EffectNotDone, NoRetry
from exoflow.plan import Plan, build
from exoflow.testing.outside import Break, outside

MODES = ("none", "async", "sync")
LARGE = 66_000  # bytes; more than fits into a record
Made = dict[str, Any]


class Broke(Exception):
    """A body raised; ``args`` are what it had made until then."""


class Closed(Broke):
    """What the body needs is out of order."""


class Hopeless(Broke, NoRetry):
    """A body raised and says that it will always do so."""


class Vouched(EffectNotDone):
    """A body raised and says that it had no effect; ``args`` are what it had made until then."""


def parts(value: Any) -> Iterator[Made]:
    """Yield everything inside a value that tells where it comes from."""
    match value:
        case dict() if "stamp" in value:
            yield value
        case list() | tuple():
            for each in value:
                yield from parts(each)
        case Broke() | Vouched():
            yield from parts(value.args)


def made(stamp: int, size: int, inputs: Any) -> Made:
    """Return the value of the running task."""
    of: dict[str, int | str] = {}
    for given in parts(inputs):
        for name, seen in {**given["of"], given["task"]: given["stamp"]}.items():
            if of.setdefault(name, seen) != seen:
                of[name] = f"{of[name]} and {seen}"
    return {"task": exoflow.context().task_id, "stamp": stamp, "of": of, "pad": "x" * size}


def _raised(kind: type[Exception], inputs: Any) -> Exception:
    """Return an error of the running task: no two of them are the same."""
    stamp = outside.draw()
    if kind is Broke and stamp % 4 == 0:
        kind = Hopeless
    return kind(made(stamp, 0, inputs))


def _may_break(how: Break, inputs: Any) -> None:
    """Raise if the running body is to end at this point."""
    if outside.breaks(how):
        raise _raised(Vouched if how is Break.VOUCHED else Broke, inputs)


@exoflow.task(deterministic=True)
def join(size: int, *inputs: Made) -> Made:
    """Put values together."""
    _may_break(Break.BEFORE, inputs)
    return made(0, size, inputs)


@exoflow.task
def draw(size: int, *inputs: Made) -> Made:
    """Return another value at every execution."""
    _may_break(Break.BEFORE, inputs)
    return made(outside.draw(), size, inputs)


@exoflow.task
def visit(size: int, *inputs: Made) -> Made:
    """Do what `draw` does, where something may be out of order for long."""
    if outside.closed:
        raise _raised(Closed, inputs)
    _may_break(Break.BEFORE, inputs)
    return made(outside.draw(), size, inputs)


def _effect(cure: Cure, inputs: Any, stamp: int = 0) -> Made:
    value = made(stamp, 0, inputs)
    _may_break(Break.VOUCHED, inputs)
    _may_break(Break.BEFORE, inputs)
    outside.apply(value["task"], exoflow.context().idempotency_key, cure, value)
    _may_break(Break.AFTER, inputs)
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
    """An actor that remembers what every call was given; a call's stamp is the number of calls so far.

    The members of a replicated one tell each other ``talks`` times in a call where they stand.
    """

    def __init__(self, size: int, talks: int = 0) -> None:
        self.size = size
        self.talks = talks
        self.calls = 0
        self.of: Made = {"task": "ledger", "stamp": 0, "of": {}}

    def tell(self, *inputs: Made) -> Made:
        """Take in values."""
        _may_break(Break.BEFORE, inputs)
        value = made(self._next(), 0, (self.of, *self._heard(), *inputs))
        _may_break(Break.AFTER, inputs)
        return self._keep(value)

    def pay(self, *inputs: Made) -> Made:
        """Take in values, and have an effect that may be repeated under its key."""
        return self._keep(_effect(Cure.REPEAT, (self.of, *self._heard(), *inputs), self._next()))

    def _next(self) -> int:
        self.calls += 1
        return self.calls

    def _heard(self) -> list[Made]:
        context = exoflow.context()
        turns = range(self.talks if context.members > 1 else 0)
        return [said for _ in turns for said in context.exchange([self.of] * context.members)]

    def _keep(self, value: Made) -> Made:
        self.of = {name: value[name] for name in ("task", "stamp", "of")}
        return value

    def capture(self) -> Made:
        """Return the state."""
        return {**self.of, "member": exoflow.context().member, "pad": "x" * self.size}

    def restore(self, captured: Any) -> None:
        """Invert `capture`; a member gets the states of all."""
        mine = captured[exoflow.context().member] if isinstance(captured, list) else captured
        assert mine["member"] == exoflow.context().member
        self.calls = mine["stamp"]
        self._keep(mine)


def turn(task: str) -> int | None:
    """Return which call of its ledger a task is, if it is one: in a loop there is one in each iteration."""
    name, _, rest = task.partition("[")
    return int(rest[:-1]) if name in ("tell", "copy") and rest else None


@exoflow.task(deterministic=True)
def step(last: int, *inputs: Made) -> Any:
    """Make the carry of an iteration; the ``last`` one ends the loop."""
    _may_break(Break.BEFORE, inputs)
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
    ledger = _random_ledger(chooser) if chooser.random() < 0.3 else None
    for number in range(chooser.randint(2, 9)):
        inputs = chooser.sample(nodes, min(len(nodes), chooser.randint(0, 3)))
        if ledger is not None and chooser.random() < 0.4:
            node = _random_call(chooser, ledger, f"t{number}", inputs)
        else:
            node = _random_task(chooser, f"t{number}", inputs)
        if nodes and chooser.random() < 0.2:
            chooser.choice(nodes) >> node
        nodes.append(node)
        used.update(inputs)
    loose = [node for node in nodes[:-1] if node not in used]
    return join.options(checkpoint=chooser.choice(MODES)).bind(0, nodes[-1], *loose)


def _random_task(chooser: random.Random, name: str, inputs: list[Node]) -> Node:
    chosen = chooser.choice((join, draw, draw, visit, chooser.choice(EFFECTS), chooser.choice(EFFECTS)))
    external = chosen in EFFECTS
    return chosen.options(
        checkpoint=chooser.choice(MODES[1:] if external else MODES),
        name=name,
        catch_exceptions=chooser.random() < (0.7 if chosen is visit else 0.3),
        **_random_limits(chooser, retries=chosen is not shout),
    ).bind(chooser.choice((0, 0, LARGE)), *inputs)


def _random_limits(chooser: random.Random, *, retries: bool = True) -> dict[str, Any]:
    """Return how often and how long a body may try."""
    return {
        "retries": chooser.choice((0, 2)) if retries else 0,
        "backoff": 0.1,
        "timeout": chooser.choice((None, 60.0)),
    }


def _random_ledger(chooser: random.Random, mode: str | None = None) -> ActorHandle:
    """Return an actor, or a group of up to three."""
    ledger = exoflow.actor(Ledger).options(
        name="ledger",
        checkpoint=chooser.choice(MODES) if mode is None else mode,
        replicas=chooser.choice((None, None, 2, 3)),
    )
    return ledger.bind(chooser.choice((0, LARGE)), chooser.choice((0, 1, 2)))


def _random_call(chooser: random.Random, ledger: ActorHandle, name: str, inputs: list[Node]) -> Node:
    """Return a call; one that has an effect needs a checkpoint of its own."""
    mode = ledger.annotations.checkpoint
    pays = mode != "none" and chooser.random() < 0.3
    method = ledger.pay.options(external=True, idempotent=True) if pays else ledger.tell
    keeps = mode == "none" or chooser.random() < 0.7
    return method.options(name=name, snapshot=keeps, **_random_limits(chooser)).bind(*inputs)


def _random_loop(chooser: random.Random) -> Node:
    mode = chooser.choice(MODES)
    shape = {
        "mode": mode,
        "last": chooser.randint(1, 6),
        "source": chooser.choice((draw, draw, join, join, visit)).__name__,
        "actor": chooser.random() < 0.7,
        "ledger": (
            chooser.choice((0, LARGE)),
            chooser.choice((None, None, 2, 3)),
            chooser.choice((0, 1, 2)),
        ),
        "pays": mode != "none" and chooser.random() < 0.3,
        "second": chooser.random() < 0.5,
        "snapshot_every": 1 if mode == "none" else chooser.choice((1, 1, 3)),
        "effect_every": chooser.choice((0, 1, 2)),
        "effect": chooser.randrange(len(EFFECTS)),
        "reads_snapshot": chooser.random() < 0.5,
        "catches": chooser.random() < 0.3,
        "limits": _random_limits(chooser),
        "turns": chooser.choice((None, 1, 2)),
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
    return join.options(checkpoint=chooser.choice(MODES), name="after").bind(0, loop, first)


_SOURCES = {task.__name__: task for task in (draw, join, visit)}


def _body(shape: dict[str, Any], carry: Node, i: int) -> Node:
    mode, catches, limits = shape["mode"], shape["catches"], shape["limits"]
    source = _SOURCES[shape["source"]].options(checkpoint="none", name="drawn", catch_exceptions=catches, **limits)
    drawn = source.bind(0)
    inputs: list[Node] = [carry, drawn]
    effect_on: Any = drawn
    if shape["actor"]:
        actor = exoflow.actor(Ledger)
        size, replicas, talks = shape["ledger"]
        ledger = actor.options(name="ledger", checkpoint=mode, replicas=replicas).bind(size, talks)
        method = ledger.pay.options(external=True, idempotent=True) if shape["pays"] else ledger.tell
        keeps = mode == "none" or i % shape["snapshot_every"] == 0
        told = method.options(name="tell", snapshot=keeps, **limits).bind(drawn)
        inputs.append(told)
        if shape["second"]:
            copies = actor.options(name="copies", checkpoint=mode).bind(size)
            inputs.append(copies.tell.options(name="copy", snapshot=keeps, **limits).bind(told))
        effect_on = told.snapshot() if shape["reads_snapshot"] else told
    node = step.options(checkpoint=mode, name="step", catch_exceptions=catches, **limits).bind(shape["last"], *inputs)
    if shape["effect_every"] and i % shape["effect_every"] == 0:
        effect_node = _effect_in_loop(shape).bind(0, effect_on)
        node.also(effect_node if shape["turns"] is None else effect_node.in_turn(max_behind=shape["turns"]))
    return node


def _effect_in_loop(shape: dict[str, Any]) -> Task[..., Made]:
    effect = EFFECTS[shape["effect"]]
    limits = {**shape["limits"], "retries": 0} if effect is shout else shape["limits"]
    return effect.options(name="effect", catch_exceptions=shape["catches"], **limits)

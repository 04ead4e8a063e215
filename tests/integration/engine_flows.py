"""Workflows that the integration tests run on a real Ray, in this process or as a program of their own."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import exoflow
from exoflow.dag import Node

BIG = 200_000


def note(folder: str, line: str) -> None:
    """Append a line that survives whatever dies next."""
    descriptor = os.open(Path(folder) / "executions", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def noted(folder: str | Path) -> list[str]:
    """Return what `note` has written."""
    path = Path(folder) / "executions"
    return path.read_text().splitlines() if path.exists() else []


def once(folder: str, name: str) -> bool:
    """Return True to the first caller of all processes."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(Path(folder) / f"once-{name}", os.O_CREAT | os.O_EXCL))
        return True
    return False


@exoflow.task(deterministic=True)
def padded(name: str, size: int, *inputs: Any) -> list[Any]:
    return [name, "x" * size, [each[0] for each in inputs]]


@exoflow.actor(deterministic=True)
class Adder:
    """A sum, kept by every member; members may tell each other."""

    def __init__(self, start: int = 0) -> None:
        self.total = start

    def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    def swap(self, amount: int) -> list[int]:
        ctx = exoflow.context()
        sent = [amount * 100 + ctx.member * 10 + to for to in range(ctx.members)]
        self.total += amount
        return [self.total, *ctx.exchange(sent)]

    def add_and_die(self, folder: str, amount: int, at: int) -> int:
        if amount == at and once(folder, "die"):
            os._exit(1)
        return self.add(amount)

    def wide(self, amount: int) -> str:
        return "y" * BIG + str(self.add(amount))

    def capture(self) -> int:
        return self.total

    def restore(self, total: int) -> None:
        self.total = total


def adder(mode: str, **options: Any) -> Any:
    return Adder.options(name="adder", checkpoint=mode, num_cpus=0, **options).bind()


@exoflow.actor(deterministic=True)
class Heavy:
    """A sum whose snapshots are too large for a record."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    def capture(self) -> list[Any]:
        return [self.total, "s" * BIG]

    def restore(self, state: list[Any]) -> None:
        self.total = state[0]


@exoflow.task(deterministic=True, num_cpus=0)
def gated_last(folder: str, carry: Any, total: int, last: int, i: int) -> Any:
    if i == last - 1 and not (Path(folder) / "gate").exists():
        message = "the gate is closed"
        raise RuntimeError(message)
    return exoflow.stop(total) if i == last else total


def wide_body(folder: str, last: int, carry: Node, i: int) -> Node:
    return gated_last.bind(folder, carry, Heavy.options(name="heavy", num_cpus=0).bind().add.bind(i), last, i)


@exoflow.task(deterministic=True, num_cpus=0)
def last_of(carry: Any, total: Any, last: int, i: int) -> Any:
    return exoflow.stop(total) if i == last else total


def adding(mode: str, last: int, carry: Node, i: int) -> Node:
    return last_of.options(checkpoint=mode).bind(carry, adder(mode).add.bind(i), last, i)


def swapping(mode: str, replicas: int, last: int, carry: Node, i: int) -> Node:
    told = adder(mode, replicas=replicas).swap.bind(i)
    return last_of.options(checkpoint=mode).bind(carry, told, last, i)


def dying(mode: str, folder: str, at: int, last: int, carry: Node, i: int) -> Node:
    total = adder(mode).add_and_die.bind(folder, i, at)
    return last_of.options(checkpoint=mode).bind(carry, total, last, i)


@exoflow.task(checkpoint="async", external=True, idempotent=True, num_cpus=0)
def report(folder: str, i: int, state: Any) -> Any:
    note(folder, f"report {i} {exoflow.context().idempotency_key} {state}")
    return state


def branching(mode: str, folder: str, last: int, carry: Node, i: int) -> Node:
    told = adder(mode).add.bind(i)
    node = last_of.options(checkpoint=mode).bind(carry, told, last, i)
    return node.also(report.bind(folder, i, told.snapshot())) if i % 2 == 0 else node


def archive_numbers(iterations: list[exoflow.IterationView]) -> bytes:
    return ",".join(str(iteration.number) for iteration in iterations).encode()


@exoflow.task(deterministic=True, num_cpus=0)
def constant(carry: Any, i: int) -> Any:
    return {"blob": "z" * 70_000, "i": i}


def constant_body(carry: Node, i: int) -> Node:
    return constant.options(checkpoint="async").bind(carry, i)


@exoflow.task(num_cpus=0)
def slow(folder: str, mode: str, i: int, carry: Any) -> Any:
    note(folder, f"slow {i}")
    time.sleep(0.02)
    return [i, 0 if carry is None else carry]


@exoflow.task(deterministic=True, num_cpus=0)
def sum_up(folder: str, drawn: list[Any], told: int, last: int, i: int) -> Any:
    note(folder, f"sum_up {i}")
    return exoflow.stop(told) if i == last else told


def killable_body(folder: str, mode: str, last: int, carry: Node, i: int) -> Node:
    told = adder(mode).add.bind(i)
    node = sum_up.options(checkpoint=mode).bind(
        folder, slow.options(checkpoint=mode, deterministic=True).bind(folder, mode, i, None), told, last, i
    )
    return node.also(report.bind(folder, i, told.snapshot())) if i % 5 == 0 else node


def killable(folder: str, mode: str, last: int) -> Node:
    return exoflow.loop(functools.partial(killable_body, folder, mode, last), None, max_in_flight=3)


def pay_body(folder: str, cut: str, amount: int) -> str:
    """Have an effect that is seen outside, and die or fail around it the first time."""
    ctx = exoflow.context()
    _cut_here(folder, cut, "before")
    note(folder, f"did {ctx.idempotency_key} {amount} {ctx.now()} {ctx.random().random()}")
    _cut_here(folder, cut, "after")
    return f"paid {amount}"


def _cut_here(folder: str, cut: str, place: str) -> None:
    how, _, where = cut.partition(" ")
    if where != place or not once(folder, cut):
        return
    match how:
        case "die":
            os._exit(1)
        case "raise":
            message = "the line went dead"
            raise ConnectionError(message)
        case "vouch":
            message = "refused at the door"
            raise exoflow.EffectNotDone(message)
        case "hang":
            note(folder, "hangs here")
            time.sleep(600)


pay = exoflow.task(pay_body, external=True, name="pay", num_cpus=0)


def take_back(folder: str, output: Any, key: str) -> None:
    if once(folder, "take_back"):
        message = "undoing fails once too"
        raise ConnectionError(message)
    note(folder, f"undid {key}")


def look_up(folder: str, key: str) -> Any:
    for line in noted(folder):
        word, found, *rest = line.split()
        if word == "did" and found == key:
            return exoflow.Done(f"paid {rest[0]}")
    return exoflow.NotDone()


def paying(folder: str, cure: str, cut: str) -> Node:
    """Return a workflow with one effect; ``cure`` is what its annotations offer when it is cut off."""
    options: dict[str, Any] = {
        "idempotent": {"idempotent": True, "retries": 1},
        "rollback": {"rollback": functools.partial(take_back, folder), "retries": 1},
        "resolve": {"resolve": functools.partial(look_up, folder), "retries": 1},
        "nothing": {},
    }[cure]
    return shown.bind(pay.options(backoff=0.01, **options).bind(folder, cut, 7))


@exoflow.task(deterministic=True, num_cpus=0)
def shown(receipt: Any) -> Any:
    return receipt


def effective(folder: str | Path) -> dict[str, list[str]]:
    """Return what was done and not undone, by key."""
    done: dict[str, list[str]] = {}
    for line in noted(folder):
        word, key, *what = line.split()
        if word == "did":
            done.setdefault(key, []).append(" ".join(what))
        elif word == "undid":
            done.pop(key, None)
    return done


def pay_program(store: str, folder: str, cure: str) -> None:
    """Pay as a process of its own, and hang in the middle."""
    from exoflow.cluster import ensure_ray

    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    exoflow.run(paying(folder, cure, "hang after"), workflow_id="w", store=store, lease_seconds=1.0)


@exoflow.task(num_cpus=0, deterministic=True)
def gated(folder: str, number: int) -> int:
    note(folder, "waits for the gate")
    while not (Path(folder) / "gate").exists():
        time.sleep(0.01)
    return number


@exoflow.task(external=True, num_cpus=0)
def send(folder: str, number: int) -> str:
    note(folder, f"sent {exoflow.context().idempotency_key}")
    return "sent"


@exoflow.task(num_cpus=0)
def together(*receipts: str) -> list[str]:
    return list(receipts)


def gated_program(store: str, folder: str) -> None:
    """Send three things once a gate is open, as a process of its own."""
    from exoflow.cluster import ensure_ray

    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    node = together.bind(*(send.bind(folder, gated.bind(folder, number)) for number in range(3)))
    exoflow.run(node, workflow_id="w", store=store, lease_seconds=1.0)


def node_program(store: str, folder: str) -> None:
    """Lose the Ray node in the middle of a workflow, and before one; then open the gate and resume, with a third."""
    import psutil
    import ray

    from exoflow.cluster import ensure_ray

    def lose_the_node() -> None:
        for child in psutil.Process().children(recursive=True):
            if child.name() == "raylet":
                child.kill()
                child.wait()

    def lose_the_node_in_the_middle() -> None:
        while "waits for the gate" not in noted(folder):
            time.sleep(0.01)
        lose_the_node()

    def run() -> None:
        try:
            exoflow.run(gated.bind(folder, 7), workflow_id="w", store=store)
        except exoflow.ClusterLost as error:
            print(error, flush=True)
        assert not ray.is_initialized()

    threading.Thread(target=lose_the_node_in_the_middle).start()
    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    run()
    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    lose_the_node()
    run()
    (Path(folder) / "gate").touch()
    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    print(exoflow.resume("w", store=store), flush=True)


def program(store: str, workflow_id: str, folder: str, mode: str, last: str, lease: str) -> None:
    """Run the killable loop as a process of its own; says when it starts."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from exoflow.cluster import ensure_ray

    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    print("ready", flush=True)
    node = killable(folder, mode, int(last))
    print(exoflow.run(node, workflow_id=workflow_id, store=store, lease_seconds=float(lease)), flush=True)


if __name__ == "__main__":
    from tests.integration import engine_flows

    getattr(engine_flows, sys.argv[1])(*sys.argv[2:])

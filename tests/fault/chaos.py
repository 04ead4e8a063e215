"""Many small workflows with effects that are counted outside, and a driver that runs them until all have ended.

The world outside is one file that processes append lines to: what was done, and what was undone.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exoflow
from exoflow.cluster import ensure_ray
from exoflow.dag import Node
from exoflow.records import Status

CURES = ("idempotent", "rollback", "resolve", "nothing")
LEASE_SECONDS = 3.0
AT_ONCE = 6
ITERATIONS = 6
ENDED = (Status.SUCCESSFUL, Status.IN_DOUBT)


# --- the world outside --------------------------------------------------------------------------------------


def tell(folder: str, line: str) -> None:
    descriptor = os.open(Path(folder) / "outside", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def told(folder: str | Path) -> Iterator[list[str]]:
    path = Path(folder) / "outside"
    for line in path.read_text().splitlines() if path.exists() else ():
        yield line.split(" ")


# --- the workflows ------------------------------------------------------------------------------------------


@exoflow.task(num_cpus=0)
def draw(_: Any = None) -> float:
    return random.SystemRandom().random()


def pay_body(folder: str, amount: float) -> list[Any]:
    ctx = exoflow.context()
    time.sleep(random.random() * 0.05)
    tell(folder, f"did {ctx.workflow_id} {ctx.task_id} {ctx.idempotency_key} {amount} {ctx.now()}")
    time.sleep(random.random() * 0.05)
    return [ctx.idempotency_key, amount]


def take_back(folder: str, _: Any, key: str) -> None:
    tell(folder, f"undid {exoflow.context().workflow_id} {exoflow.context().task_id} {key}")


def look_up(folder: str, key: str) -> exoflow.Done | exoflow.NotDone:
    amounts = [line[4] for line in told(folder) if line[0] == "did" and line[3] == key]
    return exoflow.Done([key, float(amounts[0])]) if amounts else exoflow.NotDone()


def pay(folder: str, cure: str, amount: Node) -> Node:
    options: dict[str, Any] = {
        "idempotent": {"idempotent": True},
        "rollback": {"rollback": functools.partial(take_back, folder)},
        "resolve": {"resolve": functools.partial(look_up, folder)},
        "nothing": {},
    }[cure]
    task = exoflow.task(pay_body, name="pay", external=True, num_cpus=0, checkpoint="async", **options)
    node: Node = task.bind(folder, amount)
    return node


@exoflow.task(num_cpus=0, deterministic=True)
def join(*parts: Any) -> list[Any]:
    return list(parts)


def dag(folder: str, cure: str, mode: str) -> Node:
    """Pay what was drawn; the result tells both."""
    drawn = draw.options(checkpoint=mode).bind()
    node: Node = join.bind(drawn, pay(folder, cure, draw.options(name="again", checkpoint=mode).bind(drawn)))
    return node


@exoflow.actor(deterministic=True)
class Till:
    def __init__(self) -> None:
        self.amounts: list[float] = []

    def take(self, amount: float) -> list[float]:
        self.amounts.append(amount)
        return self.amounts

    def capture(self) -> list[float]:
        return list(self.amounts)

    def restore(self, amounts: list[float]) -> None:
        self.amounts = amounts


@exoflow.task(num_cpus=0, deterministic=True)
def close(amounts: list[float], receipt: list[Any], i: int) -> Any:
    return exoflow.stop(amounts) if i == ITERATIONS else amounts


def body(folder: str, cure: str, mode: str, carry: Node, i: int) -> Node:
    drawn = draw.options(checkpoint=mode).bind(carry)
    taken = Till.options(name="till", checkpoint=mode, num_cpus=0).bind().take.bind(drawn)
    node: Node = close.options(checkpoint=mode).bind(taken, pay(folder, cure, drawn), i)
    return node


def workflow(number: int, folder: str) -> tuple[str, Node]:
    """Return workflow ``number``: every cure, every mode, every third one a loop over a durable actor."""
    cure, mode = CURES[number % 4], ("none", "async", "sync")[number // 4 % 3]
    if number % 3:
        return f"w{number}", dag(folder, cure, mode)
    return f"w{number}", exoflow.loop(functools.partial(body, folder, cure, mode), None, max_in_flight=2)


# --- the driver ---------------------------------------------------------------------------------------------


def drive(store: str, folder: str, numbers: list[int]) -> None:
    """Run workflows until all have ended, whatever happens to them on the way."""
    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    waiting = list(numbers)
    while waiting:
        random.shuffle(waiting)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            ended = list(pool.map(functools.partial(attempt, store, folder), waiting))
        waiting = [number for number, done in zip(waiting, ended, strict=True) if not done]


def attempt(store: str, folder: str, number: int) -> bool:
    """Try to bring one workflow to its end; return whether it is there."""
    workflow_id, node = workflow(number, folder)
    with contextlib.suppress(exoflow.WorkflowNotFound, exoflow.StorageUnavailable):
        if exoflow.get_status(workflow_id, store=store) in ENDED:
            return True
    # Losses that come too fast end a workflow as FAILED; like any user, the driver then resumes it.
    transient = (exoflow.WorkflowRunning, exoflow.Fenced, exoflow.StorageUnavailable, exoflow.TaskFailed)
    try:
        exoflow.run(node, workflow_id=workflow_id, store=store, lease_seconds=LEASE_SECONDS, max_claims=1000)
    except exoflow.InDoubt:
        return True
    except transient as error:
        print(f"{workflow_id}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return False
    return True


if __name__ == "__main__":
    from tests.fault import chaos

    chaos.drive(sys.argv[1], sys.argv[2], [int(number) for number in sys.argv[3].split(",")])

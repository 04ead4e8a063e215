"""Tasks inside the owner's process, among tasks and calls on a real Ray: values, failures, losses and modes."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

import exoflow
from exoflow.dag import Node
from tests.integration import engine_flows as flows

MODES = ("none", "async", "sync")
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def run(node: Any, store: str, **options: Any) -> Any:
    return exoflow.run(node, workflow_id="w", store=store, **options)


@exoflow.task(in_owner=True)
def here(*given: Any) -> Any:
    return [os.getpid(), threading.current_thread().name, *given]


@exoflow.task(in_owner=True)
def size(given: list[Any]) -> int:
    return len(given[1])


@exoflow.task(num_cpus=0)
def there(*given: Any) -> Any:
    return [os.getpid(), *given]


@pytest.mark.parametrize("mode", MODES)
def test_values_go_into_the_owner_and_out_of_it(mode, store):
    inner, outer = here.options(checkpoint=mode), there.options(checkpoint=mode)
    first = inner.bind(1, size.bind(outer.bind("x" * flows.BIG)))
    pid, last = run(outer.bind(inner.bind(first), first), store)[:2]
    own, thread, (_, _, one, far) = last
    assert own == os.getpid() != pid
    assert thread == "exoflow-inside"
    assert one == 1
    assert far == flows.BIG


def summing(mode: str, last: int, carry: Node, i: int) -> Node:
    return adding_up.options(checkpoint=mode).bind(carry, flows.adder(mode).add.bind(i), i, last)


@exoflow.task(in_owner=True, deterministic=True)
def adding_up(carry: int, total: int, i: int, last: int) -> Any:
    return exoflow.stop(carry + total) if i == last else carry + total


@pytest.mark.parametrize("mode", MODES)
def test_a_carry_inside_the_owner_until_it_stops(mode, store):
    assert run(exoflow.loop(functools.partial(summing, mode, 30), 0), store) == sum(
        i * (i + 1) // 2 for i in range(1, 31)
    )


@exoflow.task(in_owner=True, retries=2, backoff=0.01)
def raises_twice(folder: str) -> str:
    for turn in ("first", "second"):
        if flows.once(folder, turn):
            raise ValueError(turn)
    return "third"


def test_an_exception_is_an_outcome_like_any_other(store, tmp_path):
    assert run(there.bind(raises_twice.bind(str(tmp_path))), store)[1] == "third"


@exoflow.task(in_owner=True)
def exits(folder: str) -> str:
    if flows.once(folder, "exit"):
        sys.exit(3)
    return "again"


def test_what_would_end_a_process_is_a_loss_and_ends_nothing(store, tmp_path):
    assert run(here.bind(exits.bind(str(tmp_path))), store)[2] == "again"


@exoflow.task(in_owner=True)
def fails() -> None:
    message = "no such luck"
    raise ValueError(message)


def test_a_failure_says_why_and_nothing_behind_it_runs(store, tmp_path):
    with pytest.raises(exoflow.TaskFailed, match="no such luck"):
        run(touches.bind(str(tmp_path), fails.bind()), store)
    assert not (tmp_path / "touched").exists()


@exoflow.task(num_cpus=0)
def touches(folder: str, _: Any) -> None:
    (Path(folder) / "touched").touch()


@exoflow.task(num_cpus=0, checkpoint="none", deterministic=True)
def dies_once(folder: str) -> str:
    if flows.once(folder, "death"):
        os._exit(1)
    return "alive"


def test_an_input_whose_process_dies_comes_again(store, tmp_path):
    assert run(here.bind(dies_once.bind(str(tmp_path))), store)[2] == "alive"


@exoflow.task(num_cpus=0)
def fails_there() -> None:
    message = "not there either"
    raise ValueError(message)


def test_an_input_that_fails_elsewhere_is_named(store):
    with pytest.raises(exoflow.TaskFailed, match="not there either"):
        run(here.bind(fails_there.bind()), store)


@exoflow.task(in_owner=True, catch_exceptions=True)
def caught() -> None:
    message = "caught"
    raise KeyError(message)


def test_exceptions_can_be_caught_inside_too(store):
    value, error = run(caught.bind(), store)
    assert value is None
    assert isinstance(error, KeyError)


@exoflow.task(in_owner=True, deterministic=True)
def slowly_last(carry: int, total: int, i: int, last: int) -> Any:
    time.sleep(0.05)
    return exoflow.stop(total) if i == last else total


def dying(mode: str, folder: str, at: int, last: int, carry: Node, i: int) -> Node:
    total = flows.adder(mode).add_and_die.bind(folder, i, at)
    return slowly_last.options(checkpoint=mode).bind(carry, total, i, last)


@pytest.mark.parametrize("mode", MODES)
def test_an_actor_that_dies_while_its_consumers_wait_inside(mode, store, tmp_path):
    assert run(exoflow.loop(functools.partial(dying, mode, str(tmp_path), 6, 12), 0), store) == 78


@exoflow.task(in_owner=True, deterministic=True)
def fails_late(carry: int, total: int, i: int) -> int:
    time.sleep(0.05)
    if i == 4:
        message = "too late"
        raise ValueError(message)
    return total


def failing(mode: str, carry: Node, i: int) -> Node:
    return fails_late.options(checkpoint=mode).bind(carry, flows.adder(mode).add.bind(i), i)


@pytest.mark.parametrize("mode", MODES)
def test_a_failure_inside_ends_what_waits_behind_it(mode, store):
    with pytest.raises(exoflow.TaskFailed, match="too late"):
        run(exoflow.loop(functools.partial(failing, mode), 0), store)


@exoflow.task(in_owner=True, deterministic=True)
def large() -> str:
    return "x" * flows.BIG


@pytest.mark.parametrize("mode", MODES)
def test_a_value_too_large_for_a_record_travels_too(mode, store):
    assert run(size.bind(there.bind(large.options(checkpoint=mode).bind())), store) == flows.BIG


@exoflow.task(in_owner=True, checkpoint="none", deterministic=True)
def reference() -> Any:
    return ray.put("far away")


@exoflow.task(in_owner=True, checkpoint="none", deterministic=True)
def lock() -> Any:
    return threading.Lock()


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@exoflow.task(in_owner=True, catch_exceptions=True)
def raises_a_lock() -> None:
    raise Locked


@pytest.mark.parametrize(
    ("task", "words"),
    [(reference, "returned references"), (lock, "cannot"), (raises_a_lock, "cannot")],
)
def test_a_value_that_cannot_travel_fails_its_task(task, words, store):
    with pytest.raises(exoflow.TaskFailed, match=words) as raised:
        run(there.bind(task.bind()), store)
    assert task.__name__ in str(raised.value)


class Unreadable:
    """Cannot be made again from what was pickled."""

    def __reduce__(self) -> Any:
        return _unreadable, ()


def _unreadable() -> None:
    message = "nothing to be read"
    raise ValueError(message)


@exoflow.task(num_cpus=0, checkpoint="none", deterministic=True)
def unreadable() -> Any:
    return Unreadable()


def test_an_input_that_cannot_be_read_is_named_as_such(store):
    with pytest.raises(exoflow.TaskFailed, match="an input could not be unpickled"):
        run(here.bind(unreadable.bind()), store)


def test_what_is_ready_does_not_run_once_its_workflow_has_ended(store, tmp_path):
    slow = [sleeps.bind(str(tmp_path), number) for number in range(50)]
    with pytest.raises(exoflow.TaskFailed, match="no such luck"):
        run(here.bind(fails.bind(), *slow), store)
    counted = len(list(tmp_path.glob("slept-*")))
    time.sleep(0.2)
    assert len(list(tmp_path.glob("slept-*"))) <= counted + 1
    assert counted < 50


@exoflow.task(in_owner=True)
def sleeps(folder: str, number: int) -> None:
    time.sleep(0.05)
    (Path(folder) / f"slept-{number}").touch()

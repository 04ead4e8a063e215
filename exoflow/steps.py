"""Store operations as steps: a protocol is a generator of them, and whoever drives it decides what they meet.

The shell drives a protocol against a store, one operation after the other. The simulator drives many at once
and lets every operation be slow, fail, or land without an answer. So what is simulated is the code itself.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from exoflow.errors import StorageUnavailable
from exoflow.storage import Store

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Get:
    """Answered bytes or None."""

    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Put:
    """Answered None."""

    key: str
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class PutIfAbsent:
    """Answered True or False."""

    key: str
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class List:
    """Answered the keys below a folder, sorted."""

    prefix: str


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Answered None."""

    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pause:
    """No operation: wait before the next one."""

    seconds: float


StoreStep = Get | Put | PutIfAbsent | List | Delete | Pause
# `StorageUnavailable` is thrown into a protocol whose operation has no answer.
Steps = Generator[StoreStep, Any, T]


def operate(step: StoreStep, store: Store, sleep: Callable[[float], None] = time.sleep) -> Any:
    """Do one step on a store and return its answer; raises StorageUnavailable."""
    match step:
        case Get():
            return store.get(step.key)
        case Put():
            return store.put(step.key, step.data)
        case PutIfAbsent():
            return store.put_if_absent(step.key, step.data)
        case List():
            return store.list(step.prefix)
        case Delete():
            return store.delete(step.key)
        case Pause():
            return sleep(step.seconds)


def drive(steps: Steps[T], store: Store, sleep: Callable[[float], None] = time.sleep) -> T:
    """Run a protocol against a store and return what it returns."""
    answer: Any = None
    failure: StorageUnavailable | None = None
    while True:
        try:
            step = steps.throw(failure) if failure is not None else steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = failure = None
        try:
            answer = operate(step, store, sleep)
        except StorageUnavailable as error:
            failure = error

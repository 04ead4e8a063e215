"""Effects: what is seen outside the engine, and what can be said of one that was cut off. Pure.

An effect is announced before it begins (`exoflow.records.Intended`) and complete when its task commits. In
between nobody knows whether it has happened. What then helps is its *cure*: repeat it under the same key,
ask a function of the user's, undo it with another, or ask a person.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Iterable
from typing import Any

from exoflow.options import TaskOptions
from exoflow.records import Value


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What ``resolve(key)`` returns when the effect has happened; ``value`` becomes the task's output."""

    value: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class NotDone:
    """What ``resolve(key)`` returns when the effect has not happened and never will by itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unknown:
    """What ``resolve(key)`` returns when it cannot tell."""


class Verdict(enum.StrEnum):
    """What became of an effect that was cut off."""

    DONE = "done"
    NOT_DONE = "not done"
    UNDONE = "undone"
    UNKNOWN = "unknown"


class Cure(enum.Enum):
    """How to find out what became of an effect, or to make sure of it."""

    REPEAT = "repeat it under the same key"
    RESOLVE = "ask the task's resolve function"
    ROLLBACK = "undo it with the task's rollback function"
    ASK = "ask a person"


def cure_of(options: TaskOptions) -> Cure:
    """Return what an external task's annotations offer for an effect that was cut off."""
    if options.idempotent:
        return Cure.REPEAT
    if options.resolve is not None:
        return Cure.RESOLVE
    return Cure.ROLLBACK if options.rollback is not None else Cure.ASK


def effect_key(nonce: str, task: str, iteration: int, generation: int) -> str:
    """Return the key of an effect: 32 hex digits, the same on every attempt, another after a rollback.

    ``nonce`` is the workflow's, ``generation`` the number of rollbacks of this task so far.
    """
    return hashlib.sha256(f"{nonce}/{task}/{iteration}/{generation}".encode()).hexdigest()[:32]


def turns_name(nonce: str, turns: str) -> str:
    """Return a name for the turns that tasks of a loop take: 32 hex digits, no other workflow's, for ever the same."""
    return hashlib.sha256(f"{nonce}/{turns}/turns".encode()).hexdigest()[:32]


def arguments_digest(arguments: bytes, inputs: Iterable[Value]) -> str:
    """Return a hex digest of what an effect is applied to: the constant arguments and the durable inputs."""
    digest = hashlib.sha256(arguments)
    for value in inputs:
        content = value.blob.sha256 if value.blob is not None else hashlib.sha256(value.data or b"").hexdigest()
        digest.update(f"/{value.codec}:{content}".encode())
    return digest.hexdigest()

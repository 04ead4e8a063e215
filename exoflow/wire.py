"""How attempts travel: a job on its way out, an outcome and what became durable on its way back, are bytes. Pure.

Ray moves bytes as they are; any other object it pickles with a pickler written in Python, which for a job costs
more than the whole submission of a task. What travels is made of a few flat classes, so the pickler of the
standard library does, told to rebuild each of them with one call of its constructor.
"""

from __future__ import annotations

import dataclasses
import io
import operator
import pickle
from collections.abc import Callable
from typing import Any

from exoflow.code import CodeRef
from exoflow.codec import Blob, Encoded
from exoflow.messages import Report
from exoflow.records import Value
from exoflow.worker import Failure, Job, LiveInput, Outcome, Settlement

_FLAT = (Job, LiveInput, CodeRef, Encoded, Value, Blob, Report, Failure, Settlement)


def pack(travelling: Job | Outcome | Value) -> bytes:
    """Return a job, an outcome or a durable value as bytes."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _DISPATCH
    pickler.dump(travelling)
    return buffer.getvalue()


def unpack_job(data: bytes) -> Job:
    """Invert `pack` where an attempt runs."""
    job: Job = pickle.loads(data)
    return job


def unpack_outcome(data: bytes) -> Outcome:
    """Invert `pack` where outcomes are read."""
    outcome: Outcome = pickle.loads(data)
    return outcome


def unpack_durable(data: bytes) -> Value | Failure:
    """Invert `pack` for what became of making a value durable."""
    made: Value | Failure = pickle.loads(data)
    return made


_Reducer = Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]


def _reducer(kind: Any) -> _Reducer:
    """Say how to rebuild a dataclass of two fields or more."""
    fields = operator.attrgetter(*(field.name for field in dataclasses.fields(kind)))
    return lambda value: (kind, fields(value))


_DISPATCH: dict[type, _Reducer] = {kind: _reducer(kind) for kind in _FLAT}

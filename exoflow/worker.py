"""What runs where the work runs: one attempt of a task, one member of an actor. Knows nothing of Ray.

An attempt goes through numbered steps: take the inputs, run the body, report. Errors of the body are
values of the report, not exceptions, so that a consumer that was chained to a failed attempt sees
`Unavailable` and refuses instead of running on nonsense.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import dataclasses
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from exoflow.blobs import INLINE_BYTES, Blobs, object_key
from exoflow.code import CodeRef
from exoflow.codec import Blob, Encoded, decode, encode, fill
from exoflow.dag import Node, Stop
from exoflow.errors import StorageUnavailable
from exoflow.messages import Keep, Live, Report, Submit
from exoflow.plan import ActorSpec
from exoflow.records import Value
from exoflow.storage import Store, open_store


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """The body raised; ``error`` is the traceback as text."""

    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """The body was not run."""


Outcome = Report | Failure | Refusal


_NO_ARGS = Encoded("json", b"[[],{}]")


class Unavailable:
    """Stands for the value of an attempt that made none."""


@dataclasses.dataclass(frozen=True, slots=True)
class LiveInput:
    """An input that arrives with the call: one value, or ``members`` of them that make a list."""

    members: int | None
    after_loop: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StoredInput:
    """An input to be read from the store, or from the call itself when it is small."""

    value: Value


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One attempt, as it travels to where it runs."""

    workflow_id: str
    store_uri: str
    task: str
    attempt: int
    iteration: int
    key: str
    keep: Keep
    args: Encoded
    inputs: tuple[LiveInput | StoredInput, ...]
    code: CodeRef | None = None
    method: str | None = None
    expects: str = ""
    leaves: str = ""
    capture: bool = False


def live_inputs(order: Submit) -> list[Live]:
    """Return the attempts whose values must travel with a submission, in order."""
    return [source.value for source in order.sources if isinstance(source.value, Live)]


def make_job(order: Submit, workflow_id: str, store_uri: str, members: Sequence[int | None]) -> Job:
    """Turn a submission into what travels; ``members`` says how many values each live input is."""
    counts = iter(members)
    inputs = tuple(
        LiveInput(next(counts), source.after_loop) if isinstance(source.value, Live) else StoredInput(source.value)
        for source in order.sources
    )
    spec, call = order.spec, order.call
    return Job(
        workflow_id,
        store_uri,
        spec.id,
        order.attempt,
        spec.iteration,
        order.key,
        order.keep,
        spec.args,
        inputs,
        spec.code,
        spec.method,
        "" if call is None else call.expects,
        "" if call is None else call.leaves,
        call is not None and call.snapshot,
    )


Exchange = Callable[[Sequence[Any]], list[Any]]


class Context:
    """What a body may ask of the engine while it runs; get it with `exoflow.context`.

    Attributes
    ----------
    workflow_id, task_id : str
        Who is running.
    iteration : int
        The loop's iteration, from 1; 0 outside loops.
    attempt : int
        Number of this execution, unique within one owner's tenure.
    idempotency_key : str
        The same on every attempt of this task.
    member, members : int
        Place in a replicated actor, and its size; 0 and 1 elsewhere.
    """

    def __init__(
        self, job: Job, blobs: Blobs, member: int = 0, members: int = 1, exchange: Exchange | None = None
    ) -> None:
        self.workflow_id = job.workflow_id
        self.task_id = job.task
        self.iteration = job.iteration
        self.attempt = job.attempt
        self.idempotency_key = job.key
        self.member = member
        self.members = members
        self._blobs = blobs
        self._exchange = exchange
        self.checkpoint_requested = False

    def write_blob(self, data: bytes, suffix: str = "") -> Blob:
        """Make bytes durable and return a handle for use in outputs and actor states."""
        return self._blobs.write(data, suffix)

    def read_blob(self, blob: Blob) -> bytes:
        """Return a blob's bytes; raises CorruptRecord when they are not what was written."""
        return self._blobs.read(blob)

    def blob_path(self, blob: Blob) -> Path | None:
        """Return the file that holds a blob, where the store is a local folder."""
        return self._blobs.path(self._blobs.key(blob))

    def write_object(self, name: str, data: bytes) -> None:
        """Write (or write again) an object of the workflow under a name of the caller's choice.

        It lives as long as the workflow. Exactly once if name and content are functions of the inputs.
        """
        self._blobs.write_object(name, data)

    def object_path(self, name: str) -> Path | None:
        """Return the file or folder of a named object, where the store is a local folder."""
        return self._blobs.path(object_key(self.workflow_id, name))

    def request_checkpoint(self) -> None:
        """Ask that this actor call's snapshot be made durable, whatever its annotations say."""
        self.checkpoint_requested = True

    def exchange(self, messages: Sequence[Any]) -> list[Any]:
        """Send message k to member k and return the messages that the members sent here, in their order.

        All members of a replicated actor must call it the same number of times inside one call.
        """
        if self._exchange is None:
            if len(messages) != 1:
                message = f"{self.task_id} runs alone and cannot send {len(messages)} messages"
                raise ValueError(message)
            return list(messages)
        return self._exchange(messages)


_current: contextvars.ContextVar[Context] = contextvars.ContextVar("exoflow.context")


def context() -> Context:
    """Return the context of the running task.

    Raises
    ------
    RuntimeError
        Outside a task.
    """
    try:
        return _current.get()
    except LookupError:
        message = "exoflow.context() is only there while a task runs in a workflow"
        raise RuntimeError(message) from None


@contextlib.contextmanager
def _running(ctx: Context) -> Iterator[None]:
    token = _current.set(ctx)
    try:
        yield
    finally:
        _current.reset(token)


_stores: dict[str, Store] = {}


def store_at(uri: str) -> Store:
    """Return this process's store for a URI, opened once."""
    if uri not in _stores:
        _stores[uri] = open_store(uri)
    return _stores[uri]


def run_task(job: Job, values: Sequence[Any], store: Store | None = None) -> tuple[Any, Outcome]:
    """Run one attempt of a task; return its value for consumers and its outcome for the controller."""
    blobs = Blobs(store or store_at(job.store_uri), job.workflow_id)
    started_at = time.time()
    try:
        arguments = _arguments(job, values, blobs)
        if arguments is None:
            return Unavailable(), Refusal()
        assert job.code is not None
        args, kwargs = arguments
        with _running(Context(job, blobs)):
            value = job.code.load()(*args, **kwargs)
        return _reported(job, value, blobs, started_at)
    except Exception:
        return Unavailable(), Failure(traceback.format_exc(limit=-20))


def persist_output(workflow_id: str, store_uri: str, value: Any, store: Store | None = None) -> Value | Failure:
    """Make the value of a finished attempt durable."""
    blobs = Blobs(store or store_at(store_uri), workflow_id)
    return _durable_or_failure(lambda: blobs.durable(encode(_plain(value))))


def _durable_or_failure(make: Callable[[], Value]) -> Value | Failure:
    try:
        return make()
    except StorageUnavailable as error:
        return Failure(str(error))
    except Exception:
        return Failure(traceback.format_exc(limit=-20))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Stop) else value


def _arguments(job: Job, values: Sequence[Any], blobs: Blobs) -> tuple[list[Any], dict[str, Any]] | None:
    """Return args and kwargs; None when an input is unavailable or the loop has ended."""
    arrived = iter(values)
    inputs: list[Any] = []
    for given in job.inputs:
        if isinstance(given, StoredInput):
            inputs.append(blobs.load(given.value))
            continue
        parts = [next(arrived) for _ in range(given.members or 1)]
        if any(isinstance(part, Unavailable) for part in parts):
            return None
        if any(isinstance(part, Stop) for part in parts) and not given.after_loop:
            return None
        parts = [_plain(part) for part in parts]
        inputs.append(parts if given.members is not None else parts[0])
    args, kwargs = fill(decode(job.args), tuple(inputs))
    return args, kwargs


def _reported(
    job: Job, value: Any, blobs: Blobs, started_at: float, *, wants_checkpoint: bool = False
) -> tuple[Any, Outcome]:
    plain = _plain(value)
    if isinstance(plain, Node):
        message = f"{job.task} returned a bound task; a task returns values"
        raise TypeError(message)
    output: Value | None = None
    if job.keep is not Keep.NONE:
        encoded = encode(plain)
        if len(encoded.data) <= INLINE_BYTES or job.keep is Keep.ALL:
            output = blobs.durable(encoded)
    stop = isinstance(value, Stop)
    return value, Report(output, None, stop, wants_checkpoint, started_at, time.time())


class Member:
    """One member of a durable actor: the user's object, the state it is in, and snapshots to be persisted."""

    def __init__(
        self,
        spec: ActorSpec,
        workflow_id: str,
        store: Store,
        index: int,
        restore: Value | None,
        exchange: Exchange | None,
        defer: Callable[[Callable[[], Value]], concurrent.futures.Future[Value]] | None = None,
    ) -> None:
        self.blobs = Blobs(store, workflow_id)
        self._workflow_id = workflow_id
        self._spec = spec
        self._index = index
        self._restore = restore
        self._exchange = exchange
        self._object: Any = None
        self._start_error: str | None = None
        self._failed = False
        self._captured: dict[int, Callable[[], Value]] = {}
        self._defer = defer
        self.token = "" if restore is None else "restored"

    def start(self) -> None:
        """Make the user's object and restore it; an error is kept for the first call to report."""
        try:
            args, kwargs = decode(self._spec.args)
            with _running(self._context("start")):
                self._object = self._spec.code.load()(*args, **kwargs)
                if self._restore is not None:
                    self._object.restore(self.blobs.load(self._restore))
        except Exception:
            self._start_error = f"{self._spec.id} could not be started\n{traceback.format_exc(limit=-20)}"

    def _context(self, purpose: str) -> Context:
        job = Job(self._workflow_id, "", f"{self._spec.id}.{purpose}", 0, 0, "", Keep.NONE, _NO_ARGS, ())
        return Context(job, self.blobs, self._index, self._spec.members, self._exchange)

    def call(self, job: Job, values: Sequence[Any]) -> tuple[Any, Outcome]:
        """Run one call; the caller has made sure that ``job.expects`` is this member's token."""
        started_at = time.time()
        if self._failed:
            return Unavailable(), Refusal()
        try:
            self._raise_start_error()
            arguments = _arguments(job, values, self.blobs)
            if arguments is None:
                return Unavailable(), Refusal()
            args, kwargs = arguments
            ctx = Context(job, self.blobs, self._index, self._spec.members, self._exchange)
            with _running(ctx):
                method = getattr(self._object, job.method or "")
                value = method(*args, **kwargs)
                state = None
                if job.capture or (ctx.checkpoint_requested and self._spec.durable):
                    state = self._capture(job.attempt)
            if job.leaves:
                self.token = job.leaves
            answer = _reported(job, value, self.blobs, started_at, wants_checkpoint=ctx.checkpoint_requested)
        except Exception:
            # Half a call may have changed the object, so no later call may use it.
            self._failed = self._spec.durable
            return Unavailable(), Failure(traceback.format_exc(limit=-20))
        report = answer[1]
        assert isinstance(report, Report)
        return value, dataclasses.replace(report, state=state)

    def persist(self, attempt: int) -> Value | Failure:
        """Make durable the state that a call captured."""
        return _durable_or_failure(self._captured.pop(attempt))

    def _capture(self, attempt: int) -> Value | None:
        """Capture the state; return it if it is small, else let it become durable behind the call."""
        captured = self._object.capture()
        persist = getattr(self._object, "persist", None)
        if persist is None and self._spec.members == 1:
            encoded = encode(captured)
            if len(encoded.data) <= INLINE_BYTES:
                return Value.inline(encoded)

        def make_durable() -> Value:
            with _running(self._context("persist")):
                return self.blobs.durable(encode(captured if persist is None else persist(captured)))

        # Begun here and not when it is asked for, so that snapshots become durable in the order of calls.
        self._captured[attempt] = make_durable if self._defer is None else self._defer(make_durable).result
        return None

    def _raise_start_error(self) -> None:
        if self._start_error is not None:
            raise RuntimeError(self._start_error)

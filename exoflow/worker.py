"""What runs where the work runs: one attempt of a task, one member of an actor. Knows nothing of Ray.

An attempt goes through numbered steps: take the inputs, run the body, report. Errors of the body are
values of the report, not exceptions, so that a consumer that was chained to a failed attempt sees
`Unavailable` and refuses instead of running on nonsense.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import functools
import logging
import os
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exoflow.blobs import Blobs, object_key
from exoflow.code import CodeRef
from exoflow.codec import Blob, Encoded, HoldsReferences, References, decode, encode_plain, fill
from exoflow.dag import Node, Stop
from exoflow.effects import Done, NotDone, Unknown, Verdict
from exoflow.errors import CorruptRecord, EffectNotDone, NoRetry, StorageUnavailable
from exoflow.journal import newest_generation
from exoflow.messages import Live, Purpose, Report, Submit
from exoflow.plan import ActorSpec
from exoflow.records import Value
from exoflow.steps import drive
from exoflow.storage import Store, open_store


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """The body raised.

    ``error`` is the traceback as text; ``not_done`` says that it was `EffectNotDone`, ``no_retry`` that it was
    `NoRetry`, ``input_lost`` that data behind a reference was gone.
    """

    error: str
    not_done: bool = False
    input_lost: bool = False
    no_retry: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Settlement:
    """A rollback or resolve function has returned; ``report`` holds the output of an effect that is DONE."""

    verdict: Verdict
    report: Report | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """The body was not run."""


logger = logging.getLogger(__name__)

Outcome = Report | Failure | Refusal | Settlement


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
    keep: bool
    args: Encoded
    inputs: tuple[LiveInput | StoredInput, ...]
    code: CodeRef | None = None
    method: str | None = None
    expects: str = ""
    leaves: str = ""
    capture: bool = False
    purpose: Purpose = Purpose.BODY
    intended_at: float | None = None
    timeout: float | None = None
    catches: bool = False
    last: bool = True
    repeats: bool = False
    generation: int | None = None
    turns: str = ""
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    query: bool = False


def live_inputs(order: Submit) -> list[Live]:
    """Return the attempts whose values must travel with a submission, in order."""
    return [source.value for source in order.sources if isinstance(source.value, Live)]


def make_job(
    order: Submit,
    workflow_id: str,
    store_uri: str,
    members: Sequence[int | None],
    generation: int | None = None,
    hints: Mapping[str, Any] | None = None,
) -> Job:
    """Turn a submission into what travels.

    ``members`` says how many values each live input is; ``generation`` is the owner's, for effects: none
    begins once another owner is there; ``hints`` are the owner's.
    """
    counts = iter(members)
    inputs = tuple(
        LiveInput(next(counts), source.after_loop) if isinstance(source.value, Live) else StoredInput(source.value)
        for source in order.sources
    )
    spec, call = order.spec, order.call
    code = {Purpose.BODY: spec.code, Purpose.RESOLVE: spec.options.resolve, Purpose.ROLLBACK: spec.options.rollback}
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
        code[order.purpose],
        spec.method,
        "" if call is None else call.expects,
        "" if call is None else call.leaves,
        call is not None and call.snapshot,
        order.purpose,
        None if order.intent is None else order.intent.at,
        spec.options.timeout,
        spec.options.catch_exceptions,
        order.last,
        order.repeats,
        generation if spec.options.external else None,
        order.turns,
        hints or {},
        call is not None and spec.options.query,
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
    turns : str
        The same for all tasks that take turns with this one (`exoflow.dag.Node.in_turn`), and nobody else's,
        in any workflow; empty where none do. A name under which a receiver can tell an older sender from a newer.
    member, members : int
        Place in a replicated actor, and its size; 0 and 1 elsewhere.
    hints : mapping
        What the owner was told about how to run (`exoflow.run`). Another owner may have been told something
        else, so nothing that is computed may depend on it.
    """

    def __init__(
        self,
        job: Job,
        blobs: Blobs,
        member: int = 0,
        members: int = 1,
        exchange: Exchange | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.workflow_id = job.workflow_id
        self.task_id = job.task
        self.iteration = job.iteration
        self.attempt = job.attempt
        self.idempotency_key = job.key
        self.turns = job.turns
        self.member = member
        self.members = members
        self.hints = job.hints
        self._blobs = blobs
        self._exchange = exchange
        self._tell = tell or logger.warning
        self._now = time.time() if job.intended_at is None else job.intended_at
        self._seed = job.key if job.intended_at is not None else None
        self._random: random.Random | None = None
        self.checkpoint_requested = False

    def now(self) -> float:
        """Return Unix seconds: of an external task's intent, the same on every attempt; else of this attempt."""
        return self._now

    def random(self) -> random.Random:
        """Return a generator of random numbers; an external task gets the same numbers on every attempt."""
        if self._random is None:
            self._random = random.Random(self._seed)
        return self._random

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
        """Ask that this actor call's snapshot be made durable, whatever its annotations say. A query has none."""
        self.checkpoint_requested = True

    def tell(self, text: str) -> None:
        """Say something to the observer of whoever runs the workflow: shown while it runs, kept nowhere.

        Of an actor's code alone; what a task says goes to the log of its process.
        """
        self._tell(text)

    def exchange(self, messages: Sequence[Any]) -> list[Any]:
        """Send message k to member k and return the messages that the members sent here, in their order.

        All members of a replicated actor must call it the same number of times inside one call. A query has
        no place among the calls, so it exchanges nothing.
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


def run_task(
    job: Job, values: Sequence[Any], store: Store | None = None, references: References | None = None
) -> tuple[Any, Outcome]:
    """Run one attempt of a task; return its value for consumers and its outcome for the controller."""
    started_at = time.time()
    begun = False
    try:
        store = store or store_at(job.store_uri)
        blobs = Blobs(store, job.workflow_id, references)
        if _outlived(job, store):
            return Unavailable(), Refusal()
        if job.purpose is not Purpose.BODY:
            return Unavailable(), _run_cure(job, blobs)
        arguments = _arguments(job, values, blobs)
        if arguments is None:
            return Unavailable(), Refusal()
        assert job.code is not None
        args, kwargs = arguments
        body = job.code.load()
        begun = True
        with _running(Context(job, blobs)), _deadline(job.timeout):
            value = body(*args, **kwargs)
        return _reported(job, _with_error(value, None) if job.catches else value, blobs, started_at)
    except Exception as error:
        failure = _failure(error, references, begun=begun)
        settled = job.intended_at is None or failure.not_done
        last = job.last or (failure.no_retry and not job.repeats)
        if job.catches and last and begun and settled and not failure.input_lost:
            return _reported(job, _with_error(None, error), blobs, started_at)
        return Unavailable(), failure


def run_inside(job: Job, values: Sequence[Any], references: References | None = None) -> tuple[Any, Outcome]:
    """Run one attempt inside the owner; see `run_task`.

    Its value goes to others as it is, so it must be one that can travel, and hold no references.
    """
    try:
        value, outcome = run_task(job, values, references=references)
        if isinstance(outcome, Report) and outcome.output is None:
            encode_plain(_plain(value), None if references is None else references.kind)
    except HoldsReferences:
        error = f"{job.task} runs in the owner and returned references to objects: return values, or leave in_owner out"
        return Unavailable(), Failure(error, no_retry=True)
    except Exception:
        return Unavailable(), Failure(f"the output cannot travel\n{traceback.format_exc(limit=-20)}")
    return value, outcome


def _outlived(job: Job, store: Store) -> bool:
    """Whether an effect was ordered by an owner that has been replaced.

    The owner looks too, but may be stopped for long between looking and ordering; where the work runs, the
    order and the look are next to each other.
    """
    return job.generation is not None and drive(newest_generation(job.workflow_id), store) != job.generation


def _with_error(value: Any, error: Exception | None) -> Any:
    """Return what ``catch_exceptions`` makes of an outcome."""
    return Stop((value.value, error)) if isinstance(value, Stop) else (value, error)


def _failure(error: Exception, references: References | None, *, begun: bool = True) -> Failure:
    """Return what an exception means; one from before the body began leaves no doubt about its effect."""
    lost = references is not None and isinstance(error, references.lost)
    not_done = isinstance(error, EffectNotDone) or not begun
    return Failure(traceback.format_exc(limit=-20), not_done, lost, isinstance(error, NoRetry))


def _run_cure(job: Job, blobs: Blobs) -> Settlement | Failure:
    """Run a rollback or resolve function."""
    started_at = time.time()
    try:
        assert job.code is not None
        with _running(Context(job, blobs)), _deadline(job.timeout):
            if job.purpose is Purpose.ROLLBACK:
                job.code.load()(None, job.key)
                return Settlement(Verdict.UNDONE)
            found = job.code.load()(job.key)
        match found:
            case Done():
                output, stop = blobs.durable(_plain(found.value)), isinstance(found.value, Stop)
                report = Report(output, stop=stop, started_at=started_at, finished_at=time.time())
                return Settlement(Verdict.DONE, report)
            case NotDone():
                return Settlement(Verdict.NOT_DONE)
            case Unknown():
                return Settlement(Verdict.UNKNOWN)
        message = f"resolve must return exoflow.Done(value), NotDone() or Unknown(), got {found!r}"
        raise TypeError(message)
    except Exception as error:
        return _failure(error, blobs.references)


@contextlib.contextmanager
def _deadline(seconds: float | None) -> Iterator[None]:
    """End the process if the block takes longer: nothing else stops a body for certain, whatever it does."""
    if seconds is None:
        yield
        return
    watchdog = threading.Timer(seconds, os._exit, [1])
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def persist_output(value: Any, blobs: Blobs) -> Value | Failure:
    """Make the value of a finished attempt durable."""
    return _durable_or_failure(lambda: blobs.durable(_plain(value)), blobs)


def _durable_or_failure(make: Callable[[], Value], blobs: Blobs) -> Value | Failure:
    try:
        return make()
    except StorageUnavailable as error:
        return Failure(str(error))
    except Exception as error:
        return _failure(error, blobs.references)


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
    output = blobs.small(plain) if job.keep else None
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
        references: References | None = None,
        hints: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._tell = tell
        self.blobs = Blobs(store, workflow_id, references)
        self._store = store
        self._workflow_id = workflow_id
        self._spec = spec
        self._index = index
        self._restore = restore
        self._exchange = exchange
        self._object: Any = None
        self._start_error: str | None = None
        self._failed = False
        self._captured: collections.deque[tuple[int, Callable[[], Value]]] = collections.deque()
        self._durable: dict[int, Value | Failure] = {}
        self._hints = hints or {}
        self.token = "" if restore is None else "restored"
        # Imported before anything else runs here: arguments of calls are unpickled in a thread of their own, and
        # two threads that import modules of one package from two ends find them half made.
        self._make = self._loaded()

    def _loaded(self) -> Callable[[], Any] | None:
        """Return what makes the user's object; None, and the error kept, when that cannot be loaded."""
        try:
            args, kwargs = decode(self._spec.args)
            return functools.partial(self._spec.code.load(), *args, **kwargs)
        except Exception:
            self._keep_start_error()
            return None

    def start(self) -> str | None:
        """Make the user's object and restore it; return what is wrong with the stored state, if that is damaged.

        Any other error is kept for the first call to report.
        """
        if self._make is None:
            return None
        try:
            with _running(self._context("start")):
                self._object = self._make()
                if self._restore is not None:
                    self._object.restore(self.blobs.load(self._restore))
        except CorruptRecord as error:
            self._failed = True
            return str(error)
        except Exception:
            self._keep_start_error()
        return None

    def _keep_start_error(self) -> None:
        self._start_error = f"{self._spec.id} could not be started\n{traceback.format_exc(limit=-20)}"

    def _context(self, purpose: str) -> Context:
        job = Job(self._workflow_id, "", f"{self._spec.id}.{purpose}", 0, 0, "", False, _NO_ARGS, (), hints=self._hints)
        return Context(job, self.blobs, self._index, self._spec.members, self._exchange, self._tell)

    def call(self, job: Job, values: Sequence[Any]) -> tuple[Any, Outcome]:
        """Run one call; the caller has made sure that ``job.expects`` is this member's token."""
        started_at = time.time()
        begun = False
        try:
            if self._failed or _outlived(job, self._store):
                return Unavailable(), Refusal()
            self._raise_start_error()
            arguments = _arguments(job, values, self.blobs)
            if arguments is None:
                return Unavailable(), Refusal()
            args, kwargs = arguments
            exchange = None if job.query else self._exchange
            ctx = Context(job, self.blobs, self._index, self._spec.members, exchange, self._tell)
            begun = True
            with _running(ctx), _deadline(job.timeout):
                method = getattr(self._object, job.method or "")
                value = method(*args, **kwargs)
                state = None
                requested = ctx.checkpoint_requested and self._spec.durable and not job.query
                if job.capture or requested:
                    state = self._capture(job.attempt)
            if job.leaves:
                self.token = job.leaves
            answer = _reported(job, value, self.blobs, started_at, wants_checkpoint=ctx.checkpoint_requested)
        except Exception as error:
            # Half a call may have changed the object, so no later call may use it.
            self._failed = self._spec.durable
            return Unavailable(), _failure(error, self.blobs.references, begun=begun)
        report = answer[1]
        assert isinstance(report, Report)
        return value, dataclasses.replace(report, state=state)

    def persist(self, attempt: int) -> Value | Failure:
        """Make durable the state that a call captured, and before it those of earlier calls: each adds to the last.

        Calls may go on meanwhile, in another thread; of this there is one at a time.
        """
        while attempt not in self._durable:
            earlier, make_durable = self._captured.popleft()
            self._durable[earlier] = _durable_or_failure(make_durable, self.blobs)
        return self._durable.pop(attempt)

    def _capture(self, attempt: int) -> Value | None:
        """Capture the state; return it if it is small, else keep it for `persist`.

        It becomes durable when the owner asks for it, which is when the answer has left this process: begun here,
        it would hold that up.
        """
        captured = self._object.capture()
        persist = getattr(self._object, "persist", None)
        if persist is None and self._spec.members == 1:
            small = self.blobs.small(captured)
            if small is not None:
                return small

        def make_durable() -> Value:
            with _running(self._context("persist")):
                return self.blobs.durable(captured if persist is None else persist(captured))

        self._captured.append((attempt, make_durable))
        return None

    def _raise_start_error(self) -> None:
        if self._start_error is not None:
            raise RuntimeError(self._start_error)

"""Ray, and nothing but Ray: starts attempts and actors, tells their outcome as events. Decides nothing.

Every attempt returns two objects, its value and its outcome. Consumers get a reference to the value, which
never passes through the controller; the controller reads the outcome. Ray's own retries are off: every
loss is an event. What a task costs here, step by step, is in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import queue
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.exceptions

from exoflow import wire
from exoflow.backlog import Backlog, Name
from exoflow.cluster import NodeWatch
from exoflow.inside import Inside, OwnValue
from exoflow.messages import (
    ActorLost,
    Event,
    Failed,
    InputLost,
    Lost,
    Persist,
    Persisted,
    PersistFailed,
    Produced,
    Purpose,
    Refused,
    Report,
    Settled,
    StartActor,
    StateDamaged,
    StopActor,
    Submit,
    Told,
    ValueLost,
)
from exoflow.plan import ActorSpec, TaskSpec
from exoflow.records import Value
from exoflow.remote import BUNDLE, HOST, PERSIST, TASK, RayReferences
from exoflow.worker import Failure, Job, Outcome, Refusal, Settlement, live_inputs, make_job, run_inside

ENDING_SECONDS = 1.0
"""How long attempts that nobody waits for any more may go on before they are ended by force."""


@dataclasses.dataclass(slots=True)
class _Gathering:
    """The outcomes of a call's members, until all have arrived."""

    reports: list[Report | None]
    grouped: bool
    told: bool = False
    timeout: float | None = None
    submitted_at: float = dataclasses.field(default_factory=time.monotonic)

    def timed_out(self) -> bool:
        """Whether a process that died may have been ended because the attempt took too long."""
        return self.timeout is not None and time.monotonic() - self.submitted_at >= self.timeout


@dataclasses.dataclass(frozen=True, slots=True)
class _Made:
    """What stands for the value of an attempt: a reference or an `OwnValue`, of a group of members one for each."""

    values: list[Any]
    grouped: bool = False


@dataclasses.dataclass(slots=True)
class _Held:
    """An attempt that waits here for others, with hold of what it needs, whatever is released or stopped meanwhile."""

    order: Submit
    missing: set[Name]
    made: dict[Name, _Made]
    actor: _Actor | None


_Actor = tuple[ActorSpec, int, list[Any]]
"""An actor, its incarnation, and the handles of its members."""


class RayExecutor:
    """Carries out the instructions that concern running code."""

    def __init__(
        self,
        workflow_id: str,
        store_uri: str,
        generation: int,
        post: Callable[[Event | BaseException | Told], None],
        hints: Mapping[str, Any],
    ) -> None:
        self._workflow_id = workflow_id
        self._store_uri = store_uri
        self._generation = generation
        self._post = post
        self._hints = hints
        self._made: dict[Name, _Made] = {}
        self._actors: dict[str, _Actor] = {}
        self._calls: dict[Name, str] = {}
        self._running: dict[tuple[str, int], Any] = {}
        self._tasks: dict[Any, Any] = {}
        self._watch_of_node = NodeWatch(post)
        self._backlog = Backlog(ray.cluster_resources().get("CPU", 1.0))
        self._waiting: dict[Name, Submit] = {}
        self._held: dict[Name, _Held] = {}
        self._followers: dict[Name, list[Name]] = {}
        self._alone: set[str] = set()
        self._ended: queue.SimpleQueue[tuple[Any, list[float], list[Submit]]] = queue.SimpleQueue()
        self._inside = Inside(_when_done, ray.exceptions.RayError, post)
        self._are_inside: dict[Name, _Made] = {}
        self._given_up: list[Name] = []
        self._came_out: queue.SimpleQueue[Name] = queue.SimpleQueue()

    @property
    def running(self) -> int:
        """Number of attempts that were started and have not told their outcome; calls of actors aside."""
        return len(self._running)

    def start_actor(self, order: StartActor) -> None:
        """Create an actor's processes."""
        spec = order.spec
        options = {"num_cpus": 0, "scheduling_strategy": "SPREAD", **spec.options.ray_options()}
        handles = [
            HOST.options(**options).remote(spec, self._workflow_id, self._store_uri, index, order.restore, self._hints)
            for index in range(spec.members)
        ]
        self._actors[spec.id] = (spec, order.incarnation, handles)
        for index, handle in enumerate(handles):
            self._watch_start(handle.start.remote(handles), spec.id, order.incarnation)
            self.listen(spec.id, order.incarnation, index)

    def listen(self, actor: str, incarnation: int, member: int) -> None:
        """Have the next thing that a member tells posted, as `Told`, or its end.

        A member may die after its last answer, with a message on its way that the others wait for.
        """
        known = self._actors.get(actor)
        if known is None or known[1] != incarnation:
            return

        def done(answer: Any) -> None:
            if isinstance(answer, BaseException):
                self._post(ActorLost(actor, incarnation, _first_line(answer)))
            else:
                self._post(Told(actor, incarnation, member, answer))

        _when_done(known[2][member].stay.remote(), done)

    def stop_actor(self, order: StopActor) -> None:
        """Kill an actor's processes."""
        known = self._actors.get(order.actor)
        if known is not None and known[1] == order.incarnation:
            del self._actors[order.actor]
            for handle in known[2]:
                ray.kill(handle, no_restart=True)

    def submit(self, order: Submit) -> None:
        """Start an attempt, at the next `pump` at the latest if nothing is in its way."""
        name = (order.spec.id, order.attempt)
        missing = {live for live in _live_names(order) if self._is_behind(live)}
        if missing:
            made = {live: self._made[live] for live in _live_names(order) if live not in missing}
            self._held[name] = _Held(order, missing, made, self._actors.get(order.spec.actor or ""))
            for live in missing:
                self._followers.setdefault(live, []).append(name)
        elif self._may_wait(order):
            self._waiting[name] = order
            self._backlog.add(_kind(order.spec), order.spec.options.num_cpus or 1.0, name)
        else:
            self._start(order)

    def pump(self) -> None:
        """Hand over to Ray what it has room for."""
        while not self._came_out.empty():
            name = self._came_out.get()
            self._let_followers_go(name, self._are_inside.pop(name))
        for name in self._given_up:
            # Who waits for an attempt that will not run any more refuses, as if it had failed.
            self._let_followers_go(name, _Made([OwnValue()]))
        self._given_up.clear()
        while not self._ended.empty():
            kind, seconds, not_run = self._ended.get()
            self._backlog.ended(kind, seconds)
            for order in not_run:
                self._alone.add(order.spec.id)
                if (order.spec.id, order.attempt) in self._made:
                    self._start(order)
        for kind, names in self._backlog.take():
            orders = [self._waiting.pop(name) for name in names]
            if len(orders) == 1:
                self._start(orders[0], kind=kind)
            else:
                self._start_bundle(orders, kind)
            for name in names:
                self._let_followers_go(name, self._made[name])

    def _is_behind(self, name: Name) -> bool:
        """Whether there is nothing yet that would stand for an attempt's value."""
        return name in self._waiting or name in self._held or name in self._are_inside

    def _may_wait(self, order: Submit) -> bool:
        """Whether an attempt may wait for a slot here, and travel with others when it goes."""
        options = order.spec.options
        plain = order.call is None and order.purpose is Purpose.BODY and not options.external and not options.in_owner
        # A task that takes no slot never waits for one, and a deadline counts from the submission.
        limited = (options.num_cpus is None or options.num_cpus > 0) and options.timeout is None
        return plain and limited and not order.sources and order.spec.id not in self._alone

    def _let_followers_go(self, name: Name, made: _Made) -> None:
        """Start what only waited for something that stands for an attempt's value."""
        handed_over = [(name, made)]
        while handed_over:
            upstream, made = handed_over.pop()
            for follower in self._followers.pop(upstream, ()):
                held = self._held.get(follower)
                if held is None:
                    continue
                held.missing.discard(upstream)
                held.made[upstream] = made
                if not held.missing:
                    del self._held[follower]
                    self._start(held.order, held)
                    if follower not in self._are_inside:
                        handed_over.append((follower, self._made[follower]))

    def _start_bundle(self, orders: list[Submit], kind: Any) -> None:
        """Submit attempts that run one after the other in one process, each with a value of its own."""
        jobs = [wire.pack(self._job(order, self._made)[0]) for order in orders]
        *values, outcomes = self._remote(BUNDLE, orders[0].spec, len(jobs) + 1).remote(jobs)
        names = [(order.spec.id, order.attempt) for order in orders]
        for name, value in zip(names, values, strict=True):
            self._made[name] = _Made([value])
            self._running[name] = outcomes
        _when_done(outcomes, functools.partial(self._bundle_ended, orders, kind))

    def _bundle_ended(self, orders: list[Submit], kind: Any, answer: Any) -> None:
        names = [(order.spec.id, order.attempt) for order in orders]
        if isinstance(answer, BaseException):
            # Nobody knows whose fault it was: each goes alone from now on.
            self._alone.update(task for task, _ in names)
            self._ended.put((kind, [], []))
            for name in names:
                self._running.pop(name, None)
                self._post(Lost(*name, _first_line(answer)))
            return
        events = [
            self._event_of(outcome, name, 0, None, _Gathering([None], grouped=False))
            for name, outcome in zip(names, answer, strict=True)
            if outcome is not None
        ]
        not_run = [order for order, outcome in zip(orders, answer, strict=True) if outcome is None]
        self._ended.put((kind, [_seconds(event) for event in events if isinstance(event, Produced)], not_run))
        for event in events:
            if event is not None:
                self._post(event)

    def _start(self, order: Submit, held: _Held | None = None, kind: Any = None) -> None:
        job, inputs = self._job(order, self._made if held is None else held.made)
        if order.spec.options.in_owner:
            self._start_inside(order, job, inputs)
            return
        packed = wire.pack(job)
        values = [each.value if isinstance(each, OwnValue) else each for each in inputs]
        name = (order.spec.id, order.attempt)
        timeout = order.spec.options.timeout
        if order.call is None:
            value, outcome = self._remote(TASK, order.spec, 2).remote(packed, *values)
            self._made[name] = _Made([value])
            self._running[name] = outcome
            self._watch(outcome, name, 0, None, _Gathering([None], grouped=False, timeout=timeout), kind)
            return
        actor = None if held is None else held.actor
        spec, incarnation, handles = actor or self._actors[order.spec.actor or ""]
        pairs = [handle.call.remote(packed, *values) for handle in handles]
        self._made[name] = _Made([value for value, _ in pairs], spec.replicas is not None)
        self._calls[name] = spec.id
        gathering = _Gathering([None] * len(pairs), spec.replicas is not None, timeout=timeout)
        for index, (_, outcome) in enumerate(pairs):
            self._watch(outcome, name, index, (spec.id, incarnation), gathering)

    def _start_inside(self, order: Submit, job: Job, inputs: list[Any]) -> None:
        name = (order.spec.id, order.attempt)
        result = OwnValue()
        self._made[name] = self._are_inside[name] = _Made([result])
        references = RayReferences(self._workflow_id, self._store_uri)

        def ended(answer: Any) -> None:
            # Before the event: who handles it lets go, at the next `pump`, what waits for this value.
            self._came_out.put(name)
            if answer is None or _failed_upstream(answer):
                self._post(Refused(*name))
                return
            event = self._event_of(answer, name, 0, None, _Gathering([None], grouped=False))
            if event is not None:
                self._post(event)

        self._inside.start(lambda values: run_inside(job, values, references), inputs, result, ended)

    def persist(self, order: Persist) -> None:
        """Start making an attempt's leavings durable."""
        name = (order.task, order.attempt)
        outputs: list[Any] = []
        states: list[Any] = []
        actor = None
        if order.output:
            where = (self._workflow_id, self._store_uri, order.known)
            outputs = [
                PERSIST.remote(*where, value.value if isinstance(value, OwnValue) else value)
                for value in self._made[name].values
            ]
        if order.state:
            spec, incarnation, handles = self._actors[self._calls[name]]
            actor = (spec.id, incarnation)
            states = [handle.persist.remote(order.attempt) for handle in handles]
        self._watch_persist(outputs, states, name, actor)

    def release(self, task: str, attempt: int) -> None:
        """Let an attempt's value go."""
        name = (task, attempt)
        if self._waiting.pop(name, None) is not None:
            self._backlog.drop(name)
            self._given_up.append(name)
        if self._held.pop(name, None) is not None:
            self._given_up.append(name)
        inside = self._are_inside.get(name)
        if inside is not None:
            inside.values[0].wanted = False
        self._made.pop(name, None)
        self._calls.pop(name, None)

    def close(self) -> None:
        """End all actors of this workflow, and all attempts that nobody waits for any more."""
        self._waiting.clear()
        self._held.clear()
        self._inside.close(ENDING_SECONDS)
        if not self._watch_of_node.lost:
            self._end_all()
        self._made.clear()
        self._watch_of_node.stop()

    def _end_all(self) -> None:
        for _, _, handles in self._actors.values():
            for handle in handles:
                with contextlib.suppress(Exception):
                    ray.kill(handle, no_restart=True)
        self._actors.clear()
        # Whoever cancels a task while its answer arrives ends this process: Ray takes the task for failed, then finds
        # that it completes, and aborts. So what is about to return does so first.
        # Threads of Ray take what returns out of the dictionary meanwhile; copying it is one step.
        running = list(set(self._running.copy().values()))
        waited = {"num_returns": len(running), "timeout": ENDING_SECONDS, "fetch_local": False}
        _, lasting = ray.wait(running, **waited) if running else ([], [])
        for outcome in lasting:
            ray.cancel(outcome, force=True)
        self._running.clear()

    def _remote(self, function: Any, spec: TaskSpec, num_returns: int) -> Any:
        """Return Ray's function for a task, made once for all tasks that run the same code with the same resources.

        Ray then counts them as one kind; a name for each task would be a kind for each.
        """
        key = (function is BUNDLE, num_returns, _kind(spec))
        made = self._tasks.get(key)
        if made is None:
            code = "" if spec.code is None else spec.code.name
            made = self._tasks[key] = function.options(name=code, num_returns=num_returns, **spec.options.ray_options())
        return made

    def _job(self, order: Submit, made: Mapping[Name, _Made]) -> tuple[Job, list[Any]]:
        names = [(live.task, live.attempt) for live in live_inputs(order)]
        members = [len(made[name].values) if made[name].grouped else None for name in names]
        values = [value for name in names for value in made[name].values]
        return make_job(order, self._workflow_id, self._store_uri, members, self._generation, self._hints), values

    def _watch(
        self,
        outcome: Any,
        name: tuple[str, int],
        index: int,
        actor: tuple[str, int] | None,
        gathering: _Gathering,
        kind: Any = None,
    ) -> None:
        def done(answer: Any) -> None:
            event = self._event_of(answer, name, index, actor, gathering)
            if kind is not None:
                self._ended.put((kind, [_seconds(event)] if isinstance(event, Produced) else [], []))
            if event is not None:
                self._post(event)

        _when_done(outcome, done)

    def _event_of(
        self,
        answer: Any,
        name: tuple[str, int],
        index: int,
        actor: tuple[str, int] | None,
        gathering: _Gathering,
    ) -> Event | None:
        task, attempt = name
        self._running.pop(name, None)
        if isinstance(answer, BaseException):
            loss = _loss(answer, task, attempt, actor)
            if isinstance(loss, Lost) and gathering.timed_out():
                return Failed(task, attempt, f"it did not return within its timeout of {gathering.timeout} s")
            return loss
        # From inside the owner an outcome comes as it is.
        outcome: Outcome = wire.unpack_outcome(answer) if isinstance(answer, bytes) else answer
        if isinstance(outcome, Report):
            gathering.reports[index] = outcome
            reports = [report for report in gathering.reports if report is not None]
            if len(reports) < len(gathering.reports):
                return None
            return Produced(task, attempt, Report.group(reports) if gathering.grouped else outcome)
        if gathering.told:
            return None
        gathering.told = True
        match outcome:
            case Refusal():
                return Refused(task, attempt)
            case Settlement():
                return Settled(task, attempt, outcome.verdict, outcome.report)
            case Failure() if outcome.input_lost:
                return InputLost(task, attempt, outcome.error)
            case Failure():
                return Failed(task, attempt, outcome.error, outcome.not_done, outcome.no_retry)

    def _watch_start(self, reference: Any, actor: str, incarnation: int) -> None:
        def done(answer: Any) -> None:
            if isinstance(answer, BaseException):
                self._post(ActorLost(actor, incarnation, _first_line(answer)))
            elif answer is not None:
                self._post(StateDamaged(actor, incarnation, answer))

        _when_done(reference, done)

    def _watch_persist(
        self, outputs: list[Any], states: list[Any], name: tuple[str, int], actor: tuple[str, int] | None
    ) -> None:
        task, attempt = name
        grouped = name in self._made and self._made[name].grouped
        references = [*outputs, *states]
        made: list[Value | None] = [None] * len(references)
        missing = [len(references)]

        def done(index: int, answer: Any) -> None:
            if actor is not None and isinstance(answer, ray.exceptions.RayActorError):
                # The actor may have been idle: nobody else would tell that it died.
                self._post(ActorLost(*actor, _first_line(answer)))
                return
            if isinstance(answer, BaseException):
                durable: Value | Failure = Failure(_first_line(answer), input_lost=_data_lost(answer))
            else:
                durable = wire.unpack_durable(answer)
            if isinstance(durable, Failure):
                failed = ValueLost if durable.input_lost else PersistFailed
                self._post(failed(task, attempt, durable.error))
                return
            made[index] = durable
            missing[0] -= 1
            if missing[0] == 0:
                output = _group(made[: len(outputs)], grouped) if outputs else None
                state = _group(made[len(outputs) :], grouped) if states else None
                self._post(Persisted(task, attempt, output, state))

        for index, reference in enumerate(references):
            _when_done(reference, functools.partial(done, index))


def _when_done(reference: Any, tell: Callable[[Any], None]) -> None:
    """Have one of Ray's threads call ``tell`` with what a reference has become: a value, or an exception.

    This is what `ObjectRef.future` is made of, without the future and its locks.
    """
    reference._on_completed(functools.partial(_answered, tell, reference))


def _answered(tell: Callable[[Any], None], _reference: Any, answer: Any) -> None:
    """Pass an answer on. Until it comes, the reference among the arguments keeps Ray from dropping the object."""
    tell(answer.as_instanceof_cause() if isinstance(answer, ray.exceptions.RayTaskError) else answer)


def _kind(spec: TaskSpec) -> tuple[Any, ...]:
    """Return what tasks must have in common to be counted as one kind."""
    options = spec.options
    code = None if spec.code is None else (spec.code.module, spec.code.qualname, spec.code.source_sha256)
    return (code, options.num_cpus, options.num_gpus, tuple(options.resources.items()))


def _live_names(order: Submit) -> list[Name]:
    return [(live.task, live.attempt) for live in live_inputs(order)]


def _seconds(event: Produced) -> float:
    return event.report.finished_at - event.report.started_at


def _group(values: list[Value | None], grouped: bool) -> Value | None:
    if not grouped:
        return values[0]
    present = [value for value in values if value is not None]
    return Value.group(present) if len(present) == len(values) else None


def _loss(error: BaseException, task: str, attempt: int, actor: tuple[str, int] | None) -> Event:
    if actor is not None and isinstance(error, ray.exceptions.RayActorError):
        return ActorLost(actor[0], actor[1], _first_line(error))
    if _data_lost(error):
        return InputLost(task, attempt, _first_line(error))
    if _unreadable(error):
        return Failed(task, attempt, f"an input could not be unpickled\n{_cause(error)}", not_done=True)
    # Bodies never raise here. A cause of Ray's own is an input's.
    if isinstance(error, ray.exceptions.RayTaskError) and not isinstance(error.cause, ray.exceptions.RayError):
        return Failed(task, attempt, f"the output cannot travel\n{error}")
    return Lost(task, attempt, _first_line(error))


def _cause(error: BaseException) -> Any:
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error


def _data_lost(error: BaseException) -> bool:
    """Whether an object is gone with the process or node that held it."""
    return isinstance(_cause(error), ray.exceptions.ObjectLostError)


def _unreadable(error: BaseException) -> bool:
    """Whether an object is there, but not what it was made of: code that cannot be imported, say."""
    return isinstance(_cause(error), ray.exceptions.RaySystemError)


def _failed_upstream(answer: Any) -> bool:
    """Whether an input is no value because its own attempt failed, which that attempt tells."""
    if not isinstance(answer, ray.exceptions.RayTaskError):
        return False
    return not isinstance(answer.cause, ray.exceptions.RayError)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"

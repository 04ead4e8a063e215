"""What a task's execution means: the annotations, checked when they are given. Pure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

from exoflow.code import CodeRef, code_ref
from exoflow.errors import DefinitionError


class Checkpoint(enum.StrEnum):
    """When an output becomes durable.

    ``NONE``: not; recovery computes it again. ``ASYNC``: behind the work that goes on; effects and the
    end of the workflow wait for it. ``SYNC``: before anything downstream starts.
    """

    NONE = "none"
    ASYNC = "async"
    SYNC = "sync"


class Annotations(TypedDict, total=False):
    """The annotations as users write them, for who checks types; `TaskOptions` says what each means."""

    checkpoint: str
    deterministic: bool
    external: bool
    idempotent: bool
    rollback: Callable[[Any, str], object] | None
    resolve: Callable[[str], object] | None
    retries: int
    backoff: float
    timeout: float | None
    catch_exceptions: bool
    snapshot: bool
    query: bool
    in_owner: bool
    name: str | None
    metadata: Mapping[str, Any]
    num_cpus: float | None
    num_gpus: float | None
    resources: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class TaskOptions:
    """The annotations of one task.

    Attributes
    ----------
    checkpoint : Checkpoint
        When the output becomes durable.
    deterministic : bool
        The same inputs always give the same output.
    external, idempotent : bool
        The task's effect is seen outside the engine; repeating it under the same key is harmless.
    rollback : CodeRef or None
        ``rollback(output, key)`` undoes an effect that may have happened. Called at least once under the
        same key; ``output`` is None, for an effect whose output is known is complete and stays.
    resolve : CodeRef or None
        ``resolve(key)`` says what became of an effect: `Done`, `NotDone` or `Unknown`.
    retries : int
        Further attempts after an exception, unless that is `NoRetry`. Lost workers are retried beyond this count.
    backoff : float
        Seconds before the first retry; doubles with each further one.
    timeout : float or None
        Seconds after which a body that has not returned is ended with its process; counts as an exception.
    catch_exceptions : bool
        The output is ``(value, None)``, or ``(None, exception)`` when the last attempt raised.
    snapshot : bool
        Calls of durable actors only: whether the call captures the actor's state.
    query : bool
        Calls of durable actors only: the call reads and leaves the state alone, so it may run at any moment
        after its inputs are there, also while another call runs, and is not a step of the actor's history. Queries
        of one actor run one at a time, in a thread of their own.
    in_owner : bool
        Tasks only: the body runs in a thread of the process that owns the workflow, one such body at a time. For what
        takes microseconds on small values, where going to another process would take a hundred times as long. Its
        output must hold no references to objects, and what it is given must not be changed.
    name : str or None
        Task id; the function's name when None.
    metadata : Mapping
        Anything JSON can hold, kept with the task.
    num_cpus, num_gpus : float or None
        Ray's resources; None leaves Ray's default.
    resources : Mapping
        Ray's custom resources.
    """

    checkpoint: Checkpoint = Checkpoint.SYNC
    deterministic: bool = False
    external: bool = False
    idempotent: bool = False
    rollback: CodeRef | None = None
    resolve: CodeRef | None = None
    retries: int = 0
    backoff: float = 0.5
    timeout: float | None = None
    catch_exceptions: bool = False
    snapshot: bool = True
    query: bool = False
    in_owner: bool = False
    name: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def replace(self, **changes: Unpack[Annotations]) -> TaskOptions:
        """Return a copy with some annotations changed.

        Raises
        ------
        DefinitionError
            On an unknown annotation or a value it cannot have.
        """
        return _checked(self, changes)

    def ray_options(self) -> dict[str, Any]:
        """Return the resources in the form that Ray's ``.options`` takes."""
        chosen: dict[str, Any] = {}
        if self.num_cpus is not None:
            chosen["num_cpus"] = self.num_cpus
        if self.num_gpus is not None:
            chosen["num_gpus"] = self.num_gpus
        if self.resources:
            chosen["resources"] = dict(self.resources)
        return chosen


def task_options(**annotations: Unpack[Annotations]) -> TaskOptions:
    """Build options from keyword annotations; raises DefinitionError when they make no sense."""
    return _checked(TaskOptions(), annotations)


def _checked(base: TaskOptions, changes: Mapping[str, Any]) -> TaskOptions:
    known = {field.name for field in dataclasses.fields(TaskOptions)}
    unknown = sorted(set(changes) - known)
    if unknown:
        message = f"unknown annotation {unknown[0]!r}; known are {', '.join(sorted(known))}"
        raise DefinitionError(message)
    cleaned: dict[str, Any] = dict(changes)
    if "checkpoint" in cleaned:
        cleaned["checkpoint"] = _checkpoint(cleaned["checkpoint"])
    for name in ("rollback", "resolve"):
        if cleaned.get(name) is not None and not isinstance(cleaned[name], CodeRef):
            cleaned[name] = code_ref(cleaned[name])
    options = dataclasses.replace(base, **cleaned)
    if options.retries < 0 or options.backoff < 0:
        message = f"retries and backoff must not be negative, got {options.retries} and {options.backoff}"
        raise DefinitionError(message)
    if options.timeout is not None and options.timeout <= 0:
        message = f"timeout must be a positive number of seconds, got {options.timeout}"
        raise DefinitionError(message)
    _check_effect(options)
    _check_place(options)
    return options


def _check_place(options: TaskOptions) -> None:
    if not options.in_owner:
        return
    if options.external or options.timeout is not None:
        given = "external" if options.external else "timeout"
        message = f"a task in the owner may neither wait for the outside nor be ended by force: leave {given} out"
        raise DefinitionError(message)
    if options.num_cpus or options.num_gpus or options.resources:
        message = "a task in the owner takes nothing of the cluster: leave num_cpus, num_gpus and resources out"
        raise DefinitionError(message)


def _check_effect(options: TaskOptions) -> None:
    cures = [name for name in ("idempotent", "rollback", "resolve") if getattr(options, name)]
    if cures and not options.external:
        message = f"{cures[0]} says what to do about an external effect: set external=True with it"
        raise DefinitionError(message)
    if not options.external:
        return
    if options.checkpoint is Checkpoint.NONE:
        message = "an external task needs checkpoint async or sync, or its effect would be repeated"
        raise DefinitionError(message)
    if options.retries and not cures:
        message = (
            "an external task can be retried only if repeating it is harmless under context().idempotency_key "
            "(idempotent=True), or it can be undone (rollback=), or asked for (resolve=); else retries must be 0"
        )
        raise DefinitionError(message)


def _checkpoint(value: Any) -> Checkpoint:
    try:
        return Checkpoint(value)
    except ValueError:
        message = f"checkpoint must be one of none, async, sync; got {value!r}"
        raise DefinitionError(message) from None

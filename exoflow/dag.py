"""What users compose: tasks, actors, loops, and the nodes that binding them makes. Pure.

Binding runs nothing. A node is one task of a future workflow; passing a node as an argument, at any depth
of lists, tuples and dicts, makes the later task wait for the earlier one and receive its output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, overload

from exoflow.code import CodeRef, code_ref
from exoflow.errors import DefinitionError
from exoflow.options import Annotations, Checkpoint, TaskOptions, task_options

_bind_order = itertools.count()

Given = ParamSpec("Given")
Output = TypeVar("Output")


class Node:
    """One task of a workflow that has not started yet."""

    def __init__(self) -> None:
        self.order = next(_bind_order)
        self.after: list[Node] = []
        self.branches: list[Node] = []
        self.max_behind: int | None = None

    def __rshift__(self, later: Node) -> Node:
        """Make b start after a has finished: ``a >> b``. Returns b, so that chains read left to right."""
        if not isinstance(later, Node):
            return NotImplemented
        later.after.append(self)
        return later

    def also(self, *branches: Node) -> Self:
        """Add tasks that belong to the workflow although nothing here waits for them.

        The workflow ends only after they have. Inside a loop body this is how an iteration starts work,
        such as a batch, that later iterations shall not wait for. Returns the node itself.
        """
        self.branches.extend(branches)
        return self

    def in_turn(self, *, max_behind: int) -> Self:
        """Inside a loop body: make the tasks of this name take turns, one iteration after the other.

        The task starts only after that of the iteration before it which has one; with an effect, after the
        commit of it. So a branch that nobody waits for still happens in order. Returns the node itself.

        Parameters
        ----------
        max_behind : int
            No iteration begins while the turn of one so many before it is not over, at least 1.

        Raises
        ------
        DefinitionError
            When ``max_behind`` is not positive.
        """
        if max_behind < 1:
            message = f"max_behind must be at least 1, got {max_behind}"
            raise DefinitionError(message)
        self.max_behind = max_behind
        return self

    def snapshot(self) -> SnapshotNode:
        """Return an argument that stands for this call's durable actor snapshot.

        Asking forces the snapshot whatever the checkpoint mode; the task it is passed to starts after the
        commit and receives what the actor's ``persist`` returned, a list of it for a replicated actor.
        """
        message = "only a call of a durable actor has a snapshot"
        raise DefinitionError(message)


class SnapshotNode:
    """An argument: the durable snapshot of a `CallNode`."""

    def __init__(self, call: CallNode) -> None:
        self.call = call


class TaskNode(Node):
    """A function bound to its arguments."""

    def __init__(self, code: CodeRef, args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> None:
        super().__init__()
        self.code = code
        self.args = args
        self.kwargs = kwargs
        self.options = options


class CallNode(Node):
    """A method of a durable actor bound to its arguments."""

    def __init__(
        self,
        actor: ActorHandle,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
    ) -> None:
        super().__init__()
        self.actor = actor
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.options = options

    def snapshot(self) -> SnapshotNode:
        """Return an argument that stands for the actor's durable state right after this call."""
        if not self.actor.durable:
            message = f"{self.actor.code.name} has no capture and restore, so it has no snapshot"
            raise DefinitionError(message)
        return SnapshotNode(self)


class CarryNode(Node):
    """Inside a loop body: the previous iteration's output."""


class LoopNode(Node):
    """A loop; its output is the value given to `stop`, or the last carry."""

    def __init__(
        self,
        body: CodeRef,
        carry: Any,
        *,
        max_in_flight: int,
        iterations: int | None,
        keep: int,
        archive: CodeRef | None,
        name: str | None,
    ) -> None:
        super().__init__()
        self.body = body
        self.carry = carry
        self.max_in_flight = max_in_flight
        self.iterations = iterations
        self.keep = keep
        self.archive = archive
        self.name = name


class Task(Generic[Given, Output]):
    """A function made a task by `task`. Calling it still runs the plain function."""

    def __init__(self, function: Callable[Given, Output], options: TaskOptions) -> None:
        self.__exoflow_wraps__ = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self._options = options

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Output:
        """Run the plain function here and now."""
        return self.__exoflow_wraps__(*args, **kwargs)

    def options(self, **annotations: Unpack[Annotations]) -> Task[Given, Output]:
        """Return the same task with other annotations."""
        return Task(self.__exoflow_wraps__, self._options.replace(**annotations))

    def bind(self, *args: Any, **kwargs: Any) -> TaskNode:
        """Return a node: this task on these arguments, any of which may be a node. Runs nothing."""
        return TaskNode(code_ref(self.__exoflow_wraps__), args, kwargs, self._options)


@overload
def task(function: Callable[Given, Output], /, **annotations: Unpack[Annotations]) -> Task[Given, Output]: ...
@overload
def task(
    **annotations: Unpack[Annotations],
) -> Callable[[Callable[Given, Output]], Task[Given, Output]]: ...
def task(function: Callable[..., Any] | None = None, /, **annotations: Unpack[Annotations]) -> Any:
    """Make a function a task: ``@exoflow.task`` or ``@exoflow.task(checkpoint="async", retries=3)``.

    Raises
    ------
    DefinitionError
        On an annotation that is unknown, has a wrong value or contradicts another.
    """
    options = task_options(**annotations)
    if function is not None:
        return Task(function, options)
    return lambda decorated: Task(decorated, options)


class ActorClass:
    """A class made a durable actor by `actor`."""

    def __init__(self, cls: type, options: TaskOptions, replicas: int | None) -> None:
        self.__exoflow_wraps__ = cls
        self.__name__ = cls.__name__
        self.__doc__ = cls.__doc__
        self._options = options
        self._replicas = replicas

    def options(self, *, replicas: int | None = None, **annotations: Unpack[Annotations]) -> ActorClass:
        """Return the same actor with other annotations, or replicated into a group of members.

        A call of a group runs on every member at once and its output is the list of their outputs; the
        members may exchange messages inside the call (``context().exchange``).
        """
        if replicas is not None and replicas < 1:
            message = f"replicas must be at least 1, got {replicas}"
            raise DefinitionError(message)
        options = self._options.replace(**annotations)
        return ActorClass(self.__exoflow_wraps__, options, replicas or self._replicas)

    def bind(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Return a handle whose methods can be bound. Creates nothing yet."""
        return ActorHandle(code_ref(self.__exoflow_wraps__), args, kwargs, self._options, self._replicas)


@overload
def actor(cls: type | ActorClass, /, **annotations: Unpack[Annotations]) -> ActorClass: ...
@overload
def actor(**annotations: Unpack[Annotations]) -> Callable[[type], ActorClass]: ...
def actor(
    cls: type | ActorClass | None = None, /, **annotations: Unpack[Annotations]
) -> ActorClass | Callable[[type], ActorClass]:
    """Make a class a durable actor.

    A class with ``capture()`` and ``restore(state)`` has durable state: ``capture`` returns an immutable
    copy inside the call, the optional ``persist(captured)`` turns it into a JSON-able reference behind the
    call, and ``restore`` receives that reference (without ``persist``, the captured value) on a fresh
    instance. A class without them is a cache: it is made anew after a loss. The annotation
    ``checkpoint`` (default sync) holds for all its calls; ``none`` means that its state is computed again.

    What is an actor already is returned, with these annotations more. So ``exoflow.actor(Counter).bind()`` is
    ``Counter.bind()`` for who checks types with mypy, which takes a class for what it was before it was decorated.
    """
    if isinstance(cls, ActorClass):
        return cls.options(**annotations)
    options = task_options(**annotations)
    if cls is not None:
        return ActorClass(cls, options, None)
    return lambda decorated: ActorClass(decorated, options, None)


class ActorHandle:
    """An actor of a future workflow; ``handle.method.bind(...)`` makes a call node.

    A loop body may bind its actors anew in every iteration: inside a workflow an actor is known by its
    name, so the same name is the same actor.
    """

    def __init__(
        self,
        code: CodeRef,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        replicas: int | None,
    ) -> None:
        self.code = code
        self.args = args
        self.kwargs = kwargs
        self.annotations = options
        self.replicas = replicas
        cls = code.load()
        self.durable = hasattr(cls, "capture") and hasattr(cls, "restore")
        self._methods = {name for name in dir(cls) if callable(getattr(cls, name))}

    def __getattr__(self, method: str) -> BoundMethod:
        if method.startswith("_"):
            raise AttributeError(method)
        if method not in self._methods:
            message = f"{self.code.name} has no method {method!r}"
            raise DefinitionError(message)
        return BoundMethod(self, method, self.annotations.replace(name=None))

    def __reduce__(self) -> Any:
        return (ActorHandle, (self.code, self.args, self.kwargs, self.annotations, self.replicas))


class BoundMethod:
    """A method of an actor, to be bound to arguments."""

    def __init__(self, actor_handle: ActorHandle, method: str, options: TaskOptions) -> None:
        self._actor = actor_handle
        self._method = method
        self._options = options

    def options(self, **annotations: Unpack[Annotations]) -> BoundMethod:
        """Return the same method with other annotations."""
        return BoundMethod(self._actor, self._method, self._options.replace(**annotations))

    def bind(self, *args: Any, **kwargs: Any) -> CallNode:
        """Return a node: this method on these arguments. Runs nothing."""
        self._check()
        return CallNode(self._actor, self._method, args, kwargs, self._options)

    def _check(self) -> None:
        if self._options.in_owner:
            message = f"{self._actor.code.name}.{self._method}: a call runs where its actor is, not in the owner"
            raise DefinitionError(message)
        if not self._actor.durable or self._options.query:
            return
        if self._options.external and not self._options.idempotent:
            message = (
                f"{self._actor.code.name}.{self._method}: a call is made again when its actor is rebuilt, so an "
                "external one must be idempotent=True; otherwise move the effect into a task of its own"
            )
            raise DefinitionError(message)
        if self._options.catch_exceptions:
            message = (
                f"{self._actor.code.name}.{self._method}: a call that raises leaves its actor half changed, so the "
                "actor goes back to its last state; catch the exception inside the method"
            )
            raise DefinitionError(message)
        actor_mode, mode = self._actor.annotations.checkpoint, self._options.checkpoint
        if (actor_mode is Checkpoint.NONE) != (mode is Checkpoint.NONE):
            message = (
                f"{self._actor.code.name}.{self._method}: the actor's checkpoint is {actor_mode} and this "
                f"call's is {mode}; a call may choose between async and sync, and snapshot=False skips the "
                "capture of state"
            )
            raise DefinitionError(message)
        repeated = mode is Checkpoint.NONE or not self._options.snapshot
        if repeated and not self._options.deterministic:
            message = (
                f"{self._actor.code.name}.{self._method}: a call that keeps no snapshot (checkpoint none or "
                "snapshot=False) is repeated to rebuild the actor's state, so it must be deterministic=True"
            )
            raise DefinitionError(message)


def loop(
    body: Callable[[CarryNode, int], Node],
    carry: Any,
    *,
    max_in_flight: int = 4,
    iterations: int | None = None,
    keep: int = 1,
    archive: Callable[..., bytes] | None = None,
    name: str | None = None,
) -> LoopNode:
    """Return a node that repeats ``body``.

    Parameters
    ----------
    body : callable
        ``body(carry, i)`` is pure and returns one node, whose output is the next carry; ``carry`` is the
        node of the previous one and ``i`` counts from 1.
    carry : value or Node
        The carry that iteration 1 receives.
    max_in_flight : int
        Iterations that may be uncommitted (unfinished, when the carry's checkpoint is none) at a time.
    iterations : int or None
        End after so many; None: when a task returns `stop`.
    keep : int
        Committed iterations whose outputs and snapshots stay readable.
    archive : callable or None
        ``archive(iterations) -> bytes`` makes one object of the iterations (`exoflow.IterationView`) that
        leave the journal; without it they leave no trace.
    name : str or None
        Task id of the loop, default ``"loop"``.

    Raises
    ------
    DefinitionError
        When a bound is not positive or the body is no function.
    """
    for label, bound in (("max_in_flight", max_in_flight), ("keep", keep), ("iterations", iterations)):
        if bound is not None and bound < 1:
            message = f"{label} must be at least 1, got {bound}"
            raise DefinitionError(message)
    return LoopNode(
        code_ref(body),
        carry,
        max_in_flight=max_in_flight,
        iterations=iterations,
        keep=keep,
        archive=None if archive is None else code_ref(archive),
        name=name,
    )


class Stop:
    """What a loop's carry task returns to end the loop. Made by `stop`."""

    def __init__(self, value: Any) -> None:
        self.value = value


def stop(value: Any = None) -> Stop:
    """Return this from the task that makes the carry to end the loop with ``value``."""
    return Stop(value)

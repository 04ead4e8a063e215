"""The immutable plan of a workflow, made from bound nodes. Pure.

A plan is stored once, as one object. Loops are stored as a template: their body's code, from which
`expand` makes the tasks of one iteration whenever they are needed, so that starting a loop of ten thousand
iterations writes no more than starting one of ten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from exoflow.code import CodeRef
from exoflow.codec import Encoded, Slot, encode, rebuild
from exoflow.dag import ActorHandle, CallNode, CarryNode, LoopNode, Node, SnapshotNode, TaskNode
from exoflow.errors import DefinitionError
from exoflow.options import Checkpoint, TaskOptions

FORMAT = 1
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_CURES = ("rollback", "resolve")


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One argument that another task makes: its output, or its actor's durable snapshot."""

    task: str
    snapshot: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: what to run, on which inputs, after whom.

    ``args`` is ``[args, kwargs]`` with a `Slot` where input number ``index`` goes. ``actor`` and ``method``
    are set for calls of actors, ``stateful`` for those that are steps of a durable actor's history;
    ``loop`` and ``iteration`` for tasks of a loop's iteration, ``max_behind`` for those that take turns.
    """

    id: str
    args: Encoded
    inputs: tuple[Input, ...]
    after: tuple[str, ...]
    options: TaskOptions
    code: CodeRef | None = None
    actor: str | None = None
    method: str | None = None
    stateful: bool = False
    loop: str | None = None
    iteration: int = 0
    max_behind: int | None = None

    @property
    def turns(self) -> str:
        """What this task has in common with those of its name in other iterations."""
        return self.id.removesuffix(f"[{self.iteration}]")


@dataclasses.dataclass(frozen=True, slots=True)
class ActorSpec:
    """One durable actor, or a group of ``replicas`` members when that is not None."""

    id: str
    code: CodeRef
    args: Encoded
    options: TaskOptions
    durable: bool
    replicas: int | None

    @property
    def members(self) -> int:
        """Number of processes."""
        return self.replicas or 1


@dataclasses.dataclass(frozen=True, slots=True)
class LoopSpec:
    """A loop's template. The first carry is either a constant or the output of ``carry_task``.

    ``prefix`` goes before the ids of its tasks: nothing for a workflow's first loop, ``<id>/`` for others.
    ``changed`` says that the body's code is not what the workflow began with.
    """

    id: str
    prefix: str
    body: CodeRef
    carry: Encoded | None
    carry_task: str | None
    after: tuple[str, ...]
    max_in_flight: int
    iterations: int | None
    keep: int
    archive: CodeRef | None
    changed: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Iteration:
    """The tasks of one iteration in dependency order, its carry task and the actors it calls."""

    tasks: tuple[TaskSpec, ...]
    carry: str
    branches: tuple[str, ...]
    actors: tuple[ActorSpec, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A whole workflow. ``tasks`` is in dependency order; ``root`` names a task or a loop."""

    root: str
    tasks: tuple[TaskSpec, ...]
    loops: tuple[LoopSpec, ...]
    actors: tuple[ActorSpec, ...]
    branches: tuple[str, ...]
    metadata: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Hex digest of what the workflow is.

        Imported code counts by its name (whether it has changed is another question, see `CodeRef.changed`),
        code that travels by value by its source, and replicas not at all.
        """
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "format": FORMAT,
            "root": self.root,
            "branches": list(self.branches),
            "tasks": [_task_to_json(task) for task in self.tasks],
            "loops": [_loop_to_json(spec) for spec in self.loops],
            "actors": [_actor_to_json(spec) for spec in self.actors],
            "metadata": dict(self.metadata),
        }

    @staticmethod
    def from_json(shown: Mapping[str, Any]) -> Plan:
        """Invert `to_json`."""
        return Plan(
            shown["root"],
            tuple(_task_from_json(task) for task in shown["tasks"]),
            tuple(_loop_from_json(spec) for spec in shown["loops"]),
            tuple(_actor_from_json(spec) for spec in shown["actors"]),
            tuple(shown["branches"]),
            shown["metadata"],
        )

    def with_changed(self, names: Collection[str]) -> Plan:
        """Return the plan with the named tasks, and all tasks of the named loops, as nondeterministic."""
        tasks = tuple(_redrawn(task) if task.id in names else task for task in self.tasks)
        loops = tuple(dataclasses.replace(spec, changed=True) if spec.id in names else spec for spec in self.loops)
        return dataclasses.replace(self, tasks=tasks, loops=loops)

    def code(self) -> Iterator[tuple[str, CodeRef]]:
        """Yield the code of every task, actor and loop, with the name it has in the plan."""
        for task in self.tasks:
            if task.code is not None:
                yield task.id, task.code
            for cure in _CURES:
                code = getattr(task.options, cure)
                if code is not None:
                    yield f"{task.id}'s {cure}", code
        for actor in self.actors:
            yield actor.id, actor.code
        for spec in self.loops:
            yield spec.id, spec.body


def digest_of(shown: Mapping[str, Any]) -> str:
    """Return the digest of a plan in its JSON form; see `Plan.digest`."""
    digest = hashlib.sha256()
    identity = _identity(shown)
    # Part by part: the text of a plan of many tasks need not be there as a whole.
    for part in (*identity.pop("tasks"), identity):
        digest.update(_CANONICAL.encode(part).encode("ascii"))
    return digest.hexdigest()


def build(root: Node, metadata: Mapping[str, Any] | None = None) -> Plan:
    """Make a plan of everything that ``root`` needs.

    Raises
    ------
    DefinitionError
        On a cycle, two actors of one name that differ, or an argument that cannot be stored.
    """
    if not isinstance(root, Node):
        message = f"a workflow is made of bound tasks; got {type(root).__name__}, perhaps .bind() is missing"
        raise DefinitionError(message)
    _check_metadata(metadata)
    builder = _Builder(root)
    return Plan(
        builder.ids[root],
        tuple(builder.tasks),
        tuple(builder.loops),
        tuple(builder.actors.values()),
        tuple(builder.branches),
        dict(metadata or {}),
    )


def expand(spec: LoopSpec, body: Any, iteration: int, previous: str) -> Iteration:
    """Return the tasks of one iteration; ``previous`` is the task whose output is the carry it receives.

    Raises
    ------
    DefinitionError
        When the body does not return a task bound to something, or contains another loop.
    """
    carry = CarryNode()
    root = body(carry, iteration)
    if not isinstance(root, TaskNode | CallNode):
        message = f"the body of loop {spec.id!r} must return a bound task or call, got {type(root).__name__}"
        raise DefinitionError(message)
    builder = _Builder(root, prefix=spec.prefix, suffix=f"[{iteration}]", carry=carry, carry_task=previous)
    if builder.loops:
        message = f"the body of loop {spec.id!r} contains a loop; give the inner one a workflow of its own"
        raise DefinitionError(message)
    tasks = tuple(dataclasses.replace(task, loop=spec.id, iteration=iteration) for task in builder.tasks)
    if spec.changed:
        tasks = tuple(_redrawn(task) for task in tasks)
    return Iteration(tasks, builder.ids[root], tuple(builder.branches), tuple(builder.actors.values()))


def _redrawn(task: TaskSpec) -> TaskSpec:
    """Return a task whose output may not come out the same again, whatever its annotations say."""
    return dataclasses.replace(task, options=dataclasses.replace(task.options, deterministic=False))


class _Builder:
    """Walks nodes depth first, names them in bind order and turns them into specs."""

    def __init__(
        self,
        root: Node,
        *,
        prefix: str = "",
        suffix: str = "",
        carry: CarryNode | None = None,
        carry_task: str = "",
    ) -> None:
        self.tasks: list[TaskSpec] = []
        self.loops: list[LoopSpec] = []
        self.actors: dict[str, ActorSpec] = {}
        self.branches: list[str] = []
        self.ids: dict[Node, str] = {} if carry is None else {carry: carry_task}
        self._prefix, self._suffix = prefix, suffix
        self._in_loop = carry is not None
        self._actor_ids: dict[int, str] = {}
        ordered = self._topological(root)
        self._name(ordered)
        for node in ordered:
            self._add(node)
            self.branches.extend(self.ids[branch] for branch in node.branches)

    def _topological(self, root: Node) -> list[Node]:
        ordered: list[Node] = []
        done: set[Node] = set(self.ids)
        open_: set[Node] = set()
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                open_.discard(node)
                done.add(node)
                ordered.append(node)
                # A branch may need nodes that are still open, so branches are walked last of all.
                stack[:0] = [(branch, False) for branch in node.branches]
                continue
            if node in done:
                continue
            if node in open_:
                message = "the tasks wait for each other in a cycle"
                raise DefinitionError(message)
            open_.add(node)
            stack.append((node, True))
            for upstream in reversed([*_upstream(node), *node.after]):
                if upstream in open_:
                    message = "the tasks wait for each other in a cycle"
                    raise DefinitionError(message)
                if upstream not in done:
                    stack.append((upstream, False))
        return ordered

    def _name(self, nodes: Sequence[Node]) -> None:
        taken: dict[str, int] = {}
        for node in sorted(nodes, key=lambda node: node.order):
            base = _base_name(node)
            if any(mark in base for mark in "[]/"):
                message = f"a name must not contain '[', ']' or '/', which tell iterations apart: {base!r}"
                raise DefinitionError(message)
            name = base
            while name in taken:
                taken[base] += 1
                name = f"{base}_{taken[base]}"
            taken[name] = 1
            self.ids[node] = f"{self._prefix}{name}{self._suffix}"

    def _add(self, node: Node) -> None:
        after = tuple(self.ids[upstream] for upstream in node.after)
        if isinstance(node, LoopNode):
            self.loops.append(self._loop(node, after))
            return
        assert isinstance(node, TaskNode | CallNode)
        inputs: list[Input] = []
        args = encode(rebuild([list(node.args), dict(node.kwargs)], lambda leaf: self._slot(leaf, inputs)))
        if node.max_behind is not None and not self._in_loop:
            message = f"{self.ids[node]!r} takes turns, which only tasks of a loop's body can"
            raise DefinitionError(message)
        spec = TaskSpec(self.ids[node], args, tuple(inputs), after, node.options, max_behind=node.max_behind)
        if isinstance(node, CallNode):
            stateful = node.actor.durable and not node.options.query
            spec = dataclasses.replace(spec, actor=self._actor(node.actor), method=node.method, stateful=stateful)
        else:
            spec = dataclasses.replace(spec, code=node.code)
        self.tasks.append(spec)

    def _slot(self, leaf: Any, inputs: list[Input]) -> Any:
        if isinstance(leaf, Node):
            inputs.append(Input(self.ids[leaf]))
        elif isinstance(leaf, SnapshotNode):
            inputs.append(Input(self.ids[leaf.call], snapshot=True))
        else:
            return leaf
        return Slot(len(inputs) - 1)

    def _loop(self, node: LoopNode, after: tuple[str, ...]) -> LoopSpec:
        carry_task = self.ids[node.carry] if isinstance(node.carry, Node) else None
        return LoopSpec(
            self.ids[node],
            f"{self.ids[node]}/" if self.loops else "",
            node.body,
            None if carry_task is not None else encode(rebuild(node.carry, _constant)),
            carry_task,
            after,
            node.max_in_flight,
            node.iterations,
            node.keep,
            node.archive,
        )

    def _actor(self, handle: ActorHandle) -> str:
        known = self._actor_ids.get(id(handle))
        if known is not None:
            return known
        name = handle.annotations.name
        if name is None:
            name = base = handle.code.name
            count = 1
            while name in self.actors:
                count += 1
                name = f"{base}_{count}"
        spec = ActorSpec(
            name,
            handle.code,
            encode([list(handle.args), dict(handle.kwargs)]),
            handle.annotations,
            handle.durable,
            handle.replicas,
        )
        if self.actors.setdefault(name, spec) != spec:
            message = f"two different actors are named {name!r}; inside a workflow the name is the actor"
            raise DefinitionError(message)
        self._actor_ids[id(handle)] = name
        return name


def _check_metadata(metadata: Mapping[str, Any] | None) -> None:
    try:
        json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as error:
        message = f"metadata must be what JSON can hold: {error}"
        raise DefinitionError(message) from error


def _upstream(node: Node) -> list[Node]:
    if isinstance(node, LoopNode):
        return [node.carry] if isinstance(node.carry, Node) else []
    found: list[Node] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Node):
            found.append(leaf)
        elif isinstance(leaf, SnapshotNode):
            found.append(leaf.call)
        return leaf

    if isinstance(node, TaskNode | CallNode):
        rebuild([list(node.args), dict(node.kwargs)], note)
    return found


def _constant(leaf: Any) -> Any:
    if isinstance(leaf, Node | SnapshotNode):
        message = "a loop's first carry is a value or one bound task; join several with a task of your own"
        raise DefinitionError(message)
    return leaf


def _base_name(node: Node) -> str:
    if isinstance(node, LoopNode):
        return node.name or "loop"
    if isinstance(node, CallNode):
        return node.options.name or node.method
    assert isinstance(node, TaskNode)
    return node.options.name or node.code.name


# --- JSON forms -------------------------------------------------------------------------------------------


def _options_to_json(options: TaskOptions) -> dict[str, Any]:
    plain = TaskOptions()
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {
        name: value.to_json() if isinstance(value, CodeRef) else value
        for name, value in values.items()
        if value != getattr(plain, name)
    }


def _options_from_json(shown: Mapping[str, Any]) -> TaskOptions:
    values = dict(shown)
    if "checkpoint" in values:
        values["checkpoint"] = Checkpoint(values["checkpoint"])
    for name in _CURES:
        if name in values:
            values[name] = CodeRef.from_json(values[name])
    return TaskOptions(**values)


def _task_to_json(task: TaskSpec) -> dict[str, Any]:
    return {
        "id": task.id,
        "args": task.args.to_json(),
        "inputs": [[given.task, given.snapshot] for given in task.inputs],
        "after": list(task.after),
        "options": _options_to_json(task.options),
        "code": None if task.code is None else task.code.to_json(),
        "actor": task.actor,
        "method": task.method,
        "stateful": task.stateful,
    }


def _task_from_json(shown: Mapping[str, Any]) -> TaskSpec:
    return TaskSpec(
        shown["id"],
        Encoded.from_json(shown["args"]),
        tuple(Input(*given) for given in shown["inputs"]),
        tuple(shown["after"]),
        _options_from_json(shown["options"]),
        None if shown["code"] is None else CodeRef.from_json(shown["code"]),
        shown["actor"],
        shown["method"],
        shown["stateful"],
    )


def _actor_to_json(spec: ActorSpec) -> dict[str, Any]:
    return {
        "id": spec.id,
        "code": spec.code.to_json(),
        "args": spec.args.to_json(),
        "options": _options_to_json(spec.options),
        "durable": spec.durable,
        "replicas": spec.replicas,
    }


def _actor_from_json(shown: Mapping[str, Any]) -> ActorSpec:
    return ActorSpec(
        shown["id"],
        CodeRef.from_json(shown["code"]),
        Encoded.from_json(shown["args"]),
        _options_from_json(shown["options"]),
        shown["durable"],
        shown["replicas"],
    )


def _loop_to_json(spec: LoopSpec) -> dict[str, Any]:
    return {
        "id": spec.id,
        "prefix": spec.prefix,
        "body": spec.body.to_json(),
        "carry": None if spec.carry is None else spec.carry.to_json(),
        "carry_task": spec.carry_task,
        "after": list(spec.after),
        "max_in_flight": spec.max_in_flight,
        "iterations": spec.iterations,
        "keep": spec.keep,
        "archive": None if spec.archive is None else spec.archive.to_json(),
    }


def _loop_from_json(shown: Mapping[str, Any]) -> LoopSpec:
    return LoopSpec(
        shown["id"],
        shown["prefix"],
        CodeRef.from_json(shown["body"]),
        None if shown["carry"] is None else Encoded.from_json(shown["carry"]),
        shown["carry_task"],
        tuple(shown["after"]),
        shown["max_in_flight"],
        shown["iterations"],
        shown["keep"],
        None if shown["archive"] is None else CodeRef.from_json(shown["archive"]),
    )


def _identity(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what may differ between two processes, or may be changed at a resume, without a new plan."""
    plain = dict(shown)
    plain["tasks"] = [{**_without_pickle(task), "options": _without_pickle(task["options"])} for task in shown["tasks"]]
    plain["loops"] = [_without_pickle(spec) for spec in shown["loops"]]
    plain["actors"] = [{**_without_pickle(spec), "replicas": None} for spec in shown["actors"]]
    return plain


def _without_pickle(shown: dict[str, Any]) -> dict[str, Any]:
    """Drop what does not tell code apart: of imported code all but its name, of other code its pickle."""
    plain = dict(shown)
    for field in ("code", "body", "archive", *_CURES):
        code = plain.get(field)
        if code is not None:
            dropped = "pickled" if "pickled" in code else "source_sha256"
            plain[field] = {key: value for key, value in code.items() if key != dropped}
    return plain


def difference(stored: Plan, given: Plan) -> list[str]:
    """Return what differs between two plans, one line each: ``path: stored -> given``."""
    lines: list[str] = []
    _differ(_identity(stored.to_json()), _identity(given.to_json()), "plan", lines)
    return lines


def _differ(stored: Any, given: Any, path: str, lines: list[str]) -> None:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(set(stored) | set(given)):
            _differ(stored.get(key), given.get(key), f"{path}.{key}", lines)
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        for index, (left, right) in enumerate(zip(stored, given, strict=True)):
            _differ(left, right, f"{path}[{index}]", lines)
    elif stored != given:
        lines.append(f"{path}: {json.dumps(stored)} -> {json.dumps(given)}")

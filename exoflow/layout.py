"""Which tasks there are: laid out from the plan and the history, then iteration by iteration. Pure."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from exoflow.codec import encode
from exoflow.effects import Cure, cure_of
from exoflow.options import Checkpoint, TaskOptions
from exoflow.plan import ActorSpec, Iteration, LoopSpec, Plan, TaskSpec
from exoflow.progress import ActorState, Durability, LoopState, Phase, TaskState, upstream_of
from exoflow.records import Committed, History, Intended, Value, newest_states
from exoflow.recovery import Action, actions, restore_points
from exoflow.retention import Retention

Expand = Callable[[LoopSpec, int, str], Iteration]

_NO_ARGS = encode([[], {}])


class Layout(Retention):
    """The layer of the plan."""

    def __init__(self, plan: Plan, history: History, expand: Expand, replicas: Mapping[str, int] | None) -> None:
        super().__init__(plan, history)
        self._expand = expand
        self._replicas = dict(replicas or {})
        self._orders = 0
        self._damaged: set[str] = set()
        self._loops_above = _loops_above(plan)
        self._actors_after_loops = {task.actor for task in plan.tasks if self._loops_above[task.id]}
        self._loops_before_loops = {above for loop in plan.loops for above in self._loops_above[loop.id]}

    def _build(self, survivors: Mapping[str, TaskState]) -> None:
        """Lay out all tasks from the plan and the history, keeping attempts that nothing has undone."""
        self._tasks, self._ready, self._loops = {}, {}, {}
        for actor in self._actors.values():
            if actor.durable:
                actor.calls, actor.started, actor.uncovered = [], False, None
        for actor_spec in self._plan.actors:
            self._add_actor(actor_spec)

        for loop_spec in self._plan.loops:
            self._loops[loop_spec.id] = LoopState(loop_spec)
        iterations: list[Iteration] = []
        for loop in self._loops.values():
            self._open_loop(loop)
            if self._reachable(loop.spec.id):
                iterations += self._committed_iterations(loop)
            loop.ended_by = self._ended_by(loop)
        for iteration in iterations:
            for actor_spec in iteration.actors:
                self._add_actor(actor_spec)
        self._defer([spec for spec in self._plan.tasks if not self._reachable(spec.id)])
        deferred = {spec.id for spec in self._deferred}
        static = [spec for spec in self._plan.tasks if spec.id not in deferred]
        specs = self._in_order(static, [spec for iteration in iterations for spec in iteration.tasks])

        branches = {*self._plan.branches, *(name for each in iterations for name in each.branches)}
        decided = self._decide(specs, branches)
        for loop in self._loops.values():
            self._register_first_carry(loop)
        for spec in specs:
            survivor = survivors.get(spec.id)
            self._register(spec, decided[spec.id], survivor, branch=spec.id in branches)
        for spec in self._deferred:
            self._note_needs(spec)
        for loop in self._loops.values():
            self._advance(loop)

    def _in_order(self, static: Sequence[TaskSpec], repeated: Sequence[TaskSpec]) -> list[TaskSpec]:
        """Merge tasks outside of loops with those of iterations, so that all come after their inputs."""
        ordered: list[TaskSpec] = []
        waiting, passed = list(static), set[str]()
        for loop_id in (*self._loops, None):
            ordered += [spec for spec in waiting if self._loops_above[spec.id] <= passed]
            waiting = [spec for spec in waiting if not self._loops_above[spec.id] <= passed]
            if loop_id is not None:
                ordered += [spec for spec in repeated if spec.loop == loop_id]
                passed.add(loop_id)
        return ordered

    def _decide(self, specs: Sequence[TaskSpec], branches: set[str]) -> dict[str, Action]:
        """Choose what recovery does with each task, and what each durable actor starts from."""
        committed = self._usable()
        open_loops = [loop for loop in self._loops.values() if loop.ended_by is None]
        # Every carry is wanted, read or not: it says whether its loop goes on.
        carries = {each.carry for loop in open_loops for each in loop.iterations.values()}
        last = {loop.last_carry for loop in open_loops}
        first = {name for loop in open_loops if loop.next == 1 for name in loop.spec.after}
        wanted = {self._plan.root, *branches, *carries, *last, *first, *self._read_later}
        goes_on = set(self._actors) if open_loops or self._deferred else set()
        decided = actions(specs, committed, wanted, goes_on)
        states = newest_states(committed)
        points = restore_points(specs, decided, committed, states)
        for actor in self._actors.values():
            if actor.durable:
                actor.restore = points.get(actor.spec.id, states.get(actor.spec.id))
                actor.base_token = "" if actor.restore is None else "restored"
        return decided

    def _usable(self) -> Mapping[str, Committed]:
        """Return the committed records, without the states that turned out to be damaged."""
        committed = self._history.committed
        if not self._damaged:
            return committed
        return {
            task: dataclasses.replace(record, state=None) if task in self._damaged else record
            for task, record in committed.items()
        }

    def _reachable(self, name: str) -> bool:
        """Whether every loop above a static task or a loop has ended, so that it may be laid out."""
        return all(self._loops[above].ended_by is not None for above in self._loops_above[name])

    def _defer(self, specs: list[TaskSpec]) -> None:
        """Note which tasks cannot be laid out before some loop has ended, and what they will read."""
        self._deferred = specs
        undone = [spec for spec in specs if spec.id not in self._history.committed]
        self._read_later = {name for spec in undone for name in upstream_of(spec)}

    def _add_actor(self, spec: ActorSpec) -> None:
        if spec.id in self._replicas and spec.replicas is not None:
            spec = dataclasses.replace(spec, replicas=self._replicas[spec.id])
        self._actors.setdefault(spec.id, ActorState(spec))

    def _open_loop(self, loop: LoopState) -> None:
        retired = self._history.retired.get(loop.spec.id)
        if retired is not None:
            loop.next, loop.last_carry = retired.iteration + 1, retired.carry
            loop.done = loop.produced = retired.iteration
        else:
            loop.last_carry = loop.spec.carry_task or f"{loop.spec.id}[0]"

    def _committed_iterations(self, loop: LoopState) -> Iterator[Iteration]:
        """Expand the iterations that the history knows something of."""
        history = self._history
        # An iteration of which only an intent or a snapshot is known exists all the same.
        records: list[Committed | Intended] = [
            *history.committed.values(),
            *history.snapshots.values(),
            *history.intended.values(),
        ]
        loop.known = max((record.iteration for record in records if record.loop == loop.spec.id), default=0)
        while loop.next <= loop.known:
            number = loop.next
            iteration = self._expand_next(loop)
            record = self._history.committed.get(iteration.carry)
            if record is not None and loop.done == number - 1:
                loop.done = loop.produced = number
            yield iteration
            if self._ended_by(loop) is not None:
                return

    def _expand_next(self, loop: LoopState) -> Iteration:
        iteration = self._expand(loop.spec, loop.next, loop.last_carry)
        iteration = dataclasses.replace(iteration, tasks=tuple(self._in_turn(spec, loop) for spec in iteration.tasks))
        loop.iterations[loop.next] = iteration
        loop.last_carry = iteration.carry
        loop.next += 1
        return iteration

    def _ended_by(self, loop: LoopState) -> str | None:
        """Return the committed carry that ended the loop, if one did."""
        record = self._history.committed.get(loop.last_carry)
        if record is None or not record.carry:
            return None
        return record.task if record.stop or record.iteration == loop.spec.iterations else None

    def _register_first_carry(self, loop: LoopState) -> None:
        """Make the constant or committed carry that the first expanded iteration reads a task."""
        retired = self._history.retired.get(loop.spec.id)
        if retired is not None:
            record = self._history.committed[retired.carry]
        elif loop.spec.carry is not None:
            value = Value.inline(loop.spec.carry)
            record = Committed(f"{loop.spec.id}[0]", 0, value, loop=loop.spec.id)
        else:
            return
        self._orders += 1
        spec = TaskSpec(record.task, loop.spec.carry or _NO_ARGS, (), (), TaskOptions(), loop=loop.spec.id)
        self._tasks[record.task] = TaskState(spec, self._orders, Phase.PRODUCED, Durability.COMMITTED, record=record)

    def _register(
        self, spec: TaskSpec, action: Action, survivor: TaskState | None = None, *, branch: bool = False
    ) -> None:
        """Add a task whose upstream is registered already."""
        self._orders += 1
        task = TaskState(spec, self._orders, branch=branch)
        self._tasks[spec.id] = task
        for upstream in upstream_of(spec):
            producer = self._producer(upstream)
            consumers = self._loops[upstream].consumers if producer is None else producer.consumers
            consumers[spec.id] = None
        self._note_needs(spec)
        actor = self._durable_actor(task)
        if actor is not None:
            if actor.calls:
                previous = self._tasks[actor.calls[-1]]
                previous.consumers[spec.id] = None
                if spec.options.external and previous.phase is not Phase.SKIPPED:
                    self._want(previous)
            actor.calls.append(spec.id)
            if actor.uncovered is None:
                actor.uncovered = spec.iteration
        record = self._history.committed.get(spec.id)
        if record is not None:
            task.durability, task.record = Durability.COMMITTED, record
            self._note_content(record)
            task.replayed = action is Action.REPLAY
            if actor is not None and record.state is not None and spec.id not in self._damaged:
                self._cover(actor, spec)
        snapshot = self._history.snapshots.get(spec.id)
        if snapshot is not None:
            task.snapshot, task.snapshot_record = Durability.COMMITTED, snapshot
        match action:
            case Action.DONE:
                task.phase = Phase.PRODUCED
            case Action.SKIP:
                task.phase = Phase.SKIPPED
            case Action.RUN | Action.REPLAY:
                if survivor is not None:
                    task.phase, task.attempt, task.held = survivor.phase, survivor.attempt, survivor.held
                    task.report, task.repeats = survivor.report, survivor.repeats
                    task.trouble, task.given_up = survivor.trouble, survivor.given_up
                elif self._cut_off(spec):
                    task.phase = Phase.DOUBTED
                self._plan_checkpoint(task)
                self._agenda.append(spec.id)

    def _cut_off(self, spec: TaskSpec) -> bool:
        """Whether an effect of the task was begun that nothing may repeat before more is known."""
        begun = spec.id in self._begun and self._history.in_doubt(spec.id)
        return begun and cure_of(spec.options) is not Cure.REPEAT

    def _grow(self, loop: LoopState) -> bool:
        """Expand one more iteration if the loop may have it."""
        spec = loop.spec
        if (
            self._ending is not None
            or loop.ended_by is not None
            or loop.next - 1 - loop.done >= spec.max_in_flight
            or (spec.iterations is not None and loop.next > spec.iterations)
            or self._producer(loop.last_carry) is None
            or not all(self._finished_before(upstream) for upstream in spec.after)
            or any(self._waits_for_turn(loop, turns) for turns in loop.turns.values())
        ):
            return False
        iteration = self._expand_next(loop)
        for actor_spec in iteration.actors:
            self._add_actor(actor_spec)
        for task in iteration.tasks:
            record = self._history.committed.get(task.id)
            done = Action.REPLAY if task.stateful else Action.DONE
            self._register(task, Action.RUN if record is None else done, branch=task.id in iteration.branches)
        self._advance(loop)
        return True

    def _in_turn(self, spec: TaskSpec, loop: LoopState) -> TaskSpec:
        """Make a task that takes turns come after the one whose turn is before, if that is still there."""
        if spec.max_behind is None:
            return spec
        turns = loop.turns.setdefault(spec.turns, deque())
        # An iteration is forgotten, or left out when a journal is read, only if all of it is over.
        if turns and turns[-1].iteration in loop.iterations:
            spec = dataclasses.replace(spec, after=(*spec.after, turns[-1].id))
        turns.append(spec)
        return spec

    def _waits_for_turn(self, loop: LoopState, turns: deque[TaskSpec]) -> bool:
        """Whether the next iteration would leave the oldest turn that is not over too far behind."""
        while len(turns) > 1 and self._turn_over(turns[0]):
            turns.popleft()
        oldest = turns[0]
        assert oldest.max_behind is not None
        return loop.next - oldest.iteration >= oldest.max_behind and not self._turn_over(oldest)

    def _turn_over(self, spec: TaskSpec) -> bool:
        return spec.id not in self._tasks or self._finished_before(spec.id, durably=spec.options.external)

    def _carry_produced(self, loop: LoopState, task: TaskState) -> None:
        assert task.report is not None
        if task.report.stop or task.spec.iteration == loop.spec.iterations:
            self._end_loop(loop, task)

    def _end_loop(self, loop: LoopState, carry: TaskState) -> None:
        """Void the iterations past the end and lay out what comes after the loop."""
        loop.ended_by = loop.last_carry = carry.id
        for number in [number for number in loop.iterations if number > carry.spec.iteration]:
            for spec in loop.iterations.pop(number).tasks:
                void = self._tasks[spec.id]
                void.phase = Phase.VOID
                self._ready.pop(void.id, None)
                self._drop(void)
        carry.consumers.update(loop.consumers)
        reachable = [spec for spec in self._deferred if self._reachable(spec.id)]
        self._defer([spec for spec in self._deferred if not self._reachable(spec.id)])
        for spec in reachable:
            action = Action.DONE if spec.id in self._history.committed else Action.RUN
            self._register(spec, action, branch=spec.id in self._plan.branches)
        self._agenda.extend(loop.consumers)
        if self._is_result(carry):
            # It may come from a time when nobody knew that it would be.
            self._want(carry)

    def _advance(self, loop: LoopState) -> None:
        """Move a loop's marks over carries that are done, and forget iterations that are complete."""
        while (iteration := loop.iterations.get(loop.produced + 1)) is not None:
            carry = self._tasks[iteration.carry]
            if carry.phase is not Phase.PRODUCED and carry.durability is not Durability.COMMITTED:
                break
            loop.produced += 1
            if loop.ended_by is None and _ends(carry, loop):
                self._end_loop(loop, carry)
            following = loop.iterations.get(loop.produced + 1)
            if following is not None:
                # Effects, and calls of actors that outlive the loop, were waiting to know that it goes on.
                self._agenda.extend(spec.id for spec in following.tasks)
        while (iteration := loop.iterations.get(loop.done + 1)) is not None:
            carry = self._tasks[iteration.carry]
            wanted = carry.durability is not Durability.UNWANTED
            if carry.durability is not Durability.COMMITTED if wanted else carry.phase is not Phase.PRODUCED:
                break
            loop.done += 1
        for number in sorted(loop.iterations):
            if number >= loop.done or not self._forget(loop, number):
                break
        self._archive_rows()

    def _finished_before(self, upstream_id: str, *, durably: bool = False) -> bool:
        upstream = self._producer(upstream_id)
        if upstream is None or upstream.phase is Phase.SKIPPED:
            return upstream is not None
        if upstream.durability is Durability.COMMITTED:
            return True
        durably = durably or upstream.options.checkpoint is Checkpoint.SYNC
        return not durably and upstream.phase is Phase.PRODUCED


def _loops_above(plan: Plan) -> dict[str, set[str]]:
    """Return, for every static task and loop, the loops it comes after, directly or through others."""
    upstream: dict[str, Sequence[str]] = {spec.id: upstream_of(spec) for spec in plan.tasks}
    for loop in plan.loops:
        carry = () if loop.carry_task is None else (loop.carry_task,)
        upstream[loop.id] = (*carry, *loop.after)
    loops = {loop.id for loop in plan.loops}
    above: dict[str, set[str]] = {}

    def visit(name: str) -> set[str]:
        if name not in above:
            above[name] = set()
            for other in upstream[name]:
                above[name] |= visit(other) | ({other} & loops)
        return above[name]

    for name in upstream:
        visit(name)
    return above


def _ends(carry: TaskState, loop: LoopState) -> bool:
    record = carry.record
    stopped = record.stop if record is not None else carry.report is not None and carry.report.stop
    return stopped or carry.spec.iteration == loop.spec.iterations

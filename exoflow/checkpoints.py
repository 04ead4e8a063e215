"""What must become durable, and what may then be appended. Pure.

- Commit: a record becomes ready only when its blobs are durable, and counts only when appended.
- Prefix: a record is appended only in or after the object that commits every ancestor whose checkpoint is
  wanted, and wanting a checkpoint makes every nondeterministic ancestor's wanted too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from exoflow.codec import Blob
from exoflow.messages import Persist, Persisted
from exoflow.options import Checkpoint
from exoflow.plan import Plan, TaskSpec
from exoflow.progress import ActorState, Durability, Phase, Progress, TaskState, upstream_of
from exoflow.records import Committed, History, Record, Value

KNOWN_BLOBS = 64
_ON_THE_WAY = (Durability.READY, Durability.WRITING)


class Checkpoints(Progress):
    """The layer of checkpoints."""

    def __init__(self, plan: Plan, history: History) -> None:
        super().__init__(plan, history)
        self._ready: dict[str, TaskState] = {}
        self._content: dict[str, Blob] = {}
        self._lent: dict[tuple[str, int], tuple[Blob, ...]] = {}

    def _note_needs(self, spec: TaskSpec) -> None:
        """Ask of what a task comes after to be durable: snapshots, and everything before an effect."""
        for given in spec.inputs:
            producer = self._producer(given.task)
            if given.snapshot and producer is not None:
                self._want_snapshot(producer)
        if spec.options.external:
            for name in (*(given.task for given in spec.inputs if not given.snapshot), *spec.after):
                producer = self._producer(name)
                if producer is not None and producer.phase is not Phase.SKIPPED:
                    self._want(producer)

    def _plan_checkpoint(self, task: TaskState) -> None:
        if task.durability is Durability.COMMITTED:
            return
        if task.options.checkpoint is not Checkpoint.NONE or self._is_result(task):
            self._want(task)

    def _want(self, task: TaskState) -> None:
        """Ask for a task's checkpoint, and for those of its nondeterministic ancestors."""
        if task.durability is not Durability.UNWANTED:
            return
        task.durability = Durability.WANTED
        task.wanted_ancestors = self._want_ancestors([task])
        if task.phase is Phase.PRODUCED:
            self._begin_checkpoint(task)

    def _want_ancestors(self, tasks: Sequence[TaskState], apart_from: str | None = None) -> tuple[str, ...]:
        """Ask for the checkpoints that records of the tasks must not come before.

        Returns
        -------
        tuple of str
            The nearest ancestors whose checkpoints are wanted and not yet committed, but for those in the loop
            ``apart_from``.
        """
        wanted: dict[str, None] = {}
        seen: set[str] = set()
        stack = [upstream for task in tasks for upstream in self._ancestors(task)]
        while stack:
            upstream = stack.pop()
            if upstream.id in seen or upstream.durability is Durability.COMMITTED:
                continue
            seen.add(upstream.id)
            inside = apart_from is not None and upstream.spec.loop == apart_from
            if not inside and not upstream.options.deterministic:
                self._want(upstream)
            if inside or upstream.durability is Durability.UNWANTED:
                stack.extend(self._ancestors(upstream))
            else:
                wanted[upstream.id] = None
        return tuple(wanted)

    def _ancestors(self, task: TaskState) -> list[TaskState]:
        """Return the tasks whose attempts this one's outcome depends on."""
        found = [self._producer(name) for name in upstream_of(task.spec)]
        actor = self._durable_actor(task)
        if actor is not None:
            found.append(self._previous_call(actor, task))
        return [upstream for upstream in found if upstream is not None]

    def _want_snapshot(self, task: TaskState) -> None:
        """Ask for a durable snapshot of a call; where calls keep no state, one that is only read."""
        if task.options.checkpoint is not Checkpoint.NONE:
            task.state_forced = True
        elif task.snapshot is Durability.UNWANTED and self._durable_actor(task) is not None:
            task.snapshot = Durability.WANTED
            # An effect may be made of it, so it must not come before what it stands on.
            task.wanted_ancestors = task.wanted_ancestors or self._want_ancestors([task])

    def _keeps_state(self, task: TaskState) -> bool:
        """Whether a call's checkpoint holds its actor's state."""
        options = task.options
        keeps = options.checkpoint is not Checkpoint.NONE and (options.snapshot or task.state_forced)
        return keeps and self._durable_actor(task) is not None

    def _captures(self, task: TaskState) -> bool:
        """Whether a call captures its actor's state."""
        if task.snapshot is Durability.WANTED:
            return True
        return self._keeps_state(task) and not task.replayed

    def _keep(self, task: TaskState) -> bool:
        """Whether an attempt shall report its output in durable form, if that is small."""
        if task.replayed:
            return False
        archived = task.spec.loop is not None and self._loops[task.spec.loop].spec.archive is not None
        return task.durability is Durability.WANTED or not task.options.deterministic or archived

    def _begin_checkpoint(self, task: TaskState) -> None:
        if task.durability is not Durability.WANTED or task.phase is not Phase.PRODUCED:
            return
        assert task.report is not None
        output, state = task.report.output, task.report.state
        needs_state = self._keeps_state(task) and state is None
        if output is not None and not needs_state:
            self._make_ready(task, output, state)
        else:
            self._persist(task, output=output is None, state=needs_state)

    def _begin_snapshot(self, task: TaskState) -> None:
        if task.snapshot is not Durability.WANTED or task.phase is not Phase.PRODUCED or not task.held:
            return
        if task.report is not None and task.report.state is not None:
            self._make_snapshot_ready(task, task.report.state)
        else:
            self._persist(task, output=False, state=True)

    def _persist(self, task: TaskState, *, output: bool, state: bool) -> None:
        known = tuple(self._content.values())[-KNOWN_BLOBS:] if output else ()
        self._lent[task.id, task.attempt] = known
        self._out.append(Persist(task.id, task.attempt, output, state, known))

    def _note_content(self, record: Committed) -> None:
        """Learn of blobs that a record which counts names; the newest last."""
        for blob in record.blobs:
            self._content.pop(blob.sha256, None)
            self._content[blob.sha256] = blob

    def _needed_blobs(self) -> set[str]:
        """Return the names of blobs that a record names, or may soon."""
        records = [task.record for task in self._tasks.values() if task.durability in _ON_THE_WAY]
        coming = {blob.name for record in records if record is not None for blob in record.blobs}
        lent = {blob.name for blobs in self._lent.values() for blob in blobs}
        return self._history.blobs() | coming | lent

    def _take_persisted(self, task: TaskState, event: Persisted) -> None:
        """Take in that what an attempt left is durable."""
        assert task.report is not None
        if task.options.checkpoint is Checkpoint.NONE and event.state is not None:
            if task.snapshot is Durability.WANTED:
                self._make_snapshot_ready(task, event.state)
        elif task.durability is Durability.WANTED:
            output, state = event.output or task.report.output, event.state or task.report.state
            self._make_ready(task, output, state)

    def _make_snapshot_ready(self, task: TaskState, state: Value) -> None:
        task.snapshot = Durability.READY
        task.snapshot_record = dataclasses.replace(self._record(task), state=state, resumable=False)
        self._ready[task.id] = task

    def _make_ready(self, task: TaskState, output: Value | None, state: Value | None) -> None:
        assert output is not None, task.id
        task.durability = Durability.READY
        task.record = dataclasses.replace(self._record(task), output=output, state=state)
        self._ready[task.id] = task

    def _record(self, task: TaskState) -> Committed:
        report = task.report
        assert report is not None
        return Committed(
            task.id,
            task.attempt,
            None,
            carry=self._carried_loop(task) is not None,
            stop=report.stop,
            loop=task.spec.loop,
            iteration=task.spec.iteration,
            actor=task.spec.actor,
            started_at=report.started_at,
            finished_at=report.finished_at,
        )

    def _may_be_appended(self, task: TaskState) -> bool:
        """Whether a task's record may be appended now, given those before it that may."""
        return self._confirmed(task) and self._ancestors_written(task)

    def _take_ready(self) -> list[Record]:
        """Return the records that may be appended now, and note that they are being written."""
        records: list[Record] = []
        for task in sorted(self._ready.values(), key=lambda task: task.order):
            if not self._may_be_appended(task):
                continue
            if task.snapshot is Durability.READY and task.snapshot_record is not None:
                task.snapshot = Durability.WRITING
                records.append(task.snapshot_record)
            if task.durability is Durability.READY:
                task.durability = Durability.WRITING
                assert task.record is not None
                records.append(task.record)
        self._ready = {
            task.id: task for task in self._ready.values() if Durability.READY in (task.durability, task.snapshot)
        }
        return records

    def _ancestors_written(self, task: TaskState) -> bool:
        """Whether every wanted ancestor is committed or goes into the same object."""
        ancestors = (self._tasks.get(name) for name in task.wanted_ancestors)
        return all(ancestor is None or ancestor.durability >= Durability.WRITING for ancestor in ancestors)

    def _on_committed(self, task: TaskState, record: Committed) -> None:
        self._note_content(record)
        task.durability, task.record = Durability.COMMITTED, record
        actor = self._durable_actor(task)
        if actor is not None and record.state is not None:
            self._cover(actor, task.spec)

    def _cover(self, actor: ActorState, spec: TaskSpec) -> None:
        """Note that an actor's state is durable up to this call."""
        place = actor.calls.index(spec.id)
        later = actor.calls[place + 1 :]
        actor.uncovered = self._tasks[later[0]].spec.iteration if later else None

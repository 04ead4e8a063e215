"""What may be forgotten: live values, iterations in memory, iterations in the journal. Pure."""

from __future__ import annotations

import dataclasses

from exoflow.checkpoints import Checkpoints
from exoflow.codec import Blob
from exoflow.messages import Archive, Release
from exoflow.plan import Plan
from exoflow.progress import SETTLED, Durability, LoopState, Phase, TaskState, is_drawn, upstream_of
from exoflow.records import Committed, History, Retired

FOLD_EVERY = 64
ARCHIVE_EVERY = 4096


class Retention(Checkpoints):
    """The layer of forgetting."""

    def __init__(self, plan: Plan, history: History) -> None:
        super().__init__(plan, history)
        self._unforced: list[Committed] = []
        self._collectable: list[Blob] = []

    def _forget(self, loop: LoopState, number: int) -> bool:
        """Drop a complete iteration from memory; its records stay in the history until a fold."""
        iteration = loop.iterations[number]
        tasks = [self._tasks[spec.id] for spec in iteration.tasks]
        for task in tasks:
            settled = task.phase in SETTLED and task.durability in (
                Durability.UNWANTED,
                Durability.COMMITTED,
            )
            settled = settled and task.snapshot in (Durability.UNWANTED, Durability.COMMITTED)
            last_on_actor = any(actor.calls and actor.calls[-1] == task.id for actor in self._actors.values())
            if not settled or last_on_actor or not self._consumers_settled(task):
                return False
        if self._want_ancestors(tasks, apart_from=loop.spec.id):
            # What the iteration stands on outside of its loop would otherwise never be asked for.
            return False
        drawn = [task for task in tasks if is_drawn(task)]
        if any(self._kept_output(task) is None for task in drawn):
            return False
        # Whatever is appended later may stand on these, and must then not come before them.
        self._unforced += [dataclasses.replace(self._record(task), output=self._kept_output(task)) for task in drawn]
        carry = self._tasks[iteration.carry]
        if carry.durability is Durability.UNWANTED and loop.spec.archive is not None:
            loop.rows.append(dataclasses.replace(self._record(carry), output=self._kept_output(carry)))
        for task in tasks:
            self._drop(task)
        del loop.iterations[number]
        return True

    def _drop(self, task: TaskState) -> None:
        if task.held:
            self._out.append(Release(task.id, task.attempt))
        actor = self._durable_actor(task)
        if actor is not None:
            actor.calls.remove(task.id)
        for upstream in upstream_of(task.spec):
            producer = self._producer(upstream)
            if producer is not None:
                producer.consumers.pop(task.id, None)
        del self._tasks[task.id]

    def _release_around(self, task: TaskState) -> None:
        self._release(task)
        for name in (given.task for given in task.spec.inputs):
            upstream = self._producer(name) if name in self._loops or name in self._tasks else None
            if upstream is not None:
                self._release(upstream)

    def _release(self, task: TaskState) -> None:
        """Let go of a live value that no consumer and no checkpoint can still need."""
        if not task.held or task.phase is not Phase.PRODUCED or not self._consumers_settled(task):
            return
        if task.durability in (Durability.WANTED,) or task.snapshot is Durability.WANTED:
            return
        durable = task.durability is not Durability.UNWANTED or self._kept_output(task) is not None
        newest = any(self._producer(loop.last_carry) is task for loop in self._loops.values())
        if (newest or not task.options.deterministic or self._is_result(task)) and not durable:
            return
        task.held = False
        self._out.append(Release(task.id, task.attempt))

    def _retire_for_fold(self) -> bool:
        """Move complete iterations out of the history; return whether a fold is worth writing."""
        retired_any = False
        for loop in self._loops.values():
            uncovered = [
                actor.uncovered for actor in self._actors.values() if actor.durable and actor.uncovered is not None
            ]
            committed = loop.done
            upto = min(
                [
                    committed - loop.spec.keep,
                    min(loop.iterations, default=loop.next) - 1,
                    *(first - 1 for first in uncovered),
                ]
            )
            known = self._history.retired.get(loop.spec.id)
            if upto <= (0 if known is None else known.iteration):
                continue
            first = 1 if known is None else known.iteration + 1
            leaving = [
                record
                for record in self._history.committed.values()
                if record.loop == loop.spec.id and first <= record.iteration <= upto
            ]
            carry = next((record.task for record in leaving if record.carry and record.iteration == upto), None)
            if carry is None:
                continue
            dropped = self._history.retire(Retired(loop.spec.id, upto, carry))
            if loop.spec.archive is not None:
                self._out.append(Archive(loop.spec.id, first, upto, tuple(leaving)))
            self._collectable += [blob for record in dropped for blob in record.blobs]
            retired_any = True
        return retired_any

    def _take_dead(self) -> tuple[Blob, ...]:
        """Return the blobs of retired iterations that nothing needs; those still needed are asked for later."""
        needed = self._needed_blobs()
        dead = tuple(blob for blob in self._collectable if blob.name not in needed)
        self._collectable = [blob for blob in self._collectable if blob.name in needed - self._history.blobs()]
        for blob in dead:
            if self._content.get(blob.sha256) == blob:
                del self._content[blob.sha256]
        return dead

    def _archive_rows(self, *, everything: bool = False) -> None:
        """Archive iterations of loops whose carries are not checkpointed."""
        for loop in self._loops.values():
            if loop.rows and (everything or len(loop.rows) >= ARCHIVE_EVERY):
                first, last = loop.rows[0].iteration, loop.rows[-1].iteration
                self._out.append(Archive(loop.spec.id, first, last, tuple(loop.rows)))
                loop.rows = []

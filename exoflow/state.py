"""The pure core: one workflow as a state machine. ``apply(event, now)`` returns instructions; nothing else acts.

This is the top layer (`exoflow.progress` names the others): what each event means, what is appended next,
and how the workflow ends. Losing a durable actor rolls all of them back to what is committed, by the same
analysis that recovers a workflow after a crash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from exoflow.doubts import Doubts
from exoflow.effects import Cure, cure_of
from exoflow.layout import Expand
from exoflow.messages import (
    ActorLost,
    Append,
    Appended,
    Collect,
    Complete,
    Event,
    Failed,
    InputLost,
    Instruction,
    Lost,
    Persisted,
    PersistFailed,
    Produced,
    Refused,
    Release,
    Settled,
    StateDamaged,
    StopActor,
    ValueLost,
    Wake,
    Woken,
)
from exoflow.options import Checkpoint
from exoflow.plan import Plan
from exoflow.progress import SETTLED, ActorState, Durability, LoopState, Phase, TaskState, durable_state
from exoflow.records import Cleared, Committed, Finished, History, Intended, Record, Status, newest_states
from exoflow.retention import FOLD_EVERY

RIDE_SECONDS = 0.05
"""How long an `async` record may wait for its loop's next carry, to go into one object with it."""
MAX_LOSSES = 3
MAX_REFUSALS = 20


class WorkflowState(Doubts):
    """One workflow. Feed it events, obey its instructions.

    Parameters
    ----------
    plan : Plan
        The workflow.
    history : History
        What the journal says so far, this owner's claim included.
    expand : callable
        ``expand(loop, iteration, previous_carry)`` makes the tasks of an iteration; pure.
    replicas : mapping, optional
        Group sizes that override the plan's, by actor.
    fold_every : int
        Objects, or iterations if these are more, after which a loop's complete iterations leave the journal.
    """

    def __init__(
        self,
        plan: Plan,
        history: History,
        expand: Expand,
        *,
        replicas: Mapping[str, int] | None = None,
        fold_every: int = FOLD_EVERY,
    ) -> None:
        super().__init__(plan, history, expand, replicas)
        self._fold_every = fold_every
        self._since_fold = 0
        self._losses: dict[str, int] = {}
        self._refusals: dict[str, int] = {}
        self._writing: list[Record] | None = None
        self._writing_fold = False
        self._riding_since: float | None = None
        self._rollback_reason: str | None = None
        self._buffered: list[Event] = []
        self._finishing = False
        self.finished = False

    def start(self, now: float) -> list[Instruction]:
        """Return the first instructions; ``now`` is in Unix seconds."""
        self._now = now
        if self._history.finished is not None:
            self._complete(self._history.finished)
        else:
            self._build({})
        return self._settle()

    def apply(self, event: Event, now: float) -> list[Instruction]:
        """Take in an event at ``now`` (Unix seconds) and return what to do about it."""
        self._now = now
        if not self.finished:
            self._handle(event)
        return self._settle()

    def _handle(self, event: Event) -> None:
        if self._rollback_reason is not None and not isinstance(event, Appended):
            self._buffered.append(event)
            return
        match event:
            case Produced():
                self._on_produced(event)
            case Failed():
                self._on_failed(event)
            case Settled():
                self._on_settled(event)
            case Refused():
                self._on_refused(event)
            case Lost():
                self._on_lost(event)
            case InputLost():
                self._on_input_lost(event)
            case ValueLost():
                self._on_value_lost(event)
            case ActorLost():
                self._on_actor_lost(event)
            case StateDamaged():
                self._on_state_damaged(event)
            case Persisted():
                self._on_persisted(event)
            case PersistFailed():
                self._on_persist_failed(event)
            case Appended():
                self._on_appended(event.at)
            case Woken():
                self._on_woken(event.task)

    def check_invariants(self) -> None:
        """Assert what must hold between two events; the simulator calls it after each."""
        for task in self._tasks.values():
            committed = task.durability is Durability.COMMITTED
            assert (task.record is not None) == (task.durability >= Durability.READY), task.id
            assert not (task.phase is Phase.RUNNING and task.attempt == 0), task.id
            if committed and task.spec.id in self._history.committed:
                for upstream in task.wanted_ancestors:
                    ancestor = self._tasks.get(upstream)
                    assert ancestor is None or ancestor.durability is Durability.COMMITTED, (
                        task.id,
                        upstream,
                    )
        for loop in self._loops.values():
            if loop.ended_by is None:
                assert loop.next - 1 <= max(loop.done + loop.spec.max_in_flight, loop.known), loop.spec.id

    def _settle(self) -> list[Instruction]:
        """Carry every consequence through and hand over the instructions."""
        while not self.finished and self._rollback_reason is None:
            if self._agenda:
                self._wake(self._agenda.popleft())
            elif not any(self._grow(loop) for loop in self._loops.values()):
                break
        if not self.finished and self._rollback_reason is None:
            self._append_what_is_ready()
        out, self._out = self._out, []
        return out

    def _wake(self, task_id: str) -> None:
        task = self._tasks.get(task_id)
        if task is not None and task.phase is Phase.DOUBTED:
            self._start_cure(task)
        elif task is not None:
            self._try_start(task)

    # --- what attempts report ---------------------------------------------------------------------------

    def _on_produced(self, event: Produced) -> None:
        task = self._current(event.task, event.attempt)
        if task is not None and task.phase is Phase.RUNNING:
            self._accept(task, event.report)

    def _on_failed(self, event: Failed) -> None:
        task = self._current(event.task, event.attempt)
        if task is not None and task.phase is Phase.SETTLING:
            self._on_cure_failed(task, event.error)
            return
        if task is None or task.phase is not Phase.RUNNING:
            return
        tries = self._tries[task.id] = self._tries.get(task.id, 0) + 1
        final = tries > task.options.retries or event.no_retry
        if event.not_done and not task.repeats and task.spec.actor is None:
            self._begun.discard(task.id)
        if _may_have_acted(task):
            self._doubt(task, event.error, final=final)
            if event.not_done:
                self._clear(task, self._generation(task))
        elif final:
            self._give_up(task, event.error)
        elif self._durable_actor(task) is not None:
            self._begin_rollback(f"{task.id} failed: {event.error}")
        else:
            self._retry(task)
            self._sleep(task, tries)

    def _on_woken(self, task_id: str) -> None:
        task = self._tasks.get(task_id)
        if task is not None and task.sleeping:
            task.sleeping = False
            self._agenda.append(task_id)

    def _on_refused(self, event: Refused) -> None:
        task = self._current(event.task, event.attempt)
        if task is None or task.phase not in (Phase.RUNNING, Phase.SETTLING):
            return
        self._refusals[task.id] = self._refusals.get(task.id, 0) + 1
        if self._refusals[task.id] > MAX_REFUSALS:
            self._give_up(task, f"it was refused {MAX_REFUSALS} times; this is a bug of exoflow")
        elif task.phase is Phase.SETTLING:
            # Another owner is there, it seems; this one finds out when it orders the cure again.
            task.phase, task.attempt = Phase.DOUBTED, 0
            self._agenda.append(task.id)
        else:
            self._retry(task)

    def _on_lost(self, event: Lost) -> None:
        task = self._current(event.task, event.attempt)
        if task is not None and task.phase is Phase.SETTLING:
            self._on_cure_failed(task, event.reason)
            return
        if task is None or task.phase is not Phase.RUNNING:
            return
        self._lose_attempt(task, event.reason)

    def _lose_attempt(self, task: TaskState, reason: str) -> None:
        """Draw the consequences of a running attempt that ended with its process; each task may lose so many."""
        losses = self._losses[task.id] = self._losses.get(task.id, 0) + 1
        if _may_have_acted(task):
            self._doubt(task, reason, final=losses > MAX_LOSSES)
        elif losses > MAX_LOSSES:
            self._give_up(task, f"its process died {losses} times: {reason}")
        elif self._durable_actor(task) is not None:
            # Other members may have run the call; only going back brings all to one state.
            self._begin_rollback(f"{task.id} was lost: {reason}")
        else:
            self._retry(task)

    def _on_input_lost(self, event: InputLost) -> None:
        """Read what is durable from the store, and make again what is not."""
        task = self._current(event.task, event.attempt)
        if task is None or task.phase is not Phase.RUNNING:
            return
        if _may_have_acted(task):
            self._doubt(task, event.reason, final=False)
            return
        if not self._count_loss(task, event.reason):
            return
        held = [self._producer(given.task) for given in task.spec.inputs if not given.snapshot]
        lost = [upstream for upstream in held if upstream is not None and upstream.held]
        for upstream in lost:
            if self._kept_output(upstream) is None:
                upstream.value_lost = True
            else:
                upstream.held = False
                self._out.append(Release(upstream.id, upstream.attempt))
        if any(upstream.value_lost for upstream in lost) or self._durable_actor(task) is not None:
            self._begin_rollback(f"an input of {task.id} was lost: {event.reason}")
        else:
            self._retry(task)

    def _on_value_lost(self, event: ValueLost) -> None:
        self._lent.pop((event.task, event.attempt), None)
        task = self._current(event.task, event.attempt)
        if task is not None and self._kept_output(task) is None and self._count_loss(task, event.reason):
            task.value_lost = True
            self._begin_rollback(f"the output of {task.id} was lost: {event.reason}")

    def _count_loss(self, task: TaskState, reason: str) -> bool:
        """Return whether a task may be run again after one more loss; give it up otherwise."""
        losses = self._losses[task.id] = self._losses.get(task.id, 0) + 1
        if losses > MAX_LOSSES:
            self._give_up(task, f"what it needs was lost {losses} times: {reason}")
        return losses <= MAX_LOSSES

    def _on_persisted(self, event: Persisted) -> None:
        self._lent.pop((event.task, event.attempt), None)
        task = self._current(event.task, event.attempt)
        if task is not None:
            self._take_persisted(task, event)
            self._release_around(task)

    def _on_persist_failed(self, event: PersistFailed) -> None:
        self._lent.pop((event.task, event.attempt), None)
        task = self._current(event.task, event.attempt)
        if task is None:
            return
        self._give_up(task, f"its checkpoint failed: {event.error}")

    # --- losing actors ----------------------------------------------------------------------------------

    def _on_actor_lost(self, event: ActorLost) -> None:
        actor = self._actors.get(event.actor)
        if actor is None or not actor.started or actor.incarnation != event.incarnation:
            return
        if actor.durable:
            self._losses["rollback"] = self._losses.get("rollback", 0) + 1
            if self._losses["rollback"] > MAX_LOSSES:
                self._give_up_actor(actor, f"it died {MAX_LOSSES + 1} times without progress: {event.reason}")
            else:
                self._begin_rollback(f"actor {event.actor} died: {event.reason}")
            return
        # No state went with it, so its calls alone are counted: what lasts for months loses processes now and then.
        self._out.append(StopActor(event.actor, event.incarnation))
        actor.started = False
        for task in list(self._tasks.values()):
            if task.spec.actor == event.actor and task.phase is Phase.RUNNING:
                self._lose_attempt(task, event.reason)

    def _give_up_actor(self, actor: ActorState, error: str) -> None:
        """End the workflow because of an actor; what its calls may have done stays noted in their intents."""
        self._abandon_calls(actor, dead=True)
        self._end(actor.spec.id, error)

    def _on_state_damaged(self, event: StateDamaged) -> None:
        """Go back to an older state of the actor and make the calls after it again."""
        actor = self._actors.get(event.actor)
        if actor is None or not actor.started or actor.incarnation != event.incarnation or actor.restore is None:
            return
        damaged = actor.restore.task
        self._damaged.add(damaged)
        older = newest_states(self._usable()).get(event.actor)
        if older is None and self._history.retired:
            # The calls that led to the state have left the journal: nothing can make it again.
            self._end(event.actor, f"its state is damaged, and no older one is left: {event.reason}")
            return
        first = 0 if older is None or older.task not in actor.calls else actor.calls.index(older.task) + 1
        again = [self._tasks[name] for name in actor.calls[first : actor.calls.index(damaged) + 1]]
        if not all(call.options.deterministic for call in again):
            # Their outputs count already, and would not fit the state that another run might lead to.
            self._end(event.actor, f"its state is damaged, and calls that may end otherwise led to it: {event.reason}")
            return
        self._begin_rollback(f"the state of {event.actor} is damaged: {event.reason}")

    def _begin_rollback(self, reason: str) -> None:
        """End the durable actors; go back once the append in flight has said what is committed."""
        self._rollback_reason = reason
        for actor in self._actors.values():
            if actor.durable and actor.started:
                self._out.append(StopActor(actor.spec.id, actor.incarnation))
                actor.started = False
        if self._writing is None:
            self._roll_back()

    def _roll_back(self) -> None:
        """Start again from what is committed, keeping attempts whose inputs all are."""
        self._rollback_reason = None
        survivors = {}
        clearing = {record.task for record in self._pending_cleared}
        for task in self._tasks.values():
            if task.id in clearing or self._outlives_rollback(task):
                survivors[task.id] = task
            elif task.held:
                self._out.append(Release(task.id, task.attempt))
        self._agenda.clear()
        self._pending_intents.clear()
        self._unforced.clear()
        alive = {(survivor.id, survivor.attempt) for survivor in survivors.values()}
        self._lent = {attempt: blobs for attempt, blobs in self._lent.items() if attempt in alive}
        self._build(survivors)
        for survivor in survivors.values():
            adopted = self._tasks.get(survivor.id)
            if survivor.held and (adopted is None or adopted.attempt != survivor.attempt):
                self._out.append(Release(survivor.id, survivor.attempt))
        buffered, self._buffered = self._buffered, []
        for event in buffered:
            self._handle(event)

    def _outlives_rollback(self, task: TaskState) -> bool:
        """Whether a task's attempt stands on nothing that may be undone."""
        if task.attempt == 0 or task.value_lost or task.phase not in (Phase.RUNNING, Phase.PRODUCED):
            return False
        if task.phase is Phase.PRODUCED and not task.held and (task.report is None or task.report.output is None):
            # Its value was let go, and a record that was not appended goes with the rest: it is no use to a consumer
            # that runs again.
            return False
        if task.durability is Durability.COMMITTED:
            return False
        if task.spec.actor is not None and self._actors[task.spec.actor].durable:
            return False
        for given in task.spec.inputs:
            upstream = self._producer(given.task)
            if upstream is None:
                return False
            durable = durable_state(upstream) is not None if given.snapshot else False
            if not durable and upstream.durability is not Durability.COMMITTED:
                return False
        return True

    # --- the journal ------------------------------------------------------------------------------------

    def _append_what_is_ready(self) -> None:
        if self._writing is not None or self._rides_along():
            return
        self._riding_since = None
        records: list[Record] = [*self._pending_cleared]
        if self._ending is None:
            records += [intent for intent in self._pending_intents if intent.task in self._tasks]
        self._pending_cleared.clear()
        self._pending_intents.clear()
        records += self._take_ready()
        fold = self._retire_for_fold() if self._since_fold >= self._fold_every else False
        if records:
            records, self._unforced = [*self._unforced, *records], []
        if not records and not fold:
            records = self._last_records()
            if not records:
                return
        self._writing, self._writing_fold = records, fold
        content = (*self._history.records(), *records) if fold else tuple(records)
        self._out.append(Append(content, fold))

    def _rides_along(self) -> bool:
        """Whether all that may be appended shall wait for the carry of its loop, which is due.

        An append of its own would cost as much as one for both, and be under way when the carry comes, which in sync
        somebody waits for.
        """
        if not self._ready or self._pending_cleared or self._pending_intents or self._ending is not None:
            return False
        carries = {loop.spec.id: carry for loop in self._loops.values() if (carry := self._due_carry(loop))}
        if not carries:
            return False
        possible = {task.id: task for task in self._ready.values() if self._may_be_appended(task)}
        if any(self._goes_with(carry, possible) for carry in carries.values()):
            return False
        waits = (
            task.options.checkpoint is Checkpoint.ASYNC and task.spec.loop in carries for task in possible.values()
        )
        if not all(waits):
            return False
        if self._riding_since is None:
            self._riding_since = self._now
            # Named by the loop: a task's own wake would end the pause before its retry.
            self._out += [Wake(loop, RIDE_SECONDS) for loop in carries]
        return 0 <= self._now - self._riding_since < RIDE_SECONDS

    def _due_carry(self, loop: LoopState) -> TaskState | None:
        """Return the first carry of the loop that is being made, or made durable."""
        for iteration in loop.iterations.values():
            carry = self._tasks[iteration.carry]
            due = carry.phase in (Phase.RUNNING, Phase.PRODUCED) and carry.durability < Durability.WRITING
            if due and carry.options.checkpoint is not Checkpoint.NONE:
                return carry
        return None

    def _goes_with(self, carry: TaskState, possible: Mapping[str, TaskState]) -> bool:
        """Whether a carry may be appended once some others are."""
        if carry.durability is not Durability.READY or not self._confirmed(carry):
            return False
        ancestors = (self._tasks.get(name) for name in carry.wanted_ancestors if name not in possible)
        return all(ancestor is None or ancestor.durability >= Durability.WRITING for ancestor in ancestors)

    def _last_records(self) -> list[Record]:
        """Return what ends the workflow, once nothing is left to do."""
        if self._finishing or not (self._over() if self._ending is None else not self._effects_open()):
            return []
        self._finishing = True
        if self._ending is not None:
            status, task, error = self._ending.status, self._ending.task, self._ending.error
            return [*self._never_begun(), Finished(status, self._now, task, error)]
        self._archive_rows(everything=True)
        return [Finished(Status.SUCCESSFUL, self._now)]

    def _over(self) -> bool:
        """Whether the result is committed and nothing else is waited for."""
        root = self._producer(self._plan.root)
        if root is None or root.durability is not Durability.COMMITTED or self._deferred:
            return False
        if any(loop.ended_by is None for loop in self._loops.values()):
            return False
        return all(_complete(state) for state in self._tasks.values())

    def _on_appended(self, at: float) -> None:
        assert self._writing is not None
        records, self._writing = self._writing, None
        records = [
            dataclasses.replace(record, committed_at=at) if isinstance(record, Committed) else record
            for record in records
        ]
        self._history.add(records)
        self._begun.difference_update(record.task for record in records if isinstance(record, Cleared))
        # One object may commit several iterations when the store is slow; what a fold frees is theirs.
        carries = sum(isinstance(record, Committed) and record.carry for record in records)
        self._since_fold = 0 if self._writing_fold else self._since_fold + max(1, carries)
        if self._writing_fold:
            self._out.append(Collect(self._take_dead()))
        if any(isinstance(record, Committed) for record in records):
            self._losses.pop("rollback", None)
        for record in records:
            if isinstance(record, Finished):
                self._complete(record)
                return
        if self._rollback_reason is not None:
            self._roll_back()
            return
        for record in records:
            if not isinstance(record, Intended | Cleared | Committed):
                continue
            task = self._tasks.get(record.task)
            if task is not None:
                self._on_recorded(task, record)
        for loop in self._loops.values():
            self._advance(loop)

    def _on_recorded(self, task: TaskState, record: Intended | Cleared | Committed) -> None:
        """Draw the consequences of a record of the task that is now durable."""
        match record:
            case Intended():
                if task.phase is Phase.INTENDING:
                    task.phase = Phase.WAITING
                    self._agenda.append(task.id)
            case Cleared():
                self._on_cleared(task)
            case Committed():
                if record.resumable:
                    self._on_committed(task, record)
                else:
                    task.snapshot, task.snapshot_record = Durability.COMMITTED, record
                self._wake_consumers(task)
                self._release_around(task)

    def _complete(self, record: Finished) -> None:
        self.finished = True
        for actor in self._actors.values():
            if actor.started:
                self._out.append(StopActor(actor.spec.id, actor.incarnation))
                actor.started = False
        self._out.append(Complete(record.status, record.task, record.error))


def _complete(task: TaskState) -> bool:
    """Whether a task leaves nothing that the end of the workflow has to wait for."""
    still = (Durability.WANTED, Durability.READY, Durability.WRITING)
    waits = task.branch and task.phase not in SETTLED
    return not waits and task.durability not in still and task.snapshot not in still


def _may_have_acted(task: TaskState) -> bool:
    """Whether an attempt that broke off may have left an effect that must not simply be repeated."""
    return task.options.external and cure_of(task.options) is not Cure.REPEAT

"""Every rule of the engine broken on purpose: random lives must notice within a stated number of runs.

The planted cores switch `check_invariants` off, so that what catches them is what a user would see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from exoflow.blobs import blob_folder
from exoflow.codec import encode
from exoflow.collection import sweep
from exoflow.effects import Cure, cure_of, effect_key
from exoflow.errors import Fenced, StorageUnavailable, WorkflowNotFound
from exoflow.journal import Owner as OwnerName
from exoflow.journal import Tenure, journal_folder, newest_generation, number_of, read_steps
from exoflow.messages import Append, Archive, Collect, Event, Failed, Instruction, Purpose, Report, StartActor
from exoflow.plan import TaskSpec
from exoflow.progress import Durability, LoopState, Phase, TaskState
from exoflow.records import History, Intended, Record, Started, Value
from exoflow.recovery import Action
from exoflow.state import WorkflowState
from exoflow.steps import Delete, List, PutIfAbsent, Steps, drive
from exoflow.testing import WORKFLOW_ID, Faults, Life, Owner, Setting
from exoflow.testing.members import TalkingMember
from exoflow.testing.workers import Part, View, Workers
from exoflow.testing.workflows import random_plan
from exoflow.worker import _running


class Unchecked(WorkflowState):
    """A core whose own assertions are off."""

    def check_invariants(self) -> None:
        pass


# --- commit and prefix --------------------------------------------------------------------------------------


class RecordBeforeBlob(Workers):
    def _write(self, view: View, then: Callable[[StorageUnavailable | None], None]) -> None:
        then(None)
        super()._write(view, lambda _: None)


class NoPrefix(Unchecked):
    def _want(self, task: TaskState) -> None:
        if task.durability is Durability.UNWANTED:
            task.durability = Durability.WANTED
            self._begin_checkpoint(task)


class CommitBeforeAncestors(Unchecked):
    def _ancestors_written(self, task: TaskState) -> bool:
        return True


class SyncDoesNotWait(Unchecked):
    """A workflow is successful before its own result is durable."""

    def _is_result(self, task: TaskState) -> bool:
        return False


class AcknowledgedTooEarly(Owner):
    """The core is told of an append when it begins."""

    def _write(self) -> None:
        if not self._writing and self._to_write and isinstance(self._to_write[0], Append):
            self.world.later(self, lambda: self._appended(self.world.now))
        super()._write()

    def _written(self, order: Archive | Append | Collect, at: float | None) -> None:
        super()._written(order, None)


class TwoAppends(Unchecked):
    def _append_what_is_ready(self) -> None:
        self._writing = None
        super()._append_what_is_ready()


class FoldForgetsIntents(Unchecked):
    def _append_what_is_ready(self) -> None:
        super()._append_what_is_ready()
        self._out = [
            dataclasses.replace(order, records=tuple(each for each in order.records if not isinstance(each, Intended)))
            if isinstance(order, Append) and order.fold
            else order
            for order in self._out
        ]


# --- ownership ----------------------------------------------------------------------------------------------


class Tenured(Owner):
    """An owner with another tenure."""

    kind: type[Tenure]

    def make_tenure(self, name: OwnerName, new_nonce: Callable[[], str]) -> Tenure:
        return self.kind(WORKFLOW_ID, name, new_nonce, clock=self.clock, monotonic=self.clock)


class CollectsClaims(Tenured):
    class kind(Tenure):
        def collect(self) -> Steps[None]:
            for key in (yield List(journal_folder(WORKFLOW_ID))):
                if number_of(key) < self.base:
                    yield Delete(key)


class OwnWriteTakenForAnothers(Tenured):
    """What exists already was written by somebody else: so thinks who does not read back."""

    class kind(Tenure):
        def _write(self, kind: str, records: Sequence[Record], generation: int) -> Steps[None]:
            steps = super()._write(kind, records, generation)
            step = next(steps)
            while True:
                try:
                    answer = yield step
                    if isinstance(step, PutIfAbsent) and answer is False:
                        message = "somebody else was faster"
                        raise Fenced(WORKFLOW_ID, message)
                    step = steps.send(answer)
                except StorageUnavailable as error:
                    step = steps.throw(error)
                except StopIteration:
                    return


class TimeOutTakenForSuccess(Tenured):
    """A write without an answer has landed: so thinks who does not read back."""

    class kind(Tenure):
        def _write(self, kind: str, records: Sequence[Record], generation: int) -> Steps[None]:
            steps = super()._write(kind, records, generation)
            step = next(steps)
            while True:
                try:
                    try:
                        answer = yield step
                    except StorageUnavailable:
                        answer = True
                    step = steps.send(answer)
                except StopIteration:
                    return


class ClaimNotLookedAtAgain(Tenured):
    class kind(Tenure):
        def claim(self, tail: Any, records: Sequence[Record] = ()) -> Steps[None]:
            if tail is not None:
                self._last, self._last_sha256 = tail.header, tail.sha256
            yield from self._write("claim", records, self.generation + 1)


class SweepsWhatCameLater(Owner):
    """Blobs are listed after the claim instead of before it."""

    def _claim(self) -> Steps[History]:
        try:
            tail = yield from read_steps(WORKFLOW_ID)
        except WorkflowNotFound:
            tail = None
        history = History() if tail is None else tail.history
        first: list[Record] = [Started(self.setting.plan.digest, "nonce", self.world.now)] if tail is None else []
        yield from self.tenure.claim(tail, first)
        history.reopen()
        history.add(first)
        found: list[str] = yield List(blob_folder(WORKFLOW_ID))
        yield from sweep(WORKFLOW_ID, found, history.blobs(), self.clock)
        return history


# --- collection ---------------------------------------------------------------------------------------------


class CollectsLiveBlobs(Unchecked):
    def _on_appended(self, at: float) -> None:
        dead = tuple(blob for record in self._history.committed.values() for blob in record.blobs)
        super()._on_appended(at)
        self._out = [Collect(dead) if isinstance(order, Collect) else order for order in self._out]


class IgnoresPins(Owner):
    def _steps(self, order: Archive | Append | Collect) -> Steps[float | None]:
        if not isinstance(order, Collect):
            return (yield from super()._steps(order))
        for blob in order.blobs:
            yield Delete(f"{blob_folder(WORKFLOW_ID)}/{blob.name}")
        yield from self.tenure.collect()
        return None


# --- actors -------------------------------------------------------------------------------------------------


class NoReplay(Unchecked):
    def _decide(self, specs: Sequence[TaskSpec], branches: set[str]) -> dict[str, Action]:
        decided = super()._decide(specs, branches)
        return {name: Action.DONE if each is Action.REPLAY else each for name, each in decided.items()}


class SurvivorsGoOn(Workers):
    """Actors of which nobody died keep the state they are in, although the workflow goes back."""

    def stop_actor(self, actor: str, incarnation: int) -> None:
        pass

    def start_actor(self, order: StartActor) -> None:
        known = self._actors.get(order.spec.id)
        super().start_actor(order)
        if known is not None and self._goes_on([member.alive for member in known.members]):
            started = self._actors[order.spec.id].members
            for index, member in enumerate(known.members):
                if member.alive:
                    member.token, member._post = started[index].token, started[index]._post
                    started[index] = member
            self._look()

    def _goes_on(self, alive: list[bool]) -> bool:
        return all(alive)


class OnlyTheLostMemberGoesBack(SurvivorsGoOn):
    """The other members of a replicated actor keep the state they are in."""

    def _goes_on(self, alive: list[bool]) -> bool:
        return not all(alive)


class AnyCallGoes(Workers):
    """An actor runs whatever call arrives, without asking which state the call expects."""

    def _runnable(self, part: Part) -> bool:
        there = all(cell for given in part.attempt.inputs for cell in given.cells)
        return super()._runnable(part) or (there and not part.suspended)


class StaleCapture(Workers):
    """The state is captured when it is written, and not inside the call."""

    def start_actor(self, order: StartActor) -> None:
        super().start_actor(order)
        for member in self._actors[order.spec.id].members:
            member.__class__ = _LateCapture


class _LateCapture(TalkingMember):
    def _capture(self, attempt: int) -> Value | None:
        def make_durable() -> Value:
            with _running(self._context("persist")):
                return self.blobs.durable(self._object.capture())

        self._captured.append((attempt, make_durable))
        return None


# --- effects ------------------------------------------------------------------------------------------------


class PastTheStop(Unchecked):
    def _confirmed(self, task: TaskState) -> bool:
        return True


class EffectBeforeItsIntent(Unchecked):
    """The body starts with the intent, and not after it."""

    def _try_start(self, task: TaskState) -> None:
        super()._try_start(task)
        if task.phase is Phase.INTENDING and task.options.external:
            intents = [each for each in self._pending_intents if each.task == task.id]
            self._history.intended.update({each.task: each for each in intents})
            task.phase = Phase.WAITING
            super()._try_start(task)


class EffectOnUncommittedInputs(Unchecked):
    def _note_needs(self, spec: TaskSpec) -> None:
        if not spec.options.external:
            super()._note_needs(spec)


class OutOfTurn(Unchecked):
    """Effects that take turns do not wait for each other."""

    def _in_turn(self, spec: TaskSpec, loop: LoopState) -> TaskSpec:
        return spec


class KeyWithoutGeneration(Unchecked):
    def _key(self, task: TaskState) -> str:
        assert self._history.started is not None
        return effect_key(self._history.started.nonce, task.id, task.spec.iteration, 0)


class RollbackNotAwaited(Unchecked):
    def _submit_cure(self, task: TaskState, purpose: Purpose) -> None:
        if purpose is Purpose.ROLLBACK:
            self._clear(task, self._generation(task) + 1)
        else:
            super()._submit_cure(task, purpose)


class ResolveIgnored(Unchecked):
    def _submit_cure(self, task: TaskState, purpose: Purpose) -> None:
        if purpose is Purpose.RESOLVE:
            self._clear(task, self._generation(task))
        else:
            super()._submit_cure(task, purpose)


class RepeatedSilently(Unchecked):
    """What has no cure is simply done again."""

    def _start_cure(self, task: TaskState) -> None:
        if cure_of(task.options) is Cure.ASK:
            self._clear(task, self._generation(task))
        else:
            super()._start_cure(task)


class NotDoneTakenForDone(Unchecked):
    """A body that says it had no effect has returned, has it not?"""

    def _on_failed(self, event: Failed) -> None:
        task = self._current(event.task, event.attempt)
        if event.not_done and task is not None and task.phase is Phase.RUNNING:
            self._accept(task, Report(Value.inline(encode(None))))
        else:
            super()._on_failed(event)


class NotDoneTakenForDoubt(Unchecked):
    def _on_failed(self, event: Failed) -> None:
        super()._on_failed(dataclasses.replace(event, not_done=False))


class TimeOutRepeated(Unchecked):
    """What took too long is simply tried again."""

    def _on_failed(self, event: Failed) -> None:
        task = self._current(event.task, event.attempt)
        if "timeout" in event.error and task is not None and task.phase is Phase.RUNNING:
            self._retry(task)
        else:
            super()._on_failed(event)


class AnyErrorIsCaught(Workers):
    """`catch_exceptions` makes an output of errors that may have come after the effect."""

    def _run(self, part: Part, view: View) -> tuple[Any, Event]:
        part.attempt.order = dataclasses.replace(part.attempt.order, intent=None)
        return super()._run(part, view)


class CaughtErrorsForgotten(Unchecked):
    """A task that raised runs again, whoever has read its error."""

    def start(self, now: float) -> list[Instruction]:
        committed = self._history.committed
        self._history.committed = {
            task: record
            for task, record in committed.items()
            if record.output is None or record.output.codec != "pickle"
        }
        return super().start(now)


class EffectsOfReplacedOwners(Workers):
    """Nobody looks, where an effect begins, whether its owner has been replaced."""

    def _run(self, part: Part, view: View) -> tuple[Any, Event]:
        part.attempt.generation = drive(newest_generation(WORKFLOW_ID), view)
        return super()._run(part, view)


class FailedForGood(Owner):
    """What has failed once is not tried again by who resumes it."""

    def _claim(self) -> Steps[History]:
        try:
            ended = (yield from read_steps(WORKFLOW_ID)).history.finished
        except WorkflowNotFound:
            ended = None
        history = yield from super()._claim()
        history.finished = ended
        return history


# --- the test of the tests ----------------------------------------------------------------------------------

# Controllers that overtake each other on a slow network, and folds that collect; for what is rare otherwise.
CROWD = Faults(take_over=0.05, slow=0.3, pause=0.03)
READERS = Faults(read=0.1, slow=0.2)
OVERTAKERS = Faults(take_over=0.2, slow=0.25)
DYING_BODIES = Faults(lose_worker=0.2, time_out=0.4)
DYING_MEMBERS = Faults(lose_actor=0.05)
RAISING = Faults(fail_body=0.3)
VOUCHING = Faults(vouch=0.4)
PLANTED: dict[str, tuple[int, type, Faults | None]] = {
    "record before its blob": (60, RecordBeforeBlob, None),
    "prefix rule ignored": (40, NoPrefix, None),
    "commit before its ancestors": (60, CommitBeforeAncestors, None),
    "successful without a durable result": (60, SyncDoesNotWait, None),
    "append acknowledged before it landed": (1000, AcknowledgedTooEarly, None),
    "two appends in flight": (20, TwoAppends, None),
    "a fold forgets intents": (300, FoldForgetsIntents, None),
    "claim objects collected": (200, CollectsClaims, None),
    "own write taken for another's": (60, OwnWriteTakenForAnothers, None),
    "a time-out taken for success": (60, TimeOutTakenForSuccess, None),
    "a stale claim not noticed": (200, ClaimNotLookedAtAgain, CROWD),
    "blobs of a successor swept": (1000, SweepsWhatCameLater, CROWD),
    "live blobs collected": (200, CollectsLiveBlobs, None),
    "pins ignored": (200, IgnoresPins, READERS),
    "replay skipped": (200, NoReplay, None),
    "survivors not rolled back": (60, SurvivorsGoOn, DYING_MEMBERS),
    "calls of a state that is gone": (60, AnyCallGoes, None),
    "stale capture": (1000, StaleCapture, None),
    "iterations past a stop": (60, PastTheStop, None),
    "effect before its intent": (60, EffectBeforeItsIntent, None),
    "effect on uncommitted inputs": (60, EffectOnUncommittedInputs, None),
    "effects out of turn": (200, OutOfTurn, None),
    "key without rollback generation": (200, KeyWithoutGeneration, None),
    "rollback not awaited": (200, RollbackNotAwaited, None),
    "resolve ignored": (200, ResolveIgnored, DYING_BODIES),
    "an effect without a cure repeated": (200, RepeatedSilently, DYING_BODIES),
    "a lost member's survivors kept": (60, OnlyTheLostMemberGoesBack, DYING_MEMBERS),
    "EffectNotDone taken for done": (60, NotDoneTakenForDone, VOUCHING),
    "EffectNotDone taken for a doubt": (100, NotDoneTakenForDoubt, VOUCHING),
    "a time-out repeated silently": (200, TimeOutRepeated, DYING_BODIES),
    "an error caught that may have come after the effect": (200, AnyErrorIsCaught, RAISING),
    "caught errors forgotten": (200, CaughtErrorsForgotten, None),
    "effects of replaced owners": (1000, EffectsOfReplacedOwners, OVERTAKERS),
    "failed for good": (60, FailedForGood, None),
}


def planted(seed: int, part: type) -> Setting:
    """Return the workflow of a seed with one part of the engine replaced by a broken one."""
    setting = Setting(random_plan(seed), 2, Unchecked)
    if issubclass(part, Unchecked):
        return dataclasses.replace(setting, core=part)
    if issubclass(part, Workers):
        return dataclasses.replace(setting, workers=part)
    return dataclasses.replace(setting, owner=part)


def runs_until_caught(part: type, limit: int, faults: Faults | None = None) -> int | None:
    """Return how many runs it takes until an oracle notices; None when none does."""
    for seed in range(limit):
        try:
            Life(seed, planted(seed, part), faults).run()
        except Exception:
            return seed + 1
    return None


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str) -> None:
    limit, part, faults = PLANTED[bug]
    assert runs_until_caught(part, limit, faults) is not None, f"{bug}: no oracle noticed within {limit} runs"


def test_the_same_oracles_have_nothing_to_say_of_the_engine_as_it_is() -> None:
    assert runs_until_caught(Unchecked, 200) is None

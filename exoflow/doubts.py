"""Effects that were cut off: nobody knows whether they have happened, and what is done about it. Pure.

A task is in doubt when a body that may not simply be repeated was lost, ran out of time or raised, or when
an owner died between its intent and its commit. `exoflow.effects.cure_of` says what its annotations offer.
Whatever the cure finds is either the task's output, or a record `Cleared` that ends the intent, so that the
body may run again; where there is no cure the workflow ends IN_DOUBT.
"""

from __future__ import annotations

from collections.abc import Mapping

from exoflow.attempts import Attempts
from exoflow.effects import Cure, Verdict, cure_of
from exoflow.layout import Expand
from exoflow.messages import Purpose, Settled, Submit
from exoflow.plan import Plan
from exoflow.progress import Durability, Phase, TaskState
from exoflow.records import Cleared, History, Status

MAX_CURES = 4


class Doubts(Attempts):
    """The layer of effects in doubt."""

    def __init__(self, plan: Plan, history: History, expand: Expand, replicas: Mapping[str, int] | None) -> None:
        super().__init__(plan, history, expand, replicas)
        self._cures: dict[str, int] = {}
        self._pending_cleared: list[Cleared] = []

    def _doubt(self, task: TaskState, trouble: str, *, final: bool) -> None:
        """Note that a task's effect may have happened; after ``final`` trouble the task is not tried again."""
        self._let_go(task)
        task.phase, task.trouble, task.given_up = Phase.DOUBTED, trouble, final
        self._agenda.append(task.id)

    def _start_cure(self, task: TaskState) -> None:
        if self._ending is not None or task.sleeping:
            return
        cure = cure_of(task.options)
        if cure is Cure.RESOLVE and task.unresolved:
            cure = Cure.ASK if task.options.rollback is None else Cure.ROLLBACK
        match cure:
            case Cure.RESOLVE:
                self._submit_cure(task, Purpose.RESOLVE)
            case Cure.ROLLBACK:
                self._submit_cure(task, Purpose.ROLLBACK)
            case Cure.ASK:
                self._ask(task, task.trouble or "its owner stopped while it ran")
            case Cure.REPEAT:
                raise AssertionError(task.id)

    def _submit_cure(self, task: TaskState, purpose: Purpose) -> None:
        attempt = self._new_attempt(task, Phase.SETTLING)
        intent = self._intent(task)
        order = Submit(task.spec, attempt, (), True, self._key(task), None, purpose, intent, turns=self._turns(task))
        self._out.append(order)

    def _ask(self, task: TaskState, trouble: str) -> None:
        self._end(task.id, f"its effect may or may not have happened: {trouble}", Status.IN_DOUBT)

    def _on_settled(self, event: Settled) -> None:
        task = self._current(event.task, event.attempt)
        if task is None or task.phase is not Phase.SETTLING:
            return
        match event.verdict:
            case Verdict.DONE:
                assert event.report is not None
                self._accept(task, event.report)
            case Verdict.NOT_DONE:
                self._clear(task, self._generation(task))
            case Verdict.UNDONE:
                self._clear(task, self._generation(task) + 1)
            case Verdict.UNKNOWN:
                task.phase, task.attempt, task.unresolved = Phase.DOUBTED, 0, True
                task.trouble = task.trouble or "its resolve function cannot tell"
                self._agenda.append(task.id)

    def _on_cure_failed(self, task: TaskState, error: str) -> None:
        """Try a rollback or resolve function again, but not for ever: a resumed workflow begins with it."""
        tries = self._cures[task.id] = self._cures.get(task.id, 0) + 1
        if tries >= MAX_CURES:
            self._end(task.id, f"its effect is in doubt, and what should settle it failed {tries} times: {error}")
        task.phase, task.attempt = Phase.DOUBTED, 0
        self._sleep(task, tries)
        self._agenda.append(task.id)

    def _clear(self, task: TaskState, generation: int) -> None:
        """End an intent without effect, durably, before anything follows from it."""
        self._let_go(task)
        task.phase = Phase.CLEARING
        self._pending_cleared.append(Cleared(task.id, generation, task.spec.loop, task.spec.iteration))

    def _on_cleared(self, task: TaskState) -> None:
        if task.phase is not Phase.CLEARING:
            return
        task.phase, task.unresolved = Phase.WAITING, False
        if task.given_up:
            self._end(task.id, task.trouble or "")
            return
        if tries := self._tries.get(task.id, 0):
            self._sleep(task, tries)
        self._agenda.append(task.id)

    def _effects_open(self) -> bool:
        """Whether an effect is under way whose outcome will be known."""
        under_way = (Phase.RUNNING, Phase.PRODUCED, Phase.SETTLING, Phase.CLEARING)
        return any(
            task.options.external and task.phase in under_way and task.durability is not Durability.COMMITTED
            for task in self._tasks.values()
        )

    def _never_begun(self) -> list[Cleared]:
        """Return the end of intents whose bodies were not started, for a workflow that goes no further."""
        return [
            Cleared(intent.task, intent.generation, intent.loop, intent.iteration)
            for intent in self._history.intended.values()
            if self._history.in_doubt(intent.task) and intent.task not in self._begun
        ]

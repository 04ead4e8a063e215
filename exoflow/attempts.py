"""What may run: what a task must wait for, and how its attempts are submitted, accepted and undone. Pure.

A task may start while its inputs are still running, except behind a sync checkpoint, which must be
committed, and except an external task, for which everything it comes after must be committed. An external
task announces itself first; its body is submitted once the intent is durable.
"""

from __future__ import annotations

from collections.abc import Mapping

from exoflow.effects import arguments_digest, effect_key, turns_name
from exoflow.layout import Expand, Layout
from exoflow.messages import Call, Live, Release, Report, Source, StartActor, Submit, Wake
from exoflow.options import Checkpoint
from exoflow.plan import Input, Plan
from exoflow.progress import ActorState, Durability, Phase, TaskState, durable_state
from exoflow.records import History, Intended, Value


class Attempts(Layout):
    """The layer of attempts."""

    def __init__(self, plan: Plan, history: History, expand: Expand, replicas: Mapping[str, int] | None) -> None:
        super().__init__(plan, history, expand, replicas)
        self._now = 0.0
        self._attempts = 0
        self._incarnations = 0
        self._tries: dict[str, int] = {}
        self._pending_intents: list[Intended] = []

    # --- what may start ---------------------------------------------------------------------------------

    def _try_start(self, task: TaskState) -> None:
        """Start a waiting task if nothing is missing."""
        external = task.options.external
        if task.phase is not Phase.WAITING or task.sleeping or self._ending is not None:
            return
        if not self._inputs_ready(task):
            return
        if not all(self._finished_before(upstream, durably=external) for upstream in task.spec.after):
            return
        if not self._actor_ready(task):
            return
        if external and self._intent(task) is None:
            if self._confirmed(task):
                task.phase = Phase.INTENDING
                self._pending_intents.append(self._new_intent(task))
            return
        self._submit(task)

    def _inputs_ready(self, task: TaskState) -> bool:
        """Whether all inputs are ready; a join of many that is woken by each asks for the first missing one alone."""
        inputs = task.spec.inputs
        while task.inputs_seen < len(inputs):
            if not self._input_ready(task, inputs[task.inputs_seen]):
                return False
            task.inputs_seen += 1
        # An input that was ready may have been lost meanwhile.
        task.inputs_seen = next(
            (i for i, given in enumerate(inputs) if not self._input_ready(task, given)), len(inputs)
        )
        return task.inputs_seen == len(inputs)

    def _input_ready(self, task: TaskState, given: Input) -> bool:
        upstream = self._producer(given.task)
        if upstream is None:
            return False
        if given.snapshot:
            return durable_state(upstream) is not None
        if upstream.durability is Durability.COMMITTED:
            return True
        if task.options.external or upstream.options.checkpoint is Checkpoint.SYNC:
            return False
        if upstream.phase is Phase.RUNNING:
            return task.chained and self._same_side(task, upstream)
        return upstream.phase is Phase.PRODUCED

    def _same_side(self, task: TaskState, upstream: TaskState) -> bool:
        """Return whether both are in one loop: a consumer outside must wait until the carry says "stop"."""
        return upstream.spec.loop is None or task.spec.loop == upstream.spec.loop

    def _actor_ready(self, task: TaskState) -> bool:
        actor = self._durable_actor(task)
        if actor is None:
            return True
        outlives = actor.spec.id in self._actors_after_loops or task.spec.loop in self._loops_before_loops
        if outlives and not self._confirmed(task):
            # A call past the end of the loop would leave a state that the calls after the loop must not see.
            return False
        previous = self._previous_call(actor, task)
        if previous is None or previous.phase is Phase.SKIPPED:
            return True
        durably = task.options.external or previous.options.checkpoint is Checkpoint.SYNC
        if durably and previous.durability is not Durability.COMMITTED:
            return False
        if previous.phase is Phase.RUNNING:
            return task.chained
        return previous.phase is Phase.PRODUCED

    # --- effects ----------------------------------------------------------------------------------------

    def _new_intent(self, task: TaskState) -> Intended:
        spec, generation = task.spec, self._generation(task)
        inputs = [self._durable_input(given) for given in spec.inputs]
        digest = arguments_digest(spec.args.data, inputs)
        carry = self._carried_loop(task) is not None
        return Intended(task.id, self._key(task), digest, self._now, generation, spec.loop, spec.iteration, carry)

    def _durable_input(self, given: Input) -> Value:
        upstream = self._producer(given.task)
        assert upstream is not None
        value = durable_state(upstream) if given.snapshot else self._kept_output(upstream)
        assert value is not None, given
        return value

    def _generation(self, task: TaskState) -> int:
        """Return how often an effect of the task was rolled back."""
        cleared = self._history.cleared.get(task.id)
        return 0 if cleared is None else cleared.generation

    def _key(self, task: TaskState) -> str:
        intent = self._intent(task)
        if intent is not None:
            return intent.key
        return effect_key(self._nonce, task.id, task.spec.iteration, self._generation(task))

    def _turns(self, task: TaskState) -> str:
        return "" if task.spec.max_behind is None else turns_name(self._nonce, task.spec.turns)

    @property
    def _nonce(self) -> str:
        started = self._history.started
        return "" if started is None else started.nonce

    # --- attempts ---------------------------------------------------------------------------------------

    def _new_attempt(self, task: TaskState, phase: Phase) -> int:
        self._attempts += 1
        task.attempt, task.phase = self._attempts, phase
        return task.attempt

    def _submit(self, task: TaskState) -> None:
        attempt = self._new_attempt(task, Phase.RUNNING)
        task.held = True
        spec = task.spec
        if spec.options.external:
            task.repeats = task.id in self._begun
            self._begun.add(task.id)
        self._out.append(
            Submit(
                spec,
                attempt,
                tuple(self._source(task, given) for given in spec.inputs),
                self._keep(task),
                self._key(task),
                self._call(task),
                intent=self._intent(task) if spec.options.external else None,
                last=self._tries.get(task.id, 0) >= spec.options.retries and not task.repeats,
                turns=self._turns(task),
                repeats=task.repeats,
            )
        )
        self._wake_consumers(task)

    def _source(self, task: TaskState, given: Input) -> Source:
        upstream = self._producer(given.task)
        assert upstream is not None
        # To a branch that reads its own iteration's carry that is a value, even if it ends the loop.
        follows = task.spec.loop == upstream.spec.loop and task.spec.iteration != upstream.spec.iteration
        after_loop = upstream.spec.loop is not None and not follows
        if not given.snapshot and upstream.held and not upstream.replayed:
            return Source(Live(upstream.id, upstream.attempt), after_loop)
        return Source(self._durable_input(given), after_loop and not given.snapshot)

    def _call(self, task: TaskState) -> Call | None:
        if task.spec.actor is None:
            return None
        actor = self._actors[task.spec.actor]
        if not actor.started:
            self._incarnations += 1
            actor.incarnation, actor.started = self._incarnations, True
            restore = None if actor.restore is None else actor.restore.state
            self._out.append(StartActor(actor.spec, actor.incarnation, restore))
        if not task.spec.stateful:
            return Call(actor.incarnation, "", "", snapshot=False)
        previous = self._previous_call(actor, task)
        skipped = previous is None or previous.phase is Phase.SKIPPED or previous.attempt == 0
        expects = actor.base_token if skipped or previous is None else _token(previous)
        return Call(actor.incarnation, expects, _token(task), self._captures(task))

    def _accept(self, task: TaskState, report: Report) -> None:
        """Take a task's output as produced."""
        task.phase, task.report = Phase.PRODUCED, report
        loop = self._carried_loop(task)
        if report.stop and loop is None:
            self._give_up(task, "it returned exoflow.stop, which only the task that makes a loop's carry may")
            return
        if report.wants_checkpoint:
            self._want_snapshot(task)
        if loop is not None:
            self._carry_produced(loop, task)
        if self._is_result(task) and task.durability is Durability.UNWANTED:
            self._want(task)
        self._begin_checkpoint(task)
        self._begin_snapshot(task)
        self._wake_consumers(task)
        self._release_around(task)
        if loop is not None:
            self._advance(loop)

    def _retry(self, task: TaskState) -> None:
        """Return a task, and all that were chained to it, to waiting."""
        stack = [task]
        while stack:
            undone = stack.pop()
            self._let_go(undone)
            undone.phase, undone.chained = Phase.WAITING, False
            self._agenda.append(undone.id)
            for name in undone.consumers:
                consumer = self._tasks.get(name)
                if consumer is not None and consumer.phase is Phase.RUNNING and _stands_on(consumer, undone):
                    stack.append(consumer)

    def _give_up(self, task: TaskState, error: str) -> None:
        """End the workflow because of a task; what it may have done stays noted in its intent."""
        actor = self._durable_actor(task)
        if actor is not None:
            self._abandon_calls(actor, dead=False)
        self._let_go(task)
        task.phase = Phase.WAITING
        self._end(task.id, error)

    def _abandon_calls(self, actor: ActorState, *, dead: bool) -> None:
        """Wait no longer for an actor's calls: none that has not returned will find the state that it expects.

        What calls of a ``dead`` actor have captured does not become durable any more either.
        """
        for task in self._tasks.values():
            captured = task.phase is Phase.PRODUCED and task.durability is Durability.WANTED
            waits = task.phase is Phase.RUNNING or (dead and actor.durable and captured)
            if waits and task.spec.actor == actor.spec.id:
                self._let_go(task)
                task.phase = Phase.WAITING

    def _let_go(self, task: TaskState) -> None:
        """Forget a task's attempt; whatever it still says is not listened to."""
        if task.held:
            self._out.append(Release(task.id, task.attempt))
        task.attempt, task.held, task.report = 0, False, None

    def _sleep(self, task: TaskState, tries: int) -> None:
        """Pause before the next attempt, twice as long after each failure."""
        pause = task.options.backoff * 2 ** (tries - 1)
        if pause > 0:
            task.sleeping = True
            self._out.append(Wake(task.id, pause))


def _stands_on(task: TaskState, upstream: TaskState) -> bool:
    """Whether an attempt of a task cannot go on without the running attempt of another that comes before it."""
    if task.spec.stateful and task.spec.actor == upstream.spec.actor:
        return True
    # Effects, and consumers of what is replayed for its actor's state alone, read what is durable.
    return not task.options.external and not upstream.replayed


def _token(task: TaskState) -> str:
    return f"{task.id}#{task.attempt}"

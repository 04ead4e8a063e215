"""What the core does about effects: events in by hand, instructions out; nothing else is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import exoflow
from exoflow.codec import encode
from exoflow.dag import Node
from exoflow.doubts import MAX_CURES
from exoflow.effects import Verdict
from exoflow.errors import DefinitionError
from exoflow.messages import (
    Append,
    Appended,
    Complete,
    Event,
    Failed,
    Instruction,
    Lost,
    PersistFailed,
    Produced,
    Purpose,
    Report,
    Settled,
    Submit,
    Wake,
    Woken,
)
from exoflow.plan import build
from exoflow.records import Cleared, Committed, Finished, History, Intended, Record, Started, Status, Value
from exoflow.state import WorkflowState

OUTPUT = Value.inline(encode("sent"))


@exoflow.task
def draw() -> int:
    return 4


@exoflow.task(external=True)
def send(number: int = 0) -> str:
    return "sent"


def undo(output: Any, key: str) -> None:
    pass


def ask(key: str) -> Any:
    pass


IDEMPOTENT = send.options(idempotent=True, retries=1, backoff=0.0)
ROLLBACK = send.options(rollback=undo, retries=1, backoff=0.0)
RESOLVE = send.options(resolve=ask, retries=1, backoff=0.0)
BOTH = send.options(resolve=ask, rollback=undo)


class World:
    """The core, and everything it asked for."""

    def __init__(self, node: Node, records: Sequence[Record] = ()) -> None:
        history = History()
        history.add([Started("digest", "nonce", 0.0), *records])
        self.core = WorkflowState(build(node), history, _no_loops)
        self.submitted: list[Submit] = []
        self.records: list[Record] = []
        self.writing: Append | None = None
        self.end: Complete | None = None
        self.now = 100.0
        self.obey(self.core.start(self.now))

    def obey(self, instructions: Sequence[Instruction]) -> None:
        for order in instructions:
            match order:
                case Submit():
                    self.submitted.append(order)
                case Append():
                    assert self.writing is None
                    self.writing = order
                case Wake():
                    self.tell(Woken(order.task))
                case Complete():
                    self.end = order

    def tell(self, event: Event) -> None:
        self.now += 1.0
        self.obey(self.core.apply(event, self.now))
        self.core.check_invariants()

    def land(self) -> list[Record]:
        """Let the append in flight land; return its records."""
        assert self.writing is not None, "nothing is being written"
        landed, self.writing = list(self.writing.records), None
        self.records += landed
        self.tell(Appended(self.now))
        return landed

    @property
    def last(self) -> Submit:
        return self.submitted[-1]

    def produce(self, output: Value = OUTPUT) -> None:
        self.tell(Produced(self.last.spec.id, self.last.attempt, Report(output)))

    def lose(self) -> None:
        self.tell(Lost(self.last.spec.id, self.last.attempt, "killed"))

    def fail(self, *, not_done: bool = False, no_retry: bool = False) -> None:
        self.tell(Failed(self.last.spec.id, self.last.attempt, "Boom", not_done, no_retry))

    def settle(self, verdict: Verdict) -> None:
        report = Report(OUTPUT) if verdict is Verdict.DONE else None
        self.tell(Settled(self.last.spec.id, self.last.attempt, verdict, report))


def _no_loops(*_: Any) -> Any:
    raise AssertionError


def begun(task: Any = ROLLBACK) -> World:
    """Return a world in which the body of ``task`` runs."""
    world = World(task.bind())
    assert world.submitted == []
    assert [type(record) for record in world.land()] == [Intended]
    assert world.last.purpose is Purpose.BODY
    return world


def kinds(records: Sequence[Record]) -> list[type]:
    return [type(record) for record in records]


def test_the_intent_is_durable_before_the_body_and_says_what_is_sent():
    world = World(send.bind(7))
    assert world.submitted == []
    intent = world.land()[0]
    assert isinstance(intent, Intended)
    assert world.last.intent == intent
    assert world.last.key == intent.key
    assert intent.at == 100.0
    assert len(intent.digest) == 64
    other = World(send.bind(8)).writing
    assert other is not None
    assert other.records[0].digest != intent.digest  # type: ignore[union-attr]
    world.produce()
    assert kinds(world.land()) == [Committed]
    assert kinds(world.land()) == [Finished]
    assert world.end == Complete(Status.SUCCESSFUL)


def test_an_effect_waits_for_the_commit_of_everything_before_it():
    first = draw.options(checkpoint="none", name="first").bind()
    second = draw.options(checkpoint="none", name="second").bind()
    node = send.bind(first)
    second >> node
    world = World(node)
    for submit in list(world.submitted):
        assert submit.spec.id in ("first", "second")
        world.tell(Produced(submit.spec.id, submit.attempt, Report(Value.inline(encode(4)))))
    landed = world.land()
    if len(landed) == 1:
        landed += world.land()
    assert {record.task for record in landed if isinstance(record, Committed)} == {"first", "second"}
    assert kinds(world.land()) == [Intended]


def test_an_idempotent_effect_is_repeated_under_its_key():
    world = begun(IDEMPOTENT)
    key = world.last.key
    world.lose()
    world.fail()
    assert [submit.key for submit in world.submitted] == [key] * 3
    assert {submit.purpose for submit in world.submitted} == {Purpose.BODY}
    world.fail()
    assert kinds(world.land()) == [Finished]
    assert world.end is not None
    assert world.end.status is Status.FAILED


@pytest.mark.parametrize("trouble", ["lose", "fail"])
def test_rollback_undoes_under_the_old_key_and_the_body_gets_another(trouble):
    world = begun()
    key = world.last.key
    getattr(world, trouble)()
    assert (world.last.purpose, world.last.key) == (Purpose.ROLLBACK, key)
    assert len(world.submitted) == 2
    world.settle(Verdict.UNDONE)
    assert world.land() == [Cleared("send", 1)]
    intent = world.land()[0]
    assert isinstance(intent, Intended)
    assert intent.generation == 1
    assert (world.last.purpose, world.last.key) == (Purpose.BODY, intent.key)
    assert intent.key != key


def test_a_rollback_that_fails_is_repeated_and_then_fails_the_workflow_which_may_be_resumed():
    world = begun()
    key = world.last.key
    world.lose()
    for _ in range(MAX_CURES - 1):
        world.fail()
        assert (world.last.purpose, world.last.key) == (Purpose.ROLLBACK, key)
    world.fail()
    world.land()
    assert world.end is not None
    assert world.end.status is Status.FAILED
    assert "Boom" in (world.end.error or "")
    again = World(ROLLBACK.bind(), [record for record in world.records if not isinstance(record, Finished)])
    assert (again.last.purpose, again.last.key) == (Purpose.ROLLBACK, key)


@pytest.mark.parametrize("lost", [True, False])
def test_resolve_finds_the_effect_done(lost):
    world = begun(RESOLVE)
    if lost:
        world.lose()
    else:
        world = World(RESOLVE.bind(), world.records)
    assert world.last.purpose is Purpose.RESOLVE
    world.settle(Verdict.DONE)
    committed = world.land()[0]
    assert isinstance(committed, Committed)
    assert committed.output == OUTPUT
    world.land()
    assert world.end == Complete(Status.SUCCESSFUL)


def test_resolve_finds_the_effect_not_done_and_the_body_runs_under_the_same_key():
    world = begun(RESOLVE)
    key = world.last.key
    world.lose()
    world.settle(Verdict.NOT_DONE)
    assert world.land() == [Cleared("send", 0)]
    world.land()
    assert (world.last.purpose, world.last.key) == (Purpose.BODY, key)


def test_resolve_that_cannot_tell_leads_to_rollback_or_to_a_person():
    world = begun(BOTH)
    world.lose()
    world.settle(Verdict.UNKNOWN)
    assert world.last.purpose is Purpose.ROLLBACK
    world = begun(RESOLVE)
    world.lose()
    world.settle(Verdict.UNKNOWN)
    world.land()
    assert world.end is not None
    assert world.end.status is Status.IN_DOUBT


@pytest.mark.parametrize("trouble", ["lose", "fail"])
def test_without_a_cure_a_broken_off_effect_is_in_doubt_and_never_repeated(trouble):
    world = begun(send)
    getattr(world, trouble)()
    assert kinds(world.land()) == [Finished]
    assert world.end is not None
    assert (world.end.status, world.end.task) == (Status.IN_DOUBT, "send")
    again = World(send.bind(), [record for record in world.records if not isinstance(record, Finished)])
    again.land()
    assert again.end is not None
    assert again.end.status is Status.IN_DOUBT
    assert again.submitted == []


def test_a_body_that_vouches_for_no_effect_leaves_no_doubt():
    world = begun(send)
    world.fail(not_done=True)
    assert world.land() == [Cleared("send", 0)]
    world.land()
    assert world.end is not None
    assert world.end.status is Status.FAILED
    again = World(send.bind(), [record for record in world.records if not isinstance(record, Finished)])
    again.land()
    assert again.last.purpose is Purpose.BODY


def test_an_error_that_no_retry_helps_against_ends_the_workflow_at_once():
    """Whatever retries are left; and who resumes it tries again."""
    world = begun(send.options(idempotent=True, retries=9, backoff=60.0))
    world.fail(no_retry=True)
    world.land()
    assert world.end is not None
    assert (world.end.status, world.end.error) == (Status.FAILED, "Boom")
    again = World(send.options(idempotent=True).bind(), [each for each in world.records if isinstance(each, Intended)])
    assert again.last.key == world.last.key


def test_an_error_that_no_retry_helps_against_still_leaves_a_doubt_to_be_settled():
    world = begun(ROLLBACK.options(retries=9))
    world.fail(no_retry=True)
    assert world.last.purpose is Purpose.ROLLBACK
    world.settle(Verdict.UNDONE)
    world.land()
    world.land()
    assert world.end is not None
    assert world.end.status is Status.FAILED


@pytest.mark.parametrize("cure", [Verdict.NOT_DONE, Verdict.UNDONE])
def test_retries_are_counted_across_cures(cure):
    world = begun(RESOLVE if cure is Verdict.NOT_DONE else ROLLBACK)
    for _ in range(2):
        world.fail()
        world.settle(cure)
        world.land()
        if world.end is None and world.writing is not None:
            world.land()
    assert world.end is not None
    assert world.end.status is Status.FAILED
    assert [submit.purpose for submit in world.submitted].count(Purpose.BODY) == 2


def pair() -> World:
    """Return a world in which ``send`` and ``other`` run side by side, ``other`` doomed to fail."""

    @exoflow.task
    def join(*_: Any) -> None:
        pass

    return World(join.bind(send.bind(), draw.options(name="other").bind()))


def test_a_failure_elsewhere_lets_a_running_effect_finish():
    world = pair()
    world.land()
    sent = world.last
    other = next(submit for submit in world.submitted if submit.spec.id == "other")
    world.tell(Failed("other", other.attempt, "Boom"))
    assert world.writing is None
    world.tell(Produced("send", sent.attempt, Report(OUTPUT)))
    assert kinds(world.land()) == [Committed]
    assert kinds(world.land()) == [Finished]
    assert world.end is not None
    assert (world.end.status, world.end.task) == (Status.FAILED, "other")


def test_an_effect_announced_but_not_begun_when_the_workflow_fails_is_no_doubt():
    world = pair()
    other = next(submit for submit in world.submitted if submit.spec.id == "other")
    world.tell(Failed("other", other.attempt, "Boom"))
    assert kinds(world.land()) == [Intended]
    assert kinds(world.land()) == [Cleared, Finished]
    assert all(submit.spec.id == "other" for submit in world.submitted)


def test_an_effect_whose_output_cannot_be_made_durable_stays_in_doubt():
    world = begun(ROLLBACK.options(checkpoint="async"))
    world.tell(Produced("send", world.last.attempt, Report(None)))
    world.tell(PersistFailed("send", world.last.attempt, "disk full"))
    world.land()
    assert world.end is not None
    assert world.end.status is Status.FAILED
    assert world.core.history.in_doubt("send")


def test_an_external_call_of_a_durable_actor_must_be_idempotent():
    @exoflow.actor
    class Till:
        def pay(self) -> None: ...
        def capture(self) -> None: ...
        def restore(self, _: None) -> None: ...

    with pytest.raises(DefinitionError, match="must be idempotent=True"):
        Till.bind().pay.options(external=True).bind()
    Till.bind().pay.options(external=True, idempotent=True).bind()


def test_a_plan_keeps_its_cures():
    plan = build(BOTH.bind())
    again = type(plan).from_json(plan.to_json())
    assert again == plan
    assert again.tasks[0].options.resolve is not None
    assert {name for name, _ in again.code()} == {"send", "send's resolve", "send's rollback"}

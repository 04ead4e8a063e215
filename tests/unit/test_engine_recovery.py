"""What recovery runs again, against a brute-force search for the least that is enough."""

from __future__ import annotations

import dataclasses
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from exoflow.codec import encode
from exoflow.options import TaskOptions
from exoflow.plan import Input, TaskSpec
from exoflow.records import Committed, Value
from exoflow.recovery import Action, actions, restore_points

NOTHING = encode(None)
RUNNING = (Action.RUN, Action.REPLAY)


@dataclasses.dataclass(frozen=True)
class Case:
    """A small workflow, what is committed of it, and what is wanted."""

    tasks: tuple[TaskSpec, ...]
    committed: dict[str, Committed]
    wanted: frozenset[str]
    open_actors: frozenset[str]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    tasks: list[TaskSpec] = []
    committed: dict[str, Committed] = {}
    for number in range(draw(st.integers(1, 6))):
        name = f"t{number}"
        names = [task.id for task in tasks]
        inputs = draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else []
        after = draw(st.lists(st.sampled_from(names), max_size=1)) if names else []
        actor = draw(st.sampled_from([None, "a", "b"]))
        tasks.append(
            TaskSpec(
                name,
                NOTHING,
                tuple(Input(upstream) for upstream in inputs),
                tuple(after),
                TaskOptions(),
                actor=actor,
                stateful=actor is not None,
            )
        )
        if draw(st.booleans()):
            state = Value.inline(NOTHING) if actor is not None and draw(st.booleans()) else None
            committed[name] = Committed(name, 1, Value.inline(NOTHING), state=state, actor=actor)
    every = [task.id for task in tasks]
    wanted = draw(st.sets(st.sampled_from(every), min_size=1))
    return Case(tuple(tasks), committed, frozenset(wanted), frozenset(draw(st.sets(st.sampled_from("ab")))))


def enough(case: Case, ran: frozenset[str]) -> bool:
    """Whether running exactly these bodies yields all that is wanted and leaves open actors in their state."""
    there = ran | set(case.committed)
    if not case.wanted <= there:
        return False
    for task in case.tasks:
        needs = {given.task for given in task.inputs} | set(task.after)
        if task.id in ran and not needs <= there:
            return False
    for actor in "ab":
        calls = [task.id for task in case.tasks if task.actor == actor]
        for place, call in enumerate(calls):
            follows = calls[place + 1] in ran if place + 1 < len(calls) else actor in case.open_actors
            record = case.committed.get(call)
            durable = record is not None and record.state is not None
            if follows and call not in ran and not durable:
                return False
    return True


@settings(max_examples=300)
@given(cases())
def test_recovery_runs_the_least_that_is_enough(case):
    decided = actions(case.tasks, case.committed, case.wanted, case.open_actors)
    ran = frozenset(name for name, action in decided.items() if action in RUNNING)
    names = [task.id for task in case.tasks]
    subsets = (frozenset(each) for size in range(len(names) + 1) for each in itertools.combinations(names, size))
    sufficient = [subset for subset in subsets if enough(case, subset)]
    assert ran in sufficient
    assert all(ran <= subset for subset in sufficient)


@given(cases())
def test_a_committed_output_is_never_made_again(case):
    decided = actions(case.tasks, case.committed, case.wanted, case.open_actors)
    for task in case.tasks:
        record = case.committed.get(task.id)
        assert (decided[task.id] in (Action.DONE, Action.REPLAY)) == (record is not None)
        if decided[task.id] is Action.REPLAY:
            assert record is not None
            assert record.state is None
            assert task.stateful


@given(cases())
def test_an_actor_starts_from_the_state_right_before_its_first_call_that_runs(case):
    decided = actions(case.tasks, case.committed, case.wanted, case.open_actors)
    points = restore_points(case.tasks, decided, case.committed, {})
    for actor in "ab":
        calls = [task.id for task in case.tasks if task.actor == actor]
        first = next((place for place, call in enumerate(calls) if decided[call] in RUNNING), None)
        if first is None or first == 0:
            continue
        point = points[actor]
        assert point is not None
        assert point.task == calls[first - 1]
        assert point.state is not None

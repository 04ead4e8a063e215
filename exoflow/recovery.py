"""What a crash leaves to do: from the tasks of a plan and the records that count, which to run again. Pure.

The answer is found backwards, from what is still wanted to what it needs:

- a task that is not committed runs if it is wanted for itself or if some task that runs reads its output;
- a call of a durable actor also runs if a later call on the actor runs and this one left no durable state;
  a committed call is then *replayed*: its body runs again to rebuild the state, its output stands;
- what nobody needs is skipped.

An actor starts from the state of the last call before its first that runs.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence

from exoflow.plan import TaskSpec
from exoflow.records import Committed


class Action(enum.Enum):
    """What recovery does with a task."""

    DONE = "its output is committed and its body need not run"
    RUN = "its body runs"
    REPLAY = "its output is committed and its body runs again to rebuild the actor's state"
    SKIP = "nobody needs it"


def actions(
    tasks: Sequence[TaskSpec],
    committed: Mapping[str, Committed],
    wanted: Collection[str],
    open_actors: Collection[str],
) -> dict[str, Action]:
    """Decide for every task what recovery does with it.

    Parameters
    ----------
    tasks : sequence of TaskSpec
        In dependency order; calls of one actor in the order in which they are made.
    committed : mapping
        The records recovery may build on, by task id.
    wanted : collection of str
        Tasks that are wanted for themselves: the result, branches, the newest carry of an open loop.
    open_actors : collection of str
        Actors that further calls, not among ``tasks``, will be made on.
    """
    readers: dict[str, list[str]] = {}
    next_call: dict[str, str] = {}
    last_call: dict[str, str] = {}
    for task in tasks:
        for upstream in (*(given.task for given in task.inputs), *task.after):
            readers.setdefault(upstream, []).append(task.id)
        if task.actor is not None and task.stateful:
            if task.actor in last_call:
                next_call[last_call[task.actor]] = task.id
            last_call[task.actor] = task.id

    decided: dict[str, Action] = {}
    running = (Action.RUN, Action.REPLAY)
    for task in reversed(tasks):
        record = committed.get(task.id)
        read = task.id in wanted or any(decided[reader] in running for reader in readers.get(task.id, ()))
        if task.stateful and (record is None or record.state is None):
            follower = next_call.get(task.id)
            continues = decided[follower] in running if follower else task.actor in open_actors
            if continues and record is not None:
                decided[task.id] = Action.REPLAY
                continue
            read = read or continues
        if record is not None:
            decided[task.id] = Action.DONE
        else:
            decided[task.id] = Action.RUN if read else Action.SKIP
    return decided


def restore_points(
    tasks: Sequence[TaskSpec],
    decided: Mapping[str, Action],
    committed: Mapping[str, Committed],
    retired: Mapping[str, Committed],
) -> dict[str, Committed | None]:
    """Return, by durable actor, the record whose state it starts from; None for a fresh instance.

    ``retired`` holds the newest state of actors whose earlier calls have left the journal.
    """
    points: dict[str, Committed | None] = {}
    closed: set[str] = set()
    for task in tasks:
        if task.actor is None or not task.stateful or task.actor in closed:
            continue
        if decided[task.id] is Action.DONE:
            points[task.actor] = committed[task.id]
        elif decided[task.id] is Action.SKIP:
            points.setdefault(task.actor, retired.get(task.actor))
        else:
            points.setdefault(task.actor, retired.get(task.actor))
            closed.add(task.actor)
    return points

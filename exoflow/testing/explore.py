"""Small workflows, exhaustively: every one of them, stopped at every point of its write log.

At each point the owner dies; of the writes in flight there any subset lands, and of the effects that began
there any number has happened. From each of these states another owner must bring the workflow to its end.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from exoflow.dag import Node, Task
from exoflow.plan import Plan, build
from exoflow.records import Status
from exoflow.state import WorkflowState
from exoflow.testing.outside import Event, outside
from exoflow.testing.simulation import Simulation
from exoflow.testing.workflows import EFFECTS, LARGE, MODES, draw, join, visit
from exoflow.testing.world import Violation
from exoflow.testing.writelog import crash_states

_ENDS = (Status.SUCCESSFUL, Status.IN_DOUBT)


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """One way to annotate a task."""

    task: Task[..., Any]
    mode: str
    size: int = 0

    def bind(self, name: str, inputs: Sequence[Node]) -> Node:
        """Return a node of this kind."""
        return self.task.options(checkpoint=self.mode, name=name).bind(self.size, *inputs)


KINDS = (
    *(Kind(task, mode) for task in (join, draw) for mode in MODES),
    Kind(draw, "async", LARGE),
    *(Kind(task, "async") for task in EFFECTS),
    Kind(EFFECTS[0], "sync"),
    # They raise at every execution, with another error each time.
    *(Kind(visit.options(catch_exceptions=True), mode) for mode in ("none", "async")),
)


def small_plans(tasks: int) -> Iterator[tuple[str, Plan]]:
    """Yield every workflow of so many tasks: of each kind, each reading any of those before it, then joined.

    The last reads the one before it, and the result all that nobody else reads.
    """
    for kinds in itertools.product(KINDS, repeat=tasks):
        for reads in itertools.product(*(range(2**number) for number in range(tasks))):
            nodes: list[Node] = []
            read: set[int] = set()
            for number, (kind, mask) in enumerate(zip(kinds, reads, strict=True)):
                chosen = [each for each in range(number) if mask >> each & 1]
                read.update(chosen)
                nodes.append(kind.bind(f"t{number}", [nodes[each] for each in chosen]))
            loose = [node for number, node in enumerate(nodes) if number not in read]
            shown = [f"{kind.task.__name__}({kind.mode},{kind.size})" for kind in kinds]
            yield f"{' '.join(shown)} reads {reads}", build(join.options(checkpoint="none").bind(0, *loose))


def explore(
    plan: Plan, *, seed: int = 0, fold_every: int = 2, core: type[WorkflowState] = WorkflowState, max_in_flight: int = 2
) -> int:
    """Run a workflow, then resume it from every state that a crash may leave; return how many these were.

    Raises
    ------
    Violation
        When one of them does not come to a good end.
    """
    outside.reset(random.Random(seed), 0.0)
    outside.closed = True
    first = Simulation(plan, seed=seed, fold_every=fold_every, core=core)
    outside.log = first.log
    _live(first, "undisturbed")
    events = list(outside.events)
    states = 0
    for point, landed, objects in crash_states(first.log, max_in_flight=max_in_flight):
        for happened in _happened(events, point):
            outside.replay(happened)
            again = Simulation(plan, objects, seed=seed + 1, fold_every=fold_every, core=core)
            outside.log = again.log
            _live(again, f"stopped at {point}, with {landed} and {len(happened)} effects")
            states += 1
    return states


def _live(simulation: Simulation, where: str) -> None:
    try:
        status = simulation.run()
        if status not in _ENDS:
            assert simulation.end is not None
            message = f"it ends {status}: {simulation.end.error}"
            raise Violation(message)
        simulation.verify()
        simulation.verify_effects()
    except Exception as error:
        message = f"{where}: {error}"
        raise Violation(message) from error


def _happened(events: Sequence[Event], point: int) -> Iterator[Sequence[Event]]:
    """Yield what may have happened outside when the write log had come to a point."""
    certain = sum(event.at < point for event in events)
    possible = sum(event.at <= point for event in events)
    for count in range(certain, possible + 1):
        yield events[:count]

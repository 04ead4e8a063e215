"""What readers see of a workflow: iterations of a loop with their tasks' outputs and times."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from exoflow.blobs import Blobs
from exoflow.journal import workflow_folder
from exoflow.records import Committed

_NAME = re.compile(r"(?:.*/)?(?P<base>.*)\[\d+\]")


@dataclasses.dataclass(frozen=True, slots=True)
class TaskView:
    """A committed task. Times are Unix seconds; ``committed_at`` is None where no later object tells it."""

    output: Any
    state: Any
    started_at: float
    finished_at: float
    committed_at: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class IterationView:
    """One iteration of a loop: its committed tasks by name, without the ``[i]``."""

    number: int
    tasks: Mapping[str, TaskView]


def iteration_views(records: Iterable[Committed], blobs: Blobs) -> list[IterationView]:
    """Group records of one loop by iteration, in order."""
    grouped: dict[int, dict[str, TaskView]] = {}
    for record in records:
        match = _NAME.fullmatch(record.task)
        if match is not None:
            grouped.setdefault(record.iteration, {})[match["base"]] = task_view(record, blobs)
    return [IterationView(number, grouped[number]) for number in sorted(grouped)]


def task_view(record: Committed, blobs: Blobs) -> TaskView:
    """Return a record in a reader's terms."""
    return TaskView(
        None if record.output is None else blobs.load(record.output),
        None if record.state is None else blobs.load(record.state),
        record.started_at,
        record.finished_at,
        record.committed_at,
    )


def archive_folder(workflow_id: str, loop: str) -> str:
    """Return the folder of a loop's archive objects."""
    return f"{workflow_folder(workflow_id)}/archive/{loop}"


def archive_key(workflow_id: str, loop: str, first: int, last: int) -> str:
    """Return the key of the archive object of iterations ``first`` to ``last``."""
    return f"{archive_folder(workflow_id, loop)}/{first:012d}-{last:012d}"


def archive_tiles(keys: Iterable[str], last: int | None) -> list[str]:
    """Return those archive objects that together hold every iteration up to ``last`` once, in order.

    An owner that died between an archive object and its fold leaves one that overlaps with those of its
    successor; where they end alike they hold the same. None: up to the last that was archived.
    """
    ending: dict[int, tuple[int, str]] = {}
    for key in keys:
        first, _, end = key.rsplit("/", 1)[1].partition("-")
        ending[int(end)] = (int(first), key)
    tiles: list[str] = []
    following = max(ending, default=0) if last is None else last
    while following in ending:
        first_of, key = ending[following]
        tiles.append(key)
        following = first_of - 1
    return tiles[::-1]

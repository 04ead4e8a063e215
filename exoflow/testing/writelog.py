"""The write log of a simulated store, and every state of the store that a crash may leave behind."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the write log: a write begins, lands or is dropped, or a key is deleted."""

    kind: str
    write: int
    key: str
    data: bytes = b""


def crash_states(
    log: Sequence[LogEntry], objects: Mapping[str, bytes] | None = None, *, max_in_flight: int = 6
) -> Iterator[tuple[int, tuple[str, ...], dict[str, bytes]]]:
    """Yield every state of the store that a crash of the only owner may leave behind.

    All that had landed is there, and any subset of what was in flight.

    Parameters
    ----------
    log : sequence of LogEntry
        Of a simulation that began with ``objects`` in its store.
    max_in_flight : int
        Consider the subsets of at most so many writes.

    Yields
    ------
    point : int
        Number of log entries that had happened.
    landed : tuple of str
        Keys of the writes in flight that landed all the same.
    objects : dict
        The store's content.
    """
    kept = dict(objects or {})
    flying: dict[int, LogEntry] = {}
    for point in range(len(log) + 1):
        if point:
            _happen(log[point - 1], kept, flying)
        candidates = list(flying.values())[:max_in_flight]
        for size in range(len(candidates) + 1):
            for subset in itertools.combinations(candidates, size):
                landed = {entry.key: entry.data for entry in subset}
                yield point, tuple(landed), {**kept, **landed}


def _happen(entry: LogEntry, kept: dict[str, bytes], flying: dict[int, LogEntry]) -> None:
    match entry.kind:
        case "begin":
            flying[entry.write] = entry
        case "land":
            kept[entry.key] = flying.pop(entry.write).data
        case "drop":
            flying.pop(entry.write)
        case "delete":
            kept.pop(entry.key, None)

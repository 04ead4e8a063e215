"""The actor that holds a share of the graph: applies epochs, and makes its changes durable.

A snapshot is a manifest, a short list of Parquet objects that add up to the state. Each checkpoint adds the
changes since the one before; objects are merged beside the stream, so that there are never many.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import exoflow
from graph_stream import inline, memory, ordering, publishing, snapshot
from graph_stream.ahead import one_ahead
from graph_stream.changed import Changed
from graph_stream.compaction import Compaction
from graph_stream.config import RunConfig
from graph_stream.graph import PartitionState, warm_up
from graph_stream.ownership import virtual_range
from graph_stream.snapshot import ALL_SHARES, Changes, CorruptSnapshot, Entry, Manifest, StoredChanges, folded
from graph_stream.travelling import Records

ReadBlob = Callable[[exoflow.Blob], bytes]

SWITCH_SECONDS = 0.0003
"""How long a thread of a partition may keep the interpreter while another waits for it."""


@dataclasses.dataclass(frozen=True)
class _Captured:
    """What a checkpoint has to write: changes of epochs ``first`` to ``last``, or with ``first`` 1 all."""

    first_epoch: int
    last_epoch: int
    changes: tuple[Changes, ...]
    lanes: tuple[int, ...]
    """Two lane sums for each ranking."""
    changed: Mapping[int, Changed]
    """What the last epoch changed in the rankings that are published."""
    live_rows: int
    """Rows of the whole state."""
    last: bool
    """Whether no other will follow."""


@exoflow.actor(deterministic=True, num_cpus=0)
class Partition:
    """One member of the online tier."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = RunConfig.from_json(config)
        context = exoflow.context()
        self._state = PartitionState(
            self._config.parameters(),
            context.member,
            context.members,
            self._config.threads,
            context.hints.get("execution", "auto"),
            watched=publishing.watched(self._config),
        )
        # In mode none no delta is ever written, so none is kept; a forced snapshot takes everything.
        self._keeps_deltas = self._config.checkpoint != "none"
        self._uncaptured: list[Changes] = []
        self._captured_epoch = 0
        self._manifest = Manifest()
        self._compaction = Compaction(functools.partial(self._merge, context))
        self._behind = inline.Behind(functools.partial(context.write_blob, suffix=".parquet"))
        self._budget = memory.Budget(context.hints.get(memory.HINT), context.member, context.members)
        self._last = False
        exoflow.take_precedence()
        # A round of the computation takes less than the 5 ms that Python lets a thread behind it go on.
        sys.setswitchinterval(SWITCH_SECONDS)
        warm_up()
        ordering.warm_up()

    def apply(self, records: Records) -> dict[str, Any]:
        """Bring the ranking up to date with an epoch's records.

        Returns
        -------
        dict
            JSON-able: the member's `EpochResult` for each ranking, the times of the epoch so far (Unix
            seconds), and the memory of the process (bytes).

        Raises
        ------
        MemoryLimitReached
            When the graph takes all the memory it may; the epoch was not begun.
        """
        started = time.time()
        context = exoflow.context()
        self._budget.before_epoch(records.epoch, self._state.edges)
        columns = records.src, records.dst, records.op
        self._state.apply(records.epoch, *columns, context.exchange, records.times)
        if self._keeps_deltas:
            self._uncaptured.append(self._state.capture())
        # Epochs that were begun behind the last one, before anybody knew that it is, have nothing to add.
        if records.last and not self._last:
            context.request_checkpoint()
        self._last = records.last
        return {
            "memory": memory.measured()._asdict(),
            "results": [dataclasses.asdict(result) for result in self._state.results],
            "times": {
                "read_started": records.read_started,
                "read_seconds": records.read_seconds,
                "scheduled": records.scheduled_time,
                "online_started": started,
                "online_ended": time.time(),
            },
        }

    def ready(self) -> None:
        """Return once this member has started."""

    def capture(self) -> _Captured:
        """Return what changed since the last capture; the arrays are never written to again."""
        lanes = self._lanes()
        if not self._keeps_deltas:
            return _Captured(
                1, self._state.epoch, (self._state.capture_all(),), lanes, {}, self._state.rows, self._last
            )
        first, self._captured_epoch = self._captured_epoch + 1, self._state.epoch
        changes, self._uncaptured = tuple(self._uncaptured), []
        return _Captured(first, self._state.epoch, changes, lanes, self._state.changed, self._state.rows, self._last)

    def persist(self, captured: _Captured) -> dict[str, Any]:
        """Write the captured changes as one object and return the manifest; runs behind later calls."""
        context = exoflow.context()
        watermark = snapshot.watermark_of(captured.changes)
        changes = snapshot.fold(captured.changes, base=False)
        epochs = captured.first_epoch, captured.last_epoch
        rows, data = snapshot.encode_shares([changes], *epochs, watermark)
        settled, written = self._behind.settle(self._manifest)
        # In sync this commit is waited for.
        if self._config.checkpoint == "sync" and len(data) <= inline.INLINE_BYTES and not captured.last:
            entry = inline.inline_entry(*epochs, rows, data)
            self._behind.begin(entry)
        else:
            entry = Entry(*epochs, rows, context.write_blob(data, ".parquet"))
        if self._keeps_deltas:
            self._manifest = self._compaction.next(settled.append(entry, captured.live_rows), settle=captured.last)
        else:
            self._manifest = Manifest((entry,))
        shares = publishing.encode_shares(self._config, captured.changed)
        state = {
            "epoch": captured.last_epoch,
            "lanes": list(captured.lanes),
            "written_bytes": len(data),
            "entries": self._manifest.to_json(),
        }
        if written:
            state["written"] = written
        if shares:
            state["shares"] = {str(ranking): context.write_blob(data) for ranking, data in shares.items()}
        return state

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Load this member's share of a snapshot that any number of members has made.

        Raises
        ------
        CorruptSnapshot
            When what was loaded is not what was captured.
        """
        context = exoflow.context()
        share = virtual_range(context.member, context.members)
        changes = load(states, context.read_blob, share)
        epoch = states[0]["epoch"]
        self._state.restore(one_ahead(changes), context.exchange, epoch)
        self._captured_epoch = epoch
        if len(states) == context.members:
            self._check(states[context.member])
            self._manifest = Manifest.from_json(states[context.member]["entries"])
        else:
            # Shares have moved: this member's history begins anew, with a base of its own.
            self._captured_epoch = 0
            self._uncaptured = [self._state.capture_all()]

    def _merge(self, context: Any, entries: tuple[Entry, ...]) -> Entry:
        """Merge adjacent objects into one."""
        first_epoch, last_epoch = entries[0].first_epoch, entries[-1].last_epoch
        parts = _open(entries, context.read_blob)
        watermark = snapshot.watermark_of(part.header for part in parts)

        def shares() -> Iterator[ordering.Ordered]:
            for share in folded(parts, base=first_epoch == 1):
                yield share
                self._compaction.rest()

        rows, data = snapshot.encode_shares(shares(), first_epoch, last_epoch, watermark)
        return Entry(first_epoch, last_epoch, rows, context.write_blob(data, ".parquet"))

    def _lanes(self) -> tuple[int, ...]:
        return tuple(lane for result in self._state.results for lane in (result.lane_low, result.lane_high))

    def _check(self, state: dict[str, Any]) -> None:
        if list(self._lanes()) != state["lanes"]:
            message = (
                f"the snapshot of epoch {state['epoch']} does not add up to the state it was taken of; "
                "resume from a backup of the store, or start a new run"
            )
            raise CorruptSnapshot(message)


def load(states: Sequence[dict[str, Any]], read_blob: ReadBlob, share: range = ALL_SHARES) -> Iterator[Changes]:
    """Return the whole state (or the share of some virtual partitions) that members' manifests add up to, in parts."""
    parts = [each for state in states for each in _open(_entries(state), read_blob)]
    watermark = snapshot.watermark_of(part.header for part in parts)
    for found in folded(parts, base=True, owned=share):
        yield Changes.of_rows(*found.rows, watermark)


def _entries(state: dict[str, Any]) -> tuple[Entry, ...]:
    return Manifest.from_json(state["entries"]).entries


def _open(entries: Sequence[Entry], read_blob: ReadBlob) -> list[StoredChanges]:
    return [StoredChanges(inline.read(entry, read_blob)) for entry in entries]

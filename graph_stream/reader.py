"""The actor that reads: cuts the sources into epochs ahead of the computation, and hands out their records.

Its state is a position, and what is over of the sources that are queues. Cutting moves it on and is a step of its
history, which may wait for records as long as none come; fetching an epoch's records only reads, from memory if the
epoch was just cut, else again from the sources, what the cut says was taken of them. Fetches are queries: they run in a
thread of their own beside the cuts, and with sources of their own.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import exoflow
import ingest
from graph_stream import quarantine, sources
from graph_stream.config import RunConfig
from graph_stream.durable_register import DurableRegister
from graph_stream.errors import TooManyBadRecords
from graph_stream.eventtime import NEVER, EventTimes, advanced, raised
from graph_stream.pacing import Pacing
from graph_stream.travelling import Records
from ingest import EpochBatch, EpochReader, Position, Queue, Tap

RATE_HINT = "records_per_second"
"""A hint: the pace of this owner, in place of the recorded one."""


class CuttingReader:
    """Reads the sources of one run; see `Reader`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = RunConfig.from_json(config)
        context = exoflow.context()
        self._tell = context.tell
        self._rate: float | None = context.hints.get(RATE_HINT, self._config.rate)
        target = self._config.target_staleness
        self._pacing = None if target is None else Pacing(target, time.time)
        opened = sources.opened(self._config, self._tell)
        self._reader = EpochReader(
            opened,
            self._config.epoch_edges,
            epoch_seconds=self._config.epoch_seconds,
            event_seconds=self._config.epoch_event_seconds,
            idle_seconds=self._config.idle_seconds,
            closing=self._pacing,
            tap=None if self._pacing is None or self._rate is None else Tap(self._rate),
        )
        self._over = {
            source.uri: DurableRegister(source.register, context.write_blob)
            for source in opened
            if isinstance(source, Queue)
        }
        self._again: EpochReader | None = None
        self._position: Position | None = None
        self._rejected = 0
        self._watermark = NEVER
        self._ready: dict[int, tuple[EpochBatch | ingest.Records, float, float]] = {}
        self._schedule: _Schedule | None = None

    def cut(self, epoch: int, *ready: object) -> dict[str, Any]:
        """Read the next epoch; ``ready`` is nothing but a reason to wait before the first one.

        Returns
        -------
        dict
            JSON-able: what the epoch takes of each split, how many records it has and was refused, whether it
            is the last, when its schedule closed it (None where that did not), and its offsets for display; with
            bad records the name of the object that holds them; with event time its watermark, which is what the
            epochs before it amount to; with a target of staleness, since when its oldest record could be read.

        Raises
        ------
        TooManyBadRecords
            When the run's bad records pass ``--max-bad-records``.
        SourceError
            When a source cannot be read; nothing is lost, the epoch was not cut.
        """
        began = time.time()
        batch = self._numbered(self._reader.read(self._reader.start() if self._position is None else self._position))
        # Behind the cut nobody needs the bad records: they do not travel with the good ones.
        self._ready[epoch] = (dataclasses.replace(batch, bad=[]), began, time.time())
        since = {}
        if self._pacing is not None:
            self._pacing.closed(epoch, len(batch.src) + len(batch.bad))
            since = {"since": batch.since}
        self._position = batch.end
        self._rejected += len(batch.bad)
        kept = _put_into_quarantine(epoch, batch) if batch.bad else {}
        self._refuse_too_many(epoch, batch)
        watermark = self._event_time_state()
        if self._config.epoch_event_seconds is None:
            self._watermark = advanced(self._watermark, batch.time)
        else:
            self._watermark = raised(self._watermark, batch.watermark)
        return {
            "ranges": batch.ranges,
            "due": batch.due,
            "records": len(batch.src),
            "rejected": len(batch.bad),
            "last": batch.last or epoch == self._config.epochs,
            "offsets": batch.offsets,
            **since,
            **kept,
            **watermark,
        }

    def answered(self, row: dict[str, Any]) -> None:
        """Learn when an epoch has been answered: so large the next ones may be."""
        if self._pacing is not None:
            # In sync an answer is out when it is committed, which is when this is called.
            in_sync = self._config.checkpoint == "sync"
            self._pacing.answered(row["epoch"], time.time() if in_sync else row["published_at"])

    def fetch(self, epoch: int, cut: dict[str, Any]) -> Records:
        """Return an epoch's records, at its scheduled time if the run is paced."""
        ready = self._ready.pop(epoch, None)
        if ready is None:
            began = time.time()
            if self._again is None:
                self._again = EpochReader(sources.opened(self._config, self._tell), self._config.epoch_edges)
            ready = (self._known(sources.records_of(self._again, cut), epoch, cut), began, time.time())
        batch, began, ended = ready
        scheduled = ended if cut.get("due") is None else cut["due"]
        if self._rate is not None and self._pacing is None:
            if self._schedule is None:
                self._schedule = _Schedule(self._rate, self._config.epoch_edges, epoch, time.time())
            scheduled = self._schedule.close_of(epoch, cut["records"])
            # Waiting is what pacing means; an epoch that is late is not delayed further.
            time.sleep(max(0.0, scheduled - time.time()))
        times = EventTimes.of_epoch(batch.time, cut)
        columns = batch.src, batch.dst, batch.op
        return Records(epoch, cut["last"], *columns, began, ended - began, scheduled, times)

    def capture(self) -> dict[str, Any]:
        """Return the position after the newest cut, what is over of queues, and with event time the watermark there."""
        over = {uri: register.capture() for uri, register in self._over.items()}
        state = {"position": self._position, "rejected": self._rejected, **self._event_time_state()}
        return {**state, "over": over} if over else state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a captured position."""
        self._position, self._rejected = state["position"], state["rejected"]
        self._watermark = state.get("watermark", NEVER)
        for uri, captured in state.get("over", {}).items():
            self._over[uri].restore(captured, exoflow.context().read_blob)

    def _numbered(self, batch: EpochBatch) -> EpochBatch:
        """Return an epoch that is cut for the first time with the numbers by which the graph knows its vertices."""
        return batch

    def _known(
        self, records: EpochBatch | ingest.Records, epoch: int, cut: dict[str, Any]
    ) -> EpochBatch | ingest.Records:
        """Return the records of an epoch that was cut before with the same numbers as then."""
        return records

    def _event_time_state(self) -> dict[str, int]:
        return {"watermark": self._watermark} if self._config.has_event_time else {}

    def _refuse_too_many(self, epoch: int, batch: EpochBatch) -> None:
        limit = self._config.max_bad_records
        if limit is None or self._rejected <= limit:
            return
        first = batch.bad[0]
        message = (
            f"{self._rejected} records could not be read, more than --max-bad-records {limit}; in epoch {epoch} "
            f"the first is at {first.split}, offset {first.offset}: {first.reason}"
        )
        raise TooManyBadRecords(message)


@exoflow.actor(deterministic=True, num_cpus=0)
class Reader(CuttingReader):
    """Reads the sources of one run, whose ids are numbers; see `graph_stream.naming` for names."""


def _put_into_quarantine(epoch: int, batch: EpochBatch) -> dict[str, str]:
    data = quarantine.encode(batch.bad)
    name = quarantine.name_of(epoch, data)
    exoflow.context().write_object(name, data)
    return {"quarantine": name}


class _Schedule:
    """An open loop: epochs close when so many records are due, whether or not anybody keeps up.

    A function of the epoch's number, for fetches may come in any order.
    """

    def __init__(self, rate: float, epoch_edges: int, first_epoch: int, started: float) -> None:
        self._rate = rate
        self._epoch_edges = epoch_edges
        self._first_epoch = first_epoch
        self._started = started

    def close_of(self, epoch: int, records: int) -> float:
        due = (epoch - self._first_epoch) * self._epoch_edges + records
        return self._started + due / self._rate

"""The reader of a run whose ids are names: it gives each name a number, by which the graph knows the vertex.

Numbers follow from the records in the order of the cuts alone: who comes first gets the next one. So they are the
same on any number of partitions, and after any crash once a cut is committed. The dictionary is part of the
reader's state; a cut's checkpoint writes the names that are new.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any, TypeVar

import numpy as np

import exoflow
import ingest
from graph_stream.compaction import Compaction
from graph_stream.config import RunConfig
from graph_stream.namestore import Dictionary, Part, check_digest, encode, merged, stored_names
from graph_stream.nametable import NameTable, warm_up
from graph_stream.reader import CuttingReader
from graph_stream.snapshot import CorruptSnapshot
from ingest import EpochBatch, Names, SourceError

REPLAY_SECONDS = 600.0
"""How long a fetch waits for cuts to be made again."""

Batch = TypeVar("Batch", bound=EpochBatch | ingest.Records)


@dataclasses.dataclass(frozen=True)
class _Captured:
    """A state of the reader: what is small, and the names that a checkpoint may have to write."""

    state: dict[str, Any]
    epoch: int
    names: int
    digest: int
    last: bool


@exoflow.actor(deterministic=True, num_cpus=0)
class NamingReader(CuttingReader):
    """Reads the sources of one run, and numbers their names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._table = NameTable()
        weights = self._config.named_weights()
        if weights is not None:
            self._table.extend(weights.names)
        self._epoch = 0
        self._cut = threading.Condition()
        self._dictionary = Dictionary()
        self._compaction = Compaction(functools.partial(_merge, exoflow.context()))
        self._last = False
        warm_up()

    def cut(self, epoch: int, *ready: object) -> dict[str, Any]:
        """Read the next epoch, as `Reader.cut`; besides, ``names`` is how many there are after it."""
        cut = super().cut(epoch, *ready)
        self._last = cut["last"]
        if self._last:
            exoflow.context().request_checkpoint()  # in mode none, too, scores are asked for in names
        with self._cut:
            self._epoch = epoch
            self._cut.notify_all()
        return {**cut, "names": len(self._table)}

    def _numbered(self, batch: EpochBatch) -> EpochBatch:
        return with_numbers(batch, self._table.number(*_columns(batch)))

    def _known(
        self, records: EpochBatch | ingest.Records, epoch: int, cut: dict[str, Any]
    ) -> EpochBatch | ingest.Records:
        """Return records that were cut before with the numbers of their names.

        Fetching is no step of the history, so it may come before the cut is made again, where the newest state of
        the reader was damaged: then it waits.

        Raises
        ------
        SourceError
            When a name was not among them then.
        CorruptSnapshot
            When nobody makes the cut again.
        """
        with self._cut:
            if not self._cut.wait_for(lambda: self._epoch >= epoch, REPLAY_SECONDS):
                message = f"the names of epoch {epoch} are damaged and were not made again; restore them from a backup"
                raise CorruptSnapshot(message)
        return with_known_numbers(records, self._table, cut["names"], self._config)

    def capture(self) -> Any:
        """Return position and size of the dictionary; what names there are never changes."""
        return _Captured(super().capture(), self._epoch, len(self._table), self._table.names.digest, self._last)

    def persist(self, captured: _Captured) -> dict[str, Any]:
        """Write the names that are new, and return the state; runs behind later calls."""
        first, count = len(self._dictionary), captured.names - len(self._dictionary)
        if count:
            data = encode(self._table.names.stretch(first, captured.names), first)
            part = Part(first, count, exoflow.context().write_blob(data, ".parquet"))
            self._dictionary = self._dictionary.append(part, captured.digest)
        self._dictionary = self._compaction.next(self._dictionary, settle=captured.last)
        return {**captured.state, "epoch": captured.epoch, "names": self._dictionary.to_json()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a captured position with the names that were known there.

        Raises
        ------
        exoflow.CorruptRecord
            When an object is damaged, and cutting again from an older state gives the same epochs.
        CorruptSnapshot
            When the names are not those that were captured.
        """
        super().restore(state)
        self._epoch = state["epoch"]
        self._dictionary = Dictionary.from_json(state["names"])
        try:
            self._table = load_table(self._dictionary, exoflow.context().read_blob)
        except exoflow.CorruptRecord as damage:
            if self._reader.repeats:
                raise
            # An older state would do only if the cuts since came out as they were committed.
            raise CorruptSnapshot(str(damage)) from damage


def load_table(dictionary: Dictionary, read_blob: Any) -> NameTable:
    """Return a stored dictionary with an index.

    Raises
    ------
    CorruptSnapshot
        When a name has two numbers, or the names are not those that were written.
    """
    table = NameTable()
    for names in stored_names(dictionary, read_blob):
        if not table.extend(names):
            message = f"a name among those up to number {len(table)} has two numbers; resume from a backup of the store"
            raise CorruptSnapshot(message)
    check_digest(table.names, dictionary)
    return table


def with_known_numbers(records: Batch, table: NameTable, count: int, config: RunConfig) -> Batch:
    """Return records of an epoch that was cut before with the numbers of their names.

    Parameters
    ----------
    records : EpochBatch or ingest.Records
        With names.
    table : NameTable
        The run's.
    count : int
        How many names there were after the cut.
    config : RunConfig
        The run's, for the error.

    Raises
    ------
    SourceError
        When a name was not among them.
    """
    numbers = table.find(*_columns(records))
    if any(np.any((each < 0) | (each >= count)) for each in numbers):
        detail = "names are there that were not when it was read before: it has changed since; put it right and resume"
        raise SourceError(", ".join(config.sources), detail)
    return with_numbers(records, numbers)


def with_numbers(records: Batch, numbers: list[Any]) -> Batch:
    """Return records with numbers in the place of their names."""
    return dataclasses.replace(records, src=numbers[0], dst=numbers[1])


def _columns(records: EpochBatch | ingest.Records) -> tuple[Names, Names]:
    # No records at all are no names, of whichever kind their columns are.
    none = ingest.column_of(np.empty(0, np.uint8), np.zeros(1, np.int64))
    return (records.src, records.dst) if len(records.src) else (none, none)


def _merge(context: Any, parts: tuple[Part, ...]) -> Part:
    """Merge adjacent objects into one."""
    count, data = merged(parts, context.read_blob)
    return Part(parts[0].first, count, context.write_blob(data, ".parquet"))

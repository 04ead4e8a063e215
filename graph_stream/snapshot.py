"""Snapshots: what an epoch changed, as one Parquet object; folding and finding them again.

A *delta* holds the edges inserted and deleted and the contributions changed over a range of epochs, by
external id; a *base* holds the whole state, as a delta from nothing. Influence is never stored: it follows
from both (docs/design/0003-online-state.md). A snapshot at an epoch is a base and the deltas after it, listed in a
:class:`Manifest`.

Layout: columns ``kind`` (int8: +1 inserted edge, -1 deleted edge, 0 contribution of the run's first ranking,
r + 1 of its r-th further one), ``key`` (int64: follower, or vertex) and ``value`` (int64: followed, or
``c``), sorted by virtual partition of the key, then edges before contributions, then key, value. The schema's
metadata tells format version, epochs, that this is the order, and where each virtual partition starts, so that a member
reads its share only.

With event time there is a column ``time`` (int64, microseconds) more, and the metadata tell the watermark. An
inserted edge has its time, and is there again when that moves; a deleted one has its tombstone's, null where nothing
is known of it any more; contributions have null. A base keeps tombstones, which are no edges to who reads the kind.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from graph_stream.adjacency import Longs
from graph_stream.algorithms import FORMAT_VERSION
from graph_stream.errors import GraphStreamError
from graph_stream.eventtime import NEVER
from graph_stream.ordering import NO_TIMES, Ordered, Rows, in_order, merged, ordered
from graph_stream.ownership import VIRTUAL_PARTITIONS, virtual_partition

ROW_GROUP_ROWS = 1 << 15
"""Most rows that are read and decompressed together."""
SHARE_ROWS = 1 << 18
"""Rows of all objects together that are folded at a time, about."""
FANOUT = 8
"""Objects merged at a time: with more, rows are written again less often, and manifests and merges are longer."""
ALL_SHARES = range(VIRTUAL_PARTITIONS)
COMPRESSION = "lz4"
"""Half zstd's time to write and to read, for a few percent more bytes (docs/performance.md)."""

_METADATA_KEY = b"graph_stream.snapshot"
_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("key", pa.int64(), nullable=False),
        pa.field("value", pa.int64(), nullable=False),
    ]
)
_TIMED_SCHEMA = _SCHEMA.append(pa.field("time", pa.int64()))


class CorruptSnapshot(GraphStreamError):
    """Bytes that are no snapshot this release can read."""


_NO_LONGS = np.empty(0, np.int64)


class Contributions(NamedTuple):
    """Contributions of vertices in one or several rankings; shape (v,) each."""

    vertex: Longs
    contribution: Longs
    ranking: Longs

    @classmethod
    def of_rankings(cls, parts: Sequence[tuple[Longs, Longs]]) -> Contributions:
        """Return the contributions of all rankings, given each one's vertices and contributions."""
        numbers = [np.full(len(vertex), ranking) for ranking, (vertex, _) in enumerate(parts)]
        columns = ([part[0] for part in parts], [part[1] for part in parts], numbers)
        return cls(*(np.concatenate([_NO_LONGS, *column]) for column in columns))


@dataclass(frozen=True)
class Changes:
    """Net changes over some epochs, by external id; immutable.

    All arrays are int64. An edge occurs at most once, and so does a vertex in a ranking. With event time an edge is
    also there if only its time is new, or that nothing is known of it any more.
    """

    inserted_src: Longs
    """Followers of inserted edges; shape (i,)."""
    inserted_dst: Longs
    """Followed of inserted edges; shape (i,)."""
    deleted_src: Longs
    """Followers of deleted edges; shape (d,)."""
    deleted_dst: Longs
    """Followed of deleted edges; shape (d,)."""
    vertex: Longs
    """Vertices whose contribution changed; shape (v,)."""
    contribution: Longs
    """Their contribution now, 0 if they follow no one any more; shape (v,)."""
    ranking: Longs = field(default_factory=lambda: np.empty(0, np.int64))
    """The ranking each belongs to; shape (v,), or empty if all belong to the first."""
    inserted_time: Longs = field(default_factory=lambda: NO_TIMES)
    """With event time, in microseconds; shape (i,), else empty. An inserted edge may be one whose time moved."""
    deleted_time: Longs = field(default_factory=lambda: NO_TIMES)
    """The tombstones' times, `NEVER` where nothing is known of the pair any more; shape (d,), else empty."""
    watermark: int | None = None
    """With event time, of the last epoch, in microseconds."""

    def __post_init__(self) -> None:
        if len(self.ranking) < len(self.vertex):
            object.__setattr__(self, "ranking", np.zeros(len(self.vertex), np.int64))
        for name in _COLUMNS:
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.inserted_src) + len(self.deleted_src) + len(self.vertex)

    @classmethod
    def none(cls) -> Changes:
        """Return no changes."""
        return cls(_NO_LONGS, _NO_LONGS, _NO_LONGS, _NO_LONGS, _NO_LONGS, _NO_LONGS)

    @classmethod
    def of_rows(
        cls,
        kind: npt.NDArray[np.int8],
        key: Longs,
        value: Longs,
        time: Longs = NO_TIMES,
        watermark: int | None = None,
    ) -> Changes:
        """Return the changes that rows of the snapshot layout stand for; `NEVER` stands for no time."""
        inserted, deleted = kind == 1, kind == -1
        is_contribution = ~(inserted | deleted)
        return cls(
            key[inserted],
            value[inserted],
            key[deleted],
            value[deleted],
            key[is_contribution],
            value[is_contribution],
            ranking=np.maximum(kind[is_contribution].astype(np.int64) - 1, 0),
            inserted_time=time[inserted] if len(time) else time,
            deleted_time=time[deleted] if len(time) else time,
            watermark=watermark,
        )

    def rows(self) -> Rows:
        """Return every row: inserts, deletes, contributions. With event time the last have the time `NEVER`."""
        counts = [len(self.inserted_src), len(self.deleted_src)]
        of_contributions = np.where(self.ranking > 0, self.ranking + 1, 0).astype(np.int8)
        kind = np.concatenate([np.repeat(np.array([1, -1], np.int8), counts), of_contributions])
        key = np.concatenate([self.inserted_src, self.deleted_src, self.vertex])
        value = np.concatenate([self.inserted_dst, self.deleted_dst, self.contribution])
        time = NO_TIMES
        if self.watermark is not None:
            time = np.concatenate([self.inserted_time, self.deleted_time, np.full(len(self.vertex), NEVER)])
        return Rows(kind, key, value, time)

    def owned(self, share: range) -> Changes:
        """Return the rows whose key lies in a range of virtual partitions."""
        rows = self.rows()
        mine = _within(virtual_partition(rows.key), share)
        return Changes.of_rows(*rows.where(mine), self.watermark)


_COLUMNS = tuple(each.name for each in fields(Changes) if each.name != "watermark")


def _within(shares: npt.NDArray[np.int16], share: range) -> npt.NDArray[np.bool_]:
    return (shares >= share.start) & (shares < share.stop)


def encode(changes: Changes, first_epoch: int, last_epoch: int) -> bytes:
    """Return changes as one Parquet object; equal changes give equal bytes, whatever their order.

    Parameters
    ----------
    changes : Changes
        What changed.
    first_epoch, last_epoch : int
        The epochs it changed in.
    """
    return encode_shares([ordered(changes.rows())], first_epoch, last_epoch, changes.watermark)[1]


def encode_shares(
    shares: Iterable[Ordered], first_epoch: int, last_epoch: int, watermark: int | None
) -> tuple[int, bytes]:
    """Return how many rows there are and one Parquet object of them, given by ascending virtual partitions.

    No more of them than one share is held at a time, beside the object itself.
    """
    starts = np.zeros(VIRTUAL_PARTITIONS + 1, np.int64)
    schema = _SCHEMA if watermark is None else _TIMED_SCHEMA
    # Whose bytes are handed over, not copied: a base is as large as the graph.
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        schema,
        compression=COMPRESSION,
        # Without a dictionary of kinds, whose few bytes more take a fifth less time.
        use_dictionary=False,
        column_encoding=dict.fromkeys(schema.names[1:], "DELTA_BINARY_PACKED"),
        write_statistics=False,
        # It would hold the header a second time, which is most of a small epoch's object.
        store_schema=False,
    ) as writer:
        for rows, starts_in_share in shares:
            starts += starts_in_share
            columns = [pa.array(column) for column in rows[:3]]
            if watermark is not None:
                columns.append(pa.array(rows.time, mask=rows.time == NEVER))
            table = pa.Table.from_arrays(columns, schema=schema)
            for begin, end in itertools.pairwise(_group_bounds(starts_in_share)):
                writer.write_table(table.slice(begin, end - begin), ROW_GROUP_ROWS)
        header: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "first_epoch": first_epoch,
            "last_epoch": last_epoch,
            "starts": starts.tolist(),
            "ordered": True,
        }
        if watermark is not None:
            header["watermark"] = watermark
        writer.add_key_value_metadata({_METADATA_KEY.decode(): json.dumps(header, separators=(",", ":"))})
    return int(starts[-1]), sink.getvalue()


def _group_bounds(starts: Longs) -> list[int]:
    """Return where rows are cut so that no cut's part is too long for a row group, if virtual partitions allow that.

    Cuts lie on the grid of `_shares`, so that who folds this object with others decompresses each row once.
    """
    width = len(ALL_SHARES)
    while width > 1 and np.diff(starts[::width]).max() > ROW_GROUP_ROWS:
        width //= 2
    return [int(bound) for bound in np.unique(starts[::width])]


@dataclass(frozen=True)
class Header:
    """What a snapshot object says about itself."""

    first_epoch: int
    last_epoch: int
    starts: tuple[int, ...]
    """Row at which each virtual partition starts, and at last the number of rows; 257 entries."""
    watermark: int | None = None
    """With event time, of the last epoch, in microseconds."""
    ordered: bool = False
    """Whether the rows are in order for certain; an earlier release had another."""


class StoredChanges:
    """A snapshot object, opened to be read share by share.

    Parameters
    ----------
    data : bytes or pyarrow.Buffer
        What :func:`encode` returned.

    Raises
    ------
    CorruptSnapshot
        If the bytes are no snapshot, or of a format version this release does not know.
    """

    def __init__(self, data: bytes | pa.Buffer) -> None:
        try:
            self._file = pq.ParquetFile(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            message = f"not a readable Parquet object of {len(data)} bytes: {error}"
            raise CorruptSnapshot(message) from error
        self.header = _header(self._file)
        groups = range(self._file.num_row_groups)
        sizes = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._group_starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def rows(self, share: range) -> int:
        """Return the number of rows of a range of virtual partitions."""
        return self.header.starts[share.stop] - self.header.starts[share.start]

    def read(self, share: range) -> Ordered:
        """Return the rows of a range of virtual partitions; only row groups these lie in are decompressed.

        Raises
        ------
        CorruptSnapshot
            If a row group is damaged.
        """
        first, last = self.header.starts[share.start], self.header.starts[share.stop]
        starts = np.clip(self.header.starts, first, last) - first
        if first == last:
            return Ordered(_NO_ROWS, starts)
        first_group = int(np.searchsorted(self._group_starts, first, "right")) - 1
        last_group = int(np.searchsorted(self._group_starts, last, "left"))
        timed = self.header.watermark is not None
        schema = _TIMED_SCHEMA if timed else _SCHEMA
        try:
            table = self._file.read_row_groups(range(first_group, last_group), columns=schema.names)
        except (pa.ArrowException, OSError) as error:
            epochs = f"{self.header.first_epoch} to {self.header.last_epoch}"
            message = f"snapshot of epochs {epochs} is damaged: {error}"
            raise CorruptSnapshot(message) from error
        table = table.slice(first - int(self._group_starts[first_group]), last - first)
        kind, key, value = (table.column(name).to_numpy() for name in _SCHEMA.names)
        time = table.column("time").fill_null(NEVER).to_numpy() if timed else NO_TIMES
        rows = Rows(kind, key, value, time)
        return Ordered(rows, starts) if self.header.ordered else in_order(rows, starts)


def _header(file: pq.ParquetFile) -> Header:
    metadata = file.metadata.metadata or {}
    if _METADATA_KEY not in metadata:
        message = f"a Parquet object without {_METADATA_KEY.decode()} metadata is no snapshot"
        raise CorruptSnapshot(message)
    header = json.loads(metadata[_METADATA_KEY])
    if header["format_version"] != FORMAT_VERSION:
        message = f"snapshot has format version {header['format_version']}, this release reads {FORMAT_VERSION}"
        raise CorruptSnapshot(message)
    starts = tuple(header["starts"])
    if len(starts) != VIRTUAL_PARTITIONS + 1 or starts[-1] != file.metadata.num_rows:
        message = f"snapshot has {file.metadata.num_rows} rows, its offset table says {starts[-1]}"
        raise CorruptSnapshot(message)
    epochs = header["first_epoch"], header["last_epoch"]
    return Header(*epochs, starts, header.get("watermark"), header.get("ordered", False))


def read_header(data: bytes | pa.Buffer) -> Header:
    """Read the header of a snapshot object; raises as `StoredChanges`."""
    return StoredChanges(data).header


def decode(data: bytes | pa.Buffer, owned: range = ALL_SHARES) -> Changes:
    """Read a snapshot object, or one contiguous share of it (:func:`graph_stream.ownership.virtual_range`).

    Raises
    ------
    CorruptSnapshot
        If the bytes are no snapshot this release can read.
    """
    stored = StoredChanges(data)
    return Changes.of_rows(*stored.read(owned).rows, stored.header.watermark)


def folded(parts: Sequence[StoredChanges], *, base: bool, owned: range = ALL_SHARES) -> Iterator[Ordered]:
    """Fold objects of adjacent ranges of epochs into one, share by share, in the order of virtual partitions.

    Per edge, and per vertex and ranking, the newest change wins. One share of the result is held at a time.

    Parameters
    ----------
    parts : sequence of StoredChanges
        Oldest first. Objects of members, which have no rows in common, may stand in any order.
    base : bool
        Whether the first one starts at the first epoch. Then there is nothing before for a delete to undo, and
        deletes, but for tombstones, and zero contributions are dropped.
    owned : range
        Virtual partitions to fold.
    """
    for share in _shares(sum(part.rows(owned) for part in parts), owned):
        yield _folded([part.read(share) for part in parts], base=base)


def watermark_of(parts: Iterable[Changes | Header]) -> int | None:
    """Return the newest watermark that any of some changes tell."""
    return max((part.watermark for part in parts if part.watermark is not None), default=None)


def fold(parts: Sequence[Changes], *, base: bool) -> Ordered:
    """Fold changes of adjacent ranges of epochs, oldest first, into rows; see `folded`."""
    return _folded([ordered(part.rows()) for part in parts], base=base)


def _folded(parts: Sequence[Ordered], *, base: bool) -> Ordered:
    # What has no rows would not say whether they have times.
    found = merged([part for part in parts if part.starts[-1]] or [ordered(_NO_ROWS)])
    if not base:
        return found
    kind, _, value, time = found.rows
    forgotten = kind == -1 if not len(time) else (kind == -1) & (time == NEVER)
    is_contribution = (kind != 1) & (kind != -1)
    return found.where(~forgotten & ~(is_contribution & (value == 0)))


def _shares(rows: int, owned: range) -> Iterator[range]:
    """Cut a range of virtual partitions into shares of about `SHARE_ROWS` rows, or of one virtual partition.

    Cuts lie on a grid of powers of two, as do the ends of row groups, which are shorter: few are read twice.
    """
    width = len(ALL_SHARES)
    while width > 1 and width * rows > SHARE_ROWS * len(owned):
        width //= 2
    for first in range(owned.start - owned.start % width, owned.stop, width):
        yield range(max(first, owned.start), min(first + width, owned.stop))


_NO_ROWS = Rows(np.empty(0, np.int8), np.empty(0, np.int64), np.empty(0, np.int64), NO_TIMES)


@dataclass(frozen=True)
class Entry:
    """One snapshot object of a manifest."""

    first_epoch: int
    last_epoch: int
    rows: int
    blob: Any
    """Where the object is: anything JSON can hold."""

    @property
    def epochs(self) -> int:
        """How many epochs it covers."""
        return self.last_epoch - self.first_epoch + 1


@dataclass(frozen=True)
class Manifest:
    """The snapshot objects that reproduce one epoch: adjacent, in order, from epoch 1 on.

    Parameters
    ----------
    entries : tuple of Entry
        The first one, starting at epoch 1, is the base.
    live_rows : int or None
        Rows that a base of the newest epoch would have, about; not kept with the entries.

    Raises
    ------
    ValueError
        If entries overlap or leave a gap.
    """

    entries: tuple[Entry, ...] = ()
    live_rows: int | None = None

    def __post_init__(self) -> None:
        expected = 1
        for entry in self.entries:
            if entry.first_epoch != expected or entry.last_epoch < entry.first_epoch:
                epochs = f"{entry.first_epoch} to {entry.last_epoch}"
                message = f"snapshot of epochs {epochs} where one that starts at {expected} is needed"
                raise ValueError(message)
            expected = entry.last_epoch + 1

    @property
    def last_epoch(self) -> int:
        """The epoch reproduced; 0 without entries."""
        return self.entries[-1].last_epoch if self.entries else 0

    @property
    def rows(self) -> int:
        """Rows of all entries."""
        return sum(entry.rows for entry in self.entries)

    def append(self, entry: Entry, live_rows: int | None = None) -> Manifest:
        """Return a manifest that reaches further."""
        return Manifest((*self.entries, entry), live_rows)

    def replace(self, merged: Entry) -> Manifest:
        """Return a manifest with the entries that ``merged`` covers replaced by it.

        Raises
        ------
        ValueError
            If it does not cover whole entries of this manifest.
        """
        before = [each for each in self.entries if each.last_epoch < merged.first_epoch]
        after = [each for each in self.entries if each.last_epoch > merged.last_epoch]
        return Manifest((*before, merged, *after), self.live_rows)

    def due(self, first: int = 0) -> slice | None:
        """Return which entries from number ``first`` on to merge next, None if nothing is; see `plan_compaction`."""
        return plan_compaction(self, FANOUT, first)

    def to_json(self) -> list[list[Any]]:
        """Return the entries as JSON-able rows."""
        return [[each.first_epoch, each.last_epoch, each.rows, each.blob] for each in self.entries]

    @classmethod
    def from_json(cls, rows: Iterable[Iterable[Any]]) -> Manifest:
        """Return the manifest that :meth:`to_json` described."""
        return cls(tuple(Entry(*row) for row in rows))


def plan_compaction(manifest: Manifest, fanout: int, first: int = 0) -> slice | None:
    """Decide which adjacent entries to merge next.

    Once ``fanout`` adjacent entries cover about equally many epochs they are merged, so each row is rewritten
    at most once per factor ``fanout`` in age and at most ``fanout - 1`` entries stay at each of
    ``log(epochs)`` levels (the logarithmic method of Bentley and Saxe, 1980). Besides, all is folded into the
    base once half of the rows are dead: the store holds at most about twice the live state, a stream that only
    grows is never folded for that, and one that replaces its state pays one live row for each dead one.

    Parameters
    ----------
    manifest : Manifest
        The entries.
    fanout : int
        Entries to merge at a time, at least 2.
    first : int
        Number of the first entry that may be merged.

    Returns
    -------
    slice or None
        Of ``manifest.entries``; the result is a base if it starts at 0. None if nothing is due.
    """
    entries = manifest.entries
    has_dead_half = manifest.live_rows is not None and manifest.rows >= 2 * manifest.live_rows
    if first == 0 and len(entries) >= fanout and has_dead_half:
        return slice(0, len(entries))
    levels = [_level(entry.epochs, fanout) for entry in entries]
    for stop in range(len(entries), first + fanout - 1, -1):
        if len(set(levels[stop - fanout : stop])) == 1:
            return slice(stop - fanout, stop)
    return None


def _level(epochs: int, fanout: int) -> int:
    level = 0
    while epochs >= fanout:
        epochs //= fanout
        level += 1
    return level

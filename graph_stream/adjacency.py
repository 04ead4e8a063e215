"""The vertices: a slot each in flat arrays.

A *slot* is a vertex's local index. It is given on the first edge, taken back with the last one and reused,
differs between runs and members, and never leaves this process. Slots also stand for *ghosts*: followed
vertices another member owns, which have an id and a number of local followers, but no row of their own
(:mod:`graph_stream.rows`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream import idtable
from graph_stream.certificate import CapacityExceeded
from graph_stream.compiled import Int, compiled
from graph_stream.growable import widened
from graph_stream.idtable import IdTable

MOST_ROW_ENTRIES = 1 << 32
"""Length to which an arena grows: starts of rows, halved, are chained as int32."""
_ROW_SIZES = 33

# Places in Storage.counters.
USED, FREE_HEAD, LIVE, OWNED, EDGES, ARENA, MAX_DEGREE = range(7)
_COUNTERS = 7

# What can lack room.
NOTHING, SLOTS, IDS, ROWS, DEGREES = range(5)

Slots = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class Vertices(NamedTuple):
    """Graph per slot; every array has shape (capacity,). A free slot has ``degree`` -1."""

    id: npt.NDArray[np.int64]
    """External id."""
    owned: npt.NDArray[np.bool_]
    """Whether this member owns the vertex; else the slot is a ghost."""
    degree: npt.NDArray[np.int32]
    """``d``, how many vertices it follows; 0 for a ghost."""
    followers: npt.NDArray[np.int32]
    """In-degree; for a ghost, its followers at this member."""
    row: npt.NDArray[np.int64]
    """Where its row starts in the arena; in a free slot, the next free slot or -1."""
    row_bits: npt.NDArray[np.int8]
    """Binary logarithm of its row's length, 0 without a row."""


class Storage(NamedTuple):
    """What the slots share."""

    table: IdTable
    """From external id to slot."""
    arena: npt.NDArray[np.int32]
    """Rows of followed slots, -1 where empty."""
    times: npt.NDArray[np.int64]
    """With event time, when each edge of the arena was last stated, at the same index; else empty."""
    free_rows: npt.NDArray[np.int64]
    """First free row of each size, or -1; a free row's first entry is half the start of the next one, or
    -1."""
    degrees: npt.NDArray[np.int64]
    """How many owned vertices follow exactly d others, at index d."""
    counters: npt.NDArray[np.int64]
    """Slots ever used, first free slot, live slots, owned live slots, edges, arena entries cut, largest
    degree."""


def empty(slots: int = 1024, arena: int = 4096, *, timed: bool = False) -> tuple[Vertices, Storage]:
    """Return the arrays of an empty graph.

    Parameters
    ----------
    slots : int
        Vertices there is room for at first; a power of two.
    arena : int
        Row entries there is room for at first.
    timed : bool
        Whether edges have times.
    """
    vertices = Vertices(
        id=np.zeros(slots, np.int64),
        owned=np.zeros(slots, np.bool_),
        degree=np.zeros(slots, np.int32),
        followers=np.zeros(slots, np.int32),
        row=np.zeros(slots, np.int64),
        row_bits=np.zeros(slots, np.int8),
    )
    storage = Storage(
        table=idtable.empty(),
        arena=np.zeros(arena, np.int32),
        times=np.zeros(arena if timed else 0, np.int64),
        free_rows=np.full(_ROW_SIZES, -1, np.int64),
        degrees=np.zeros(slots, np.int64),
        counters=np.zeros(_COUNTERS, np.int64),
    )
    storage.counters[FREE_HEAD] = -1
    return vertices, storage


def grow(vertices: Vertices, storage: Storage, shortage: int) -> tuple[Vertices, Storage]:
    """Return the arrays with twice the room in what ran short.

    Parameters
    ----------
    vertices, storage
        The arrays; not to be used afterwards.
    shortage : int
        ``SLOTS``, ``IDS``, ``ROWS`` or ``DEGREES``, as :func:`graph_stream.rows.shortage_of` told.

    Raises
    ------
    CapacityExceeded
        If one member cannot hold more edges.
    """
    if shortage == SLOTS:
        vertices = Vertices._make(widened(array, 2 * len(array)) for array in vertices)
    elif shortage == IDS:
        storage = storage._replace(table=idtable.grow(storage.table))
    elif shortage == ROWS:
        if len(storage.arena) >= MOST_ROW_ENTRIES:
            message = f"{storage.counters[EDGES]} edges are all one partition can hold; use more partitions"
            raise CapacityExceeded(message)
        room = 2 * len(storage.arena)
        times = widened(storage.times, room if len(storage.times) else 0)
        storage = storage._replace(arena=widened(storage.arena, room), times=times)
    else:
        storage = storage._replace(degrees=widened(storage.degrees, 2 * len(storage.degrees)))
    return vertices, storage


@compiled
def find(vertices: Vertices, storage: Storage, vertex: Int) -> Int:
    """Return the slot of an external id, or -1."""
    return idtable.find(storage.table, vertices.id, vertex)


@compiled
def add(vertices: Vertices, storage: Storage, vertex: Int, owned: bool) -> Int:
    """Give an absent id a slot, without edges, and return it; there must be room."""
    counters = storage.counters
    slot = counters[FREE_HEAD]
    if slot >= 0:
        counters[FREE_HEAD] = vertices.row[slot]
    else:
        slot = counters[USED]
        counters[USED] += 1
    counters[LIVE] += 1
    if owned:
        counters[OWNED] += 1
        storage.degrees[0] += 1
    vertices.id[slot] = vertex
    vertices.owned[slot] = owned
    vertices.degree[slot] = 0
    vertices.followers[slot] = 0
    vertices.row_bits[slot] = 0
    idtable.add(storage.table, vertices.id, slot)
    return np.int64(slot)


@compiled
def remove(vertices: Vertices, storage: Storage, slot: Int) -> None:
    """Take back the slot of a vertex without edges."""
    counters = storage.counters
    idtable.remove(storage.table, vertices.id, slot)
    if vertices.owned[slot]:
        counters[OWNED] -= 1
        storage.degrees[0] -= 1
    counters[LIVE] -= 1
    vertices.degree[slot] = -1
    vertices.row[slot] = counters[FREE_HEAD]
    counters[FREE_HEAD] = slot

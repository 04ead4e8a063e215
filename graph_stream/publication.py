"""What is published of an epoch: the rows that changed, and a marker that says what they belong to; pure.

Members tell their shares of an epoch as bytes (`encode_share`), and `assemble` makes one publication of them.
Its rows are sorted by vertex and a function of two states alone, so that the same epoch gives the same
publication on any partitioning and after any crash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_stream.certificate import error_bound
from graph_stream.changed import Best, Changed
from graph_stream.namelist import NameList
from ingest import as_text

ROWS_SCHEMA = pa.schema(
    [
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("vertex", pa.int64(), nullable=False),
        pa.field("influence", pa.float64(), nullable=False),
        pa.field("error_bound", pa.float64(), nullable=False),
        pa.field("deleted", pa.bool_(), nullable=False),
        pa.field("algorithm", pa.string(), nullable=False),
    ]
)

_CHANGED, _LEFT, _BEFORE, _AFTER = range(4)
_SHARE_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("vertex", pa.int64(), nullable=False),
        pa.field("influence", pa.int64(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True)
class Marker:
    """What the rows of a publication belong to.

    Attributes
    ----------
    run_id : str
        The run.
    stream : str
        Names this run's publications to one sink; no other run has it, not even one of the same id.
    epoch : int
        The epoch.
    algorithm : str
        Whose ranking it is.
    top : int or None
        How many of the best the publications are about; None: all vertices.
    state_hash : str
        Of the ranking at the epoch.
    error_bound : float
        The certificate ``e``: every vertex's influence is within the share ``e`` of the exact one, changed or not.
    rows, deleted : int
        Rows of the publication, and those of them that are deletions.
    vertices, edges : int
        Of the graph at the epoch.
    """

    run_id: str
    stream: str
    epoch: int
    algorithm: str
    top: int | None
    state_hash: str
    error_bound: float
    rows: int
    deleted: int
    vertices: int
    edges: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Publication:
    """An epoch as sinks get it."""

    marker: Marker
    rows: pa.Table
    """With `ROWS_SCHEMA`, by vertex, each once; in names in the order in which these first came."""

    def in_names(self, names: NameList) -> Publication:
        """Return the same with names in the place of their numbers."""
        return Publication(self.marker, with_names(self.rows, names))


def with_names(rows: pa.Table, names: NameList) -> pa.Table:
    """Return a table whose column ``vertex`` holds names in the place of their numbers."""
    place = rows.schema.get_field_index("vertex")
    vertex = as_text(names.take(rows["vertex"].to_numpy()))
    return rows.set_column(place, pa.field("vertex", vertex.type, nullable=False), vertex)


def encode_share(changed: Changed, *, best_only: bool) -> bytes:
    """Return a member's share of an epoch as bytes.

    Parameters
    ----------
    changed : Changed
        What the epoch changed at the member.
    best_only : bool
        Leave out all but the member's best vertices, before and after.
    """
    moved = np.where(changed.left, _LEFT, _CHANGED)
    order = np.argsort(changed.vertex)
    parts = [] if best_only else [(moved[order], changed.vertex[order], changed.influence[order])]
    for kind, best in ((_BEFORE, changed.before), (_AFTER, changed.after)):
        parts.append((np.full(len(best.vertex), kind), best.vertex, best.influence))
    kinds, vertices, influences = (np.concatenate(column) for column in zip(*parts, strict=True))
    batch = pa.record_batch([kinds.astype(np.int8), vertices, influences], schema=_SHARE_SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SHARE_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def assemble(shares: Sequence[bytes], marker: Marker, scale: float) -> Publication:
    """Return the publication that members' shares of an epoch amount to.

    Parameters
    ----------
    shares : sequence of bytes
        Of all members, in any order; what `encode_share` returned.
    marker : Marker
        What they belong to; ``rows`` and ``deleted`` are counted here.
    scale : float
        The fixed-point value of 1.
    """
    tables = [pa.ipc.open_stream(share).read_all() for share in shares]
    kind, vertex, fixed = (np.concatenate([table[name].to_numpy() for table in tables]) for name in _SHARE_SCHEMA.names)
    if marker.top is None:
        vertex, fixed, deleted = _all_changed(kind, vertex, fixed)
    else:
        vertex, fixed, deleted = _changed_best(kind, vertex, fixed, marker.top)
    order = np.argsort(vertex)
    vertex, influence, deleted = vertex[order], fixed[order] / scale, deleted[order]
    bounds = error_bound(influence, marker.error_bound)
    count = len(vertex)
    rows = pa.table(
        [
            np.full(count, marker.epoch, np.int64),
            vertex,
            influence,
            bounds,
            deleted,
            pa.array([marker.algorithm] * count, pa.string()),
        ],
        schema=ROWS_SCHEMA,
    )
    return Publication(dataclasses.replace(marker, rows=count, deleted=int(deleted.sum())), rows)


_Longs = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


def _all_changed(kind: npt.NDArray[np.int8], vertex: _Longs, fixed: _Longs) -> tuple[_Longs, _Longs, _Bools]:
    told = (kind == _CHANGED) | (kind == _LEFT)
    return vertex[told], fixed[told], kind[told] == _LEFT


def _changed_best(kind: npt.NDArray[np.int8], vertex: _Longs, fixed: _Longs, top: int) -> tuple[_Longs, _Longs, _Bools]:
    """Return who is new among the best, or has another influence than before, and who is there no more."""
    before, after = (_best(vertex[kind == which], fixed[kind == which], top) for which in (_BEFORE, _AFTER))
    known = dict(zip(before.vertex.tolist(), before.influence.tolist(), strict=True))
    pairs = zip(after.vertex.tolist(), after.influence.tolist(), strict=True)
    changed = np.array([known.get(each) != influence for each, influence in pairs], np.bool_)
    gone = before.vertex[~np.isin(before.vertex, after.vertex)]
    deleted = np.arange(np.count_nonzero(changed) + len(gone)) >= np.count_nonzero(changed)
    return (
        np.concatenate([after.vertex[changed], gone]),
        np.concatenate([after.influence[changed], np.zeros(len(gone), np.int64)]),
        deleted,
    )


def _best(vertex: _Longs, fixed: _Longs, top: int) -> Best:
    order = np.lexsort((vertex, -fixed))[:top]
    return Best(vertex[order], fixed[order])

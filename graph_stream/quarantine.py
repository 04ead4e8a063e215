"""Records that could not be parsed, kept as one Parquet object per epoch."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ingest import BadRecord

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("split", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("raw", pa.binary()),
        pa.field("reason", pa.string()),
    ]
)


def name(epoch: int) -> str:
    """Return the name of the object that holds an epoch's bad records."""
    return f"quarantine/epoch-{epoch:012d}.parquet"


def encode(bad: Sequence[BadRecord]) -> bytes:
    """Return bad records as Parquet bytes with the columns of `SCHEMA`."""
    rows = [
        {
            "source": each.source,
            "split": each.split,
            "offset": each.offset,
            "raw": each.raw,
            "reason": each.reason,
        }
        for each in bad
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink)
    return sink.getvalue().to_pybytes()

"""Writing R-MAT streams to files, for demonstrations, tests and benchmarks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from ingest.formats import KNOWN_FORMATS, file_format
from ingest.source import IngestError
from ingest.synthetic import Rmat
from ingest.whole import written_whole

BATCH_RECORDS: Final = 256 * 1024

_DELIMITERS: Final = {".txt": "\t", ".tsv": "\t", ".csv": ","}


def write_rmat(out: Path, scale: int, edges: int, seed: int = 0, deletes: float = 0.0) -> None:
    """Write an R-MAT stream to a file; the same arguments give the same records in every format.

    Parameters
    ----------
    out
        ``.txt`` or ``.tsv`` (columns separated by tabs), ``.csv`` (with a header), each also ``.gz`` or
        ``.zst``, or ``.parquet``. It appears when it is whole; a file of that name is replaced.
    scale, edges, seed, deletes
        See `ingest.synthetic.Rmat`. There is an op column if and only if `deletes` is above 0.

    Raises
    ------
    IngestError
        The name of the file says no format that can be written, or a parameter is out of its range.
    OSError
        The file cannot be written; nothing is left behind.
    """
    kind = file_format(out.name)
    if kind is None or (kind.kind == ".parquet" and kind.compression):
        message = f"cannot write {str(out)!r}: use a name that ends in {KNOWN_FORMATS} (but .parquet as it is)"
        raise IngestError(message)
    try:
        rmat = Rmat(scale, edges, seed, deletes)
    except ValueError as error:
        message = f"cannot write {str(out)!r}: {error}"
        raise IngestError(message) from None
    schema = pa.schema([("src", pa.int64()), ("dst", pa.int64()), *([("op", pa.string())] if deletes > 0 else [])])
    with (
        written_whole(out) as part,
        pa.output_stream(str(part), compression=kind.compression) as stream,
        _writer(stream, kind.kind, schema) as writer,
    ):
        for batch in _batches(rmat, schema):
            writer.write_batch(batch)


def _writer(stream: pa.NativeFile, kind: str, schema: pa.Schema) -> Any:
    if kind == ".parquet":
        return pq.ParquetWriter(stream, schema)
    if kind == ".csv":  # by hand: pyarrow puts the names in quotes
        stream.write(f"{','.join(schema.names)}\n".encode())
    options = csv.WriteOptions(
        include_header=False, delimiter=_DELIMITERS[kind], quoting_style="none", batch_size=BATCH_RECORDS
    )
    return csv.CSVWriter(stream, schema, write_options=options)


def _batches(rmat: Rmat, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    signs = pa.array(["+", "-"])
    for start in range(0, rmat.edges, BATCH_RECORDS):
        records = rmat.records(start, min(start + BATCH_RECORDS, rmat.edges))
        columns = [pa.array(records.src), pa.array(records.dst)]
        if "op" in schema.names:
            columns.append(signs.take(pa.array(records.op < 0).cast(pa.int8())))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)

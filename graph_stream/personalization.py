"""Weights of vertices from a file: whom a personalised PageRank favours.

The file is recorded with the run by path and content, and read where it is needed, as sources are.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from graph_stream.algorithms import GREATEST_WEIGHT, LEAST_WEIGHT, Weights
from graph_stream.errors import ConfigError
from ingest import MAX_NAME_BYTES, Names

COLUMNS = ("vertex", "weight")


def sha256_of(path: str) -> str:
    """Return the digest of a weights file's content; raises ConfigError when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        message = f"--personalization {path} cannot be read: {error.strerror}"
        raise ConfigError(message) from error


@functools.lru_cache(maxsize=4)
def read_weights(path: str, sha256: str) -> Weights:
    """Return the weights in a file.

    Parameters
    ----------
    path : str
        A Parquet file, or a CSV file with a header, with columns ``vertex`` (integers) and ``weight`` (numbers).
    sha256 : str
        Digest of the content the run began with.

    Raises
    ------
    ConfigError
        When the file cannot be read or was altered, or a weight is out of range; names the vertex.
    """
    try:
        vertex, weight = _columns(path, sha256)
        return Weights(pc.cast(vertex, pa.int64()).to_numpy(), pc.cast(weight, pa.float64()).to_numpy())
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise _wrong(path, error) from error


class NamedWeights(NamedTuple):
    """Weights of vertices that are known by names."""

    names: Names
    """The names; the dictionary of the run begins with them, so that each has its place as its number."""
    weights: Weights
    """By number."""


@functools.lru_cache(maxsize=4)
def read_named_weights(path: str, sha256: str) -> NamedWeights:
    """Return the weights in a file, as `read_weights`, but whose column ``vertex`` holds names."""
    try:
        vertex, weight = _columns(path, sha256, pyarrow.csv.ConvertOptions(column_types={"vertex": pa.string()}))
        names = _one_array(pc.cast(vertex, pa.large_string()).cast(pa.large_binary()))
        weights = pc.cast(weight, pa.float64()).to_numpy()
        _check_names(names, weights)
        return NamedWeights(names, Weights(np.arange(len(names)), weights))
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise _wrong(path, error) from error


def _columns(path: str, sha256: str, options: pyarrow.csv.ConvertOptions | None = None) -> tuple[Any, Any]:
    if sha256_of(path) != sha256:
        message = f"--personalization {path} is not what the run began with; put the former content back"
        raise ConfigError(message)
    table = pq.read_table(path) if path.endswith(".parquet") else pyarrow.csv.read_csv(path, convert_options=options)
    vertex, weight = (table.column(name) for name in COLUMNS)
    return vertex, weight


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _check_names(names: Names, weights: Any) -> None:
    """Raise ValueError, with a name in the text, where one is twice or no name, or has a weight out of range."""
    counts = pc.value_counts(names)
    faults = [
        ("has more than one weight", counts.field("values").filter(pc.greater(counts.field("counts"), 1))),
        (f"is no name of 1 to {MAX_NAME_BYTES} bytes", names.filter(_is_no_name(names))),
        (
            f"has no weight in {LEAST_WEIGHT}..{GREATEST_WEIGHT:g}",
            names.filter(pa.array(~((weights >= LEAST_WEIGHT) & (weights <= GREATEST_WEIGHT)))),
        ),
    ]
    for fault, found in faults:
        if len(found):
            message = f"vertex {(found[0].as_py() or b'').decode()!r} {fault}"
            raise ValueError(message)


def _is_no_name(names: Names) -> pa.BooleanArray:
    lengths = pc.fill_null(pc.binary_length(names), 0)
    return pc.or_(pc.equal(lengths, 0), pc.greater(lengths, MAX_NAME_BYTES))


def _wrong(path: str, error: Exception) -> ConfigError:
    return ConfigError(f"--personalization {path}: {error}; it needs the columns {' and '.join(COLUMNS)}")

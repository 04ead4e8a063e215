"""Weights of vertices from a file: whom a personalised PageRank favours.

The file is recorded with the run by path and content, and read where it is needed, as sources are.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from graph_stream.algorithms import Weights
from graph_stream.errors import ConfigError

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
    if sha256_of(path) != sha256:
        message = f"--personalization {path} is not what the run began with; put the former content back"
        raise ConfigError(message)
    try:
        table = pq.read_table(path) if path.endswith(".parquet") else pyarrow.csv.read_csv(path)
        vertex, weight = (table.column(name) for name in COLUMNS)
        return Weights(pc.cast(vertex, pa.int64()).to_numpy(), pc.cast(weight, pa.float64()).to_numpy())
    except (pa.ArrowException, KeyError, ValueError) as error:
        message = f"--personalization {path}: {error}; it needs the columns {' and '.join(COLUMNS)}"
        raise ConfigError(message) from error

"""Weights of vertices that are known by names."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graph_stream.config import RunConfig
from graph_stream.errors import ConfigError
from ingest import MAX_NAME_BYTES


def config(path: Path) -> RunConfig:
    given = {"algorithm": ("pagerank",), "columns": "src,dst", "ids": "string", "personalization": str(path)}
    return RunConfig((str(path),), **given).checked()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_weights_of_names_from_parquet(tmp_path, kind):
    path = tmp_path / "weights.parquet"
    pq.write_table(pa.table({"vertex": pa.array(["b", "ñ", "a"], kind), "weight": [2, 3, 4]}), path)
    named = config(path).named_weights()
    assert named.names.to_pylist() == [b"b", "ñ".encode(), b"a"]
    (parameters,) = config(path).parameters()
    assert dict(zip(parameters.weights.vertex.tolist(), parameters.weights.weight.tolist(), strict=True)) == {
        0: 2.0,
        1: 3.0,
        2: 4.0,
    }


def test_numbers_in_csv_are_names_there(tmp_path):
    path = tmp_path / "weights.csv"
    path.write_text('vertex,weight\n01,2\n1,3\n"a,""b""",0.5\n')
    assert config(path).named_weights().names.to_pylist() == [b"01", b"1", b'a,"b"']


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a,2\nb,1\na,2\n", "vertex 'a' has more than one weight"),
        (",2\n", f"vertex '' is no name of 1 to {MAX_NAME_BYTES} bytes"),
        (f"{'a' * (MAX_NAME_BYTES + 1)},2\n", f"is no name of 1 to {MAX_NAME_BYTES} bytes"),
        ("ok,1\nbad,-1\n", "vertex 'bad' has no weight in"),
        ("ok,1\nbad,many\n", "it needs the columns vertex and weight"),
    ],
)
def test_weights_that_cannot_be(tmp_path, lines, message):
    path = tmp_path / "weights.csv"
    path.write_text(f"vertex,weight\n{lines}")
    with pytest.raises(ConfigError, match=message):
        config(path)

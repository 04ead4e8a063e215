"""What a URI stands for, and what is said where it stands for nothing."""

import re

import pytest

from ingest import SourceError, open_source
from ingest.formats import file_format
from ingest.synthetic import Rmat


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://host/edges.txt", "ftp:// is not supported as a source; supported are a path"),
        (
            "S3://bucket/edges.txt",
            "s3:// is not supported as a source; supported are .* file:///PATH, .*follow:///PATH, kafka://.* and rmat://",
        ),
        ("file://edges.txt", "a file:// URI needs an absolute path"),
        ("rmat://graph?scale=4&edges=5", "takes its parameters after a question mark"),
        ("rmat://?edges=5", "parameter 'scale' is missing"),
        ("rmat://?scale=4", "parameter 'edges' is missing"),
        ("rmat://?scale=4&edges=5&sed=1", "unknown parameter 'sed'; known are scale, edges, seed, deletes"),
        ("rmat://?scale=4&edges=5&edges=6", "parameter 'edges' is given twice"),
        ("rmat://?scale=4&edges=1e6", "parameter 'edges' must be a whole number, not '1e6'"),
        ("rmat://?scale=4&edges=", "parameter 'edges' must be a whole number, not ''"),
        ("rmat://?scale=4&edges=5&deletes=few", "parameter 'deletes' must be a number, not 'few'"),
        ("rmat://?scale=0&edges=5", "scale must be from 1 to 62, not 0"),
        ("rmat://?scale=63&edges=5", "scale must be from 1 to 62, not 63"),
        ("rmat://?scale=4&edges=-1", "edges must be from 0 to 2^63 - 1, not -1"),
        ("rmat://?scale=4&edges=5&seed=-1", "seed must be from 0 to 2^63 - 1, not -1"),
        ("rmat://?scale=4&edges=5&deletes=1", "deletes must be at least 0 and less than 1, not 1.0"),
        ("rmat://?scale=4&edges=5&deletes=nan", "deletes must be at least 0 and less than 1, not nan"),
    ],
)
def test_what_is_no_source(uri, says):
    with pytest.raises(SourceError) as raised:
        open_source(uri)
    assert str(raised.value).startswith(f"{uri}: ")
    assert re.search(says.replace("^", "\\^"), str(raised.value))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("src", "both src and dst are needed"),
        ("src,dst,weight", "'weight' is no column name; use src,dst"),
        ("src,,dst", "'' is no column name"),
        ("src,dst,src", "a name is there twice"),
        ("src,dst,time", "an R-MAT stream has no time column"),
    ],
)
def test_what_is_no_column_list(columns, says):
    with pytest.raises(SourceError, match=says):
        open_source("rmat://?scale=4&edges=5", columns)


def test_rmat():
    source = open_source("rmat://?scale=20&edges=5000000&seed=1&deletes=0.1")
    assert source.rmat == Rmat(20, 5_000_000, 1, 0.1)
    assert open_source("rmat://?edges=5&scale=4", "dst,src").rmat == Rmat(4, 5, 0, 0.0)
    assert source.bounded


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.txt", ".txt", None),
        ("a.b.TSV", ".tsv", None),
        ("a.csv.gz", ".csv", "gzip"),
        ("a.parquet.zst", ".parquet", "zstd"),
    ],
)
def test_formats_of_names(name, kind, compression):
    found = file_format(name)
    assert found is not None
    assert (found.kind, found.compression) == (kind, compression)


@pytest.mark.parametrize("name", ["edges", "txt", "edges.gz", "edges.txt.bz2", "edges.json"])
def test_names_without_a_format(name):
    assert file_format(name) is None

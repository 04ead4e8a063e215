"""Store URIs: what they say, what is refused, and how they come back as options."""

from __future__ import annotations

import shlex
import sys

import pytest

from exoflow.errors import DefinitionError
from exoflow.storage import open_store
from exoflow.storage.location import S3Location, as_options, with_endpoint

ENDPOINT = "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b", S3Location("bucket", "a/b")),
        ("s3://bucket/a/", S3Location("bucket", "a")),
        ("s3://bucket", S3Location("bucket", "")),
        ("s3://bucket/", S3Location("bucket", "")),
        (f"s3://bucket/a?endpoint={ENDPOINT}", S3Location("bucket", "a", ENDPOINT)),
        (f"s3://bucket?endpoint={ENDPOINT}/", S3Location("bucket", "", ENDPOINT)),
        (
            "s3://bucket/a?endpoint=https%3A%2F%2Fs3.example.org%2Fv1",
            S3Location("bucket", "a", "https://s3.example.org/v1"),
        ),
        ("s3://bucket/a?endpoint=http://[::1]:9000", S3Location("bucket", "a", "http://[::1]:9000")),
    ],
)
def test_a_uri_says_where(uri, expected):
    assert S3Location.parse(uri) == expected
    assert S3Location.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3:///prefix",
        "s3://user:secret@bucket/a",
        "s3://bucket/a//b",
        "s3://bucket/../b",
        "s3://bucket/a#b",
        "s3://bucket/a?region=x",
        "s3://bucket/a?endpoint",
        "s3://bucket/a?endpoint=",
        f"s3://bucket/a?endpoint={ENDPOINT}&endpoint={ENDPOINT}",
        "s3://bucket/a?endpoint=127.0.0.1:9000",
        "s3://bucket/a?endpoint=ftp://127.0.0.1",
        "s3://bucket/a?endpoint=http://key:secret@127.0.0.1",
    ],
)
def test_what_names_no_place_on_s3_is_refused(uri):
    with pytest.raises(DefinitionError) as caught:
        open_store(uri)
    assert "secret@127" not in str(caught.value)


def test_an_endpoint_joins_the_uri():
    assert with_endpoint("s3://bucket/a", None) == "s3://bucket/a"
    joined = with_endpoint("s3://bucket/a", ENDPOINT)
    assert S3Location.parse(joined) == S3Location("bucket", "a", ENDPOINT)
    assert with_endpoint(joined, ENDPOINT + "/") == joined
    with pytest.raises(DefinitionError, match="another endpoint"):
        with_endpoint(joined, "http://127.0.0.1:9001")
    with pytest.raises(DefinitionError, match="goes with a store at s3://"):
        with_endpoint("./runs", ENDPOINT)


@pytest.mark.parametrize("uri", ["./runs", "/a folder/it's", "s3://bucket/a", f"s3://bucket/a b?endpoint={ENDPOINT}"])
def test_options_for_a_shell_name_the_same_store(uri):
    words = shlex.split(as_options(uri))
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert with_endpoint(options["--store"], options.get("--s3-endpoint")) == uri


def test_without_boto3_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "exoflow.storage.s3", raising=False)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(DefinitionError, match=r"pip install 'exoflow\[s3\]'"):
        open_store("s3://bucket/a")

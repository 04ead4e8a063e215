"""A prefix of a bucket as a source, on a real server: what is listed, what is the same, and what is refused."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import EpochReader, SourceError, open_source
from ingest.watch import WatchSource
from tests.integration.services import BUCKET, S3, S3Server


class Prefix:
    """A prefix that nobody has used."""

    def __init__(self, s3: S3) -> None:
        place, _, query = s3.new_store().partition("?")
        self.prefix = place.removeprefix(f"s3://{BUCKET}/")
        self.uri = f"watch://{place}?{query}&every=0.1"
        self.client: Any = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}", Body=data)

    def put_in_parts(self, name: str, data: bytes) -> None:
        at = {"Bucket": BUCKET, "Key": f"{self.prefix}/{name}"}
        upload = self.client.create_multipart_upload(**at)["UploadId"]
        part = self.client.upload_part(**at, UploadId=upload, PartNumber=1, Body=data)
        whole = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        self.client.complete_multipart_upload(**at, UploadId=upload, MultipartUpload=whole)

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}")


def read(uri: str) -> None:
    with EpochReader([open_source(uri)], 1) as reader:
        reader.read(reader.start())


@pytest.fixture
def prefix(s3: S3) -> Prefix:
    return Prefix(s3)


def test_all_objects_of_several_pages_are_read_in_the_order_of_their_names(prefix, tmp_path):
    pq.write_table(pa.table({"src": [5000], "dst": [1]}), tmp_path / "edges.parquet")
    prefix.put("z.parquet", (tmp_path / "edges.parquet").read_bytes())
    prefix.put("folder/", b"")
    prefix.put("_temporary/0.txt", b"1 2\n")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: prefix.put(f"day/{number:04}.txt", b"%d 1\n" % number), range(1003)))
    source = open_source(f"{prefix.uri}&until=end")
    with EpochReader([source], 600) as reader:
        first = reader.read(reader.start())
        second = reader.read(first.end)
    assert [*first.src.tolist(), *second.src.tolist()] == [*range(1003), 5000]
    assert second.last
    with EpochReader([open_source(f"{prefix.uri}&pattern=*.parquet&until=end")], 600) as reader:
        assert reader.read(reader.start()).src.tolist() == [5000]


def test_the_same_content_sent_again_is_nothing_new_also_in_parts_and_other_content_is_told(prefix):
    prefix.put("a.txt", b"1 2\n3 4\n")
    source = open_source(prefix.uri)
    with EpochReader([source], 2) as reader:
        first = reader.read(reader.start())
    assert first.src.tolist() == [1, 3]
    prefix.put("a.txt", b"1 2\n3 4\n")
    prefix.put("b.txt", b"5 6\n7 8\n")
    with EpochReader([source], 2) as reader:
        second = reader.read(first.end)
        prefix.put_in_parts("a.txt", b"1 2\n3 4\n")  # now its ETag is another
        prefix.put("c.txt", b"9 6\n11 8\n")
        third = reader.read(second.end)
        assert [second.src.tolist(), third.src.tolist()] == [[5, 7], [9, 11]]
        prefix.put("a.txt", b"1 2\n")
        with pytest.raises(SourceError, match=r"'a\.txt' has other content than what was read under this name"):
            reader.read(third.end)


def test_an_object_that_goes_while_it_is_read_is_told(prefix):
    prefix.put("a.txt", b"1 2\n3 4\n")
    with EpochReader([open_source(prefix.uri)], 1) as reader:
        first = reader.read(reader.start())
    prefix.delete("a.txt")
    with (
        EpochReader([open_source(prefix.uri)], 1) as reader,
        pytest.raises(SourceError, match=r"'a\.txt' is gone before it was read to its end"),
    ):
        reader.read(first.end)


def test_what_will_not_pass_is_told_at_once(s3, monkeypatch):
    nowhere = f"watch://s3://no-such-bucket-here/prefix?endpoint={s3.endpoint}"
    with pytest.raises(SourceError, match=r"cannot be read: .*NoSuchBucket"):
        open_source(nowhere).splits()
    with pytest.raises(SourceError, match=r"s3://no-such-bucket-here/prefix/ refuses: .*NoSuchBucket"):
        read(nowhere)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceError, match=r"refuses: .*SignatureDoesNotMatch"):
        read(f"watch://s3://{BUCKET}/prefix?endpoint={s3.endpoint}")


def test_a_server_that_is_away_is_waited_for_and_never_taken_for_an_empty_prefix(tmp_path: Path):
    told: list[str] = []
    with S3Server(tmp_path) as server:
        prefix = Prefix(server.s3)
        prefix.put("a.txt", b"1 2\n3 4\n")
        source = WatchSource(prefix.uri, ("src", "dst"), tell=told.append)
        with EpochReader([source], 1) as reader:
            first = reader.read(reader.start())
        server.kill()
        generated = open_source("rmat://?scale=4&edges=10")
        with EpochReader([source, generated], 10) as reader:
            begun = {**reader.start(), "splits": [*first.end["splits"], reader.start()["splits"][1]]}
            second = reader.read(begun)
        assert len(second.src) == 10  # the other source was not held up
        assert re.search(f"waiting for s3://{BUCKET}/{prefix.prefix}/: ", told[0])
        server.start()
        with EpochReader([source, generated], 1) as reader:
            assert reader.read(second.end).src.tolist() == [3]
        assert "is back after" in told[1]

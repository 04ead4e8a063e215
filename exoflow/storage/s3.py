"""A store on S3, or on a server that speaks its protocol, through boto3.

What is asked of the server: a write is durable and visible to all when it is answered, and of many
conditional creates (``If-None-Match: *``) of one key exactly one succeeds. The probe at opening tries the
latter.

The SDK's own retries are off: repeated by the SDK, a conditional create whose first answer was lost would be
told of its own object as of somebody else's. Creates are tried once, and whoever calls reads back; the other
verbs are repeated here.

Absent is only what the server calls absent, in its own words. Anything else, be it an answer that a proxy
made up, is an outage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)
from botocore.parsers import ResponseParserError

from exoflow.errors import StorageUnavailable
from exoflow.storage.backoff import Backoff
from exoflow.storage.location import S3Location
from exoflow.storage.probe import FOLDER as PROBE_FOLDER
from exoflow.storage.probe import require_one_winner

PART_BYTES = 16 * 1024 * 1024
_PARTS_AT_ONCE = 4
_CONNECTIONS = 32
_CONNECT_SECONDS = 5
_READ_SECONDS = 15
_AMAZON = re.compile(r"https://s3[.-][a-z0-9.-]*amazonaws\.com(\.cn)?")
_PASSING_STATUSES = (408, 429)
_PASSING_CODES = (
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
)
_ADVICE = {
    "NoSuchBucket": "create the bucket, or name another",
    "AccessDenied": "these credentials need s3:GetObject, PutObject, DeleteObject and ListBucket there",
    "InvalidAccessKeyId": "check the credentials",
    "SignatureDoesNotMatch": "check the credentials",
    "ExpiredToken": "renew the credentials",
    "RequestTimeTooSkewed": "set this machine's clock",
    "NotImplemented": "the server lacks an operation that stores need",
}
Answer = TypeVar("Answer")


class StrayAnswer(Exception):
    """An answer that no S3 server gives: a proxy's page, or one that was cut short."""


_ERRORS = (BotoCoreError, ClientError, ResponseParserError, StrayAnswer)


class S3Store:
    """Keys are objects below a prefix of a bucket. Safe for use by many threads.

    Parameters
    ----------
    location : S3Location
        Where; its endpoint, where it has none, comes from boto3's configuration (``AWS_ENDPOINT_URL``), and
        `uri` names it then. Credentials and TLS settings always come from there.
    create : bool
        Probe the store, unless that was done lately; without, nothing is written.
    backoff : Backoff
        How the verbs other than `put_if_absent` are repeated.

    Raises
    ------
    StorageUnavailable
        From every verb, when the server does not answer, refuses, or answers nonsense. When opened: if the
        store fails the probe.
    """

    def __init__(self, location: S3Location, *, create: bool = True, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._client, endpoint = _connect(location)
        self._location = dataclasses.replace(location, endpoint=None if _AMAZON.fullmatch(endpoint) else endpoint)
        self._root = f"{location.prefix}/" if location.prefix else ""
        self.uri = str(self._location)
        if create:
            require_one_winner(self, f"{endpoint}/{location.bucket}")

    def get(self, key: str) -> bytes | None:
        """Return the bytes at ``key``, or None when the server says that there are none."""

        def read() -> bytes | None:
            try:
                answer = self._client.get_object(**self._at(key))
                data: bytes = answer["Body"].read()
            except ClientError as error:
                if _refusal(error) == (404, "NoSuchKey"):
                    return None
                raise
            if "ETag" not in answer or answer.get("ContentLength") != len(data):
                raise StrayAnswer
            return data

        return self._repeated("read", key, read)

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key``, replacing what was there; large data in parts.

        A try that was given up may still land later; so two puts of one key, one after the other, end with
        the second only if the first was not repeated.
        """
        if len(data) > PART_BYTES:
            self._repeated("write", key, lambda: self._put_parts(key, data))
        else:
            self._repeated("write", key, lambda: self._put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` unless ``key`` exists; return whether this call created it.

        Tried once. After StorageUnavailable the outcome is unknown until the key is read.
        """
        with self._reported("create", key):
            try:
                self._put(key, data, IfNoneMatch="*")
            except ClientError as error:
                if _refusal(error) == (412, "PreconditionFailed"):
                    return False
                raise
            return True
        raise AssertionError

    def list(self, prefix: str) -> list[str]:
        """Return the keys below the folder ``prefix``, sorted."""
        folder = f"{self._root}{prefix.rstrip('/')}/" if prefix else self._root
        found: list[str] = []
        more: dict[str, str] = {}
        while True:
            page = self._repeated("list", prefix, functools.partial(self._page, folder, more))
            found += [entry["Key"].removeprefix(self._root) for entry in page.get("Contents", [])]
            if not page["IsTruncated"]:
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        # Consoles and some servers mark folders by keys that end in "/"; no key of a store does.
        own = () if prefix else (f"{PROBE_FOLDER}/",)
        return sorted(key for key in found if not key.endswith("/") and not key.startswith(own))

    def delete(self, key: str) -> None:
        """Remove ``key``; no error when it is absent."""

        def remove() -> None:
            if _status(self._client.delete_object(**self._at(key))) != 204:
                raise StrayAnswer

        self._repeated("delete", key, remove)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._location.bucket, "Key": self._root + key}

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        _etag(self._client.put_object(**self._at(key), Body=data, **condition))

    def _put_parts(self, key: str, data: bytes) -> None:
        """Write data in parts; it appears whole at the end, or not at all.

        An upload that a killed process leaves behind is invisible; a lifecycle rule of the bucket removes it.
        """
        at = self._at(key)
        upload = self._client.create_multipart_upload(**at).get("UploadId")
        if upload is None:
            raise StrayAnswer

        def send(number: int) -> dict[str, Any]:
            part = data[(number - 1) * PART_BYTES : number * PART_BYTES]
            place = {**at, "UploadId": upload, "PartNumber": number}
            etag = self._repeated("write", key, lambda: _etag(self._client.upload_part(**place, Body=part)))
            return {"PartNumber": number, "ETag": etag}

        try:
            with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="exoflow-parts") as pool:
                parts = list(pool.map(send, range(1, -(-len(data) // PART_BYTES) + 1)))
            whole = {"Parts": parts}
            _etag(self._client.complete_multipart_upload(**at, UploadId=upload, MultipartUpload=whole))
        except BaseException:
            with contextlib.suppress(*_ERRORS):
                self._client.abort_multipart_upload(**at, UploadId=upload)
            raise

    def _page(self, folder: str, more: dict[str, str]) -> dict[str, Any]:
        page: dict[str, Any] = self._client.list_objects_v2(Bucket=self._location.bucket, Prefix=folder, **more)
        # An empty page that some proxy made up must not pass for an empty folder.
        whole = page.get("Name") == self._location.bucket and page.get("Prefix", "") == folder and "IsTruncated" in page
        if not whole or (page["IsTruncated"] and "NextContinuationToken" not in page):
            raise StrayAnswer
        return page

    def _repeated(self, verb: str, key: str, attempt: Callable[[], Answer]) -> Answer:
        with self._reported(verb, key):
            return self._backoff.run(attempt, _passes)
        raise AssertionError

    @contextlib.contextmanager
    def _reported(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            endpoint = self._client.meta.endpoint_url
            message = f"cannot {verb} {self._location.place}/{key} at {endpoint}: {_explained(error)}"
            raise StorageUnavailable(key, message) from error


def _connect(location: S3Location) -> tuple[Any, str]:
    """Return a client of the server, and its URL."""
    session = boto3.session.Session()

    def client(endpoint: str | None) -> Any:
        # Buckets as host names are Amazon's way; other servers are found by path.
        by_path = endpoint is not None and not str(urllib.parse.urlsplit(endpoint).hostname).endswith("amazonaws.com")
        return session.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                max_pool_connections=_CONNECTIONS,
                tcp_keepalive=True,
                # Blobs and records carry checksums of their own, and not every server knows S3's newer ones.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if by_path else "auto"},
            ),
        )

    found = client(location.endpoint)
    endpoint = str(found.meta.endpoint_url)
    if location.endpoint is None and not _AMAZON.fullmatch(endpoint):
        found = client(endpoint)
    return found, endpoint


# --- answers ----------------------------------------------------------------------------------------------


def _status(answer: dict[str, Any]) -> int:
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _etag(answer: dict[str, Any]) -> str:
    """Return the tag that every answer to a write carries."""
    if "ETag" not in answer:
        raise StrayAnswer
    return str(answer["ETag"])


def _refusal(error: ClientError) -> tuple[int, str]:
    """Return status and S3 code of a refusal; for a page that is no S3 answer the code is the status."""
    return _status(error.response), str(error.response.get("Error", {}).get("Code", ""))


def _passes(error: Exception) -> bool:
    """Whether trying again later may help."""
    if isinstance(error, ClientError):
        status, code = _refusal(error)
        # A 404 in words that are not S3's is a proxy's, and proxies are repaired.
        stray = not code or code.isdigit()
        return status >= 500 or status in _PASSING_STATUSES or code in _PASSING_CODES or (stray and status == 404)
    return isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError, StrayAnswer))


def _explained(error: Exception) -> str:
    if isinstance(error, StrayAnswer):
        return "the answer is not one of an S3 server, or was cut short"
    if isinstance(error, NoCredentialsError):
        return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if not isinstance(error, ClientError):
        return str(error)
    status, code = _refusal(error)
    said = error.response.get("Error", {}).get("Message") or "no reason given"
    advice = _ADVICE.get(code) or (_ADVICE["AccessDenied"] if status == 403 else None)
    return f"{said} ({status} {code})" + (f"; {advice}" if advice else "")

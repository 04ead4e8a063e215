"""A prefix of a bucket on S3, or on a server that speaks its protocol, as a place where files arrive.

boto3 is imported when a place is first read; credentials come from its usual chain. A tag is an object's ETag and size.
An object is copied to an unnamed temporary file, so that a connection never has to last as long as reading does.
"""

import hashlib
import importlib.util
import os
import tempfile
import urllib.parse
from typing import Any, Final

from ingest.held import CONTENT_BYTES, Held
from ingest.places import Found, Gone, OutOfReach, Refused

_READ_BYTES: Final = 1024 * 1024
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 15
_PASSING_STATUSES: Final = (408, 429)
_PASSING_CODES: Final = ("OperationAborted", "RequestLimitExceeded", "RequestTimeout", "SlowDown", "Throttling")


class Bucket:
    """The objects below a prefix.

    Parameters
    ----------
    bucket, prefix
        The prefix without a ``/`` at its end; it may be empty.
    endpoint
        URL of the server; None is Amazon's, or the one that boto3's configuration names.
    """

    def __init__(self, bucket: str, prefix: str, endpoint: str | None) -> None:
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        self._made: Any = None

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._root}"

    @staticmethod
    def is_available() -> bool:
        """Whether boto3 is installed."""
        return importlib.util.find_spec("boto3") is not None

    def listed(self) -> list[Found]:
        """Return the objects that are there; see `ingest.places.Place.listed`."""
        found: list[Found] = []
        more: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", Bucket=self._bucket, Prefix=self._root, **more)
            # An empty page that some proxy made up must not pass for an empty bucket.
            if page.get("Name") != self._bucket or "IsTruncated" not in page:
                message = "the answer to a listing is not one of an S3 server"
                raise OutOfReach(message)
            for entry in page.get("Contents", []):
                name = entry["Key"].removeprefix(self._root)
                if name and not name.endswith("/"):  # what consoles mark folders by
                    found.append(Found(name, f"{entry['ETag']}-{entry['Size']}"))
            if not page["IsTruncated"]:
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def fetch(self, name: str) -> Held:
        """Return a copy of an object; see `ingest.places.Place.fetch`."""
        answer = self._ask("get_object", Bucket=self._bucket, Key=self._root + name)
        digest, size = hashlib.sha256(), 0
        with tempfile.TemporaryFile() as copy:
            for data in self._body(answer):
                digest.update(data)
                size += len(data)
                copy.write(data)
            copy.flush()
            held = Held(os.dup(copy.fileno()), f"{answer.get('ETag')}-{size}")
        if "ETag" not in answer or answer.get("ContentLength") != size:
            message = f"{name!r} came only in part"
            raise OutOfReach(message)
        held.content = digest.digest()[:CONTENT_BYTES].hex()
        return held

    def _client(self) -> Any:
        if self._made is None:
            import boto3
            from botocore.config import Config

            def client(endpoint: str | None, by_path: bool) -> Any:
                return boto3.session.Session().client(
                    "s3",
                    endpoint_url=endpoint,
                    config=Config(
                        retries={"total_max_attempts": 1},  # repeated by `Patience`, which tells
                        connect_timeout=_CONNECT_SECONDS,
                        read_timeout=_READ_SECONDS,
                        tcp_keepalive=True,
                        # Not every server knows S3's newer checksums.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                        s3={"addressing_style": "path" if by_path else "auto"},
                    ),
                )

            found = client(self._endpoint, by_path=False)
            host = urllib.parse.urlsplit(str(found.meta.endpoint_url)).hostname or ""
            # Buckets as host names are Amazon's way; other servers are found by path.
            other = not host.endswith(("amazonaws.com", "amazonaws.com.cn"))
            self._made = client(self._endpoint, by_path=True) if other else found
        return self._made

    def _ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            answer: dict[str, Any] = getattr(self._client(), verb)(**arguments)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code == "NoSuchKey":
                raise Gone(arguments["Key"]) from error
            # Words that are not S3's are a proxy's, and proxies are repaired.
            strange = not code or code.isdigit()
            if status >= 500 or status in _PASSING_STATUSES or code in _PASSING_CODES or (strange and status == 404):
                raise OutOfReach(str(error)) from error
            raise Refused(str(error)) from error
        except (BotoCoreError, ResponseParserError) as error:
            raise _refused(error) from error
        return answer

    def _body(self, answer: dict[str, Any]) -> Any:
        from botocore.exceptions import BotoCoreError

        try:
            yield from answer["Body"].iter_chunks(_READ_BYTES)
        except (BotoCoreError, OSError) as error:
            raise OutOfReach(str(error)) from error
        finally:
            answer["Body"].close()


def _refused(error: Exception) -> Exception:
    """Return what an error of the client means: nearly all are of the network."""
    from botocore import exceptions

    lasting = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.ParamValidationError,
        exceptions.ProfileNotFound,
        exceptions.NoRegionError,
    )
    if isinstance(error, lasting):
        return Refused(str(error))
    return OutOfReach(str(error))

"""What a store's URI says; pure.

``s3://BUCKET/PREFIX?endpoint=URL`` names a place on an S3 server, and is all that another process needs in
order to open it: the endpoint travels with the URI, credentials never do.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import urllib.parse

from exoflow.errors import DefinitionError

S3_SCHEME = "s3://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


@dataclasses.dataclass(frozen=True, slots=True)
class S3Location:
    """A folder on an S3 server.

    Attributes
    ----------
    bucket, prefix : str
        The bucket, and the folder in it; no ``/`` at either end of the prefix, which may be empty.
    endpoint : str or None
        URL of the server; None is Amazon's, or the one that boto3's configuration names.
    """

    bucket: str
    prefix: str
    endpoint: str | None = None

    @classmethod
    def parse(cls, uri: str) -> S3Location:
        """Invert ``str``; raises DefinitionError where ``uri`` is not such a place."""
        rest, _, query = uri.removeprefix(S3_SCHEME).partition("?")
        bucket, _, path = rest.partition("/")
        prefix = path.strip("/")
        if not uri.startswith(S3_SCHEME) or not _BUCKET.fullmatch(bucket) or "#" in path:
            raise _wrong(uri, "a store on S3 is named s3://BUCKET/PREFIX")
        if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
            raise _wrong(uri, "the prefix has a part that is empty, '.' or '..'")
        try:
            given = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
        except ValueError:
            given = [("", "")]
        if any(name != "endpoint" for name, _ in given) or len(given) > 1:
            raise _wrong(uri, "after '?' comes endpoint=URL, once, or nothing")
        return cls(bucket, prefix, _checked_endpoint(given[0][1]) if given else None)

    def __str__(self) -> str:
        """Return the URI."""
        return self.place if self.endpoint is None else f"{self.place}?endpoint={_quoted(self.endpoint)}"

    @property
    def place(self) -> str:
        """The URI without the endpoint."""
        return f"{S3_SCHEME}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def with_endpoint(uri: str, endpoint: str | None) -> str:
    """Return the URI of a store on S3 with the server's URL in it; None leaves it as it is.

    Raises
    ------
    DefinitionError
        When ``uri`` is not on S3, or names another endpoint already.
    """
    if endpoint is None:
        return uri
    if not uri.startswith(S3_SCHEME):
        message = f"an S3 endpoint goes with a store at s3://BUCKET/PREFIX, not with {uri!r}"
        raise DefinitionError(message)
    location = S3Location.parse(uri)
    endpoint = _checked_endpoint(endpoint)
    if location.endpoint not in (None, endpoint):
        raise _wrong(uri, f"it names another endpoint than {endpoint}")
    return str(dataclasses.replace(location, endpoint=endpoint))


def as_options(uri: str) -> str:
    """Return the options that name a store on a command line, quoted for a shell."""
    if not uri.startswith(S3_SCHEME):
        return f"--store {shlex.quote(uri)}"
    location = S3Location.parse(uri)
    endpoint = "" if location.endpoint is None else f" --s3-endpoint {shlex.quote(location.endpoint)}"
    return f"--store {shlex.quote(location.place)}{endpoint}"


def _checked_endpoint(endpoint: str) -> str:
    parts = urllib.parse.urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        message = f"the S3 endpoint {endpoint!r} is not a URL such as https://s3.example.org or http://127.0.0.1:9000"
        raise DefinitionError(message)
    if parts.username is not None:
        message = "the S3 endpoint holds credentials; give them through boto3's configuration, never in a URL"
        raise DefinitionError(message)
    return endpoint.rstrip("/")


def _quoted(endpoint: str) -> str:
    return urllib.parse.quote(endpoint, safe=":/[]")


def _wrong(uri: str, why: str) -> DefinitionError:
    return DefinitionError(f"cannot open a store at {uri!r}: {why}")

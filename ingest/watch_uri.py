"""What a ``watch://`` or ``follow://`` URI says. Nothing is opened here."""

import fnmatch
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ingest.bucket import Bucket
from ingest.places import Folder, Place
from ingest.source import SourceError

DEFAULT_PATIENCE_SECONDS: Final = 600.0
FOLDER_EVERY_SECONDS: Final = 1.0
BUCKET_EVERY_SECONDS: Final = 10.0
UNFINISHED: Final = (".tmp", ".part")
"""Ends of names that files have while they are written."""

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


@dataclass(frozen=True, slots=True)
class WatchUri:
    """A place where files arrive.

    Attributes
    ----------
    place
        The folder, or the prefix of a bucket.
    pattern
        What the names of the files match, by the rules of a shell; one with a ``/`` is matched with all of a name
        below the place, one without with its last part.
    ends
        Whether to end with the files that are there when the run begins.
    every_seconds
        The least time between two listings.
    patience_seconds
        How long to wait for a place that cannot be read.
    """

    place: Place
    pattern: str
    ends: bool
    every_seconds: float
    patience_seconds: float

    @staticmethod
    def parse(uri: str) -> "WatchUri":
        """Read a URI; raises SourceError where it says nothing that could be read."""
        path, _, query = uri.partition("://")[2].partition("?")
        given = _parameters(uri, query, ("pattern", "until", "every", "patience", "endpoint"))
        on_s3 = path.startswith("s3://")
        place: Place
        if on_s3:
            bucket, _, prefix = unquote(path.removeprefix("s3://")).partition("/")
            if not _BUCKET.fullmatch(bucket):
                raise SourceError(uri, "a prefix of a bucket is named as watch://s3://BUCKET/PREFIX")
            place = Bucket(bucket, prefix.strip("/"), _endpoint(uri, given.get("endpoint")))
        else:
            if "endpoint" in given:
                raise SourceError(uri, "endpoint goes with watch://s3://BUCKET/PREFIX")
            place = Folder(_absolute(uri, path, "watch:///FOLDER or watch://s3://BUCKET/PREFIX"))
        every = BUCKET_EVERY_SECONDS if on_s3 else FOLDER_EVERY_SECONDS
        return WatchUri(
            place,
            given.get("pattern", "*"),
            _ends(uri, given),
            _seconds(uri, "every", given, every, least=0.1),
            _seconds(uri, "patience", given, DEFAULT_PATIENCE_SECONDS),
        )

    def wants(self, name: str) -> bool:
        """Whether a file of this name is to be read: hidden and unfinished ones are not."""
        parts = name.split("/")
        if any(part.startswith((".", "_")) for part in parts) or name.lower().endswith(UNFINISHED):
            return False
        return fnmatch.fnmatchcase(name if "/" in self.pattern else parts[-1], self.pattern)


@dataclass(frozen=True, slots=True)
class FollowUri:
    """A text file that grows.

    Attributes
    ----------
    path
        Where it is.
    ends
        Whether to end where its last whole line ends when the run begins.
    patience_seconds
        How long to wait for a file that is not there, or cannot be read.
    """

    path: Path
    ends: bool
    patience_seconds: float

    @staticmethod
    def parse(uri: str) -> "FollowUri":
        """Read a URI; raises SourceError where it says nothing that could be read."""
        path, _, query = uri.partition("://")[2].partition("?")
        given = _parameters(uri, query, ("until", "patience"))
        return FollowUri(
            _absolute(uri, path, "follow:///PATH"),
            _ends(uri, given),
            _seconds(uri, "patience", given, DEFAULT_PATIENCE_SECONDS),
        )


def _parameters(uri: str, query: str, known: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise SourceError(uri, f"unknown parameter {name!r}; known are {', '.join(known)}")
        if name in given:
            raise SourceError(uri, f"parameter {name!r} is given twice")
        given[name] = value
    return given


def _absolute(uri: str, path: str, form: str) -> Path:
    found = unquote(path.removeprefix("localhost"))
    if not found.startswith("/") or "\0" in found:
        raise SourceError(uri, f"name it by its absolute path: {form}")
    return Path(found)


def _ends(uri: str, given: dict[str, str]) -> bool:
    if given.get("until", "end") != "end":
        raise SourceError(uri, f"until must be end, not {given['until']!r}; leave it out to read on for ever")
    return "until" in given


def _seconds(uri: str, name: str, given: dict[str, str], default: float, least: float = 0.0) -> float:
    try:
        seconds = float(given.get(name, default))
    except ValueError:
        seconds = math.nan
    if not least <= seconds < math.inf:
        raise SourceError(uri, f"{name} must be seconds, at least {least:g}, not {given[name]!r}")
    return seconds


def _endpoint(uri: str, endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.username is not None:
        shown = uri.partition("?")[0]
        raise SourceError(shown, "the endpoint holds credentials; give them through boto3's configuration")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SourceError(uri, f"endpoint must be a URL such as https://s3.example.org, not {endpoint!r}")
    return endpoint.rstrip("/")

"""Which source a URI stands for."""

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ingest.files import FileSource
from ingest.follow import FollowSource
from ingest.formats import INT64, holds_names, parse_columns
from ingest.kafka import KafkaSource
from ingest.source import JsonValue, Source, SourceError
from ingest.synthetic import Rmat, SyntheticSource
from ingest.watch import WatchSource

SUPPORTED: Final = (
    "a path (a file, a folder or a glob), file:///PATH, watch:///FOLDER, watch://s3://BUCKET/PREFIX, follow:///PATH, "
    "kafka://HOST:PORT/TOPIC[?from=...&until=end] and "
    "rmat://?scale=S&edges=N[&seed=K][&deletes=F]"
)

_RMAT_PARAMETERS: Final[dict[str, Callable[[str], float]]] = {
    "scale": int,
    "edges": int,
    "seed": int,
    "deletes": float,
}


def open_source(
    uri: str,
    columns: str = "src,dst",
    *,
    settled: JsonValue | None = None,
    on_lost_offset: str = "fail",
    tell: Callable[[str], None] | None = None,
    ids: str = INT64,
) -> Source:
    """Return the source a URI stands for.

    Parameters
    ----------
    uri
        A path or ``file:///PATH`` (a file, or a folder or glob for its files in name order), ``watch:///FOLDER`` or
        ``watch://s3://BUCKET/PREFIX`` (files that keep arriving), ``follow:///PATH`` (a text file that grows),
        ``kafka://HOST:PORT/TOPIC`` or ``rmat://?scale=20&edges=5000000&seed=1[&deletes=0.1]``.
    columns
        ``src,dst[,time][,op]`` in the order of the file's columns.
    settled
        What `Source.settle` returned when the run began; None where it begins now.
    on_lost_offset
        ``fail`` or ``skip``: what to do where a source has not kept what was to be read next, and with files that
        cannot be read or are not what they were.
    tell
        Gets lines about what a source waits for or has lost; None logs them as warnings.
    ids
        ``int64`` or ``string``: what src and dst hold, numbers or names.

    Raises
    ------
    SourceError
        The scheme is not supported, there is no such file, its name says no format, a query parameter is
        unknown, missing or out of range, or the column list is not one.

    Examples
    --------
    >>> open_source("rmat://?scale=4&edges=10").splits()
    ['rmat']
    """
    names = parse_columns(uri, columns, ids)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if scheme is None:
        return FileSource(uri, uri, names)
    match scheme[1].lower():
        case "file":
            return FileSource(uri, _file_path(uri), names)
        case "rmat":
            return _rmat_source(uri, names)
        case "watch":
            return WatchSource(uri, names, settled, on_lost_offset, tell)
        case "follow":
            return FollowSource(uri, names, settled, on_lost_offset, tell)
        case "kafka":
            return KafkaSource(uri, names, settled, on_lost_offset, tell)
        case other:
            raise SourceError(uri, f"{other}:// is not supported as a source; supported are {SUPPORTED}")


def _file_path(uri: str) -> str:
    path = uri.split("://", 1)[1].removeprefix("localhost")
    if not path.startswith("/"):
        raise SourceError(uri, "a file:// URI needs an absolute path: file:///PATH")
    return unquote(path)


def _rmat_source(uri: str, names: tuple[str, ...]) -> SyntheticSource:
    if "time" in names:
        raise SourceError(uri, "an R-MAT stream has no time column")
    if holds_names(names):
        raise SourceError(uri, "the ids of an R-MAT stream are numbers, not names: use it with ids int64")
    parts = urlsplit(uri)
    if parts.netloc or parts.path or parts.fragment:
        raise SourceError(uri, "rmat:// takes its parameters after a question mark: rmat://?scale=S&edges=N")
    parameters: dict[str, float] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _RMAT_PARAMETERS:
            raise SourceError(uri, f"unknown parameter {name!r}; known are {', '.join(_RMAT_PARAMETERS)}")
        if name in parameters:
            raise SourceError(uri, f"parameter {name!r} is given twice")
        try:
            parameters[name] = _RMAT_PARAMETERS[name](text)
        except ValueError:
            kind = "a whole number" if _RMAT_PARAMETERS[name] is int else "a number"
            raise SourceError(uri, f"parameter {name!r} must be {kind}, not {text!r}") from None
    for name in ("scale", "edges"):
        if name not in parameters:
            raise SourceError(uri, f"parameter {name!r} is missing")
    try:
        return SyntheticSource(uri, Rmat(**parameters))  # type: ignore[arg-type]  # int where the table says int
    except ValueError as error:
        raise SourceError(uri, str(error)) from None

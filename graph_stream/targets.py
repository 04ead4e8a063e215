"""What ``--publish`` says: where to publish which changes of which ranking; pure.

``DIR``, ``s3://BUCKET/PREFIX`` or ``kafka://HOST:PORT[,HOST:PORT]/TOPIC``, and behind a ``?`` any of ``top=K``
and ``algorithm=NAME``; ``endpoint=URL`` as for ``--store``.
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from pathlib import Path

from graph_stream.algorithms import ALGORITHMS
from graph_stream.errors import ConfigError

KAFKA_SCHEME = "kafka://"
S3_SCHEME = "s3://"
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:/,?\[\]]+):[0-9]{1,5}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclasses.dataclass(frozen=True)
class Target:
    """One ``--publish``.

    Attributes
    ----------
    place : str
        Where: an absolute path, ``s3://...`` with its endpoint, or ``kafka://...``; without the options.
    top : int or None
        Only the so many best vertices; None: all.
    algorithm : str
        The ranking.
    """

    place: str
    top: int | None
    algorithm: str

    @classmethod
    def parse(cls, uri: str, algorithms: tuple[str, ...]) -> Target:
        """Return what a URI asks for, in a run that computes some rankings, the first of them unasked.

        Raises
        ------
        ConfigError
            When it makes no sense; names the part that does not.
        """
        place, given = _split(uri)
        asked = given.pop("algorithm", algorithms[0])
        if asked not in algorithms:
            raise _wrong(uri, f"this run computes {', '.join(algorithms)}, not {asked}")
        if not ALGORITHMS[asked].local:
            raise _wrong(uri, f"every score of {asked} changes with each epoch, so there are no changes to publish")
        top = _positive(uri, given.pop("top")) if "top" in given else None
        if place.startswith(KAFKA_SCHEME):
            _check_kafka(uri, place)
        elif place.startswith(S3_SCHEME) and "endpoint" in given:
            place = f"{place}?{urllib.parse.urlencode({'endpoint': given.pop('endpoint')}, safe=':/')}"
        if given:
            raise _wrong(uri, f"unknown option {next(iter(given))!r}; known are top=K and algorithm=NAME")
        return cls(place, top, asked)


def absolute(uri: str) -> str:
    """Return a ``--publish`` that means the same from every folder."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        return uri
    path, question, query = uri.removeprefix("file://").partition("?")
    return f"{Path(path).expanduser().absolute()}{question}{query}"


def _split(uri: str) -> tuple[str, dict[str, str]]:
    place, _, query = uri.partition("?")
    if not place.removeprefix(S3_SCHEME).removeprefix(KAFKA_SCHEME).strip("/"):
        raise _wrong(uri, "it names no place")
    scheme, separator, _ = place.partition("://")
    if separator and f"{scheme}://" not in (S3_SCHEME, KAFKA_SCHEME):
        raise _wrong(uri, "known are a folder, s3://BUCKET/PREFIX and kafka://HOST:PORT/TOPIC")
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise _wrong(uri, f"behind the '?' come options such as top=100, not {query!r}") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise _wrong(uri, "an option is given twice")
    return place, dict(pairs)


def _check_kafka(uri: str, place: str) -> None:
    addresses, slash, topic = place.removeprefix(KAFKA_SCHEME).partition("/")
    if "@" in addresses:
        hidden = f"{KAFKA_SCHEME}...@{addresses.rpartition('@')[2]}/{topic}"
        raise _wrong(hidden, "credentials come from the environment, not from the URI")
    if not slash or not all(_ADDRESS.fullmatch(address) for address in addresses.split(",")):
        raise _wrong(uri, "a topic is named kafka://HOST:PORT[,HOST:PORT]/TOPIC")
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise _wrong(uri, f"{topic!r} is no name of a topic")


def _positive(uri: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise _wrong(uri, f"top must be a number of at least 1, not {text!r}")
    return int(text)


def _wrong(uri: str, why: str) -> ConfigError:
    return ConfigError(f"cannot publish to {uri!r}: {why}")

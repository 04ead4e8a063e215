"""Bad records as they were in their sources: what form they have, and what a `BadRecord` has not kept."""

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Final, TypeAlias

from ingest.files import FileSource
from ingest.follow import FollowSource
from ingest.formats import INT64, file_format
from ingest.kafka_uri import KafkaUri
from ingest.source import BadRecord, SourceError
from ingest.uri import open_source
from ingest.watch import WatchSource

_OfFiles: TypeAlias = FileSource | WatchSource | FollowSource

TEXT: Final = (".txt", ".tsv", ".csv")
JSON: Final = ".jsonl"
"""What holds JSON objects, one a line: messages that are JSON, and rows of Parquet."""
FORMS: Final = (*TEXT, JSON)


def form_of(uri: str, split: str) -> str:
    """Return the suffix of a file that could hold the bad records of a split: one of `TEXT`, or `JSON`."""
    if re.match("kafka://", uri, re.IGNORECASE):
        kind = f".{KafkaUri.parse(uri).format}"
    else:
        found = file_format(split)
        kind = JSON if found is None else found.kind
    return kind if kind in TEXT else JSON


class Originals:
    """The sources that bad records came from, opened again where they must be.

    Parameters
    ----------
    columns
        The column list they are read with.
    ids
        What src and dst hold; see `ingest.uri.open_source`.
    """

    def __init__(self, columns: str, ids: str = INT64) -> None:
        self._columns = columns
        self._ids = ids
        self._files: dict[str, _OfFiles | None] = {}
        self._headers: dict[tuple[str, str], bytes | None] = {}

    def header(self, uri: str, split: str) -> bytes | None:
        """Return the header of a CSV file without its line end; None where there is none, also of messages.

        Raises
        ------
        SourceError
            The file cannot be read.
        """
        name = uri, split
        if name not in self._headers:
            source = self._file_source(uri)
            self._headers[name] = None if source is None else source.header(split)
        return self._headers[name]

    def whole(self, record: BadRecord) -> Iterator[bytes]:
        """Yield all of a record that was cut, as its source has it, in pieces of bounded size.

        Raises
        ------
        SourceError
            Only lines of files can be read again; or the file cannot, or has changed.
        """
        source = self._file_source(record.source)
        if source is None or form_of(record.source, record.split) not in TEXT:
            raise SourceError(record.source, "only lines of files can be read again")
        with closing(source.line(record.split, record.offset)) as pieces:
            begin = b""
            for piece in pieces:
                begin += piece
                if len(begin) > len(record.raw):
                    break
            if len(begin) <= len(record.raw) or not begin.startswith(record.raw):
                detail = (
                    f"{record.split!r} has another line at offset {record.offset} than it had: it has changed since"
                )
                raise SourceError(record.source, detail)
            yield begin
            yield from pieces

    def _file_source(self, uri: str) -> _OfFiles | None:
        """Return a source of files; None for any other."""
        if uri not in self._files:
            source = open_source(uri, self._columns, ids=self._ids) if _names_files(uri) else None
            self._files[uri] = source if isinstance(source, _OfFiles) else None
        return self._files[uri]


def _names_files(uri: str) -> bool:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return scheme is None or scheme[1].lower() in ("file", "watch", "follow")

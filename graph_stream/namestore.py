"""The dictionary of a run in its store: Parquet objects that are read one behind the other.

A checkpoint adds the names that are new since the one before. Objects that lie next to each other are merged
beside the stream (`graph_stream.compaction`), so that there are never many.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from graph_stream.namelist import NameList
from graph_stream.snapshot import CorruptSnapshot
from ingest import Names, as_text

FORMAT_VERSION = 1
FANOUT = 8
"""Objects that are merged at a time, at least."""

SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("name", pa.large_string(), nullable=False),
    ]
)
_METADATA_KEY = b"graph_stream.names"

ReadBlob = Callable[[Any], bytes]


@dataclasses.dataclass(frozen=True)
class Part:
    """An object: the names with numbers from ``first`` on, so many."""

    first: int
    count: int
    blob: Any
    """Where it is: anything JSON can hold."""

    @property
    def end(self) -> int:
        """The number behind its last one."""
        return self.first + self.count


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """The objects that together are a dictionary: in order, from number 0 on, without a gap.

    Parameters
    ----------
    entries : tuple of Part
        The objects.
    digest : int
        `NameList.digest` of all their names.

    Raises
    ------
    CorruptSnapshot
        If they overlap or leave a gap.
    """

    entries: tuple[Part, ...] = ()
    digest: int = 0

    def __post_init__(self) -> None:
        expected = 0
        for part in self.entries:
            if part.first != expected or part.count < 1:
                message = f"{part.count} names from number {part.first} on where number {expected} comes next"
                raise CorruptSnapshot(message)
            expected = part.end

    def __len__(self) -> int:
        return self.entries[-1].end if self.entries else 0

    def append(self, part: Part, digest: int) -> Dictionary:
        """Return a dictionary with more names."""
        return Dictionary((*self.entries, part), digest)

    def replace(self, merged: Part) -> Dictionary:
        """Return the same with the objects that ``merged`` covers replaced by it."""
        before = [part for part in self.entries if part.end <= merged.first]
        after = [part for part in self.entries if part.first >= merged.end]
        return Dictionary((*before, merged, *after), self.digest)

    def due(self, first: int = 0) -> slice | None:
        """Return which entries from number ``first`` on to merge next; None if there are not enough.

        Those from the first on that is no longer than all behind it together. So a name comes into an object twice
        as long each time it is written again, and of those that stay each is longer than all behind it: there are
        about as many as the number of names has binary digits, and `FANOUT` more.
        """
        behind = sum(part.count for part in self.entries[first:])
        for place, part in enumerate(self.entries[first:], first):
            behind -= part.count
            if part.count <= behind:
                return slice(place, len(self.entries)) if len(self.entries) - place >= FANOUT else None
        return None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        entries = [[part.first, part.count, part.blob] for part in self.entries]
        return {"digest": f"{self.digest:016x}", "entries": entries}

    @classmethod
    def from_json(cls, shown: Mapping[str, Any]) -> Dictionary:
        """Invert `to_json`; raises CorruptSnapshot."""
        return cls(tuple(Part(*each) for each in shown["entries"]), int(shown["digest"], 16))


def encode(names: Names, first: int) -> bytes:
    """Return names with numbers from ``first`` on as Parquet with the columns of `SCHEMA`."""
    about = {_METADATA_KEY: json.dumps({"format_version": FORMAT_VERSION, "first": first}).encode()}
    columns = [np.arange(first, first + len(names)), as_text(names)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, SCHEMA.with_metadata(about)),
        sink,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"number": "DELTA_BINARY_PACKED", "name": "PLAIN"},
    )
    return bytes(sink.getvalue())


def decode(data: bytes, part: Part) -> Names:
    """Return the names in an object.

    Raises
    ------
    CorruptSnapshot
        When it is none, of a newer format, or does not hold what it should.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            about = json.loads((file.schema_arrow.metadata or {})[_METADATA_KEY])
            names = file.read(["name"]).column("name")
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        message = f"these bytes hold no names: {error}"
        raise CorruptSnapshot(message) from error
    if about["format_version"] != FORMAT_VERSION:
        message = f"names in format {about['format_version']}; this release reads {FORMAT_VERSION}"
        raise CorruptSnapshot(message)
    if (about["first"], len(names)) != (part.first, part.count):
        message = f"{len(names)} names from number {about['first']} on, not {part.count} from {part.first} on"
        raise CorruptSnapshot(message)
    found = names.cast(pa.large_binary()).combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def merged(parts: tuple[Part, ...], read_blob: ReadBlob) -> tuple[int, bytes]:
    """Return objects that lie next to each other as one: how many names, and its bytes."""
    names = pa.concat_arrays([decode(read_blob(part.blob), part) for part in parts])
    return len(names), encode(names, parts[0].first)


def stored_names(
    dictionary: Dictionary, read_blob: ReadBlob, begin: int = 0, end: int | None = None
) -> Iterator[Names]:
    """Yield the names of a dictionary with numbers from ``begin`` to before ``end``, object by object."""
    end = len(dictionary) if end is None else end
    for part in dictionary.entries:
        if part.end > begin and part.first < end:
            names = decode(read_blob(part.blob), part)
            yield names[max(begin - part.first, 0) : end - part.first]


def load(
    dictionary: Dictionary, read_blob: ReadBlob, names: NameList | None = None, count: int | None = None
) -> NameList:
    """Return a dictionary's names by number.

    Parameters
    ----------
    dictionary : Dictionary
        Where they are.
    read_blob : callable
        Returns the bytes of an object.
    names : NameList, optional
        What is there already: those that it has not yet are added.
    count : int, optional
        How many to load; by default all.

    Raises
    ------
    CorruptSnapshot
        When they are not those that were written.
    """
    names = NameList() if names is None else names
    for each in stored_names(dictionary, read_blob, len(names), count):
        names.extend(each)
    if len(names) == len(dictionary):
        check_digest(names, dictionary)
    return names


def check_digest(names: NameList, dictionary: Dictionary) -> None:
    """Raise CorruptSnapshot if names are not those that a dictionary was made of."""
    if (len(names), names.digest) != (len(dictionary), dictionary.digest):
        message = (
            f"the {len(names)} names that were read are not the {len(dictionary)} that were written; "
            "resume from a backup of the store, or start a new run"
        )
        raise CorruptSnapshot(message)

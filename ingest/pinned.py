"""Positions that say what they are offsets of, so that another file under the same name is never taken for it."""

import math
from collections.abc import Callable

from ingest.reader import ChunkedReader
from ingest.source import Block, JsonValue

Describe = Callable[[int], JsonValue]


class PinnedReader:
    """A `SplitReader` over one whose positions are offsets.

    Parameters
    ----------
    reader
        Reads the offsets.
    describe
        Returns what is to be recorded of an offset.
    """

    def __init__(self, reader: ChunkedReader, describe: Describe) -> None:
        self._reader = reader
        self._describe = describe

    @property
    def position(self) -> JsonValue:
        """The place just after the last record returned, and of what."""
        return self._describe(self._reader.position)

    def read(self, max_records: int, before: float = math.inf) -> Block:
        """Return the next run of records; see `SplitReader.read`."""
        return self._reader.read(max_records, before)

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()

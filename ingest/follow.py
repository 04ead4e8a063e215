"""A text file that grows as a source: what has come in whole lines, for ever.

A file that is rotated (renamed, and a new one made under its name) is read to its end, and then the new one from its
beginning: the followed name is a queue of files, of which each is a split. The first has the name of the file, the
later ones ``2:NAME`` and so on.

A position holds a digest of the bytes at the file's beginning and of those just before the offset, so that after a
restart another file is not taken for the one that was being read. Where bytes may have been lost, because the file was
cut back or replaced while nobody looked, that is told and never passed over silently (`on_lost_offset`).
"""

import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Final

import numpy as np
import pyarrow as pa

from ingest.content import Content
from ingest.formats import FileFormat, file_format
from ingest.held import CONTENT_BYTES, Held
from ingest.patience import Patience, seconds_until_retry
from ingest.pinned import PinnedReader
from ingest.reader import Chunk, ChunkedReader, LiveChunks
from ingest.source import BadRecord, JsonValue, Queue, SourceError, no_records
from ingest.watch_uri import FollowUri

Tell = Callable[[str], None]

ROTATED_SECONDS: Final = 5.0
"""A file that has lost its name is read on for so long after its last byte: its writer may still have it open."""
WAIT_SECONDS: Final = 0.2
_MARK_BYTES: Final = 1024
_SCAN_BYTES: Final = 1024 * 1024


class FollowSource(Queue):
    """The lines of a growing file.

    A position is ``{"at": offset, "of": digest}``, the digest that of the bytes around the offset.

    Parameters
    ----------
    uri
        The source as the user named it.
    names
        The column list, as `ingest.formats.parse_columns` returns it.
    settled
        What `settle` returned when the run began; None settles it anew.
    on_lost_offset
        What to do where bytes may have been lost: ``fail``, or ``skip`` them, which is told and leaves a bad record
        that says where.
    tell
        Gets lines about a file that is not there or was replaced, and bytes that are lost.
    clock
        Seconds that never go back.

    Raises
    ------
    SourceError
        The URI says nothing that could be read, or the file's name does not say that it is plain text.
    """

    def __init__(
        self,
        uri: str,
        names: tuple[str, ...],
        settled: JsonValue | None = None,
        on_lost_offset: str = "fail",
        tell: Tell | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.uri = uri
        self._names = names
        self._follow = FollowUri.parse(uri)
        self._path = self._follow.path
        kind = file_format(self._path.name)
        if kind is None or kind.compression is not None or kind.kind == ".parquet":
            detail = f"only lines of .txt, .tsv and .csv files can be followed, not {self._path.name!r}"
            raise SourceError(uri, detail)
        self._kind: FileFormat = kind
        self._settled = settled
        self._skips = on_lost_offset == "skip"
        self._tell = tell or logging.getLogger(__name__).warning
        self._clock = clock
        self._patience = Patience(f"the file {self._path}", self._follow.patience_seconds, self._tell, clock)

    @property
    def bounded(self) -> bool:
        """Whether it ends where the file ended when the run began."""
        return self._follow.ends

    def splits(self) -> list[str]:
        """Return the name of the file; raises SourceError where it is not there."""
        try:
            self._opened()
        except OSError as error:
            raise SourceError(self.uri, f"the file cannot be followed: {error}") from error
        return [self._path.name]

    def settle(self) -> JsonValue | None:
        """Return, with ``until=end``, where the last whole line ends."""
        if not self._follow.ends:
            return None
        try:
            held = self._opened()
            return {"end": _whole_up_to(held, 0, held.size)}
        except OSError as error:
            raise SourceError(self.uri, f"the file cannot be followed: {error}") from error

    def next(self) -> str | None:
        """Return the file that has the name now, or will have; see `ingest.source.Queue.next`."""
        number = len(self.register) + 1
        if number == 1:
            return self._path.name
        return None if self.bounded else f"{number}:{self._path.name}"

    def finish(self, split: str, position: JsonValue) -> None:
        """Note that a file is over; see `ingest.source.Queue.finish`."""
        self.register.add(split, "", position["of"], read=True)

    def open(self, split: str, position: JsonValue | None, until: JsonValue | None = None) -> PinnedReader:
        """Open a file at a position; see `ingest.source.Source.open`."""
        if until is not None:
            stop = until["at"]
        elif self.bounded:
            if self._settled is None:
                self._settled = self.settle()
            assert self._settled is not None
            stop = self._settled["end"]
        else:
            stop = None
        at = 0 if position is None else position["at"]
        mark = _Mark(position, until)
        chunks = self._chunks(split, position, stop, mark, again=until is not None)
        return PinnedReader(ChunkedReader(chunks, at, "time" in self._names, stop), mark.position)

    def wait(self, seconds: float) -> None:
        """Wait; see `ingest.source.LiveSource.wait`."""
        time.sleep(seconds)

    def close(self) -> None:
        """Do nothing: only readers hold something open."""

    def header(self, split: str) -> bytes | None:
        """Return the header of the file that has the name now; None where it has none.

        Raises
        ------
        SourceError
            It cannot be read.
        """
        try:
            held = self._opened()
            return self._content(split, held, held.size).header()
        except OSError as error:
            raise SourceError(self.uri, f"{split!r} cannot be read: {error}") from error

    def line(self, split: str, offset: int) -> Generator[bytes]:
        """Yield a line of the file that has the name now, without its line feed, in pieces of bounded size.

        Raises
        ------
        SourceError
            It cannot be read, or no line begins there.
        """
        try:
            held = self._opened()
            yield from self._content(split, held, held.size).line(offset)
        except OSError as error:
            raise SourceError(self.uri, f"{split!r} cannot be read at position {offset}: {error}") from error

    def _chunks(
        self, split: str, position: JsonValue | None, stop: int | None, mark: "_Mark", *, again: bool
    ) -> LiveChunks:
        waits = stop is not None
        held = yield from self._wait_for_file(waits)
        at = 0 if position is None else position["at"]
        mark.held, mark.newest = held, _mark(held, at)
        if (position is not None and mark.newest != position["of"]) or (again and held.size < (stop or 0)):
            mark.newest = "" if position is None else position["of"]
            yield self._lose(split, at, "it was cut back, or another file has its name", mark, can_skip=not again)
            return
        scanned = at
        still_since: float | None = None
        while stop is None or at < stop:
            size = held.size if stop is None else min(held.size, stop)
            if size < scanned or mark.newest != _mark(held, at):
                yield self._lose(split, at, "it was cut back", mark, can_skip=not again)
                return
            whole = max(at, _whole_up_to(held, scanned, size))
            if size > scanned:
                still_since = None
            scanned = size
            if whole > at:
                try:
                    with closing(self._content(split, held, whole).chunks(at)) as chunks:
                        for chunk in chunks:
                            yield chunk
                            at = chunk.end(at)
                            mark.newest = _mark(held, at)
                except (OSError, pa.ArrowException) as error:
                    yield self._lose(split, at, str(error), mark, can_skip=not again)
                    return
                at = whole
                mark.newest = _mark(held, at)
                nothing = np.empty(0, np.int64)
                yield Chunk(no_records("time" in self._names), nothing, nothing, reached=at)  # also what is no record
                continue
            if not self._is_replaced(held):
                still_since = None
            elif still_since is None:
                still_since = self._clock()
            elif self._clock() >= still_since + ROTATED_SECONDS:
                if waits or scanned > at:
                    why = "another file has its name, and it ended in the middle of a line"
                    yield self._lose(split, at, why, mark, can_skip=not again)
                else:
                    self._tell(f"{self.uri}: another file has its name now; {split!r} was read to its end")
                return
            if waits:
                time.sleep(WAIT_SECONDS)
            else:
                yield None

    def _wait_for_file(self, waits: bool) -> Generator[None, None, Held]:
        while True:
            try:
                held = self._opened()
            except OSError as error:
                again = self._clock() + seconds_until_retry(self._patience, self.uri, error)
                while self._clock() < again:
                    if waits:
                        time.sleep(WAIT_SECONDS)
                    else:
                        yield None
            else:
                self._patience.answered()
                return held

    def _opened(self) -> Held:
        return Held(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))

    def _is_replaced(self, held: Held) -> bool:
        """Tell whether another file has the name: between two files nobody has it."""
        try:
            named = self._path.stat()
        except OSError:
            return False
        return not os.path.samestat(named, os.fstat(held.fd))

    def _lose(self, split: str, at: int, why: str, mark: "_Mark", *, can_skip: bool) -> Chunk:
        """Leave the file where bytes may be lost, if that is wanted."""
        lost = f"{split!r} was read up to {at}, and what followed is not there as it was: {why}"
        if not (self._skips and can_skip):
            detail = (
                f"{lost}. Nothing was skipped: put the file back and resume; a new run with --on-lost-offset skip "
                "would go on with the file that is there"
            )
            raise SourceError(self.uri, detail)
        self._tell(f"{self.uri}: {lost}; going on with the file that is there")
        mark.lose(at)
        bad = BadRecord(self.uri, split, at, b"", f"lost: {why}")
        nothing = np.empty(0, np.int64)
        return Chunk(no_records("time" in self._names), nothing, nothing, (bad,), (at,))

    def _content(self, split: str, held: Held, size: int) -> Content:
        return Content(self.uri, split, functools.partial(held.open, size), self._kind, self._names)


class _Mark:
    """What is recorded of the offsets of one reader.

    Attributes
    ----------
    held
        The file, once it is there.
    newest
        The digest at the end of the chunk that was read last.
    """

    def __init__(self, position: JsonValue | None, until: JsonValue | None) -> None:
        self.held: Held | None = None
        self.newest = ""
        self._position = position
        self._given = {given["at"]: given for given in (position, until) if given is not None}
        self._known = self._given

    def position(self, at: int) -> JsonValue | None:
        """Return the position at an offset."""
        if at not in self._known and self.held is not None:
            self._known = {**self._given, at: {"at": at, "of": _mark(self.held, at)}}
        return self._known.get(at, self._position)

    def lose(self, at: int) -> None:
        """Note that the bytes may not be those that were read any more."""
        self._known = {at: {"at": at, "of": self.newest}, **self._known}
        self.held = None


def _mark(held: Held, at: int) -> str:
    """Return a digest of the bytes at the beginning and of those just before an offset."""
    size = min(_MARK_BYTES, at)
    return hashlib.sha256(held.read(0, size) + held.read(at - size, size)).digest()[:CONTENT_BYTES].hex()


def _whole_up_to(held: Held, begin: int, end: int) -> int:
    """Return where the last line ends that ends between two offsets; 0 where none does."""
    while end > begin:
        start = max(begin, end - _SCAN_BYTES)
        line_feed = held.read(start, end - start).rfind(b"\n")
        if line_feed >= 0:
            return start + line_feed + 1
        end = start
    return 0

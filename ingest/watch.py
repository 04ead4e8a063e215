"""Files that keep arriving as a source: a queue, in which each file is read once, by name and content.

**When.** A file is read as soon as it is listed, so it has to be whole when it gets its name. Objects on S3 are; into
a folder files are moved by renaming, or written under a name that is hidden or ends in one of `watch_uri.UNFINISHED`.

**Once.** A file that is over is remembered by name and content. Listed again with another tag it is digested again:
the same content is nothing new, other content is an error, or is passed over and told (`on_lost_offset`). Only names
and contents are ever compared, never times.

**In which order.** The new files of one listing are read one after the other, in the order of their names by code
point; then what has come meanwhile is listed.

**All or nothing.** Before its first record counts, a file is held: its bytes are digested, and unpacked or decoded to
their end. So a file that is damaged or of no known format counts for nothing, and can be put right under its name.
A position holds the digest, and with other content under the name it is no position.
"""

import base64
import functools
import logging
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa

from ingest.beside import GRACE_SECONDS, Beside
from ingest.bucket import Bucket
from ingest.content import Content
from ingest.formats import KNOWN_FORMATS, file_format
from ingest.held import Held
from ingest.patience import Patience, seconds_until_retry
from ingest.pinned import PinnedReader
from ingest.places import Found, Gone, OutOfReach, Refused
from ingest.reader import Chunk, ChunkedReader, LiveChunks
from ingest.source import BadRecord, JsonValue, Queue, SourceError, no_records
from ingest.watch_uri import WatchUri

Tell = Callable[[str], None]
Result = TypeVar("Result")

LISTING_SHARE: Final = 10
"""After a listing that took a second comes no other for ten: looking is not to be what a reader does most."""
MAX_PAUSES: Final = 10
"""But the pause is at most ten times as long as was asked for: what was slow once may have been so by chance."""


@dataclass(slots=True)
class _Pin:
    """What the offsets of one reader are offsets of.

    Attributes
    ----------
    content
        The digest of the file; None while it is not known.
    passed
        The digest of what was passed over under this name, if anything was.
    """

    content: str | None = None
    passed: str | None = None

    def position(self, at: int) -> JsonValue:
        """Return the position at an offset."""
        if self.content is None:
            return None
        return {"at": at, "of": self.content} | ({} if self.passed is None else {"passed": self.passed})


class WatchSource(Queue):
    """The files of a place, in the order in which they are found.

    A position is ``{"at": offset, "of": digest}``, with ``passed`` where the file, or what has come in its place, was
    not read on; offsets are those of `ingest.files.FileSource`.

    Parameters
    ----------
    uri
        The source as the user named it.
    names
        The column list, as `ingest.formats.parse_columns` returns it.
    settled
        What `settle` returned when the run began; None settles it anew.
    on_lost_offset
        What to do with a file that cannot be read, or has other content than what was read under its name: ``fail``,
        or ``skip`` it, which is told and leaves a bad record that says why.
    tell
        Gets lines about a place that cannot be read, and files that are passed over.
    clock
        Seconds that never go back.

    Raises
    ------
    SourceError
        The URI says nothing that could be read, or boto3 is not installed.
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
        self._watch = WatchUri.parse(uri)
        self._place = self._watch.place
        if isinstance(self._place, Bucket) and not self._place.is_available():
            raise SourceError(uri, "buckets need the extra s3: pip install 'exoflow[s3]'")
        self._settled = settled
        self._passes_over = on_lost_offset == "skip"
        self._tell = tell or logging.getLogger(__name__).warning
        self._clock = clock
        self._patience = Patience(str(self._place), self._watch.patience_seconds, self._tell, clock)
        self._waiting: deque[str] = deque()
        self._handed_out: list[str] = []  # since the last commit
        self._is_due_known = False
        self._list_at = self._again_at = 0.0
        self._seen: dict[str, str] = {}  # tags of listed files that are known to be over
        self._tags: dict[str, str] = {}  # of files that are being read
        self._held: tuple[str, Held] | None = None
        self._listing: Beside[tuple[list[Found], float]] | None = None
        self._fetching: Beside[tuple[Held, str | None]] | None = None

    @property
    def bounded(self) -> bool:
        """Whether it ends with the files that were there when the run began."""
        return self._watch.ends

    def splits(self) -> list[str]:
        """Return the names of the files that are there, in order; raises SourceError where there is no such place."""
        try:
            return sorted(found.name for found in self._place.listed() if self._watch.wants(found.name))
        except (OutOfReach, Refused) as error:
            raise SourceError(self.uri, f"{self._place} cannot be read: {error}") from error

    def settle(self) -> JsonValue | None:
        """Return, with ``until=end``, the names of the files that are there."""
        return self._settled_now() if self._watch.ends else None

    def _settled_now(self) -> dict[str, JsonValue]:
        return {"names": _packed(self.splits())}

    def next(self) -> str | None:
        """Return the file to be read next; see `ingest.source.Queue.next`."""
        while True:
            while self._waiting:
                name = self._waiting.popleft()
                if self._is_to_be_read(name):
                    self._handed_out.append(name)
                    return name
            if not (self._take_those_due() if self._watch.ends else self._list()):
                return None

    def finish(self, split: str, position: JsonValue) -> None:
        """Note that a file is over; see `ingest.source.Queue.finish`."""
        passed, tag = position.get("passed"), self._tags.pop(split)
        if passed is None or position["at"] > 0:
            self.register.add(split, tag, position["of"], read=True)
        if passed is not None:
            self.register.add(split, tag, passed, read=False)
        self._seen[split] = tag
        self._held = None

    def commit(self) -> None:
        """Let what was finished count."""
        super().commit()
        self._handed_out.clear()

    def rollback(self) -> None:
        """Forget what was finished since the last `commit`: it will be read again."""
        super().rollback()
        for name in self._handed_out:
            self._seen.pop(name, None)
        self._waiting.extendleft(reversed(self._handed_out))
        self._handed_out.clear()

    def open(self, split: str, position: JsonValue | None, until: JsonValue | None = None) -> PinnedReader:
        """Open a file at a position; see `ingest.source.Source.open`."""
        start = 0 if position is None else position["at"]
        pin = _Pin() if position is None else _Pin(position["of"])
        if until is None:
            stop = None
        else:
            stop = until["at"]
            pin = _Pin(until["of"], until.get("passed"))
        chunks = self._chunks(split, position, until, pin)
        return PinnedReader(ChunkedReader(chunks, start, "time" in self._names, stop), pin.position)

    def wait(self, seconds: float) -> None:
        """Return when it is time to look again; see `ingest.source.LiveSource.wait`."""
        under_way = self._fetching or self._listing
        if under_way is not None:
            under_way.wait(seconds)
        else:
            time.sleep(max(0.0, min(seconds, max(self._list_at, self._again_at) - self._clock())))

    def close(self) -> None:
        """Let go of the file that is held."""
        self._held = self._listing = self._fetching = None

    def header(self, split: str) -> bytes | None:
        """Return the header of a CSV file, as it is now, without its line end; None where it has none.

        Raises
        ------
        SourceError
            The file cannot be read.
        """
        return self._content_now(split).header()

    def line(self, split: str, offset: int) -> Generator[bytes]:
        """Yield the line that begins at an offset, as it is now, without its line feed, in pieces of bounded size.

        Raises
        ------
        SourceError
            The file cannot be read, is no text file, or no line begins there (any more).
        """
        content = self._content_now(split)
        try:
            yield from content.line(offset)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(self.uri, f"{split!r} cannot be read at position {offset}: {error}") from error

    # --- which file -------------------------------------------------------------------------------------------

    def _take_those_due(self) -> bool:
        """Let the files wait that the run is to end with; tell whether there are any more."""
        if self._is_due_known:
            return False
        if self._settled is None:
            self._settled = self._settled_now()
        self._is_due_known = True
        self._waiting.extend(name for name in _unpacked(self._settled["names"]) if not self.register.knows(name))
        return bool(self._waiting)

    def _list(self) -> bool:
        """Look what is there, if it is time to; tell whether there is anything to be looked into."""
        if self._listing is None:
            if self._clock() < self._list_at:
                return False
            self._listing = Beside(self._look)
        if not self._listing.wait(GRACE_SECONDS):
            return False
        listing, self._listing = self._listing, None
        try:
            listed, took = listing.result()
        except OutOfReach as error:
            self._list_at = self._clock() + seconds_until_retry(self._patience, self.uri, error)
            return False
        except Refused as error:
            raise self._refused(error) from error
        self._patience.answered()
        every = self._watch.every_seconds
        self._list_at = self._clock() + min(max(every, LISTING_SHARE * took), MAX_PAUSES * every)
        self._seen = {each.name: each.tag for each in listed if self._is_over(each)}
        self._waiting.extend(sorted(each.name for each in listed if each.name not in self._seen))
        return bool(self._waiting)

    def _look(self) -> tuple[list[Found], float]:
        """Return what is there and is wanted, and the seconds that took."""
        began = self._clock()
        listed = [found for found in self._place.listed() if self._watch.wants(found.name)]
        return listed, self._clock() - began

    def _is_over(self, found: Found) -> bool:
        return self._seen.get(found.name) == found.tag or self.register.has_tag(found.name, found.tag)

    def _is_to_be_read(self, name: str) -> bool:
        """Tell whether a file is new: one of a known name is, where its content is not known."""
        if not self.register.knows(name):
            return True
        if self._watch.ends:
            return False
        try:
            held = self._patiently(functools.partial(self._place.fetch, name))
        except Gone:
            return False  # what was over may go
        if self.register.has_content(name, held.content):
            self._seen[name] = held.tag
            return False
        return True

    # --- what is in it ----------------------------------------------------------------------------------------

    def _chunks(self, split: str, position: JsonValue | None, until: JsonValue | None, pin: _Pin) -> LiveChunks:
        begun = pin.content
        held, fault = yield from self._hold(split, begun, waits=until is not None or self.bounded)
        if begun is not None and held.content != begun:
            at = 0 if position is None else position["at"]
            why = f"{split!r} has other content than when it was read" + (f" up to {at}" if at else "")
            yield self._pass_over(split, at, why, held, pin, can=until is None)
            return
        if fault is not None:
            yield self._pass_over(split, 0, fault, held, pin, can=True)
            return
        pin.content = held.content
        self._tags[split] = held.tag
        at = 0 if position is None else position["at"]
        try:
            with closing(self._content(split, held).chunks(at)) as chunks:
                for chunk in chunks:
                    if not held.is_unchanged:
                        why = f"{split!r} was changed while it was read"
                        yield self._pass_over(split, at, why, held, pin, can=until is None)
                        return
                    yield chunk
                    at = chunk.end(at)
        except (OSError, pa.ArrowException) as error:
            detail = f"{split!r} cannot be read from position {at} on: {error}. Nothing before it is lost"
            raise SourceError(self.uri, detail) from error

    def _hold(self, split: str, content: str | None, waits: bool) -> Generator[None, None, tuple[Held, str | None]]:
        """Return the file, once the place gives it out, and what is wrong with one that was not begun.

        Meanwhile yield None, or wait.
        """
        if self._held is not None and self._held[0] == split and self._held[1].content == content:
            return self._held[1], None
        self._held = None
        fetch = functools.partial(self._fetched, split, is_new=content is None)
        while True:
            try:
                if waits:
                    held, fault = fetch()
                else:
                    fetching = self._fetching = Beside(fetch)
                    try:
                        while not fetching.wait(GRACE_SECONDS):
                            yield None
                    finally:
                        self._fetching = None
                    held, fault = fetching.result()
            except OutOfReach as error:
                self._again_at = self._clock() + seconds_until_retry(self._patience, self.uri, error)
                while (left := self._again_at - self._clock()) > 0:
                    if waits:
                        time.sleep(left)
                    else:
                        yield None
            except Refused as error:
                raise self._refused(error) from error
            except Gone as error:
                part = (
                    "before it was read"
                    if content is None
                    else "before it was read to its end, or was to be read again"
                )
                detail = f"{split!r} is gone {part}. Nothing is lost: put it back and resume"
                raise SourceError(self.uri, detail) from error
            else:
                self._patience.answered()
                self._held = split, held
                return held, fault

    def _fetched(self, split: str, is_new: bool) -> tuple[Held, str | None]:
        held = self._place.fetch(split)
        return held, self._fault(split, held) if is_new else None

    def _fault(self, split: str, held: Held) -> str | None:
        """Return what keeps a file that was not begun from being read, if anything does."""
        if self.register.was_read(split):
            return f"{split!r} has other content than what was read under this name"
        if file_format(split) is None:
            return f"the name of {split!r} says no format; known are {KNOWN_FORMATS}"
        try:
            self._content(split, held).look_through()
        except (OSError, pa.ArrowException) as error:
            return f"{split!r} cannot be read to its end: {error}"
        except SourceError as error:
            return error.detail
        return None

    def _pass_over(self, split: str, at: int, why: str, held: Held, pin: _Pin, can: bool) -> Chunk:
        """Leave a file, or the rest of it, unread, if that is wanted."""
        if not can:
            raise SourceError(self.uri, f"{why}: what it held then is needed again; put that back and resume")
        if not self._passes_over:
            if at > 0:
                cure = f"No more of it was read: put back what {split!r} was"
            elif self.register.was_read(split):
                cure = "Nothing of it was read: give it another name, put the old one back or take it away"
            else:
                cure = "Nothing of it was read: put it right or take it away"
            detail = f"{why}. {cure}, and resume. A run with --on-lost-offset skip passes such files over"
            raise SourceError(self.uri, detail)
        self._tell(f"{self.uri}: {why}; passed over")
        # One that changed while it was read is over, too, with what it held before.
        pin.content, pin.passed = pin.content or held.content, held.content
        self._tags[split] = held.tag
        bad = BadRecord(self.uri, split, at, b"", f"passed over: {why}")
        nothing = np.empty(0, np.int64)
        return Chunk(no_records("time" in self._names), nothing, nothing, (bad,), (at,))

    def _content(self, split: str, held: Held) -> Content:
        kind = file_format(split)
        assert kind is not None  # nothing else is begun
        return Content(self.uri, split, held.open, kind, self._names)

    def _content_now(self, split: str) -> Content:
        try:
            held = self._place.fetch(split)
        except (Gone, OutOfReach, Refused) as error:
            raise SourceError(self.uri, f"{split!r} cannot be read: {error}") from error
        return self._content(split, held)

    # --- places that do not answer ----------------------------------------------------------------------------

    def _patiently(self, do: Callable[[], Result]) -> Result:
        while True:
            try:
                result = do()
            except OutOfReach as error:
                time.sleep(seconds_until_retry(self._patience, self.uri, error))
            except Refused as error:
                raise self._refused(error) from error
            else:
                self._patience.answered()
                return result

    def _refused(self, error: Refused) -> SourceError:
        return SourceError(self.uri, f"{self._place} refuses: {error}")


def _packed(names: list[str]) -> str:
    """Return names in a short form: those in one place are much alike."""
    text = "\0".join(names).encode("utf-8", "surrogateescape")
    return base64.b64encode(zlib.compress(text, 9)).decode()


def _unpacked(packed: str) -> list[str]:
    text = zlib.decompress(base64.b64decode(packed)).decode("utf-8", "surrogateescape")
    return text.split("\0") if text else []

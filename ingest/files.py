"""Files as a source: a file, or the files of a folder or glob in name order, one split each.

Exactly-once capable: a position is a byte offset into the uncompressed text, or a row number of a Parquet
file, so a file that stays as it is can be read again from any position. To get there in a compressed file it
is decompressed from its beginning.
"""

import functools
import glob
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ingest.content import Content
from ingest.formats import KNOWN_FORMATS, file_format
from ingest.reader import ChunkedReader, Chunks
from ingest.source import JsonValue, SourceError
from ingest.text import CHUNK_BYTES, MAX_LINE_BYTES


@dataclass(frozen=True, slots=True)
class FileSource:
    """Edge changes in files.

    Parameters
    ----------
    uri
        The source as the user named it.
    path
        A file, a folder or a glob.
    names
        The column list, as `ingest.formats.parse_columns` returns it.
    chunk_bytes, max_line_bytes
        See `ingest.text.TextSplit`.

    Attributes
    ----------
    files
        The file of each split.

    Raises
    ------
    SourceError
        There is no such file, or a file's name says no format.
    """

    uri: str
    path: str
    names: tuple[str, ...]
    chunk_bytes: int = CHUNK_BYTES
    max_line_bytes: int = MAX_LINE_BYTES
    files: dict[str, Path] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            files = _find_files(self.path)
        except OSError as error:
            raise SourceError(self.uri, str(error)) from error
        for path in files.values():
            if file_format(path.name) is None:
                detail = f"the name of {str(path)!r} says no format; known are {KNOWN_FORMATS}"
                raise SourceError(self.uri, detail)
        object.__setattr__(self, "files", files)

    @property
    def bounded(self) -> bool:
        """Files end."""
        return True

    def splits(self) -> list[str]:
        """Return the names of the files, below the folder they were looked for in, in order."""
        return sorted(self.files)

    def open(self, split: str, position: JsonValue | None, until: JsonValue | None = None) -> ChunkedReader:
        """Open a file at a position; see `ingest.source.Source.open`."""
        start = 0 if position is None else int(position)
        return ChunkedReader(self._chunks(split, start), start, "time" in self.names, until)

    def settle(self) -> None:
        """Settle nothing: files are what they are; see `ingest.source.Source.settle`."""

    def close(self) -> None:
        """Do nothing: only readers hold something open."""

    def header(self, split: str) -> bytes | None:
        """Return the header of a CSV file without its line end; None where it has none.

        Raises
        ------
        SourceError
            The file cannot be read.
        """
        with self._reading(split, 0):
            return self._content(split).header()

    def line(self, split: str, offset: int) -> Generator[bytes]:
        """Yield the line that begins at an offset, without its line feed, in pieces of bounded size.

        Raises
        ------
        SourceError
            The file cannot be read, is no text file, or no line begins there (any more).
        """
        with self._reading(split, offset), closing(self._content(split).line(offset)) as pieces:
            yield from pieces

    def _chunks(self, split: str, position: int) -> Chunks:
        """Yield the chunks of a file; what the system and pyarrow raise comes out as a `SourceError`."""
        try:
            with closing(self._content(split).chunks(position)) as chunks:
                for chunk in chunks:
                    yield chunk
                    position = chunk.end(position)
        except (OSError, pa.ArrowException) as error:
            detail = (
                f"{str(self.files[split])!r} cannot be read from position {position} on: {error}. "
                "Nothing before it is lost: put the file right and resume"
            )
            raise SourceError(self.uri, detail) from error

    @contextmanager
    def _reading(self, split: str, offset: int) -> Iterator[None]:
        """Turn what the system and pyarrow raise into a `SourceError`."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            detail = f"{str(self.files[split])!r} cannot be read at position {offset}: {error}"
            raise SourceError(self.uri, detail) from error

    def _content(self, split: str) -> Content:
        path = self.files.get(split)
        if path is None:
            raise SourceError(self.uri, f"{split!r} is not there (any more)")
        kind = file_format(path.name)
        assert kind is not None  # checked when the files were found
        raw = functools.partial(pa.OSFile, str(path))
        return Content(self.uri, split, raw, kind, self.names, self.chunk_bytes, self.max_line_bytes)


def _find_files(path: str) -> dict[str, Path]:
    """Return the files a path stands for, by split name.

    Raises
    ------
    OSError
        There is none.
    """
    if not path:
        message = "no path is given"
        raise FileNotFoundError(message)
    root = Path(path)
    if root.is_dir():
        found = {entry.name: entry for entry in root.iterdir() if entry.is_file() and entry.name[0] not in "._"}
        nothing = f"the folder {str(root)!r} holds no files"
    elif root.is_file():
        return {root.name: root}
    elif root.exists():
        found, nothing = {}, f"{str(root)!r} is neither a file nor a folder"
    elif glob.has_magic(path):
        folder = _fixed_part(root)
        matches = [Path(match) for match in glob.glob(str(root), recursive=True)]
        found = {match.relative_to(folder).as_posix(): match for match in matches if match.is_file()}
        nothing = f"no file matches {str(root)!r}"
    else:
        found, nothing = {}, f"there is no file or folder {str(root)!r}"
    if not found:
        raise FileNotFoundError(nothing)
    return found


def _fixed_part(pattern: Path) -> Path:
    """Return the folder in front of the first part of a glob that can match more than one name."""
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))

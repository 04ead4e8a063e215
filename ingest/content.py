"""What is in a file: its format, and the chunks of records and the lines it holds."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from ingest.formats import FileFormat
from ingest.parquet import ParquetSplit, parquet_chunks
from ingest.reader import Chunks
from ingest.source import SourceError
from ingest.streams import Raw, open_bytes, open_lines
from ingest.text import CHUNK_BYTES, MAX_LINE_BYTES, TextSplit, header_of, pieces_of_line, text_chunks

_LOOK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Content:
    """A file as a split of a source.

    Every method may raise OSError and pyarrow.ArrowException, where the file cannot be read or is damaged.

    Attributes
    ----------
    uri, split
        The names of the source and the split, for errors and bad records.
    raw
        Opens its bytes.
    kind
        How they are to be read.
    names
        The column list, as `ingest.formats.parse_columns` returns it.
    chunk_bytes, max_line_bytes
        See `ingest.text.TextSplit`.
    """

    uri: str
    split: str
    raw: Raw
    kind: FileFormat
    names: tuple[str, ...]
    chunk_bytes: int = CHUNK_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    def chunks(self, position: int) -> Chunks:
        """Yield the chunks from a position on."""
        text = self._text()
        if text is not None:
            return text_chunks(text, position)
        rows = ParquetSplit(self.uri, self.split, lambda: open_bytes(self.raw, self.kind), self.names)
        return parquet_chunks(rows, position)

    def look_through(self) -> None:
        """Read what can be damaged to its end: all of a file that is compressed or Parquet; lines are what they are.

        Raises
        ------
        SourceError
            It is Parquet without the wanted columns.
        """
        if self.kind.kind == ".parquet":
            with closing(self.chunks(0)) as chunks:
                for _ in chunks:
                    pass
        elif self.kind.compression is not None:
            with open_lines(self.raw, self.kind, 0) as stream:
                while stream.read(_LOOK_BYTES):
                    pass

    def header(self) -> bytes | None:
        """Return the header of a CSV file without its line end; None where it has none."""
        text = self._text()
        return None if text is None else header_of(text)

    def line(self, offset: int) -> Generator[bytes]:
        """Yield the line that begins at an offset, without its line feed, in pieces of bounded size.

        Raises
        ------
        SourceError
            It is no text file.
        """
        text = self._text()
        if text is None:
            raise SourceError(self.uri, f"{self.split!r} has no lines")
        with closing(pieces_of_line(text, offset)) as pieces:
            yield from pieces

    def _text(self) -> TextSplit | None:
        """Return a file as lines; None where it is Parquet."""
        if self.kind.kind == ".parquet":
            return None
        return TextSplit(
            self.uri,
            self.split,
            lambda offset: open_lines(self.raw, self.kind, offset),
            self.kind.kind,
            self.names,
            self.chunk_bytes,
            self.max_line_bytes,
        )

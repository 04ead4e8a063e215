"""Text files as chunks of records: whole lines from a stream of bytes, in bounded memory."""

import csv
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from ingest.formats import COLUMNS
from ingest.parse import Layout, layout_of, parse_lines
from ingest.reader import Chunk, Chunks
from ingest.source import MAX_RAW_BYTES, BadRecord

CHUNK_BYTES: Final = 256 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024

_DELIMITERS: Final = {".txt": b"", ".tsv": b"\t", ".csv": b","}
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TextSplit:
    """A text file as a split of a source.

    Attributes
    ----------
    uri, split
        The names of the source and the split, for bad records.
    open
        Opens a stream of the uncompressed bytes from an offset on.
    kind
        ``.txt``, ``.tsv`` or ``.csv``.
    names
        The column list.
    chunk_bytes
        How much is read and parsed at a time.
    max_line_bytes
        A longer line is a bad record; no more of it is held.
    """

    uri: str
    split: str
    open: Callable[[int], pa.NativeFile]
    kind: str
    names: tuple[str, ...]
    chunk_bytes: int = CHUNK_BYTES
    max_line_bytes: int = MAX_LINE_BYTES


@dataclass(frozen=True, slots=True)
class Lines:
    """Some whole lines of a file.

    Attributes
    ----------
    offset, end
        The bytes of the file they take.
    data
        The lines, each with a line feed: the last of a file is given one, and one that is too long is cut.
    """

    offset: int
    end: int
    data: bytes

    def end_in_file(self, end: int) -> int:
        """Turn the end of a line in the data into its end in the file."""
        return self.end if end == len(self.data) else self.offset + end


def read_lines(stream: pa.NativeFile, offset: int, chunk_bytes: int, max_line_bytes: int) -> Iterator[Lines]:
    """Read a stream as runs of whole lines.

    Parameters
    ----------
    stream
        At the start of a line, `offset` bytes into the file.
    offset
        Where that is.
    chunk_bytes
        How much to read at a time.
    max_line_bytes
        More than this of a line is not kept; at least one byte more is, so that it is seen to be too long.
    """
    rest = b""
    while data := stream.read(chunk_bytes):
        data = rest + data
        whole = data.rfind(b"\n") + 1
        if whole:
            yield Lines(offset, offset + whole, data[:whole])
            offset += whole
        rest = data[whole:]
        if len(rest) > max_line_bytes:
            head = rest
            skipped, rest = _skip_line(stream, chunk_bytes)
            end = offset + len(head) + skipped
            yield Lines(offset, end, head + b"\n")
            offset = end
    if rest:
        yield Lines(offset, offset + len(rest), rest + b"\n")


def _skip_line(stream: pa.NativeFile, chunk_bytes: int) -> tuple[int, bytes]:
    """Read up to the end of the line; return its length and what was read beyond it."""
    skipped = 0
    while data := stream.read(chunk_bytes):
        line_feed = data.find(b"\n")
        if line_feed >= 0:
            return skipped + line_feed + 1, data[line_feed + 1 :]
        skipped += len(data)
    return skipped, b""


def text_chunks(split: TextSplit, position: int) -> Chunks:
    """Parse a text file from a position on, a chunk at a time."""
    layout, first = _layout(split)
    position = max(position, first)
    for lines in _lines_from(split, position):
        yield _chunk(split, lines, layout)


def _lines_from(split: TextSplit, offset: int) -> Iterator[Lines]:
    with _stream_from(split, offset) as stream:
        yield from read_lines(stream, offset, split.chunk_bytes, split.max_line_bytes)


def _stream_from(split: TextSplit, offset: int) -> pa.NativeFile:
    """Open the file where a line begins."""
    if offset == len(_BYTE_ORDER_MARK):
        stream = split.open(0)
        if stream.read(offset) == _BYTE_ORDER_MARK:  # a line begins behind it, though no line feed stands there
            return stream
        stream.close()
    return split.open(offset)


def pieces_of_line(split: TextSplit, offset: int) -> Generator[bytes]:
    """Yield a line without its line feed, however long it is, in pieces of bounded size."""
    with _stream_from(split, offset) as stream:
        while data := stream.read(split.chunk_bytes):
            piece, line_feed, _ = data.partition(b"\n")
            yield piece
            if line_feed:
                return


def _chunk(split: TextSplit, lines: Lines, layout: Layout) -> Chunk:
    parsed = parse_lines(lines.data, layout, split.max_line_bytes)
    bad = tuple(
        _bad_record(split, lines.offset + start, lines.data[start:end].removesuffix(b"\n"), reason)
        for start, end, reason in parsed.bad
    )
    ends = parsed.ends + lines.offset
    ends[-1:] = [lines.end_in_file(end) for end in parsed.ends[-1:].tolist()]
    bad_ends = tuple(lines.end_in_file(end) for _, end, _ in parsed.bad)
    return Chunk(parsed.records, parsed.starts + lines.offset, ends, bad, bad_ends)


def _bad_record(split: TextSplit, offset: int, line: bytes, reason: str) -> BadRecord:
    """Return a bad line; of one that is too long as much is kept, however much of it was read."""
    if len(line) <= split.max_line_bytes:
        line = line.removesuffix(b"\r")
    return BadRecord.of(split.uri, split.split, offset, line, reason, min(MAX_RAW_BYTES, split.max_line_bytes))


def _layout(split: TextSplit) -> tuple[Layout, int]:
    """Return the layout of the lines and the offset of the first that may be a record.

    With a header that holds all the wanted names the columns go by name, else by position.
    """
    layout = layout_of(_DELIMITERS[split.kind], split.names)
    header, first = _header(split, layout)
    return (layout if header is None else _header_layout(layout, header, split.names)), first


def header_of(split: TextSplit) -> bytes | None:
    """Return the header of a text file without its line end; None where it has none."""
    header, _ = _header(split, layout_of(_DELIMITERS[split.kind], split.names))
    return None if header is None else header.removesuffix(b"\n").removesuffix(b"\r")


def _header(split: TextSplit, layout: Layout) -> tuple[bytes | None, int]:
    """Return the header, if there is one, and the offset of the first line that may be a record.

    The first line of a CSV file that is no comment and not blank is a header where it does not parse. Where ids are
    names nearly any line parses: there it is one where it holds the names of all columns.
    """
    with split.open(0) as stream:
        mark = stream.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK
    first = len(_BYTE_ORDER_MARK) if mark else 0
    if split.kind != ".csv":
        return None, first
    for lines in _lines_from(split, first):
        parsed = parse_lines(lines.data, layout, split.max_line_bytes)
        parses = len(parsed.records) > 0 and not (parsed.bad and parsed.bad[0][0] < parsed.starts[0])
        if not parses and not parsed.bad:
            continue
        start, end = (int(parsed.starts[0]), int(parsed.ends[0])) if parses else parsed.bad[0][:2]
        line = lines.data[start:end]
        if set(split.names) <= set(_columns_named(line)) if layout.named else not parses:
            return line, lines.end_in_file(end)
        break
    return None, first


def _header_layout(by_position: Layout, header: bytes, names: tuple[str, ...]) -> Layout:
    found = _columns_named(header)
    if not set(names) <= set(found):
        return by_position
    index = tuple(found.index(name) if name in names else None for name in COLUMNS)
    return Layout(by_position.delimiter, index, by_position.named)


def _columns_named(header: bytes) -> list[str]:
    """Return what the columns of a line of CSV hold; nothing where it is none."""
    try:
        row = next(csv.reader([header.decode(errors="replace")], skipinitialspace=True))
    except csv.Error:  # such as a line return in the middle
        return []
    return [name.strip() for name in row]

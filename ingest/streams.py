"""Bytes of files, compressed or not, from an offset into the uncompressed bytes on."""

import shutil
import tempfile
from collections.abc import Callable
from typing import Final, TypeAlias, cast

import pyarrow as pa

from ingest.formats import FileFormat

CHANGED: Final = "the file has changed since"

_SKIP_BYTES: Final = 1024 * 1024

Raw: TypeAlias = Callable[[], pa.NativeFile]
"""Opens the bytes of a file as they are stored, from their beginning, as often as one likes."""


def open_bytes(raw: Raw, kind: FileFormat) -> pa.NativeFile:
    """Open a file for random access; a compressed one is unpacked into an unnamed temporary file.

    Raises
    ------
    OSError
        The file cannot be read, or its compressed bytes are damaged or cut short.
    """
    if kind.compression is None:
        return raw()
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  (closed with what is returned)
    try:
        with _input_stream(raw, kind) as stream:
            shutil.copyfileobj(stream, unpacked)
        unpacked.seek(0)
    except BaseException:
        unpacked.close()
        raise
    return pa.PythonFile(unpacked, mode="r")


def open_lines(raw: Raw, kind: FileFormat, offset: int) -> pa.NativeFile:
    """Open a text file at an offset where a line was seen to begin before.

    Raises
    ------
    OSError
        As `open_bytes`, or no line begins at `offset` (any more).
    """
    stream = _input_stream(raw, kind)
    try:
        if offset > 0:
            _skip(stream, offset - 1, seekable=kind.compression is None)
            before = stream.read(1)
            if not before:
                message = f"it ends before byte {offset}, up to which it was read before: {CHANGED}"
                raise OSError(message)
            if before != b"\n" and stream.read(1):
                message = f"no line begins at byte {offset}, up to which it was read before: {CHANGED}"
                raise OSError(message)
    except BaseException:
        stream.close()
        raise
    return stream


def _input_stream(raw: Raw, kind: FileFormat) -> pa.NativeFile:
    """Open the uncompressed bytes of a file.

    A compressed file has a header, even one of nothing; pyarrow takes one that lacks it for its end, and so would
    pass over a file that was cut short to no bytes.
    """
    stream = raw()
    if kind.compression is None:
        return stream
    try:
        if stream.size() == 0:
            message = f"it is empty, which no {kind.compression} file is: it was cut short"
            raise OSError(message)
        return pa.CompressedInputStream(stream, kind.compression)
    except BaseException:
        stream.close()
        raise


def _skip(stream: pa.NativeFile, n_bytes: int, seekable: bool) -> None:
    if seekable:
        stream.seek(n_bytes)
        return
    while n_bytes and (skipped := len(cast(bytes, stream.read(min(n_bytes, _SKIP_BYTES))))):
        n_bytes -= skipped

"""Columns of names: the ids of records where ids are not numbers.

A name is any text of 1 to `MAX_NAME_BYTES` bytes of UTF-8, and two are the same where their bytes are. A column of
them is one buffer of bytes and where each ends, as Arrow has it: there is no Python object for a name.
"""

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MAX_NAME_BYTES: Final = 1024
"""A longer name is a bad record."""

Names: TypeAlias = pa.LargeBinaryArray
Bytes: TypeAlias = npt.NDArray[np.uint8]
Bounds: TypeAlias = npt.NDArray[np.int64]


def column_of(data: Bytes, bounds: Bounds) -> Names:
    """Return n names that lie one behind the other.

    Parameters
    ----------
    data
        uint8[b], their bytes; not to be written to afterwards.
    bounds
        int64[n + 1], where each begins, and the last ends.
    """
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(bounds) - 1, buffers)


def parts_of(names: Names) -> tuple[Bytes, Bounds]:
    """Return the bytes of a column and the n + 1 bounds of its names in them, as views that cannot be written to."""
    if not len(names):
        return _read_only(np.empty(0, np.uint8)), _read_only(np.zeros(1, np.int64))
    _, bounds, data = names.buffers()
    places = np.frombuffer(bounds, np.int64)[names.offset : names.offset + len(names) + 1]
    # A column of empty values alone has no buffer for their bytes.
    return _read_only(np.frombuffer(data or b"", np.uint8)), _read_only(places)


def as_text(names: Names) -> pa.LargeStringArray:
    """Return names as text; raises pyarrow.ArrowInvalid where one is not UTF-8."""
    return names.cast(pa.large_string())


def not_utf8(names: Names) -> npt.NDArray[np.bool_]:
    """Tell which names of a column are not UTF-8."""
    try:
        as_text(names)
    except pa.ArrowInvalid:
        return np.array([not _is_utf8(name) for name in names.to_pylist()], np.bool_)
    return np.zeros(len(names), np.bool_)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view

"""Which format a file name or a column list stands for."""

from dataclasses import dataclass
from typing import Final

from ingest.source import SourceError

COLUMNS: Final = ("src", "dst", "op", "time")
"""The names a column list may hold; every per-column array of this package is in this order."""

INT64: Final = "int64"
STRING: Final = "string"
IDS: Final = (INT64, STRING)
"""What the ids in src and dst are: numbers, or names (`ingest.names`)."""


class NamedColumns(tuple[str, ...]):
    """A column list of records whose ids are names."""

    __slots__ = ()


def holds_names(columns: tuple[str, ...]) -> bool:
    """Tell whether the ids of a column list are names."""
    return isinstance(columns, NamedColumns)


_COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
_KINDS: Final = (".txt", ".tsv", ".csv", ".parquet")

KNOWN_FORMATS: Final = f"{', '.join(_KINDS)}, each also {', '.join(_COMPRESSIONS)}"


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How the bytes of a file are to be read.

    Attributes
    ----------
    kind
        ``.txt``, ``.tsv``, ``.csv`` or ``.parquet``.
    compression
        ``gzip``, ``zstd`` or None.
    """

    kind: str
    compression: str | None


def file_format(name: str) -> FileFormat | None:
    """Return the format a file name stands for, or None where it stands for none."""
    name = name.lower()
    compression = None
    for suffix, codec in _COMPRESSIONS.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), codec
    kind = next((kind for kind in _KINDS if name.endswith(kind)), None)
    return None if kind is None else FileFormat(kind, compression)


def parse_columns(uri: str, columns: str, ids: str = INT64) -> tuple[str, ...]:
    """Split a column list such as ``dst,src,time``.

    Parameters
    ----------
    uri
        The source the list is for, named in errors.
    columns
        Names out of `COLUMNS` in the order of the file, separated by commas; src and dst must be there.
    ids
        One of `IDS`.

    Returns
    -------
    tuple of str
        The names, in the given order; `NamedColumns` where the ids are names.

    Raises
    ------
    SourceError
        A name is unknown, is there twice, or src or dst is missing; or there are no such ids.
    """
    if ids not in IDS:
        raise SourceError(uri, f"ids are one of {', '.join(IDS)}, not {ids!r}")
    names = tuple(name.strip() for name in columns.split(","))
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        detail = f"columns {columns!r}: {unknown[0]!r} is no column name; use src,dst[,time][,op] in any order"
        raise SourceError(uri, detail)
    if len(set(names)) < len(names):
        raise SourceError(uri, f"columns {columns!r}: a name is there twice")
    if not {"src", "dst"} <= set(names):
        raise SourceError(uri, f"columns {columns!r}: both src and dst are needed")
    return NamedColumns(names) if ids == STRING else names

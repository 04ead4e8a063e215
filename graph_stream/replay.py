"""Bad records written to a file again, to be mended and read as a source.

A record is in the file exactly as it came, or not at all: one of which only the beginning was kept is read again
from its file, and what no line can hold is left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from graph_stream.errors import ConfigError
from ingest import FORMS, BadRecord, Originals, SourceError, form_of
from ingest.whole import written_whole


@dataclasses.dataclass
class Replayed:
    """What became of the bad records.

    Attributes
    ----------
    written : int
        Records that are in the file.
    empty : int
        Those that hold nothing: messages without a value, offsets that were lost.
    other_forms : Counter of str
        Those that belong into a file with another suffix, by suffix.
    left_out : Counter of str
        Those that could not be written, by why.
    first_left_out : dict of str
        For each of these the place of the first.
    """

    written: int = 0
    empty: int = 0
    other_forms: Counter[str] = dataclasses.field(default_factory=Counter)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    first_left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return what is to be said about records that are not in the file, a line each."""
        lines = [
            f"{count} left out: {why}; the first is {self.first_left_out[why]}" for why, count in self.left_out.items()
        ]
        lines += [
            f"{count} of another form: use a name that ends in {form}" for form, count in self.other_forms.items()
        ]
        if self.empty:
            lines.append(f"{self.empty} hold nothing: messages without a value, or offsets that were lost")
        return lines

    def leave_out(self, record: BadRecord, why: str, detail: str = "") -> None:
        """Count a record that cannot be written."""
        self.left_out[why] += 1
        place = f"{record.source}, {record.split}, {record.offset}"
        self.first_left_out.setdefault(why, f"{place} ({detail})" if detail else place)


def replay_to_file(
    bad: Iterable[tuple[int, list[BadRecord]]], columns: str, path: Path, ids: str = "int64"
) -> Replayed:
    """Write bad records, given by epoch, to a new file, whole or not at all; its suffix says which: see `replay`.

    Raises
    ------
    ConfigError
        When the suffix says no form of records, or there are only records of others; or the file is there.
    """
    if path.suffix not in FORMS:
        message = f"cannot write bad records to {path}: use a name that ends in {', '.join(FORMS)}"
        raise ConfigError(message)
    if path.exists():
        message = f"{path} is there, and may hold records that were mended: choose another name"
        raise ConfigError(message)
    with written_whole(path) as part, part.open("wb") as out:
        done = replay((record for _, records in bad for record in records), path.suffix, columns, out, ids)
        if done.other_forms and not done.written and not done.left_out:
            message = f"there are no {path.suffix} records to be written to {path}; {'; '.join(done.notes())}"
            raise ConfigError(message)
    return done


def replay(records: Iterable[BadRecord], form: str, columns: str, out: BinaryIO, ids: str = "int64") -> Replayed:
    """Write the bad records of one form, one a line, in their order.

    Lines of CSV go by the header of their file: it comes first. Without one a header of our own does, for else a
    first line that is still bad would be taken for it; where ids are names it is the column list itself.

    Parameters
    ----------
    records
        Of any form.
    form
        One of `ingest.FORMS`.
    columns
        The column list they were read with.
    out
        Where to write; can be positioned.
    ids
        What the ids in them are, ``int64`` or ``string``.
    """
    done = Replayed()
    originals = Originals(columns, ids)
    no_header = _no_names(columns) if ids == "int64" else columns.replace(" ", "").encode()
    first_header = None
    for record in records:
        its_form = form_of(record.source, record.split)
        if not record.raw:
            done.empty += 1
            continue
        if its_form != form:
            done.other_forms[its_form] += 1
            continue
        if b"\n" in record.raw:
            done.leave_out(record, "it has more than one line")
            continue
        if form == ".csv":
            try:
                header = originals.header(record.source, record.split) or no_header
            except SourceError as error:
                done.leave_out(record, "the header of its file cannot be read", str(error))
                continue
            if first_header is None:
                first_header = header
                out.write(header + b"\n")
            if header != first_header:
                done.leave_out(record, "its file has another header than that of the first record")
                continue
        _write(record, originals, out, done)
    return done


def _no_names(columns: str) -> bytes:
    """Return a header that names no column, so that columns go by position."""
    return ",".join(f"column{number}" for number, _ in enumerate(columns.split(","), 1)).encode()


def _write(record: BadRecord, originals: Originals, out: BinaryIO, done: Replayed) -> None:
    begin = out.tell()
    try:
        for piece in originals.whole(record) if record.cut else (record.raw,):
            out.write(piece)
    except SourceError as error:
        out.seek(begin)
        out.truncate()
        done.leave_out(record, "only its beginning was kept, and it cannot be read again", str(error))
    else:
        out.write(b"\n")
        done.written += 1

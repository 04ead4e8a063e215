"""Places where files arrive: what is there, and a file of it, held. A folder here, a bucket in `ingest.bucket`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ingest.held import Held


class OutOfReach(Exception):
    """The place, or a file in it, cannot be read now; later it may."""


class Refused(Exception):
    """The place cannot be read, and waiting will not help."""


class Gone(Exception):
    """The place is there, and the file is not in it."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a listing: its name in the place, parts separated by ``/``, and its tag."""

    name: str
    tag: str


class Place(Protocol):
    """Where files arrive. Every method may raise `OutOfReach` and `Refused`."""

    def listed(self) -> list[Found]:
        """Return the files that are there."""
        ...

    def fetch(self, name: str) -> Held:
        """Return a file with its tag and its digest.

        Raises
        ------
        Gone
            It is not there.
        """
        ...


class Folder:
    """A folder, with the folders in it.

    A tag is made of what the file system notes of a file: its number, size and time of change.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return f"the folder {self._path}"

    def listed(self) -> list[Found]:
        """Return the files that are there; see `Place.listed`."""
        try:
            return list(_files(str(self._path), ""))
        except OSError as error:
            raise OutOfReach(str(error)) from error

    def fetch(self, name: str) -> Held:
        """Return a file; see `Place.fetch`."""
        path = self._path / name
        try:
            held = Held(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            held.tag = _tag(os.fstat(held.fd))
            held.digest()
        except FileNotFoundError as error:
            if self._path.is_dir():
                raise Gone(name) from error
            raise OutOfReach(str(error)) from error
        except OSError as error:
            raise OutOfReach(str(error)) from error
        if not held.is_unchanged:
            message = f"{name!r} changes while it is read; files are to be moved in when they are whole"
            raise OutOfReach(message)
        return held


def _files(folder: str, below: str) -> Iterator[Found]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{below}{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path, f"{name}/")
                elif entry.is_file():
                    yield Found(name, _tag(entry.stat()))
            except FileNotFoundError:  # gone since it was listed, which is as good as a moment before
                continue


def _tag(stat: os.stat_result) -> str:
    return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"

"""Output of a batch on a local folder: written by attempts, committed once by a pointer.

An attempt writes a folder of its own. Committing it makes its files durable and then creates the pointer
``_current.json``, which only the first commit can create. Whatever happens in between, there is either no
pointer or a complete result behind it::

    epoch-12/
      _lock                       held by every live attempt, so that only dead ones are swept
      _current.json               {"format": 1, "attempt": "attempt-KEY-x1y2", "manifest_sha256": ...}
      attempt-KEY-x1y2/
        _manifest.json            {"files": [{"name", "bytes", "sha256"}, ...], ...}, written last by the job
        part-00000-....parquet
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POINTER_NAME = "_current.json"
MANIFEST_NAME = "_manifest.json"
LOCK_NAME = "_lock"
ATTEMPT_PREFIX = "attempt-"
TEMPORARY_SUFFIX = ".tmp"
POINTER_FORMAT = 1


class OutputCorrupt(RuntimeError):
    """A committed or finished output is not what its manifest says; the message names the file."""


class OutputFolder:
    """One output: a folder of attempts and at most one commit.

    Parameters
    ----------
    root
        The output's folder; created by the first `begin`. Its file system needs hard links and ``flock``, as
        every local one has.

    Notes
    -----
    One object makes one attempt at a time: `begin` gives up the attempt that it began before.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._lock: _Lock | None = None

    def committed(self) -> Path | None:
        """Return the folder of the committed attempt, or None if nothing is committed.

        Raises
        ------
        OutputCorrupt
            There is a commit, but the pointer, the manifest or a file it lists is missing or damaged.
        """
        pointer = self.root / POINTER_NAME
        try:
            data = pointer.read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = json.loads(data)
            known = record["format"] == POINTER_FORMAT
            attempt: Path = self.root / record["attempt"]
            expected = record["manifest_sha256"]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{pointer} is damaged ({error!r}): remove {self.root} and run the batch again"
            raise OutputCorrupt(message) from error
        if not known:
            message = f"{pointer} has format {record['format']}, this version reads {POINTER_FORMAT}: upgrade"
            raise OutputCorrupt(message)
        if verify(attempt) != expected:
            message = f"{attempt / MANIFEST_NAME} is not the one that {pointer} committed: remove {self.root}"
            raise OutputCorrupt(message)
        return attempt

    def begin(self, key: str) -> Path:
        """Create an empty folder for a new attempt.

        Leftovers of dead attempts are removed, unless another attempt is alive just now.

        Parameters
        ----------
        key
            Names the attempt: letters, digits and ``._-``, at most 128.

        Raises
        ------
        ValueError
            `key` has other characters.
        """
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", key):
            message = f"key {key!r} cannot name a folder: use 1 to 128 letters, digits, '.', '_' and '-'"
            raise ValueError(message)
        _make_folder(self.root)
        self._release()
        self._lock = _Lock(self.root / LOCK_NAME)
        if self._lock.nobody_else():
            self._sweep()
        self._lock.share()
        attempt = self.root / f"{ATTEMPT_PREFIX}{key}-{uuid.uuid4().hex[:12]}"
        attempt.mkdir()
        return attempt

    def commit(self, attempt: Path) -> Path:
        """Commit a finished attempt, unless another one is committed already.

        Parameters
        ----------
        attempt
            A folder from `begin`, with all files and their manifest written.

        Returns
        -------
        Path
            The committed attempt: this one, or the one that came first; this one is removed then.

        Raises
        ------
        OutputCorrupt
            The attempt is not what its manifest says, or the commit that came first is damaged.
        """
        if self._lock is None:
            self._lock = _Lock(self.root / LOCK_NAME)
        try:
            self._lock.share()
            record = {
                "format": POINTER_FORMAT,
                "attempt": attempt.name,
                "manifest_sha256": verify(attempt),
            }
            _sync_tree(attempt)
            if self._point_at(record):
                return attempt
            winner = self.committed()
            assert winner is not None
            if winner != attempt:
                shutil.rmtree(attempt)
            return winner
        finally:
            self._release()

    def _point_at(self, record: dict[str, Any]) -> bool:
        """Create the pointer, durably; False if there is one."""
        temporary = self.root / f"{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
        try:
            with temporary.open("x", encoding="utf-8") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                # A link never replaces what is there, and never shows half a file.
                os.link(temporary, self.root / POINTER_NAME)
                return True
            return False
        finally:
            temporary.unlink(missing_ok=True)
            _sync(self.root)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _sweep(self) -> None:
        committed = self.committed()
        for path in list(self.root.iterdir()):
            if path.name.endswith(TEMPORARY_SUFFIX):
                path.unlink()
            elif path.name.startswith(ATTEMPT_PREFIX) and path != committed:
                shutil.rmtree(path)


class _Lock:
    """A hold on the lock file, given back by release, when the object is dropped, or when the process dies."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.release = weakref.finalize(self, os.close, self._file)

    def nobody_else(self) -> bool:
        """Take the lock alone; False if another attempt shares it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """Join the live attempts, waiting for a sweep to end."""
        fcntl.flock(self._file, fcntl.LOCK_SH)


def verify(attempt: Path) -> str:
    """Compare the files of an attempt with its manifest.

    Parameters
    ----------
    attempt
        Folder with ``_manifest.json``, whose ``files`` list ``name``, ``bytes`` and, optionally, ``sha256``.

    Returns
    -------
    str
        SHA-256 of the manifest, lower-case hex.

    Raises
    ------
    OutputCorrupt
        The manifest or a file it lists is missing or damaged.
    """
    path = attempt / MANIFEST_NAME
    try:
        data = path.read_bytes()
        files = [(attempt / entry["name"], entry["bytes"], entry.get("sha256")) for entry in json.loads(data)["files"]]
    except FileNotFoundError as error:
        message = f"{path} is missing, so the output there is not complete: run the batch again"
        raise OutputCorrupt(message) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} is damaged ({error!r}): run the batch again"
        raise OutputCorrupt(message) from error
    for file, size, digest in files:
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            message = f"{file} {state}, and {path} says {size} bytes: run the batch again"
            raise OutputCorrupt(message)
        if digest is not None and _sha256(file) != digest:
            message = f"{file} is damaged: its SHA-256 is not the one in {path}: run the batch again"
            raise OutputCorrupt(message)
    return hashlib.sha256(data).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_folder(folder: Path) -> None:
    """Create `folder` and what is missing above it, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync_tree(folder: Path) -> None:
    """Make every file and folder in `folder` durable, and `folder` itself in its parent."""
    for path in _below(folder):
        _sync(path)
    _sync(folder.parent)


def _below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder, topdown=False):
        yield from (Path(place, name) for name in names)
        yield Path(place)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

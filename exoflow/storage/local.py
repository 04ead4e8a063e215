"""A store in a local folder: durable at return, all or nothing, and one winner per key.

A write goes to a file without a name (or a temporary one) that is fsynced, then takes its name: by hard link
where the name must be new (a link fails if the name exists; a rename would overwrite), by rename where it may
replace. The folder is fsynced after, for a name is durable only then. Opening tries all three, and that only
one link wins.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from exoflow.errors import StorageUnavailable
from exoflow.storage.probe import FOLDER as PROBE_FOLDER
from exoflow.storage.probe import require_one_winner

_TEMPORARY = ".tmp"
_OWN = (_TEMPORARY, PROBE_FOLDER)
_LEFTOVER_SECONDS = 24 * 3600
_NO_NAMELESS_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


class LocalStore:
    """Keys are files below ``root``.

    Raises
    ------
    StorageUnavailable
        From every verb: on any error of the file system but absence. When opened: if it fails the probe.
    """

    def __init__(self, root: str | Path, *, create: bool = True) -> None:
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)
        self._temporary = self.root / _TEMPORARY
        if create:
            with self._reported("open", ""):
                self._temporary.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()
            self._probe()

    def get(self, key: str) -> bytes | None:
        """Return the bytes at ``key``, or None when no file is there."""
        with self._reported("read", key):
            try:
                return self.path(key).read_bytes()
            except FileNotFoundError:
                return None
        raise AssertionError

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key``, replacing what was there."""
        with self._reported("write", key), self._temporary_file(data) as temporary:
            path = self._prepared(key)
            os.replace(temporary, path)
            _fsync_folder(path.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` unless ``key`` exists; return whether this call created it."""
        with self._reported("write", key):
            path = self._prepared(key)
            if path.exists():
                return False
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._link(data, folder, path.name)
                os.fsync(folder)
            except FileExistsError:
                return False
            finally:
                os.close(folder)
            return True
        raise AssertionError

    def list(self, prefix: str) -> list[str]:
        """Return the keys below the folder ``prefix``, sorted."""
        with self._reported("list", prefix):
            start = self.path(prefix)
            found = []
            for folder, folders, names in os.walk(start, onerror=_raise_unless_absent):
                relative = Path(folder).relative_to(self.root)
                if relative == Path():
                    folders[:] = [name for name in folders if name not in _OWN]
                found += [str(relative / name) for name in names]
            return sorted(found)
        raise AssertionError

    def delete(self, key: str) -> None:
        """Remove ``key``; no error when it is absent."""
        with self._reported("delete", key), contextlib.suppress(FileNotFoundError):
            self.path(key).unlink()

    def path(self, key: str) -> Path:
        """Return the file that holds ``key``."""
        return self.root / key

    def _link(self, data: bytes, folder: int, name: str) -> None:
        """Give ``data``, once durable, a new name in an open folder; raises FileExistsError."""
        try:
            descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=folder)
        except OSError as error:
            if error.errno not in _NO_NAMELESS_FILES:
                raise
            with self._temporary_file(data) as temporary:
                os.link(temporary, name, dst_dir_fd=folder)
            return
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=folder, follow_symlinks=True)

    def _prepared(self, key: str) -> Path:
        path = self.path(key)
        folder = path.parent
        if folder.exists():
            return path
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        path.parent.mkdir(parents=True, exist_ok=True)
        for made in missing:
            _fsync_folder(made.parent)
        return path

    @contextlib.contextmanager
    def _temporary_file(self, data: bytes) -> Iterator[Path]:
        # Process ids repeat, in containers at every start, so they make no name that is free for sure.
        self._temporary.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary / uuid.uuid4().hex
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _probe(self) -> None:
        key = f"{_TEMPORARY}/probe-{uuid.uuid4().hex}"
        try:
            self.put_if_absent(key, b"probe")
        except StorageUnavailable as error:
            message = f"{self.root} must take files, hard links and fsync of folders, and does not: {error}"
            raise StorageUnavailable(key, message) from error
        self.delete(key)
        # The folder itself, for a copy of it may lie on another file system.
        with self._reported("open", ""):
            folder = self.root.stat()
        require_one_winner(self, f"device {folder.st_dev} folder {folder.st_ino}")

    def _remove_leftovers(self) -> None:
        oldest = time.time() - _LEFTOVER_SECONDS
        for path in self._temporary.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    @contextlib.contextmanager
    def _reported(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = self.path(key) if key else self.root
            message = f"cannot {verb} {where}: {error.strerror or error}"
            raise StorageUnavailable(key, message) from error


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error

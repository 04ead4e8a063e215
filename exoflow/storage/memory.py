"""A store inside one process, for tests."""

from __future__ import annotations

import threading


class MemoryStore:
    """Keys and bytes in a dictionary; lives as long as the process."""

    uri = "memory://"

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = {} if objects is None else objects
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """Return the bytes at ``key``, or None."""
        return self.objects.get(key)

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key``."""
        self.objects[key] = data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` unless ``key`` exists; return whether this call created it."""
        with self._lock:
            if key in self.objects:
                return False
            self.objects[key] = data
            return True

    def list(self, prefix: str) -> list[str]:
        """Return the keys below the folder ``prefix``, sorted."""
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        return sorted(key for key in self.objects if key.startswith(folder))

    def delete(self, key: str) -> None:
        """Remove ``key``."""
        self.objects.pop(key, None)

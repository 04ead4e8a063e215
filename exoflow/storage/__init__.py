"""Five verbs over keys and bytes; everything durable goes through them."""

from __future__ import annotations

from typing import Protocol

from exoflow.errors import DefinitionError
from exoflow.storage.local import LocalStore
from exoflow.storage.location import S3_SCHEME, S3Location
from exoflow.storage.memory import MemoryStore

__all__ = ["LocalStore", "MemoryStore", "Store", "open_store"]


class Store(Protocol):
    """Durable keys and bytes. Keys are relative paths with ``/`` between their parts.

    Every verb raises `exoflow.errors.StorageUnavailable` when it cannot know its answer; "absent" is an
    answer, and is given only when the store said so.
    """

    uri: str

    def get(self, key: str) -> bytes | None:
        """Return the bytes at ``key``, or None when there are none."""

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key`` durably and at once, replacing what was there."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` durably unless ``key`` exists; return whether this call created it."""

    def list(self, prefix: str) -> list[str]:
        """Return the keys below the folder ``prefix``, sorted."""

    def delete(self, key: str) -> None:
        """Remove ``key``; no error when it is absent."""


def open_store(uri: str, *, create: bool = True) -> Store:
    """Open the store that ``uri`` names.

    Parameters
    ----------
    uri : str
        A local folder, as a path or ``file://PATH``; or ``s3://BUCKET/PREFIX``, where ``?endpoint=URL`` may
        name a server other than Amazon's.
    create : bool
        Make a missing folder, and probe the store unless that was done lately; without, nothing is written,
        and a missing folder is an empty store. Buckets are never made.

    Raises
    ------
    DefinitionError
        On a URI that names no store; on S3, when boto3 is not installed.
    StorageUnavailable
        When the store cannot be reached or written, or fails the probe.
    """
    if uri.startswith(S3_SCHEME):
        location = S3Location.parse(uri)
        try:
            from exoflow.storage.s3 import S3Store
        except ModuleNotFoundError as error:
            message = f"a store on S3 needs {error.name}; install it with: pip install 'exoflow[s3]'"
            raise DefinitionError(message) from error
        return S3Store(location, create=create)
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStore(uri, create=create)
    if scheme == "file":
        return LocalStore(rest, create=create)
    message = f"cannot open a store at {uri!r}: known are a local folder (a path or file://PATH) and s3://BUCKET/PREFIX"
    raise DefinitionError(message)

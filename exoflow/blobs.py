"""Durable objects of one workflow, and values that may need one.

A blob's name holds its content's checksum and its writer, so that nobody ever deletes or overwrites bytes
that somebody else has just written, even equal ones.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from pathlib import Path

from exoflow.codec import Blob, Encoded, HoldsReferences, References, decode, encode, encode_plain
from exoflow.errors import CorruptRecord
from exoflow.journal import workflow_folder
from exoflow.records import GROUP_CODEC, Value
from exoflow.storage import LocalStore, Store

INLINE_BYTES = 64 * 1024


def blob_folder(workflow_id: str) -> str:
    """Return the folder of a workflow's blobs."""
    return f"{workflow_folder(workflow_id)}/blobs"


def object_key(workflow_id: str, name: str) -> str:
    """Return the key of a named object."""
    return f"{workflow_folder(workflow_id)}/objects/{name}"


class Blobs:
    """The blobs of one workflow in a store, and values that may need them.

    Parameters
    ----------
    store, workflow_id
        Where, and whose.
    references : References, optional
        Saves and loads references inside values; without it a value that holds some cannot be kept or read.
    known : iterable of Blob
        Blobs that will not be collected before the caller's record counts; equal bytes are not written again.
    """

    def __init__(
        self, store: Store, workflow_id: str, references: References | None = None, known: Iterable[Blob] = ()
    ) -> None:
        self._store = store
        self.references = references
        self._known = {blob.sha256: blob for blob in known}
        self.workflow_id = workflow_id
        self.folder = blob_folder(workflow_id)
        self._writer = uuid.uuid4().hex[:12]

    def write(self, data: bytes, suffix: str = "") -> Blob:
        """Make ``data`` durable under a new name that ends in ``suffix``."""
        digest = hashlib.sha256(data).hexdigest()
        known = self._known.get(digest)
        if known is not None and known.name.endswith(suffix):
            return known
        blob = Blob(f"{digest[:32]}-{self._writer}{suffix}", len(data), digest)
        self._store.put(self.key(blob), data)
        return blob

    def read(self, blob: Blob) -> bytes:
        """Return a blob's bytes.

        Raises
        ------
        CorruptRecord
            When the blob is missing, or is not what was written.
        """
        key = self.key(blob)
        data = self._store.get(key)
        if data is None:
            message = f"blob {key} is missing from {self._store.uri}; restore it from a backup"
            raise CorruptRecord(key, message)
        if len(data) != blob.size or hashlib.sha256(data).hexdigest() != blob.sha256:
            message = (
                f"blob {key} in {self._store.uri} is damaged: its {len(data)} bytes do not have the checksum "
                "of the bytes that were written; restore it from a backup"
            )
            raise CorruptRecord(key, message)
        return data

    def key(self, blob: Blob) -> str:
        """Return a blob's key in the store."""
        return f"{self.folder}/{blob.name}"

    def path(self, key: str) -> Path | None:
        """Return the file of a key, where the store is a local folder."""
        return self._store.path(key) if isinstance(self._store, LocalStore) else None

    def write_object(self, name: str, data: bytes) -> None:
        """Write a named object of the workflow, replacing what it was."""
        self._store.put(object_key(self.workflow_id, name), data)

    def durable(self, value: object) -> Value:
        """Make a value durable: small ones will lie in a record, large ones become a blob."""
        encoded = encode(value, self.references)
        if len(encoded.data) <= INLINE_BYTES:
            return Value.inline(encoded)
        return Value(encoded.codec, None, self.write(encoded.data), encoded.blobs)

    def small(self, value: object) -> Value | None:
        """Return a value as it will lie in a record; None when it is large or holds references."""
        try:
            encoded = encode_plain(value, None if self.references is None else self.references.kind)
        except HoldsReferences:
            return None
        return Value.inline(encoded) if len(encoded.data) <= INLINE_BYTES else None

    def load(self, value: Value) -> object:
        """Return the object that a durable value stands for; raises CorruptRecord."""
        if value.codec == GROUP_CODEC:
            return [self.load(member) for member in value.members()]
        data = value.data if value.blob is None else self.read(value.blob)
        assert data is not None
        return decode(Encoded(value.codec, data), self.references)

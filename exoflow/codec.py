"""Values to bytes and back: JSON, Arrow, npy, and cloudpickle for what none of these can hold.

A value is encoded by the first codec that gives the *same* value back; a tuple inside JSON is therefore
tagged, and a dict with keys that are no strings is left to cloudpickle. Blobs inside a value are listed
beside the bytes, so that whoever keeps the bytes also keeps the blobs. References inside a value, at any
depth, are made durable one by one, and become references again when the value is decoded.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import cloudpickle
import numpy as np
import pyarrow as pa

from exoflow.errors import CorruptRecord, DefinitionError


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """A durable object of one workflow, named by its content and its writer.

    Attributes
    ----------
    name : str
        Name inside the workflow's blob folder.
    size : int
        Bytes.
    sha256 : str
        Hex digest of the content, checked at every read.
    """

    name: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form: what the constructor takes."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A hole in a task's arguments, filled with input number ``index`` when the task runs."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """Bytes of a value, the codec they are in, and the blobs the value names."""

    codec: str
    data: bytes
    blobs: tuple[Blob, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form: text codecs stay readable, the others become base64."""
        shown: dict[str, Any] = {"codec": self.codec}
        if self.codec == "json":
            shown["value"] = json.loads(self.data)
        else:
            shown["base64"] = base64.b64encode(self.data).decode("ascii")
        if self.blobs:
            shown["blobs"] = [blob.to_json() for blob in self.blobs]
        return shown

    @staticmethod
    def from_json(shown: dict[str, Any]) -> Encoded:
        """Invert `to_json`."""
        blobs = tuple(Blob(**blob) for blob in shown.get("blobs", ()))
        if shown["codec"] == "json":
            return Encoded("json", _json_bytes(shown["value"]), blobs)
        return Encoded(shown["codec"], base64.b64decode(shown["base64"]), blobs)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredReference:
    """What a reference stands for, made durable: a JSON form, and the blobs that it needs."""

    shown: dict[str, Any]
    blobs: tuple[Blob, ...]


class References(Protocol):
    """Knows the handles to data that stays where it was produced.

    ``kind`` is their type; ``lost`` is raised where the data of one is asked for and gone.
    """

    kind: type
    lost: type[Exception]

    def save(self, references: Sequence[Any]) -> list[StoredReference]:
        """Make durable what each reference stands for, all at once; raises StorageUnavailable."""

    def load(self, shown: Mapping[str, Any]) -> Any:
        """Return a reference to what was stored."""


class HoldsReferences(Exception):
    """The value has references inside, and nothing was given that could make them durable."""


_JSON_INT_BITS = 4096  # Python itself refuses to read longer ones from text.


def encode(value: Any, references: References | None = None) -> Encoded:
    """Encode a value; ``references`` saves those that it holds.

    Raises
    ------
    DefinitionError
        When no codec can hold it, cloudpickle included.
    StorageUnavailable
        When a reference cannot be saved.
    """
    blobs: list[Blob] = []
    try:
        return Encoded("json", _json_bytes(_to_json(value, blobs)), tuple(blobs))
    except _NotJson:
        pass
    if type(value) is np.ndarray and not value.dtype.hasobject:
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return Encoded("npy", buffer.getvalue())
    if isinstance(value, pa.Table):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        return Encoded("arrow", sink.getvalue().to_pybytes())
    return _pickled(value, references)


def encode_plain(value: Any, kind: type | None) -> Encoded:
    """Encode a value without references; raises HoldsReferences when it has one of that kind inside."""
    return encode(value, None if kind is None else _NoReferences(kind))


def decode(encoded: Encoded, references: References | None = None) -> Any:
    """Invert `encode`.

    Raises
    ------
    CorruptRecord
        When the bytes are not of their codec, or the codec is unknown.
    HoldsReferences
        When the value has references inside and ``references`` is None.
    """
    if encoded.codec == "references" and references is None:
        message = "the value holds references: only where Ray runs can it be read"
        raise HoldsReferences(message)
    try:
        match encoded.codec:
            case "json":
                return _from_json(json.loads(encoded.data))
            case "npy":
                return np.load(io.BytesIO(encoded.data), allow_pickle=False)
            case "arrow":
                return pa.ipc.open_stream(encoded.data).read_all()
            case "pickle":
                return cloudpickle.loads(encoded.data)
            case "references":
                assert references is not None
                return _unpickled_with(references, encoded.data)
    except Exception as error:
        # Damaged bytes may raise anything: each codec's reader has errors of its own.
        message = f"a value does not decode as {encoded.codec}: {error}"
        raise CorruptRecord(encoded.codec, message) from error
    message = f"unknown codec {encoded.codec!r}: the value was written by a newer version"
    raise CorruptRecord(encoded.codec, message)


class _NotJson(Exception):
    """The value has a part that JSON would not give back unchanged."""


_JSON = json.JSONEncoder(separators=(",", ":"))  # Made once: json.dumps makes one at every call.


def _json_bytes(value: Any) -> bytes:
    return _JSON.encode(value).encode("ascii")


def _to_json(value: Any, blobs: list[Blob]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int and value.bit_length() <= _JSON_INT_BITS:
        return value
    if kind is list:
        return [_to_json(item, blobs) for item in value]
    if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: _to_json(item, blobs) for key, item in value.items()}
    if kind is tuple:
        return {"$tuple": [_to_json(item, blobs) for item in value]}
    if kind is Blob:
        blobs.append(value)
        return {"$blob": [value.name, value.size, value.sha256]}
    if kind is Slot:
        return {"$slot": value.index}
    raise _NotJson


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        if "$tuple" in value:
            return tuple(_from_json(item) for item in value["$tuple"])
        if "$blob" in value:
            return Blob(*value["$blob"])
        if "$slot" in value:
            return Slot(value["$slot"])
        return {key: _from_json(item) for key, item in value.items()}
    return value


class _NotingPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler that notes the blobs it meets, and leaves out the references."""

    def __init__(self, file: io.BytesIO, kind: type | None) -> None:
        super().__init__(file)
        self.blobs: list[Blob] = []
        self.references: list[Any] = []
        self._kind = kind

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Blob:
            self.blobs.append(value)
        return super().reducer_override(value)

    def persistent_id(self, value: Any) -> int | None:
        if self._kind is None or not isinstance(value, self._kind):
            return None
        self.references.append(value)
        return len(self.references) - 1


class _NoReferences:
    """Refuses references where they are met."""

    lost: type[Exception] = HoldsReferences

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def save(self, references: Sequence[Any]) -> list[StoredReference]:
        raise HoldsReferences

    def load(self, shown: Mapping[str, Any]) -> Any:
        raise HoldsReferences


def _pickled(value: Any, references: References | None) -> Encoded:
    buffer = io.BytesIO()
    pickler = _NotingPickler(buffer, None if references is None else references.kind)
    try:
        pickler.dump(value)
    except Exception as error:
        # A user's own __reduce__ may raise anything.
        message = f"a value of type {type(value).__name__} cannot be stored: {error}"
        raise DefinitionError(message) from error
    if not pickler.references:
        return Encoded("pickle", buffer.getvalue(), tuple(pickler.blobs))
    assert references is not None
    stored = references.save(pickler.references)
    # First line: what the references stand for; then the value, which names them by their place in it.
    data = _json_bytes([each.shown for each in stored]) + b"\n" + buffer.getvalue()
    blobs = (*pickler.blobs, *(blob for each in stored for blob in each.blobs))
    return Encoded("references", data, blobs)


class _ReferringUnpickler(pickle.Unpickler):
    """An unpickler that puts references where the pickler left them out."""

    def __init__(self, file: io.BytesIO, references: Sequence[Any]) -> None:
        super().__init__(file)
        self._references = references

    def persistent_load(self, place: Any) -> Any:
        return self._references[place]


def _unpickled_with(references: References, data: bytes) -> Any:
    table, _, pickled = data.partition(b"\n")
    loaded = [references.load(shown) for shown in json.loads(table)]
    return _ReferringUnpickler(io.BytesIO(pickled), loaded).load()


def fill(template: Any, values: tuple[Any, ...]) -> Any:
    """Return `template` with every `Slot` at any depth of lists, tuples and dicts replaced by its value."""
    return rebuild(template, lambda leaf: values[leaf.index] if isinstance(leaf, Slot) else leaf)


def rebuild(value: Any, replace: Callable[[Any], Any]) -> Any:
    """Return a copy of nested lists, tuples and dicts with ``replace`` applied to every leaf, in order."""
    if type(value) is list:
        return [rebuild(item, replace) for item in value]
    if type(value) is tuple:
        return tuple(rebuild(item, replace) for item in value)
    if type(value) is dict:
        return {key: rebuild(item, replace) for key, item in value.items()}
    return replace(value)

"""Naming user code so that another process can find it: by ``module:qualname``, or by value.

Functions and classes of importable modules are stored by name with a hash of their source, so that a
changed body is noticed. What no other process could import (``__main__``, closures, lambdas) travels by
value. A `functools.partial` is its function plus the arguments it holds.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import importlib
import inspect
import sys
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle

from exoflow.codec import Encoded, decode, encode
from exoflow.errors import DefinitionError

_KEPT_FUNCTIONS = 256
_KEPT_BYTES = 64 * 1024
_source_hashes: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, slots=True)
class CodeRef:
    """A function or class that another process can load.

    Attributes
    ----------
    module, qualname : str
        Where it was defined.
    source_sha256 : str
        Hash of its source text; of its compiled code where the text is not to be had.
    pickled : bytes or None
        The object itself, when it cannot be imported by name.
    bound : Encoded or None
        ``[args, kwargs]`` of a `functools.partial`.
    """

    module: str
    qualname: str
    source_sha256: str
    pickled: bytes | None = None
    bound: Encoded | None = None

    @property
    def name(self) -> str:
        """Last part of the qualified name."""
        return self.qualname.rsplit(".", 1)[-1]

    def load(self) -> Callable[..., Any]:
        """Return the function or class.

        Raises
        ------
        DefinitionError
            When its module cannot be imported here, or no longer has it.
        """
        target = self._imported() if self.pickled is None else _unpickled(self.pickled)
        if self.bound is None:
            return target
        args, kwargs = decode(self.bound)
        return functools.partial(target, *args, **kwargs)

    def changed(self) -> bool:
        """Return whether the importable code now differs from the code this was made from."""
        return self.pickled is None and _source_hash(self._imported()) != self.source_sha256

    def _imported(self) -> Callable[..., Any]:
        try:
            found: Any = importlib.import_module(self.module)
            for part in self.qualname.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            message = f"{self.module}:{self.qualname} cannot be imported here: {error}"
            raise DefinitionError(message) from error
        target: Callable[..., Any] = unwrap(found)
        return target

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        shown: dict[str, Any] = {
            "module": self.module,
            "qualname": self.qualname,
            "source_sha256": self.source_sha256,
        }
        if self.pickled is not None:
            shown["pickled"] = base64.b64encode(self.pickled).decode("ascii")
        if self.bound is not None:
            shown["bound"] = self.bound.to_json()
        return shown

    @staticmethod
    def from_json(shown: dict[str, Any]) -> CodeRef:
        """Invert `to_json`."""
        return CodeRef(
            shown["module"],
            shown["qualname"],
            shown["source_sha256"],
            base64.b64decode(shown["pickled"]) if "pickled" in shown else None,
            Encoded.from_json(shown["bound"]) if "bound" in shown else None,
        )


def code_ref(target: Any) -> CodeRef:
    """Name a function, class or partial.

    Raises
    ------
    DefinitionError
        When it is not callable, or can be neither imported nor pickled.
    """
    bound = None
    if isinstance(target, functools.partial):
        bound = encode([list(target.args), dict(target.keywords)])
        target = target.func
    target = unwrap(target)
    if not callable(target) or not hasattr(target, "__qualname__"):
        message = f"{target!r} is neither a function nor a class"
        raise DefinitionError(message)
    pickled = None if _importable(target) else _pickle(target)
    return CodeRef(target.__module__, target.__qualname__, _source_hash(target), pickled, bound)


def unwrap(target: Any) -> Any:
    """Return the user's own function or class behind ``@exoflow.task`` or ``@exoflow.actor``."""
    return getattr(target, "__exoflow_wraps__", target)


def _importable(target: Any) -> bool:
    if target.__module__ == "__main__" or "<" in target.__qualname__:
        return False
    found: Any = sys.modules.get(target.__module__)
    for part in target.__qualname__.split("."):
        found = getattr(found, part, None)
    return unwrap(found) is target


def _pickle(target: Any) -> bytes:
    try:
        return cloudpickle.dumps(target)  # type: ignore[no-any-return]
    except Exception as error:
        message = f"{target.__qualname__} can be neither imported nor pickled: {error}"
        raise DefinitionError(message) from error


def _unpickled(pickled: bytes) -> Callable[..., Any]:
    """Return code that travelled by value: made once per process, as an import is, unless it carries much data."""
    return _kept(pickled) if len(pickled) <= _KEPT_BYTES else _loaded(pickled)


def _loaded(pickled: bytes) -> Callable[..., Any]:
    return cloudpickle.loads(pickled)  # type: ignore[no-any-return]


_kept = functools.lru_cache(maxsize=_KEPT_FUNCTIONS)(_loaded)


def _source_hash(target: Any) -> str:
    """Hash what a function or class was made from, once: finding its text costs more than all else in a bind."""
    known = _source_hashes.get(target)
    if known is None:
        known = _source_hashes[target] = _hash_source(target)
    return known


def _hash_source(target: Any) -> str:
    try:
        text = inspect.getsource(target).encode("utf-8")
    except (OSError, TypeError):
        code = getattr(target, "__code__", None)
        text = code.co_code + repr(code.co_consts).encode() if code else target.__qualname__.encode()
    return hashlib.sha256(text).hexdigest()

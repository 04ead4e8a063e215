"""Compiled loops over flat arrays."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile a function on its first call, without the interpreter lock, and keep the machine code."""
    try:
        return cast(_Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no folder to keep it in can be written
        return cast(_Function, numba.njit(nogil=True)(function))

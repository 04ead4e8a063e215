"""How numba compiles this package's kernels: without the GIL, without fast-math, cached on disk.

Kernels allocate nothing, so they need no reference counts: counting the dozen arrays of a graph at every
inner call took longer than the work. For the same reason all calls among them are inlined.

Numba keeps a cached function until the file that defines it changes, and so would run old code after an edit
of a function that was compiled *into* it from another file. Here every cached function carries one stamp over
all the files that hold compiled code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

Int = int | np.int64
"""An integer in a kernel; int64 there in any case."""

Function = TypeVar("Function", bound=Callable[..., object])


def _stamp_of(package: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(package.glob("*.py")):
        source = path.read_bytes()
        if b"@compiled" in source:
            digest.update(source)
    return digest.digest()


_STAMP = _stamp_of(Path(__file__).parent)


def compiled(function: Function) -> Function:
    """Compile ``function`` at its first call; use as a decorator.

    Returns
    -------
    function
        A numba dispatcher; its ``py_func`` is the function as written.
    """
    dispatcher = numba.njit(nogil=True, cache=True, error_model="numpy", forceinline=True, _nrt=False)(function)
    dispatcher._cache._cache_file._source_stamp = _STAMP
    return cast(Function, dispatcher)


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(array)(context, builder, arguments[0])
        place = context.cast(builder, arguments[1], index, types.intp)
        element = cgutils.get_item_pointer(context, builder, array, view, [place], wraparound=False, boundscheck=False)
        pointer = builder.bitcast(element, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for_reading, keep, data = number(0), number(3), number(1)
        builder.call(function, [pointer, for_reading, keep, data])
        return context.get_dummy_value()

    return types.void(array, index), generate


prefetch = cast(Callable[[npt.NDArray[Any], Int], None], intrinsic(_prefetch))
"""Have the processor fetch ``array[index]``, without waiting for it; in kernels only.

A kernel that goes through memory at random waits for each place in turn wherever a branch depends on what is found. An
index out of bounds is no error: then nothing is fetched.
"""

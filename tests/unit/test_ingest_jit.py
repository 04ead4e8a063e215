"""Compiled loops work where no machine code can be kept, as in a container that is mounted read-only."""

import numba
import pytest

from ingest.jit import compiled


def test_compiling_does_not_need_a_folder(monkeypatch: pytest.MonkeyPatch):
    plain = numba.njit

    def without_a_folder(**options):
        if options.pop("cache", False):
            message = "cannot cache function: no locator available"
            raise RuntimeError(message)
        return plain(**options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    assert compiled(lambda number: number + 1)(1) == 2

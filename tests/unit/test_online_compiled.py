"""What kernels are compiled to, and that their cache follows edits in any file that holds compiled code."""

from __future__ import annotations

import re

import numba
import numpy as np

from graph_stream import compiled, kernels


def test_stamp_follows_every_file_with_compiled_code(tmp_path):
    (tmp_path / "one.py").write_text("@compiled\ndef f(): ...\n")
    (tmp_path / "two.py").write_text("@compiled\ndef g(): ...\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    before = compiled._stamp_of(tmp_path)
    (tmp_path / "other.py").write_text("x = 2\n")
    assert compiled._stamp_of(tmp_path) == before
    (tmp_path / "two.py").write_text("@compiled\ndef g(): return 1\n")
    assert compiled._stamp_of(tmp_path) != before


def test_numba_compares_the_stamp_where_it_is_put():
    def plain() -> int:
        return 1

    # Set by numba itself: were it renamed, ours would be put where nothing reads it.
    assert "_source_stamp" in vars(numba.njit(cache=True)(plain)._cache._cache_file)
    assert kernels.evaluate._cache._cache_file._source_stamp == compiled._STAMP


def test_a_fetch_ahead_is_an_instruction_that_nothing_takes_away_and_that_never_fails():
    @numba.njit
    def fetch(array, index):
        compiled.prefetch(array, index)

    # A load whose value nobody uses would be gone.
    for index in (0, -1, 1 << 40, np.int32(3)):
        fetch(np.zeros(4, np.int32), index)
    assert all(re.search(r"\b(prefetch|prfm)", assembly) for assembly in fetch.inspect_asm().values())

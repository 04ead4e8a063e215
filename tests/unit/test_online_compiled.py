"""The cache of compiled kernels follows edits in any file that holds compiled code."""

from __future__ import annotations

import numba

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

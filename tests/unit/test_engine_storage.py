"""Stores: one winner per key, nothing half-written, and an outage is never taken for absence."""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path

import pytest

import exoflow
from exoflow.errors import DefinitionError, StorageUnavailable
from exoflow.plan import build
from exoflow.records import Status
from exoflow.storage import LocalStore, open_store
from exoflow.testing import Simulation, crash_states
from tests.simulation import flows


def test_temporary_files_are_invisible_and_do_not_get_in_the_way(tmp_path):
    store = LocalStore(tmp_path)
    (tmp_path / ".tmp" / "torn").write_bytes(b"half")
    (tmp_path / ".tmp" / f"{os.getpid()}-0").write_bytes(b"half")
    (tmp_path / ".tmp" / f"{os.getpid()}-1").write_bytes(b"half")
    store.put("a/b", b"whole")
    assert store.put_if_absent("a/c", b"whole")
    assert store.list("") == ["a/b", "a/c"]


def test_old_leftovers_are_removed_and_fresh_ones_kept(tmp_path):
    LocalStore(tmp_path)
    old, fresh = tmp_path / ".tmp" / "old", tmp_path / ".tmp" / "fresh"
    old.write_bytes(b"")
    fresh.write_bytes(b"")
    os.utime(old, (0, 0))
    LocalStore(tmp_path)
    assert not old.exists()
    assert fresh.exists()


def test_no_temporary_file_stays_after_a_write_that_failed(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageUnavailable, match="No space left") as caught:
        store.put("a/b", b"data")
    assert str(tmp_path / "a/b") in str(caught.value)
    monkeypatch.undo()
    assert list((tmp_path / ".tmp").iterdir()) == []
    assert store.get("a/b") is None


def test_a_store_below_a_regular_file_says_where(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match=str(tmp_path / "file")):
        LocalStore(tmp_path / "file" / "store")


def test_a_key_below_a_regular_file_is_an_outage_and_not_absence(tmp_path):
    store = LocalStore(tmp_path)
    store.put("a", b"")
    with pytest.raises(StorageUnavailable):
        store.put("a/b", b"")
    with pytest.raises(StorageUnavailable):
        store.put_if_absent("a/b", b"")
    with pytest.raises(StorageUnavailable):
        store.get("a/b")


@pytest.mark.parametrize("verb", ["link", "replace"])
def test_an_error_of_the_file_system_names_the_path(tmp_path, monkeypatch, verb):
    store = LocalStore(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, verb, refuse)
    with pytest.raises(StorageUnavailable, match="Read-only") as caught:
        (store.put_if_absent if verb == "link" else store.put)("a/b", b"")
    assert caught.value.key == "a/b"
    assert str(tmp_path / "a/b") in str(caught.value)


def test_a_file_system_without_nameless_files_keeps_every_promise(tmp_path, monkeypatch):
    really_open = os.open

    def open_without(path: str, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return really_open(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", open_without)
    store = LocalStore(tmp_path)
    assert store.put_if_absent("a/b", b"first")
    assert not store.put_if_absent("a/b", b"second")
    assert store.get("a/b") == b"first"
    assert store.list("a") == ["a/b"]
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_uris(tmp_path):
    open_store(str(tmp_path)).put("k", b"1")
    assert open_store(f"file://{tmp_path}").get("k") == b"1"
    with pytest.raises(DefinitionError, match="ftp"):
        open_store("ftp://host/path")


def test_a_crashed_owners_folder_with_a_torn_file_resumes_to_the_same_answer(tmp_path: Path):
    body = functools.partial(flows.body, "async", 3, 1, 0)
    plan = build(exoflow.loop(body, [], max_in_flight=2))
    first = Simulation(plan, seed=1, fold_every=3)
    first.run()
    states = list(crash_states(first.log, max_in_flight=1))
    for number, (_, _, objects) in enumerate(states[:: max(1, len(states) // 12)]):
        folder = tmp_path / str(number)
        store = LocalStore(folder)
        for key, data in objects.items():
            store.put(key, data)
        newest = max((data for data in objects.values()), key=len, default=b"{}")
        (folder / ".tmp" / "torn").write_bytes(newest[: len(newest) // 2])
        again = Simulation(plan, seed=2, fold_every=3, store=store)
        assert again.run() is Status.SUCCESSFUL
        assert again.result() == flows.expected_carry(3)
        again.verify()

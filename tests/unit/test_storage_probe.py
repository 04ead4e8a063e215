"""Stores that break a promise are refused by name; what passed is remembered, by the name of who passed."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from exoflow.errors import StorageUnavailable
from exoflow.storage import LocalStore, MemoryStore, probe
from exoflow.storage.probe import FOLDER, REMEMBERED_SECONDS, ROUNDS, THREADS, require_one_winner


class Counting(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.creates = 0

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.creates += 1
        return super().put_if_absent(key, data)


class ChecksThenWrites(MemoryStore):
    """Looks first and writes later; all look before any writes."""

    def __init__(self) -> None:
        super().__init__()
        self._looked = threading.Barrier(THREADS)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        absent = self.get(key) is None
        self._looked.wait()
        if absent:
            self.put(key, data)
        return absent


class IgnoresTheCondition(MemoryStore):
    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


class NeverCreates(MemoryStore):
    def put_if_absent(self, key: str, data: bytes) -> bool:
        return False


class ReadsBehind(MemoryStore):
    """One reader in many gets an answer from before the write."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = 0

    def get(self, key: str) -> bytes | None:
        self._reads += 1
        return None if self._reads % 40 == 0 else super().get(key)


class ListsBehind(MemoryStore):
    def list(self, prefix: str) -> list[str]:
        return super().list(prefix)[:-1]


class ListsTheDeleted(MemoryStore):
    def delete(self, key: str) -> None:
        self.objects[key] = b""


class LosesAnswers(Counting):
    """Every third create is carried out, or not, and nobody is told."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        created = super().put_if_absent(key, data) if self.creates % 2 else False
        self.creates += 1
        if self.creates % 3 == 0:
            raise StorageUnavailable(key, "the answer was lost")
        return created or super().put_if_absent(key, data)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ChecksThenWrites, f"{THREADS} succeeded"),
        (IgnoresTheCondition, f"{THREADS} succeeded"),
        (NeverCreates, "0 succeeded"),
        (ReadsBehind, "read as absent"),
        (ListsBehind, "not listed"),
        (ListsTheDeleted, "still listed"),
    ],
)
def test_a_store_that_breaks_a_promise_is_refused_with_the_reason(kind, reason):
    store = kind()
    with pytest.raises(StorageUnavailable, match=reason) as caught:
        require_one_winner(store, "a server")
    assert store.uri in str(caught.value)
    assert not any(key.endswith("passed") for key in store.objects)


def test_lost_answers_are_no_broken_promise():
    store = LosesAnswers()
    require_one_winner(store, "a server")
    assert store.list(FOLDER) == [f"{FOLDER}/passed"]


def test_what_passed_is_remembered_for_a_day_by_name():
    store, now = Counting(), [1e9]

    def creates(identity: str) -> int:
        before = store.creates
        require_one_winner(store, identity, clock=lambda: now[0])
        return store.creates - before

    assert creates("a server") == THREADS * ROUNDS
    assert store.list(FOLDER) == [f"{FOLDER}/passed"]
    now[0] += REMEMBERED_SECONDS - 1
    assert creates("a server") == 0
    assert creates("another server") == THREADS * ROUNDS
    now[0] += REMEMBERED_SECONDS
    assert creates("another server") == THREADS * ROUNDS
    # A clock that was set back makes no mark out of the future valid.
    now[0] -= 1
    assert creates("another server") == THREADS * ROUNDS


@pytest.mark.parametrize("mark", [b"", b"{", b"[]", b"{}", b'{"identity": "a server", "at": "today"}'])
def test_a_mark_that_cannot_be_read_is_none(mark):
    store = Counting()
    store.put(f"{FOLDER}/passed", mark)
    require_one_winner(store, "a server")
    assert store.creates == THREADS * ROUNDS


def test_an_outage_while_probing_is_an_outage():
    class Away(MemoryStore):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            raise StorageUnavailable(key, "nobody answers")

    with pytest.raises(StorageUnavailable, match="nobody answers"):
        require_one_winner(Away(), "a server")


def test_a_local_folder_is_probed_once(tmp_path, monkeypatch):
    LocalStore(tmp_path)
    mark = json.loads((tmp_path / FOLDER / "passed").read_bytes())
    contended = []
    monkeypatch.setattr(probe, "_first_broken_promise", lambda *given: contended.append(given))
    LocalStore(tmp_path)
    assert contended == []
    # A copy of the folder may lie on another file system, whatever its mark says.
    copy = tmp_path / "copy"
    (copy / FOLDER).mkdir(parents=True)
    (copy / FOLDER / "passed").write_text(json.dumps(mark))
    LocalStore(copy)
    assert len(contended) == 1


def test_opening_for_reading_writes_nothing(tmp_path):
    folder = tmp_path / "nothing"
    assert LocalStore(folder, create=False).list("workflows") == []
    assert not folder.exists()
    folder.mkdir()
    LocalStore(folder, create=False)
    assert list(folder.iterdir()) == []


def test_a_file_system_whose_links_overwrite_is_refused(tmp_path, monkeypatch):
    together = threading.Barrier(THREADS)

    def link(source: str, name: str, *, dst_dir_fd: int, **_: object) -> None:
        folder = Path(os.readlink(f"/proc/self/fd/{dst_dir_fd}"))
        if FOLDER in folder.parts:
            together.wait()
        shutil.copyfile(source, folder / name)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StorageUnavailable, match="conditional creates") as caught:
        LocalStore(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("verb", ["link", "fsync"])
def test_a_file_system_without_hard_links_or_fsync_is_refused(tmp_path, monkeypatch, verb):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, verb, refuse)
    with pytest.raises(StorageUnavailable, match=r"hard links and fsync.*not supported") as caught:
        LocalStore(tmp_path)
    assert str(tmp_path) in str(caught.value)

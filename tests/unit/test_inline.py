"""Objects inside the record: read like any other, in the store soon after, never there without a name."""

from __future__ import annotations

import threading

import pytest

import exoflow
from graph_stream import inline
from graph_stream.snapshot import Entry, Manifest

PATIENCE = 10.0


class Written:
    """A store of blobs that may be made to wait or to fail."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.failures = 0

    def write(self, data: bytes) -> exoflow.Blob:
        assert self.gate.wait(PATIENCE)
        if self.failures:
            self.failures -= 1
            message = "no answer"
            raise OSError(message)
        name = f"blob-{len(self.data)}"
        self.data[name] = data
        return exoflow.Blob(name, len(data), "")

    def read(self, blob: exoflow.Blob) -> bytes:
        return self.data[blob.name]


def of_epoch(epoch: int) -> Entry:
    return inline.inline_entry(epoch, epoch, 1, f"object {epoch}".encode())


def test_an_entry_reads_the_same_before_and_after_it_is_in_the_store():
    store, entry = Written(), of_epoch(1)
    behind = inline.Behind(store.write)
    behind.begin(entry)
    manifest, written = behind.settle(Manifest((entry,)))
    assert [inline.is_inline(each) for each in (entry, *manifest.entries)] == [True, False]
    assert inline.read(entry, store.read) == inline.read(manifest.entries[0], store.read) == b"object 1"
    assert [each.blob for each in manifest.entries] == written
    assert behind.settle(manifest) == (manifest, [])


def test_the_commit_does_not_wait_for_the_write_but_the_next_one_does():
    store = Written()
    store.gate.clear()
    behind = inline.Behind(store.write)
    behind.begin(of_epoch(1))
    settled: list[Manifest] = []
    next_commit = threading.Thread(target=lambda: settled.append(behind.settle(Manifest((of_epoch(1),)))[0]))
    next_commit.start()
    next_commit.join(0.05)
    assert not settled
    store.gate.set()
    next_commit.join(PATIENCE)
    assert store.read(settled[0].entries[0].blob) == b"object 1"


def test_what_another_owner_left_inline_is_written_once():
    store = Written()
    manifest, written = inline.Behind(store.write).settle(Manifest((of_epoch(1), of_epoch(2))))
    assert [store.read(entry.blob) for entry in manifest.entries] == [b"object 1", b"object 2"]
    assert len(written) == len(store.data) == 2


def test_a_write_that_failed_is_told_and_done_again():
    store = Written()
    store.failures = 1
    behind = inline.Behind(store.write)
    behind.begin(of_epoch(1))
    with pytest.raises(OSError, match="no answer"):
        behind.settle(Manifest((of_epoch(1),)))
    manifest, _ = behind.settle(Manifest((of_epoch(1),)))
    assert store.read(manifest.entries[0].blob) == b"object 1"

"""Merging beside the stream: nothing waits for it, nothing is merged twice, and a failure is told once."""

from __future__ import annotations

import threading
import time

import pytest

from graph_stream.compaction import Compaction
from graph_stream.snapshot import Entry, Manifest, plan_compaction


class Gate:
    """A merge that waits until it is let through, and fails when told to."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun: list[tuple[int, int]] = []
        self.error: Exception | None = None

    def __call__(self, entries: tuple[Entry, ...]) -> Entry:
        self.begun.append((entries[0].first_epoch, entries[-1].last_epoch))
        assert self.open.wait(10)
        if self.error is not None:
            raise self.error
        return Entry(entries[0].first_epoch, entries[-1].last_epoch, 8, "merged")


def delta(epoch: int) -> Entry:
    return Entry(epoch, epoch, 1, "delta")


def spans(manifest: Manifest) -> list[tuple[int, int]]:
    return [(entry.first_epoch, entry.last_epoch) for entry in manifest.entries]


def grown(compaction: Compaction, first: int, last: int, manifest: Manifest | None = None) -> Manifest:
    manifest = manifest or Manifest()
    for epoch in range(first, last + 1):
        manifest = compaction.next(manifest.append(delta(epoch)))
    return manifest


def test_checkpoints_go_on_while_a_merge_is_under_way():
    gate = Gate()
    compaction = Compaction(gate)
    manifest = grown(compaction, 1, 12)
    assert spans(manifest) == [(epoch, epoch) for epoch in range(1, 13)]
    assert gate.begun == [(1, 8)]
    gate.open.set()
    manifest = compaction.next(manifest.append(delta(13)), settle=True)
    assert spans(manifest) == [(1, 8), *((epoch, epoch) for epoch in range(9, 14))]
    assert gate.begun == [(1, 8)]


def test_a_manifest_that_gets_too_long_waits():
    gate = Gate()
    compaction = Compaction(gate, most_entries=10)
    manifest = grown(compaction, 1, 9)
    assert len(manifest.entries) == 9
    threading.Timer(0.2, gate.open.set).start()
    manifest = compaction.next(manifest.append(delta(10)))
    assert spans(manifest)[0] == (1, 8)


def test_the_last_checkpoint_leaves_nothing_to_merge_and_nothing_unnamed():
    gate = Gate()
    gate.open.set()
    compaction = Compaction(gate)
    manifest = compaction.next(Manifest(tuple(delta(epoch) for epoch in range(1, 70))), settle=True)
    assert plan_compaction(manifest) is None
    assert manifest.last_epoch == 69
    assert compaction.next(manifest) == manifest


def test_a_failed_merge_is_told_and_tried_again():
    gate = Gate()
    compaction = Compaction(gate)
    manifest = grown(compaction, 1, 8)
    gate.error = OSError("the store is away")
    gate.open.set()
    with pytest.raises(OSError, match="the store is away"):
        compaction.next(manifest.append(delta(9)), settle=True)
    gate.error = None
    manifest = compaction.next(manifest.append(delta(9)), settle=True)
    assert manifest.last_epoch == 9
    assert plan_compaction(manifest) is None
    assert len(gate.begun) == 2


@pytest.mark.parametrize("waits", [True, False])
def test_a_merge_rests_between_its_parts_unless_somebody_waits(monkeypatch, waits):
    rested = threading.Event()

    def merge(entries: tuple[Entry, ...]) -> Entry:
        busy_until = time.thread_time() + 0.02
        while time.thread_time() < busy_until:
            pass
        compaction.rest()
        rested.set()
        return Entry(entries[0].first_epoch, entries[-1].last_epoch, 8, "merged")

    monkeypatch.setattr("graph_stream.compaction.REST", 1e5 if waits else 10.0)
    compaction = Compaction(merge)
    began = time.monotonic()
    manifest = grown(compaction, 1, 8)
    if waits:
        assert spans(compaction.next(manifest.append(delta(9)), settle=True)) == [(1, 8), (9, 9)]
        assert time.monotonic() - began < 60
    else:
        assert rested.wait(60)
        assert time.monotonic() - began > 0.2

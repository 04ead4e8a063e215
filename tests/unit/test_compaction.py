"""Merging beside the stream: nothing waits for it, nothing is merged twice, and a failure is told once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait

import pytest

from graph_stream.compaction import Compaction
from graph_stream.snapshot import Entry, Manifest


@pytest.fixture(autouse=True)
def eight_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graph_stream.snapshot.FANOUT", 8)


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
    assert manifest.due() is None
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
    assert manifest.due() is None
    assert len(gate.begun) == 2


class Gates:
    """Merges that each wait to be let through, or to be told to fail."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        # Made beforehand: two threads that ask for a missing one at once could get one each.
        self.of: dict[tuple[int, int], Future[None]] = {span: Future() for span in ((1, 8), (9, 16), (17, 24))}

    def __call__(self, entries: tuple[Entry, ...]) -> Entry:
        span = entries[0].first_epoch, entries[-1].last_epoch
        self.begun.append(span)
        self.of[span].result(60)
        return Entry(*span, len(entries), "merged")


def all_ended(compaction: Compaction) -> None:
    wait([merge.result for merge in compaction._under_way], 60)


def test_small_merges_go_on_beside_a_large_one():
    gates = Gates()
    compaction = Compaction(gates)
    manifest = grown(compaction, 1, 16)
    gates.of[9, 16].set_result(None)
    deadline = time.monotonic() + 60
    while len(manifest.entries) == 16 and time.monotonic() < deadline:
        manifest = compaction.next(manifest)
    assert spans(manifest) == [*((epoch, epoch) for epoch in range(1, 9)), (9, 16)]
    manifest = grown(compaction, 17, 24, manifest)
    for span in ((1, 8), (17, 24)):
        gates.of[span].set_result(None)
    all_ended(compaction)
    assert spans(compaction.next(manifest)) == [(1, 8), (9, 16), (17, 24)]
    assert sorted(gates.begun) == [(1, 8), (9, 16), (17, 24)]


def test_a_failed_merge_takes_no_other_with_it():
    gates = Gates()
    compaction = Compaction(gates)
    manifest = grown(compaction, 1, 16)
    gates.of[9, 16].set_result(None)
    gates.of[1, 8].set_exception(OSError("the store is away"))
    all_ended(compaction)
    with pytest.raises(OSError, match="the store is away"):
        compaction.next(manifest)
    gates.of[1, 8] = Future()
    gates.of[1, 8].set_result(None)
    assert spans(compaction.next(manifest, settle=True)) == [(1, 8), (9, 16)]
    assert sorted(gates.begun) == [(1, 8), (1, 8), (9, 16)]


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

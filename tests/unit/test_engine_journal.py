"""The commit protocol, who owns a workflow, and how readers keep what they read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exoflow import journal as journal_module
from exoflow import pins
from exoflow.blobs import Blobs, blob_folder
from exoflow.codec import encode
from exoflow.collection import sweep
from exoflow.errors import CorruptRecord, Fenced, StorageUnavailable, WorkflowNotFound, WorkflowRunning
from exoflow.journal import (
    Header,
    Journal,
    Owner,
    decode_object,
    encode_object,
    journal_folder,
    journal_key,
    read_journal,
)
from exoflow.ownership import (
    Heartbeat,
    HeartbeatThread,
    heartbeat_key,
    known_dead,
    read_heartbeat,
    this_process,
    wait_until_claimable,
)
from exoflow.records import Committed, Finished, Intended, Record, Retired, Started, Status, Value
from exoflow.steps import drive
from exoflow.storage import MemoryStore, Store

STARTED = Started("digest", "nonce", 1.0)


def owner(name: str) -> Owner:
    return Owner("elsewhere", "boot", 1, 1, name)


def journal(store: Store, name: str = "first") -> Journal:
    numbers = itertools.count()
    return Journal(store, "w", owner(name), lambda: f"{name}-{next(numbers)}")


def committed(task: str, **fields: Any) -> Committed:
    return Committed(task, 1, Value.inline(encode(task)), **fields)


def begun(store: Store, *tasks: str) -> Journal:
    made = journal(store)
    made.claim(None, [STARTED])
    for task in tasks:
        made.append([committed(task)])
    return made


# --- objects and chains -------------------------------------------------------------------------------------


records = st.lists(
    st.builds(Started, st.text(), st.text(), st.floats(0, 1e10))
    | st.builds(Intended, st.text(), st.text(), st.none() | st.text(), st.integers(0, 99))
    | st.builds(committed, st.text(), loop=st.none() | st.text(), iteration=st.integers(0, 99), stop=st.booleans())
    | st.builds(Retired, st.text(), st.integers(1, 99), st.text())
    | st.builds(
        Finished, st.sampled_from([Status.SUCCESSFUL, Status.FAILED]), st.floats(0, 1e10), st.none() | st.text()
    )
)


@given(records, st.data())
def test_objects_come_back_and_every_flipped_or_missing_byte_is_noticed(given_records, data):
    header = Header("append", 3, 1, owner("x"), "n", "p", 1, 2.5)
    raw, _ = encode_object(header, given_records)
    back = decode_object("key", raw)
    assert (back.header, list(back.records)) == (header, given_records)
    place = data.draw(st.integers(0, len(raw) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = bytearray(raw)
    flipped[place] ^= 1 << bit
    for damaged in (bytes(flipped), raw[:place]):
        try:
            found = decode_object("key", damaged)
        except CorruptRecord:
            continue
        else:
            # White space and the trailing newline are outside of what the checksum covers.
            assert found == back


def test_a_journal_reads_back_what_was_appended(stores):
    begun(stores, "a", "b")
    tail = read_journal(stores, "w")
    assert list(tail.history.committed) == ["a", "b"]
    assert tail.history.started == STARTED
    assert tail.history.committed["a"].committed_at is not None
    assert tail.header.number == 3


def test_no_journal_is_no_workflow(stores):
    with pytest.raises(WorkflowNotFound, match="'w'"):
        read_journal(stores, "w")


def test_a_missing_object_is_damage(stores):
    begun(stores, "a", "b", "c")
    stores.delete(journal_key("w", 3))
    with pytest.raises(CorruptRecord, match=journal_key("w", 3)):
        read_journal(stores, "w")


def test_an_object_of_another_history_is_damage(stores):
    begun(stores, "a", "b")
    other = MemoryStore()
    begun(other, "x")
    stores.put(journal_key("w", 2), other.get(journal_key("w", 2)) or b"")
    with pytest.raises(CorruptRecord, match=journal_key("w", 3)):
        read_journal(stores, "w")


def test_an_object_under_a_wrong_number_is_damage(stores):
    begun(stores, "a")
    stores.put(journal_key("w", 3), stores.get(journal_key("w", 2)) or b"")
    with pytest.raises(CorruptRecord, match="altered"):
        read_journal(stores, "w")


# --- appends whose outcome nobody knows ---------------------------------------------------------------------


class Flaky(MemoryStore):
    """Fails some writes, before or after they land."""

    def __init__(self, plan: list[str]) -> None:
        super().__init__()
        self.plan = plan

    def put_if_absent(self, key: str, data: bytes) -> bool:
        fate = self.plan.pop(0) if self.plan else "ok"
        if fate == "before":
            raise StorageUnavailable(key, "reset")
        created = super().put_if_absent(key, data)
        if fate == "after":
            raise StorageUnavailable(key, "timed out")
        return created


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    pauses = journal_module._BACKOFF_SECONDS
    monkeypatch.setattr(journal_module, "_BACKOFF_SECONDS", tuple(0.0 for _ in pauses))


@given(st.lists(st.sampled_from(["before", "after", "ok"]), max_size=7))
def test_each_append_counts_once_whatever_the_store_says(fates):
    store = Flaky([])
    made = begun(store)
    store.plan = list(fates)
    for task in ("a", "b", "c"):
        made.append([committed(task)])
    tail = read_journal(store, "w")
    assert list(tail.history.committed) == ["a", "b", "c"]
    assert tail.header.number == 4


def test_a_store_that_stays_away_is_an_outage(stores):
    store = Flaky(["before"] * 99)
    with pytest.raises(StorageUnavailable):
        begun(store)


@pytest.mark.parametrize("fate", ["ok", "before"])
def test_an_append_after_anothers_claim_is_fenced(fate):
    store = Flaky([])
    made = begun(store, "a")
    journal(store, "second").claim(read_journal(store, "w"))
    store.plan = [fate]
    with pytest.raises(Fenced, match="generation 2"):
        made.append([committed("b")])
    assert list(read_journal(store, "w").history.committed) == ["a"]


def test_of_two_claims_on_one_tail_one_wins(stores):
    begun(stores, "a")
    tails = [read_journal(stores, "w") for _ in range(2)]
    journal(stores, "second").claim(tails[0])
    with pytest.raises(Fenced):
        journal(stores, "third").claim(tails[1])
    assert read_journal(stores, "w").header.owner == owner("second")


def test_an_own_append_in_flight_is_no_successor(stores):
    made, double = begun(stores, "a"), journal(stores)
    double.claim(read_journal(stores, "w"))
    assert made.successor() is None
    stores.delete(journal_key("w", 3))
    journal(stores, "second").claim(read_journal(stores, "w"))
    assert made.successor() == owner("second")


# --- folds --------------------------------------------------------------------------------------------------


def folded(store: Store) -> Journal:
    made = begun(store, "a", "b")
    made.append(read_journal(store, "w").history.records(), fold=True)
    return made


def test_a_fold_repeats_everything_so_that_the_rest_may_go(stores):
    made = folded(stores)
    made.append([committed("c")])
    before = read_journal(stores, "w").history
    made.collect()
    assert stores.list(journal_folder("w")) == [journal_key("w", number) for number in (1, 4, 5)]
    after = read_journal(stores, "w").history
    assert list(after.committed) == list(before.committed) == ["a", "b", "c"]


def test_claims_are_never_collected_so_a_stale_owner_always_collides(stores):
    stale = begun(stores, "a")
    second = journal(stores, "second")
    second.claim(read_journal(stores, "w"))
    second.append(read_journal(stores, "w").history.records(), fold=True)
    second.collect()
    with pytest.raises(Fenced):
        stale.append([committed("b")])


def test_a_claimant_that_read_the_journal_long_ago_is_fenced_although_its_number_is_free_again(stores):
    owning = begun(stores, "a")
    tail = read_journal(stores, "w")
    owning.append([committed("b")])
    owning.append(read_journal(stores, "w").history.records(), fold=True)
    owning.collect()
    assert stores.get(journal_key("w", tail.header.number + 1)) is None
    with pytest.raises(Fenced, match="went on"):
        journal(stores, "late").claim(tail)
    owning.append([committed("c")])
    assert list(read_journal(stores, "w").history.committed) == ["a", "b", "c"]


class Racing(MemoryStore):
    """Lets something happen just before a certain read."""

    def __init__(self, before: Callable[[Racing, str], None]) -> None:
        super().__init__()
        self.before = before

    def get(self, key: str) -> bytes | None:
        self.before(self, key)
        return super().get(key)


def test_a_reader_that_races_a_fold_starts_again():
    made: list[Journal] = []

    def fold(store: Racing, key: str) -> None:
        if made and key == journal_key("w", 2):
            owning = made.pop()
            owning.append(read_journal(store, "w").history.records(), fold=True)
            owning.collect()

    store = Racing(fold)
    owning = begun(store, "a", "b", "c")
    made.append(owning)
    assert list(read_journal(store, "w").history.committed) == ["a", "b", "c"]
    assert made == []


# --- sweeping and pins --------------------------------------------------------------------------------------


def test_a_sweep_that_comes_late_spares_what_a_successor_wrote(stores):
    blobs = Blobs(stores, "w")
    dead, live = blobs.write(b"dead"), blobs.write(b"live")
    found = stores.list(blob_folder("w"))
    successors = Blobs(stores, "w").write(b"live")
    assert drive(sweep("w", found, {live.name}), stores) == 1
    assert blobs.read(live) == blobs.read(successors) == b"live"
    with pytest.raises(CorruptRecord, match=blobs.key(dead)):
        blobs.read(dead)


def test_a_pin_keeps_blobs_from_being_swept_and_ends_with_its_reader(stores):
    blobs = Blobs(stores, "w")
    blob = blobs.write(b"read")
    with pins.pin(stores, "w", [blob]):
        assert drive(sweep("w", stores.list(blob_folder("w")), set()), stores) == 0
        assert blobs.read(blob) == b"read"
    assert drive(pins.pinned_blobs("w"), stores) == set()
    assert drive(sweep("w", stores.list(blob_folder("w")), set()), stores) == 1


def test_a_dead_readers_pin_runs_out(stores):
    blob = Blobs(stores, "w").write(b"read")
    with pins.pin(stores, "w", [blob], seconds=-1.0):
        assert drive(pins.pinned_blobs("w"), stores) == set()
        assert stores.list("workflows/w/pins") == []


def test_a_damaged_blob_is_noticed(stores):
    blobs = Blobs(stores, "w")
    blob = blobs.write(b"bytes")
    stores.put(blobs.key(blob), b"bytez")
    with pytest.raises(CorruptRecord, match="damaged"):
        blobs.read(blob)


# --- ownership ----------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only while somebody sleeps; things may happen at certain moments."""

    def __init__(self, *happenings: tuple[float, Callable[[], object]]) -> None:
        self.now = 0.0
        self.happenings = sorted(happenings, key=lambda each: each[0])

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.happenings and self.happenings[0][0] <= self.now:
            self.happenings.pop(0)[1]()


def beat(store: Store, number: int, nonce: str = "first", *, released: bool = False) -> None:
    store.put(heartbeat_key("w"), json.dumps(dataclasses.asdict(Heartbeat(nonce, number, released))).encode())


def wait(store: Store, clock: Clock) -> Any:
    return wait_until_claimable(store, "w", lease_seconds=10.0, clock=clock, sleep=clock.sleep)


def test_a_silent_owner_may_be_claimed_after_one_lease(stores):
    begun(stores, "a")
    beat(stores, 1)
    clock = Clock()
    assert wait(stores, clock).header.number == 2
    assert 10.0 <= clock.now < 11.0


@pytest.mark.parametrize("sign", ["beat", "append"])
def test_any_sign_of_life_refuses_the_claim(stores, sign):
    made = begun(stores, "a")
    beat(stores, 1)
    signs = {"beat": lambda: beat(stores, 2), "append": lambda: made.append([committed("b")])}
    clock = Clock((9.0, signs[sign]))
    with pytest.raises(WorkflowRunning, match="process 1 on elsewhere"):
        wait(stores, clock)
    assert clock.now < 10.5


@pytest.mark.parametrize("when", [0.0, 4.0])
def test_a_released_workflow_may_be_claimed_at_once(stores, when):
    begun(stores, "a")
    beat(stores, 1)
    clock = Clock((when, lambda: beat(stores, 1, released=True)))
    if not when:
        clock.sleep(0.0)
    wait(stores, clock)
    assert clock.now < when + 1.0


def test_a_finished_workflow_need_not_be_waited_for(stores):
    begun(stores).append([Finished(Status.FAILED, 1.0, "t", "e")])
    clock = Clock()
    wait(stores, clock)
    assert clock.now == 0.0


def test_the_running_process_is_alive_and_its_reused_id_is_not():
    me = this_process()
    assert me.pid == os.getpid()
    assert not known_dead(me)
    assert known_dead(dataclasses.replace(me, pid_started=me.pid_started + 1))
    assert known_dead(dataclasses.replace(me, boot_id="another"))
    assert not known_dead(dataclasses.replace(me, host=socket.gethostname() + "x", pid_started=0))


def test_a_heart_beats_releases_and_leaves_its_successors_beat_alone(stores):
    heart = HeartbeatThread(stores, "w", "first", lease_seconds=60.0)
    assert read_heartbeat(stores, "w") == Heartbeat("first")
    heart.release()
    assert read_heartbeat(stores, "w") == Heartbeat("first", 0, released=True)
    stale = HeartbeatThread(stores, "w", "stale", lease_seconds=60.0)
    beat(stores, 5, "second")
    stale.release()
    assert read_heartbeat(stores, "w") == Heartbeat("second", 5)


def test_a_heartbeat_that_cannot_be_read_is_no_sign(stores):
    stores.put(heartbeat_key("w"), b"{")
    assert read_heartbeat(stores, "w") is None


def test_a_claim_reopens_a_failed_workflow_and_not_a_successful_one(stores):
    for status, left in ((Status.FAILED, None), (Status.SUCCESSFUL, Status.SUCCESSFUL)):
        store = MemoryStore()
        begun(store).append([Finished(status, 1.0)])
        journal(store, "second").claim(read_journal(store, "w"))
        finished: Record | None = read_journal(store, "w").history.finished
        assert (None if finished is None else finished.status) == left

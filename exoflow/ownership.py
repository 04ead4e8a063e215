"""Who owns a workflow right now, as far as anybody can say without the journal.

The heartbeat object is advisory: it says *when* a claim may be tried, never who owns. Ownership itself is
decided in the journal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from exoflow.errors import StorageUnavailable, WorkflowRunning
from exoflow.journal import Owner, Tail, read_journal, workflow_folder
from exoflow.storage import Store

LEASE_SECONDS = 10.0
_BEATS_PER_LEASE = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Heartbeat:
    """One beat of an owner; ``released`` says that it has stopped for good."""

    nonce: str
    beat: int = 0
    released: bool = False


def this_process() -> Owner:
    """Return the running process as an owner, with a nonce for one tenure."""
    pid = os.getpid()
    return Owner(socket.gethostname(), _boot_id(), pid, _pid_started(pid), uuid.uuid4().hex)


def known_dead(owner: Owner) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    if owner.host != socket.gethostname():
        return False
    return owner.boot_id != _boot_id() or _pid_started(owner.pid) != owner.pid_started


def heartbeat_key(workflow_id: str) -> str:
    """Return the key of the heartbeat object."""
    return f"{workflow_folder(workflow_id)}/heartbeat"


def read_heartbeat(store: Store, workflow_id: str) -> Heartbeat | None:
    """Return the newest heartbeat; None when there is none or it cannot be understood."""
    data = store.get(heartbeat_key(workflow_id))
    if data is None:
        return None
    try:
        return Heartbeat(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _gone(owner: Owner, beat: Heartbeat | None) -> bool:
    return known_dead(owner) or (beat is not None and beat.nonce == owner.nonce and beat.released)


def wait_until_claimable(
    store: Store,
    workflow_id: str,
    *,
    lease_seconds: float = LEASE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Tail:
    """Return the journal once a claim on it may be tried.

    That is when the owner that the journal names has released it, is known dead, or has been silent, in
    heartbeat and journal, for one lease of our own clock.

    Raises
    ------
    WorkflowRunning
        As soon as the owner shows a sign of life.
    """
    tail = read_journal(store, workflow_id)
    first = read_heartbeat(store, workflow_id)
    if tail.history.finished is not None or _gone(tail.header.owner, first):
        return tail
    deadline = clock() + lease_seconds
    while clock() < deadline:
        sleep(lease_seconds / _BEATS_PER_LEASE / 4)
        beat = read_heartbeat(store, workflow_id)
        now = read_journal(store, workflow_id)
        if _gone(now.header.owner, beat):
            return now
        if beat != first or now.header != tail.header:
            raise WorkflowRunning(workflow_id, str(now.header.owner))
    return tail


def looks_alive(store: Store, workflow_id: str, owner: Owner, *, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Guess without waiting for a lease whether somebody owns the workflow; for showing a status."""
    beat = read_heartbeat(store, workflow_id)
    if _gone(owner, beat):
        return False
    if owner.host == socket.gethostname():
        return True
    sleep(LEASE_SECONDS / _BEATS_PER_LEASE * 1.5)
    return read_heartbeat(store, workflow_id) != beat


class HeartbeatThread:
    """Beats for one owner until stopped."""

    def __init__(self, store: Store, workflow_id: str, nonce: str, lease_seconds: float) -> None:
        self._store = store
        self._workflow_id = workflow_id
        self._key = heartbeat_key(workflow_id)
        self._beat = Heartbeat(nonce)
        self._seconds = lease_seconds / _BEATS_PER_LEASE
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exoflow-heartbeat", daemon=True)
        self._put()
        self._thread.start()

    def release(self) -> None:
        """End, and say that the owner is gone for good, so that nobody need wait for the lease."""
        self._stopped.set()
        self._thread.join()
        self._try_beat(dataclasses.replace(self._beat, released=True))

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._try_beat(dataclasses.replace(self._beat, beat=self._beat.beat + 1))

    def _try_beat(self, beat: Heartbeat) -> None:
        # Advisory only: an outage that matters shows itself at the next append.
        with contextlib.suppress(StorageUnavailable):
            seen = read_heartbeat(self._store, self._workflow_id)
            if seen is None or seen.nonce == beat.nonce:
                self._beat = beat
                self._put()

    def _put(self) -> None:
        self._store.put(self._key, json.dumps(dataclasses.asdict(self._beat)).encode("ascii"))


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def _pid_started(pid: int) -> int:
    """Return a process's start time in clock ticks since boot; -1 when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return -1
    # A zombie has ended; only its parent has not yet looked.
    return -1 if fields[0] == "Z" else int(fields[19])

"""What runs in Ray's processes: attempts, bundles of them, members of actors, and what makes references durable.

Each is a thin wrapper: it unpacks what travelled, calls `exoflow.worker`, which knows nothing of Ray, and packs
the outcome. Every attempt returns two objects, its value and its outcome.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.exceptions

from exoflow import wire, worker
from exoflow.blobs import Blobs
from exoflow.cluster import ensure_ray
from exoflow.codec import Blob, StoredReference
from exoflow.errors import StorageUnavailable
from exoflow.plan import ActorSpec
from exoflow.precedence import process_gives_way
from exoflow.records import Value
from exoflow.worker import Failure

PATIENCE_SECONDS = 0.1
"""How long an attempt of a bundle may wait for those before it."""


def _run_task(packed: bytes, *values: Any) -> tuple[Any, bytes]:
    job = wire.unpack_job(packed)
    value, outcome = worker.run_task(job, values, references=RayReferences(job.workflow_id, job.store_uri))
    return value, wire.pack(outcome)


def _run_bundle(packed: list[bytes]) -> tuple[Any, ...]:
    """Run attempts one after the other; those that would wait too long for the ones before are not run."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    values: list[Any] = []
    outcomes: list[bytes | None] = []
    for each in packed:
        if time.monotonic() > deadline:
            values.append(worker.Unavailable())
            outcomes.append(None)
            continue
        value, outcome = _run_task(each)
        values.append(value)
        outcomes.append(outcome)
    return (*values, outcomes)


def _persist_output(workflow_id: str, store_uri: str, known: tuple[Blob, ...], value: Any) -> bytes:
    references = RayReferences(workflow_id, store_uri, known)
    blobs = Blobs(worker.store_at(store_uri), workflow_id, references, known)
    return wire.pack(worker.persist_output(value, blobs))


def _load_value(workflow_id: str, store_uri: str, value: Value) -> Any:
    return Blobs(worker.store_at(store_uri), workflow_id, RayReferences(workflow_id, store_uri)).load(value)


class RayReferences:
    """Ray's object references inside values.

    Ray runs a task where most bytes of its arguments lie. So what a reference stands for is made durable on
    the node that holds it, many at once, and never passes through the process that asks.
    """

    kind = ray.ObjectRef
    lost = ray.exceptions.ObjectLostError

    def __init__(self, workflow_id: str, store_uri: str, known: tuple[Blob, ...] = ()) -> None:
        self._where = (workflow_id, store_uri)
        self._known = known

    def save(self, references: Sequence[Any]) -> list[StoredReference]:
        """Make durable what each reference stands for; raises StorageUnavailable."""
        made = ray.get([PERSIST.remote(*self._where, self._known, reference) for reference in references])
        stored = []
        for packed in made:
            value = wire.unpack_durable(packed)
            if isinstance(value, Failure):
                message = f"a reference could not be made durable: {value.error}"
                raise StorageUnavailable(self._where[0], message)
            stored.append(StoredReference(value.to_json(), value.blobs))
        return stored

    def load(self, shown: Mapping[str, Any]) -> Any:
        """Return a reference to a value that Ray will read from the store; starts Ray if need be."""
        ensure_ray()
        return LOAD.remote(*self._where, Value.from_json(dict(shown)))


class MemberHost:
    """A Ray actor around one `worker.Member`.

    The calls that make the actor's history run in one thread of their own, so that user code always sees the
    same thread, and queries in another: a call that waits for the outside world keeps none waiting. Waiting
    for the right moment, messages of other members and persisting go on beside both.
    """

    def __init__(
        self,
        spec: ActorSpec,
        workflow_id: str,
        store_uri: str,
        index: int,
        restore: Value | None,
        hints: Mapping[str, Any],
    ) -> None:
        process_gives_way()
        self._loop = asyncio.get_event_loop()
        self._body = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="exoflow-body")
        self._queries = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="exoflow-query")
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "exoflow-persist")
        self._changed = asyncio.Event()
        self._started = asyncio.Event()
        self._told: asyncio.Queue[str] = asyncio.Queue()
        self._index = index
        self._peers: list[Any] = []
        self._round = 0
        # There from the beginning: another member may start, and write, before this one.
        self._mail: list[queue.SimpleQueue[tuple[int, Any]]] = [queue.SimpleQueue() for _ in range(spec.members)]
        self._early: dict[tuple[int, int], Any] = {}
        exchange = self._exchange if spec.replicas is not None and spec.members > 1 else None
        store = worker.store_at(store_uri)
        references = RayReferences(workflow_id, store_uri)
        self._member = worker.Member(spec, workflow_id, store, index, restore, exchange, references, hints, self._tell)

    async def start(self, peers: list[Any]) -> str | None:
        """Learn who the other members are, then make the user's object; tell if its stored state is damaged."""
        self._peers = peers
        damage = await self._loop.run_in_executor(self._body, self._member.start)
        self._started.set()
        return damage

    async def stay(self) -> str:
        """Return the next thing that the actor's code tells; whoever waits for this is told when the process ends."""
        return await self._told.get()

    def _tell(self, text: str) -> None:
        self._loop.call_soon_threadsafe(self._told.put_nowait, text)

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    async def call(self, packed: bytes, *values: Any) -> tuple[Any, bytes]:
        """Run a call once the member is in the state that the call expects."""
        job = wire.unpack_job(packed)
        await self._started.wait()
        while job.leaves and self._member.token != job.expects:
            self._changed.clear()
            await self._changed.wait()
        thread = self._queries if job.query else self._body
        value, outcome = await self._loop.run_in_executor(thread, self._member.call, job, values)
        self._changed.set()
        return value, wire.pack(outcome)

    async def persist(self, attempt: int) -> bytes:
        """Make durable the state that a call captured. Asked for once its answer has arrived, so as not to delay it."""
        return await self._loop.run_in_executor(self._writer, self._persist, attempt)

    def _persist(self, attempt: int) -> bytes:
        return wire.pack(self._member.persist(attempt))

    async def deliver(self, sender: int, number: int, message: Any) -> None:
        """Take a message of another member; Ray may deliver two of them the other way round."""
        self._mail[sender].put((number, message))

    def _exchange(self, messages: Sequence[Any]) -> list[Any]:
        self._round += 1
        for index, peer in enumerate(self._peers):
            if index != self._index:
                peer.deliver.remote(self._index, self._round, messages[index])
        received = []
        for index in range(len(self._peers)):
            if index == self._index:
                received.append(messages[index])
                continue
            received.append(self._receive(index))
        return received

    def _receive(self, sender: int) -> Any:
        """Return a member's message of this round; it can be at most one round ahead of us."""
        while (sender, self._round) not in self._early:
            number, message = self._mail[sender].get()
            if number not in (self._round, self._round + 1):
                text = f"member {sender} is in round {number} while member {self._index} is in {self._round}"
                raise RuntimeError(text)
            self._early[sender, number] = message
        return self._early.pop((sender, self._round))


# Made once per process: Ray exports what it makes here to the cluster, and every worker fetches it from there.
TASK = ray.remote(max_retries=0)(_run_task)
BUNDLE = ray.remote(max_retries=0)(_run_bundle)
# Writing a value again is harmless, so this is the one thing that Ray may repeat by itself.
PERSIST = ray.remote(num_cpus=0, max_retries=3)(_persist_output)
LOAD = ray.remote(num_cpus=0, max_retries=3)(_load_value)
HOST = ray.remote(max_restarts=0, max_task_retries=0)(MemberHost)

"""A server between a store and its clients that makes it slow, or lets it fail in chosen ways.

It forwards HTTP/1.1 on 127.0.0.1 as it comes, so that signed requests stay valid, and adds a delay to each
request. A `Fault` befalls the next requests that it fits::

    with SlowStore("http://127.0.0.1:9000", delay_ms=20) as slow:
        slow.befall(Fault.LOSE_ANSWER, method="PUT", path="/journal/")
        store = open_store(f"s3://bucket/prefix?endpoint={slow.endpoint}")

As a command: ``python benchmarks/slow_store.py --upstream http://127.0.0.1:9000 --port 9100 --delay-ms 20``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import enum
import threading
import urllib.parse
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

Answer = TypeVar("Answer")
HEAD_BYTES = 64 * 1024
CHUNK_BYTES = 64 * 1024


class Fault(enum.Enum):
    """What happens to a request."""

    DROP = "the connection is closed before the store sees anything"
    REFUSE = "503 is answered, as by a server that is too busy; the store sees nothing"
    LOSE_ANSWER = "the store does what it was asked for, and the connection is closed instead of an answer"
    CUT_ANSWER = "the connection is closed in the middle of the answer's body; without a body the answer is whole"
    STRAY_PAGE = "200 and a page is answered, as by a proxy on the way; the store sees nothing"


@dataclasses.dataclass
class _Plan:
    fault: Fault
    times: int
    method: str
    path: str

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("", method) and self.path in path


@dataclasses.dataclass(frozen=True)
class _Head:
    """The first line and the fields of a request or answer, and its bytes."""

    data: bytes
    first: list[str]
    fields: dict[str, str]

    @property
    def status(self) -> int:
        return int(self.first[1])

    @property
    def expects_close(self) -> bool:
        return self.fields.get("connection", "").lower() == "close"


_REFUSAL = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_PAGE = b"<html><head><title>Welcome</title></head><body>Please sign in.</body></html>"


class SlowStore:
    """The server, in a thread of its own, for as long as the block.

    Parameters
    ----------
    upstream : str
        URL of the store's server, ``http://HOST:PORT``.
    delay_ms : float
        Milliseconds that each request waits before it is forwarded; may be changed at any time.
    port : int
        Where to listen; 0 takes a free one.

    Attributes
    ----------
    requests : list of (str, str)
        Method and path of every request so far, those that failed too.
    """

    def __init__(self, upstream: str, *, delay_ms: float = 0.0, port: int = 0) -> None:
        parts = urllib.parse.urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.delay_ms = delay_ms
        self.requests: list[tuple[str, str]] = []
        self._port = port
        self._plans: list[_Plan] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-store", daemon=True)
        self._open: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        try:
            self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=HEAD_BYTES))
        except BaseException:
            self._end()
            raise
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening and close all connections."""
        self._run(self._close())
        self._end()

    @property
    def endpoint(self) -> str:
        """URL for clients."""
        return f"http://127.0.0.1:{self._port}"

    def befall(self, fault: Fault, *, times: int = 1, method: str = "", path: str = "") -> None:
        """Let a fault befall the next ``times`` requests of ``method`` (any: "") with ``path`` in their path."""
        with self._lock:
            self._plans.append(_Plan(fault, times, method, path))

    def recover(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._plans.clear()

    def _run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _fate(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for plan in self._plans:
                if plan.fits(method, path):
                    plan.times -= 1
                    return plan.fault
            return None

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        store: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while (head := await _read_head(client)) is not None:
                fault = self._fate(head.first[0], head.first[1])
                await asyncio.sleep(self.delay_ms / 1e3)
                if fault is Fault.DROP:
                    break
                if fault in (Fault.REFUSE, Fault.STRAY_PAGE):
                    await _answer_for_the_store(head, client, to_client, fault)
                    break
                if store is None:
                    store = await asyncio.open_connection(*self._upstream, limit=HEAD_BYTES)
                if not await _forward(head, client, to_client, *store, fault):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            for writer in (to_client, *([store[1]] if store else [])):
                writer.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await writer.wait_closed()


async def _forward(
    head: _Head,
    client: asyncio.StreamReader,
    to_client: asyncio.StreamWriter,
    store: asyncio.StreamReader,
    to_store: asyncio.StreamWriter,
    fault: Fault | None,
) -> bool:
    """Take one request to the store and its answer back; return whether the connection goes on."""
    to_store.write(head.data)
    # A client may wait for "100 Continue" before it sends the body.
    body = asyncio.create_task(_copy_body(head, client, to_store))
    held_back = head.fields.get("expect", "").lower() == "100-continue"
    try:
        while True:
            answer = await _read_head(store)
            if answer is None:
                return False
            if answer.status >= 200:
                break
            held_back = False
            to_client.write(answer.data)
            await to_client.drain()
        if fault is Fault.LOSE_ANSWER:
            return False
        # A body that the client was not asked for never comes, and must not be waited for.
        to_client.write(answer.data[:-2] + b"Connection: close\r\n\r\n" if held_back else answer.data)
        bodiless = head.first[0] == "HEAD" or answer.status in (204, 304) or answer.fields.get("content-length") == "0"
        if fault is Fault.CUT_ANSWER and not bodiless:
            to_client.write(await store.readexactly(int(answer.fields["content-length"]) // 2))
            await to_client.drain()
            return False
        if not bodiless:
            await _copy_body(answer, store, to_client)
        await to_client.drain()
        if held_back:
            return False
        await body
        return not (head.expects_close or answer.expects_close)
    finally:
        body.cancel()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await body


async def _answer_for_the_store(
    head: _Head, client: asyncio.StreamReader, to_client: asyncio.StreamWriter, fault: Fault
) -> None:
    status, kind, page = ("503 Slow Down", "application/xml", _REFUSAL)
    if fault is Fault.STRAY_PAGE:
        status, kind, page = ("200 OK", "text/html", _PAGE)
    # An unread body would turn the answer into a reset; one that the client holds back never comes.
    if head.fields.get("expect", "").lower() != "100-continue":
        await _copy_body(head, client, None)
    answer = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
    to_client.write(answer.encode("ascii") + page)
    await to_client.drain()


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    """Return the next head; None at the end of the connection."""
    try:
        data = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = data.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return _Head(data, lines[0].split(" ", 2), {name.strip().lower(): value.strip() for name, _, value in pairs})


async def _copy_body(head: _Head, source: asyncio.StreamReader, sink: asyncio.StreamWriter | None) -> None:
    """Copy what follows a head; None throws it away."""

    async def copy(count: int) -> None:
        while count:
            data = await source.readexactly(min(count, CHUNK_BYTES))
            count -= len(data)
            if sink is not None:
                sink.write(data)
                await sink.drain()

    if "chunked" not in head.fields.get("transfer-encoding", "").lower():
        await copy(int(head.fields.get("content-length", "0")))
        return
    while True:
        line = await source.readuntil(b"\r\n")
        if sink is not None:
            sink.write(line)
        count = int(line.split(b";")[0], 16)
        # The last chunk is empty; trailers may follow it.
        if not count:
            break
        await copy(count + 2)
    while line != b"\r\n":
        line = await source.readuntil(b"\r\n")
        if sink is not None:
            sink.write(line)


def main() -> None:
    parser = argparse.ArgumentParser(description="Forward requests to a store's server, each after a delay.")
    parser.add_argument("--upstream", default="http://127.0.0.1:9000", help="URL of the server")
    parser.add_argument("--port", type=int, default=9100, help="where to listen on 127.0.0.1")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="milliseconds that each request waits")
    options = parser.parse_args()
    with (
        contextlib.suppress(KeyboardInterrupt),
        SlowStore(options.upstream, delay_ms=options.delay_ms, port=options.port) as slow,
    ):
        print(f"{slow.endpoint} -> {options.upstream}, {options.delay_ms:g} ms slower", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

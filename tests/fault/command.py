"""``graph-stream`` as a process of its own: started, watched, interrupted, killed with all it has started."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]
END_SECONDS = 180.0
_MARK = "EXOFLOW_TEST_COMMAND"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, and all it wrote."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The object in the last line of stdout."""
        shown: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return shown

    def checked(self) -> Self:
        """Return this, of a command that had to succeed."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


class Command:
    """A running command; leaving the block kills what is left of it.

    Parameters
    ----------
    *arguments : object
        Of ``graph-stream``.
    terminal : bool
        Whether stderr is a terminal, so that progress is told.
    environment : mapping, optional
        Variables to add.
    prepare : callable, optional
        Called in the new process before the command.
    """

    def __init__(
        self,
        *arguments: object,
        terminal: bool = False,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving the block
        read, write = os.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "graph_stream.cli", *map(str, arguments)],
            cwd=ROOT,
            env={**inherited, **(environment or {}), "PYTHONPATH": str(ROOT), _MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=write,
            start_new_session=True,
            preexec_fn=functools.partial(_begin, prepare),
        )
        os.close(write)
        self._err = bytearray()
        self._listener = threading.Thread(target=self._listen, args=(read,), daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        """Return the command."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Kill what is left."""
        self.kill()
        for process in self.survivors():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._listener.join(END_SECONDS)
        self._out.close()

    @property
    def told(self) -> str:
        """What came on stderr so far."""
        return self._err.decode(errors="replace")

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until ``ready()``; fail if the command ends before."""
        deadline = time.monotonic() + END_SECONDS
        while not ready():
            assert self.process.poll() is None, f"ended with {self.process.returncode} too early: {self.told}"
            assert time.monotonic() < deadline, f"it did not happen in time: {self.told}"
            time.sleep(0.005)

    def end(self) -> Ended:
        """Wait for the end and return it."""
        code = self.process.wait(END_SECONDS)
        self.until_nothing_is_left()
        self._listener.join(END_SECONDS)
        self._out.seek(0)
        return Ended(code, self._out.read().decode(), self.told.replace("\r\n", "\n"))

    def tree(self) -> list[psutil.Process]:
        """Return the command's process and all below it, as of now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Kill the whole tree at once."""
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def kill_driver(self) -> None:
        """Kill the command's own process alone."""
        self.process.kill()
        self.process.wait()

    def interrupt(self, *, group: bool) -> None:
        """Send what Ctrl-C sends, to the process alone or to its whole group."""
        (os.killpg if group else os.kill)(self.process.pid, signal.SIGINT)

    def survivors(self) -> list[psutil.Process]:
        """Return all processes that descend from the command, whoever their parent is now."""
        return list(_marked(self._mark))

    def until_nothing_is_left(self) -> None:
        """Wait until everything that the command started has ended by itself."""
        deadline = time.monotonic() + END_SECONDS
        while left := self.survivors():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)

    def _listen(self, read: int) -> None:
        with contextlib.closing(os.fdopen(read, "rb", buffering=0)) as stream, contextlib.suppress(OSError):
            # Reading from a terminal whose other side is closed is an error, from a pipe an empty read.
            while data := stream.read(4096):
                self._err += data


def _begin(prepare: Callable[[], None] | None) -> None:
    """Be interruptible, even where the tests themselves run in the background of a shell, which are not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if prepare is not None:
        prepare()


def graph_stream(*arguments: object, **options: Any) -> Ended:
    """Run a command to its end; options as of `Command`."""
    with Command(*arguments, **options) as command:
        return command.end()


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process

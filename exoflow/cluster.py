"""Ray itself: joined where somebody says where it is, else started as children of this process."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import ray
import ray._private.worker
from ray._private import ray_constants

from exoflow.errors import ClusterLost, ClusterUnavailable
from exoflow.precedence import giving_way

DEFAULT_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_TEMPORARY_PREFIX = "exoflow-ray-"


def ensure_ray(
    *, num_cpus: int | None = None, object_store_bytes: int | None = None, log_to_driver: bool = True
) -> None:
    """Join Ray if this process or ``RAY_ADDRESS`` says where it is; else start it as children of the process.

    Ray started here has its own temporary folder, no dashboard and no usage reports, and ends with the
    process, however that ends.

    Raises
    ------
    ClusterUnavailable
        If it does not answer, or does not start.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Every outcome is read as an event; values of attempts that were given up need no complaint.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Ray remembers what became of each of a hundred thousand tasks: some 16 kB an epoch that nobody reads.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        with giving_way(), _failure_told(f"Ray at {address} (RAY_ADDRESS) cannot be joined"):
            ray.init(log_to_driver=log_to_driver, logging_level="warning")
        return
    _keep_to_loopback()
    _remove_leftovers()
    folder = tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{os.getpid()}-", dir=tempfile.gettempdir())
    on_terminate = signal.getsignal(signal.SIGTERM)
    with giving_way(), _failure_told("Ray does not start"):
        ray.init(
            num_cpus=num_cpus or os.cpu_count(),
            object_store_memory=object_store_bytes or DEFAULT_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=log_to_driver,
            logging_level="error",
            _temp_dir=folder,
        )
    if threading.current_thread() is threading.main_thread():
        # Ray puts a handler of its own; how this process ends is for its caller to say.
        signal.signal(signal.SIGTERM, on_terminate)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


@contextlib.contextmanager
def _failure_told(what: str) -> Iterator[None]:
    # Ray has no errors of its own for this: it raises whatever came first.
    try:
        yield
    except Exception as error:
        message = f"{what}: {error}"
        raise ClusterUnavailable(message) from error


@contextlib.contextmanager
def ended_with_block() -> Iterator[None]:
    """End a Ray that is started within the block with it, and have what it says meanwhile go to stderr.

    Ray writes messages of its own to stdout, also at its end; where that carries data they are in the way.
    """
    was_there = ray.is_initialized()
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            if not was_there:
                ray.shutdown()


def _keep_to_loopback() -> None:
    """Let a Ray of our own listen on 127.0.0.1 alone.

    Ray has one switch for that, meant for other systems; it is read when Ray is imported, and again by the
    processes that Ray starts.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _remove_leftovers() -> None:
    """Remove temporary folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY_PREFIX}*"):
        pid = folder.name.removeprefix(_TEMPORARY_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


class NodeWatch:
    """Tells when the Ray node that this process works through has died; nothing that waits for Ray would notice.

    It watches the node's process and asks Ray nothing: a thread that is inside Ray while another shuts it down ends
    the whole process.

    Parameters
    ----------
    tell : callable
        Gets a `ClusterLost`, once, from a thread of the watch.

    Raises
    ------
    ClusterLost
        If the node has died before anybody watched it.
    """

    def __init__(self, tell: Callable[[ClusterLost], None]) -> None:
        self._tell = tell
        self._node = ray.get_runtime_context().get_node_id()
        try:
            self._process = os.pidfd_open(_raylet_pid())
        except OSError as error:
            _let_go()
            raise ClusterLost(self._node) from error
        self._stopped = os.eventfd(0)
        self.lost = False
        self._thread = threading.Thread(target=self._run, name="exoflow-node-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch. A Ray that has died is let go of, so that the next one can be started or joined."""
        os.eventfd_write(self._stopped, 1)
        self._thread.join()
        os.close(self._process)
        os.close(self._stopped)
        if self.lost:
            _let_go()

    def _run(self) -> None:
        poll = select.poll()
        for end in (self._process, self._stopped):
            poll.register(end, select.POLLIN)
        if self._stopped not in [ready for ready, _ in poll.poll()]:
            self.lost = True
            self._tell(ClusterLost(self._node))


def _let_go() -> None:
    """Forget a Ray that has died."""
    with contextlib.suppress(Exception):
        ray.shutdown()


def _raylet_pid() -> int:
    """Return the process of the node that this process works through: the one that listens on its socket.

    Raises
    ------
    OSError
        If nobody does.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(ray._private.worker._global_node.raylet_socket_name)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid

"""Ray itself: joined where somebody says where it is, else started as children of this process."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import ray
from ray._private import ray_constants

DEFAULT_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_TEMPORARY_PREFIX = "exoflow-ray-"


def ensure_ray(
    *, num_cpus: int | None = None, object_store_bytes: int | None = None, log_to_driver: bool = True
) -> None:
    """Join Ray if this process or ``RAY_ADDRESS`` says where it is; else start it as children of the process.

    Ray started here has its own temporary folder, no dashboard and no usage reports, and ends with the
    process, however that ends.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Every outcome is read as an event; values of attempts that were given up need no complaint.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=log_to_driver, logging_level="warning")
        return
    _keep_to_loopback()
    _remove_leftovers()
    folder = tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{os.getpid()}-", dir=tempfile.gettempdir())
    on_terminate = signal.getsignal(signal.SIGTERM)
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

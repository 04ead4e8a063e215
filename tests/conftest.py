"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from exoflow.storage import LocalStore, MemoryStore, Store


@pytest.fixture(params=["memory", "local"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return an empty store; the test runs once on each kind."""
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "store")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Start a small Ray the way the engine does; end it with all its processes."""
    import ray

    from exoflow.cluster import ensure_ray

    others = psutil.Process().children(recursive=True)
    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    processes = [process for process in psutil.Process().children(recursive=True) if process not in others]
    yield
    ray.shutdown()
    _, left = psutil.wait_procs(processes, timeout=20)
    assert not left, f"Ray left processes behind: {left}"

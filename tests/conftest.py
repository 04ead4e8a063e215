"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from exoflow.storage import LocalStore, MemoryStore, Store

HEAVY = {"compat", "fault", "integration", "packaging"}
"""Folders of tests that start Ray, servers or whole runs."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the heavy tests run one after the other where tests run side by side, so that they share what they start."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in HEAVY:
            item.add_marker(pytest.mark.xdist_group("heavy"))


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

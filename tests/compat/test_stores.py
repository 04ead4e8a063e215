"""Stores that earlier versions left behind must be resumed by this one, to the results they would have had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import exoflow
from exoflow.blobs import object_key
from exoflow.records import Status
from exoflow.storage import LocalStore
from tests.compat import flows_v1
from tests.compat.make import STORES, epochs
from tests.fault.command import graph_stream

VERSIONS = {"v1": flows_v1}
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(version: str, tmp_path: Path) -> str:
    shutil.copytree(STORES / version, tmp_path / "store")
    return str(tmp_path / "store")


@pytest.fixture
def flows(version: str, store: str) -> Any:
    flows = VERSIONS[version]
    for name in flows.WORKFLOWS:
        LocalStore(store).put(object_key(name, "gate"), b"open")
    return flows


def test_every_kept_version_is_tested():
    assert {path.name for path in STORES.iterdir()} == set(VERSIONS)


def test_workflows_of_an_older_version_are_resumed(flows, store):
    assert dict(exoflow.list_all(store=store)) == {
        "dag": Status.FAILED,
        "doubtful": Status.IN_DOUBT,
        "loop-async": Status.FAILED,
        "loop-sync": Status.FAILED,
        "run": Status.INTERRUPTED,
    }
    with pytest.raises(exoflow.InDoubt):
        exoflow.resume("doubtful", store=store)
    exoflow.resolve("doubtful", "send", exoflow.Done("receipt"), store=store)
    for name, expected in flows.EXPECTED.items():
        assert exoflow.resume(name, store=store) == expected
        # The same workflow made of today's code is known as the same.
        assert exoflow.run(flows.WORKFLOWS[name](), workflow_id=name, store=store) == expected


def test_a_run_of_an_older_version_is_resumed(version, store):
    before = epochs(store)
    whole = json.loads((STORES / version / "epochs.json").read_text())
    assert 5 <= len(before) < len(whole)
    graph_stream("resume", "--run-id", "run", "--store", store).checked()
    assert epochs(store) == whole

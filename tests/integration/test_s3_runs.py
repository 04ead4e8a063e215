"""``graph-stream`` with its store on a real S3 server: the same answers, and commands that lead back there.

Ray runs before the commands do and knows of no endpoint: it must travel with the store.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import exoflow.cli
from exoflow.storage.location import S3Location
from ingest import write_rmat
from tests.fault.command import Ended
from tests.integration.services import S3
from tests.integration.test_cli import Call, call

__all__ = ["call"]  # a fixture

EPOCH_EDGES, EPOCHS = 2_000, 6
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edges") / "edges.txt.gz"
    write_rmat(path, 10, EPOCHS * EPOCH_EDGES, seed=3)
    return path


def run(call: Call, edges: Path, place: list[object], mode: str, *more: object) -> Ended:
    return call(
        *("run", "--run-id", "r", *place, "--source", edges, "--epoch-edges", EPOCH_EDGES),
        *("--threads", 1, "--checkpoint", mode, "--json", *more),
    )


def read(call: Call, place: list[object], out: Path) -> tuple[list[str], Any, str]:
    """Return what readers see: the epochs' state hashes, the scores, the top."""
    at = ["--run-id", "r", *place]
    epochs = call("epochs", *at, "--json").checked().out.splitlines()
    call("scores", *at, "--out", out).checked()
    return [json.loads(line)["state_hash"] for line in epochs], pq.read_table(out), call("top", *at).checked().out


def place_of(uri: str) -> list[object]:
    location = S3Location.parse(uri)
    return ["--store", location.place, "--s3-endpoint", location.endpoint]


@pytest.mark.parametrize("mode", ["none", "async", "sync"])
def test_a_run_on_s3_has_the_answers_of_one_in_a_folder(call, s3: S3, edges, tmp_path, mode):
    places = {"folder": ["--store", tmp_path / "store"], "s3": place_of(s3.new_store())}
    found = {}
    for name, place in places.items():
        assert run(call, edges, place, mode).checked().result["epochs"] == EPOCHS
        found[name] = read(call, place, tmp_path / f"{name}.parquet")
    assert found["s3"][0] == found["folder"][0]
    assert found["s3"][1].equals(found["folder"][1])
    assert found["s3"][2] == found["folder"][2]


def test_the_resume_command_leads_to_the_same_server(call, s3: S3, edges):
    place = place_of(s3.new_store())
    done = run(call, edges, place, "async").checked().result
    refused = run(call, edges, place, "async", "--epochs", 2)
    assert refused.code == 2
    told = refused.err[refused.err.index("(graph-stream resume") + 1 : refused.err.index("), or choose")]
    again = call(*shlex.split(told)[1:], "--json").checked().result
    assert again["state_hash"] == done["state_hash"]


def test_the_endpoint_may_come_from_the_environment(call, s3: S3, edges, monkeypatch):
    place: list[object] = ["--store", S3Location.parse(s3.new_store()).place]
    with monkeypatch.context() as patch:
        patch.setenv("GRAPH_STREAM_RUN_S3_ENDPOINT", s3.endpoint)
        done = run(call, edges, place, "async").checked().result
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    told = call("epochs", "--run-id", "r", *place, "--json").checked()
    assert json.loads(told.out.splitlines()[-1])["state_hash"] == done["state_hash"]
    assert call("resume", "--run-id", "r", *place, "--json").checked().result["state_hash"] == done["state_hash"]


def test_bad_records_come_back_from_there(call, s3: S3, tmp_path):
    place = place_of(s3.new_store())
    source = tmp_path / "edges.csv"
    source.write_bytes(b"dst,src\n1,2\n3,x\xff\n4,5\n")
    assert run(call, source, place, "async").checked().result["rejected"] == 1
    listed = call("quarantine", "ls", "--run-id", "r", *place, "--json").checked()
    assert json.loads(listed.out)["offset"] == 12
    call("quarantine", "ls", "--run-id", "r", *place, "--out", tmp_path / "bad.parquet").checked()
    assert pq.read_table(tmp_path / "bad.parquet")["raw"].to_pylist() == [b"3,x\xff"]
    call("quarantine", "replay", "--run-id", "r", *place, "--out", tmp_path / "bad.csv").checked()
    assert (tmp_path / "bad.csv").read_bytes() == b"dst,src\n3,x\xff\n"


def test_the_engines_command_sees_the_run(call, s3: S3, edges):
    place = place_of(s3.new_store())
    run(call, edges, place, "async").checked()
    options = [str(part) for part in place]
    listed = CliRunner().invoke(exoflow.cli.cli, ["ls", *options])
    assert listed.output.split() == ["SUCCESSFUL", "r"]
    shown = CliRunner().invoke(exoflow.cli.cli, ["show", "r", *options, "--json"])
    assert json.loads(shown.output)["status"] == "SUCCESSFUL"


def test_a_run_whose_endpoint_only_the_sdk_knows_reaches_the_workers(call, s3: S3, edges, monkeypatch):
    place: list[object] = ["--store", S3Location.parse(s3.new_store()).place]
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert run(call, edges, place, "async").checked().result["epochs"] == EPOCHS


def test_batches_are_refused_before_anything_is_written(call, s3: S3, edges):
    place = place_of(s3.new_store())
    refused = run(call, edges, place, "async", "--batch-every", 2)
    assert refused.code == 2
    assert "batches need a store in a local folder" in refused.err
    unknown = call("epochs", "--run-id", "r", *place)
    assert unknown.code == 2
    assert "no workflow 'r'" in unknown.err

    run(call, edges, place, "async").checked()
    for command in ("batch", "audit"):
        refused = call(command, "--run-id", "r", *place)
        assert refused.code == 2
        assert "batches need a store in a local folder" in refused.err


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (["--store", "runs", "--s3-endpoint", "http://127.0.0.1:9"], "goes with a store at s3://"),
        (["--store", "s3://bucket/a", "--s3-endpoint", "nowhere"], "is not a URL"),
        (["--store", "s3://"], "s3://BUCKET/PREFIX"),
    ],
)
def test_a_place_that_cannot_be_is_bad_usage(call, place, words):
    refused = call("epochs", "--run-id", "r", *place)
    assert refused.code == 2
    assert words in refused.err
    assert "Traceback" not in refused.err

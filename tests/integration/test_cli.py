"""The command line: what it prints, how it exits, and what it says when something is wrong."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest

from exoflow.storage import LocalStore
from graph_stream import runs
from graph_stream.certificate import CapacityExceeded
from graph_stream.cli import cli, main
from graph_stream.pipeline import MAX_IN_FLIGHT
from graph_stream.plot_style import MatplotlibMissing
from graph_stream.runs import open_run
from graph_stream.snapshot import CorruptSnapshot
from ingest import write_rmat
from ingest.source import MAX_RAW_BYTES
from spark.output import OutputCorrupt
from spark.session import JavaMissing, require_java
from tests.fault.command import Command, Ended, graph_stream

EPOCH_EDGES = 5_000
EPOCHS = 12
PERCENTILES = {"p50", "p90", "p99", "p999", "max"}
SUMMARY = {
    *("run_id", "status", "epochs", "edges", "rejected", "batches", "state_hash", "error_bound"),
    *("latency_ms", "commit_latency_ms", "seconds", "edges_per_second"),
}

Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Return a function that runs a command in this process, on the Ray that is there."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run_command(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["graph-stream", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        written = capsys.readouterr()
        return Ended(code, written.out, written.err)

    yield run_command
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edges") / "edges.txt.gz"
    write_rmat(path, 12, EPOCHS * EPOCH_EDGES, seed=3)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def options(store: Path, source: Path, run_id: str = "r", *more: object) -> list[object]:
    return [
        *("--run-id", run_id, "--store", store, "--source", source, "--epoch-edges", EPOCH_EDGES),
        *("--threads", 1, "--json", *more),
    ]


def at(store: Path, run_id: str = "r") -> list[object]:
    return ["--run-id", run_id, "--store", store]


@pytest.fixture(scope="module")
def whole(ray_cluster: None, edges: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the store of a finished run ``r``."""
    from graph_stream import Pipeline

    store = tmp_path_factory.mktemp("whole")
    Pipeline(str(edges), epoch_edges=EPOCH_EDGES).run(run_id="r", store=str(store))
    return store


@pytest.fixture(scope="module")
def whole_hash(whole: Path) -> str:
    found: str = open_run("r", str(whole)).entries[-1]["row"]["state_hash"]
    return found


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def need_java() -> None:
    try:
        require_java()
    except JavaMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


# --- help ---------------------------------------------------------------------------------------------------


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, *path, name)


def test_the_commands_are_those_that_were_promised():
    assert set(cli.commands) == {
        *("run", "resume", "epochs", "scores", "top", "batch", "audit", "report", "quarantine", "generate")
    }


@pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
def test_every_command_has_help(call, path):
    ended = call(*path, "--help")
    assert ended.code == 0
    usage, described = ended.out.split("\n\n")[:2]
    assert usage.split() == ["Usage:", "graph-stream", *path, *usage.split()[2 + len(path) :]]
    assert described.strip()


def test_there_is_an_installed_command():
    (entry,) = entry_points(group="console_scripts", name="graph-stream")
    assert entry.load() is main


# --- what is printed ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
class TestPrinted:
    def test_run_and_run_again(self, call, store, edges, whole_hash):
        first = call("run", *options(store, edges))
        assert first.code == 0
        assert first.err == ""
        assert len(first.out.splitlines()) == 1
        result = first.result
        assert set(result) == SUMMARY
        assert set(result["latency_ms"]) == set(result["commit_latency_ms"]) == PERCENTILES
        assert (result["run_id"], result["status"]) == ("r", "SUCCESSFUL")
        assert (result["epochs"], result["edges"]) == (EPOCHS, EPOCHS * EPOCH_EDGES)
        assert (result["rejected"], result["batches"]) == (0, 0)
        assert result["state_hash"] == whole_hash
        assert result["seconds"] > 0
        for command in (["run", *options(store, edges)], ["resume", *at(store), "--json"]):
            again = call(*command)
            assert again.code == 0
            assert again.result == {**result, "seconds": 0, "edges_per_second": 0}

    def test_run_without_json_says_it_in_words(self, call, whole, edges, whole_hash):
        ended = call("run", *(part for part in options(whole, edges, "words") if part != "--json"))
        assert ended.code == 0
        assert f"SUCCESSFUL: {EPOCHS} epochs, {EPOCHS * EPOCH_EDGES} edges" in ended.out
        assert whole_hash in ended.out

    def test_environment_variables_give_options(self, call, store, edges, monkeypatch):
        monkeypatch.setenv("GRAPH_STREAM_RUN_EPOCHS", "3")
        monkeypatch.setenv("GRAPH_STREAM_RUN_STORE", str(store))
        monkeypatch.setenv("GRAPH_STREAM_RUN_SOURCE", str(edges))
        monkeypatch.setenv("GRAPH_STREAM_RUN_EPOCH_EDGES", str(EPOCH_EDGES))
        monkeypatch.setenv("GRAPH_STREAM_RUN_JSON", "1")
        ended = call("run", "--run-id", "r")
        assert ended.code == 0
        assert ended.result["epochs"] == 3


def test_epochs(call, whole, whole_hash):
    ended = call("epochs", *at(whole), "--json")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    keys = "epoch edges state_hash error_bound rounds latency_ms commit_latency_ms bytes offsets"
    assert all(list(line) == keys.split() for line in lines)
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert lines[-1]["state_hash"] == whole_hash
    words = call("epochs", *at(whole)).out.splitlines()
    assert [line.split()[-1] for line in words[1:]] == [line["state_hash"] for line in lines]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_scores_and_top_agree(call, whole, tmp_path, suffix):
    out = tmp_path / f"scores{suffix}"
    assert call("scores", *at(whole), "--epoch", 5, "--out", out).code == 0
    table = pq.read_table(out).to_pylist() if suffix == ".parquet" else _csv(out)
    assert list(table[0]) == ["vertex", "influence", "error_bound"]
    best = sorted(table, key=lambda row: (-row["influence"], row["vertex"]))[:3]
    top = call("top", *at(whole), "--epoch", 5, "-k", 3, "--json").result
    claims = [[row.pop("proven"), row.pop("in_order")] for row in top["top"]]
    assert top == {"run_id": "r", "epoch": 5, "top": best}
    words = call("top", *at(whole), "--epoch", 5, "-k", 3).out.splitlines()
    assert [int(line.split()[1]) for line in words[1:-1]] == [row["vertex"] for row in best]
    assert [[word == "proven" for word in line.split()[-2:]] for line in words[1:-1]] == claims
    members, ordered = (sum(column) for column in zip(*claims, strict=True))
    assert words[-1] == f"{members} of 3 are proven to be in the exact top 3, {ordered} to come before the next one"


def _csv(path: Path) -> list[dict[str, float]]:
    import pyarrow.csv

    rows: list[dict[str, float]] = pyarrow.csv.read_csv(path).to_pylist()
    return rows


@pytest.mark.java
def test_batch_and_audit(call, whole):
    need_java()
    batch = call("batch", *at(whole), "--epoch", 5, "--master", "local[1]", "--json").result
    assert list(batch) == ["run_id", "epoch", "path", "seconds"]
    exact = pq.read_table(batch["path"])
    assert exact.column_names[:2] == ["vertex", "influence"]
    # The batch is there already, so that the audit need only compare.
    audit = call("audit", *at(whole), "--epoch", 5, "--master", "local[1]", "--json")
    assert audit.code == 0
    assert list(audit.result) == ["run_id", "epoch", "path", "seconds", "max_error", "within_bound"]
    assert audit.result["path"] == batch["path"]
    assert audit.result["within_bound"]
    assert 0 <= audit.result["max_error"] <= open_run("r", str(whole)).row(5)["error_bound"]


@pytest.mark.java
@pytest.mark.usefixtures("ray_cluster")
def test_batches_and_audits_of_several_rankings(call, edges, store, tmp_path):
    need_java()
    favoured = tmp_path / "favoured.csv"
    favoured.write_text("vertex,weight\n3,500\n17,0.25\n")
    both = ["--algorithm", "tunkrank", "--algorithm", "pagerank", "--personalization", favoured]
    assert call("run", *options(store, edges, "r", *both, "--epochs", 4, "--batch-every", 4)).code == 0
    batch = open_run("r", str(store)).entries[-1]["batch"]
    assert batch["within_bound"]
    assert [row["within_bound"] for row in batch["rankings"]] == [True, True]
    audit = call("audit", *at(store), "--algorithm", "pagerank", "--epoch", 4, "--master", "local[1]", "--json")
    assert audit.code == 0
    assert audit.result["within_bound"]
    assert audit.result["path"] == batch["rankings"][1]["path"]
    assert sum(pq.read_table(audit.result["path"])["influence"].to_pylist()) == pytest.approx(1.0)
    top = call("top", *at(store), "--algorithm", "pagerank", "-k", 3, "--json").result["top"]
    assert 0 < sum(row["influence"] for row in top) < 1


def test_an_audit_that_does_not_hold_exits_1(call, whole, monkeypatch):
    from graph_stream import offline

    def one_wrong_answer(steps, inputs, output, key, parameters, names):
        from graph_stream.runs import scores

        table = scores(open_run("r", str(whole)), EPOCHS)
        wrong = table["influence"].to_numpy().copy()
        wrong[wrong.argmax()] *= 1.01
        output.mkdir(parents=True)
        pq.write_table(table.set_column(1, "influence", [wrong]), output / "part.parquet")
        return {"path": str(output), "seconds": 0.0, "manifest": {"relative_error": 1e-10}}

    monkeypatch.setattr(offline, "compute_exact", one_wrong_answer)
    ended = call("audit", *at(whole), "--json")
    assert ended.code == 1
    assert not ended.result["within_bound"]
    assert ended.result["max_error"] == pytest.approx(0.01, rel=0.1)


def test_report(call, whole, tmp_path):
    ended = call("report", *at(whole), "--out", tmp_path / "report", "--warmup", 2)
    assert ended.code == 0
    assert {Path(line) for line in ended.out.splitlines()} == set(files_below(tmp_path / "report"))
    assert (tmp_path / "report" / "cdf.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_names_each_run_once(call, whole, tmp_path):
    ended = call("report", *at(whole), *at(whole)[:2], "--out", tmp_path / "report")
    assert ended.code == 2
    assert "is given twice" in ended.err
    assert not files_below(tmp_path)


@pytest.mark.parametrize("error", [CorruptSnapshot, CapacityExceeded, OutputCorrupt, MatplotlibMissing])
def test_what_is_wrong_is_told_in_a_line(call, whole, tmp_path, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error("what is wrong, and where")  # noqa: EM101

    monkeypatch.setattr(runs, "open_run", fail)
    ended = call("top", *at(whole))
    assert (ended.code, ended.out, ended.err) == (1, "", "Error: what is wrong, and where\n")


def test_generate(call, tmp_path):
    out = tmp_path / "made.tsv"
    ended = call("generate", "rmat", "--scale", 5, "--edges", 100, "--deletes", 0.1, "--out", out)
    assert ended.code == 0
    assert len(out.read_text().splitlines()) == 100


# --- bad records ------------------------------------------------------------------------------------------

LONG = b"8 9" + b"," * 10_000


def write_dirty(path: Path) -> dict[int, bytes]:
    """Write 80 edges, with three bad lines in the second ten and one in the seventh; return these by offset."""
    lines = [b"%d %d" % (i, i + 1) for i in range(80)]
    lines[12:12] = [b"1 \xff", LONG]
    lines[16:16] = [b"18446744073709551616 7"]
    lines[68:68] = [b"\x1b[2J"]
    path.write_bytes(b"\n".join(lines) + b"\n")
    starts = [sum(len(line) + 1 for line in lines[:i]) for i in range(len(lines))]
    return {starts[i]: lines[i] for i in (12, 13, 16, 68)}


@pytest.mark.usefixtures("ray_cluster")
def test_bad_records_are_shown_once_committed_and_can_be_mended_and_fed_again(call, store, tmp_path):
    source = tmp_path / "edges.txt"
    bad = write_dirty(source)
    limited = ["run", *at(store), "--source", source, "--epoch-edges", 10, "--threads", 1, "--max-bad-records", 3]
    assert "the first is at edges.txt, offset" in call(*limited).err

    # The second epoch is committed before the seventh is cut. That one never is, and yet its object lies there.
    objects = [path.name for path in files_below(store) if path.parent.name == "quarantine"]
    assert [name[:18] for name in sorted(objects)] == ["epoch-000000000002", "epoch-000000000007"]
    listed = call("quarantine", "ls", *at(store), "--json")
    assert listed.code == 0
    rows = [json.loads(line) for line in listed.out.splitlines()]
    assert [row["offset"] for row in rows] == list(bad)[:3]
    assert [base64.b64decode(row["raw_base64"]) for row in rows] == [bad[row["offset"]][:MAX_RAW_BYTES] for row in rows]
    assert {(row["epoch"], row["source"], row["split"]) for row in rows} == {(2, str(source), "edges.txt")}
    assert [row["cut"] for row in rows] == [False, True, False]
    assert sorted(line.split(maxsplit=1)[1] for line in listed.err.splitlines()[:-1]) == [
        *("dst is not an integer", "src is out of the int64 range", "the line is not UTF-8"),
    ]
    assert listed.err.splitlines()[-1].split() == ["3", "bad", "records"]

    source.write_bytes(source.read_bytes().replace(b"\x1b[2J", b"#[2J"))
    assert call("resume", *at(store), "--json").result["rejected"] == 3
    words = call("quarantine", "ls", *at(store), "--epoch", 2)
    assert [line.split()[0] for line in words.out.splitlines()] == ["2", "2", "2"]
    assert r": the line is not UTF-8: 1 \xff" in words.out
    assert call("quarantine", "ls", *at(store), "--epoch", 3).out == ""
    table = tmp_path / "bad.parquet"
    assert call("quarantine", "ls", *at(store), "--out", table).out == ""
    assert pq.read_table(table)["raw"].to_pylist() == [line[:MAX_RAW_BYTES] for line in list(bad.values())[:3]]

    out = tmp_path / "bad.txt"
    replayed = call("quarantine", "replay", *at(store), "--out", out)
    assert (replayed.code, replayed.err) == (0, f"3 records -> {out}\n")
    assert out.read_bytes() == b"1 \xff\n" + LONG + b"\n18446744073709551616 7\n"
    again = call("quarantine", "replay", *at(store), "--out", out)
    assert again.code == 2
    assert "choose another name" in again.err

    out.write_bytes(out.read_bytes().replace(b"\xff", b"2").replace(b",", b"").replace(b"18446744073709551616", b"18"))
    fed = call("run", *options(store, out, "mended"))
    assert (fed.result["edges"], fed.result["rejected"]) == (3, 0)

    source.unlink()
    gone = call("quarantine", "replay", *at(store), "--out", tmp_path / "gone.txt")
    assert gone.code == 1
    assert "1 left out: only its beginning was kept, and it cannot be read again" in gone.err
    assert (tmp_path / "gone.txt").read_bytes() == b"1 \xff\n18446744073709551616 7\n"


def test_a_run_without_bad_records_has_an_empty_quarantine(call, whole, tmp_path):
    ended = call("quarantine", "ls", *at(whole))
    assert (ended.code, ended.out, ended.err.split()) == (0, "", ["0", "bad", "records"])
    unknown = call("quarantine", "replay", *at(whole), "--epoch", 99, "--out", tmp_path / "bad.txt")
    assert unknown.code == 2
    assert f"committed are epochs 1 to {EPOCHS}" in unknown.err
    assert not files_below(tmp_path)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *("resume", "epochs", "scores", "top", "batch", "audit", "report"),
        *("quarantine ls", "quarantine replay"),
    ],
)
def test_an_unknown_id_exits_2_and_writes_nothing(call, store, tmp_path, command):
    out = {"scores": "scores.csv", "report": "report", "quarantine replay": "bad.txt"}
    more = ["--out", tmp_path / out[command]] if command in out else []
    ended = call(*command.split(), *at(store, "nobody"), *more)
    assert ended.code == 2
    assert "no workflow 'nobody'" in ended.err
    assert ended.out == ""
    assert not files_below(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch-edges", "0"], "epoch-edges must be at least 1, got 0"),
        (["--retweet-probability", "1.5"], "1.5"),
        (["--checkpoint", "often"], "'often' is not one of"),
        (["--columns", "src,whom"], "'whom' is no column name"),
        (["--source", "nowhere.txt"], "nowhere.txt: there is no file"),
        (["--run-id", "../r"], "'../r' is not usable"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_usage_exits_2_and_writes_nothing(call, store, edges, arguments, message):
    ended = call("run", *options(store, edges), *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert ended.out == ""
    assert not files_below(store)


def test_other_options_exit_2_with_the_difference(call, whole, edges):
    before = {path: path.stat().st_mtime_ns for path in files_below(whole / "workflows/r/journal")}
    ended = call("run", *options(whole, edges), "--epoch-edges", 400, "--checkpoint", "sync")
    assert ended.code == 2
    assert f"--epoch-edges: {EPOCH_EDGES} -> 400" in ended.err
    assert "--checkpoint: async -> sync" in ended.err
    assert "resume --run-id r" in ended.err
    assert before == {path: path.stat().st_mtime_ns for path in files_below(whole / "workflows/r/journal")}


@pytest.mark.parametrize("command", ["scores", "top", "batch", "audit"])
def test_an_unknown_epoch_exits_2(call, whole, tmp_path, command):
    out = ["--out", tmp_path / "scores.csv"] if command == "scores" else []
    ended = call(command, *at(whole), "--epoch", 99, *out)
    assert ended.code == 2
    assert f"no committed epoch 99; committed are epochs 1 to {EPOCHS}" in ended.err


def test_scores_need_a_known_suffix(call, whole, tmp_path):
    ended = call("scores", *at(whole), "--out", tmp_path / "scores.xls")
    assert ended.code == 2
    assert ".parquet or .csv" in ended.err


# --- things that break, and resuming after they were put right ----------------------------------------------


@pytest.fixture
def broken(ray_cluster: None, call: Call, store: Path, edges: Path, tmp_path: Path) -> Path:
    """Return the source of a run ``r`` that has failed in the middle because of it, put right again."""
    source = tmp_path / "edges.txt.gz"
    data = edges.read_bytes()
    source.write_bytes(data[: len(data) * 3 // 4])
    ended = call("run", *options(store, source))
    assert ended.code == 1
    assert set(ended.result) == {*SUMMARY, "error"}
    assert ended.result["status"] == "FAILED"
    assert 0 < ended.result["epochs"] < EPOCHS
    assert re.search(r"cut\[\d+\] failed: .*edges.txt.gz' cannot be read from position \d+ on", ended.err)
    assert f"resume with: graph-stream resume --run-id r --store {store}" in ended.err
    source.write_bytes(data)
    return source


def test_an_unreadable_source_stops_the_run_and_loses_nothing(call, broken, store, whole_hash):
    ended = call("resume", *at(store), "--json")
    assert ended.code == 0
    assert ended.result["state_hash"] == whole_hash
    assert ended.result["epochs"] == EPOCHS


def test_a_source_that_has_gone_stops_the_run_and_loses_nothing(call, broken, store, whole_hash):
    data = broken.read_bytes()
    broken.unlink()
    ended = call("resume", *at(store), "--json")
    assert ended.code == 1
    assert f"there is no file or folder '{broken}'" in ended.err
    broken.write_bytes(data)
    assert call("run", *options(store, broken)).result["state_hash"] == whole_hash


def test_damaged_blobs_are_told_and_what_they_held_is_computed_again(call, broken, store, tmp_path, whole_hash, caplog):
    for path in files_below(store / "workflows/r/blobs"):
        data = path.read_bytes()
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    scores = ["scores", *at(store), "--out", tmp_path / "scores.csv"]
    ended = call(*scores)
    assert ended.code == 1
    assert re.search(r"blob workflows/r/blobs/\S+ in \S+ is damaged: .*restore it from a backup", ended.err)
    assert not (tmp_path / "scores.csv").exists()
    assert call("resume", *at(store), "--json").result["state_hash"] == whole_hash
    assert "is damaged, going back" in caplog.text
    assert call(*scores).code == 0
    assert call(*scores, "--epoch", 1).code == 1


def test_a_missing_blob_is_told(call, broken, store, tmp_path):
    for path in files_below(store / "workflows/r/blobs"):
        path.unlink()
    ended = call("top", *at(store))
    assert ended.code == 1
    assert re.search(r"blob workflows/r/blobs/\S+ is missing", ended.err)


def test_a_truncated_journal_record_is_told_and_loses_nothing(call, broken, store, whole_hash):
    newest = max(files_below(store / "workflows/r/journal"))
    data = newest.read_bytes()
    newest.write_bytes(data[: len(data) // 2])
    for command in (["resume", *at(store)], ["run", *options(store, broken)], ["epochs", *at(store)]):
        ended = call(*command)
        assert ended.code == 1
        assert f"workflows/r/journal/{newest.name} is cut short or altered" in ended.err
    newest.write_bytes(data)
    assert call("resume", *at(store), "--json").result["state_hash"] == whole_hash


@pytest.mark.parametrize("command", ["run", "resume", "epochs", "top"])
def test_a_store_that_cannot_be_written_is_told(call, edges, command):
    store = edges / "store"
    arguments = options(store, edges) if command == "run" else at(store)
    ended = call(command, *arguments)
    assert ended.code == 1
    assert re.fullmatch(rf"(Error: )?cannot \w+ {re.escape(str(store))}\S*: Not a directory", ended.err.strip())


@pytest.mark.usefixtures("ray_cluster")
def test_a_full_disk_stops_the_run_and_loses_nothing(call, store, edges, monkeypatch, whole_hash):
    put_if_absent = LocalStore.put_if_absent

    def put_while_there_is_room(self: LocalStore, key: str, data: bytes) -> bool:
        with self._reported("write", key):
            if "/journal/" in key and b'"publish[5]"' in data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put_if_absent(self, key, data)

    monkeypatch.setattr(LocalStore, "put_if_absent", put_while_there_is_room)
    monkeypatch.setattr("exoflow.journal._BACKOFF_SECONDS", (0.01,))
    ended = call("run", *options(store, edges))
    assert ended.code == 1
    assert re.search(r"journal/\d+: No space left on device", ended.err)
    assert f"resume with: graph-stream resume --run-id r --store {store}" in ended.err
    # Epoch 5 was not committed, and no more than may be in flight with it.
    assert 5 - MAX_IN_FLIGHT <= ended.result["epochs"] < 5
    monkeypatch.undo()
    # As a new process would find it; the patch above hid the arguments of the command, too.
    monkeypatch.setattr(sys, "argv", [])
    assert call("resume", *at(store), "--json").result["state_hash"] == whole_hash


@pytest.mark.usefixtures("ray_cluster")
def test_a_really_full_disk_stops_the_run_and_loses_nothing(call, tmp_path, edges, whole, whole_hash):
    room = sum(path.stat().st_size for path in files_below(whole / "workflows/r")) // 2
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this needs the right to mount: {mounted.stderr.decode().strip()}")
    try:
        ended = call("run", *options(disk, edges))
        assert ended.code == 1
        assert "No space left on device" in ended.err
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert call("run", *options(disk, edges)).result["state_hash"] == whole_hash
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# --- as processes: signals, terminals, owners ---------------------------------------------------------------


def slow(store: Path, source: Path) -> list[object]:
    return ["run", *options(store, source), "--rate", 3_000]


def until_some_are_committed(command: Command, store: Path) -> None:
    command.until(lambda: "epoch " in command.told and open_run("r", str(store)).newest > 0)


@pytest.mark.parametrize("group", [False, True])
def test_ctrl_c_exits_130_and_says_how_to_resume(store, edges, whole_hash, group):
    with Command(*slow(store, edges), terminal=True) as command:
        until_some_are_committed(command, store)
        command.interrupt(group=group)
        ended = command.end()
    assert ended.code == 130
    assert f"\ninterrupted\nresume with: graph-stream resume --run-id r --store {store}\n" in ended.err
    assert "Traceback" not in ended.err
    assert ended.result["status"] == "INTERRUPTED"
    assert ended.result["error"] == "interrupted"
    assert 0 < ended.result["epochs"] < EPOCHS
    if group:
        ended = graph_stream("resume", *at(store), "--json").checked()
        assert ended.err == ""
        assert ended.result["state_hash"] == whole_hash


def test_progress_goes_to_a_terminal_only_and_stdout_is_json(store, edges, whole_hash):
    with Command("run", *options(store, edges), terminal=True) as command:
        shown = command.end().checked()
    assert re.search(r"\r\x1b\[Kepoch \d+  [\d,]+ edges  [\d,]+/s  latency [\d.]+ ms  error bound", shown.err)
    assert shown.out == json.dumps(shown.result) + "\n"
    assert shown.result["state_hash"] == whole_hash
    hidden = graph_stream("run", *options(store, edges, "hidden")).checked()
    assert hidden.err == ""
    assert hidden.out == json.dumps(hidden.result) + "\n"


def test_stdout_is_one_object_even_if_a_process_of_the_run_dies(store, edges, whole_hash):
    with Command(*slow(store, edges), terminal=True) as command:
        until_some_are_committed(command, store)
        member = next(each for each in command.tree() if "MemberHost" in "".join(each.cmdline()))
        member.kill()
        ended = command.end().checked()
    # Ray has something to say about it, and would say it on stdout, some time later.
    assert ended.out == json.dumps(ended.result) + "\n"
    assert ended.result["state_hash"] == whole_hash


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_in_use_is_refused_and_can_be_taken_over(call, store, edges, whole_hash):
    with Command(*slow(store, edges), terminal=True) as owner:
        until_some_are_committed(owner, store)
        for command in (slow(store, edges), ["resume", *at(store), "--json"]):
            refused = call(*command)
            assert refused.code == 1
            assert f"workflow 'r' is running, owned by process {owner.process.pid} on " in refused.err
            assert refused.result["status"] == "RUNNING"
        taken = call("resume", *at(store), "--take-over", "--json")
        assert taken.code == 0
        assert taken.result["state_hash"] == whole_hash
        fenced = owner.end()
    assert fenced.code == 1
    assert "was taken over" in fenced.err

"""The demo behind `make demo`: the whole system once, with a crash in the middle.

Runs the commands that a user would type, shows them, and checks what the README promises: the killed and
resumed run has the same state at every epoch as one that was left alone, and the exact answer confirms it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from exoflow.errors import ExoflowError
from graph_stream.runs import open_run
from spark.session import JavaMissing, require_java

EPOCH_EDGES = 10_000
EDGES_PER_SECOND = 60_000
BATCH_EVERY = 20
GENERATED = "rmat://?scale=17&edges=500000&seed=1"
COMMAND = str(Path(sys.executable).with_name("graph-stream"))


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="an edge list; default: Epinions from $EXOFLOW_DATA_DIR, else generated")
    parser.add_argument("--store", default="runs/demo", help="folder for the runs; emptied first")
    parser.add_argument("--out", default="results/demo", help="folder for the report")
    options = parser.parse_args()
    began = time.monotonic()
    source, store, out = choose_source(options.data), options.store, options.out
    shutil.rmtree(store, ignore_errors=True)
    java = usable_java()

    say(f"Streaming {source}")
    common = ["--store", store, "--source", source, "--epoch-edges", str(EPOCH_EDGES)]
    say("1. A run that is left alone, to compare with")
    graph_stream("run", "--run-id", "undisturbed", *common, "--json")

    say("2. The same stream with batches; all its processes are killed in the middle (SIGKILL)")
    paced = ["--rate", str(EDGES_PER_SECOND), *(["--batch-every", str(BATCH_EVERY)] if java else [])]
    killed_at = run_and_kill("run", "--run-id", "demo", *common, *paced, store=store)
    say(f"   killed after epoch {killed_at} was committed")

    say("3. Resumed: options come from the run record, the state from the newest commit")
    result = graph_stream("resume", "--run-id", "demo", "--store", store, "--json")

    say("4. What came out")
    same = same_hashes(store)
    graph_stream("top", "--run-id", "demo", "--store", store, "-k", "10", shown=True)
    audit = None
    if java:
        audit = graph_stream("audit", "--run-id", "demo", "--store", store, "--json", check=False)
    graph_stream("report", "--run-id", "demo", "--run-id", "undisturbed", "--store", store, "--out", out)
    print()
    print((Path(out) / "table.md").read_text(encoding="utf-8"))
    batches_ok = not java or result["batches"] >= 2
    say(f"State hash of every epoch equals the undisturbed run's: {'yes' if same else 'NO'}")
    if java:
        verdict = "holds" if audit and audit["within_bound"] else "DOES NOT HOLD"
        error = f"{audit['max_error']:.2e}" if audit else "unknown"
        say(f"Audit against Spark: the certificate {verdict} (greatest relative error {error})")
        say(f"Batches run as steps of the workflow: {result['batches']}")
    else:
        say("Batches and audit were left out: no Java (see above)")
    say(f"Pictures and rows: {out}/  ({time.monotonic() - began:.0f} s)")
    held = audit is not None and bool(audit["within_bound"])
    return 0 if same and held and batches_ok else 1


def choose_source(given: str | None) -> str:
    """Return the graph to stream."""
    if given:
        return given
    folder = os.environ.get("EXOFLOW_DATA_DIR")
    epinions = Path(folder or ".") / "soc-Epinions1.txt.gz"
    return str(epinions) if folder and epinions.exists() else GENERATED


def usable_java() -> bool:
    """Return whether Spark can run; say how to install Java where it cannot."""
    try:
        require_java()
    except JavaMissing as missing:
        say(f"Without batches and audit: {missing}")
        return False
    return True


def graph_stream(*arguments: str, check: bool = True, shown: bool = False) -> dict[str, Any]:
    """Run a command; progress goes to this terminal, and its JSON object is returned."""
    print(f"   $ graph-stream {' '.join(arguments)}", flush=True)
    done = subprocess.run([COMMAND, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if shown:
        print(done.stdout)
    if check and done.returncode != 0:
        sys.exit(f"graph-stream {arguments[0]} failed with exit code {done.returncode}\n{done.stdout}")
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    return json.loads(last[0]) if last[0].startswith("{") else {}


def run_and_kill(*arguments: str, store: str) -> int:
    """Start a run and kill every process of it half way; return the newest committed epoch then."""
    print(f"   $ graph-stream {' '.join(arguments)}", flush=True)
    epochs = open_run("undisturbed", store).newest
    process = subprocess.Popen([COMMAND, *arguments], stdout=subprocess.DEVNULL)
    while newest_epoch(store) < epochs // 2:
        if process.poll() is not None:
            sys.exit(f"the run ended by itself with exit code {process.returncode} before it could be killed")
        time.sleep(0.1)
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    print(file=sys.stderr)
    return newest_epoch(store)


def newest_epoch(store: str) -> int:
    """Return the newest committed epoch of the demo run; 0 while there is none."""
    try:
        return open_run("demo", store).newest
    except ExoflowError:
        return 0


def descendants(pid: int) -> list[int]:
    """Return all processes below one."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def same_hashes(store: str) -> bool:
    """Compare the state hashes of all epochs of both runs."""
    rows = [
        [(entry["epoch"], entry["row"]["state_hash"]) for entry in open_run(run_id, store).entries]
        for run_id in ("undisturbed", "demo")
    ]
    return bool(rows[0]) and rows[0] == rows[1]


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

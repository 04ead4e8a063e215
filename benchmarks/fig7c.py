"""The paper's main figure for this application: online latency in the three checkpoint modes, as CDFs.

One paced R-MAT stream, run once per mode one after the other, each with offline batches beside it. Latency
is measured from the scheduled close of an epoch, so that a stall cannot hide. Writes
results/fig7c/{cdf.png,cdf.pdf,table.md,epochs.parquet} and the other pictures of a report.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from graph_stream.cli import environment
from graph_stream.report import write_report
from graph_stream.runs import open_run, report_of
from spark.session import JavaMissing, require_java

LABELS = {"none": "NoCkpt", "async": "AsyncCkpt", "sync": "SyncCkpt"}
COMMAND = str(Path(sys.executable).with_name("graph-stream"))


def main() -> int:
    """Run the three modes and write the figure; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=350)
    parser.add_argument("--warmup", type=int, default=150, help="epochs left out at the start")
    parser.add_argument("--batch-every", type=int, default=20, help="epochs between batches; 0: none")
    parser.add_argument("--epoch-edges", type=int, default=5_000)
    parser.add_argument("--epoch-seconds", type=float, default=0.25, help="schedule of the epochs")
    parser.add_argument("--scale", type=int, default=17, help="2^SCALE vertices")
    parser.add_argument("--out", type=Path, default=Path("results/fig7c"))
    options = parser.parse_args()
    if options.batch_every:
        try:
            require_java()
        except JavaMissing as missing:
            print(f"without batches: {missing}", file=sys.stderr)
            options.batch_every = 0

    store = Path(tempfile.mkdtemp(prefix="exoflow-fig7c-"))
    try:
        for mode in LABELS:
            run(mode, store, options)
        runs = [report_of(open_run(mode, str(store)), environment()) for mode in LABELS]
    finally:
        shutil.rmtree(store, ignore_errors=True)
    for path in write_report(runs, options.out, options.warmup, LABELS, "Online latency by checkpoint mode"):
        print(path)
    print((options.out / "table.md").read_text(encoding="utf-8"))
    if len({each.epochs["state_hash"][-1].as_py() for each in runs}) != 1:
        print("the modes do not agree on the final state", file=sys.stderr)
        return 1
    return 0


def run(mode: str, store: Path, options: argparse.Namespace) -> None:
    """Run the stream in one mode."""
    edges = options.epochs * options.epoch_edges
    command = [COMMAND, "run", "--run-id", mode, "--store", str(store), "--checkpoint", mode, "--json"]
    command += ["--source", f"rmat://?scale={options.scale}&edges={edges}&seed=1&deletes=0.1"]
    command += ["--epoch-edges", str(options.epoch_edges)]
    command += ["--rate", str(options.epoch_edges / options.epoch_seconds)]
    command += ["--keep-epochs", str(options.epochs)]
    if options.batch_every:
        command += ["--batch-every", str(options.batch_every)]
    print(f"{LABELS[mode]}: {options.epochs} epochs of {options.epoch_edges} edges", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{LABELS[mode]} failed with exit code {done.returncode}: {done.stdout}")
    shown = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{LABELS[mode]}: p50 {shown['latency_ms']['p50']:.1f} ms", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Write the stores of today's format version, to be kept: ``python -m tests.compat.make VERSION``.

Do this once, before a release that changes a format, and commit the folder; from then on
``test_stores.py`` resumes it with every later version.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import exoflow
from exoflow.cluster import ensure_ray
from graph_stream.runs import open_run
from tests.compat import flows_v1 as flows
from tests.fault.command import Command, graph_stream

STORES = Path(__file__).parent / "stores"
RUN = [
    *("--run-id", "run", "--source", "rmat://?scale=8&edges=6000&seed=1&deletes=0.1"),
    *("--epoch-edges", 500, "--threads", 1, "--checkpoint", "async"),
]


def epochs(store: str) -> list[dict[str, Any]]:
    ended = graph_stream("epochs", "--run-id", "run", "--store", store, "--json").checked()
    shown = [json.loads(line) for line in ended.out.splitlines()]
    return [{"epoch": epoch["epoch"], "state_hash": epoch["state_hash"]} for epoch in shown]


def main(version: str) -> None:
    target = STORES / version
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in flows.WORKFLOWS.items():
            with contextlib.suppress(exoflow.TaskFailed, exoflow.InDoubt):
                exoflow.run(make(), workflow_id=name, store=str(target))
        whole = f"{folder}/whole"
        graph_stream("run", "--store", whole, *RUN).checked()
        # Slowed down, so that it can be killed in the middle.
        with Command("run", "--store", target, "--rate", 3000, *RUN) as command:
            command.until(lambda: _committed(str(target)) >= 5)
            command.kill()
        (target / "epochs.json").write_text(json.dumps(epochs(whole), indent=0) + "\n")
    for leftover in (".tmp", ".probe"):
        shutil.rmtree(target / leftover, ignore_errors=True)


def _committed(store: str) -> int:
    try:
        return len(open_run("run", store).entries)
    except (exoflow.WorkflowNotFound, exoflow.CorruptRecord):
        return 0


if __name__ == "__main__":
    ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
    main(sys.argv[1])

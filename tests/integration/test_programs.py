"""The programs behind `make demo` and `make fig7c`, run as a user would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.java
@pytest.mark.timeout(600)
def test_the_demo_survives_its_crash_and_its_audit(tmp_path):
    done = subprocess.run(
        [sys.executable, "examples/demo.py", "--store", str(tmp_path / "runs"), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"killed after epoch \d+ was committed", done.stdout)
    assert "equals the undisturbed run's: yes" in done.stdout
    assert "the certificate holds" in done.stdout
    assert len(re.findall(r"^ +\d+ +\d+ +\d+\.\d+ +\S+ +(?:proven|-) +(?:proven|-)$", done.stdout, re.MULTILINE)) == 10
    assert (tmp_path / "out" / "cdf.png").stat().st_size > 0


@pytest.mark.java
@pytest.mark.timeout(600)
def test_figure_7c_compares_the_three_modes(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/fig7c.py",
            "--epochs",
            "12",
            "--warmup",
            "4",
            "--batch-every",
            "4",
            "--out",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "table.md").read_text()
    assert all(label in table for label in ("NoCkpt", "AsyncCkpt", "SyncCkpt"))
    rows = pq.read_table(tmp_path / "epochs.parquet")
    assert sorted(rows["epoch"].to_pylist()) == sorted([*range(1, 13)] * 3)
    batches = pq.read_table(tmp_path / "batches.parquet")
    assert batches["within_bound"].to_pylist() == [True] * 9
    assert (tmp_path / "cdf.png").stat().st_size > 0
    assert (tmp_path / "cdf.pdf").read_bytes().startswith(b"%PDF")

"""Whenever files arrive, are touched, sent again and taken away: each counts once, in the order that is recorded."""

from __future__ import annotations

import gzip
import random
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import EpochReader, open_source
from tests.unit.arriving import Run, arrive, lines

COMPRESS = {".txt": bytes, ".txt.gz": gzip.compress, ".txt.zst": zstandard.compress}
STEPS = st.sampled_from(["arrive", "arrive", "arrive", "read", "read", "restart", "touch", "send again", "take away"])


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEPS, min_size=4, max_size=40), seed=st.integers(0, 2**32))
def test_every_record_counts_once_whenever_its_file_arrives(steps, seed):
    with tempfile.TemporaryDirectory() as folder:
        every_record_counts_once(Path(folder), steps, random.Random(seed))


def every_record_counts_once(folder: Path, steps: list[str], drawn: random.Random) -> None:
    run = Run(folder)
    there: dict[str, bytes] = {}
    records: dict[str, list[int]] = {}
    found: list[int] = []
    for step in [*steps, "read all"]:
        over = list(dict.fromkeys(run.files()))[:-1]  # of the last, more may be left
        match step:
            case "arrive":
                kind, count, first = drawn.choice([*COMPRESS]), drawn.choice([0, 1, 5, 30]), 1000 * len(there)
                name = f"{drawn.randrange(100)}/{len(there)}{kind}"
                records[name] = [*range(first, first + count)]
                there[name] = COMPRESS[kind](lines(first, count))
                arrive(folder, name, there[name])
            case "read" | "read all":
                left = sum(map(len, records.values())) - len(found)
                if left:
                    found += run.read(left if step == "read all" else drawn.randint(1, left))
            case "restart":
                run.begin()
            case "touch" if there:
                path = folder / drawn.choice([*there])
                if path.exists():
                    path.touch()
            case "send again" if there:
                name = drawn.choice([*there])
                arrive(folder, name, there[name])
            case "take away" if over:
                (folder / drawn.choice(over)).unlink(missing_ok=True)
    order = list(dict.fromkeys(run.files()))
    assert {name for name in records if records[name]} <= {*order} <= {*records}
    assert found == [record for name in order for record in records[name]]
    for name, data in there.items():
        arrive(folder, name, data)
    assert [record for epoch in run.again() for record in epoch] == found


@pytest.mark.parametrize("epoch_edges", [1, 7, 100])
def test_files_read_at_once_are_those_of_a_folder_one_after_the_other(tmp_path, epoch_edges):
    for number in range(6):
        arrive(tmp_path, f"{number}.txt", lines(10 * number, number + 3))
    found = []
    with EpochReader([open_source(f"watch://{tmp_path}?until=end")], epoch_edges) as reader:
        batch = reader.read(reader.start())
        found += batch.src.tolist()
        while not batch.last:
            batch = reader.read(batch.end)
            found += batch.src.tolist()
    assert found == [10 * number + each for number in range(6) for each in range(number + 3)]

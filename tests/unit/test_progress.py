"""What is said of a run that does not keep up with its schedule."""

import io
import itertools

import pytest

from graph_stream import progress
from graph_stream.config import RunConfig
from graph_stream.progress import Meter


def row(epoch: int, wait_ms: float) -> dict[str, float]:
    return {
        "epoch": epoch,
        "records": 10,
        "total_records": 10 * epoch,
        "read_started": 0.0,
        "scheduled_time": 0.0,
        "published_at": 1.0,
        "error_bound": 0.0,
        "wait_ms": wait_ms,
    }


@pytest.mark.parametrize(
    ("paced", "waits_ms", "told"),
    [
        (True, [2500.0] * 100, [11, 41, 71]),  # behind for ten seconds, and again every thirty
        (True, [2500.0] * 9 + [0.0] + [2500.0] * 9, []),  # has caught up in between
        (True, [999.0] * 100, []),
        (False, [2500.0] * 100, []),
    ],
)
def test_who_stays_behind_says_so_once_in_a_while(monkeypatch, paced, waits_ms, told):
    clock = itertools.count(1000.0)  # an epoch a second
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    meter = Meter(stream)
    meter.follow(RunConfig(("a.txt",), rate=10.0 if paced else None))
    for epoch, wait_ms in enumerate(waits_ms, 1):
        meter.published(row(epoch, wait_ms))
    lines = stream.getvalue().splitlines()
    assert [line.split(" began 2.5 s behind its schedule")[0] for line in lines] == [f"epoch {each}" for each in told]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("staleness_ms", "told"), [(1999.0, []), (2500.0, [11, 41, 71])])
def test_who_misses_a_target_of_staleness_says_so_once_in_a_while(monkeypatch, staleness_ms, told):
    clock = itertools.count(1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    meter = Meter(stream)
    meter.follow(RunConfig(("a.txt",), target_staleness=2.0))
    for epoch in range(1, 101):
        meter.published({**row(epoch, wait_ms=5000.0), "staleness_ms": staleness_ms})
    text = " was answered 2.5 s after its first record could be read: the source waits, nothing is dropped"
    assert stream.getvalue().splitlines() == [f"epoch {each}{text}" for each in told]


def test_the_progress_line_shows_how_stale():
    stream = Terminal()
    meter = Meter(stream)
    meter.follow(RunConfig(("a.txt",), target_staleness=2.0))
    meter.published({**row(1, 4000.0), "staleness_ms": 12345.6})
    assert "12,346 ms stale" in stream.getvalue()


def test_the_progress_line_shows_how_far_behind():
    stream = Terminal()
    meter = Meter(stream)
    meter.follow(RunConfig(("a.txt",), epoch_seconds=1.0))
    meter.published(row(1, 4000.0))
    assert "4.0 s behind" in stream.getvalue()

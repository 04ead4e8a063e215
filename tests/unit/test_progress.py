"""What is said of a run that does not keep up with its schedule."""

import io

import pytest

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


@pytest.mark.parametrize(("paced", "wait_ms", "told"), [(True, 2500.0, 1), (True, 999.0, 0), (False, 2500.0, 0)])
def test_who_is_behind_says_so_once_in_a_while(paced, wait_ms, told):
    stream = io.StringIO()
    meter = Meter(stream)
    meter.paced = paced
    for epoch in range(1, 6):
        meter.published(row(epoch, wait_ms))
    assert stream.getvalue().count("epoch 1 began 2.5 s behind its schedule") == told
    assert stream.getvalue().count("\n") == told


def test_the_progress_line_shows_how_far_behind():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    meter = Meter(stream)
    meter.paced = True
    meter.published(row(1, 4000.0))
    assert "4.0 s behind" in stream.getvalue()

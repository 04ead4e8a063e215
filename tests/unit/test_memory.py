"""The limit of memory: what it stands for, who waits, who stops."""

import io

import numpy as np
import pytest

from graph_stream import memory
from graph_stream.errors import MemoryLimitReached
from graph_stream.memory import Budget, Memory, delay_seconds, parse_size
from graph_stream.progress import Meter


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 << 30), ("512M", 512 << 20), ("1.5 GiB", 3 << 29), ("2tb", 2 << 40), ("64k", 1 << 16), ("1000", 1000)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "8 apples", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size; say for example 8G"):
        parse_size(text)


def test_a_delay_grows_from_nothing_to_a_second():
    assert delay_seconds(0, 1000) == delay_seconds(800, 1000) == 0
    assert delay_seconds(900, 1000) == pytest.approx(0.5)
    assert delay_seconds(1000, 1000) == delay_seconds(5000, 1000) == 1


@pytest.mark.parametrize(("resident", "delays"), [(100, []), (400, []), (450, [pytest.approx(0.5)])])
def test_epochs_wait_near_the_limit(resident, delays):
    waited = []
    # Two members share the limit.
    Budget(1000, 0, 2, lambda: Memory(resident, resident), waited.append).before_epoch(7, 10)
    assert waited == delays


def test_at_the_limit_the_run_stops_and_says_what_to_do():
    budget = Budget(1 << 30, 1, 2, lambda: Memory(1 << 29, 1 << 30), lambda _: pytest.fail("waited"))
    with pytest.raises(MemoryLimitReached, match=r"epoch 7 partition 1 holds 1,234 edges in 512 MiB.*higher --max-mem"):
        budget.before_epoch(7, 1234)


def test_memory_that_was_free_all_along_stops_nobody():
    found = iter([Memory(2000, 2000), Memory(100, 2000)])
    Budget(1000, 0, 1, lambda: next(found), lambda seconds: None).before_epoch(1, 0)


def test_without_a_limit_nothing_is_measured():
    Budget(None, 0, 1, lambda: pytest.fail("measured")).before_epoch(1, 0)


def test_measuring_sees_what_is_written_to():
    before = memory.measured()
    held = np.ones(1 << 25)
    after = memory.measured()
    assert after.resident - before.resident > 0.9 * held.nbytes
    assert after.peak >= after.resident


def test_the_progress_line_shows_memory_where_there_is_a_limit():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    row = {
        "epoch": 1,
        "records": 1,
        "total_records": 1,
        "read_started": 0.0,
        "scheduled_time": 0.0,
        "published_at": 1.0,
        "error_bound": 0.0,
        "wait_ms": 0.0,
        "memory_bytes": 950 << 20,
    }
    shown, plain = Terminal(), Terminal()
    Meter(shown, 1000 << 20).published(row)
    Meter(plain).published(row)
    assert "memory 950 MiB of 1000 MiB, slowed down" in shown.getvalue()
    assert "memory" not in plain.getvalue()

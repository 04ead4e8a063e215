"""Who gives way: the calling thread within a block, what it starts there for good, and not who takes precedence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import exoflow
from exoflow.precedence import giving_way, process_gives_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone schedules threads by a policy of each")
POLICY = "import os; print(os.sched_getscheduler(0) == os.SCHED_BATCH)"


def gives_way() -> bool:
    return os.sched_getscheduler(threading.get_native_id()) == os.SCHED_BATCH


def test_a_block_gives_way_and_what_it_starts_goes_on_to():
    assert not gives_way()
    with ThreadPoolExecutor(1) as before, ThreadPoolExecutor(1) as inside:
        before.submit(int).result()
        with giving_way():
            assert gives_way()
            started = inside.submit(gives_way)
            child = subprocess.run([sys.executable, "-c", POLICY], capture_output=True, text=True, check=True)
        assert not gives_way()
        assert started.result()
        assert inside.submit(gives_way).result()
        assert not before.submit(gives_way).result()
    assert child.stdout == "True\n"


def test_a_block_that_fails_takes_nothing_with_it():
    with pytest.raises(ZeroDivisionError), giving_way():
        _ = 1 / 0
    assert not gives_way()


def test_a_thread_of_a_process_that_gives_way_can_take_precedence():
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(int).result()
        other.submit(int).result()
        try:
            process_gives_way()
            assert gives_way()
            assert one.submit(gives_way).result()
            one.submit(exoflow.take_precedence).result()
            assert not one.submit(gives_way).result()
            assert other.submit(gives_way).result()
        finally:
            exoflow.take_precedence()


def test_a_policy_of_somebodys_choice_stays():
    def idle() -> list[int]:
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        seen = []
        with giving_way():
            seen.append(os.sched_getscheduler(0))
        seen.append(os.sched_getscheduler(0))
        exoflow.take_precedence()
        return [*seen, os.sched_getscheduler(0)]

    with ThreadPoolExecutor(1) as one:
        assert one.submit(idle).result() == [os.SCHED_IDLE] * 3

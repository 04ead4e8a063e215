"""Work is shared while processors are free, and until a thread has waited for one for long."""

from __future__ import annotations

import pytest

from graph_stream import crowding
from graph_stream.crowding import CROWDED_ALONE, CROWDED_SHARED, EPOCHS, Crowding


def learned(crowd: Crowding, waited_share: float, epochs: int = EPOCHS) -> bool:
    for _ in range(epochs):
        crowd.learn(1_000_000, int(1_000_000 * waited_share / (1 - waited_share)))
    return crowd.shares


def test_work_is_shared_at_first_and_while_nobody_waits():
    crowd = Crowding()
    assert crowd.shares
    assert learned(crowd, 0.0)
    assert learned(crowd, CROWDED_SHARED - 0.01)


def test_it_takes_several_epochs_to_tell():
    crowd = Crowding()
    assert learned(crowd, 0.9, EPOCHS - 1)
    assert not learned(crowd, 0.9, 1)


def test_one_epoch_that_waits_long_is_no_crowd():
    crowd = Crowding()
    assert learned(crowd, 0.5, 1)
    assert learned(crowd, 0.0, EPOCHS - 1)


def test_alone_it_takes_less_waiting_to_go_on_alone():
    crowd = Crowding()
    assert not learned(crowd, CROWDED_SHARED + 0.01)
    assert not learned(crowd, CROWDED_ALONE + 0.01)
    assert learned(crowd, CROWDED_ALONE - 0.01)


def test_times_that_nobody_tells_make_no_crowd(monkeypatch):
    monkeypatch.setattr(crowding, "_TIMES", "/nowhere")
    crowd = Crowding()
    for _ in range(2 * EPOCHS):
        crowd.look()
    assert crowd.shares


@pytest.mark.skipif(crowding._times() == (0, 0), reason="no such times here")
def test_a_thread_learns_of_its_own_times():
    before = crowding._times()
    assert sum(range(10**6))
    ran, waited = crowding._times()
    assert ran > before[0]
    assert waited >= before[1]

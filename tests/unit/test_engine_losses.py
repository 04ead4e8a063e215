"""Processes that die: what is counted against a step that kills them, and what is forgotten in a long life."""

from __future__ import annotations

from typing import Any

import exoflow
from exoflow.messages import Complete
from exoflow.records import Status
from exoflow.state import MAX_LOSSES
from tests.simulation.test_found import Bench, ended


@exoflow.actor(checkpoint="async", external=True, idempotent=True)
class Clerk:
    """Keeps nothing but connections: it is made anew when its process is lost."""

    def post(self, *_: Any) -> None:
        pass


def clerk_with_posts(count: int) -> Bench:
    """Return a bench where a clerk has calls to take, one after the other, and the first runs."""
    clerk: Any = Clerk
    clerk = clerk.options(name="clerk").bind()
    node = clerk.post.options(name="post1").bind()
    for number in range(2, count + 1):
        node = clerk.post.options(name=f"post{number}").bind(node)
    bench = Bench(node)
    bench.land()
    return bench


def test_an_actor_without_state_may_lose_its_process_any_number_of_times_in_a_long_life():
    bench = clerk_with_posts(12)
    for number in range(1, 13):
        for _ in range(MAX_LOSSES):
            bench.lose("clerk")
        bench.produce(f"post{number}")
        bench.land()
        if number < 12:
            bench.land()  # the intent of the next
    bench.land()
    assert bench.end == Complete(Status.SUCCESSFUL)


def test_a_call_that_kills_its_actor_whenever_it_runs_is_given_up():
    bench = clerk_with_posts(2)
    for _ in range(MAX_LOSSES):
        bench.lose("clerk")
    assert bench.end is None
    assert len(bench.ran["post1"]) == MAX_LOSSES + 1
    bench.lose("clerk")
    finished = ended(bench)
    assert (finished.status, finished.task) == (Status.FAILED, "post1")
    assert f"died {MAX_LOSSES + 1} times" in (finished.error or "")

"""Epochs for a target of staleness, on a simulated pipeline: little load, much, bursts, too much, and afterwards."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import pytest

from graph_stream.config import RunConfig
from graph_stream.errors import ConfigError
from graph_stream.pacing import CostModel, Pacing
from graph_stream.pipeline import MAX_IN_FLIGHT
from ingest import EpochReader, Tap, open_source

TICK = 0.002
BLOCK = 1_000
LARGEST = 100_000


@dataclass
class Answer:
    """An epoch: its size, when its first record came, when it was closed and answered."""

    records: int
    since: float
    closed: float
    answered: float

    @property
    def staleness(self) -> float:
        return self.answered - self.since


@dataclass
class Simulation:
    """Records that come, a reader that may be four epochs ahead, and a computation that does one after the other."""

    target: float
    fixed_seconds: float = 0.03
    record_seconds: float = 5e-6
    noise: float = 0.0
    seed: int = 1
    now: float = 1000.0
    free_at: float = 0.0
    came: int = 0
    owed: float = 0.0
    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    """Records that can be read: since when, and how many."""
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.pacing = Pacing(self.target, lambda: self.now)
        self.told = 0
        self.since: float | None = None
        self.records = 0
        self.begun = False

    def run(self, seconds: float, rate: Callable[[float], float]) -> list[Answer]:
        """Go on for so long; ``rate`` gives records per second by the seconds since this began."""
        begin, before = self.now, len(self.answers)
        while self.now < begin + seconds:
            self.owed += rate(self.now - begin) * TICK
            new = int(self.owed)
            self.owed -= new
            self.came += new
            while new:
                self.waiting.append((self.now, min(new, BLOCK)))
                new -= self.waiting[-1][1]
            self.step()
            self.now += TICK
        return self.answers[before:]

    def step(self) -> None:
        while self.told < len(self.answers) and self.answers[self.told].answered <= self.now:
            self.told += 1
            self.pacing.answered(self.told, self.answers[self.told - 1].answered)
        while len(self.answers) - self.told < MAX_IN_FLIGHT:
            if not self.begun:
                self.pacing.begin()
                self.begun = True
            if not self.read():
                return
            self.close()

    def read(self) -> bool:
        """Read block after block; tell whether the epoch is over."""
        while True:
            if self.pacing.is_over(idle=not self.waiting, records=self.records, since=self.since):
                return True
            if not self.waiting:
                return False
            if self.records + self.waiting[0][1] > LARGEST:
                return True
            came_at, count = self.waiting.popleft()
            self.since = came_at if self.since is None else self.since
            self.records += count

    def close(self) -> None:
        assert self.since is not None
        cost = self.fixed_seconds + self.record_seconds * self.records
        cost *= 1 + self.noise * self.random.uniform(-1, 1)
        self.free_at = max(self.free_at, self.now) + cost
        self.answers.append(Answer(self.records, self.since, self.now, self.free_at))
        self.pacing.closed(len(self.answers), self.records)
        self.pacing.next()
        self.since, self.records, self.begun = None, 0, False


def steady(rate: float) -> Callable[[float], float]:
    return lambda _: rate


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("target", "rate"), [(0.2, 5.0), (1.0, 5.0), (1.0, 20_000.0), (1.0, 80_000.0), (5.0, 15_000.0)]
)
def test_staleness_stays_under_the_target_in_as_few_epochs_as_that_allows(target, rate, seed):
    simulation = Simulation(target, noise=0.2, seed=seed)
    simulation.run(5 * target, steady(rate))
    answers = simulation.run(30 * target, steady(rate))
    assert max(answer.staleness for answer in answers) <= target + TICK
    # A record waits for its epoch, and then for its answer: the fewer epochs, the longer the first.
    assert np.mean([answer.closed - answer.since for answer in answers]) > 0.3 * target
    assert len(answers) < 30 * 3


def test_epochs_are_small_where_little_comes_and_grow_with_what_comes():
    sizes = []
    for rate in (10.0, 1_000.0, 50_000.0):
        simulation = Simulation(1.0)
        simulation.run(5.0, steady(rate))
        sizes.append(np.mean([answer.records for answer in simulation.run(20.0, steady(rate))]))
    assert sizes[0] < 20
    assert sizes[1] == pytest.approx(100 * sizes[0], rel=0.2)
    assert sizes[2] > 20 * sizes[1]


@pytest.mark.parametrize("seed", range(3))
def test_bursts_that_can_be_borne_are_answered_in_time(seed):
    simulation = Simulation(1.0, noise=0.1, seed=seed)

    def bursts(seconds: float) -> float:
        return 60_000 / TICK if seconds % 5 < TICK else 1_000.0

    simulation.run(20.0, bursts)
    answers = simulation.run(30.0, bursts)
    assert max(answer.staleness for answer in answers) <= 1.0 + TICK
    assert max(answer.records for answer in answers) >= 50_000


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_under_too_much_load_epochs_are_the_largest_and_all_is_answered_once_it_is_over(noise):
    simulation = Simulation(1.0, noise=noise)
    simulation.run(10.0, steady(20_000.0))
    overload = simulation.run(20.0, steady(400_000.0))  # twice what can be borne
    assert all(answer.records > 0.95 * LARGEST for answer in overload[5:])
    staleness = [answer.staleness for answer in overload]
    assert staleness[-1] == max(staleness) > 5.0  # it is told, whatever was wanted
    assert all(after.closed >= before.closed for before, after in itertools.pairwise(overload))
    simulation.run(30.0, steady(20_000.0))
    recovered = simulation.run(20.0, steady(20_000.0))
    assert max(answer.staleness for answer in recovered) <= 1.0 + TICK
    assert max(answer.records for answer in recovered) < 30_000
    left = simulation.records + sum(count for _, count in simulation.waiting)
    assert sum(answer.records for answer in simulation.answers) == simulation.came - left


def test_a_target_below_what_an_epoch_costs_is_missed_by_little():
    simulation = Simulation(0.05, fixed_seconds=0.1)
    simulation.run(5.0, steady(20_000.0))
    answers = simulation.run(20.0, steady(20_000.0))
    # While one epoch is computed the next gathers, and none waits behind others.
    assert max(answer.staleness for answer in answers) < 3 * 0.12


def test_a_slow_start_is_forgotten():
    simulation = Simulation(1.0, fixed_seconds=4.0)
    simulation.run(3.0, steady(1_000.0))
    simulation.fixed_seconds = 0.03
    simulation.run(40.0, steady(1_000.0))
    answers = simulation.run(20.0, steady(1_000.0))
    assert max(answer.staleness for answer in answers) <= 1.0 + TICK
    assert len(answers) < 40


# --- the model ----------------------------------------------------------------------------------------------


def test_the_model_finds_what_an_epoch_and_a_record_cost():
    model, chance = CostModel(), random.Random(1)
    assert model.seconds(10) is None
    for _ in range(50):
        records = chance.randrange(1_000, 200_000)
        model.learn(records, 0.05 + 3e-6 * records)
    for records in (1, 50_000, 400_000):
        assert model.seconds(records) == pytest.approx(0.05 + 3e-6 * records, rel=0.05)


def test_of_epochs_of_one_size_nothing_wild_is_concluded():
    model, chance = CostModel(), random.Random(1)
    for _ in range(50):
        model.learn(100 + chance.randrange(3), 0.03 * chance.uniform(0.5, 1.5))
    assert 0.03 < model.seconds(100) < 0.1
    assert 0.3 < model.seconds(100_000) < 3.0


def test_answers_of_epochs_that_another_reader_closed_teach_nothing():
    pacing = Pacing(1.0, lambda: 100.0)
    for epoch in range(1, 50):
        pacing.answered(epoch, 100.0 + epoch)
    pacing.begin()
    assert not pacing.is_over(idle=True, records=1, since=100.0)
    assert pacing._costs.seconds(1) is None


# --- where records come from --------------------------------------------------------------------------------


def test_a_tap_lets_through_what_is_due_and_says_since_when():
    now = [50.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    source = open_source("rmat://?scale=6&edges=5000")
    pacing = Pacing(1.0, lambda: now[0])
    reader = EpochReader([source], 2000, clock=lambda: now[0], closing=pacing, tap=Tap(1000.0, lambda: now[0], sleep))
    first = reader.read(reader.start())
    # No answer is known yet: half of the target is left for it.
    assert first.since == 50.001
    assert len(first.src) == pytest.approx(400, abs=10)
    assert now[0] == pytest.approx(50.4, abs=0.01)
    pacing.closed(1, len(first.src))
    pacing.answered(1, now[0] + 0.1)
    now[0] += 10.0  # and nobody asks for more
    second = reader.read(first.end)
    assert (len(second.src), second.since) == (2000, pytest.approx(50.001 + len(first.src) / 1000))
    third = reader.read(second.end)
    assert (len(third.src), third.since) == (2000, pytest.approx(52.001 + len(first.src) / 1000))
    fourth = reader.read(third.end)
    assert (len(fourth.src), fourth.last) == (1000 - len(first.src), True)


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target_staleness": 0.0}, "target-staleness must be at least 0.01, got 0.0"),
        ({"target_staleness": float("nan")}, "target-staleness must be at least 0.01, got nan"),
        ({"target_staleness": 1.0, "epoch_seconds": 1.0}, "--target-staleness and --epoch-seconds both say when"),
        ({"epoch_event_seconds": 1.0}, "--epoch-event-seconds needs a time column: --columns has src,dst"),
        ({"epoch_event_seconds": 0.0, "columns": "src,dst,time"}, "epoch-event-seconds must be at least 0.01"),
        ({"epoch_event_seconds": 1.0, "columns": "src,dst,time", "rate": 5.0}, "--rate schedules full epochs"),
        ({"epoch_event_seconds": 1.0, "columns": "src,dst,time", "idle_seconds": -1.0}, "idle-seconds must be at"),
        ({"idle_seconds": 1.0}, "--idle-seconds says when --epoch-event-seconds does not wait"),
    ],
)
def test_what_cannot_be_asked_for(options, text):
    with pytest.raises(ConfigError, match=text):
        RunConfig(("a.txt",), **options).checked()


# --- the tests can fail -------------------------------------------------------------------------------------


def test_a_reader_that_does_not_allow_for_the_cost_is_late():
    with patch.object(CostModel, "seconds", lambda self, records: 0.0), pytest.raises(AssertionError):
        test_staleness_stays_under_the_target_in_as_few_epochs_as_that_allows(1.0, 20_000.0, 1)


def test_a_reader_that_closes_at_once_makes_too_many_epochs():
    def at_once(self: Pacing, *, idle: bool, records: int, since: float | None) -> bool:
        return since is not None and idle

    with patch.object(Pacing, "is_over", at_once), pytest.raises(AssertionError):
        test_staleness_stays_under_the_target_in_as_few_epochs_as_that_allows(1.0, 20_000.0, 1)


def test_a_reader_that_does_not_see_what_is_unanswered_queues():
    with patch.object(Pacing, "_free_at", lambda self: -1.0), pytest.raises(AssertionError):
        test_a_target_below_what_an_epoch_costs_is_missed_by_little()

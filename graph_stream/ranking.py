"""One ranking at one member: its ranks, its rounds, and the certificate and hash that it keeps of them.

Per vertex ``X`` (influence) and ``c`` (what it emitted to each vertex it follows) are int64 fixed point.
After every round, in exact integers, ``X_x = sum of c_f over the followers f of x`` (docs/design/0003-online-state.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph_stream import invariants, kernels
from graph_stream.adjacency import OWNED, Longs, Slots, Vertices
from graph_stream.algorithms import Parameters
from graph_stream.certificate import BUCKETS, largest_lag
from graph_stream.execution import Execution, Executor
from graph_stream.ranks import fitted, no_ranks
from graph_stream.records import Adjacency, Links, flat
from graph_stream.rounds import Message

ROUND_CAP = 10_000
"""Rounds after which an epoch ends unfinished, publishes the lag it measured, and leaves the rest to the next
one. Part of the format version."""

Swap = Callable[[Message], list[Message]]
"""Deals a message to the owners of the vertices in it, and returns the answers of all members."""


@dataclass(frozen=True)
class Outcome:
    """What the rounds of an epoch did at one member."""

    rounds: int = 0
    """Rounds run, the last one of which did nothing (unless ``capped``)."""
    emissions: int = 0
    capped: bool = False
    """Whether the rounds were cut off at ``ROUND_CAP``."""


class Ranking:
    """The state of one ranking over a member's share of the graph.

    Parameters
    ----------
    number : int
        Which of the run's rankings this is, from 0.
    parameters : Parameters
        What to compute.
    adjacency : Adjacency
        The graph; shared with other rankings.
    threads, execution
        See :class:`graph_stream.execution.Executor`.
    """

    def __init__(
        self, number: int, parameters: Parameters, adjacency: Adjacency, threads: int, execution: Execution
    ) -> None:
        self.parameters = parameters
        self.ranks = no_ranks()
        self.lags = np.zeros((2, BUCKETS), np.int64)
        """How many vertices have their positive and their negative lag in each bucket; 0 is not counted."""
        self.lanes = np.zeros(2, np.uint64)
        """Lane sums of the contributions."""
        self.outcome = Outcome()
        self._number = number
        self._adjacency = adjacency
        self._rule = kernels.rule_of(parameters)
        self._executor = Executor(self._rule, threads, execution)

    @property
    def _vertices(self) -> Vertices:
        return self._adjacency.vertices

    @property
    def bounds(self) -> tuple[float, float]:
        """Proven bounds of all positive and of all negative lags."""
        tolerance = self.parameters.tolerance
        return largest_lag(self.lags[0], tolerance), largest_lag(self.lags[1], tolerance)

    def fit(self) -> None:
        """Make room for every slot of the graph."""
        self.ranks = fitted(self.ranks, len(self._vertices.id))

    def run(self, epoch: int, links: Links, news: tuple[Longs, Longs], swap: Swap, gone: list[Slots]) -> None:
        """Run rounds until one does nothing anywhere.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        links : Links
            Its net edge changes at this member.
        news : (ndarray of int64, ndarray of int64)
            Vertices of other members that gained or lost followers here, and how many; to be told by the
            first ranking of an epoch, empty for the others.
        swap : Swap
            The exchange among members.
        gone : list of ndarray
            Receives the slots that lost a follower on another member's word.
        """
        self.fit()
        # Taken before any emission: a new edge gives, and an old one takes back, the contribution as it was.
        slots, deltas = links.followed, links.change * self.ranks.contribution[links.follower]
        followed, followers = news
        self._executor.touch(self.ranks, links.follower)
        activity = len(slots)
        emissions = 0
        for round_ in range(ROUND_CAP):
            emitted = self._executor.round(self._vertices, self._adjacency.storage, self.ranks, slots, deltas)
            emissions += emitted
            targets, sums = self._executor.take_ghosts(self._vertices, self.ranks)
            answers = swap(Message(epoch, self._number, round_, activity + emitted, targets, sums, followed, followers))
            for answer in answers:
                gone.append(self._adjacency.change_followers(answer.followed, answer.followers))
                self.receive(answer)
            if not any(answer.activity for answer in answers):
                self.outcome = Outcome(round_ + 1, emissions)
                return
            slots, deltas, activity = slots[:0], deltas[:0], 0
            followed, followers = followed[:0], followers[:0]
        self.outcome = Outcome(ROUND_CAP, emissions, capped=True)

    def receive(self, message: Message) -> None:
        """Add to the influence of owned vertices what another member's emitted to them."""
        self.fit()
        slots = self._adjacency.slots_of(message.targets)
        self._executor.deliver(self._vertices, self.ranks, slots, flat(message.deltas))

    def seen(self) -> Slots:
        """Return the owned slots whose influence may have changed in this epoch, each once; before `settle`."""
        return self._executor.seen(self._vertices, self.ranks, capped=self.outcome.capped)

    def settle(self) -> tuple[Longs, Longs]:
        """Bring certificate and hash up to date after the rounds; return who changed its contribution, and to what."""
        return self._executor.settle(self._vertices, self.ranks, self.lags, self.lanes)

    def recount(self) -> None:
        """Compute certificate and hash from scratch, and make who is overdue the frontier."""
        self.lags[:] = 0
        self.lanes[:] = 0
        plus, minus = self.ranks.lag_plus, self.ranks.lag_minus
        kernels.recount(
            self._vertices, self._adjacency.storage, self.ranks, self._rule, plus, minus, self.lags, self.lanes
        )
        self.lags[:, 0] = 0
        self._executor.forget(self.ranks)
        self._executor.touch(self.ranks, self.overdue())

    def overdue(self) -> Slots:
        """Return the slots that would emit now; none after an epoch whose rounds ended."""
        storage = self._adjacency.storage
        slots = np.empty(storage.counters[OWNED], np.int32)
        return slots[: kernels.overdue(self._vertices, storage, self.ranks, self._rule, slots)]

    def load(self, vertex: Longs, contribution: Longs) -> None:
        """Set contributions; influence stays as it is.

        Raises
        ------
        UnknownVertex
            When a vertex has no edge.
        """
        self.fit()
        self.ranks.contribution[self._adjacency.slots_of(vertex)] = contribution

    def spread(self, influence: Longs) -> None:
        """Add to each slot what those who follow it here have emitted."""
        self.fit()
        kernels.spread(self._vertices, self._adjacency.storage, self.ranks.contribution, influence)

    def ghost_message(self, epoch: int, influence: Longs, followers: npt.NDArray[np.int64] | None) -> Message:
        """Tell the owners of all ghosts what their followers here add up to; also their number, if it is given."""
        ghosts = self._adjacency.ghost_slots()
        ids = self._vertices.id[ghosts]
        counted = (ids[:0], ids[:0]) if followers is None else (ids, followers[ghosts])
        return Message(epoch, self._number, -1, 0, ids, influence[ghosts], *counted)

    def take_ghosts(self) -> None:
        """Forget what ghosts were told, once it has been passed on."""
        self.ranks.influence[self._adjacency.ghost_slots()] = 0

    def emitting(self) -> tuple[Longs, Longs]:
        """Return the vertices with a contribution, and their contributions."""
        slots = np.flatnonzero(self.ranks.contribution)
        return self._vertices.id[slots], self.ranks.contribution[slots]

    def scores(self) -> tuple[Longs, npt.NDArray[np.float64]]:
        """Return the owned vertices, in no particular order, and what the algorithm reads out for each.

        Only a member that owns all vertices can give the scores of algorithms that normalise.
        """
        slots = self._adjacency.owned_slots()
        ids = self._vertices.id[slots]
        self.fit()
        influence = self.ranks.influence[slots] / self.parameters.scale
        base = self.parameters.weights.of(ids)
        return ids, self.parameters.ranking.scores(influence, base, self.parameters.factor)

    def violations(self, influence: Longs) -> list[str]:
        """Compare what is kept with what the contributions say; ``influence`` is the sum over all members."""
        self.fit()
        found = invariants.rank_violations(
            self._vertices, self._adjacency.storage, self.ranks, self._rule, influence, self.lags, self.lanes
        )
        if not self.outcome.capped and len(self.overdue()):
            found.append(f"{len(self.overdue())} vertices should have emitted")
        return found

"""What the members of a run tell each other between rounds, and a driver for members in one process.

Members exchange directly, all to all, once per round: each sends what its vertices emitted to vertices
another one owns. Every message also tells how much the sender did, so that all members see together when a
round did nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from graph_stream.adjacency import Longs
from graph_stream.ownership import owner

if TYPE_CHECKING:
    from graph_stream.epoch import EpochResult
    from graph_stream.eventtime import EventTimes
    from graph_stream.graph import PartitionState

Result = TypeVar("Result")


@dataclass(frozen=True)
class Message:
    """What one member tells another after a round."""

    epoch: int
    """Epoch the sender is in; members of one exchange must agree."""
    ranking: int
    """Which of the run's rankings it is about, from 0; as above."""
    round: int
    """Round the sender has done, from 0."""
    activity: int
    """Emissions and net edge changes of the sender in this round, towards anyone; 0 everywhere ends the
    epoch."""
    targets: Longs
    """External ids of vertices the receiver owns; shape (n,)."""
    deltas: Longs
    """What to add to their influence, in fixed point; shape (n,)."""
    followed: Longs
    """External ids of vertices the receiver owns whose followers changed; shape (m,)."""
    followers: Longs
    """By how many; shape (m,)."""

    @property
    def place(self) -> tuple[int, int, int]:
        """Epoch, ranking and round: where its sender is."""
        return self.epoch, self.ranking, self.round


Exchange = Callable[[list[Message]], list[Message]]
"""All-to-all among the members: message k goes to member k, answer j came from member j (the own one passes
through). Every member calls it equally often. For a single member it is :func:`alone`."""


def alone(messages: list[Message]) -> list[Message]:
    """Exchange of a run with one member: answers are the messages."""
    return messages


def deal(message: Message, partitions: int) -> list[Message]:
    """Split a message about vertices of any member into one per member, by owner."""
    target_owner = owner(message.targets, partitions)
    followed_owner = owner(message.followed, partitions)
    dealt = []
    for member in range(partitions):
        sums = target_owner == member
        links = followed_owner == member
        dealt.append(
            replace(
                message,
                targets=message.targets[sums],
                deltas=message.deltas[sums],
                followed=message.followed[links],
                followers=message.followers[links],
            )
        )
    return dealt


class LocalExchange:
    """All-to-all exchange among threads of one process.

    Parameters
    ----------
    members : int
        How many threads take part.
    """

    def __init__(self, members: int) -> None:
        self._barrier = threading.Barrier(members)
        self._sent: list[list[Message]] = [[] for _ in range(members)]

    def of(self, member: int) -> Exchange:
        """Return the exchange as one member sees it."""

        def exchange(messages: list[Message]) -> list[Message]:
            self._sent[member] = messages
            self._barrier.wait()
            answers = [sent[member] for sent in self._sent]
            self._barrier.wait()
            return answers

        return exchange

    def abort(self) -> None:
        """Make every member that waits, or will wait, fail with ``threading.BrokenBarrierError``."""
        self._barrier.abort()


def together(members: int, work: Callable[[int, Exchange], Result]) -> list[Result]:
    """Run one piece of work per member, each in a thread, with an exchange among them.

    Returns
    -------
    list
        What each member returned.

    Raises
    ------
    Exception
        The first error of a member, by index; the others are stopped.
    """
    if members == 1:
        return [work(0, alone)]
    exchange = LocalExchange(members)

    def one(member: int) -> Result:
        try:
            return work(member, exchange.of(member))
        except BaseException:
            exchange.abort()
            raise

    with ThreadPoolExecutor(members, "member") as pool:
        futures = [pool.submit(one, member) for member in range(members)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def run_members(
    states: Sequence[PartitionState],
    epoch: int,
    src: Longs,
    dst: Longs,
    op: npt.NDArray[np.int8],
    times: EventTimes | None = None,
) -> list[EpochResult]:
    """Apply one epoch to all members of a run in this process.

    Parameters
    ----------
    states : sequence of PartitionState
        All members, by index.
    epoch : int
        Number of the epoch.
    src, dst, op, times
        Its records, as for :meth:`graph_stream.graph.PartitionState.apply`.

    Returns
    -------
    list of EpochResult
        One per member; see :func:`graph_stream.epoch.combine`.
    """
    return together(len(states), lambda member, exchange: states[member].apply(epoch, src, dst, op, exchange, times))

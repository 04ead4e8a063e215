"""One member of the online tier: the vertices it owns, their edges, and TunkRank kept up to date on them.

Per vertex ``X`` (influence) and ``c`` (what it emitted to each vertex it follows) are int64 fixed point.
After every round, in exact integers, ``X_x = sum of c_f over the followers f of x`` (design, section 5). An
epoch applies the net edge changes and runs rounds of the rule (:func:`graph_stream.algorithms.share`) until
one does nothing anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graph_stream import invariants, kernels
from graph_stream.adjacency import ARENA, EDGES, MAX_DEGREE, OWNED, USED, Longs, Slots, Storage, Vertices
from graph_stream.algorithms import Parameters
from graph_stream.certificate import BUCKETS, largest_lag
from graph_stream.epoch import EpochResult
from graph_stream.execution import Execution, Executor
from graph_stream.ownership import owner, virtual_range
from graph_stream.records import Adjacency, Links, UnknownVertex, check_records, flat
from graph_stream.rounds import Exchange, Message, deal, together
from graph_stream.snapshot import Changes

ROUND_CAP = 10_000
"""Rounds after which an epoch ends unfinished, publishes the lag it measured, and leaves the rest to the next
one. Part of the format version."""

_LOAD_EDGES = 1 << 20


class InvariantViolated(Exception):
    """The state of a member contradicts itself, or that of another member."""


class PartitionState:
    """The state of one member: its share of the vertices, with all their outgoing edges.

    Parameters
    ----------
    parameters : Parameters
        What to compute; the same for all members.
    index : int
        This member, counted from 0.
    partitions : int
        Number of members, 1 to 256.
    threads : int
        Threads for the rounds.
    execution : {"auto", "sparse", "dense"}
        How rounds find their frontier; never changes the state.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(
        self,
        parameters: Parameters,
        index: int = 0,
        partitions: int = 1,
        threads: int = 1,
        execution: Execution = "auto",
    ) -> None:
        virtual_range(index, partitions)
        if threads < 1:
            message = f"at least 1 thread is needed, not {threads}"
            raise ValueError(message)
        if execution not in ("auto", "sparse", "dense"):
            message = f"execution must be 'auto', 'sparse' or 'dense', not {execution!r}"
            raise ValueError(message)
        self.parameters = parameters
        self.index = index
        self.partitions = partitions
        self._rule = kernels.rule_of(parameters)
        self._executor = Executor(self._rule, threads, execution)
        self._adjacency = Adjacency(index, partitions)
        self._lags = np.zeros((2, BUCKETS), np.int64)
        self._lanes = np.zeros(2, np.uint64)
        self._changes = Changes.none()
        self.result = self._summarise(0)

    @property
    def _vertices(self) -> Vertices:
        return self._adjacency.vertices

    @property
    def _storage(self) -> Storage:
        return self._adjacency.storage

    @property
    def epoch(self) -> int:
        """The epoch this state is at; 0 before the first."""
        return self.result.epoch

    @property
    def vertices(self) -> int:
        """Owned vertices with at least one edge."""
        return int(self._storage.counters[OWNED])

    @property
    def edges(self) -> int:
        """Edges whose follower is owned."""
        return int(self._storage.counters[EDGES])

    @property
    def max_degree(self) -> int:
        """Most vertices followed by one owned vertex."""
        return int(self._storage.counters[MAX_DEGREE])

    @property
    def nbytes(self) -> int:
        """Bytes of graph and state in use: of what can grow, the part written to."""
        counters = self._storage.counters
        per_slot = sum(array.itemsize for array in self._vertices)
        return int(
            counters[USED] * per_slot
            + counters[ARENA] * self._storage.arena.itemsize
            + self._storage.slots.nbytes
            + self._storage.degrees.nbytes
        )

    def apply(self, epoch: int, src: Longs, dst: Longs, op: npt.NDArray[np.int8], exchange: Exchange) -> EpochResult:
        """Apply the records of an epoch and bring the influence up to date.

        Parameters
        ----------
        epoch : int
            Number of the epoch: the state's plus one.
        src, dst : ndarray of int64, shape (n,)
            Followers and followed of all records of the epoch, of all members, in order.
        op : ndarray of int8, shape (n,)
            +1 for an insert, -1 for a delete. Of several records of one edge the last decides.
        exchange : Exchange
            All-to-all among the members, each of which gets the same records.

        Returns
        -------
        EpochResult
            Also kept as ``result``.

        Raises
        ------
        ValueError
            If the epoch does not follow, or shapes, types or operations are wrong; nothing has changed then.
            After any other error the state is not to be used again.
        """
        if epoch != self.epoch + 1:
            message = f"epoch {epoch} cannot follow epoch {self.epoch}"
            raise ValueError(message)
        check_records(src, dst, op)
        links = self._adjacency.change_edges(src, dst, op, self._lanes)
        gone = [links.follower[links.change < 0], links.followed[links.change < 0]]
        round_, emissions, capped = self._run_rounds(epoch, links, exchange, gone)
        vertex, contribution = self._executor.settle(self._vertices, self._lags, self._lanes)
        self._adjacency.release(np.concatenate(gone))
        if capped:
            self._recount()
        inserted = links.record[links.change > 0]
        deleted = links.record[links.change < 0]
        self._changes = Changes(src[inserted], dst[inserted], src[deleted], dst[deleted], vertex, contribution)
        self.result = self._summarise(
            epoch,
            inserted=len(inserted),
            deleted=len(deleted),
            unchanged=links.records - links.self_loops - len(links.record),
            self_loops=links.self_loops,
            rounds=round_,
            emissions=emissions,
            capped=capped,
        )
        return self.result

    def _run_rounds(self, epoch: int, links: Links, exchange: Exchange, gone: list[Slots]) -> tuple[int, int, bool]:
        """Run rounds until one does nothing anywhere.

        Appends to ``gone`` the slots that lost a follower on another member's word. Returns the number of
        rounds, this member's emissions, and whether the rounds were cut off.
        """
        slots = links.followed
        # Taken before any emission: a new edge gives, and an old one takes back, the contribution as it was.
        deltas = links.change * self._vertices.contribution[links.follower]
        remote = ~self._vertices.owned[slots]
        followed, followers = self._vertices.id[slots[remote]], links.change[remote]
        self._executor.touch(self._vertices, links.follower)
        activity = len(slots)
        emissions = 0
        for round_ in range(ROUND_CAP):
            emitted = self._executor.round(self._vertices, self._storage, slots, deltas)
            emissions += emitted
            targets, sums = self._executor.take_ghosts(self._vertices)
            message = Message(epoch, round_, activity + emitted, targets, sums, followed, followers)
            answers = self._exchange(message, exchange)
            for answer in answers:
                gone.append(self._adjacency.change_followers(answer.followed, answer.followers))
                self._receive(answer)
            if not any(answer.activity for answer in answers):
                return round_ + 1, emissions, False
            slots, deltas, activity = slots[:0], deltas[:0], 0
            followed, followers = followed[:0], followers[:0]
        return ROUND_CAP, emissions, True

    def _exchange(self, message: Message, exchange: Exchange) -> list[Message]:
        """Deal a message to the owners of the vertices in it; return the answers of all members."""
        answers = exchange(deal(message, self.partitions))
        for member, answer in enumerate(answers):
            if (answer.epoch, answer.round) != (message.epoch, message.round):
                text = (
                    f"member {member} is at epoch {answer.epoch}, round {answer.round}, "
                    f"member {self.index} at epoch {message.epoch}, round {message.round}"
                )
                raise InvariantViolated(text)
        return answers

    def _receive(self, message: Message) -> None:
        slots = self._adjacency.slots_of(message.targets)
        self._executor.deliver(self._vertices, slots, flat(message.deltas))

    def _recount(self) -> None:
        """Compute certificate and hash from scratch, and make who is overdue the frontier."""
        self._lags[:] = 0
        self._lanes[:] = 0
        kernels.recount(
            self._vertices,
            self._storage,
            self._rule,
            self._vertices.lag_plus,
            self._vertices.lag_minus,
            self._lags,
            self._lanes,
        )
        self._lags[:, 0] = 0
        self._executor.forget(self._vertices)
        self._executor.touch(self._vertices, self._overdue())

    def _overdue(self) -> Slots:
        slots = np.empty(self._storage.counters[OWNED], np.int32)
        return slots[: kernels.overdue(self._vertices, self._storage, self._rule, slots)]

    def _summarise(
        self,
        epoch: int,
        inserted: int = 0,
        deleted: int = 0,
        unchanged: int = 0,
        self_loops: int = 0,
        rounds: int = 0,
        emissions: int = 0,
        capped: bool = False,
    ) -> EpochResult:
        return EpochResult(
            epoch=epoch,
            inserted=inserted,
            deleted=deleted,
            unchanged=unchanged,
            self_loops=self_loops,
            rounds=rounds,
            emissions=emissions,
            capped=capped,
            e_plus=largest_lag(self._lags[0], self.parameters.tolerance),
            e_minus=largest_lag(self._lags[1], self.parameters.tolerance),
            lane_low=int(self._lanes[0]),
            lane_high=int(self._lanes[1]),
            vertices=self.vertices,
            edges=self.edges,
            max_degree=self.max_degree,
        )

    def capture(self) -> Changes:
        """Return what the last epoch changed, in external ids; immutable and independent of the state."""
        return self._changes

    def capture_all(self) -> Changes:
        """Return the whole state as inserts and contributions: a base."""
        follower, followed = self._adjacency.edge_slots()
        emitting = np.flatnonzero(self._vertices.contribution[: self._storage.counters[USED]])
        ids = self._vertices.id
        none = np.empty(0, np.int64)
        return Changes(
            ids[follower],
            ids[followed],
            none,
            none,
            ids[emitting],
            self._vertices.contribution[emitting],
        )

    def scores(self) -> tuple[Longs, npt.NDArray[np.float64]]:
        """Return ids and influence of the owned vertices.

        Returns
        -------
        vertices : ndarray of int64, shape (n,)
            External ids, in no particular order.
        influence : ndarray of float64, shape (n,)
            ``X`` of each.
        """
        slots = self._adjacency.owned_slots()
        influence = self._vertices.influence[slots] / self.parameters.scale
        return self._vertices.id[slots], influence

    def restore(self, changes: Changes, exchange: Exchange, epoch: int) -> None:
        """Load a whole state into this new one, and rebuild influence by one pass and one exchange.

        ``result`` then holds the restored state's counts, certificate and lane sums, so that
        :func:`graph_stream.epoch.combine` gives its hash, with nothing inserted, deleted or emitted.

        Parameters
        ----------
        changes : Changes
            Edges and contributions of the vertices this member owns, without deletes; others are ignored.
        exchange : Exchange
            All-to-all among the members, which all restore.
        epoch : int
            The epoch the state is of.

        Raises
        ------
        ValueError
            If this state has seen an epoch, or ``changes`` is not a whole state.
        """
        if self.epoch or self.edges or epoch < 0:
            message = f"epoch {epoch} cannot be restored into a state at epoch {self.epoch} with {self.edges} edges"
            raise ValueError(message)
        if len(changes.deleted_src):
            message = f"a whole state has no deletes, this one has {len(changes.deleted_src)}: merge with base=True"
            raise ValueError(message)
        self._load(changes)
        kernels.spread(self._vertices, self._storage, self._vertices.influence)
        sums = self._ghost_message(epoch, self._vertices.influence, self._vertices.followers)
        self._vertices.influence[self._adjacency.ghost_slots()] = 0
        for answer in self._exchange(sums, exchange):
            self._adjacency.change_followers(answer.followed, answer.followers)
            self._receive(answer)
        self._recount()
        self.result = self._summarise(epoch, capped=len(self._overdue()) > 0)

    def _load(self, changes: Changes) -> None:
        mine = owner(changes.inserted_src, self.partitions) == self.index
        src, dst = changes.inserted_src[mine], changes.inserted_dst[mine]
        for begin in range(0, len(src), _LOAD_EDGES):
            part = slice(begin, begin + _LOAD_EDGES)
            self._adjacency.change_edges(src[part], dst[part], np.ones(len(src[part]), np.int8), self._lanes)
        mine = owner(changes.vertex, self.partitions) == self.index
        vertex, contribution = changes.vertex[mine], changes.contribution[mine]
        try:
            self._vertices.contribution[self._adjacency.slots_of(vertex)] = contribution
        except UnknownVertex as error:
            message = f"not a whole state: a contribution without an edge; {error}"
            raise ValueError(message) from error

    def _ghost_message(self, epoch: int, influence: Longs, followers: npt.NDArray[np.integer[Any]]) -> Message:
        """Tell the owners of all ghosts what their followers here add up to."""
        ghosts = self._adjacency.ghost_slots()
        ids = self._vertices.id[ghosts]
        return Message(epoch, -1, 0, ids, influence[ghosts], ids, followers[ghosts].astype(np.int64))

    def check_invariants(self, exchange: Exchange) -> None:
        """Recompute everything that is kept, from edges and contributions alone, and compare.

        All members must call it together. For tests and audits: it visits every edge.

        Raises
        ------
        InvariantViolated
            Naming every difference.
        """
        influence = np.zeros_like(self._vertices.influence)
        kernels.spread(self._vertices, self._storage, influence)
        _, followed = self._adjacency.edge_slots()
        followers = np.bincount(followed, minlength=len(influence))
        for answer in self._exchange(self._ghost_message(self.epoch, influence, followers), exchange):
            np.add.at(influence, self._adjacency.slots_of(answer.targets), answer.deltas)
            np.add.at(followers, self._adjacency.slots_of(answer.followed), answer.followers)
        influence[self._adjacency.ghost_slots()] = 0
        found = invariants.violations(
            self._vertices,
            self._storage,
            self._rule,
            influence,
            followers,
            self._lags,
            self._lanes,
        )
        if not self.result.capped and len(self._overdue()):
            found.append(f"{len(self._overdue())} vertices should have emitted")
        if found:
            message = f"partition {self.index} of {self.partitions}, epoch {self.epoch}: {'; '.join(found)}"
            raise InvariantViolated(message)


def warm_up() -> None:
    """Compile every kernel, or load it from numba's cache, on a tiny graph: seconds, or tenths of one."""
    src, dst = np.array([1, 2, 3, 1], np.int64), np.array([2, 3, 1, 3], np.int64)
    parameters = Parameters(retweet_probability=0.5)

    def work(index: int, exchange: Exchange) -> None:
        state = PartitionState(parameters, index, 2, threads=2)
        state.apply(1, src, dst, np.ones(4, np.int8), exchange)
        state.apply(2, src, dst, np.array([-1, 1, 1, -1], np.int8), exchange)
        restored = PartitionState(parameters, index, 2, execution="dense")
        restored.restore(state.capture_all(), exchange, 2)
        restored.apply(3, src[:1], dst[:1], np.ones(1, np.int8), exchange)
        restored.check_invariants(exchange)

    together(2, work)

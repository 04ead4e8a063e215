"""One member of the online tier: the vertices it owns, their edges, and the rankings kept up to date on them.

An epoch applies the net edge changes once, and then, ranking by ranking, runs rounds of the rule
(:func:`graph_stream.algorithms.share`) until one does nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from graph_stream import idtable, invariants, tombstones, wheel
from graph_stream.adjacency import ARENA, EDGES, MAX_DEGREE, OWNED, USED, Longs, Slots, Storage, Vertices
from graph_stream.algorithms import Parameters
from graph_stream.changed import BYTES_PER_SLOT, Changed, Watch
from graph_stream.epoch import EpochResult
from graph_stream.eventtime import NEVER, EventTime, EventTimes
from graph_stream.execution import Execution
from graph_stream.invariants import InvariantViolated
from graph_stream.ownership import owner, virtual_range
from graph_stream.ranking import Outcome, Ranking
from graph_stream.records import Adjacency, Links, UnknownVertex, check_records
from graph_stream.rounds import Exchange, Message, deal, together
from graph_stream.snapshot import Changes, Contributions


class PartitionState:
    """The state of one member: its share of the vertices, with all their outgoing edges.

    Parameters
    ----------
    parameters : Parameters or tuple of Parameters
        What to compute, one ranking or several over the same graph; the same for all members. All have the same
        event time.
    index : int
        This member, counted from 0.
    partitions : int
        Number of members, 1 to 256.
    threads : int
        Threads for the rounds.
    execution : {"auto", "sparse", "dense"}
        How rounds find their frontier; never changes the state.
    watched : mapping of int to int, optional
        Rankings, by number, of which each epoch tells what it changed, with how many of the best vertices.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(
        self,
        parameters: Parameters | tuple[Parameters, ...],
        index: int = 0,
        partitions: int = 1,
        threads: int = 1,
        execution: Execution = "auto",
        watched: Mapping[int, int] | None = None,
    ) -> None:
        virtual_range(index, partitions)
        if threads < 1:
            message = f"at least 1 thread is needed, not {threads}"
            raise ValueError(message)
        if execution not in ("auto", "sparse", "dense"):
            message = f"execution must be 'auto', 'sparse' or 'dense', not {execution!r}"
            raise ValueError(message)
        self.index = index
        self.partitions = partitions
        given = parameters if isinstance(parameters, tuple) else (parameters,)
        if len({each.event_time for each in given}) > 1:
            message = "rankings over one graph have one event time"
            raise ValueError(message)
        self._adjacency = Adjacency(index, partitions, given[0].event_time)
        self._edge_lanes = np.zeros(2, np.uint64)
        self.rankings = tuple(
            Ranking(number, each, self._adjacency, threads, execution) for number, each in enumerate(given)
        )
        self._changes = Changes.none()
        self._watches = {number: Watch(best) for number, best in (watched or {}).items()}
        self.changed: dict[int, Changed] = {}
        self.results = self._summarise(0)

    @property
    def result(self) -> EpochResult:
        """What the last epoch did, for the first ranking."""
        return self.results[0]

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
    def rows(self) -> int:
        """Rows of a base of this state: edges, tombstones, and at most a contribution per vertex and ranking."""
        dead = int(self._adjacency.tombstones.counters[tombstones.LIVE])
        return self.edges + dead + self.vertices * len(self.rankings)

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
        arrays = (*self._vertices, *(array for ranking in self.rankings for array in ranking.ranks))
        per_slot = sum(array.itemsize for array in arrays) + len(self._watches) * BYTES_PER_SLOT
        per_entry = self._storage.arena.itemsize + (self._storage.times.itemsize if len(self._storage.times) else 0)
        return int(
            counters[USED] * per_slot
            + counters[ARENA] * per_entry
            + idtable.nbytes(self._storage.table)
            + self._storage.degrees.nbytes
            + wheel.nbytes(self._adjacency.oldest, counters[USED])
            + tombstones.nbytes(self._adjacency.tombstones)
        )

    def apply(
        self,
        epoch: int,
        src: Longs,
        dst: Longs,
        op: npt.NDArray[np.int8],
        exchange: Exchange,
        times: EventTimes | None = None,
    ) -> EpochResult:
        """Apply the records of an epoch and bring the rankings up to date.

        Parameters
        ----------
        epoch : int
            Number of the epoch: the state's plus one.
        src, dst : ndarray of int64, shape (n,)
            Followers and followed of all records of the epoch, of all members, in order.
        op : ndarray of int8, shape (n,)
            +1 for an insert, -1 for a delete. Of several records of one edge the last decides, with event time the
            last of those with the greatest time.
        exchange : Exchange
            All-to-all among the members, each of which gets the same records.
        times : EventTimes, optional
            When the records happened, and the epoch's watermark, not below the one before; with event time.

        Returns
        -------
        EpochResult
            Of the first ranking; ``results`` has those of all.

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
        self._check_times(times, len(src))
        links = self._adjacency.change_edges(src, dst, op, self._edge_lanes, times)
        gone = [links.follower[links.change < 0], links.followed[links.change < 0]]
        news = self._news(links)
        for ranking in self.rankings:
            ranking.run(epoch, links, news, lambda message: self._swap(message, exchange), gone)
            news = (news[0][:0], news[1][:0])
        self._compare(np.concatenate(gone))
        contributions = Contributions.of_rankings([ranking.settle() for ranking in self.rankings])
        self._adjacency.release(np.concatenate(gone))
        for ranking in self.rankings:
            if ranking.outcome.capped:
                ranking.recount()
        self._changes = _changes_of(links, src, dst, op, contributions, times)
        changed = len(links.change)
        self.results = self._summarise(
            epoch,
            inserted=int(np.count_nonzero(links.change > 0)),
            deleted=int(np.count_nonzero(links.change < 0)),
            unchanged=links.records - links.self_loops - links.late - (changed - links.expired),
            self_loops=links.self_loops,
            expired=links.expired,
            late=links.late,
        )
        return self.result

    def _check_times(self, times: EventTimes | None, records: int) -> None:
        if (times is None) != (self._adjacency.event_time is None):
            message = "records need times exactly if the parameters have an event time"
            raise ValueError(message)
        if times is not None and (times.time.dtype != np.int64 or times.time.shape != (records,)):
            message = f"times must be int64, one for each of {records} records, not {times.time.shape}"
            raise ValueError(message)
        if times is not None and times.watermark < self._adjacency.watermark:
            message = f"a watermark of {times.watermark} cannot follow {self._adjacency.watermark}"
            raise ValueError(message)

    def _compare(self, unlinked: Slots) -> None:
        """Find what the epoch changed in the rankings that are watched."""
        self.changed = {}
        for number, watch in self._watches.items():
            ranking = self.rankings[number]
            influence, seen = ranking.ranks.influence, ranking.seen()
            self.changed[number] = watch.close(self._vertices, influence, seen, unlinked, self._linked_slots)

    def _linked_slots(self) -> Longs:
        slots = self._adjacency.owned_slots()
        linked: Longs = slots[(self._vertices.degree[slots] != 0) | (self._vertices.followers[slots] != 0)]
        return linked

    def _news(self, links: Links) -> tuple[Longs, Longs]:
        """Return whose number of followers here has changed among other members' vertices, and by how many."""
        remote = ~self._vertices.owned[links.followed]
        return self._vertices.id[links.followed[remote]], links.change[remote]

    def _swap(self, message: Message, exchange: Exchange) -> list[Message]:
        """Deal a message to the owners of the vertices in it; return the answers of all members."""
        answers = exchange(deal(message, self.partitions))
        for member, answer in enumerate(answers):
            if answer.place != message.place:
                text = (
                    f"member {member} is at epoch, ranking and round {answer.place}, "
                    f"member {self.index} at {message.place}"
                )
                raise InvariantViolated(text)
        return answers

    def _summarise(
        self,
        epoch: int,
        inserted: int = 0,
        deleted: int = 0,
        unchanged: int = 0,
        self_loops: int = 0,
        expired: int = 0,
        late: int = 0,
    ) -> tuple[EpochResult, ...]:
        results = []
        for ranking in self.rankings:
            e_plus, e_minus = ranking.bounds
            lanes = self._edge_lanes + ranking.lanes
            results.append(
                EpochResult(
                    epoch=epoch,
                    inserted=inserted,
                    deleted=deleted,
                    unchanged=unchanged,
                    self_loops=self_loops,
                    rounds=ranking.outcome.rounds,
                    emissions=ranking.outcome.emissions,
                    capped=ranking.outcome.capped,
                    e_plus=e_plus,
                    e_minus=e_minus,
                    lane_low=int(lanes[0]),
                    lane_high=int(lanes[1]),
                    vertices=self.vertices,
                    edges=self.edges,
                    max_degree=self.max_degree,
                    expired=expired,
                    late=late,
                    tombstones=int(self._adjacency.tombstones.counters[tombstones.LIVE]),
                    watermark=self._watermark,
                )
            )
        return tuple(results)

    @property
    def _watermark(self) -> int | None:
        return None if self._adjacency.event_time is None else self._adjacency.watermark

    def capture(self) -> Changes:
        """Return what the last epoch changed, in external ids; immutable and independent of the state."""
        return self._changes

    def capture_all(self) -> Changes:
        """Return the whole state as inserts, tombstones and contributions: a base."""
        follower, followed, time = self._adjacency.edge_slots()
        ids = self._vertices.id
        src, dst, deleted_time = self._adjacency.buried()
        contributions = Contributions.of_rankings([ranking.emitting() for ranking in self.rankings])
        edges = ids[follower], ids[followed], src, dst
        return Changes(*edges, *contributions, time, deleted_time, watermark=self._watermark)

    def scores(self, ranking: int = 0) -> tuple[Longs, npt.NDArray[np.float64]]:
        """Return ids of the owned vertices, in no particular order, and the score of each in one of the rankings.

        Returns
        -------
        vertices : ndarray of int64, shape (n,)
            External ids.
        scores : ndarray of float64, shape (n,)
            What the algorithm reads out. Algorithms that normalise do so over this member's vertices, so it must
            own all of them.
        """
        return self.rankings[ranking].scores()

    def restore(self, parts: Iterable[Changes], exchange: Exchange, epoch: int) -> None:
        """Load a whole state into this new one, and rebuild influence by one pass and one exchange.

        ``results`` then hold the restored state's counts, certificate and lane sums, so that
        :func:`graph_stream.epoch.combine` gives its hash, with nothing inserted, deleted or emitted.

        Parameters
        ----------
        parts : iterable of Changes
            Edges, tombstones and contributions of the vertices this member owns, without deletes; others are
            ignored. All of a follower's are in one part.
        exchange : Exchange
            All-to-all among the members, which all restore.
        epoch : int
            The epoch the state is of.

        Raises
        ------
        ValueError
            If this state has seen an epoch, or ``parts`` are not a whole state.
        """
        if self.epoch or self.edges or epoch < 0:
            message = f"epoch {epoch} cannot be restored into a state at epoch {self.epoch} with {self.edges} edges"
            raise ValueError(message)
        for part in parts:
            self._load(part)
        for ranking in self.rankings:
            ranking.spread(ranking.ranks.influence)
        followers: Longs | None = self._vertices.followers.astype(np.int64)
        for ranking in self.rankings:
            told = ranking.ghost_message(epoch, ranking.ranks.influence, followers)
            ranking.take_ghosts()
            for answer in self._swap(told, exchange):
                self._adjacency.change_followers(answer.followed, answer.followers)
                ranking.receive(answer)
            followers = None
        for ranking in self.rankings:
            ranking.fit()
            ranking.recount()
            ranking.outcome = Outcome(capped=len(ranking.overdue()) > 0)
        for number, watch in self._watches.items():
            watch.begin(self._vertices, self.rankings[number].ranks.influence, self._adjacency.owned_slots())
        self.results = self._summarise(epoch)

    def _load(self, changes: Changes) -> None:
        if deletes := len(changes.deleted_src) - int(np.count_nonzero(changes.deleted_time != NEVER)):
            message = f"a whole state has no deletes, this one has {deletes}: merge with base=True"
            raise ValueError(message)
        if (changes.watermark is None) != (self._adjacency.event_time is None):
            message = "not a state of these parameters: one has event time and the other has not"
            raise ValueError(message)
        mine = owner(changes.inserted_src, self.partitions) == self.index
        times = changes.inserted_time[mine] if changes.watermark is not None else changes.inserted_time[:0]
        self._adjacency.load_edges(changes.inserted_src[mine], changes.inserted_dst[mine], self._edge_lanes, times)
        mine = owner(changes.deleted_src, self.partitions) == self.index
        self._bury(changes.deleted_src[mine], changes.deleted_dst[mine], changes.deleted_time[mine])
        if changes.watermark is not None:
            self._adjacency.watermark = max(self._adjacency.watermark, changes.watermark)
        mine = owner(changes.vertex, self.partitions) == self.index
        try:
            for number, ranking in enumerate(self.rankings):
                of_ranking = mine & (changes.ranking == number)
                ranking.load(changes.vertex[of_ranking], changes.contribution[of_ranking])
        except UnknownVertex as error:
            message = f"not a whole state: a contribution without an edge; {error}"
            raise ValueError(message) from error

    def _bury(self, src: Longs, dst: Longs, time: Longs) -> None:
        if len(src):
            self._adjacency.change_edges(
                src, dst, np.full(len(src), -1, np.int8), self._edge_lanes, EventTimes(time, NEVER)
            )

    def check_invariants(self, exchange: Exchange) -> None:
        """Recompute everything that is kept, from edges and contributions alone, and compare.

        All members must call it together. For tests and audits: it visits every edge.

        Raises
        ------
        InvariantViolated
            Naming every difference.
        """
        _, followed, _ = self._adjacency.edge_slots()
        followers: Longs | None = np.bincount(followed, minlength=len(self._vertices.id)).astype(np.int64)
        found: list[str] = []
        for ranking in self.rankings:
            influence = np.zeros(len(self._vertices.id), np.int64)
            ranking.spread(influence)
            told = ranking.ghost_message(self.epoch, influence, followers)
            for answer in self._swap(told, exchange):
                np.add.at(influence, self._adjacency.slots_of(answer.targets), answer.deltas)
                if followers is not None:
                    np.add.at(followers, self._adjacency.slots_of(answer.followed), answer.followers)
            if followers is not None:
                found += invariants.graph_violations(self._adjacency, followers, self._edge_lanes)
                found += invariants.time_violations(self._adjacency)
            influence[self._adjacency.ghost_slots()] = 0
            found += ranking.violations(influence)
            followers = None
        if found:
            message = f"partition {self.index} of {self.partitions}, epoch {self.epoch}: {'; '.join(found)}"
            raise InvariantViolated(message)


def _changes_of(
    links: Links,
    src: Longs,
    dst: Longs,
    op: npt.NDArray[np.int8],
    contributions: Contributions,
    times: EventTimes | None,
) -> Changes:
    """Return an epoch's net changes by external id, and of pairs with a time what is known now."""
    inserted, deleted = links.stated[op[links.stated] > 0], links.stated[op[links.stated] < 0]
    deleted_src, deleted_dst = src[deleted], dst[deleted]
    if times is None:
        return Changes(src[inserted], dst[inserted], deleted_src, deleted_dst, *contributions)
    forgotten_src, forgotten_dst = links.forgotten
    return Changes(
        src[inserted],
        dst[inserted],
        np.concatenate([deleted_src, forgotten_src]),
        np.concatenate([deleted_dst, forgotten_dst]),
        *contributions,
        times.time[inserted],
        np.concatenate([times.time[deleted], np.full(len(forgotten_src), NEVER)]),
        watermark=times.watermark,
    )


def warm_up() -> None:
    """Compile every kernel, or load it from numba's cache, on a tiny graph: seconds, or tenths of one."""
    src, dst = np.array([1, 2, 3, 1], np.int64), np.array([2, 3, 1, 3], np.int64)
    parameters = Parameters(retweet_probability=0.5, event_time=EventTime(window=3))

    def times(epoch: int, records: int) -> EventTimes:
        return EventTimes(np.full(records, epoch), epoch - 1)

    def work(index: int, exchange: Exchange) -> None:
        state = PartitionState(parameters, index, 2, threads=2)
        state.apply(1, src, dst, np.ones(4, np.int8), exchange, times(1, 4))
        state.apply(2, src, dst, np.array([-1, 1, 1, -1], np.int8), exchange, times(2, 4))
        restored = PartitionState(parameters, index, 2, execution="dense")
        restored.restore([state.capture_all()], exchange, 2)
        restored.apply(3, src[:1], dst[:1], np.ones(1, np.int8), exchange, times(6, 1))
        restored.check_invariants(exchange)

    together(2, work)

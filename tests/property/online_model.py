"""What the online tests compare with: a slow model of the same rounds, an exact solver, random streams."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import strategies as st

from graph_stream import execution
from graph_stream.algorithms import Parameters, Weights
from graph_stream.certificate import TOLERANCE_SLACK
from graph_stream.crowding import Crowding
from graph_stream.epoch import Summary, combine
from graph_stream.eventtime import NEVER, EventTimes
from graph_stream.graph import PartitionState
from graph_stream.ownership import virtual_range
from graph_stream.rounds import Exchange, run_members, together
from graph_stream.snapshot import Changes, decode, encode, fold, watermark_of

Record = tuple[int, int, int]
MASK = 2**64 - 1


def mix64(value: int) -> int:
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def pair_hash(seed: int, first: int, second: int) -> int:
    return mix64(mix64(first + seed) + mix64((second & MASK) ^ seed))


EDGE_SEEDS = (0x6A09E667F3BCC908, 0xBB67AE8584CAA73B)


class Model:
    """The rule and the rounds as the design states them, on dictionaries, sets and unbounded integers."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.weights = dict(zip(parameters.weights.vertex.tolist(), parameters.weights.weight.tolist(), strict=True))
        self.follows: dict[int, set[int]] = {}
        self.contribution: dict[int, int] = {}
        self.influence: dict[int, int] = {}

    def edges(self) -> set[tuple[int, int]]:
        return {(follower, followed) for follower, row in self.follows.items() for followed in row}

    def vertices(self) -> set[int]:
        return set(itertools.chain.from_iterable(self.edges()))

    def apply(self, records: Iterable[Record]) -> dict[str, int]:
        """Apply one epoch; return the counts an EpochResult has."""
        after = self.edges()
        total = self_loops = 0
        for follower, followed, op in records:
            total += 1
            if follower == followed:
                self_loops += 1
            elif op > 0:
                after.add((follower, followed))
            else:
                after.discard((follower, followed))
        counts = self.move_to(after)
        changed = counts["inserted"] + counts["deleted"]
        return {**counts, "unchanged": total - self_loops - changed, "self_loops": self_loops}

    def move_to(self, after: set[tuple[int, int]]) -> dict[str, int]:
        """Make these the edges, and run rounds until one does nothing; return what that has to do with edges."""
        before = self.edges()
        net = before ^ after
        old_rows = self.follows
        self.follows = {}
        for follower, followed in after:
            self.follows.setdefault(follower, set()).add(followed)
        frontier = {follower for follower, _ in net}
        rounds = emissions = 0
        activity = len(net)
        while True:
            emitted, frontier = self._round(frontier, old_rows)
            old_rows = self.follows
            rounds += 1
            emissions += emitted
            if not activity + emitted:
                break
            activity = 0
        return {
            "inserted": len(after - before),
            "deleted": len(before - after),
            "rounds": rounds,
            "emissions": emissions,
            "vertices": len(self.vertices()),
            "edges": len(after),
            "max_degree": max((len(row) for row in self.follows.values()), default=0),
        }

    def _round(self, frontier: set[int], old_rows: dict[int, set[int]]) -> tuple[int, set[int]]:
        emitted = 0
        new = {}
        for vertex in frontier:
            old = self.contribution.get(vertex, 0)
            new[vertex] = self.share(vertex)
            emitted += vertex in self.follows and new[vertex] != old
        before = dict(self.influence)
        for vertex, contribution in new.items():
            for followed in old_rows.get(vertex, ()):
                self.influence[followed] -= self.contribution[vertex]
            for followed in self.follows.get(vertex, ()):
                self.influence[followed] = self.influence.get(followed, 0) + contribution
            self.contribution[vertex] = contribution
        return emitted, {vertex for vertex, value in self.influence.items() if value != before.get(vertex, 0)}

    def share(self, vertex: int) -> int:
        degree = len(self.follows.get(vertex, ()))
        if degree == 0:
            return 0
        scale = 2.0**self.parameters.fixed_point_bits
        old = self.contribution.get(vertex, 0)
        base = self.weights.get(vertex, 1.0)
        due = base * scale + self.parameters.factor * float(self.influence.get(vertex, 0))
        if abs(float(degree) * float(old) - due) > base * (self.parameters.tolerance * scale):
            return round(due / float(degree))
        return old

    def state_hash(self) -> str:
        lanes = b""
        for lane, contribution_seed in enumerate((0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1)):
            total = sum(self.graph_hashes(lane))
            total += sum(pair_hash(contribution_seed, *item) for item in self.contribution.items() if item[1])
            lanes += (total & MASK).to_bytes(8, "little")
        return hashlib.blake2b(self.parameters.digest() + lanes + self.moment(), digest_size=16).hexdigest()

    def graph_hashes(self, lane: int) -> Iterable[int]:
        """Return what the graph adds to a lane of the hash."""
        return (pair_hash(EDGE_SEEDS[lane], *edge) for edge in self.edges())

    def moment(self) -> bytes:
        """Return what the hash has of the watermark."""
        return b""

    def largest_lags(self) -> tuple[Fraction, Fraction]:
        """Return the exact largest positive and negative lag."""
        scale = 2**self.parameters.fixed_point_bits
        p = Fraction(self.parameters.factor)
        bases = {vertex: Fraction(self.weights.get(vertex, 1.0)) for vertex in self.follows}
        lags = [
            1 + (p * self.influence.get(vertex, 0) - len(row) * self.contribution[vertex]) / scale / bases[vertex]
            for vertex, row in self.follows.items()
        ]
        return max([Fraction(0), *lags]), max([Fraction(0), *(-lag for lag in lags)])


def exact_influence(edges: Iterable[tuple[int, int]], p: float, weights: Weights | None = None) -> dict[int, float]:
    """Solve ``(Id - p*W^T) I = W^T b`` with a sparse factorisation; ``b`` is 1 where no weight says otherwise."""
    pairs = np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)
    if not len(pairs):
        return {}
    ids, flat = np.unique(pairs, return_inverse=True)
    follower, followed = flat.reshape(-1, 2).T
    degree = np.bincount(follower, minlength=len(ids))
    shape = (len(ids), len(ids))
    shares = scipy.sparse.csc_matrix((1.0 / degree[follower], (followed, follower)), shape=shape)
    identity = scipy.sparse.identity(len(ids), format="csc")
    influence = scipy.sparse.linalg.spsolve(identity - p * shares, shares @ (weights or Weights.none()).of(ids))
    return dict(zip(ids.tolist(), np.atleast_1d(influence).tolist(), strict=True))


class Run:
    """All members of a run in this process, and a few checks over them."""

    def __init__(self, parameters: Parameters, partitions: int = 1, threads: int = 1, execution: str = "auto") -> None:
        self.parameters = parameters
        self.states = [PartitionState(parameters, index, partitions, threads, execution) for index in range(partitions)]
        self.epoch = 0
        self.watermark = NEVER

    def apply(self, records: Sequence[tuple[int, ...]]) -> Summary:
        """Apply an epoch; with event time records have a fourth column, microseconds."""
        self.epoch += 1
        width = 3 if self.parameters.event_time is None else 4
        columns = np.array(records, dtype=np.int64).reshape(-1, width).T.copy()
        src, dst, op = columns[0], columns[1], columns[2].astype(np.int8)
        times = None if width == 3 else EventTimes(columns[3], self.watermark)
        if width == 4:
            self.watermark = max(self.watermark, *columns[3].tolist(), NEVER)
        return combine(run_members(self.states, self.epoch, src, dst, op, times), self.parameters)

    def scores(self) -> dict[int, float]:
        return dict(
            itertools.chain.from_iterable(
                zip(*(column.tolist() for column in state.scores()), strict=True) for state in self.states
            )
        )

    def check_invariants(self) -> None:
        together(len(self.states), lambda member, exchange: self.states[member].check_invariants(exchange))
        for state in self.states:
            edges = state.rows - state.vertices * len(state.rankings)
            assert edges <= len(state.capture_all()) <= state.rows


@contextlib.contextmanager
def always_threads() -> Iterator[None]:
    """Have threads share all work, also of tiny frontiers and on busy processors."""
    with patch.object(execution, "INLINE_SLOTS", 0), patch.object(Crowding, "look", lambda _: None):
        yield


def base_of(run: Run) -> bytes:
    """Return the state of all members as one snapshot object."""
    return encode(joined([state.capture_all() for state in run.states]), 1, run.epoch)


def merge(older: Changes, newer: Changes, base: bool) -> Changes:
    """Fold two adjacent ranges of epochs into one."""
    return Changes.of_rows(*fold([older, newer], base=base).rows, watermark_of([older, newer]))


def joined(parts: Sequence[Changes]) -> Changes:
    """Return the changes of several members, of one epoch, as one."""
    rows = zip(*(part.rows() for part in parts), strict=True)
    return Changes.of_rows(*(np.concatenate(columns) for columns in rows), parts[0].watermark)


def restored(
    run: Run, base: bytes, partitions: int, threads: int = 1, execution: str = "auto", kind: type[Run] = Run
) -> Run:
    """Return a new run at the epoch of another, every member having read its own share of one base object."""
    twin = kind(run.parameters, partitions, threads, execution)
    twin.epoch, twin.watermark = run.epoch, run.watermark

    def work(member: int, exchange: Exchange) -> None:
        twin.states[member].restore([decode(base, virtual_range(member, partitions))], exchange, run.epoch)

    together(partitions, work)
    return twin


def assert_within(
    scores: dict[int, float], exact: dict[int, float], e: float, solver: float = 1e-10, absolute: float = 0.0
) -> None:
    """Assert the certificate: every vertex known, and within ``e*X/(1-e)`` of the exact influence.

    The exact solver itself may be off by ``absolute`` and by the share ``solver``.
    """
    assert scores.keys() == exact.keys()
    for vertex, influence in scores.items():
        bound = e * influence / (1 - e) if e < 1 else np.inf
        off = abs(influence - exact[vertex])
        assert off <= bound + solver * exact[vertex] + absolute, (vertex, influence, exact[vertex], e)


def assert_tolerance_met(summary: Summary, tolerance: float) -> None:
    assert not summary.capped
    assert not summary.rounding_limited
    assert 0 <= summary.error_bound <= tolerance * (1 + TOLERANCE_SLACK)


parameters = st.builds(
    Parameters,
    retweet_probability=st.sampled_from([0.0, 0.00037, 0.5, 0.85, 0.95]),
    tolerance=st.sampled_from([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]),
)

IDS = [*range(11), -1, -(2**63), 2**63 - 1, 2**40 + 3]
_vertex = st.sampled_from(IDS)
_others = st.lists(_vertex, min_size=1, max_size=len(IDS), unique=True)
_op = st.sampled_from([1, 1, 1, -1])


def _star(centre: int, others: list[int], op: int) -> list[Record]:
    return [(centre, other, op) for other in others]


def _fans(centre: int, others: list[int], op: int) -> list[Record]:
    return [(other, centre, op) for other in others]


def _flap(centre: int, others: list[int], op: int) -> list[Record]:
    return [*_star(centre, others, op), *_star(centre, others[::2], -op), *_star(centre, others[::3], op)]


def _chain(centre: int, others: list[int], op: int) -> list[Record]:
    return [(follower, followed, op) for follower, followed in itertools.pairwise([centre, *others])]


_one = st.tuples(_vertex, _vertex, _op).map(lambda record: [record])
_many = st.builds(
    lambda shape, centre, others, op: shape(centre, others, op),
    st.sampled_from([_star, _fans, _flap, _chain]),
    _vertex,
    _others,
    _op,
)
epochs = st.lists(_one | _many, max_size=8).map(lambda parts: list(itertools.chain.from_iterable(parts)))
streams = st.lists(epochs, min_size=1, max_size=6)


def random_stream(seed: int, epochs: int, records: int, ids: int, deletes: float) -> list[list[Record]]:
    """Return a skewed stream; deletes hit earlier records, so most of them remove an edge."""
    random = np.random.default_rng(seed)
    seen: list[tuple[int, int]] = []
    stream = []
    for _ in range(epochs):
        pairs = (ids * random.random((records, 2)) ** 3).astype(np.int64).tolist()
        epoch: list[Record] = []
        for follower, followed in pairs:
            if seen and random.random() < deletes:
                epoch.append((*seen[random.integers(len(seen))], -1))
            else:
                seen.append((follower, followed))
                epoch.append((follower, followed, 1))
        stream.append(epoch)
    return stream

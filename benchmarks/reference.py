"""What the online tier is measured against: the same ranking without everything that makes it a service.

`ReferenceKernel` is compiled, has one thread and keeps all in memory: no ingest, processes, partitions, hash,
running certificate or checkpoint. `PlainRanking` is what one writes first: dictionaries and sets. Both keep the
same set of edges, delete, and follow the same rule in the same rounds, so they end in the same integers as a
run does (`fingerprint` is its ``state_hash``); neither shares code with it. `check` proves an answer from
nothing but edges and contributions.

The reference kernel is given what no stream has: vertices are 0 .. n-1, known beforehand, and serve as places
in its arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from graph_stream.algorithms import Parameters
from graph_stream.statehash import contribution_lanes, edge_lanes, state_hash

Longs = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]
Signs = npt.NDArray[np.int8]

_LIST_BITS = 3  # Rows of up to 8 are lists, longer ones hash sets.
_SIZES = 40
_EMPTY = -1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio

# Not cached: this module goes by two names, and a cached function only finds the one it was compiled under.
_compiled = numba.njit(nogil=True, error_model="numpy")


class OutOfRoom(Exception):
    """The rows need more room than was reserved."""


class WrongState(Exception):
    """A state contradicts itself, or its error passes the tolerance."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """A ranking and the graph it is of, without vertices that have no edge.

    ``influence`` and ``contribution`` (per vertex, in the order of ``vertex``) are fixed point, as in a run.
    """

    vertex: Longs
    influence: Longs
    contribution: Longs
    follower: Longs
    followed: Longs


class ReferenceKernel:
    """The reference kernel.

    Parameters
    ----------
    parameters : Parameters
        What to compute.
    vertices : int
        Ids are below it.
    room : int
        Row entries to reserve; memory is taken as it is used.
    """

    def __init__(self, parameters: Parameters, vertices: int, room: int) -> None:
        self._probability = float(parameters.retweet_probability)
        self._threshold = parameters.tolerance * parameters.scale
        self._scale = parameters.scale
        self._influence = np.zeros(vertices, np.int64)
        self._contribution = np.zeros(vertices, np.int64)
        self._degree = np.zeros(vertices, np.int32)
        self._row = np.zeros(vertices, np.int64)
        self._bits = np.zeros(vertices, np.int8)
        self._arena = np.empty(room, np.int32)
        self._free = np.full(_SIZES, -1, np.int64)
        self._end = np.zeros(1, np.int64)
        self._touched = np.zeros(vertices, np.bool_)
        self._frontier = np.empty(vertices, np.int32)
        self._emitters = np.empty(vertices, np.int32)
        self._deltas = np.empty(vertices, np.int64)

    def apply(self, src: Longs, dst: Longs, op: Signs) -> int:
        """Apply one epoch's records in order and run the rounds; return how many.

        Raises
        ------
        OutOfRoom
            The state is not to be used again.
        """
        changed, given = np.empty(len(src), np.int32), np.empty(len(src), np.int64)
        listed, changes = _link(
            src,
            dst,
            op,
            self._contribution,
            self._degree,
            self._row,
            self._bits,
            self._arena,
            self._free,
            self._end,
            self._touched,
            self._frontier,
            changed,
            given,
        )
        if changes < 0:
            message = f"{len(self._arena):,} row entries are not enough"
            raise OutOfRoom(message)
        return int(
            _rounds(
                listed,
                changed[:changes],
                given,
                self._probability,
                self._threshold,
                self._scale,
                self._influence,
                self._contribution,
                self._degree,
                self._row,
                self._bits,
                self._arena,
                self._touched,
                self._frontier,
                self._emitters,
                self._deltas,
            )
        )

    def answer(self) -> Answer:
        """Return the state."""
        count = int(self._degree.sum())
        follower, followed = np.empty(count, np.int64), np.empty(count, np.int64)
        _edges(self._degree, self._row, self._bits, self._arena, follower, followed)
        vertex = np.union1d(follower, followed)
        return Answer(vertex, self._influence[vertex], self._contribution[vertex], follower, followed)


@_compiled
def _home(followed: int, bits: int) -> int:
    return np.int64((np.uint64(followed) * np.uint64(_GOLDEN)) >> np.uint64(64 - bits))


@_compiled
def _row_end(row: int, bits: int, degree: int) -> int:
    return row + degree if bits <= _LIST_BITS else row + (1 << bits)


@_compiled
def _find(arena: Slots, row: int, bits: int, degree: int, followed: int) -> int:
    """Return where a row holds an entry, or -1."""
    if bits <= _LIST_BITS:
        for place in range(row, row + degree):
            if arena[place] == followed:
                return place
        return -1
    mask = (1 << bits) - 1
    offset = _home(followed, bits)
    while arena[row + offset] != followed:
        if arena[row + offset] == _EMPTY:
            return -1
        offset = (offset + 1) & mask
    return row + offset


@_compiled
def _put(arena: Slots, row: int, bits: int, degree: int, followed: int) -> None:
    if bits <= _LIST_BITS:
        arena[row + degree] = followed
        return
    mask = (1 << bits) - 1
    offset = _home(followed, bits)
    while arena[row + offset] != _EMPTY:
        offset = (offset + 1) & mask
    arena[row + offset] = followed


@_compiled
def _drop(arena: Slots, row: int, bits: int, degree: int, place: int) -> None:
    """Remove an entry; ``degree`` counts it still."""
    if bits <= _LIST_BITS:
        arena[place] = arena[row + degree - 1]
        return
    mask = (1 << bits) - 1
    hole = offset = place - row
    while True:
        offset = (offset + 1) & mask
        entry = arena[row + offset]
        if entry == _EMPTY:
            break
        if ((offset - _home(entry, bits)) & mask) >= ((offset - hole) & mask):
            arena[row + hole] = entry
            hole = offset
    arena[row + hole] = _EMPTY


@_compiled
def _is_full(bits: int, degree: int) -> bool:
    return degree >= (1 << bits) if bits <= _LIST_BITS else 4 * degree >= 3 * (1 << bits)


@_compiled
def _longer(arena: Slots, free: Longs, end: Longs, row: int, bits: int, degree: int) -> int:
    """Move a row to one twice as long and return its start; -1 where there is no room."""
    wider = bits + 1
    start = free[wider]
    if start >= 0:
        free[wider] = np.int64(arena[start]) * 2 if arena[start] >= 0 else -1
    else:
        start = end[0]
        if start + (1 << wider) > len(arena):
            return -1
        end[0] += 1 << wider
    if wider > _LIST_BITS:
        for place in range(start, start + (1 << wider)):
            arena[place] = _EMPTY
    moved = 0
    for place in range(row, _row_end(row, bits, degree)):
        if arena[place] != _EMPTY:
            _put(arena, start, wider, moved, arena[place])
            moved += 1
    if bits > 0:
        # Rows begin at even places: half of one fits an entry.
        arena[row] = free[bits] // 2 if free[bits] >= 0 else _EMPTY
        free[bits] = row
    return start


@_compiled
def _link(
    src: Longs,
    dst: Longs,
    op: Signs,
    contribution: Longs,
    degree: Slots,
    row: Longs,
    bits: Signs,
    arena: Slots,
    free: Longs,
    end: Longs,
    touched: npt.NDArray[np.bool_],
    frontier: Slots,
    changed: Slots,
    given: Longs,
) -> tuple[int, int]:
    """Bring the edges to the state the records ask for.

    Returns
    -------
    listed, changes : int
        Followers written to ``frontier``; entries of ``changed`` and ``given``, what the followed get for it.
        What was inserted and deleted again adds up to nothing.
    """
    listed = 0
    changes = 0
    for i in range(len(src)):
        follower, followed = src[i], dst[i]
        if follower == followed:
            continue
        place = np.int64(-1)
        if bits[follower] > 0:
            place = _find(arena, row[follower], np.int64(bits[follower]), np.int64(degree[follower]), followed)
        if (op[i] > 0) == (place >= 0):
            continue
        if op[i] > 0:
            if bits[follower] == 0 or _is_full(np.int64(bits[follower]), np.int64(degree[follower])):
                start = _longer(arena, free, end, row[follower], np.int64(bits[follower]), np.int64(degree[follower]))
                if start < 0:
                    return 0, -1
                row[follower] = start
                bits[follower] += 1
            _put(arena, row[follower], np.int64(bits[follower]), np.int64(degree[follower]), followed)
            degree[follower] += 1
            given[changes] = contribution[follower]
        else:
            _drop(arena, row[follower], np.int64(bits[follower]), np.int64(degree[follower]), place)
            degree[follower] -= 1
            given[changes] = -contribution[follower]
        changed[changes] = followed
        changes += 1
        if not touched[follower]:
            touched[follower] = True
            frontier[listed] = follower
            listed += 1
    return listed, changes


@_compiled
def _rounds(
    listed: int,
    changed: Slots,
    given: Longs,
    probability: float,
    threshold: float,
    scale: float,
    influence: Longs,
    contribution: Longs,
    degree: Slots,
    row: Longs,
    bits: Signs,
    arena: Slots,
    touched: npt.NDArray[np.bool_],
    frontier: Slots,
    emitters: Slots,
    deltas: Longs,
) -> int:
    rounds = 0
    while True:
        emitted = 0
        for i in range(listed):
            vertex = frontier[i]
            touched[vertex] = False
            old = contribution[vertex]
            if degree[vertex] == 0:
                contribution[vertex] = 0
                continue
            due = scale + probability * np.float64(influence[vertex])
            if abs(np.float64(degree[vertex]) * np.float64(old) - due) > threshold:
                new = np.int64(np.rint(due / np.float64(degree[vertex])))
                if new != old:
                    contribution[vertex] = new
                    emitters[emitted] = vertex
                    deltas[emitted] = new - old
                    emitted += 1
        listed = 0
        if rounds == 0:
            for i in range(len(changed)):
                if given[i] != 0:
                    influence[changed[i]] += given[i]
                    if not touched[changed[i]]:
                        touched[changed[i]] = True
                        frontier[listed] = changed[i]
                        listed += 1
        for i in range(emitted):
            vertex = emitters[i]
            delta = deltas[i]
            for place in range(row[vertex], _row_end(row[vertex], np.int64(bits[vertex]), np.int64(degree[vertex]))):
                followed = arena[place]
                if followed >= 0:
                    influence[followed] += delta
                    if not touched[followed]:
                        touched[followed] = True
                        frontier[listed] = followed
                        listed += 1
        rounds += 1
        if listed == 0:
            return rounds


@_compiled
def _edges(degree: Slots, row: Longs, bits: Signs, arena: Slots, follower: Longs, followed: Longs) -> None:
    count = 0
    for vertex in range(len(degree)):
        if degree[vertex] > 0:
            for place in range(row[vertex], _row_end(row[vertex], np.int64(bits[vertex]), np.int64(degree[vertex]))):
                if arena[place] >= 0:
                    follower[count] = vertex
                    followed[count] = arena[place]
                    count += 1


class PlainRanking:
    """The same ranking on dictionaries and sets, as one writes it first."""

    def __init__(self, parameters: Parameters) -> None:
        self._probability = parameters.retweet_probability
        self._threshold = parameters.tolerance * parameters.scale
        self._scale = parameters.scale
        self._follows: dict[int, set[int]] = {}
        self._influence: dict[int, int] = {}
        self._contribution: dict[int, int] = {}

    def apply(self, records: Iterable[tuple[int, int, int]]) -> int:
        """Apply one epoch's records (follower, followed, +1 or -1) and run the rounds; return how many."""
        follows, influence, contribution = self._follows, self._influence, self._contribution
        frontier: set[int] = set()
        given: list[tuple[int, int]] = []
        for follower, followed, op in records:
            if follower == followed:
                continue
            row = follows.setdefault(follower, set())
            if (op > 0) == (followed in row):
                continue
            if op > 0:
                row.add(followed)
                given.append((followed, contribution.get(follower, 0)))
            else:
                row.remove(followed)
                given.append((followed, -contribution.get(follower, 0)))
            frontier.add(follower)
        rounds = 0
        while True:
            emissions: list[tuple[int, int]] = []
            for vertex in frontier:
                degree = len(follows.get(vertex, ()))
                if not degree:
                    contribution[vertex] = 0
                    continue
                old = contribution.get(vertex, 0)
                due = self._scale + self._probability * influence.get(vertex, 0)
                if abs(float(degree) * old - due) > self._threshold:
                    new = round(due / degree)
                    if new != old:
                        contribution[vertex] = new
                        emissions.append((vertex, new - old))
            frontier = set()
            for followed, delta in given:
                if delta:
                    influence[followed] = influence.get(followed, 0) + delta
                    frontier.add(followed)
            given = []
            for vertex, delta in emissions:
                for followed in follows[vertex]:
                    influence[followed] = influence.get(followed, 0) + delta
                frontier |= follows[vertex]
            rounds += 1
            if not frontier:
                return rounds

    def answer(self) -> Answer:
        """Return the state."""
        pairs = [(follower, followed) for follower, row in self._follows.items() for followed in row]
        edges = np.array(pairs, np.int64).reshape(-1, 2)
        vertex = np.unique(edges)
        return Answer(
            vertex,
            np.array([self._influence.get(each, 0) for each in vertex.tolist()], np.int64),
            np.array([self._contribution.get(each, 0) for each in vertex.tolist()], np.int64),
            edges[:, 0].copy(),
            edges[:, 1].copy(),
        )


# --- judging an answer ------------------------------------------------------------------------------------


def check(answer: Answer, parameters: Parameters) -> float:
    """Recompute influence and every lag from edges and contributions; return the certificate e.

    Raises
    ------
    WrongState
        If influence is not the sum of contributions, an edge occurs twice, or e passes the tolerance by more
        than float64 rounds.
    """
    order = np.lexsort((answer.followed, answer.follower))
    ordered = answer.follower[order], answer.followed[order]
    if np.any((ordered[0][1:] == ordered[0][:-1]) & (ordered[1][1:] == ordered[1][:-1])):
        message = "an edge occurs twice"
        raise WrongState(message)
    follower = np.searchsorted(answer.vertex, answer.follower)
    followed = np.searchsorted(answer.vertex, answer.followed)
    influence = np.zeros(len(answer.vertex), np.int64)
    np.add.at(influence, followed, answer.contribution[follower])
    if not np.array_equal(influence, answer.influence):
        message = f"the influence of {np.count_nonzero(influence != answer.influence)} vertices is no sum of shares"
        raise WrongState(message)
    degree = np.bincount(follower, minlength=len(answer.vertex))
    due = parameters.scale + parameters.retweet_probability * influence.astype(np.float64)
    lag = np.abs(due - degree * answer.contribution.astype(np.float64))[degree > 0] / parameters.scale
    e = float(lag.max(initial=0.0))
    if e > parameters.tolerance * (1 + 2.0**-20):
        message = f"the largest lag is {e:.3e}, the tolerance {parameters.tolerance:.3e}"
        raise WrongState(message)
    return e


def fingerprint(answer: Answer, parameters: Parameters) -> str:
    """Return the ``state_hash`` that a run in this state publishes."""
    lanes = np.zeros(2, np.uint64)
    _sum_lanes(answer.follower, answer.followed, answer.vertex, answer.contribution, lanes)
    return state_hash(parameters, [(int(lanes[0]), int(lanes[1]))])


@_compiled
def _sum_lanes(follower: Longs, followed: Longs, vertex: Longs, contribution: Longs, lanes: Any) -> None:
    for i in range(len(follower)):
        low, high = edge_lanes(follower[i], followed[i])
        lanes[0] += low
        lanes[1] += high
    for i in range(len(vertex)):
        low, high = contribution_lanes(vertex[i], contribution[i])
        lanes[0] += low
        lanes[1] += high

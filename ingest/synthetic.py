"""R-MAT streams: a skewed random graph as a source, every record a pure function of the seed and its index.

The graph is that of Chakrabarti, Zhan and Faloutsos, "R-MAT: a recursive model for graph mining" (SDM 2004),
with the customary a, b, c = 0.57, 0.19, 0.19: each bit of (src, dst) falls into one of four quadrants. The
randomness is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): record i
hashes (seed, i) and needs no record before it, so the stream can be entered anywhere and the position is the
index.

Exactly-once capable. Self-loops and repeated edges occur, as they do in real streams.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ingest.jit import compiled
from ingest.reader import Chunk, ChunkedReader, Chunks
from ingest.source import Int8s, Int64s, JsonValue, Records

MAX_SCALE: Final = 62
CHUNK_RECORDS: Final = 16 * 1024
SPLIT: Final = "rmat"

_A, _B, _C = 0.57, 0.19, 0.19
_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: steps of it spread evenly over 64 bits
_DELETE_DRAW, _TARGET_DRAW = 64, 65  # draws 0 to 61 are for the bits of the edge
_MAX_TARGET_DRAWS = 64


@dataclass(frozen=True, slots=True)
class Rmat:
    """The parameters of an R-MAT stream.

    Attributes
    ----------
    scale
        There are 2^scale vertices, 0 to 2^scale - 1; 1 to `MAX_SCALE`.
    edges
        The number of records, inserts and deletes together.
    seed
        Any integer from 0 to 2^63 - 1.
    deletes
        The share of records that delete, 0 <= deletes < 1. A delete names the edge of an insert anywhere
        before it in the stream, drawn evenly; that edge may have been deleted already.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """

    scale: int
    edges: int
    seed: int = 0
    deletes: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            f"scale must be from 1 to {MAX_SCALE}, not {self.scale}": 1 <= self.scale <= MAX_SCALE,
            f"edges must be from 0 to 2^63 - 1, not {self.edges}": 0 <= self.edges < 2**63,
            f"seed must be from 0 to 2^63 - 1, not {self.seed}": 0 <= self.seed < 2**63,
            f"deletes must be at least 0 and less than 1, not {self.deletes}": 0 <= self.deletes < 1,
        }
        for message, holds in ranges.items():
            if not holds:
                raise ValueError(message)

    def records(self, start: int, stop: int) -> Records:
        """Return the records with indices from `start` up to `stop`, both within the stream."""
        n = stop - start
        src, dst, op = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int8)
        _fill(self.seed, start, self.scale, self.deletes, src, dst, op)
        return Records(src, dst, op, None)


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """An R-MAT stream as a source of one split."""

    uri: str
    rmat: Rmat

    @property
    def bounded(self) -> bool:
        """The stream ends after `Rmat.edges` records."""
        return True

    def splits(self) -> list[str]:
        """Return the name of the only split."""
        return [SPLIT]

    def open(self, split: str, position: JsonValue | None, until: JsonValue | None = None) -> ChunkedReader:
        """Open the stream at an index; see `ingest.source.Source.open`."""
        start = 0 if position is None else int(position)
        return ChunkedReader(self._chunks(start), start, False, until)

    def settle(self) -> None:
        """Settle nothing: the parameters say it all; see `ingest.source.Source.settle`."""

    def close(self) -> None:
        """Do nothing: only readers hold something open."""

    def _chunks(self, position: int) -> Chunks:
        for start in range(position, self.rmat.edges, CHUNK_RECORDS):
            stop = min(start + CHUNK_RECORDS, self.rmat.edges)
            index = np.arange(start, stop)
            yield Chunk(self.rmat.records(start, stop), index, index + 1)


@compiled
def _mix(word: np.uint64) -> np.uint64:
    """Spread a word over 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled
def _draw(state: np.uint64, number: int) -> np.uint64:
    """Return the 64 random bits with this number of the record whose state this is."""
    return _mix(state + np.uint64(number) * np.uint64(_STEP))


@compiled
def _uniform(word: np.uint64) -> float:
    """Turn 64 random bits into a float64 in [0, 1)."""
    return float(word >> np.uint64(11)) * 2.0**-53


@compiled
def _state(seed: int, index: int) -> np.uint64:
    return _mix(_mix(np.uint64(seed) + np.uint64(_STEP)) ^ np.uint64(index))


@compiled
def _is_delete(state: np.uint64, index: int, deletes: float) -> bool:
    return index > 0 and _uniform(_draw(state, _DELETE_DRAW)) < deletes


@compiled
def _target(seed: int, state: np.uint64, index: int, deletes: float) -> int:
    """Return the index of the insert a delete undoes."""
    for attempt in range(_MAX_TARGET_DRAWS):
        earlier = int(_draw(state, _TARGET_DRAW + attempt) % np.uint64(index))
        if not _is_delete(_state(seed, earlier), earlier, deletes):
            return earlier
    return 0  # the first record is always an insert


@compiled
def _fill(seed: int, start: int, scale: int, deletes: float, src: Int64s, dst: Int64s, op: Int8s) -> None:
    for i in range(src.size):
        index = start + i
        state = _state(seed, index)
        op[i] = 1
        if _is_delete(state, index, deletes):
            op[i] = -1
            state = _state(seed, _target(seed, state, index, deletes))
        row = column = 0
        for bit in range(scale):
            quadrant = _uniform(_draw(state, bit))
            down = quadrant >= _A + _B
            right = quadrant >= _A + _B + _C if down else quadrant >= _A
            row = row << 1 | down
            column = column << 1 | right
        src[i], dst[i] = row, column

"""What event time is compared with: its definition, which forgets nothing, and streams that come out of order."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from graph_stream.algorithms import Parameters
from graph_stream.eventtime import NEVER, EventTime
from tests.property.online_model import EDGE_SEEDS, MASK, Model, mix64, pair_hash

TimedRecord = tuple[int, int, int, int]
"""Follower, followed, operation, time in microseconds."""
TimedStream = list[list[TimedRecord]]
Pair = tuple[int, int]

TIME_SEEDS = (0x510E527FADE682D1, 0x9B05688C2B3E6C1F)
TOMBSTONE_SEEDS = (0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179)


class TimedModel(Model):
    """The definition: of each pair, the record of the greatest (time, epoch, position) among all that were not late.

    The edge is there if that record is an insert and its time is within the window. No record is ever forgotten,
    and there are no tombstones: which ones a run has to have is read off the deletes that stand.
    """

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        assert parameters.event_time is not None
        self.event_time: EventTime = parameters.event_time
        self.stands: dict[Pair, tuple[int, int, int, int]] = {}
        self.watermark = NEVER
        self.used_watermark = NEVER
        self.epoch = 0

    def apply(self, records: Iterable[TimedRecord]) -> dict[str, int]:
        """Apply one epoch; return the counts an EpochResult has."""
        self.epoch += 1
        self.used_watermark = self.watermark
        before = self.edges()
        total = self_loops = late = 0
        for position, (follower, followed, op, time) in enumerate(records):
            total += 1
            self.watermark = max(self.watermark, time)
            if follower == followed:
                self_loops += 1
                continue
            late += self._is_late(time) or self._is_past_the_window(time)
            if not self._is_late(time):
                told = (time, self.epoch, position, op)
                self.stands[follower, followed] = max(self.stands.get((follower, followed), told), told)
        after = {
            pair for pair, (time, _, _, op) in self.stands.items() if op > 0 and not self._is_past_the_window(time)
        }
        counts = self.move_to(after)
        expired = sum(pair not in self.tombstones() for pair in before - after)
        changed = counts["inserted"] + counts["deleted"] - expired
        return {
            **counts,
            "unchanged": total - self_loops - late - changed,
            "self_loops": self_loops,
            "late": late,
            "expired": expired,
            "tombstones": len(self.tombstones()),
        }

    def _is_late(self, time: int) -> bool:
        lateness = self.event_time.allowed_lateness
        return self.used_watermark != NEVER and lateness is not None and time < self.used_watermark - lateness

    def _is_past_the_window(self, time: int) -> bool:
        window = self.event_time.window
        return self.used_watermark != NEVER and window is not None and time <= self.used_watermark - window

    def tombstones(self) -> dict[Pair, int]:
        """Return the deletes that an insert, which is not late, could come before."""
        return {
            pair: time
            for pair, (time, _, _, op) in self.stands.items()
            if op < 0 and not self._is_late(time) and not self._is_past_the_window(time)
        }

    def graph_hashes(self, lane: int) -> Iterable[int]:
        """Return what edges and tombstones, with their times, add to a lane of the hash."""
        timed = [(edge, self.stands[edge][0], TIME_SEEDS[lane]) for edge in self.edges()]
        timed += [(pair, time, TOMBSTONE_SEEDS[lane]) for pair, time in self.tombstones().items()]
        for pair, time, seed in timed:
            yield mix64(pair_hash(EDGE_SEEDS[lane], *pair) + mix64((time & MASK) ^ seed))

    def moment(self) -> bytes:
        """Return what the hash has of the watermark."""
        return self.used_watermark.to_bytes(8, "little", signed=True)


event_times = st.builds(
    EventTime,
    window=st.sampled_from([1, 7, 20, 100]),
    allowed_lateness=st.sampled_from([None, 0, 3, 20, 1000]),
) | st.builds(EventTime, allowed_lateness=st.sampled_from([0, 3, 20, 1000]))

timed_parameters = st.builds(
    Parameters,
    retweet_probability=st.sampled_from([0.0, 0.00037, 0.5, 0.95]),
    tolerance=st.sampled_from([1e-1, 1e-3, 1e-5]),
    event_time=event_times,
)

_ids = st.integers(0, 4) | st.sampled_from([-(2**63), 2**63 - 1])
# Few times, so that many are equal, around a clock that goes on by about a window.
_offsets = st.integers(-12, 4) | st.integers(-40, 10)
_steps = st.sampled_from([0, 1, 5, 5, 5, 30, 5000])


@st.composite
def timed_streams(draw: st.DrawFn) -> TimedStream:
    """Draw epochs whose records come late, early, twice, and deletes before the inserts they undo."""
    clock = draw(st.sampled_from([0, -25, 10**15]))
    stream = []
    for _ in range(draw(st.integers(1, 7))):
        clock += draw(_steps)
        operations = st.sampled_from([1, 1, -1])
        records = draw(st.lists(st.tuples(_ids, _ids, operations, _offsets), max_size=12))
        stream.append([(follower, followed, op, clock + offset) for follower, followed, op, offset in records])
    return stream

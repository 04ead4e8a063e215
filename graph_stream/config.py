"""What a run was asked to do: recorded once at its start, and from then on the same in every resume."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graph_stream.algorithms import ALGORITHMS, Parameters, Weights
from graph_stream.errors import ConfigError
from graph_stream.eventtime import EventTime
from graph_stream.personalization import NamedWeights, read_named_weights, read_weights, sha256_of
from graph_stream.targets import Target, absolute
from ingest import IDLE_SECONDS, IDS, ON_LOST_OFFSET

CHECKPOINTS = ("none", "async", "sync")
MIN_EPOCH_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The options of a run; JSON by way of `to_json`.

    Attributes
    ----------
    sources : tuple of str
        Where the records come from: URIs, or absolute paths.
    columns : str
        Meaning of the columns, such as ``src,dst``.
    algorithm : tuple of str
        What is computed, one ranking or several over the same graph; the first is what readers get unasked.
    retweet_probability, damping, tolerance : float
        ``p`` of TunkRank and of PageRank, and the relative error to work down to.
    personalization, personalization_sha256 : str or None
        File with weights of vertices for PageRank, and the digest of its content.
    checkpoint : {"none", "async", "sync"}
        When an epoch becomes durable.
    checkpoint_every : int
        Epochs between two deltas of the graph; offsets are written with each epoch.
    epoch_edges : int
        Records of an epoch.
    epochs : int or None
        Stop after so many epochs.
    rate : float or None
        Records per second at which epochs are scheduled; None: as fast as they can be read.
    partitions, threads : int
        Actors that share the graph, and threads inside each.
    batch_every : int or None
        Epochs between two offline batches.
    keep_epochs : int
        Newest committed epochs that stay readable.
    max_bad_records : int or None
        How many records may be unreadable before the run stops.
    window, allowed_lateness : float or None
        Seconds after its time at which an edge expires, and how much older than the watermark a record may be. One
        of them is enough for event time, which needs the column ``time``.
    epoch_seconds : float or None
        Epochs close at multiples of so many seconds, unless they are full before; None: only when full.
    epoch_event_seconds : float or None
        Epochs close where event time has passed a multiple of so many seconds in every source and split; None: whatever
        the records say. Needs the column ``time``.
    idle_seconds : float
        With ``epoch_event_seconds``, after how many seconds a silent live split is not waited for.
    target_staleness : float or None
        Seconds within which a record shall be in an answer, from when it could be read: epochs are as large as that
        allows, ``epoch_edges`` at most. None: whenever its epoch is full.
    on_lost_offset : {"fail", "skip"}
        What to do where a source has not kept what was to be read next, or a file that arrived cannot be read.
    settled : mapping
        What sources settled when the run began, by URI: not asked for, but found, and the same in every resume.
    publish : tuple of str
        Where each committed epoch is published to; see `graph_stream.targets`.
    ids : {"int64", "string"}
        What vertices are known by: numbers, or names (`graph_stream.naming`).

    Raises
    ------
    ConfigError
        From `checked`: an option has a value it cannot have.
    """

    sources: tuple[str, ...]
    columns: str = "src,dst"
    algorithm: tuple[str, ...] = ("tunkrank",)
    retweet_probability: float = 0.00037
    tolerance: float = 1e-3
    checkpoint: str = "async"
    checkpoint_every: int = 1
    epoch_edges: int = 10_000
    epochs: int | None = None
    rate: float | None = None
    partitions: int = 1
    threads: int = 1
    batch_every: int | None = None
    keep_epochs: int = 100
    max_bad_records: int | None = None
    damping: float = 0.85
    personalization: str | None = None
    personalization_sha256: str | None = None
    window: float | None = None
    allowed_lateness: float | None = None
    epoch_seconds: float | None = None
    epoch_event_seconds: float | None = None
    idle_seconds: float = IDLE_SECONDS
    target_staleness: float | None = None
    on_lost_offset: str = "fail"
    settled: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    publish: tuple[str, ...] = ()
    ids: str = "int64"

    def __post_init__(self) -> None:
        if isinstance(self.algorithm, str):
            object.__setattr__(self, "algorithm", (self.algorithm,))

    def checked(self) -> RunConfig:
        """Return the configuration with sources made absolute; raises ConfigError."""
        if not self.sources:
            message = "no source: name at least one file, folder or URI"
            raise ConfigError(message)
        if self.checkpoint not in CHECKPOINTS:
            message = f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {self.checkpoint!r}"
            raise ConfigError(message)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                message = f"{name.replace('_', '-')} must be at least {least}, got {value}"
                raise ConfigError(message)
        self._check_rate()
        for name in ("epoch_seconds", "epoch_event_seconds", "target_staleness"):
            seconds = getattr(self, name)
            if seconds is not None and not MIN_EPOCH_SECONDS <= seconds < math.inf:
                message = f"{name.replace('_', '-')} must be at least {MIN_EPOCH_SECONDS}, got {seconds}"
                raise ConfigError(message)
        if self.epoch_seconds is not None and self.target_staleness is not None:
            message = "--target-staleness and --epoch-seconds both say when epochs close: give one of them"
            raise ConfigError(message)
        self._check_event_seconds()
        if self.on_lost_offset not in ON_LOST_OFFSET:
            message = f"on-lost-offset must be one of {', '.join(ON_LOST_OFFSET)}, got {self.on_lost_offset!r}"
            raise ConfigError(message)
        if self.ids not in IDS:
            message = f"ids must be one of {', '.join(IDS)}, got {self.ids!r}"
            raise ConfigError(message)
        if self.partitions > 256:
            message = f"partitions must be at most 256, got {self.partitions}"
            raise ConfigError(message)
        if self.has_event_time and not self._has_time_column:
            message = f"--window and --allowed-lateness need a time column: --columns has {self.columns}"
            raise ConfigError(message)
        if not self.algorithm or len(set(self.algorithm)) < len(self.algorithm):
            message = f"name each algorithm once, not {', '.join(self.algorithm) or 'none'}"
            raise ConfigError(message)
        made = dataclasses.replace(self, publish=tuple(absolute(each) for each in self.publish))
        made._check_publishing()
        if self.personalization is not None:
            path = _absolute(self.personalization)
            made = dataclasses.replace(made, personalization=path, personalization_sha256=sha256_of(path))
            if "pagerank" not in self.algorithm:
                message = "--personalization needs --algorithm pagerank"
                raise ConfigError(message)
        try:
            made.parameters()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return dataclasses.replace(made, sources=tuple(_absolute(source) for source in self.sources))

    def parameters(self) -> tuple[Parameters, ...]:
        """Return what the online computation depends on, ranking by ranking; raises ValueError, ConfigError."""
        event_time = EventTime.of_seconds(self.window, self.allowed_lateness)
        weights = Weights.none()
        if self.personalization is not None and self.personalization_sha256 is not None:
            named = self.named_weights()
            digest = self.personalization_sha256
            weights = read_weights(self.personalization, digest) if named is None else named.weights
        return tuple(
            Parameters(
                name,
                self.retweet_probability,
                self.tolerance,
                damping=self.damping,
                weights=weights if ALGORITHMS[name].weighted else Weights.none(),
                event_time=event_time,
            )
            for name in self._known_algorithms()
        )

    def named_weights(self) -> NamedWeights | None:
        """Return the weights of vertices that are known by names, None where there are none; raises ConfigError."""
        if self.personalization is None or self.personalization_sha256 is None or not self.has_names:
            return None
        return read_named_weights(self.personalization, self.personalization_sha256)

    @property
    def is_paced(self) -> bool:
        """Whether epochs close by a schedule."""
        # With a target of staleness it is records that keep to the rate, not epochs.
        return (self.rate is not None and self.target_staleness is None) or self.epoch_seconds is not None

    @property
    def has_names(self) -> bool:
        """Whether vertices are known by names."""
        return self.ids == "string"

    @property
    def has_event_time(self) -> bool:
        """Whether records count by their times."""
        return self.window is not None or self.allowed_lateness is not None

    @property
    def _has_time_column(self) -> bool:
        return "time" in (name.strip() for name in self.columns.split(","))

    def _check_event_seconds(self) -> None:
        if self.epoch_event_seconds is None:
            if self.idle_seconds != IDLE_SECONDS:
                message = "--idle-seconds says when --epoch-event-seconds does not wait: give both"
                raise ConfigError(message)
            return
        if not self._has_time_column:
            message = f"--epoch-event-seconds needs a time column: --columns has {self.columns}"
            raise ConfigError(message)
        if not 0 <= self.idle_seconds < math.inf:
            message = f"idle-seconds must be at least 0, got {self.idle_seconds}"
            raise ConfigError(message)

    def with_rate(self, rate: float) -> RunConfig:
        """Return the options at another pace; raises ConfigError."""
        made = dataclasses.replace(self, rate=rate)
        made._check_rate()
        return made

    def _check_rate(self) -> None:
        if self.rate is not None and not 0 < self.rate < math.inf:
            message = f"rate must be above 0 records per second, got {self.rate}"
            raise ConfigError(message)
        if self.epoch_seconds is not None and self.rate is not None:
            message = "--rate and --epoch-seconds are two schedules: give one of them"
            raise ConfigError(message)
        if self.epoch_event_seconds is not None and self.rate is not None and self.target_staleness is None:
            message = "--rate schedules full epochs: it goes with --epoch-event-seconds only by --target-staleness"
            raise ConfigError(message)

    def targets(self) -> tuple[Target, ...]:
        """Return where epochs are published to, and which changes; raises ConfigError."""
        return tuple(Target.parse(uri, self._known_algorithms()) for uri in self.publish)

    def _check_publishing(self) -> None:
        places = [target.place for target in self.targets()]
        if len(set(places)) < len(places):
            message = f"publish to each place once, not {', '.join(places)}"
            raise ConfigError(message)
        if places and self.checkpoint == "none":
            message = "--publish needs --checkpoint async or sync: without, no epoch is committed before the end"
            raise ConfigError(message)
        if places and self.checkpoint_every != 1:
            message = "--publish needs --checkpoint-every 1: what an epoch changed is kept with its delta"
            raise ConfigError(message)

    def ranking_of(self, algorithm: str | None) -> int:
        """Return the number of the ranking by an algorithm, of the first for None.

        Raises
        ------
        ConfigError
            When the run does not compute it.
        """
        if algorithm is None:
            return 0
        if algorithm not in self.algorithm:
            message = f"this run computes {', '.join(self.algorithm)}, not {algorithm}"
            raise ConfigError(message)
        return self.algorithm.index(algorithm)

    def _known_algorithms(self) -> tuple[str, ...]:
        for name in self.algorithm:
            if name not in ALGORITHMS:
                message = f"unknown algorithm {name!r}; known: {', '.join(ALGORITHMS)}"
                raise ConfigError(message)
        return self.algorithm

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form, in which options that older releases did not have show only where given."""
        lists = {name: list(getattr(self, name)) for name in _TUPLES}
        shown = {**dataclasses.asdict(self), **lists}
        return {name: value for name, value in shown.items() if name not in _NEWER or value != _NEWER[name]}

    @staticmethod
    def from_json(shown: Mapping[str, Any]) -> RunConfig:
        """Invert `to_json`."""
        made = RunConfig(**shown)
        tuples: dict[str, Any] = {name: tuple(getattr(made, name)) for name in _TUPLES}
        return dataclasses.replace(made, **tuples)

    def difference(self, given: RunConfig) -> list[str]:
        """Return the options that differ, one line each, as ``--option: recorded -> given``."""
        recorded, asked = self.to_json(), given.to_json()
        return [
            f"--{name.rstrip('s') if name == 'sources' else name.replace('_', '-')}: "
            f"{recorded.get(name, _NEWER.get(name))} -> {asked.get(name, _NEWER.get(name))}"
            for name in {**recorded, **asked}
            if name != "settled" and recorded.get(name) != asked.get(name)
        ]

    def asks_for(self, given: RunConfig) -> bool:
        """Whether other options ask for the same run; what was settled is nobody's wish."""
        return dataclasses.replace(given, settled=self.settled) == self


_NEWER: dict[str, Any] = {
    "window": None,
    "allowed_lateness": None,
    "epoch_seconds": None,
    "epoch_event_seconds": None,
    "idle_seconds": IDLE_SECONDS,
    "target_staleness": None,
    "on_lost_offset": "fail",
    "settled": {},
    "publish": [],
    "ids": "int64",
}
"""Options with defaults that are left out of the JSON form, so that an older run's plan stays what it was."""

_TUPLES = ("sources", "algorithm", "publish")
_LEAST = {
    "checkpoint_every": 1,
    "epoch_edges": 1,
    "epochs": 1,
    "partitions": 1,
    "threads": 1,
    "batch_every": 1,
    "keep_epochs": 1,
    "max_bad_records": 0,
}


def _absolute(source: str) -> str:
    if "://" in source:
        return source
    return str(Path(source).expanduser().absolute())

"""The main path: source -> partitions -> commit -> publish, as a loop of the workflow engine.

One epoch is one iteration::

    cut      the reader decides which records are the epoch          (its state: a position)
    fetch    the reader hands out these records                      (a query; computed again if lost)
    apply    the partitions bring the ranking up to date             (their state: the graph; a delta each)
    publish  the epoch's answer: state hash, certificate, counts     (the carry of the loop)
    batch    every so many epochs: the exact answer, beside the stream
    answered with a target of staleness: the reader learns when the answer was out (a query)
    sink_1   what the epoch changed, published, behind the stream and in order; one for each ``--publish``

``cut`` and ``apply`` are chained by their actors, not by the carry, so the reader runs ahead of the
computation and the computation ahead of the commits, by at most `MAX_IN_FLIGHT` epochs.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import exoflow
from exoflow.controller import Observer
from exoflow.dag import Node
from exoflow.records import Committed
from exoflow.storage.location import S3_SCHEME, as_options
from graph_stream import ledger, memory, offline, publishing, sources
from graph_stream.config import RunConfig
from graph_stream.epoch import EpochResult, combine
from graph_stream.errors import ConfigError
from graph_stream.naming import NamingReader
from graph_stream.partition import Partition
from graph_stream.reader import RATE_HINT, Reader
from ingest import Source, SourceError, group_mirror

MAX_IN_FLIGHT = 4
# A newer version of this application may go on with an older one's run: what both write has format versions.
ON_CHANGE = "continue"
LOOP = "epochs"

Progress = Callable[[Mapping[str, Any]], None]
Tell = Callable[[str], None]


def epoch_body(config: dict[str, Any], carry: Node, i: int) -> Node:
    """Return the node that publishes epoch ``i``; the body of the run's loop."""
    options = RunConfig.from_json(config)
    mode = options.checkpoint
    # In sync, position, delta and answer are one commit: the first two ride along with the third, and the
    # next epoch's computation waits for it.
    behind = "async" if mode == "sync" else mode
    reading = NamingReader if options.has_names else Reader
    reader = exoflow.actor(reading).options(name="reader", checkpoint=behind).bind(config)
    members = exoflow.actor(Partition).options(name="partitions", replicas=options.partitions, checkpoint=behind)
    partitions = members.bind(config)

    # The first record is read, and a clock starts, when everybody is ready: starting up is no latency.
    ready: list[Node] = []
    if i == 1:
        ready.append(partitions.ready.options(checkpoint="none", query=True).bind())
    cut = reader.cut.bind(i, *ready)
    records = reader.fetch.options(checkpoint="none", query=True).bind(i, cut)
    has_delta = mode == "none" or i % options.checkpoint_every == 0
    applied = partitions.apply.options(snapshot=has_delta).bind(records)
    if mode == "sync":
        carry >> applied
    published = publish.options(checkpoint=mode).bind(config, carry, cut, applied)
    # What is told in names needs the dictionary of the epoch.
    states = [applied.snapshot(), cut.snapshot()] if options.has_names else [applied.snapshot()]
    if options.batch_every is not None and i % options.batch_every == 0:
        batches = exoflow.actor(offline.Batches).options(name="batches").bind(options.threads)
        published.also(batches.compute.options(name="batch").bind(config, i, *states))
    if options.target_staleness is not None:
        published.also(reader.answered.options(checkpoint="none", query=True).bind(published))
    published.also(*publishing.branches(options, i, published, states))
    return published


@exoflow.task(deterministic=True, in_owner=True)
def publish(
    config: dict[str, Any], carry: dict[str, Any], cut: dict[str, Any], applied: Sequence[dict[str, Any]]
) -> Any:
    """Make an epoch's answer: the row that readers see, and the carry of the next epoch."""
    summaries = [
        combine([EpochResult(**each["results"][ranking]) for each in applied], parameters)
        for ranking, parameters in enumerate(RunConfig.from_json(config).parameters())
    ]
    times = {
        name: (max if name.endswith("ended") else min)(each["times"][name] for each in applied)
        for name in applied[0]["times"]
    }
    held = [each["memory"] for each in applied]
    row = ledger.epoch_row(summaries, cut, times, held, carry, published_at=time.time())
    return exoflow.stop(row) if cut["last"] else row


class Pipeline:
    """A run, described; `run` starts or resumes it.

    Parameters
    ----------
    *origins : str or Source
        Where the records come from; sources are opened again, by URI, where they are read.
    **options
        The options of `RunConfig`.

    Raises
    ------
    ConfigError
        When an option has a value it cannot have.
    """

    def __init__(self, *origins: str | Source, **options: Any) -> None:
        uris = tuple(origin if isinstance(origin, str) else origin.uri for origin in origins)
        self.config = RunConfig(uris, **options).checked()

    def loop(self) -> Node:
        """Return the run as a loop of the engine."""
        config = self.config
        return exoflow.loop(
            functools.partial(epoch_body, config.to_json()),
            ledger.FIRST_CARRY,
            max_in_flight=MAX_IN_FLIGHT,
            keep=config.keep_epochs,
            archive=ledger.archive,
            name=LOOP,
        )

    def run(
        self,
        *,
        run_id: str,
        store: str,
        take_over: bool = False,
        max_memory: int | None = None,
        progress: Progress | None = None,
        tell: Tell | None = None,
    ) -> dict[str, Any]:
        """Run to the end of the sources, from where the run of this id stands; return its last row.

        Parameters
        ----------
        run_id, store : str
            Name of the run, and what keeps it.
        take_over : bool
            Claim the run although its owner looks alive.
        max_memory : int, optional
            Bytes that the processes that hold the graph may use together. Near it epochs are delayed, at it the run
            fails and can be resumed.
        progress : callable, optional
            Is told the row of each epoch that is published.
        tell : callable, optional
            Is told, in a line, what a source waits for and what it has lost.

        Raises
        ------
        ConfigError
            When the id belongs to a run with other options; names each. Of a new run, when a source cannot be
            opened, when it has batches and its store is no local folder, or when a sink cannot be published to;
            nothing is run then.
        SinkUnavailable
            Of a new run, when a sink cannot be reached.
        exoflow.ExoflowError
            See `exoflow.run`.
        """
        recorded = recorded_config(run_id, store)
        if recorded is None:
            self._check_batches(store)
            self._settle_sources(tell)
            publishing.check_sinks(self.config, new=True)
        elif recorded.asks_for(self.config):
            self.config = recorded
        else:
            lines = "\n  ".join(recorded.difference(self.config))
            message = (
                f"run {run_id!r} exists with other options (recorded -> given):\n  {lines}\n"
                f"resume it as it is (graph-stream resume --run-id {run_id} {as_options(store)}), or choose another id"
            )
            raise ConfigError(message)
        with _RunObserver(self.config, progress, tell) as observer:
            result: dict[str, Any] = exoflow.run(
                self.loop(),
                workflow_id=run_id,
                store=store,
                metadata={"config": self.config.to_json()},
                hints=_hints(max_memory),
                take_over=take_over,
                on_change=ON_CHANGE,
                observer=observer,
            )
        return result

    def _check_batches(self, store: str) -> None:
        if self.config.batch_every is not None and store.startswith(S3_SCHEME):
            message = f"batches need a store in a local folder, not {store}; run without --batch-every there"
            raise ConfigError(message)

    def _settle_sources(self, tell: Tell | None) -> None:
        try:
            self.config = sources.settled(self.config, tell)
        except SourceError as error:
            raise ConfigError(str(error)) from error


def resume(
    run_id: str,
    store: str,
    *,
    partitions: int | None = None,
    take_over: bool = False,
    max_memory: int | None = None,
    rate: float | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Run a known run to its end; return its last row.

    Options as in `Pipeline.run`, and a ``rate`` (records per second) in place of the recorded one: it changes when
    an epoch comes, never what is in it. Raises as `exoflow.resume`, and `ConfigError` for a rate that cannot be.
    """
    config = recorded_config(run_id, store)
    if config is not None and rate is not None:
        config.with_rate(rate)
    with _RunObserver(config, progress, tell) as observer:
        result: dict[str, Any] = exoflow.resume(
            run_id,
            store=store,
            replicas=None if partitions is None else {"partitions": partitions},
            hints=_hints(max_memory, rate),
            take_over=take_over,
            on_change=ON_CHANGE,
            observer=observer,
        )
    return result


def recorded_config(run_id: str, store: str) -> RunConfig | None:
    """Return the options a run was started with; None when there is no such run."""
    try:
        metadata = exoflow.get_metadata(run_id, store=store)["metadata"]
    except exoflow.WorkflowNotFound:
        return None
    if "config" not in metadata:
        message = f"{run_id!r} is a workflow, but not a run of graph-stream"
        raise ConfigError(message)
    return RunConfig.from_json(metadata["config"])


class _RunObserver:
    """Passes on the rows of published epochs, what the reader says, and to consumer groups what is committed."""

    def __init__(self, config: RunConfig | None, progress: Progress | None, tell: Tell | None) -> None:
        self._progress = progress or _ignore
        self._tell = tell or _ignore
        uris = () if config is None else config.sources
        self._mirrors = [mirror for uri in uris if (mirror := group_mirror(uri, self._tell)) is not None]

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        for mirror in self._mirrors:
            mirror.close()

    def produced(self, event: Any) -> None:
        row = _row(event.task, event.report.output)
        if row is not None:
            self._progress(row)

    def committed(self, records: Sequence[Any], at: float) -> None:
        for record in records if self._mirrors else ():
            row = _row(record.task, record.output) if isinstance(record, Committed) else None
            if row is not None:
                for mirror in self._mirrors:
                    mirror.committed(row["offsets"])

    def told(self, actor: str, text: str) -> None:
        self._tell(text)


def _row(task: str, output: Any) -> Any:
    """Return the row that a task has published, or None."""
    if task.startswith("publish[") and output is not None and output.codec == "json":
        return None if output.data is None else json.loads(output.data)
    return None


def _ignore(_: Any) -> None:
    pass


def _hints(max_memory: int | None, rate: float | None = None) -> dict[str, Any]:
    hints = {memory.HINT: max_memory, RATE_HINT: rate}
    return {name: value for name, value in hints.items() if value is not None}

"""The command ``graph-stream``. Data goes to stdout, status and progress to stderr."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

import exoflow
from exoflow.cluster import ended_with_block
from exoflow.storage.location import as_options
from exoflow.storage.option import store_option
from graph_stream.algorithms import ALGORITHMS
from graph_stream.config import CHECKPOINTS, RunConfig
from graph_stream.errors import GraphStreamError
from graph_stream.ledger import EVENT_TIME_COLUMNS
from graph_stream.memory import parse_size
from graph_stream.progress import Meter
from ingest import IDLE_SECONDS, IDS, ON_LOST_OFFSET, IngestError
from spark.output import OutputCorrupt
from spark.session import SparkUnavailable

EPOCH_EDGES, MAX_EPOCH_EDGES = 10_000, 1_000_000
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class _Option(click.Option):
    """An option whose environment variable is named after the option, where its parameter has another name."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        return os.environ.get(f"{ctx.auto_envvar_prefix}_{self.opts[0].lstrip('-').replace('-', '_').upper()}") or None


_store = store_option("What keeps the runs: a folder, or a place on S3.")
_run_id = click.option("--run-id", required=True, metavar="ID", help="Name of the run; resumed by it.")
_json = click.option(
    "--json", "as_json", cls=_Option, is_flag=True, help="Print one JSON object as the last line of stdout."
)
_epoch = click.option("--epoch", type=click.IntRange(1), help="Default: the newest committed epoch.")
_ranking = click.option(
    "--algorithm", type=click.Choice(list(ALGORITHMS)), help="Which ranking.  [default: the run's first]"
)
_take_over = click.option(
    "--take-over", is_flag=True, help="Claim the run although its owner looks alive; that process is stopped."
)


class _Size(click.ParamType[int]):
    """A number of bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes; fails where it is no size."""
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_max_memory = click.option(
    "--max-memory",
    type=_Size(),
    help="Memory of the processes that hold the graph, such as 8G: slower near it, stop at it.  [default: unlimited]",
)


@click.group(context_settings={"auto_envvar_prefix": "GRAPH_STREAM", "show_default": True})
@click.version_option(package_name="exoflow")
def cli() -> None:
    """Keep influence ranking up to date over a stream of follows, exactly once.

    Every option can also be given as an environment variable: GRAPH_STREAM_<COMMAND>_<OPTION>.
    """


@cli.command()
@_run_id
@_store
@click.option(
    "--source",
    "sources",
    cls=_Option,
    multiple=True,
    required=True,
    metavar="URI",
    help="File, folder, watch://, follow://, kafka:// or rmat:// URI.",
)
@click.option("--columns", default="src,dst", help="src,dst[,time][,op] in the order of the file.")
@click.option("--ids", type=click.Choice(IDS), default="int64", help="What src and dst hold: numbers, or names.")
@click.option(
    "--algorithm",
    type=click.Choice(list(ALGORITHMS)),
    multiple=True,
    default=["tunkrank"],
    help="What to compute; may be repeated.",
)
@click.option("--retweet-probability", type=float, default=0.00037, help="p of TunkRank, 0 <= p < 1.")
@click.option("--damping", type=float, default=0.85, help="p of PageRank, 0 <= p < 1.")
@click.option(
    "--personalization",
    metavar="FILE",
    help="CSV or Parquet with columns vertex, weight: whom PageRank favours; others weigh 1.  [default: nobody]",
)
@click.option("--tolerance", type=float, default=1e-3, help="Relative error to work down to.")
@click.option("--checkpoint", type=click.Choice(CHECKPOINTS), default="async", help="When an epoch is durable.")
@click.option("--checkpoint-every", type=int, default=1, help="Epochs between two deltas of the graph.")
@click.option(
    "--epoch-edges", type=int, help="Records of an epoch.  [default: 10000; with epochs by time at most 1000000]"
)
@click.option("--epoch-seconds", type=float, help="Epochs close at multiples of so many seconds.  [default: when full]")
@click.option(
    "--epoch-event-seconds",
    type=float,
    help="Epochs close where event time has passed a multiple of so many seconds in all sources.  [default: none]",
)
@click.option(
    "--idle-seconds",
    type=float,
    default=IDLE_SECONDS,
    help="With --epoch-event-seconds, how long to wait for a live source that is silent.",
)
@click.option(
    "--target-staleness",
    type=float,
    metavar="SECONDS",
    help="Make epochs as large as lets a record be in an answer so soon after it could be read.  [default: none]",
)
@click.option("--epochs", type=int, help="Stop after so many epochs.  [default: at the end of the sources]")
@click.option("--rate", type=float, help="Records per second.  [default: as fast as they can be read]")
@click.option("--partitions", type=int, default=1, help="Actors that share the graph.")
@click.option("--threads", type=int, default=os.cpu_count() or 1, help="Threads of each.")
@click.option("--batch-every", type=int, help="Epochs between two exact Spark batches.  [default: none]")
@click.option("--keep-epochs", type=int, default=100, help="Newest epochs that stay readable.")
@click.option("--max-bad-records", type=int, help="Stop past so many.  [default: unlimited]")
@click.option(
    "--window", type=float, metavar="SECONDS", help="Edges expire so long after their time.  [default: never]"
)
@click.option(
    "--allowed-lateness",
    type=float,
    metavar="SECONDS",
    help="How much older than the newest a record may be, with event time.  [default: the window]",
)
@click.option(
    "--on-lost-offset",
    type=click.Choice(ON_LOST_OFFSET),
    default="fail",
    help="What to do where a source has not kept what comes next, or a file that arrived cannot be read.",
)
@click.option(
    "--publish",
    multiple=True,
    metavar="URI",
    help="Publish what each committed epoch changed: to a folder, s3://BUCKET/PREFIX or kafka://HOST:PORT/TOPIC, "
    "with ?top=K only the best; may be repeated.",
)
@_max_memory
@_take_over
@_json
def run(run_id: str, store: str, max_memory: int | None, take_over: bool, as_json: bool, **options: Any) -> None:
    """Stream sources through the ranking; the same id and options again resume the run."""
    from graph_stream.pipeline import Pipeline

    sources = options.pop("sources")
    if options["epoch_edges"] is None:
        by_time = [options[name] for name in ("epoch_seconds", "epoch_event_seconds", "target_staleness")]
        options["epoch_edges"] = EPOCH_EDGES if by_time == [None] * 3 else MAX_EPOCH_EDGES
    with _running(run_id, store, as_json, max_memory) as meter:
        pipeline = Pipeline(*sources, **options)
        _warn_of_missing_java(pipeline.config)
        meter.follow(pipeline.config)
        exoflow.init(store, log_to_driver=False)
        pipeline.run(
            run_id=run_id,
            store=store,
            take_over=take_over,
            max_memory=max_memory,
            progress=meter.published,
            tell=meter.tell,
        )


@cli.command()
@_run_id
@_store
@click.option("--partitions", type=int, help="Share the graph among another number of actors.")
@click.option("--rate", type=float, help="Records per second from here on.  [default: as the run was started with]")
@_max_memory
@_take_over
@_json
def resume(
    run_id: str,
    store: str,
    partitions: int | None,
    rate: float | None,
    max_memory: int | None,
    take_over: bool,
    as_json: bool,
) -> None:
    """Go on with a run from what is committed; its other options come from the run record."""
    from graph_stream import pipeline

    with _running(run_id, store, as_json, max_memory) as meter:
        config = pipeline.recorded_config(run_id, store)
        if config is not None:
            _warn_of_missing_java(config)
            meter.follow(config if rate is None else config.with_rate(rate))
        exoflow.init(store, log_to_driver=False)
        pipeline.resume(
            run_id,
            store,
            partitions=partitions,
            take_over=take_over,
            max_memory=max_memory,
            rate=rate,
            progress=meter.published,
            tell=meter.tell,
        )


@cli.command()
@_run_id
@_store
@_json
def epochs(run_id: str, store: str, as_json: bool) -> None:
    """List committed epochs, one line each; JSON lines with --json."""
    from graph_stream import runs

    opened = runs.open_run(run_id, store)
    if not as_json:
        click.echo(f"{'epoch':>7} {'edges':>9} {'rounds':>6} {'error bound':>12} {'latency ms':>11}  state hash")
    for entry in opened.entries:
        row = entry["row"]
        latency, commit_latency = runs.latencies_ms(opened.config.checkpoint, entry)
        if as_json:
            shown = {
                "epoch": row["epoch"],
                "edges": row["records"],
                "state_hash": row["state_hash"],
                "error_bound": row["error_bound"],
                "rounds": row["rounds"],
                "latency_ms": latency,
                "commit_latency_ms": commit_latency,
                "bytes": entry["bytes"],
                "offsets": row["offsets"],
                **runs.staleness_ms(opened.config.checkpoint, entry),
                **{name: row[name] for name in EVENT_TIME_COLUMNS if name in row},
            }
            click.echo(json.dumps(shown))
        else:
            click.echo(
                f"{row['epoch']:>7} {row['records']:>9} {row['rounds']:>6} {row['error_bound']:>12.3e} "
                f"{latency:>11.1f}  {row['state_hash']}"
            )


@cli.command()
@_run_id
@_store
@_epoch
@_ranking
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="FILE.parquet or .csv")
def scores(run_id: str, store: str, epoch: int | None, algorithm: str | None, out: Path) -> None:
    """Write vertex, influence and error_bound (absolute) of every vertex at a committed epoch."""
    from graph_stream import runs

    opened = runs.open_run(run_id, store)
    chosen = opened.epoch_or_newest(epoch)
    table = runs.scores(opened, chosen, algorithm)
    runs.write_scores(table, out)
    click.echo(f"{len(table)} vertices at epoch {chosen} -> {out}", err=True)


@cli.command()
@_run_id
@_store
@_epoch
@_ranking
@click.option("-k", type=click.IntRange(1), default=10, help="How many.")
@_json
def top(run_id: str, store: str, epoch: int | None, algorithm: str | None, k: int, as_json: bool) -> None:
    """Show the most influential vertices at a committed epoch with their error bounds, and what is proven of them."""
    from graph_stream import runs

    opened = runs.open_run(run_id, store)
    chosen = opened.epoch_or_newest(epoch)
    ranked = runs.top(opened, chosen, k, algorithm).to_pylist()
    if as_json:
        click.echo(json.dumps({"run_id": run_id, "epoch": chosen, "top": ranked}))
        return
    click.echo(format_top(ranked))


def format_top(ranked: list[dict[str, Any]]) -> str:
    """Return a table of ranked vertices, and below it how much of it is proven."""
    from graph_stream.quarantine import as_printed

    marks = {True: "proven", False: "-"}
    shown = [as_printed(row["vertex"]) for row in ranked]
    lines = [f"{'rank':>5} {'vertex':>20} {'influence':>14} {'+/-':>10} {'in top':>7} {'order':>7}"]
    lines += [
        f"{rank:>5} {vertex:>20} {row['influence']:>14.4f} {row['error_bound']:>10.2g} "
        f"{marks[row['proven']]:>7} {marks[row['in_order']]:>7}"
        for rank, (vertex, row) in enumerate(zip(shown, ranked, strict=True), 1)
    ]
    members, ordered = (sum(row[name] for row in ranked) for name in ("proven", "in_order"))
    lines.append(
        f"{members} of {len(ranked)} are proven to be in the exact top {len(ranked)}, "
        f"{ordered} to come before the next one"
    )
    return "\n".join(lines)


@cli.command()
@_run_id
@_store
@_epoch
@_ranking
@click.option("--master", default="local[*]", help="local[N] or spark://HOST:PORT")
@_json
def batch(run_id: str, store: str, epoch: int | None, algorithm: str | None, master: str, as_json: bool) -> None:
    """Compute the exact answer of a committed epoch in Spark."""
    done, chosen, _ = _exact(run_id, store, epoch, algorithm, master)
    shown = {"run_id": run_id, "epoch": chosen, "path": done["path"], "seconds": done["seconds"]}
    click.echo(json.dumps(shown) if as_json else f"epoch {chosen}: {done['path']} ({done['seconds']:.1f} s)")


@cli.command()
@_run_id
@_store
@_epoch
@_ranking
@click.option("--master", default="local[*]", help="local[N] or spark://HOST:PORT")
@_json
def audit(run_id: str, store: str, epoch: int | None, algorithm: str | None, master: str, as_json: bool) -> None:
    """Compare the online answer with the exact one; exits 1 if any vertex is out of its bound."""
    done, chosen, found = _exact(run_id, store, epoch, algorithm, master, compare=True)
    assert found is not None
    shown = {
        "run_id": run_id,
        "epoch": chosen,
        "path": done["path"],
        "seconds": done["seconds"],
        "max_error": found.max_relative_drift,
        "within_bound": found.within_bound,
    }
    if as_json:
        click.echo(json.dumps(shown))
    else:
        verdict = "holds" if found.within_bound else "DOES NOT HOLD"
        click.echo(f"epoch {chosen}: the certificate {verdict}; greatest relative error {found.max_relative_drift:.3e}")
    if not found.within_bound:
        sys.exit(EXIT_FAILED)


def _exact(
    run_id: str, store: str, epoch: int | None, algorithm: str | None, master: str, *, compare: bool = False
) -> tuple[dict[str, Any], int, Any]:
    from graph_stream import ledger, offline, runs
    from spark.step import SparkSteps

    opened = runs.open_run(run_id, store)
    chosen = opened.epoch_or_newest(epoch)
    ranking = opened.config.ranking_of(algorithm)
    parameters = opened.config.parameters()[ranking]
    output = runs.object_path(opened, offline.output_name(chosen, opened.config, ranking))
    with tempfile.TemporaryDirectory(prefix="exoflow-spark-") as scratch:
        steps = SparkSteps(Path(scratch), master)
        try:
            with runs.batch_files(opened, chosen, Path(scratch)) as inputs, runs.name_files(opened, chosen) as names:
                done = offline.compute_exact(steps, inputs, output, uuid.uuid4().hex, parameters, names)
        finally:
            steps.close()
    found = None
    if compare:
        state = runs.state_at(opened, chosen)
        e = ledger.of_ranking(opened.row(chosen), ranking)["error_bound"]
        found = offline.compare_with(state, ranking, e, Path(done["path"]), done["manifest"]["relative_error"])
    return done, chosen, found


@cli.command()
@click.option("--run-id", "run_ids", cls=_Option, multiple=True, required=True, metavar="ID", help="May be repeated.")
@_store
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder.")
@click.option("--warmup", type=click.IntRange(0), default=0, help="Epochs at the start to leave out.")
def report(run_ids: tuple[str, ...], store: str, out: Path, warmup: int) -> None:
    """Write percentile table, rows and plots of one or more runs."""
    from graph_stream import runs
    from graph_stream.report import write_report

    twice = [run_id for run_id, times in Counter(run_ids).items() if times > 1]
    if twice:
        message = f"--run-id {twice[0]} is given twice; name each run once"
        raise click.UsageError(message)
    about = environment()
    opened = [runs.open_run(run_id, store) for run_id in run_ids]
    written = write_report([runs.report_of(each, about) for each in opened], out, warmup)
    for path in written:
        click.echo(path)


@cli.group("quarantine")
def quarantine_commands() -> None:
    """Look at records that could not be parsed, and take them back."""


_quarantine_epoch = click.option("--epoch", type=click.IntRange(1), help="Only this one.  [default: all committed]")


@quarantine_commands.command("ls")
@_run_id
@_store
@_quarantine_epoch
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write FILE.parquet instead of a list.")
@_json
def list_quarantine(run_id: str, store: str, epoch: int | None, out: Path | None, as_json: bool) -> None:
    """List the bad records of committed epochs, one line each; JSON lines with --json."""
    from graph_stream import quarantine, runs

    found = runs.bad_records(runs.open_run(run_id, store), epoch)
    if out is not None:
        reasons = runs.write_bad_records(found, out)
    else:
        reasons = Counter()
        for number, records in found:
            for record in records:
                click.echo(
                    json.dumps(quarantine.as_json(number, record)) if as_json else quarantine.as_line(number, record)
                )
            reasons.update(record.reason for record in records)
    for reason, count in reasons.most_common():
        click.echo(f"{count:>9}  {reason}", err=True)
    click.echo(f"{reasons.total():>9}  bad records{'' if out is None else f' -> {out}'}", err=True)


@quarantine_commands.command("replay")
@_run_id
@_store
@_quarantine_epoch
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="FILE.txt, .tsv, .csv or .jsonl, as the records are; a new file.",
)
def replay_quarantine(run_id: str, store: str, epoch: int | None, out: Path) -> None:
    """Write bad records to a file as they came, to be mended and read as a source; exits 1 if any is left out."""
    from graph_stream import replay, runs

    opened = runs.open_run(run_id, store)
    done = replay.replay_to_file(runs.bad_records(opened, epoch), opened.config.columns, out, opened.config.ids)
    click.echo(f"{done.written} records -> {out}", err=True)
    for line in done.notes():
        click.echo(line, err=True)
    if done.left_out:
        sys.exit(EXIT_FAILED)


@cli.group()
def generate() -> None:
    """Generate streams of edges."""


@generate.command()
@click.option("--scale", type=int, required=True, help="2^SCALE vertices.")
@click.option("--edges", type=int, required=True, help="Records.")
@click.option("--seed", type=int, default=1, help="Which stream.")
@click.option("--deletes", type=float, default=0.0, help="Share of records that delete an earlier edge.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="FILE.txt[.gz|.zst], .tsv, .csv, .parquet",
)
def rmat(scale: int, edges: int, seed: int, deletes: float, out: Path) -> None:
    """Write an R-MAT stream to a file."""
    from ingest import write_rmat

    write_rmat(out, scale, edges, seed, deletes)
    click.echo(f"{edges} records -> {out}", err=True)


# --- running, and ending well -----------------------------------------------------------------------------


@contextmanager
def _running(run_id: str, store: str, as_json: bool, max_memory: int | None) -> Iterator[Meter]:
    """Show progress, print the result, and turn whatever happens into an exit code and a next step."""
    from graph_stream import runs

    meter = Meter(sys.stderr, max_memory)
    resume_command = f"graph-stream resume --run-id {run_id} {as_options(store)}"
    signal.signal(signal.SIGTERM, _interrupt)
    error: str | None = None
    code = 0
    try:
        with ended_with_block():
            yield meter
    except KeyboardInterrupt:
        error, code = "interrupted", EXIT_INTERRUPTED
    except exoflow.WorkflowNotFound as caught:
        message = f"{caught}; see: exoflow ls {as_options(store)}"
        raise _BadUsage(message) from caught
    except (exoflow.ExoflowError, GraphStreamError, IngestError) as caught:
        error, code = explain(caught), exit_code(caught)
    finally:
        meter.close()
    if code == EXIT_USAGE:
        raise _BadUsage(error or "")
    shown = _summary_or_nothing(run_id, store, runs.open_run, runs.summary)
    shown |= meter.rates()
    if error is not None:
        shown["error"] = error
        hint = f"resume with: {resume_command}" if shown.get("status") else ""
        click.echo(f"{error}\n{hint}".strip(), err=True)
    if as_json:
        click.echo(json.dumps(shown))
    elif error is None:
        click.echo(_describe(shown))
    if code:
        sys.exit(code)


def _summary_or_nothing(
    run_id: str, store: str, open_run: Callable[..., Any], summary: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Return a run's summary; only its id where even that cannot be read."""
    try:
        return summary(open_run(run_id, store))
    except (exoflow.ExoflowError, GraphStreamError):
        return {"run_id": run_id}


def _describe(shown: Mapping[str, Any]) -> str:
    latency = shown["latency_ms"]
    p50, p99 = (f"{latency[name]:.1f}" if latency[name] is not None else "-" for name in ("p50", "p99"))
    bound = "-" if shown["error_bound"] is None else f"{shown['error_bound']:.3e}"
    return (
        f"{shown['status']}: {shown['epochs']} epochs, {shown['edges']} edges, {shown['rejected']} rejected, "
        f"{shown['batches']} batches; {shown['edges_per_second']:.0f} edges/s; latency p50 {p50} ms, p99 {p99} ms\n"
        f"error bound {bound}, state {shown['state_hash']}"
    )


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _warn_of_missing_java(config: RunConfig) -> None:
    from spark.session import JavaMissing, require_java

    if config.batch_every is None:
        return
    try:
        require_java()
    except JavaMissing as missing:
        click.echo(f"batches will be left out, the online part is not affected: {missing}", err=True)


class _BadUsage(click.ClickException):
    """An error that the user can mend by typing something else."""

    exit_code = EXIT_USAGE


def explain(error: BaseException) -> str:
    """Return an error in one or two lines: of a failed task, the last line of its traceback."""
    if isinstance(error, exoflow.TaskFailed):
        lines = [line for line in error.detail.strip().splitlines() if line.strip()]
        return f"task {error.task} failed: {lines[-1] if lines else 'unknown reason'}"
    return str(error)


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error: 2 for bad usage and unknown ids, else 1."""
    from graph_stream.errors import ConfigError, EpochNotFound

    usage = (
        ConfigError,
        EpochNotFound,
        exoflow.DefinitionError,
        exoflow.WorkflowNotFound,
        exoflow.PlanMismatch,
    )
    return EXIT_USAGE if isinstance(error, usage) else EXIT_FAILED


def environment() -> dict[str, str]:
    """Return where this runs: versions, processor, cores."""
    about = {"python": platform.python_version(), "machine": platform.machine(), "cores": str(os.cpu_count())}
    for package in ("exoflow", "ray", "numpy", "numba", "pyarrow", "pyspark"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            continue
    return about


def main() -> None:
    """Run the command; errors become one message and an exit code."""
    try:
        cli.main(prog_name="graph-stream", standalone_mode=False)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except (exoflow.ExoflowError, GraphStreamError, IngestError, OutputCorrupt, SparkUnavailable) as error:
        click.echo(f"Error: {explain(error)}", err=True)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()

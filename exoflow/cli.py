"""The command ``exoflow``: look at the workflows of a store, and resume them.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 bad usage or unknown id,
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from json import dumps, loads
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from exoflow import api, readers, settings
from exoflow.cluster import ended_with_block
from exoflow.controller import expander
from exoflow.effects import Done, NotDone
from exoflow.errors import DefinitionError, ExoflowError, PlanMismatch, TaskFailed, WorkflowNotFound
from exoflow.steps import drive
from exoflow.storage import open_store
from exoflow.storage.location import as_options
from exoflow.storage.option import store_option
from exoflow.verify import verify as verify_workflow
from exoflow.verify import workflow_ids

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
SHOWN_TASKS = 20
Command = TypeVar("Command", bound=Callable[..., Any])
_USAGE_ERRORS = (DefinitionError, PlanMismatch, WorkflowNotFound)


def _existing(_context: click.Context, _option: click.Parameter, uri: str) -> str:
    """Refuse a folder that is not there: these commands only read, so it must be a slip of the keyboard."""
    scheme, separator, rest = uri.partition("://")
    folder = rest if separator and scheme == "file" else uri
    if (not separator or scheme == "file") and not Path(folder).expanduser().is_dir():
        message = f"there is no folder {folder!r}"
        raise click.BadParameter(message)
    return uri


_workflow_id = click.argument("workflow_id", metavar="ID")
_store = store_option("What keeps them: a folder, or a place on S3.", _existing)


def _json(help_text: str) -> Callable[[Command], Command]:
    return click.option("--json", is_flag=True, help=help_text)


@click.group(context_settings={"auto_envvar_prefix": "EXOFLOW", "show_default": True})
@click.version_option(package_name="exoflow")
def cli() -> None:
    """Look at the workflows of a store, and resume them.

    Every option can also be given as an environment variable: EXOFLOW_<COMMAND>_<OPTION>.
    """


@cli.command()
@_store
@_json("Print one JSON object per line.")
def ls(store: str, json: bool) -> None:
    """List workflows and where they stand."""
    for workflow_id, status in readers.list_all(store=store):
        shown = {"workflow_id": workflow_id, "status": str(status)}
        click.echo(dumps(shown) if json else f"{status:<12} {workflow_id}")


@cli.command()
@_workflow_id
@_store
@_json("Print one JSON object.")
def show(workflow_id: str, store: str, json: bool) -> None:
    """Show status, owner, times, error and committed tasks of a workflow.

    Of a loop these are the tasks of the iterations that are still in the journal.
    """
    found = readers.get_metadata(workflow_id, store=store)
    click.echo(dumps(found) if json else describe(found))


@cli.command()
@_workflow_id
@_store
@click.option("--take-over", is_flag=True, help="Claim it although its owner looks alive; that process is stopped.")
@click.option(
    "--on-change",
    type=click.Choice(["refuse", "continue"]),
    default="refuse",
    help="What to do when the code of a task is not what it was.",
)
@_json("Print one JSON object as the last line of stdout.")
def resume(workflow_id: str, store: str, take_over: bool, on_change: str, json: bool) -> None:
    """Run a workflow to its end from what is committed, and print its result.

    Its code is imported as Python would from the current folder. A finished workflow prints its result.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    # Like `python -m`: the store names code by module, and modules of a project lie where it is worked on.
    sys.path.insert(0, os.getcwd())
    # With --json the lines of tasks would mix with the object.
    settings.init(store, log_to_driver=not json)
    try:
        with ended_with_block():
            result = api.resume(workflow_id, store=store, take_over=take_over, on_change=on_change)
    except (KeyboardInterrupt, SystemExit):  # Ray, once started, answers SIGTERM with the latter.
        again = f"exoflow resume {workflow_id} {as_options(store)}"
        _stop(workflow_id, f"interrupted; resume with: {again}", EXIT_INTERRUPTED, json)
    except ExoflowError as error:
        _stop(workflow_id, explain(error), exit_code(error), json)
    click.echo(dumps(_ended(workflow_id, result)) if json else _plain(result))


@cli.command()
@click.argument("workflow_id", metavar="[ID]", required=False)
@_store
@_json("Print one JSON object per workflow.")
def verify(workflow_id: str | None, store: str, json: bool) -> None:
    """Check that what the store holds of a workflow, or of all, is one whole history; exit 1 if it is not.

    Every prefix of the journal is checked against the engine's rules (one owner at a time, nothing before what
    it stands on, one key for each effect), and every blob that a record needs is read. Nothing is written.
    """
    # The code of loops says which tasks an iteration has; like `python -m`, from where the user stands.
    sys.path.insert(0, os.getcwd())
    where = open_store(store, create=False)
    chosen = drive(workflow_ids(), where) if workflow_id is None else [workflow_id]
    wrong = False
    for each in chosen:
        problems = drive(verify_workflow(each, expander()), where)
        wrong = wrong or bool(problems)
        if json:
            told = [{"where": problem.where, "what": problem.what} for problem in problems]
            click.echo(dumps({"workflow_id": each, "problems": told}))
        else:
            click.echo("\n".join(f"{each}: {line}" for line in map(str, problems) if line) or f"{each}: whole")
    sys.exit(EXIT_FAILED if wrong else 0)


@cli.command()
@_workflow_id
@click.argument("task", metavar="TASK")
@_store
@click.option("--done", metavar="VALUE", help="It has happened; the task's output, as JSON (or as plain text).")
@click.option("--not-done", is_flag=True, help="It has not happened and never will by itself; the body runs again.")
def resolve(workflow_id: str, task: str, store: str, done: str | None, not_done: bool) -> None:
    """Say what became of an effect that is in doubt.

    An external task that was cut off, and that may not simply be repeated, leaves its workflow IN_DOUBT:
    only somebody who looks at the outside can tell whether its effect has happened.
    """
    if (done is None) is not not_done:
        message = "say either --done VALUE or --not-done"
        raise click.UsageError(message)
    verdict = NotDone() if done is None else Done(_value(done))
    api.resolve(workflow_id, task, verdict, store=store)
    click.echo(f"settled; resume with: exoflow resume {workflow_id} {as_options(store)}", err=True)


def _value(text: str) -> Any:
    """Return what JSON makes of a text; the text itself where it is none."""
    try:
        return loads(text)
    except ValueError:
        return text


def describe(found: Mapping[str, Any]) -> str:
    """Return what is known of a workflow as lines of text; times in UTC."""
    rows = {
        "workflow": found["workflow_id"],
        "status": found["status"],
        "owner": f"{found['owner']}, generation {found['generation']}",
        "started": _time(found["started_at"]),
        "finished": _time(found["finished_at"]),
        "metadata": dumps(found["metadata"]) if found["metadata"] else None,
        "error": found["error"],
    }
    lines = [f"{name:<10} {value}" for name, value in rows.items() if value is not None]
    tasks = list(found["tasks"].items())
    older = f", the newest {SHOWN_TASKS} of them" if len(tasks) > SHOWN_TASKS else ""
    lines.append(f"{'committed':<10} {len(tasks)} task{'s' * (len(tasks) != 1)}{older}")
    lines += [f"  {_time(times['committed_at']) or '-':<21} {name}" for name, times in tasks[-SHOWN_TASKS:]]
    return "\n".join(lines)


def explain(error: ExoflowError) -> str:
    """Return an error in one or two lines: of a failed task, the last line of its traceback."""
    if isinstance(error, TaskFailed):
        lines = [line for line in error.detail.strip().splitlines() if line.strip()]
        return f"task {error.task} failed: {lines[-1] if lines else 'unknown reason'}"
    return str(error)


def exit_code(error: ExoflowError) -> int:
    """Return the exit code of an error: 2 for bad usage and unknown ids, else 1."""
    return EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_FAILED


def _ended(workflow_id: str, result: Any) -> dict[str, Any]:
    """Return what is told of a successful workflow; a result that JSON cannot hold is told in Python's words."""
    try:
        dumps(result, allow_nan=False)
    except (TypeError, ValueError):
        result = repr(result)
    return {"workflow_id": workflow_id, "status": "SUCCESSFUL", "result": result}


def _plain(result: Any) -> str:
    return result if isinstance(result, str) else repr(result)


def _stop(workflow_id: str, error: str, code: int, json: bool) -> NoReturn:
    if json and code != EXIT_USAGE:
        click.echo(dumps({"workflow_id": workflow_id, "error": error}))
    click.echo(f"Error: {error}", err=True)
    sys.exit(code)


def _time(seconds: float | None) -> str | None:
    """Return Unix seconds as a date and time of day in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; errors become one message and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except ExoflowError as error:
        click.echo(f"Error: {explain(error)}", err=True)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()

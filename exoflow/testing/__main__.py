"""Live random lives from the command line: ``python -m exoflow.testing --runs 1000`` or ``--seed 123 --trace``."""

from __future__ import annotations

import sys
import time

import click

from exoflow.testing.life import Life


def replay_line(seed: int) -> str:
    """Return the command that repeats one run alone."""
    return f"python -m exoflow.testing --seed {seed} --trace"


def live(seed: int, *, trace: bool = False) -> str | None:
    """Run one seed; return None, or what was wrong, its last line being the command that repeats it."""
    life = Life(seed)
    if trace:
        life.world.trace = []
    try:
        life.run()
    except Exception as error:
        told = "\n".join(life.world.trace or [])
        return f"{told}\n{type(error).__name__}: {error}\n{life.faults}\n{replay_line(seed)}".lstrip("\n")
    if trace:
        click.echo("\n".join(life.world.trace or []))
    return None


@click.command()
@click.option("--seed", type=int, help="Run this seed alone.")
@click.option("--runs", type=click.IntRange(min=1), default=1000, show_default=True, help="Run so many seeds.")
@click.option("--first", type=int, default=0, show_default=True, help="The first of them.")
@click.option("--trace", is_flag=True, help="Print what happens, with --seed.")
def main(seed: int | None, runs: int, first: int, trace: bool) -> None:
    """Run random workflows under random faults; print what is wrong and how to repeat it."""
    seeds = range(first, first + runs) if seed is None else range(seed, seed + 1)
    began = time.monotonic()
    wrong = 0
    for each in seeds:
        found = live(each, trace=trace and seed is not None)
        if found is not None:
            wrong += 1
            click.echo(found)
    seconds = time.monotonic() - began
    click.echo(f"{len(seeds)} runs, {wrong} wrong, {len(seeds) / seconds:.0f} runs per second", err=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

"""A small workflow: kill it anywhere, run it again, and it goes on; what it publishes counts once."""

from pathlib import Path

import exoflow


@exoflow.task
def load(count: int) -> list[int]:
    """Stand for a read that may not give the same twice; its output is kept, so that it need not."""
    return list(range(count))


@exoflow.task(checkpoint="async", deterministic=True, retries=3)
def total(numbers: list[int]) -> int:
    """Run on while the output is written behind; after a crash it may be computed again."""
    return sum(numbers)


@exoflow.task(external=True, idempotent=True)
def publish(value: int) -> int:
    """Be seen outside: only starts when everything before it is durable."""
    key = exoflow.context().idempotency_key  # the same on every attempt
    Path(f"published-{key}.txt").write_text(f"{value}\n")
    return value


if __name__ == "__main__":
    exoflow.init("./runs")
    result = exoflow.run(publish.bind(total.bind(load.bind(1000))), workflow_id="nightly-2026-11-22")
    print(f"published {result}")

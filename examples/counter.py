"""A loop around a durable actor: the count goes on after any crash, and no number is added twice."""

import exoflow


@exoflow.actor(checkpoint="async")
class Counter:
    """Its state is one number."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int) -> object:
        """Count, and end the loop at a hundred."""
        self.count += number
        return exoflow.stop(self.count) if self.count >= 100 else self.count

    def capture(self) -> int:
        """Return a copy of the state, taken inside each call."""
        return self.count

    def restore(self, count: int) -> None:
        """Go on from a copy."""
        self.count = count


def body(carry: exoflow.Node, i: int) -> exoflow.Node:
    """Make iteration i; the same name is the same actor in every iteration."""
    return exoflow.actor(Counter).bind().add.bind(i)  # Counter.bind(), in a form that mypy can follow


if __name__ == "__main__":
    exoflow.init("./runs")
    print(f"counted to {exoflow.run(exoflow.loop(body, 0), workflow_id='counter')}")

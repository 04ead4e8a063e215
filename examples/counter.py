"""A loop around a durable actor: the count goes on after any crash, and no number is added twice."""

import exoflow


@exoflow.actor(checkpoint="async")
class Counter:
    """Its state is one number."""

    def __init__(self):
        self.count = 0

    def add(self, number):
        """Count, and end the loop at a hundred."""
        self.count += number
        return exoflow.stop(self.count) if self.count >= 100 else self.count

    def capture(self):
        """Return a copy of the state, taken inside each call."""
        return self.count

    def restore(self, count):
        """Go on from a copy."""
        self.count = count


def body(carry, i):
    """Make iteration i; the same name is the same actor in every iteration."""
    return Counter.bind().add.bind(i)


if __name__ == "__main__":
    exoflow.init("./runs")
    print(f"counted to {exoflow.run(exoflow.loop(body, 0), workflow_id='counter')}")

"""What may go wrong, and how often. Each fault is one mechanism; a seed switches some of them on."""

from __future__ import annotations

import dataclasses
import random

LEASE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities.

    Attributes
    ----------
    crash, pause, take_over, lose_actor, read : float
        Per step of the world: an owner dies with all its workers; an owner stands still for up to three
        leases; another controller claims the workflow although its owner is alive; a member of an actor dies;
        a reader pins what the newest records need and reads it.
    lose_worker : float
        Per attempt: its process dies, before the body or after it, when nobody has been told of its outcome.
    time_out : float
        Per attempt with a time limit, calls of actors included: so dies its process, and the owner knows why.
    fail_body, vouch : float
        Per attempt: the body raises, before or after its effect; it raises `EffectNotDone`, if it is an effect.
    refuse, unanswered, late, torn : float
        Per operation of the store: refused (409, 5xx, throttled); a write that lands and whose
        acknowledgement is lost; a write that lands after its time-out; a blob of which half lands.
    slow : float
        Per operation and message: it takes up to two leases.
    double : float
        Per message: it is told twice.
    """

    lose_worker: float = 0.0
    lose_actor: float = 0.0
    crash: float = 0.0
    pause: float = 0.0
    take_over: float = 0.0
    read: float = 0.0
    time_out: float = 0.0
    fail_body: float = 0.0
    vouch: float = 0.0
    refuse: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    torn: float = 0.0
    slow: float = 0.0
    double: float = 0.0


CALM = Faults()
_HIGHEST = Faults(
    lose_worker=0.1,
    lose_actor=0.02,
    crash=0.03,
    pause=0.02,
    take_over=0.02,
    read=0.03,
    time_out=0.2,
    fail_body=0.1,
    vouch=0.2,
    refuse=0.05,
    unanswered=0.2,
    late=0.2,
    torn=0.05,
    slow=0.1,
    double=0.2,
)


def random_faults(chooser: random.Random) -> Faults:
    """Return faults of which about half never happen: rare combinations need some to be absent."""
    chosen = {
        field.name: getattr(_HIGHEST, field.name) * chooser.random() if chooser.random() < 0.5 else 0.0
        for field in dataclasses.fields(Faults)
    }
    return Faults(**chosen)

"""A member of a simulated actor: the engine's own, with bodies that can wait for messages of other members.

Where a real body blocks its thread until a message is there, this one is broken off and its object put back;
once the message has come it runs again from its start, with the messages it has got so far. A body that is a
function of its object, its inputs and its messages cannot tell the difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from exoflow.plan import ActorSpec
from exoflow.records import Value
from exoflow.storage import Store
from exoflow.worker import Failure, Job, Member, Outcome

Turn = tuple[int, int]
Post = Callable[[int, Turn, Any], None]


class Suspended(BaseException):
    """A body waits for messages. No exception, since those are the body's own affair."""


class TalkingMember(Member):
    """One member; it can die alone.

    Parameters
    ----------
    index : int
        Its place.
    post : callable
        ``post(receiver, turn, message)`` sends a message. A turn is the number of an attempt, and how often its
        body had talked before.

    Attributes
    ----------
    alive, suspended : bool
        Whether its process is; whether a call was broken off that has to wait. No other begins meanwhile.
    """

    def __init__(
        self, spec: ActorSpec, workflow_id: str, store: Store, index: int, restore: Value | None, post: Post
    ) -> None:
        self.alive = True
        self.suspended = False
        self._others = spec.members - 1
        self._post = post
        self._turn: Turn = (0, 0)
        self._said: set[Turn] = set()
        self._heard: dict[Turn, dict[int, Any]] = {}
        super().__init__(spec, workflow_id, store, index, restore, self._talk if self._others else None)

    def call(self, job: Job, values: Sequence[Any]) -> tuple[Any, Outcome]:
        """Run one call; raises Suspended where it has to wait."""
        self.suspended = False
        self._turn = (job.attempt, 0)
        before = copy.deepcopy(self._object) if self._others else None
        try:
            return super().call(job, values)
        except Suspended:
            self._object = before
            self.suspended = True
            raise

    def lose_persisted(self, error: str) -> None:
        """Have failed to make durable what nobody has asked for yet: it was written with what could not be."""
        self._durable = dict.fromkeys(self._durable, Failure(error))

    def waits(self) -> bool:
        """Whether the call that was broken off last would have to wait again."""
        return len(self._heard.get(self._turn, ())) < self._others

    def hear(self, sender: int, turn: Turn, message: Any) -> None:
        """Take a message of another member; the call that it is for may not have begun."""
        self._heard.setdefault(turn, {})[sender] = message

    def _talk(self, messages: Sequence[Any]) -> list[Any]:
        attempt, number = self._turn
        self._turn = (attempt, number + 1)
        if self._turn not in self._said:
            self._said.add(self._turn)
            for receiver, message in enumerate(messages):
                if receiver != self._index:
                    self._post(receiver, self._turn, copy.deepcopy(message))
        if self.waits():
            raise Suspended
        heard = self._heard[self._turn]
        return [message if index == self._index else heard[index] for index, message in enumerate(messages)]

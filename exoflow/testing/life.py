"""The whole life of a simulated workflow: owners that come and go in a storm of faults, and the calm after it.

While the storm lasts, anything may happen that its faults allow. Then all faults stop, and the workflow must
come to its end: that is liveness, and a run that does not is as wrong as one with two histories. A workflow
that fails, by faults or because something outside stays out of order, is resumed; the latter is mended at the
latest when it fails in the calm.
"""

from __future__ import annotations

import random

from exoflow.blobs import blob_folder
from exoflow.codec import Blob
from exoflow.errors import Fenced
from exoflow.journal import Tail, read_steps
from exoflow.pins import pin_object
from exoflow.records import Status
from exoflow.steps import Delete, Get, Steps
from exoflow.storage import MemoryStore
from exoflow.testing.faults import LEASE_SECONDS, Faults, random_faults
from exoflow.testing.oracle import Judge
from exoflow.testing.outside import outside
from exoflow.testing.owner import WORKFLOW_ID, Owner, Setting
from exoflow.testing.workflows import Closed, random_plan
from exoflow.testing.world import Process, Violation, World

_MAX_STORM_STEPS = 400
_MAX_STEPS = 20_000
_MAX_OWNERS_AT_ONCE = 3
_PIN_SECONDS = 24 * 3600.0
_ENDS = (Status.SUCCESSFUL, Status.IN_DOUBT)
_CLOSED = f"{Closed.__module__}.{Closed.__name__}"


class CreationOrder(MemoryStore):
    """A store that lists keys in the order of their creation.

    For the journal that is the order of its numbers. Names of blobs hold a random mark of their writer, and
    nothing in a run may depend on those.
    """

    def list(self, prefix: str) -> list[str]:
        """Return the keys below the folder ``prefix``, oldest first."""
        folder = prefix.rstrip("/") + "/"
        return [key for key in self.objects if key.startswith(folder)]


class Reader(Process):
    """Somebody who pins what the newest records need, and reads it for a while."""

    def __init__(self, world: World, judge: Judge, number: int) -> None:
        super().__init__(f"reader {number}")
        self._world = world
        self._judge = judge
        world.run(self, self._read(), lambda _: None, lambda _: None)

    def _read(self) -> Steps[None]:
        tail = yield from read_steps(WORKFLOW_ID)
        blobs = self._blobs(tail)
        pin = pin_object(WORKFLOW_ID, self.name, blobs, self._world.now + _PIN_SECONDS)
        yield pin
        # The pin counts only if what it names is still in the journal; see exoflow.pins.
        again = yield from read_steps(WORKFLOW_ID)
        names = again.history.blobs()
        held = [blob for blob in blobs if blob.name in names]
        self._judge.pinned[self.name] = {blob.name for blob in held}
        try:
            for blob in held:
                yield Get(f"{blob_folder(WORKFLOW_ID)}/{blob.name}")
                self._judge.still_there(blob)
        finally:
            del self._judge.pinned[self.name]
        yield Delete(pin.key)

    @staticmethod
    def _blobs(tail: Tail) -> list[Blob]:
        return [blob for record in tail.history.committed.values() for blob in record.blobs]


class Life:
    """One run: a workflow from its start to its end.

    Parameters
    ----------
    seed : int
        Decides workflow (unless ``setting`` names one), faults (unless given), and everything that happens.
    """

    def __init__(
        self,
        seed: int,
        setting: Setting | None = None,
        faults: Faults | None = None,
        objects: dict[str, bytes] | None = None,
    ) -> None:
        chooser = random.Random(seed)
        self.seed = seed
        self.setting = setting or Setting(random_plan(seed), chooser.choice((2, 3, 8)))
        self.faults = random_faults(chooser) if faults is None else faults
        self.world = World(CreationOrder(dict(objects or {})), chooser.randrange(2**62), self.faults)
        self.judge = Judge(self.world.store, WORKFLOW_ID, self.setting.plan, self.setting.expand)
        self.world.landing.append(self.judge.watch)
        self.owners: list[Owner] = []
        self.executions: list[str] = []
        self.overtaken = False
        self._readers = 0
        self._owners_before_mending = 0
        self._storm_steps = chooser.randrange(_MAX_STORM_STEPS)
        outside.reset(self.world.random, chooser.choice((0.0, 0.0, 0.3)))
        outside.closed = True

    def run(self) -> Status:
        """Run to the end and judge it.

        Raises
        ------
        Violation
            When the engine broke a promise.
        """
        world = self.world
        while world.steps < self._storm_steps and not self._over():
            self._trouble()
            self._advance()
            self._mend(0.05)
        world.calm()
        outside.unsure = 0.0
        calm_from = len(self.owners)
        while not self._over():
            if world.steps > self._storm_steps + _MAX_STEPS:
                message = f"not over {_MAX_STEPS} steps after the last fault"
                raise Violation(message)
            self._advance()
            self._mend(1.0)
            self._expect_success(calm_from)
        self.judge.judge_end()
        self.judge.judge_effects()
        assert self.judge.status is not None
        return self.judge.status

    def _advance(self) -> None:
        living = self._living()
        if not living:
            if not self._ended():
                self._start_owner()
        elif not self.world.step():
            message = f"nothing can happen any more, and {', '.join(owner.name for owner in living)} waits"
            raise Violation(message)
        for owner in living:
            self._expect_reason(owner)

    def _over(self) -> bool:
        return self._ended() and not self._living()

    def _ended(self) -> bool:
        return self.judge.status in _ENDS

    def _living(self) -> list[Owner]:
        return [owner for owner in self.owners if owner.alive]

    def _start_owner(self) -> None:
        self.overtaken = self.overtaken or bool(self._living())
        made = (self.setting.owner or Owner)(self.world, self.setting, len(self.owners) + 1, self.executions.append)
        self.owners.append(made)

    def _mend(self, probability: float) -> None:
        """Perhaps bring in order what the workflow has failed of."""
        failed = self.judge.status is Status.FAILED and _CLOSED in (self.judge.error or "")
        if failed and outside.closed and self.world.chance(probability):
            self.world.note("what was out of order is mended")
            outside.closed = False
            self._owners_before_mending = len(self.owners)

    def _expect_success(self, calm_from: int) -> None:
        """Check that an owner who has met no fault comes to a good end, or fails of what is out of order."""
        for number, owner in enumerate(self.owners[calm_from:], calm_from):
            failed = owner.end is not None and owner.end.status not in _ENDS
            excused = number < self._owners_before_mending or outside.closed
            if failed and excused and owner.end is not None and _CLOSED in (owner.end.error or ""):
                continue
            if failed or (owner.error is not None and not isinstance(owner.error, Fenced)):
                why = owner.error if owner.end is None else f"{owner.end.status} {owner.end.error}"
                message = f"without any fault {owner.name} ends so: {why}"
                raise Violation(message)

    def _expect_reason(self, owner: Owner) -> None:
        """Check that nobody gives way to an owner that does not exist."""
        fenced = isinstance(owner.error, Fenced) and owner.core is not None
        if fenced and self.judge.generation <= owner.tenure.generation:
            message = f"{owner.name} was fenced, and nobody has taken over"
            raise Violation(message)

    # --- the storm --------------------------------------------------------------------------------------

    def _trouble(self) -> None:
        world, faults = self.world, self.world.faults
        living = self._living()
        if not living:
            return
        if world.chance(faults.crash):
            world.random.choice(living).crash()
        if world.chance(faults.pause):
            owner = world.random.choice(living)
            if owner.alive and not owner.paused:
                world.pause(owner, world.random.random() * 3 * LEASE_SECONDS)
        if world.chance(faults.take_over) and len(living) < _MAX_OWNERS_AT_ONCE:
            self._start_owner()
        if world.chance(faults.lose_actor):
            world.random.choice(living).workers.lose_member()
        if world.chance(faults.read):
            self._readers += 1
            Reader(world, self.judge, self._readers)

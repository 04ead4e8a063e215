"""Test your own workflows as the engine is tested: a simulated world in which everything may go wrong.

`Life` runs a workflow through a storm of faults and judges it, `Simulation` runs one owner's tenure, and
`crash_states` yields every state that a crash of it may leave in the store. One seed decides everything.
"""

from exoflow.testing.faults import CALM, Faults, random_faults
from exoflow.testing.life import Life
from exoflow.testing.owner import WORKFLOW_ID, Owner, Setting
from exoflow.testing.simulation import Crashed, Simulation, run_to_end
from exoflow.testing.world import Violation, World
from exoflow.testing.writelog import LogEntry, crash_states

__all__ = [
    "CALM",
    "WORKFLOW_ID",
    "Crashed",
    "Faults",
    "Life",
    "LogEntry",
    "Owner",
    "Setting",
    "Simulation",
    "Violation",
    "World",
    "crash_states",
    "random_faults",
    "run_to_end",
]

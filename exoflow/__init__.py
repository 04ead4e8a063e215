"""Exactly-once workflows on Ray.

A task is a function; binding tasks makes a DAG; running a DAG under an id makes a workflow that can be
resumed after any crash. Annotations say what a task's execution means, and choose what durability costs.
"""

from exoflow.api import Handle, resolve, resume, run, run_async
from exoflow.codec import Blob
from exoflow.dag import Node, actor, loop, stop, task
from exoflow.effects import Done, NotDone, Unknown
from exoflow.errors import (
    ClusterLost,
    ClusterUnavailable,
    CorruptRecord,
    DefinitionError,
    EffectNotDone,
    ExoflowError,
    Fenced,
    InDoubt,
    NoRetry,
    PlanMismatch,
    StorageUnavailable,
    TaskFailed,
    WorkflowError,
    WorkflowNotFound,
    WorkflowRunning,
)
from exoflow.options import Checkpoint
from exoflow.precedence import take_precedence
from exoflow.readers import LoopView, get_metadata, get_output, get_status, list_all, read_loop
from exoflow.records import Status
from exoflow.settings import init
from exoflow.views import IterationView, TaskView
from exoflow.worker import context

__all__ = [
    "Blob",
    "Checkpoint",
    "ClusterLost",
    "ClusterUnavailable",
    "CorruptRecord",
    "DefinitionError",
    "Done",
    "EffectNotDone",
    "ExoflowError",
    "Fenced",
    "Handle",
    "InDoubt",
    "IterationView",
    "LoopView",
    "NoRetry",
    "Node",
    "NotDone",
    "PlanMismatch",
    "Status",
    "StorageUnavailable",
    "TaskFailed",
    "TaskView",
    "Unknown",
    "WorkflowError",
    "WorkflowNotFound",
    "WorkflowRunning",
    "actor",
    "context",
    "get_metadata",
    "get_output",
    "get_status",
    "init",
    "list_all",
    "loop",
    "read_loop",
    "resolve",
    "resume",
    "run",
    "run_async",
    "stop",
    "take_precedence",
    "task",
]

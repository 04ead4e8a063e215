"""Every error the engine raises on purpose.

::

    ExoflowError
      DefinitionError        a DAG, an option or a store URI is wrong; raised before anything runs
      WorkflowError          carries workflow_id
        WorkflowNotFound     no workflow of that id in the store
        WorkflowRunning      a live owner holds it
        PlanMismatch         the id belongs to a workflow with another plan or changed code
        TaskFailed           a task gave up: its error is the cause
        InDoubt              an effect may or may not have happened; `exoflow resolve` settles it
        Fenced               another owner took the workflow over; this process must stop
      ClusterUnavailable     Ray can be neither started nor joined
      ClusterLost            the Ray node that the owner works through has died; resume
      EffectNotDone          raised by a task's body: it vouches that it has had no effect
      NoRetry                raised by a task's body: trying again would not help
      StorageError           carries key
        StorageUnavailable   the store is out of reach, full or not writable; never means "absent"
        CorruptRecord        bytes in the store are not the bytes that were written

Each of them survives pickling, because errors travel between processes.
"""

from __future__ import annotations

from typing import Any


class ExoflowError(Exception):
    """Base of every error raised by the engine."""


class DefinitionError(ExoflowError):
    """A DAG, an option or a store URI is wrong."""


class WorkflowError(ExoflowError):
    """An error of one workflow, named by ``workflow_id``."""

    def __init__(self, workflow_id: str, message: str) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the constructor's own arguments, which ``Exception`` does not keep."""
        return (type(self), (self.workflow_id, str(self)))


class WorkflowNotFound(WorkflowError):
    """No workflow of that id is in the store."""


class WorkflowRunning(WorkflowError):
    """A live owner holds the workflow."""

    def __init__(self, workflow_id: str, owner: str) -> None:
        super().__init__(
            workflow_id,
            f"workflow {workflow_id!r} is running, owned by {owner}; "
            "stop that process, or take the workflow over on purpose (take_over=True, --take-over)",
        )
        self.owner = owner

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from workflow id and owner."""
        return (type(self), (self.workflow_id, self.owner))


class PlanMismatch(WorkflowError):
    """The id belongs to a workflow with another plan, or its code has changed."""


class Fenced(WorkflowError):
    """Another owner has taken the workflow over."""


class TaskFailed(WorkflowError):
    """A task failed for good.

    Attributes
    ----------
    task : str
        Id of the task, such as ``"rank"`` or ``"apply[12]"``.
    detail : str
        The error as text, with the traceback of the process that raised it.
    """

    def __init__(self, workflow_id: str, task: str, detail: str) -> None:
        super().__init__(workflow_id, f"task {task!r} of workflow {workflow_id!r} failed: {detail}")
        self.task = task
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from id, task and detail."""
        return (type(self), (self.workflow_id, self.task, self.detail))


class InDoubt(WorkflowError):
    """An effect of a task may or may not have happened, and only a person can find out.

    Attributes
    ----------
    task : str
        Id of the task.
    detail : str
        What cut it off.
    """

    def __init__(self, workflow_id: str, task: str, detail: str) -> None:
        super().__init__(
            workflow_id,
            f"task {task!r} of workflow {workflow_id!r} is in doubt: {detail}\n"
            f"find out, then say so: exoflow resolve {workflow_id} {task!r} --done VALUE | --not-done; then resume",
        )
        self.task = task
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from id, task and detail."""
        return (type(self), (self.workflow_id, self.task, self.detail))


class EffectNotDone(ExoflowError):
    """Raised by the body of an external task to say for certain that it has had no effect."""


class NoRetry(ExoflowError):
    """Raised by a task's body to say that trying again would not help: ``retries`` do not count."""


class StorageError(ExoflowError):
    """An error of the store at one ``key``."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from key and message."""
        return (type(self), (self.key, str(self)))


class ClusterUnavailable(ExoflowError):
    """Ray can be neither started nor joined; nothing has run."""


class ClusterLost(ExoflowError):
    """The Ray node that the owner works through has died. The workflow is interrupted, and can be resumed."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node

    def __str__(self) -> str:
        return f"the Ray node {self.node} of this process has died; resume the workflow"


class StorageUnavailable(StorageError):
    """The store could not be reached, is full or may not be written. Never means "absent"."""


class CorruptRecord(StorageError):
    """Bytes in the store are not the bytes that were written."""

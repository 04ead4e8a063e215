"""A Spark job as a step of a workflow: one warm session, and output that is committed once.

The glue between jobs, which know PySpark only, and whoever runs them. Importing this module needs neither
PySpark nor Java; running a step does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spark.output import OutputFolder
from spark.session import close_session, is_alive, open_session

Inputs = Sequence[tuple[str, int]]
Job = Callable[..., dict[str, Any]]


class SparkSteps:
    """Runs jobs one after the other on a session that is opened once and kept warm.

    Parameters
    ----------
    scratch : Path
        Folder for Spark's temporary files.
    master : str
        Spark master, such as ``local[2]`` or ``spark://host:7077``.
    """

    def __init__(self, scratch: Path, master: str = "local[*]") -> None:
        self._scratch = scratch
        self._master = master
        self._session: Any = None

    def run(self, job: Job, inputs: Inputs, output: Path, key: str, **arguments: Any) -> dict[str, Any]:
        """Run ``job`` unless its output is committed already.

        Parameters
        ----------
        job : callable
            ``main(session, inputs, output, **arguments)`` of a job; returns the manifest it wrote.
        inputs : sequence of (path, sequence)
            Snapshot files and their order.
        output : Path
            Folder that will hold the committed output and a pointer to it.
        key : str
            Idempotency key; names this attempt's folder.

        Returns
        -------
        dict
            ``path`` of the committed folder, and ``seconds`` that this call took.

        Raises
        ------
        spark.session.SparkUnavailable
            When there is no usable Java, no PySpark, or Spark does not start.
        """
        began = time.monotonic()
        folder = OutputFolder(output)
        committed = folder.committed()
        if committed is None:
            if self._session is not None and not is_alive(self._session):
                self.close()
            if self._session is None:
                self._session = open_session(self._master, scratch=self._scratch)
            attempt = folder.begin(key)
            job(self._session, inputs, str(attempt), **arguments)
            committed = folder.commit(attempt)
        return {"path": str(committed), "seconds": time.monotonic() - began}

    def close(self) -> None:
        """End the session and its Java process."""
        if self._session is not None:
            close_session(self._session)
            self._session = None

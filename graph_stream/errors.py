"""Errors of the application that a user sees.

::

    GraphStreamError
      ConfigError        an option has a value it cannot have, or differs from the recorded one
      EpochNotFound      an epoch is not committed, or no longer kept
      MemoryLimitReached the graph has come to --max-memory
      TooManyBadRecords  more records were unreadable than --max-bad-records allows
      SinkUnavailable    what is published to could not be reached; try again
      SinkConflict       what is published to holds something else where an epoch should go
      CorruptSnapshot    bytes that are no snapshot this release can read  (`graph_stream.snapshot`)
      CapacityExceeded   more vertices than fixed point can carry          (`graph_stream.certificate`)
      MatplotlibMissing  pictures need an extra that is not installed      (`graph_stream.plot_style`)
"""

from __future__ import annotations


class GraphStreamError(Exception):
    """Base of the application's errors."""


class ConfigError(GraphStreamError):
    """An option has a value it cannot have, or differs from the recorded one."""


class EpochNotFound(GraphStreamError):
    """An epoch is not committed, or no longer kept."""


class MemoryLimitReached(GraphStreamError):
    """The graph has come to the limit of memory it was given."""


class TooManyBadRecords(GraphStreamError):
    """More records were unreadable than the run allows."""


class SinkUnavailable(GraphStreamError):
    """What is published to could not be reached, or did not say that it took a publication."""


class SinkConflict(GraphStreamError):
    """What is published to holds something else where an epoch should go."""

"""The sources of a run, opened as the run began with them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from graph_stream.config import RunConfig
from ingest import EpochBatch, EpochReader, Records, Source, open_source


def opened(config: RunConfig, tell: Callable[[str], None] | None = None) -> list[Source]:
    """Return the sources of a run; ``tell`` gets lines about what they wait for and have lost."""
    return [
        open_source(
            uri,
            config.columns,
            settled=config.settled.get(uri),
            on_lost_offset=config.on_lost_offset,
            tell=tell,
            ids=config.ids,
        )
        for uri in config.sources
    ]


def settled(config: RunConfig, tell: Callable[[str], None] | None = None) -> RunConfig:
    """Return a new run's configuration with what its sources settle once, such as where "latest" is.

    Raises
    ------
    ingest.SourceError
        When a source cannot be opened.
    """
    found = {}
    for source in opened(config, tell):
        with contextlib.closing(source):
            source.splits()
            found[source.uri] = source.settle()
    return dataclasses.replace(config, settled={uri: each for uri, each in found.items() if each is not None})


def records_of(reader: EpochReader, cut: Mapping[str, Any]) -> EpochBatch | Records:
    """Read the records of an epoch that was cut before; raises SourceError where they are gone."""
    if "ranges" in cut:
        return reader.reread(cut["ranges"])
    return reader.read(cut["begin"])  # of a run by an older release: cut by count alone

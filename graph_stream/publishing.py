"""Publishing as the workflow does it: a branch of each epoch for each sink, in turn, as an effect of the engine.

A branch reads what the members left with their snapshot of the epoch, so it begins once that is committed, and
it never holds the computation up, unless a sink stays `MAX_BEHIND` epochs behind. What makes an epoch visible
once is the engine's rule for effects, with what the sink itself remembers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import exoflow
from exoflow.dag import Node
from graph_stream import ledger
from graph_stream.changed import Changed
from graph_stream.config import RunConfig
from graph_stream.errors import ConfigError, SinkConflict, SinkUnavailable
from graph_stream.namelist import NameList
from graph_stream.namestore import Dictionary, load
from graph_stream.publication import Marker, Publication, assemble, encode_share
from graph_stream.sinks import Sink, open_sink

MAX_BEHIND = 64
"""Epochs that a sink may be behind before the stream waits for it."""
RETRIES = 9
BACKOFF_SECONDS = 1.0
"""Pause before the first retry, twice as long before each further one: 8.5 minutes in all, beside the attempts."""
TIMEOUT_SECONDS = 900.0
"""After which one attempt is ended from outside."""


def branches(config: RunConfig, epoch: int, published: Node, states: Sequence[Any]) -> list[Node]:
    """Return the nodes that publish an epoch, one for each of the run's sinks.

    ``states`` are the snapshots of the members, and in a run with names of the reader.
    """
    shown = config.to_json()
    return [
        exoflow.actor(Publisher)
        .options(name=f"sink_{number}")
        .bind(shown, number)
        .publish.options(name=f"sink_{number}", retries=RETRIES, backoff=BACKOFF_SECONDS, timeout=TIMEOUT_SECONDS)
        .bind(epoch, published, *states)
        .in_turn(max_behind=MAX_BEHIND)
        for number in range(1, len(config.publish) + 1)
    ]


@exoflow.actor(checkpoint="async", external=True, idempotent=True, num_cpus=0)
class Publisher:
    """Publishes a run's epochs to one sink."""

    def __init__(self, config: dict[str, Any], number: int) -> None:
        options = RunConfig.from_json(config)
        self._target = options.targets()[number - 1]
        self._ranking = options.ranking_of(self._target.algorithm)
        self._scale = options.parameters()[self._ranking].scale
        self._sink: Sink | None = None
        self._in_trouble = False
        self._names = NameList()

    def publish(
        self, epoch: int, row: dict[str, Any], states: Sequence[dict[str, Any]], reader: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Publish an epoch, unless that has been done; in a run with names ``reader`` is the state that has them.

        Returns
        -------
        dict
            JSON-able: ``epoch``, and how many ``rows`` were published, ``deleted`` of them deletions.

        Raises
        ------
        SinkUnavailable
            See `graph_stream.sinks.Sink`.
        NoRetry
            On a SinkConflict, or when what the sink needs is not installed.
        """
        context = exoflow.context()
        of_ranking = ledger.of_ranking(row, self._ranking)
        marker = Marker(
            run_id=context.workflow_id,
            stream=context.turns,
            epoch=epoch,
            algorithm=self._target.algorithm,
            top=self._target.top,
            state_hash=of_ranking["state_hash"],
            error_bound=of_ranking["error_bound"],
            rows=0,
            deleted=0,
            vertices=row["vertices"],
            edges=row["edges"],
        )
        shares = [context.read_blob(state["shares"][str(self._ranking)]) for state in states]
        publication = assemble(shares, marker, self._scale)
        if reader is not None:
            # Epochs come in turn: what is new of the dictionary is read, and the rest kept.
            load(Dictionary.from_json(reader["names"]), context.read_blob, self._names)
            publication = publication.in_names(self._names)
        self._offer(publication)
        return {"epoch": epoch, "rows": publication.marker.rows, "deleted": publication.marker.deleted}

    def _offer(self, publication: Publication) -> None:
        """Publish, and tell whoever watches the run of trouble, and of its end."""
        context, epoch = exoflow.context(), publication.marker.epoch
        try:
            if self._sink is None:
                self._sink = open_sink(self._target.place, context.turns)
            self._sink.publish(publication)
        except SinkUnavailable as error:
            self._in_trouble = True
            context.tell(f"epoch {epoch} is not published: {error}")
            raise
        except (SinkConflict, ConfigError) as error:
            message = f"epoch {epoch} cannot be published: {error}"
            context.tell(message)
            raise exoflow.NoRetry(message) from error
        if self._in_trouble:
            self._in_trouble = False
            context.tell(f"epoch {epoch} is published to {self._target.place}")


def watched(config: RunConfig) -> dict[int, int]:
    """Return the rankings whose changes are published, each with how many of its best vertices are asked for."""
    found: dict[int, int] = {}
    for target in config.targets():
        ranking = config.ranking_of(target.algorithm)
        found[ranking] = max(found.get(ranking, 0), target.top or 0)
    return found


def encode_shares(config: RunConfig, changed: Mapping[int, Changed]) -> dict[int, bytes]:
    """Return a member's share of an epoch, by ranking, as far as it is published."""
    everything = {config.ranking_of(target.algorithm) for target in config.targets() if target.top is None}
    return {ranking: encode_share(each, best_only=ranking not in everything) for ranking, each in changed.items()}


def check_sinks(config: RunConfig, *, new: bool) -> None:
    """Look whether all sinks can be published to; raises ConfigError, SinkUnavailable."""
    for target in config.targets():
        open_sink(target.place).check(new=new)

"""What a reader of a topic sees of published epochs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, TopicPartition


@dataclasses.dataclass(frozen=True)
class Seen:
    """One epoch as one partition shows it: its marker, and the rows before it, by vertex."""

    marker: dict[str, Any]
    rows: dict[int | str, dict[str, Any] | None]


def committed_records(address: str, topic: str) -> Iterator[Any]:
    """Yield the records of a topic that readers of committed ones get, partition by partition."""
    consumer = KafkaConsumer(
        bootstrap_servers=address, isolation_level="read_committed", enable_auto_commit=False, group_id=None
    )
    try:
        for number in sorted(consumer.partitions_for_topic(topic) or ()):
            partition = TopicPartition(topic, number)
            end = consumer.end_offsets([partition])[partition]
            consumer.assign([partition])
            consumer.seek(partition, 0)
            while consumer.position(partition) < end:
                for records in consumer.poll(timeout_ms=500).values():
                    yield from records
    finally:
        consumer.close()


def epochs_seen(address: str, topic: str) -> dict[int, list[Seen]]:
    """Return, by partition, the epochs in the order in which a reader sees them; fails where one is not whole."""
    found: dict[int, list[Seen]] = {}
    rows: dict[int, dict[int | str, dict[str, Any] | None]] = {}
    for record in committed_records(address, topic):
        open_ = rows.setdefault(record.partition, {})
        if not record.key.startswith(b"epoch:"):
            vertex = json.loads(record.key)
            assert vertex not in open_, f"vertex {vertex} twice in one epoch"
            open_[vertex] = None if record.value is None else json.loads(record.value)
            continue
        marker = json.loads(record.value)
        assert marker["partition_rows"] == len(open_)
        for row in open_.values():
            assert row is None or row["epoch"] == marker["epoch"]
        found.setdefault(record.partition, []).append(Seen(marker, open_))
        rows[record.partition] = {}
    assert not any(rows.values()), "records without a marker behind them"
    return found


def merged(address: str, topic: str) -> list[Seen]:
    """Return a topic's epochs in order, each with the rows of all partitions; fails where they do not agree."""
    parts = epochs_seen(address, topic)
    assert len({len(each) for each in parts.values()}) <= 1
    together = []
    for seen in zip(*parts.values(), strict=True):
        shown = [{name: value for name, value in each.marker.items() if name != "partition_rows"} for each in seen]
        assert all(each == shown[0] for each in shown)
        assert shown[0]["partitions"] == len(parts)
        rows = {vertex: row for each in seen for vertex, row in each.rows.items()}
        assert len(rows) == sum(len(each.rows) for each in seen) == shown[0]["rows"]
        together.append(Seen(shown[0], rows))
    return together


def epochs_once(seen: list[Seen], last: int) -> bool:
    """Whether epochs 1 to ``last`` are there, each once, in order."""
    return [each.marker["epoch"] for each in seen] == list(range(1, last + 1))

"""What ingestion costs beside the readers it is made of: `make bench-ingest`.

1. Text: edges out of a file in memory, by the source's parser and by pyarrow's own CSV reader on the same bytes,
   one core each. Plain lines (two numbers and a tab), and lines that the parser must rewrite first.
2. Kafka: from a topic to arrays that are dealt to the members of a run, beside a bare kafka-python loop that
   throws its messages away, through either client, and beside a bare loop of the other, confluent-kafka. Per
   second of the clock, and per second of this process's CPU: the broker shares the machine.

A broker is started in a temporary folder. Writes results/ingest/*.parquet. What loses is printed too.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import importlib.util
import io
import logging
import pstats
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import Goal, Side, interleaved, rates, show, show_goals, write
from pyarrow import csv

import ingest
from graph_stream.ownership import owner
from ingest import EpochReader, open_source
from ingest.kafka_uri import CONFLUENT, KAFKA_PYTHON
from ingest.parse import layout_of, parse_lines
from ingest.text import CHUNK_BYTES, MAX_LINE_BYTES

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka as kafka_python
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition
    from kafka.admin import KafkaAdminClient, NewTopic

KAFKA = Path(__file__).parents[1] / "clusters" / "local" / "kafka.sh"
TOPIC, SPLITS, MEMBERS, EPOCH_EDGES = "edges", 3, 4, 10_000
START_SECONDS = 60.0


def main() -> int:
    """Run the benchmarks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--messages", type=int, default=300_000)
    parser.add_argument("--out", type=Path, default=Path("results/ingest"))
    options = parser.parse_args()
    logging.getLogger("kafka").addHandler(logging.NullHandler())
    goals = [*text(options), *kafka(options)]
    show_goals(goals)
    return 0


def text(options: argparse.Namespace) -> list[Goal]:
    """Parse text; return the goals."""
    drawn = np.random.default_rng(1).integers(0, 1_000_000, (options.lines, 2)).tolist()
    plain = b"".join(b"%d\t%d\n" % (src, dst) for src, dst in drawn)
    rewritten = b"".join(b"%d \t%d\n" % (src, dst) for src, dst in drawn)
    layout = layout_of(b"", ("src", "dst"))

    def ours(data: bytes) -> Callable[[], float]:
        def measure() -> float:
            began, parsed, at = time.process_time(), 0, 0
            while at < len(data):  # in the chunks that a file is read in
                end = data.rfind(b"\n", at, at + CHUNK_BYTES) + 1
                parsed += len(parse_lines(data[at:end], layout, MAX_LINE_BYTES).records)
                at = end
            assert parsed == options.lines
            return parsed / (time.process_time() - began)

        return measure

    def pyarrow(data: bytes) -> Callable[[], float]:
        def measure() -> float:
            began = time.process_time()
            table = csv.read_csv(
                pa.BufferReader(data),
                csv.ReadOptions(use_threads=False, column_names=["src", "dst"]),
                csv.ParseOptions(delimiter="\t", quote_char=False),
                csv.ConvertOptions(column_types={"src": pa.int64(), "dst": pa.int64()}),
            )
            assert table.num_rows == options.lines
            return options.lines / (time.process_time() - began)

        return measure

    sides = {
        "pyarrow's CSV reader": Side(pyarrow(plain), "pyarrow's CSV reader"),
        "plain lines": Side(ours(plain), "pyarrow's CSV reader"),
        "lines to be rewritten": Side(ours(rewritten), "pyarrow's CSV reader"),
    }
    figures = interleaved(sides, options.runs)
    show("Text to records, one core", "lines/s of CPU", sides, figures)
    write(options.out / "text.parquet", rates(figures))
    return [Goal("plain lines, of pyarrow's CSV reader", _ratio(figures, "plain lines", sides), at_least=0.6)]


def kafka(options: argparse.Namespace) -> list[Goal]:
    """Read a topic; return the goals."""
    with tempfile.TemporaryDirectory(prefix="exoflow-bench-") as folder, broker(Path(folder)) as address:
        fill(address, options.messages)
        goals = []
        for clock, unit in ((time.perf_counter, "messages/s"), (time.process_time, "messages/s of CPU")):
            sides = {
                "bare kafka-python": Side(timed(clock, bare, address, options.messages), "bare kafka-python"),
                "topic to arrays of members": Side(
                    timed(clock, partial(to_members, KAFKA_PYTHON), address, options.messages), "bare kafka-python"
                ),
            }
            if importlib.util.find_spec("confluent_kafka"):
                sides["bare confluent-kafka"] = Side(
                    timed(clock, librdkafka, address, options.messages), "bare kafka-python"
                )
                sides["the same through confluent-kafka"] = Side(
                    timed(clock, partial(to_members, CONFLUENT), address, options.messages), "bare confluent-kafka"
                )
            figures = interleaved(sides, options.runs)
            show("Kafka to records", unit, sides, figures)
            name = "kafka" if clock is time.perf_counter else "kafka-cpu"
            write(options.out / f"{name}.parquet", rates(figures))
            ratio = _ratio(figures, "topic to arrays of members", sides)
            goals.append(Goal(f"topic to arrays, of a bare loop, {unit}", ratio, at_least=0.8))
        where_the_time_goes(address, options.messages)
    return goals


def _ratio(figures: dict[str, list[float]], side: str, sides: dict[str, Side]) -> float:
    peer = figures[sides[side].peer]
    return float(np.median([mine / its for mine, its in zip(figures[side], peer, strict=True)]))


def timed(clock: Callable[[], float], read: Callable[[str], int], address: str, messages: int) -> Callable[[], float]:
    """Return what measures a way to read the topic."""

    def measure() -> float:
        began = clock()
        assert read(address) == messages
        return messages / (clock() - began)

    return measure


def bare(address: str) -> int:
    """Take all messages from kafka-python and drop them."""
    consumer = KafkaConsumer(bootstrap_servers=address, enable_auto_commit=False, isolation_level="read_committed")
    splits = [TopicPartition(TOPIC, number) for number in range(SPLITS)]
    consumer.assign(splits)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(splits)
    count = 0
    while count < sum(ends.values()):
        count += sum(map(len, consumer.poll(1000).values()))
    consumer.close()
    return count


def librdkafka(address: str) -> int:
    """Take all messages from confluent-kafka and drop them."""
    import confluent_kafka

    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": address, "group.id": "bench", "enable.auto.commit": False}
    )
    splits = [confluent_kafka.TopicPartition(TOPIC, number, 0) for number in range(SPLITS)]
    ends = [consumer.get_watermark_offsets(split)[1] for split in splits]
    consumer.assign(splits)
    count = 0
    while count < sum(ends):
        count += len(consumer.consume(10_000, 0.1))
    consumer.close()
    return count


def to_members(client: str, address: str) -> int:
    """Read the topic as a run does, and deal each epoch to the members that own the followers."""
    with EpochReader([open_source(f"kafka://{address}/{TOPIC}?until=end&client={client}")], EPOCH_EDGES) as epochs:
        position, count, last = epochs.start(), 0, False
        while not last:
            batch = epochs.read(position)
            owners = owner(batch.src, MEMBERS)
            for member in range(MEMBERS):
                mine = owners == member
                dealt = batch.src[mine], batch.dst[mine], batch.op[mine]
                count += len(dealt[0])
            position, last = batch.end, batch.last
    return count


def where_the_time_goes(address: str, messages: int) -> None:
    """Print which functions take the time of reading a topic."""
    profile = cProfile.Profile()
    profile.runcall(to_members, KAFKA_PYTHON, address)
    text = io.StringIO()
    stats = pstats.Stats(profile, stream=text)
    total = sum(row[2] for row in stats.stats.values())  # type: ignore[attr-defined]
    client, ours = (
        sum(row[2] for key, row in stats.stats.items() if key[0].startswith(str(Path(package.__file__).parent)))  # type: ignore[attr-defined]
        for package in (kafka_python, ingest)
    )
    print(
        f"\nProfiled over {messages:,} messages, in this thread: {client / total:.0%} in the client, "
        f"{ours / total:.0%} in ingest, the rest in what both call."
    )


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    """Yield the address of a broker of our own; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen([KAFKA, "serve", folder / "data", str(port)], stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + START_SECONDS
        while b"Kafka Server started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                message = f"the broker did not start: {log.read_text()}"
                raise RuntimeError(message)
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def fill(address: str, messages: int) -> None:
    """Fill a topic with edges."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic(TOPIC, SPLITS, 1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=address, linger_ms=20, batch_size=256 * 1024)
    for number, (src, dst) in enumerate(np.random.default_rng(2).integers(0, 1_000_000, (messages, 2)).tolist()):
        producer.send(TOPIC, b"%d\t%d" % (src, dst), partition=number % SPLITS)
    producer.close()


if __name__ == "__main__":
    raise SystemExit(main())

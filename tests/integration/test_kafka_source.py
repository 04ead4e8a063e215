"""Topics of a real broker as a source: what is read, in which order, and what happens when it is not there."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from kafka import TopicPartition
from kafka.admin import NewPartitions

from ingest import EpochReader, SourceError, open_source
from ingest.kafka_uri import CLIENTS, CONFLUENT
from tests.integration.services import Kafka, KafkaCluster, KafkaServer, use_client


@pytest.fixture(params=CLIENTS, autouse=True)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with either client: what is read must not depend on it."""
    return use_client(request.param, monkeypatch)


def send(kafka: Kafka, topic: str, partition: int, *values: bytes | None, at: float | None = None) -> None:
    """Send messages, with another time than now if one is given."""
    time_ms = None if at is None else int(at * 1000)
    with kafka.producer() as producer:
        for value in values:
            key = b"k" if value is None else None
            producer.send(topic, value, key=key, partition=partition, timestamp_ms=time_ms)


def send_in_transactions(kafka: Kafka, topic: str, *transactions: list[bytes]) -> None:
    """Send messages to partition 0, each with itself as key; each transaction takes one offset more at its end."""
    with kafka.producer(transactional_id=topic) as producer:
        producer.init_transactions()
        for values in transactions:
            producer.begin_transaction()
            for value in values:
                producer.send(topic, value, key=value, partition=0)
            producer.commit_transaction()


def uri(kafka: Kafka, topic: str, query: str = "until=end") -> str:
    return f"kafka://{kafka.address}/{topic}?{query}"


def edges(*pairs: tuple[int, int]) -> list[bytes]:
    return [b"%d %d" % pair for pair in pairs]


def read_all(epochs: EpochReader):
    batches = [epochs.read(epochs.start())]
    while not batches[-1].last:
        batches.append(epochs.read(batches[-1].end))
    return batches


def test_a_topic_is_read_up_to_where_it_ends_as_files_are(kafka, tmp_path):
    """Block by block in turn, duplicates and poison and all: the same epochs as from files, one per partition."""
    topic = kafka.new_topic(3)
    for partition in range(3):
        lines = [b"%d %d" % (partition * 10_000 + i // 2, i) for i in range(2500 * partition + 300)]
        lines[7::100] = [b"poison"] * len(lines[7::100])
        send(kafka, topic, partition, *lines)
        (tmp_path / f"{topic}-{partition}.txt").write_bytes(b"".join(line + b"\n" for line in lines))
    source = open_source(uri(kafka, topic))
    assert source.splits() == [f"{topic}-{partition}" for partition in range(3)]
    with EpochReader([source], 1700) as topics, EpochReader([open_source(str(tmp_path))], 1700) as files:
        for batch, expected in zip(read_all(topics), read_all(files), strict=True):
            for name in ("src", "dst", "op"):
                assert getattr(batch, name).tolist() == getattr(expected, name).tolist()
            assert [(each.raw, each.reason) for each in batch.bad] == [(each.raw, each.reason) for each in expected.bad]
            assert batch.last == expected.last
            assert topics.reread(batch.ranges).src.tolist() == batch.src.tolist()


def test_every_kind_of_message(kafka):
    json_topic, csv_topic = kafka.new_topic(), kafka.new_topic()
    messages = [b'{"dst": 2, "src": 1, "op": "-", "time": 5.5}', b"[1]", b'{"src": 1}', None, b"{}{}", b'{"src": "1"}']
    send(kafka, json_topic, 0, *messages)
    send(kafka, csv_topic, 0, b"-,3,4,2026-11-22T00:00:00Z\n", b"# a comment", b"+,5,6,7\n+,8,9,7", b"+,1,2,3\r\n")
    columns = "op,src,dst,time"
    json_source = open_source(uri(kafka, json_topic, "until=end&format=json"), columns)
    csv_source = open_source(uri(kafka, csv_topic, "until=end&format=csv"), columns)
    with EpochReader([json_source, csv_source], 100) as epochs:
        (batch,) = read_all(epochs)
    assert batch.src.tolist() == [1, 3, 1]
    assert batch.dst.tolist() == [2, 4, 2]
    assert batch.op.tolist() == [-1, -1, 1]
    assert batch.time.tolist() == [5.5, 1795305600.0, 3.0]
    assert [(each.split, each.offset, each.raw, each.reason) for each in batch.bad] == [
        (f"{json_topic}-0", 1, b"[1]", "the message is no JSON object"),
        (f"{json_topic}-0", 2, b'{"src": 1}', "the object has no field op"),
        (f"{json_topic}-0", 3, b"", "the message has no value"),
        (f"{json_topic}-0", 4, b"{}{}", "the message is not JSON"),
        (f"{json_topic}-0", 5, b'{"src": "1"}', "the object has no field op"),
        (f"{csv_topic}-0", 2, b"+,5,6,7\n+,8,9,7", "the message has more than one line"),
    ]


def test_where_to_begin_is_settled_once(kafka):
    topic = kafka.new_topic()
    middle = time.time() - 60
    send(kafka, topic, 0, *edges((1, 1), (2, 2)), at=middle - 1)
    send(kafka, topic, 0, *edges((3, 3)), at=middle + 1)
    found = {}
    for begin in ("earliest", "latest", str(middle)):
        query = f"from={begin}&until=end"
        settled = open_source(uri(kafka, topic, query)).settle()
        found[begin] = settled["0"]
        assert found[begin][1] == 3
    assert [begin for begin, _ in found.values()] == [0, 3, 2]
    # What comes later is not read, for the end was settled too.
    send(kafka, topic, 0, *edges((4, 4)))
    source = open_source(uri(kafka, topic), settled={"0": [2, 3]})
    with EpochReader([source], 10) as epochs:
        (batch,) = read_all(epochs)
    assert batch.src.tolist() == [3]


def test_when_the_first_of_the_records_came_is_known(kafka):
    topic = kafka.new_topic()
    came = time.time() - 60
    send(kafka, topic, 0, *edges((1, 1)), at=came)
    send(kafka, topic, 0, *edges((2, 2)), at=came + 5)
    source = open_source(uri(kafka, topic))
    block = source.open(f"{topic}-0", None).read(10)
    source.close()
    assert block.since == pytest.approx(came, abs=0.002)


def test_what_a_transaction_took_back_is_not_seen(kafka):
    topic = kafka.new_topic()
    with kafka.producer(transactional_id=topic) as producer:
        producer.init_transactions()
        for number, commit in enumerate((True, False, True, False)):
            producer.begin_transaction()
            for value in edges((number, 1), (number, 2)):
                producer.send(topic, value, partition=0)
            producer.flush()
            (producer.commit_transaction if commit else producer.abort_transaction)()
    source = open_source(uri(kafka, topic))
    settled = source.settle()
    with EpochReader([source], 3) as epochs:
        batches = read_all(epochs)
    assert [batch.src.tolist() for batch in batches] == [[0, 0, 2], [2]]
    assert settled == {"0": [0, 12]}  # each transaction ends with a marker
    assert batches[-1].ranges[0][3] == 12  # the gaps are behind, too


def lost_offsets(batch):
    return sum(int(re.match(r"lost: (\d+) offsets, .*; the topic is compacted", each.reason)[1]) for each in batch.bad)


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_what_compaction_may_have_taken_is_told(kafka, policy):
    """In a compacted topic nobody can tell it from the ends of transactions, which are gaps at once."""
    topic = kafka.new_topic(cleanup_policy="compact")
    send_in_transactions(kafka, topic, edges((0, 0), (1, 1)), edges((2, 2), (3, 3)))
    told: list[str] = []
    source = open_source(uri(kafka, topic), on_lost_offset=policy, tell=told.append)
    # The last of the gaps is behind the last message, and may be found later.
    empty = rf"there is no message at \d of the offsets of {topic}-0 from 2 up to \d: the topic is compacted"
    with EpochReader([source], 100) as epochs:
        if policy == "fail":
            for _ in range(2):
                with pytest.raises(SourceError, match=f"{empty}.*--on-lost-offset skip"):
                    read_all(epochs)
            assert told == []
        else:
            (batch,) = read_all(epochs)
            assert batch.src.tolist() == [0, 1, 2, 3]
            assert batch.bad[0].offset == 2
            assert lost_offsets(batch) == 2
            (line,) = told
            assert re.search(empty, line)


def test_who_may_not_ask_whether_a_topic_is_compacted_is_told(kafka, client, monkeypatch):
    of_client = "kafka_confluent.ConfluentClient" if client == CONFLUENT else "kafka_python.PythonClient"
    monkeypatch.setattr(f"ingest.{of_client}.is_compacted", lambda _: None)
    topic = kafka.new_topic()
    send_in_transactions(kafka, topic, edges((1, 1)), edges((1, 1)))
    told: list[str] = []
    with EpochReader([open_source(uri(kafka, topic), tell=told.append)], 100) as epochs:
        (batch,) = read_all(epochs)
    assert batch.src.tolist() == [1, 1]
    assert not batch.bad
    assert [line.partition(": ")[2][:60] for line in told] == [
        "who reads it may not ask whether the topic is compacted (Des"
    ]


def test_a_compacted_topic_is_read_to_its_end(kafka):
    topic = kafka.new_topic(cleanup_policy="compact", min_cleanable_dirty_ratio="0.001", segment_ms="100")
    first_ms = int(time.time() * 1000) - 60_000
    with kafka.producer() as producer:
        for number in range(300):
            # A segment of the log holds the messages of so many milliseconds by their own times.
            time_ms = first_ms + 200 * (number // 100)
            key = b"%d" % (number % 3)
            producer.send(topic, b"%d 1" % number, key=key, partition=0, timestamp_ms=time_ms).get(10)
    source = open_source(uri(kafka, topic), on_lost_offset="skip")
    with EpochReader([source], 1000) as epochs:
        (batch,) = read_all(epochs)
    # How far the broker has come with compaction is its own business.
    assert batch.src.tolist()[-1] == 299
    assert batch.src.tolist() == sorted(batch.src.tolist())
    assert len(batch.src) + lost_offsets(batch) == 300
    assert batch.ranges[0][2:] == [0, 300]


def test_a_partition_that_is_added_is_read_from_its_beginning(kafka):
    topic = kafka.new_topic()
    send(kafka, topic, 0, *edges((1, 1)))
    source = open_source(uri(kafka, topic, "from=latest"))
    with EpochReader([source], 3, epoch_seconds=0.5) as epochs:
        position = epochs.start()
        assert len(position["splits"]) == 1

        def add() -> None:
            with kafka.admin() as admin:
                admin.create_partitions({topic: NewPartitions(3)})
            send(kafka, topic, 2, *edges((2, 2)))

        adding = threading.Thread(target=add)
        adding.start()
        batch = epochs.read(position)
        adding.join()
        assert batch.src.tolist() == [2]
        assert [split["split"] for split in batch.end["splits"]] == [f"{topic}-{number}" for number in range(3)]
        assert batch.ranges == [[source.uri, f"{topic}-2", 0, 1]]


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_offsets_that_have_expired_are_told(kafka, policy):
    topic = kafka.new_topic()
    send(kafka, topic, 0, *edges(*((i, i) for i in range(10))))
    settled = open_source(uri(kafka, topic)).settle()
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 6})
    told: list[str] = []
    source = open_source(uri(kafka, topic), settled=settled, on_lost_offset=policy, tell=told.append)
    lost = f"the messages of {topic}-0 from offset 0 up to 6 are gone"
    with EpochReader([source], 100) as epochs:
        if policy == "fail":
            for _ in range(2):
                with pytest.raises(SourceError, match=f"{lost}.*--on-lost-offset skip"):
                    read_all(epochs)
            assert told == []
        else:
            (batch,) = read_all(epochs)
            assert batch.src.tolist() == [6, 7, 8, 9]
            assert [(each.offset, each.reason) for each in batch.bad] == [(0, "lost: 6 offsets, up to 6")]
            (line,) = told
            assert lost in line


def test_offsets_that_have_expired_are_no_gaps_of_a_compacted_topic_besides(kafka):
    topic = kafka.new_topic(cleanup_policy="compact,delete")
    send_in_transactions(kafka, topic, edges((0, 0), (1, 1)), edges((2, 2), (3, 3)))
    settled = open_source(uri(kafka, topic)).settle()
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 3})
    source = open_source(uri(kafka, topic), settled=settled, on_lost_offset="skip", tell=lambda _: None)
    with EpochReader([source], 100) as epochs:
        (batch,) = read_all(epochs)
    assert batch.src.tolist() == [2, 3]
    assert [(each.offset, each.reason) for each in batch.bad] == [
        (0, "lost: 3 offsets, up to 3"),
        (5, "lost: 1 offsets, up to 6; the topic is compacted"),
    ]


def test_a_topic_that_was_made_anew_is_not_read_from_the_middle(kafka):
    topic = kafka.new_topic()
    send(kafka, topic, 0, *edges((1, 1)))
    source = open_source(uri(kafka, topic), settled={"0": [5, 9]}, on_lost_offset="skip")
    with (
        EpochReader([source], 100) as epochs,
        pytest.raises(SourceError, match="ends at offset 1, but was read up to 5"),
    ):
        read_all(epochs)


def test_a_topic_that_is_not_there_is_told(kafka):
    with pytest.raises(SourceError, match="there is no topic 'nowhere'"):
        open_source(uri(kafka, "nowhere")).splits()


def test_a_broker_that_does_not_answer_is_waited_for_no_longer_than_stated():
    told: list[str] = []
    source = open_source("kafka://127.0.0.1:1/edges?patience=1", tell=told.append)
    with pytest.raises(SourceError, match=r"has not answered for \d+ s.*Nothing is lost: resume"):
        source.splits()
    assert told[0].startswith("waiting for Kafka at 127.0.0.1:1: ")


def test_a_broker_may_die_freeze_and_come_back(tmp_path):
    """Each offset counts once, however the broker fares, and the wait is visible."""
    told: list[str] = []
    found: list[int] = []
    with KafkaServer(tmp_path) as server:
        topic = server.kafka.new_topic(2)
        source = open_source(uri(server.kafka, topic, "from=earliest"), tell=told.append)

        def send_more(first: int) -> None:
            for partition in range(2):
                values = edges(*((i, partition) for i in range(first, first + 100) if i % 2 == partition))
                send(server.kafka, topic, partition, *values)

        with EpochReader([source], 50, epoch_seconds=0.2) as epochs:
            position = epochs.start()

            def read_up_to(count: int) -> None:
                nonlocal position
                while len(found) < count:
                    batch = epochs.read(position)
                    position = batch.end
                    found.extend(batch.src.tolist())

            send_more(0)
            read_up_to(100)
            server.kill()
            waiting = threading.Thread(target=read_up_to, args=[200])
            waiting.start()
            wait_for(told, "waiting for Kafka")
            server.start()
            send_more(100)
            waiting.join()
            wait_for(told, "is back after")
            told.clear()
            waiting = threading.Thread(target=read_up_to, args=[300])
            with server.frozen():
                waiting.start()
                wait_for(told, "waiting for Kafka")
            send_more(200)
            waiting.join()
            wait_for(told, "is back after")
    assert sorted(found) == list(range(300))


def test_a_partition_whose_leader_dies_is_read_from_the_next_one(cluster):
    """Each offset counts once, though who led one partition is killed and comes back."""
    found: list[tuple[int, int]] = []
    topic = cluster.kafka.new_topic_at([2, 3], [3, 2])
    source = open_source(uri(cluster.kafka, topic, "from=earliest"))
    with EpochReader([source], 50, epoch_seconds=0.2) as epochs:
        position = epochs.start()

        def send_and_read(first: int) -> None:
            nonlocal position
            for partition in range(2):
                send(cluster.kafka, topic, partition, *edges(*((i, partition) for i in range(first, first + 100))))
            while len(found) < 2 * (first + 100):
                batch = epochs.read(position)
                position = batch.end
                found.extend(zip(batch.src.tolist(), batch.dst.tolist(), strict=True))

        send_and_read(0)
        assert leader_of(cluster.kafka, topic, 0) == 2
        cluster.nodes[1].kill()
        send_and_read(100)
        assert leader_of(cluster.kafka, topic, 0) == 3
        cluster.nodes[1].start()
        send_and_read(200)
    assert sorted(found) == [(i, partition) for i in range(300) for partition in range(2)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("cluster"), 3) as started:
        yield started


def leader_of(kafka: Kafka, topic: str, partition: int) -> int:
    with kafka.admin() as admin:
        (described,) = admin.describe_topics([topic])
    return next(each["leader_id"] for each in described["partitions"] if each["partition_index"] == partition)


def wait_for(told: list[str], text: str) -> None:
    deadline = time.monotonic() + 30
    while not any(text in line for line in told):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


def test_memory_for_messages_does_not_grow_with_the_topic(kafka):
    """A split that nobody reads on is paused, while another is read to its end."""
    topic = kafka.new_topic(2)
    for partition in range(2):
        send(kafka, topic, partition, *edges(*((i, partition) for i in range(40_000))))
    source = open_source(uri(kafka, topic))
    unread, read = (source.open(f"{topic}-{partition}", None) for partition in range(2))
    unread.read(1)
    total = 0
    while not (block := read.read(1000)).end:
        total += len(block.records)
    feeds = source._connection._feeds.values()
    assert total + len(block.records) == 40_000
    assert max(len(feed.values) for feed in feeds) < 40_000
    rest = 1
    while not (block := unread.read(1000)).end:
        rest += len(block.records)
    assert rest + len(block.records) == 40_000
    source.close()
    assert np.array_equal(block.records.dst, np.zeros(len(block.records)))

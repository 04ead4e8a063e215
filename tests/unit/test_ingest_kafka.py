"""What needs no broker: URIs, messages, patience, and when epochs close."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import SourceError, open_source
from ingest.formats import parse_columns
from ingest.kafka import Gaps, gaps_in
from ingest.kafka_client import client_name
from ingest.kafka_uri import KafkaUri
from ingest.messages import MessageParser
from ingest.parse import layout_of, parse_lines
from ingest.patience import MAX_DELAY_SECONDS, Patience, PatienceExhausted
from ingest.schedule import Schedule

# --- URIs ---------------------------------------------------------------------------------------------------


def test_what_a_uri_says():
    parsed = KafkaUri.parse(
        "kafka://one:9092,[::1]:9093/my%20topic?from=2026-11-22T00:00:00Z&until=end&format=json&group=g&patience=5"
        "&client=confluent&security.protocol=SASL_SSL&ssl.check.hostname=false"
    )
    assert parsed == KafkaUri(
        ("one:9092", "[::1]:9093"),
        "my topic",
        1795305600.0,
        True,
        "json",
        "g",
        5.0,
        "confluent",
        {"security_protocol": "SASL_SSL", "ssl_check_hostname": False},
    )
    assert KafkaUri.parse("kafka://h:1/t") == KafkaUri(("h:1",), "t")


def test_the_environment_says_how_to_connect_where_the_uri_does_not_and_alone_holds_secrets():
    environment = {
        "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_PASSWORD": "hidden",
        "KAFKA_SSL_CHECK_HOSTNAME": "no",
        "KAFKA_SSL_CAFILE": "",
        "KAFKA_PORT": "9092",
    }
    assert KafkaUri.parse("kafka://h:1/t?security.protocol=SASL_SSL").connection(environment) == {
        "bootstrap_servers": ["h:1"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_password": "hidden",
        "ssl_check_hostname": False,
    }


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("kafka://h:1", "a topic is named as"),
        ("kafka:///t", "a topic is named as"),
        ("kafka://h:1/t/u", "a topic is named as"),
        ("kafka://h/t", "'h' is no broker"),
        ("kafka://h:1,/t", "'' is no broker"),
        ("kafka://h:70000/t", "'h:70000' is no broker"),
        ("kafka://h:1/t?until=5", "until must be end"),
        ("kafka://h:1/t?format=avro", "format must be one of txt, tsv, csv, json"),
        ("kafka://h:1/t?from=yesterday", "from must be earliest"),
        ("kafka://h:1/t?from=2026-11-22T00:00:00", "from must be earliest"),
        ("kafka://h:1/t?from=2026-11-22T00:00:00+01:00", "a plus sign is written %2B"),
        ("kafka://h:1/t?from=-5", "no time after 1970"),
        ("kafka://h:1/t?from=nan", "no time after 1970"),
        ("kafka://h:1/t?patience=long", "patience must be seconds"),
        ("kafka://h:1/t?patience=nan", "patience must be seconds"),
        ("kafka://h:1/t?client=java", "client must be one of kafka-python, confluent"),
        ("kafka://h:1/t?group=a&group=b", "is given twice"),
        ("kafka://h:1/t?topic=t", "unknown parameter 'topic'; known are from, until"),
    ],
)
def test_what_no_uri_may_say(uri, wanted):
    with pytest.raises(SourceError) as caught:
        open_source(uri)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("uri", ["kafka://u:hidden@h:1/t", "kafka://h:1/t?sasl.password=hidden&from=latest"])
def test_a_secret_in_a_uri_is_refused_without_being_shown(uri):
    with pytest.raises(SourceError, match="KAFKA_SASL_PASSWORD") as caught:
        open_source(uri)
    assert "hidden" not in str(caught.value)


def test_a_client_is_imported_when_a_topic_is_read_and_no_sooner():
    """Also in a process that has opened the source."""
    code = """
import sys, ingest
ingest.open_source('kafka://h:1/t')
sys.exit('kafka' in sys.modules or 'confluent_kafka' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PYTHON, CONFLUENT = "kafka", "confluent_kafka"


@pytest.mark.parametrize(
    ("installed", "query", "variable", "expected"),
    [
        ({PYTHON}, "", "", "kafka-python"),
        ({PYTHON, CONFLUENT}, "", "", "confluent"),
        ({CONFLUENT}, "", "", "confluent"),
        ({PYTHON, CONFLUENT}, "?client=kafka-python", "", "kafka-python"),
        ({PYTHON, CONFLUENT}, "", "kafka-python", "kafka-python"),
        ({PYTHON, CONFLUENT}, "?client=confluent", "kafka-python", "confluent"),
        (set(), "", "", "needs the extra kafka: pip install 'exoflow[kafka]'"),
        ({PYTHON}, "?client=confluent", "", "needs the extra confluent: pip install 'exoflow[confluent]'"),
        ({PYTHON}, "", "confluent", "needs the extra confluent: pip install 'exoflow[confluent]'"),
        ({PYTHON}, "", "java", "KAFKA_CLIENT must be one of kafka-python, confluent, not 'java'"),
    ],
)
def test_which_client_reads(installed, query, variable, expected, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    uri = f"kafka://h:1/t{query}"

    def chosen() -> str:
        return client_name(uri, KafkaUri.parse(uri), {"KAFKA_CLIENT": variable})

    if " " not in expected:
        assert chosen() == expected
    else:
        with pytest.raises(SourceError, match=re.escape(expected)):
            chosen()


def test_what_one_client_is_told_the_other_is_told_too():
    pytest.importorskip("confluent_kafka")
    from ingest.kafka_confluent import librdkafka_options

    environment = {
        f"KAFKA_{name}": name.lower()
        for name in ("SECURITY_PROTOCOL", "SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD")
    }
    environment |= {"KAFKA_SSL_CAFILE": "ca", "KAFKA_SSL_CERTFILE": "both", "KAFKA_SSL_PASSWORD": "key's"}
    told = KafkaUri.parse("kafka://h:1,g:2/t?ssl.check.hostname=no").connection(environment)
    assert librdkafka_options(told) == {
        "bootstrap.servers": "h:1,g:2",
        "security.protocol": "security_protocol",
        "sasl.mechanism": "sasl_mechanism",
        "sasl.username": "sasl_username",
        "sasl.password": "sasl_password",
        "ssl.ca.location": "ca",
        "ssl.certificate.location": "both",
        "ssl.key.location": "both",
        "ssl.key.password": "key's",
        "ssl.endpoint.identification.algorithm": "none",
    }


@given(st.sets(st.integers(10, 40)), st.integers(5, 40))
def test_gaps_are_the_offsets_that_hold_nothing(offsets, end):
    here = sorted(offsets)
    missing = [offset for offset in range(10, end) if offset not in offsets]
    expected = Gaps(len(missing), missing[0], missing[-1] + 1) if missing else None
    assert gaps_in(10, np.array(here, np.int64), end) == expected


# --- messages -----------------------------------------------------------------------------------------------


def chunk_of(values, kind="txt", columns="src,dst,op,time", first=100):
    parser = MessageParser("uri", "t-0", kind, parse_columns("uri", columns))
    offsets = np.arange(first, first + 2 * len(values), 2)  # with gaps
    return parser.chunk(values, offsets, first + 2 * len(values))


lines = st.one_of(
    st.none(),
    st.builds(lambda a, b, op: f"{a} {b} {op} 5".encode(), st.integers(-5, 5), st.integers(), st.sampled_from("+-x")),
    st.sampled_from([b"", b"# note", b"1 2 + 3\n", b"1 2 + 3\r\n", b"1 2 + 3\n4 5 + 6", b"\n", b"\xff 1 + 2", b"1 2"]),
    st.binary(max_size=12),
)


@settings(deadline=None)
@given(st.lists(lines, max_size=12))
def test_a_message_is_read_as_a_line_of_a_file_is(values):
    """Whatever the others are: one by one the same records and the same reasons."""
    together = chunk_of(values)
    good, bad = [], []
    layout = layout_of(b"", parse_columns("uri", "src,dst,op,time"))
    for number, value in enumerate(values):
        at = 100 + 2 * number
        line = None if value is None else value.removesuffix(b"\n")
        if line is None or b"\n" in line:
            bad.append((at, "the message has no value" if line is None else "the message has more than one line"))
            continue
        alone = parse_lines(line + b"\n", layout, 1024)
        rows = zip(alone.records.src.tolist(), alone.records.dst.tolist(), alone.records.op.tolist(), strict=True)
        good += [(at, *row) for row in rows]
        bad += [(at, reason) for _, _, reason in alone.bad]
    records = together.records
    assert together.starts.tolist() == [at for at, *_ in good]
    assert list(zip(records.src.tolist(), records.dst.tolist(), records.op.tolist(), strict=True)) == [
        tuple(rest) for _, *rest in good
    ]
    assert [(each.offset, each.reason) for each in together.bad] == bad
    assert together.bad_ends == tuple(at + 1 for at, _ in bad)
    assert together.ends.tolist() == [at + 1 for at, *_ in good]
    assert together.end(0) == 100 + 2 * len(values) if values else True


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["src", "dst", "op", "time"]), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {
                    "src": st.integers(-5, 5),
                    "dst": json_values,
                    "op": st.sampled_from(["+", "-", "x"]),
                    "time": json_values,
                }
            ),
            json_values,
        ),
        max_size=5,
    )
)
def test_any_json_is_a_record_or_a_bad_one(objects):
    chunk = chunk_of([json.dumps(each).encode() for each in objects], "json")
    assert len(chunk.records) + len(chunk.bad) == len(objects)
    for at, src, dst in zip(chunk.starts.tolist(), chunk.records.src, chunk.records.dst, strict=True):
        source = objects[(at - 100) // 2]
        assert (int(src), int(dst)) == (source["src"], source["dst"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"src": 1, "dst": 2, "op": "+", "time": "2026-11-22T00:00:00Z"}', None),
        (b'{"src": 1, "dst": 2, "op": "+", "time": 1.25, "more": [1]}', None),
        (b'{"src": 9223372036854775808, "dst": 2, "op": "+", "time": 1}', "src is out of the int64 range"),
        (b'{"src": true, "dst": 2, "op": "+", "time": 1}', "src is not an integer"),
        (b'{"src": 1.0, "dst": 2, "op": "+", "time": 1}', "src is not an integer"),
        (b'{"src": 1, "dst": 2, "op": "*", "time": 1}', "op is not + or -"),
        (b'{"src": 1, "dst": 2, "op": "+", "time": NaN}', "time is not Unix seconds or RFC 3339"),
        (b'{"src": 1, "dst": 2, "op": "+", "time": "1\\t2"}', "time is not Unix seconds or RFC 3339"),
        (b'{"src": 1, "dst": 2, "op": "+", "time": "soon"}', "time is neither Unix seconds nor RFC 3339"),
        (b"\xff", "the message is not JSON"),
        (b"[" * 5000, "the message is not JSON"),
        (b" " * 1_100_000 + b"1", "the message is too long"),
    ],
)
def test_json_messages(value, reason):
    chunk = chunk_of([value], "json")
    assert [each.reason for each in chunk.bad] == ([] if reason is None else [reason])
    assert len(chunk.records) == (reason is None)


# --- patience -----------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def wait_for_ever(patience, clock, delays):
    while True:
        delays.append(patience.failed("no"))
        clock.now += delays[-1]


def test_patience_waits_longer_each_time_says_so_and_ends():
    told, clock = [], Clock()
    patience = Patience("it", 60.0, told.append, clock, lambda: 1.0)
    delays = []
    with pytest.raises(PatienceExhausted, match="it has not answered for 60 s: no"):
        wait_for_ever(patience, clock, delays)
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(delays) == MAX_DELAY_SECONDS
    assert sum(delays) == pytest.approx(60.0)
    assert told[0] == "waiting for it: no"
    assert 5 <= len(told) <= 7
    patience.answered()
    assert told[-1] == "it is back after 60.0 s"
    patience.answered()
    assert told[-1] == "it is back after 60.0 s"
    assert patience.failed("no") == 0.1


# --- closes -------------------------------------------------------------------------------------------------


def test_epochs_close_at_multiples_and_missed_ones_are_one():
    clock = Clock()
    schedule = Schedule(10.0, clock)
    schedule.begin()
    assert schedule.due == 60.0
    clock.now = 59.9
    assert not schedule.is_over(idle=True, records=1, since=1000.0)
    clock.now = 60.0
    assert schedule.is_over(idle=False, records=1, since=1000.0)
    schedule.next()
    assert schedule.due == 70.0

    clock.now = 95.0
    schedule.begin()
    assert schedule.due == 70.0
    assert schedule.seconds_left == 0.0
    assert schedule.is_over(idle=True, records=1, since=1000.0)
    assert not schedule.is_over(
        idle=False, records=1, since=1000.0
    )  # more waits to be read, and is read, but no longer than an epoch lasts
    clock.now = 105.0
    assert schedule.is_over(idle=False, records=1, since=1000.0)
    schedule.next()
    assert schedule.due == 110.0

"""What is published of an epoch, where to, and that a place keeps it once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from graph_stream.changed import Best, Changed
from graph_stream.config import RunConfig
from graph_stream.errors import ConfigError, SinkConflict, SinkUnavailable
from graph_stream.kafka_sink import _records
from graph_stream.parquet_sink import MARKER_KEY, ParquetSink, encode, file_name
from graph_stream.publication import Marker, Publication, assemble, encode_share
from graph_stream.publishing import watched
from graph_stream.targets import Target, absolute

SCALE = 2.0**32
MARKER = Marker("run", "stream", 7, "tunkrank", None, "00ff", 0.5, 0, 0, 10, 20)


def best(**influence: int) -> Best:
    pairs = sorted(((-value, int(name[1:])) for name, value in influence.items()))
    return Best(np.array([vertex for _, vertex in pairs], np.int64), np.array([-x for x, _ in pairs], np.int64))


def changed(rows: dict[int, int | None], before: Best | None = None, after: Best | None = None) -> Changed:
    """Return a share: influence by vertex, None for those that left."""
    return Changed(
        np.array(list(rows), np.int64),
        np.array([value or 0 for value in rows.values()], np.int64),
        np.array([value is None for value in rows.values()], np.bool_),
        before or best(),
        after or best(),
    )


def published(*shares: Changed, top: int | None = None, e: float = 0.5) -> Publication:
    marker = dataclasses.replace(MARKER, top=top, error_bound=e)
    return assemble([encode_share(each, best_only=top is not None) for each in shares], marker, SCALE)


# --- what -----------------------------------------------------------------------------------------------------


def test_rows_are_sorted_and_have_their_bound():
    found = published(changed({5: 3 << 32, 1: None, 3: 1 << 31}), e=0.5)
    assert found.rows.to_pylist() == [
        {"epoch": 7, "vertex": 1, "influence": 0.0, "error_bound": 0.0, "deleted": True, "algorithm": "tunkrank"},
        {"epoch": 7, "vertex": 3, "influence": 0.5, "error_bound": 0.5, "deleted": False, "algorithm": "tunkrank"},
        {"epoch": 7, "vertex": 5, "influence": 3.0, "error_bound": 3.0, "deleted": False, "algorithm": "tunkrank"},
    ]
    assert (found.marker.rows, found.marker.deleted) == (3, 1)


def test_any_partitioning_gives_the_same_bytes():
    rows = {vertex: vertex << 30 if vertex % 5 else None for vertex in np.random.default_rng(1).permutation(200)}
    parts = [{vertex: x for vertex, x in rows.items() if vertex % 3 == part} for part in range(3)]
    whole = published(changed(rows))
    dealt = published(*(changed(parts[part]) for part in (2, 0, 1)))
    assert dealt.rows.equals(whole.rows)
    assert encode(dealt) == encode(whole)


def test_an_epoch_that_changed_nothing_is_published_too():
    found = published(changed({}), changed({}))
    assert len(found.rows) == 0
    assert pq.read_schema(_buffer(encode(found))).metadata[MARKER_KEY]


def _buffer(data: bytes):
    import pyarrow as pa

    return pa.BufferReader(data)


def test_of_the_best_only_what_changed_is_published():
    first = changed({}, best(v1=50, v4=20), best(v1=50, v4=45))
    second = changed({}, best(v2=40, v3=30), best(v2=41, v3=30))
    found = published(first, second, top=3)
    # Before 1, 2, 3; after 1, 4, 2.
    shown = [(row["vertex"], row["influence"] * SCALE, row["deleted"]) for row in found.rows.to_pylist()]
    assert shown == [(2, 41, False), (3, 0, True), (4, 45, False)]
    assert len(published(first, second, top=1).rows) == 0


def test_records_say_the_same_as_rows():
    found = published(changed({5: 3 << 32, 1: None}), e=1.0)
    (deleted, nothing), (key, value) = _records(found)
    assert (deleted, nothing, key) == (b"1", None, b"5")
    assert json.loads(value) == {
        "epoch": 7, "vertex": 5, "influence": 3.0, "error_bound": None, "algorithm": "tunkrank"
    }  # fmt: skip


# --- where ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("/data/out", Target("/data/out", None, "tunkrank")),
        ("/data/out?top=100", Target("/data/out", 100, "tunkrank")),
        ("s3://bucket/a/b?top=5", Target("s3://bucket/a/b", 5, "tunkrank")),
        ("s3://b/a?endpoint=http://host:90", Target("s3://b/a?endpoint=http://host:90", None, "tunkrank")),
        ("s3://b/a?endpoint=http://host:90&top=1", Target("s3://b/a?endpoint=http://host:90", 1, "tunkrank")),
        ("kafka://a:1,b:2/topic", Target("kafka://a:1,b:2/topic", None, "tunkrank")),
        ("kafka://[::1]:9/t.x?algorithm=tunkrank", Target("kafka://[::1]:9/t.x", None, "tunkrank")),
    ],
)
def test_targets(uri, target):
    assert Target.parse(uri, ("tunkrank",)) == target


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "names no place"),
        ("kafka://", "names no place"),
        ("http://host/a", "known are a folder"),
        ("/out?top=0", "at least 1"),
        ("/out?top=ten", "at least 1"),
        ("/out?top", "behind the"),
        ("/out?top=1&top=2", "twice"),
        ("/out?tpo=1", "unknown option 'tpo'"),
        ("/out?algorithm=pagerank", "computes tunkrank, not pagerank"),
        ("kafka://host/topic", "HOST:PORT"),
        ("kafka://host:1", "HOST:PORT"),
        ("kafka://host:1/a b", "no name of a topic"),
        ("kafka://user:secret@host:1/topic", "credentials come from the environment"),
        ("kafka://host:1/topic?endpoint=http://x", "unknown option 'endpoint'"),
    ],
)
def test_what_cannot_be_published_to_is_said_by_name(uri, why):
    with pytest.raises(ConfigError, match=why) as raised:
        Target.parse(uri, ("tunkrank",))
    assert "secret" not in str(raised.value)


def test_scores_that_all_change_each_epoch_have_no_changes_to_publish():
    with pytest.raises(ConfigError, match="every score of pagerank"):
        Target.parse("/out", ("pagerank", "tunkrank"))
    assert Target.parse("/out?algorithm=tunkrank", ("pagerank", "tunkrank")).algorithm == "tunkrank"


def config(*publish: str, **options: object) -> RunConfig:
    return RunConfig(("rmat://?scale=4&edges=10",), publish=publish, **options).checked()  # type: ignore[arg-type]


def test_a_configuration_is_recorded_with_absolute_paths_and_read_back():
    made = config("out?top=3", "kafka://a:1/t")
    assert made.publish == (f"{Path.cwd()}/out?top=3", "kafka://a:1/t")
    assert RunConfig.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert absolute("file:///x?top=1") == "/x?top=1"
    assert watched(made) == {0: 3}
    assert watched(config()) == {}


def test_a_configuration_from_before_publishing_publishes_nothing():
    shown = config().to_json()
    assert "publish" not in shown
    assert RunConfig.from_json(shown) == config()


@pytest.mark.parametrize(
    ("options", "why"),
    [({"checkpoint": "none"}, "async or sync"), ({"checkpoint_every": 2}, "--checkpoint-every 1")],
)
def test_what_publishing_needs(options, why):
    with pytest.raises(ConfigError, match=why):
        config("out", **options)


def test_two_sinks_need_two_places():
    with pytest.raises(ConfigError, match="each place once"):
        config("out", "out?top=3")


# --- a folder -------------------------------------------------------------------------------------------------


def test_a_folder_takes_an_epoch_once(tmp_path):
    sink, found = ParquetSink(str(tmp_path / "out")), published(changed({5: 3 << 32}))
    sink.check(new=True)
    assert sink.publish(found)
    path = tmp_path / "out" / file_name(7)
    written = path.stat().st_mtime_ns, path.read_bytes()
    assert not ParquetSink(str(tmp_path / "out")).publish(found)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == written
    sink.check(new=False)
    with pytest.raises(ConfigError, match="empty folder"):
        sink.check(new=True)


@pytest.mark.parametrize("other", [b"not Parquet", b""])
def test_what_is_not_this_runs_is_never_overwritten(tmp_path, other):
    (tmp_path / file_name(7)).write_bytes(other)
    with pytest.raises(SinkConflict, match="not this run's"):
        ParquetSink(str(tmp_path)).publish(published(changed({5: 1})))
    assert (tmp_path / file_name(7)).read_bytes() == other


def test_another_runs_epoch_is_a_conflict(tmp_path):
    sink, found = ParquetSink(str(tmp_path)), published(changed({5: 1}))
    sink.publish(found)
    for name, value in {"stream": "another", "state_hash": "11"}.items():
        marker = dataclasses.replace(found.marker, **{name: value})
        with pytest.raises(SinkConflict):
            sink.publish(Publication(marker, found.rows))


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises((SinkUnavailable, ConfigError), match="file"):
            ParquetSink(str(place)).check(new=True)

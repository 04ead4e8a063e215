"""The snapshot object, its header, damage to it, and the plan that keeps a store small."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graph_stream import snapshot
from graph_stream.ordering import NO_TIMES, Ordered, Rows
from graph_stream.ownership import virtual_partition, virtual_range
from graph_stream.snapshot import (
    Changes,
    CorruptSnapshot,
    Entry,
    Manifest,
    StoredChanges,
    decode,
    encode,
    encode_shares,
    folded,
    plan_compaction,
    read_header,
)
from tests.property.online_model import merge


def some_changes(rows: int, seed: int = 0) -> Changes:
    random = np.random.default_rng(seed)
    columns = [random.integers(-(2**62), 2**62, rows) for _ in range(6)]
    return Changes(*columns)


def rows_of(changes: Changes) -> list[tuple[int, int, int]]:
    return sorted(zip(*(column.tolist() for column in changes.rows()[:3]), strict=True))


def test_object_has_the_documented_layout():
    changes = some_changes(500)
    data = encode(changes, 3, 9)
    table = pq.read_table(pa.BufferReader(data))
    assert table.schema.names == ["kind", "key", "value"]
    assert [str(kind) for kind in table.schema.types] == ["int8", "int64", "int64"]
    kind, key, value = (table.column(name).to_numpy() for name in table.schema.names)
    share = virtual_partition(key)
    is_edge = np.abs(kind) == 1
    order = list(zip(share.tolist(), (~is_edge).tolist(), key.tolist(), (value * is_edge).tolist(), strict=True))
    assert order == sorted(order)
    header = read_header(data)
    assert (header.first_epoch, header.last_epoch, len(header.starts)) == (3, 9, 257)
    for virtual in range(256):
        assert set(share[header.starts[virtual] : header.starts[virtual + 1]]) <= {virtual}
    assert pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0).compression == "LZ4"


def test_equal_changes_give_equal_bytes():
    changes = some_changes(300)
    shuffled = np.random.default_rng(1).permutation(900)
    kind, key, value, _ = changes.rows()
    assert encode(Changes.of_rows(kind[shuffled], key[shuffled], value[shuffled]), 1, 2) == encode(changes, 1, 2)


@pytest.mark.parametrize("group_rows", [7, 64, 1 << 17])
@pytest.mark.parametrize("partitions", [1, 3, 4, 256])
def test_shares_add_up_to_the_whole(monkeypatch, group_rows, partitions):
    monkeypatch.setattr(snapshot, "ROW_GROUP_ROWS", group_rows)
    changes = some_changes(200)
    data = encode(changes, 1, 1)
    shares = [decode(data, virtual_range(index, partitions)) for index in range(partitions)]
    for index, share in enumerate(shares):
        assert rows_of(share) == rows_of(changes.owned(virtual_range(index, partitions)))
    assert sorted(row for share in shares for row in rows_of(share)) == rows_of(changes)


def test_a_share_is_read_without_the_other_row_groups(monkeypatch):
    monkeypatch.setattr(snapshot, "ROW_GROUP_ROWS", 50)
    data = bytearray(encode(some_changes(2000), 1, 1))
    metadata = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata
    last = metadata.row_group(metadata.num_row_groups - 1)
    begin = last.column(2).dictionary_page_offset or last.column(2).data_page_offset
    data[begin : begin + last.column(2).total_compressed_size] = b"\xff" * last.column(2).total_compressed_size
    assert len(decode(bytes(data), virtual_range(0, 4)))
    with pytest.raises(CorruptSnapshot, match="epochs 1 to 1 is damaged"):
        decode(bytes(data), virtual_range(3, 4))


def test_empty_changes_survive():
    data = encode(Changes.none(), 1, 4)
    assert len(decode(data)) == 0
    assert len(decode(data, virtual_range(1, 2))) == 0
    assert read_header(data).last_epoch == 4


@pytest.mark.parametrize("data", [b"", b"no parquet at all", encode(some_changes(9), 1, 1)[:-20]])
def test_bytes_that_are_no_parquet_are_refused(data):
    with pytest.raises(CorruptSnapshot, match="not a readable Parquet object"):
        decode(data)


def _written(metadata: dict[bytes, bytes]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"kind": pa.array([0], pa.int8()), "key": [1], "value": [2]})
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue())


def test_foreign_parquet_is_refused():
    with pytest.raises(CorruptSnapshot, match="no snapshot"):
        decode(_written({}))


@pytest.mark.parametrize(
    ("change", "text"),
    [({"format_version": 99}, "format version 99"), ({"starts": [0, 5]}, "1 rows, its offset table says 5")],
)
def test_headers_that_do_not_fit_are_refused(change, text):
    header = {"format_version": 1, "first_epoch": 1, "last_epoch": 1, "starts": [0] * 256 + [1]}
    data = _written({b"graph_stream.snapshot": json.dumps(header | change).encode()})
    with pytest.raises(CorruptSnapshot, match=text):
        decode(data)


def test_changes_are_immutable():
    with pytest.raises(ValueError, match="read-only"):
        some_changes(3).vertex[0] = 1


def test_merge_of_a_delta_keeps_what_a_base_drops():
    column = np.array([5], np.int64)
    none = np.empty(0, np.int64)
    older = Changes(column, column + 1, none, none, column, column)
    newer = Changes(none, none, column, column + 1, column, column * 0)
    assert rows_of(merge(older, newer, base=False)) == [(-1, 5, 6), (0, 5, 0)]
    assert rows_of(merge(older, newer, base=True)) == []


def entry(first: int, last: int, rows: int) -> Entry:
    return Entry(first, last, rows, f"{first}-{last}")


def test_manifest_refuses_gaps_and_overlaps():
    with pytest.raises(ValueError, match="epochs 3 to 4 where one that starts at 2"):
        Manifest((entry(1, 1, 1), entry(3, 4, 1)))
    with pytest.raises(ValueError, match="epochs 2 to 2 where one that starts at 1"):
        Manifest((entry(2, 2, 1),))
    manifest = Manifest((entry(1, 2, 1), entry(3, 3, 1), entry(4, 6, 1)))
    with pytest.raises(ValueError, match="starts at"):
        manifest.replace(entry(2, 3, 1))
    with pytest.raises(ValueError, match="starts at"):
        manifest.replace(entry(3, 5, 1))


def test_manifest_replaces_and_survives_json():
    manifest = Manifest((entry(1, 2, 1), entry(3, 3, 1), entry(4, 6, 1))).append(entry(7, 7, 2))
    merged = manifest.replace(entry(3, 6, 2))
    assert [(e.first_epoch, e.last_epoch) for e in merged.entries] == [(1, 2), (3, 6), (7, 7)]
    assert Manifest.from_json(json.loads(json.dumps(merged.to_json()))) == merged
    assert (merged.last_epoch, Manifest().last_epoch) == (7, 0)


@pytest.mark.parametrize("every", [1, 3, 7])
@pytest.mark.parametrize("live", [50, 20_000, 10**9])
def test_compaction_keeps_entries_few_and_rewrites_rare(every, live):
    # Deltas of 100 rows; a merged object never holds more than the live state.
    fanout, epochs = 8, 5000
    manifest, written, delta_rows = Manifest(), 0, 0
    for last in range(every, epochs + 1, every):
        delta_rows += 100
        manifest = manifest.append(entry(last - every + 1, last, 100), min(live, delta_rows))
        while (due := plan_compaction(manifest, fanout)) is not None:
            merged = manifest.entries[due]
            rows = min(live, sum(each.rows for each in merged))
            written += rows
            manifest = manifest.replace(entry(merged[0].first_epoch, merged[-1].last_epoch, rows))
        assert len(manifest.entries) <= (fanout - 1) * (1 + np.log(epochs) / np.log(fanout))
        assert sum(each.rows for each in manifest.entries) <= 2 * live + fanout * 100
    levels = np.log(epochs) / np.log(fanout)
    # What only grows has nothing dead to be folded for.
    assert written <= delta_rows * (levels if live > delta_rows else 1 + levels)
    assert manifest.last_epoch == last


def test_an_object_in_the_order_of_an_earlier_release_is_folded_like_any_other():
    changes = some_changes(400)
    kind, key, value, _ = changes.rows()
    order = np.lexsort((value, key, kind, virtual_partition(key)))
    starts = np.searchsorted(virtual_partition(key)[order], np.arange(257))
    older = encode_shares([Ordered(Rows(kind[order], key[order], value[order], NO_TIMES), starts)], 1, 1, None)[1]
    assert not np.array_equal(order, np.lexsort((value, key, np.abs(kind) != 1, virtual_partition(key))))
    newer = Changes(
        *(column[:150] for column in (changes.deleted_src, changes.deleted_dst, changes.inserted_src)),
        changes.inserted_dst[:150],
        changes.vertex,
        changes.contribution + 1,
    )
    stored = [StoredChanges(older), StoredChanges(encode(newer, 2, 2))]
    stored[0].header = dataclasses.replace(stored[0].header, ordered=False)  # such objects do not say
    _, data = encode_shares(folded(stored, base=False), 1, 2, None)
    assert rows_of(decode(data)) == rows_of(merge(changes, newer, base=False))


@pytest.mark.parametrize("share_rows", [1, 300, 1 << 18])
@pytest.mark.parametrize("owned", [range(256), range(64, 200), range(7, 8)])
@pytest.mark.parametrize("base", [True, False])
def test_folding_share_by_share_gives_what_folding_at_once_does(monkeypatch, share_rows, owned, base):
    monkeypatch.setattr(snapshot, "SHARE_ROWS", share_rows)
    older = some_changes(300)
    undone = slice(0, 150)
    newer = Changes(
        older.deleted_src,
        older.deleted_dst,
        older.inserted_src[undone],
        older.inserted_dst[undone],
        older.vertex,
        older.deleted_src,
    )
    stored = [StoredChanges(encode(each, epoch, epoch)) for epoch, each in enumerate([older, newer], 1)]
    shares = list(folded(stored, base=base, owned=owned))
    whole = merge(older, newer, base).owned(owned)
    assert rows_of(whole)
    rows, data = encode_shares(shares, 1, 2, None)
    assert rows == len(whole)
    assert rows_of(decode(data)) == rows_of(whole)
    assert len(shares) == 1 or max(int(each.starts[-1]) for each in shares) < len(whole)
    for index in range(3):
        assert rows_of(decode(data, virtual_range(index, 3))) == rows_of(whole.owned(virtual_range(index, 3)))


def test_folding_decompresses_each_row_once(monkeypatch):
    monkeypatch.setattr(snapshot, "ROW_GROUP_ROWS", 128)
    monkeypatch.setattr(snapshot, "SHARE_ROWS", 1024)
    decompressed = []
    read = pq.ParquetFile.read_row_groups

    def counted(file, groups, **options):
        decompressed.append(sum(file.metadata.row_group(group).num_rows for group in groups))
        return read(file, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    parts = [some_changes(length, seed) for seed, length in enumerate((2000, 900, 500))]
    stored = [StoredChanges(encode(part, epoch, epoch)) for epoch, part in enumerate(parts, 1)]
    shares = list(folded(stored, base=False))
    assert len(shares) > 1
    assert sum(decompressed) == sum(len(part) for part in parts)

"""The id table against a dictionary, through growth of its shards and removal in any order."""

import numpy as np

from graph_stream import adjacency, growable, idtable


def test_against_a_dictionary_while_shards_grow():
    random = np.random.default_rng(1)
    table = idtable.empty()
    ids = random.choice(2**62, 40_000, replace=False)
    live: dict[int, int] = {}
    for slot in range(len(ids)):
        if not idtable.has_room(table):
            table = idtable.grow(table)
        idtable.add(table, ids, slot)
        live[int(ids[slot])] = slot
        if slot % 3 == 0:
            gone = int(random.choice(list(live.values()))) if slot % 300 == 0 else slot
            idtable.remove(table, ids, gone)
            del live[int(ids[gone])]
    assert idtable.live_entries(table) == len(live)
    assert {int(each): idtable.find(table, ids, each) for each in ids} == {
        int(each): live.get(int(each), -1) for each in ids
    }


def test_stretches_that_shards_left_are_used_again():
    # All shards grow at about the same time; what they leave is at most as long as what they moved to.
    ids = np.arange(1 << 16)
    table = idtable.empty()
    for slot in ids:
        if not idtable.has_room(table):
            table = idtable.grow(table)
        idtable.add(table, ids, slot)
    in_shards = int(sum(1 << bits for bits in table.shards[:, idtable.BITS].tolist()))
    assert idtable.nbytes(table) <= 2 * 4 * in_shards + table.shards.nbytes + table.free.nbytes


def test_growing_one_shard_leaves_the_others_where_they_are():
    ids = np.arange(4096)
    table = idtable.empty()
    moved = []
    for slot in ids:
        if not idtable.has_room(table):
            table = idtable.grow(table)
        before = table.shards[:, idtable.START].copy()
        idtable.add(table, ids, slot)
        moved.append(int(np.count_nonzero(before != table.shards[:, idtable.START])))
    assert max(moved) == 1


def test_a_long_array_grows_where_it_is(monkeypatch):
    monkeypatch.setattr(growable, "RESERVE_FROM_BYTES", 1 << 12)
    array = growable.widened(np.arange(100), 1000)
    address = array.ctypes.data
    array[:] = np.arange(1000)
    longer = growable.widened(array, 100_000)
    assert longer.ctypes.data == address
    assert np.array_equal(longer[:1000], np.arange(1000))
    assert not longer[1000:].any()


def test_an_array_beyond_its_stretch_is_copied(monkeypatch):
    monkeypatch.setattr(growable, "RESERVE_FROM_BYTES", 1 << 12)
    monkeypatch.setattr(growable, "_memory_bytes", lambda: 1 << 13)
    array = growable.widened(np.arange(100), 1024)
    array[:] = np.arange(1024)
    longer = growable.widened(array, 5000)
    assert np.array_equal(longer[:1024], np.arange(1024))
    assert not longer[1024:].any()


def test_a_graph_starts_small():
    vertices, storage = adjacency.empty()
    assert sum(array.nbytes for array in vertices) + storage.table.entries.nbytes + storage.arena.nbytes < 1 << 17

"""One member's state: counting, refusing, growing, and what stays fixed between releases."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest

from graph_stream import adjacency, kernels, ranking, records, rows
from graph_stream.algorithms import Parameters, Weights, share
from graph_stream.certificate import CapacityExceeded
from graph_stream.epoch import combine
from graph_stream.graph import InvariantViolated, PartitionState, warm_up
from graph_stream.ownership import member_of, mix64, owner, virtual_partition, virtual_range
from graph_stream.records import UnknownVertex
from graph_stream.rounds import Message, alone, deal
from graph_stream.snapshot import Changes
from tests.property.online_model import Model, Run, random_stream
from tests.property.online_model import mix64 as model_mix64


def columns(*records: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(records, np.int64).reshape(-1, 3)
    return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].astype(np.int8)


def test_every_record_is_counted_once():
    run = Run(Parameters(), partitions=2)
    summary = run.apply([(1, 2, 1), (1, 2, 1), (3, 3, 1), (4, 5, -1), (1, 3, 1), (1, 3, -1), (2, 1, -1), (2, 1, 1)])
    assert (summary.inserted, summary.deleted, summary.unchanged, summary.self_loops) == (2, 0, 5, 1)
    summary = run.apply([(1, 2, -1), (1, 2, 1), (2, 1, -1)])
    assert (summary.inserted, summary.deleted, summary.unchanged, summary.self_loops) == (0, 1, 2, 0)
    assert summary.edges == 1
    assert run.scores() == {1: 0.0, 2: 1.0}


def test_an_epoch_without_change_is_one_silent_round():
    run = Run(Parameters(), partitions=2)
    before = run.apply([(1, 2, 1)])
    after = run.apply([(1, 2, 1), (7, 8, -1)])
    assert (after.rounds, after.emissions, after.unchanged) == (1, 0, 2)
    assert after.state_hash == before.state_hash
    assert len(run.states[0].capture()) == len(run.states[1].capture()) == 0


def test_results_are_json():
    summary = Run(Parameters()).apply([(1, 2, 1)])
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["vertices"] == 2


def test_state_hash_of_this_format_version():
    # A change of this literal breaks every stored run: it needs a new format version.
    run = Run(Parameters(retweet_probability=0.5))
    summary = run.apply([(1, 2, 1), (2, 3, 1), (3, 1, 1), (-1, 2**62, 1), (1, 3, 1)])
    assert summary.state_hash == "0e017655bcb7d1afb54d887605a9ba82"


def test_state_hash_depends_on_every_parameter():
    variants = [
        Parameters(),
        Parameters(retweet_probability=0.00038),
        Parameters(tolerance=2e-3),
        Parameters(fixed_point_bits=31),
    ]
    assert len({Run(parameters).apply([]).state_hash for parameters in variants}) == len(variants)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"retweet_probability": 1.0}, "0 <= p < 1, got 1.0"),
        ({"retweet_probability": -0.1}, "0 <= p < 1, got -0.1"),
        ({"retweet_probability": float("nan")}, "0 <= p < 1, got nan"),
        ({"tolerance": 0.0}, "0 < tolerance < 1, got 0.0"),
        ({"tolerance": 1.0}, "0 < tolerance < 1, got 1.0"),
        ({"algorithm": "pagerang"}, "unknown algorithm 'pagerang'; known: tunkrank"),
        ({"fixed_point_bits": 60}, "24..40, got 60"),
        ({"format_version": 2}, "format version 2 is unknown"),
    ],
)
def test_parameters_out_of_range_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        Parameters(**arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"index": 2, "partitions": 2}, "partition 2 does not exist among 2"),
        ({"partitions": 257}, "1 to 256 partitions, not 257"),
        ({"threads": 0}, "at least 1 thread"),
        ({"execution": "lazy"}, "not 'lazy'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        PartitionState(Parameters(), **arguments)


def test_wrong_records_are_refused_and_nothing_changes():
    state = PartitionState(Parameters())
    src, dst, op = columns((1, 2, 1), (2, 3, 1))
    for epoch, bad, text in [
        (2, (src, dst, op), "epoch 2 cannot follow epoch 0"),
        (1, (src, dst, op * 2), "operation of record 0 is 2"),
        (1, (src, dst, op.astype(np.int64)), "must be int64, int64 and int8"),
        (1, (src, dst[:1], op), "three columns of one length"),
    ]:
        with pytest.raises(ValueError, match=text):
            state.apply(epoch, *bad, alone)
    assert state.apply(1, src, dst, op, alone).edges == 2


def test_read_only_records_are_taken():
    src, dst, op = columns((1, 2, 1), (2, 3, 1))
    for column in (src, dst, op):
        column.flags.writeable = False
    assert PartitionState(Parameters()).apply(1, src, dst, op, alone).edges == 2


def test_captured_changes_outlive_the_next_epoch():
    state = PartitionState(Parameters())
    state.apply(1, *columns((1, 2, 1)), alone)
    captured = state.capture()
    state.apply(2, *columns((1, 2, -1), (5, 6, 1)), alone)
    assert (captured.inserted_src.tolist(), captured.inserted_dst.tolist()) == ([1], [2])
    assert (captured.vertex.tolist(), captured.contribution.tolist()) == ([1], [2**32])
    assert pickle.loads(pickle.dumps(captured)).vertex.tolist() == [1]


def test_restore_refuses_what_is_no_whole_state():
    some, none = np.array([5], np.int64), np.empty(0, np.int64)
    deletes = Changes(none, none, some, some + 1, none, none)
    with pytest.raises(ValueError, match="merge with base=True"):
        PartitionState(Parameters()).restore([deletes], alone, 1)
    orphan = Changes(none, none, none, none, some, some)
    with pytest.raises(ValueError, match="contribution without an edge; vertex 5 has no edge"):
        PartitionState(Parameters()).restore([orphan], alone, 1)
    state = PartitionState(Parameters())
    state.apply(1, *columns((1, 2, 1)), alone)
    with pytest.raises(ValueError, match="cannot be restored into a state at epoch 1"):
        state.restore([Changes.none()], alone, 1)


def test_members_out_of_step_are_caught():
    state = PartitionState(Parameters())

    def late(messages: list[Message]) -> list[Message]:
        return [dataclasses.replace(message, round=message.round + 1) for message in messages]

    with pytest.raises(InvariantViolated, match=r"member 0 is at .* \(1, 0, 1\), member 0 at \(1, 0, 0\)"):
        state.apply(1, *columns((1, 2, 1)), late)
    one, other = Run(Parameters()), Run(Parameters())
    one.apply([(1, 2, 1)])
    with pytest.raises(ValueError, match="members disagree"):
        combine([one.states[0].result, other.states[0].result], Parameters())


def test_a_message_about_an_unknown_vertex_is_refused():
    state = PartitionState(Parameters())

    def confused(messages: list[Message]) -> list[Message]:
        lost = np.array([99], np.int64)
        return [dataclasses.replace(message, targets=lost, deltas=lost) for message in messages]

    with pytest.raises(UnknownVertex, match="vertex 99 has no edge at partition 0 of 1"):
        state.apply(1, *columns((1, 2, 1)), confused)


def test_ownership_is_what_the_documents_say():
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 2000)
    assert virtual_partition(ids).tolist() == [model_mix64(i) % 256 for i in ids.tolist()]
    assert int(mix64(np.uint64(12345))) == model_mix64(12345)
    for partitions in (1, 2, 3, 7, 256):
        shares = [virtual_range(index, partitions) for index in range(partitions)]
        assert list(itertools.chain.from_iterable(shares)) == list(range(256))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        members = owner(ids, partitions)
        assert [member_of(i, partitions) for i in ids[:50]] == members[:50].tolist()
        assert all(v in shares[m] for v, m in zip(virtual_partition(ids), members, strict=True))


def test_messages_are_dealt_by_owner():
    ids = np.arange(100, dtype=np.int64)
    dealt = deal(Message(3, 2, 1, 9, ids, ids * 2, ids + 50, ids), 4)
    assert sorted(np.concatenate([each.targets for each in dealt])) == ids.tolist()
    for member, message in enumerate(dealt):
        assert set(owner(message.targets, 4)) == set(owner(message.followed, 4)) == {member}
        assert (message.deltas == message.targets * 2).all()
        assert (message.followed == message.followers + 50).all()
        assert (message.place, message.activity) == ((3, 2, 1), 9)


def test_rule_is_the_same_compiled_and_interpreted():
    random = np.random.default_rng(1)
    for _ in range(3000):
        degree = int(random.integers(1, 10 ** random.integers(1, 7)))
        influence = int(random.integers(0, 2 ** random.integers(1, 62)))
        p = float(random.choice([0.0, 0.00037, 0.3, 0.95]))
        base = float(random.choice([1.0, 0.01, 1000.0]))
        near = round((base * 2**32 + p * influence) / degree * random.choice([1, 1 + 1e-3, 1 - 1e-3, 1.5]))
        arguments = (degree, int(near), influence, base, p, 1e-3 * 2.0**32, 2.0**32)
        weights = Weights(np.array([0]), np.array([base])) if base != 1 else Weights.none()
        model = Model(Parameters("pagerank", damping=p, weights=weights))
        model.follows, model.influence, model.contribution = (
            {0: range(degree)},
            {0: influence},
            {0: near},
        )
        assert share(*arguments) == model.share(0)


def test_hub_flaps_reuse_slots_and_rows():
    run = Run(Parameters(retweet_probability=0.5), partitions=2)
    model = Model(run.parameters)
    random = np.random.default_rng(6)
    used = []
    for epoch in range(8):
        others = random.choice(20_000, 3000, replace=False).tolist()
        op = 1 if epoch % 2 == 0 else -1
        previous = others if op > 0 else [followed for _, followed in model.edges()]
        stream = [(-1, other, op) for other in previous]
        summary = run.apply(stream)
        model.apply(stream)
        assert summary.state_hash == model.state_hash()
        run.check_invariants()
        used.append(sum(state.nbytes for state in run.states))
    # Other ids each time, so a few shards of the id table still grow; slots that leaked would double it.
    assert used[-1] <= 1.05 * used[3]


def test_rows_against_sets():
    # One member owns all, so rows and id table see every kind of growth, shrinking and collision.
    run, model = Run(Parameters(tolerance=0.5)), Model(Parameters(tolerance=0.5))
    for stream in random_stream(seed=9, epochs=6, records=8000, ids=700, deletes=0.5):
        run.apply(stream)
        model.apply(stream)
        state = run.states[0]
        follower, followed, _ = state._adjacency.edge_slots()
        ids = state._adjacency.vertices.id
        assert set(zip(ids[follower].tolist(), ids[followed].tolist(), strict=True)) == model.edges()
        run.check_invariants()
    assert state.max_degree > 2**rows.DENSE_BITS


def test_warm_up_compiles_every_kernel_once_and_for_all():
    warm_up()
    run = Run(Parameters(), partitions=2, threads=2)
    for stream in random_stream(seed=1, epochs=3, records=500, ids=100, deletes=0.3):
        run.apply(stream)
    run.check_invariants()
    called = [
        kernels.touch,
        kernels.scan,
        kernels.evaluate,
        kernels.expand,
        kernels.deliver,
        kernels.deliver_each,
    ]
    called += [kernels.settle, kernels.spread, kernels.recount, kernels.overdue]
    called += [records.select, records.link, records.follow, records.find_all, records.release, rows.edges]
    assert [(kernel.__name__, len(kernel.signatures)) for kernel in called if len(kernel.signatures) != 1] == []


def test_a_member_that_is_full_says_so(monkeypatch):
    monkeypatch.setattr(adjacency, "MOST_ROW_ENTRIES", 1 << 12)
    state = PartitionState(Parameters())
    edges = columns(*((vertex, vertex + 1, 1) for vertex in range(3000)))
    with pytest.raises(CapacityExceeded, match="2048 edges are all one partition can hold"):
        state.apply(1, *edges, alone)


def test_round_cap_is_part_of_the_format():
    assert ranking.ROUND_CAP == 10_000

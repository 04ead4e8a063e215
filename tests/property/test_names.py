"""Streams of any names: what is made of them is what is made of the numbers that a plain dict gives them."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream.algorithms import Parameters
from graph_stream.config import RunConfig
from graph_stream.nametable import NameTable
from graph_stream.naming import with_known_numbers
from ingest import EpochReader, open_source
from tests.property.online_model import Model, Run

PARAMETERS = Parameters(retweet_probability=0.85)

# Few enough to meet again, among them beginnings of others, blanks, quotes, and letters of several bytes.
few = st.sampled_from(["a", "ab", "abc", "a b", " a", "a\0", "\0", '"', '""', ",", "#", "é", "e\u0301", "名", "x" * 40])
any_text = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=8)
records = st.lists(st.tuples(few | any_text, few | any_text, st.sampled_from("++-")), max_size=40)


@settings(deadline=None, max_examples=40)
@given(
    splits=st.lists(records, min_size=1, max_size=3),
    epoch_edges=st.integers(1, 40),
    block_records=st.integers(1, 9),
    partitions=st.sampled_from([1, 3]),
)
def test_a_stream_of_names_is_the_stream_of_their_numbers(splits, epoch_edges, block_records, partitions):
    with tempfile.TemporaryDirectory() as folder:
        for number, split in enumerate(splits):
            out = io.StringIO()
            csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(split)
            Path(folder, f"{number}.csv").write_text(out.getvalue(), encoding="utf-8", newline="")
        table, run = NameTable(), Run(PARAMETERS, partitions)
        numbers: dict[str, int] = {}
        model = Model(PARAMETERS)
        left = [list(split) for split in splits]
        source = open_source(folder, "src,dst,op", ids="string")
        with EpochReader([source], epoch_edges, block_records) as reader:
            position, last = reader.start(), False
            while not last:
                batch = reader.read(position)
                taken = []
                for uri, name, before, after in batch.ranges:
                    count = len(reader.reread([[uri, name, before, after]]))
                    split = left[int(name.removesuffix(".csv"))]
                    taken += split[:count]
                    del split[:count]
                wanted = [
                    (
                        numbers.setdefault(src, len(numbers)),
                        numbers.setdefault(dst, len(numbers)),
                        1 if op == "+" else -1,
                    )
                    for src, dst, op in taken
                ]
                if wanted:
                    src, dst = table.number(batch.src, batch.dst)
                    assert list(zip(src.tolist(), dst.tolist(), batch.op.tolist(), strict=True)) == wanted
                again = with_known_numbers(reader.reread(batch.ranges), table, len(table), RunConfig((folder,)))
                assert list(zip(again.src.tolist(), again.dst.tolist(), again.op.tolist(), strict=True)) == wanted
                run.apply(list(zip(again.src.tolist(), again.dst.tolist(), again.op.tolist(), strict=True)))
                model.apply(wanted)
                position, last = batch.end, batch.last
        assert not any(left)
        names = [name.decode() for name in table.names.take(np.arange(len(table))).to_pylist()]
        assert names == list(numbers)
        scores = {names[number]: influence for number, influence in run.scores().items()}
        wanted = {names[number]: model.influence.get(number, 0) / PARAMETERS.scale for number in model.vertices()}
        assert scores == wanted

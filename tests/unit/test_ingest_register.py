"""What is over of a queue: found by name, forgotten when it does not count, and durable in a few bytes an epoch."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from exoflow import Blob
from graph_stream.durable_register import INLINE_ROWS, DurableRegister
from ingest import Register
from ingest.register import ROW_BYTES

A, B = "a" * 32, "b" * 32


def test_names_tags_and_contents_are_known_apart():
    register = Register()
    register.add("x", "tag 1", A, read=True)
    register.add("x", "tag 2", B, read=False)
    register.add("y\udcff", "tag 2", A, read=False)
    assert [register.knows(name) for name in ("x", "y\udcff", "z")] == [True, True, False]
    assert [register.has_tag("x", tag) for tag in ("tag 1", "tag 2", "tag 3")] == [True, True, False]
    assert [register.has_content("x", content) for content in (A, B, "c" * 32)] == [True, True, False]
    assert not register.has_content("y\udcff", B)
    assert [register.was_read(name) for name in ("x", "y\udcff", "z")] == [True, False, False]
    assert ROW_BYTES == 49


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.sampled_from(["add", "add", "add", "commit", "rollback"]), max_size=60), seed=st.integers())
def test_what_is_rolled_back_was_never_there(steps, seed):
    drawn = random.Random(seed)
    register, counted, fresh = Register(), [], []
    for step in steps:
        if step == "add":
            fresh.append(
                (f"n{drawn.randrange(5)}", f"t{drawn.randrange(9)}", drawn.choice([A, B]), drawn.random() < 0.5)
            )
            register.add(*fresh[-1])
        elif step == "commit":
            register.commit()
            counted, fresh = counted + fresh, []
        else:
            register.rollback()
            fresh = []
        again = Register()
        for row in counted + fresh:
            again.add(*row)
        assert len(register) == len(again)
        assert register.committed == len(counted)
        assert register.rows(0, len(register)) == again.rows(0, len(again))
        for name in (f"n{number}" for number in range(5)):
            assert register.knows(name) == again.knows(name)
            assert register.was_read(name) == again.was_read(name)
            assert [register.has_content(name, each) for each in (A, B)] == [
                again.has_content(name, each) for each in (A, B)
            ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=40))
def test_a_register_is_restored_from_few_blobs_at_any_epoch(epochs):
    stored: dict[str, bytes] = {}

    def write(data: bytes) -> Blob:
        blob = Blob(f"{len(stored)}", len(data), "")
        stored[blob.name] = data
        return blob

    register, numbers = Register(), itertools.count()
    durable = DurableRegister(register, write)
    for rows in epochs:
        for number in itertools.islice(numbers, rows):
            register.add(f"file {number}", "tag", f"{number:032x}", read=True)
        register.commit()
        register.add("not counted yet", "tag", A, read=True)
        captured = durable.capture()
        register.rollback()
        assert len(captured["newest"]) <= (INLINE_ROWS * ROW_BYTES) * 4 / 3 + 4
        sizes = [size for size, _ in captured["blobs"]]
        assert all(size >= 2 * after for size, after in itertools.pairwise(sizes))
        again = Register()
        kept = DurableRegister(again, write)
        kept.restore(captured, lambda blob: stored[blob.name])
        assert again.rows(0, len(again)) == register.rows(0, len(register))
        assert kept.capture() == captured

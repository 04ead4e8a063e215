"""Jobs and outcomes come out of the wire as they went in, and code by value is made once per process."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable

import pytest

from exoflow import code, wire
from exoflow.code import CodeRef, code_ref
from exoflow.codec import Blob, encode
from exoflow.messages import Purpose, Report
from exoflow.records import Value
from exoflow.worker import Failure, Job, LiveInput, Outcome, Refusal, StoredInput

BLOB = Blob("name", 3, "ab" * 32)
VALUE = Value.inline(encode({"values": [1, (2.5, None)], "blob": BLOB}))
JOB = Job(
    workflow_id="w",
    store_uri="/somewhere",
    task="step[3]",
    attempt=7,
    iteration=3,
    key="k",
    keep=True,
    args=encode([[1], {}]),
    inputs=(LiveInput(None, after_loop=False), LiveInput(2, after_loop=True), StoredInput(VALUE)),
    code=CodeRef("module", "name", "00", pickled=b"bytes", bound=encode([[1], {}])),
    purpose=Purpose.RESOLVE,
)
REPORT = Report(VALUE, Value("json", None, BLOB), stop=True, wants_checkpoint=True, started_at=1.5, finished_at=2.5)


def test_a_job_arrives_as_it_left() -> None:
    assert wire.unpack_job(wire.pack(JOB)) == JOB


@pytest.mark.parametrize("outcome", [REPORT, Report(), Failure("why"), Failure("why", not_done=True), Refusal()])
def test_an_outcome_arrives_as_it_left(outcome: Outcome) -> None:
    assert wire.unpack_outcome(wire.pack(outcome)) == outcome


def test_every_field_travels() -> None:
    """A field that was left out of what is sent would come back at its default."""
    for kind in (Job, Report):
        original = JOB if kind is Job else REPORT
        for field in dataclasses.fields(kind):
            marked = dataclasses.replace(original, **{field.name: f"marked {field.name}"})
            unpack = wire.unpack_job if kind is Job else wire.unpack_outcome
            assert getattr(unpack(wire.pack(marked)), field.name) == f"marked {field.name}"


def _adder(amount: object) -> Callable[[], object]:
    return lambda: amount


def test_code_by_value_is_made_once_per_process() -> None:
    ref = code_ref(_adder(5))
    copy = dataclasses.replace(ref, pickled=bytes(bytearray(ref.pickled or b"")))
    assert ref.pickled is not None
    assert ref.load() is copy.load()
    assert ref.load()() == 5


def test_code_that_carries_much_data_is_not_kept() -> None:
    ref = code_ref(_adder(b"x" * (code._KEPT_BYTES + 1)))
    assert ref.load() is not ref.load()


def test_remembering_a_function_s_source_does_not_keep_the_function() -> None:
    function = _adder(6)
    code_ref(function)
    remembered = weakref.ref(function)
    del function
    gc.collect()
    assert remembered() is None

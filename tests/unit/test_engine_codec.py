"""Values to bytes and back: the same value, the blobs inside it, and damage that is noticed."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exoflow.codec import Blob, Encoded, Slot, decode, encode, fill
from exoflow.errors import CorruptRecord, DefinitionError

blobs = st.builds(Blob, st.text(), st.integers(0, 2**40), st.text())
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | blobs
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.sampled_from(["$tuple", "$blob", "$slot"]), inner)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        alike = left == right and math.copysign(1, left) == math.copysign(1, right)
        return alike or (math.isnan(left) and math.isnan(right))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def blobs_in(value: Any) -> list[Blob]:
    if isinstance(value, Blob):
        return [value]
    if isinstance(value, list | tuple):
        return [blob for item in value for blob in blobs_in(item)]
    return [blob for item in value.values() for blob in blobs_in(item)] if isinstance(value, dict) else []


@given(values)
def test_a_value_comes_back_the_same_and_its_blobs_are_listed(value):
    encoded = encode(value)
    assert same(decode(encoded), value)
    assert set(encoded.blobs) == set(blobs_in(value))
    again = Encoded.from_json(encoded.to_json())
    assert again == encoded


def test_nan_is_kept():
    assert math.isnan(decode(encode(float("nan"))))


@pytest.mark.parametrize("number", [2**4096, -(10**5000)], ids=["4097 bits", "5000 digits"])
def test_integers_longer_than_json_readers_allow(number):
    assert decode(encode([number])) == [number]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3),
        np.array([], dtype="f4"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["x", "yz"]),
        np.array([np.nan, -0.0]),
        np.array([1, 2], dtype=">i8"),
        np.array([{}, None], dtype=object),
    ],
    ids=str,
)
def test_arrays(array):
    back = decode(encode(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def test_a_masked_array_keeps_its_mask():
    masked = np.ma.masked_array([1, 2, 3], mask=[False, True, False])
    back = decode(encode(masked))
    assert type(back) is np.ma.MaskedArray
    assert back.mask.tolist() == [False, True, False]


def test_tables():
    table = pa.table({"a": [1, None], "b": ["x", "y"]}).replace_schema_metadata({"k": "v"})
    encoded = encode(table)
    assert encoded.codec == "arrow"
    assert decode(encoded).equals(table, check_metadata=True)


class Colour(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    seen: Blob


@pytest.mark.parametrize("value", [Colour.RED, np.float64(1.5), {1, 2}, Point(1, Blob("b", 1, "c"))], ids=repr)
def test_what_json_would_change_is_left_to_pickle(value):
    encoded = encode(value)
    back = decode(encoded)
    assert encoded.codec == "pickle"
    assert back == value
    assert type(back) is type(value)
    assert encoded.blobs == ((value.seen,) if isinstance(value, Point) else ())


class Stubborn:
    def __reduce__(self) -> Any:
        message = "no"
        raise ValueError(message)


@pytest.mark.parametrize(
    "value", [Stubborn(), (number for number in [1]), [Stubborn()]], ids=["reduce", "generator", "nested"]
)
def test_what_no_codec_holds_is_refused_by_name(value):
    with pytest.raises(DefinitionError, match=type(value).__name__):
        encode(value)


@pytest.mark.parametrize(
    "value", [[1, 2], np.arange(3), pa.table({"a": [1]}), {1, 2}], ids=["json", "npy", "arrow", "pickle"]
)
def test_damage_is_noticed(value):
    encoded = encode(value)
    for data in (b"", encoded.data[: len(encoded.data) // 2], b"\x00" + encoded.data, b"\xff" * 40):
        with pytest.raises(CorruptRecord, match=encoded.codec):
            decode(dataclasses.replace(encoded, data=data))


def test_an_unknown_codec_says_so():
    with pytest.raises(CorruptRecord, match="newer"):
        decode(Encoded("zip", b""))


def test_slots_are_filled_at_any_depth():
    template = {"a": [Slot(1), (Slot(0), {"b": Slot(1)})]}
    assert fill(template, ("x", [1])) == {"a": [[1], ("x", {"b": [1]})]}
    assert decode(encode(template)) == template

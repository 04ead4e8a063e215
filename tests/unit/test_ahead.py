"""Making the next item while the last one is used."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from graph_stream.ahead import one_ahead


def test_items_come_in_order():
    assert list(one_ahead(range(100))) == list(range(100))
    assert list(one_ahead([None, None])) == [None, None]


def test_the_next_item_is_made_while_one_is_used_and_none_after_it():
    made: list[int] = []
    next_is_made = threading.Event()

    def items() -> Iterator[int]:
        for item in range(3):
            made.append(item)
            if item == 1:
                next_is_made.set()
            yield item

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert next_is_made.wait(10)
    assert made == [0, 1]
    ahead.close()
    assert made == [0, 1]


def test_what_making_an_item_raises_comes_where_the_item_would():
    def items() -> Iterator[int]:
        yield 1
        yield 1 // 0

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError):
        next(ahead)

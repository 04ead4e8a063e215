"""Making the next item while the last one is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

Item = TypeVar("Item")

_END = object()


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; each is made in a thread of its own while the one before is used.

    Raises
    ------
    Exception
        What making an item raises, where that item would be.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, "ahead") as pool:
        following = pool.submit(next, iterator, _END)
        while (item := following.result()) is not _END:
            following = pool.submit(next, iterator, _END)
            yield cast(Item, item)

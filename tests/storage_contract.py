"""What every store promises; a test class inherits it and says, as the fixture ``store``, on which."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from exoflow.storage import Store

THREADS = 16


class StoreContract:
    def test_put_get_list_delete(self, store: Store):
        assert store.get("a/b") is None
        store.put("a/b", b"1")
        store.put("a/c/d", b"2")
        store.put("ab/e", b"3")
        store.put("a/b", b"4")
        assert store.get("a/b") == b"4"
        assert store.list("a") == ["a/b", "a/c/d"]
        assert store.list("nothing") == []
        store.delete("a/b")
        store.delete("a/b")
        assert store.list("a") == ["a/c/d"]
        assert store.get("a/b") is None

    def test_an_empty_object_is_not_an_absent_one(self, store: Store):
        assert store.put_if_absent("a/empty", b"")
        assert store.get("a/empty") == b""
        assert not store.put_if_absent("a/empty", b"x")
        assert store.get("a/empty") == b""

    def test_a_deleted_key_can_be_created_again(self, store: Store):
        assert store.put_if_absent("a/key", b"1")
        store.delete("a/key")
        assert store.put_if_absent("a/key", b"2")
        assert store.get("a/key") == b"2"

    def test_a_folder_is_no_prefix_of_names(self, store: Store):
        for key in ("w/1/a", "w/10/a", "w/1a", "w/1/b/c"):
            store.put(key, key.encode())
        assert store.list("w/1") == ["w/1/a", "w/1/b/c"]

    def test_everything_is_listed_but_what_the_store_keeps_for_itself(self, store: Store):
        assert store.list("") == []
        store.put("b/c", b"")
        store.put("a", b"")
        assert store.list("") == ["a", "b/c"]

    def test_keys_keep_every_character_that_the_engine_uses(self, store: Store):
        keys = sorted(f"w/run.1-A_b/objects/{name}" for name in ("apply[12]", "epoch-000000000001", "x=1+2 y", "é%41"))
        for key in keys:
            assert store.put_if_absent(key, key.encode())
        assert store.list("w") == keys
        assert [store.get(key) for key in keys] == [key.encode() for key in keys]

    def test_exactly_one_of_many_threads_creates_a_key(self, store: Store):
        keys = [f"folder{number % 3}/{number}" for number in range(12)]
        barrier = threading.Barrier(THREADS)

        def contend(thread: int) -> list[str]:
            barrier.wait()
            return [key for key in keys if store.put_if_absent(key, f"{thread} {key}".encode())]

        with ThreadPoolExecutor(THREADS) as pool:
            won = list(pool.map(contend, range(THREADS)))
        assert sorted(key for mine in won for key in mine) == sorted(keys)
        for thread, mine in enumerate(won):
            for key in mine:
                assert store.get(key) == f"{thread} {key}".encode()

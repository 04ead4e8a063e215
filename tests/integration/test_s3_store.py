"""The store on a real S3 server: the contract, the wire's troubles, outages in the middle."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.slow_store import Fault, SlowStore
from exoflow.errors import Fenced, StorageUnavailable
from exoflow.journal import Journal, journal_key, read_journal
from exoflow.ownership import this_process
from exoflow.records import Started
from exoflow.storage import Store, open_store
from exoflow.storage.backoff import Backoff
from exoflow.storage.location import S3Location
from exoflow.storage.s3 import PART_BYTES, S3Store
from tests.integration.services import S3, S3Server, new_certificate
from tests.storage_contract import StoreContract

HURRIED = Backoff(tries=3, first_seconds=0.01)


class TestContract(StoreContract):
    @pytest.fixture
    def store(self, s3: S3) -> Store:
        return open_store(s3.new_store(), create=False)


@pytest.fixture
def proxy(s3: S3) -> Iterator[SlowStore]:
    with SlowStore(s3.endpoint) as proxy:
        yield proxy


@pytest.fixture
def uri(s3: S3, proxy: SlowStore) -> str:
    return s3.new_store(proxy.endpoint)


@pytest.fixture
def store(uri: str) -> S3Store:
    return S3Store(S3Location.parse(uri), create=False, backoff=HURRIED)


def journal_of(store: Store) -> Journal:
    nonces = iter(range(1, 1000))
    name = random.randbytes(8).hex()
    return Journal(store, "w", dataclasses.replace(this_process(), nonce=name), lambda: f"{name} {next(nonces)}")


def started(number: int) -> Started:
    return Started(f"digest {number}", "nonce", float(number))


# --- what passes between store and server -----------------------------------------------------------------


def test_a_probe_that_passed_is_not_repeated(uri, proxy):
    opened = open_store(uri)
    probed = len(proxy.requests)
    assert open_store(opened.uri).uri == opened.uri == uri
    assert [method for method, _ in proxy.requests[probed:]] == ["GET"]


def test_opening_for_reading_asks_nothing_and_writes_nothing(s3):
    uri = s3.new_store()
    assert open_store(uri, create=False).list("") == []
    location = S3Location.parse(uri)
    bucket = open_store(str(dataclasses.replace(location, prefix="")), create=False)
    assert bucket.list(location.prefix) == []


def test_the_endpoint_of_the_environment_travels_in_the_uri(s3, monkeypatch):
    uri = s3.new_store()
    plain = str(dataclasses.replace(S3Location.parse(uri), endpoint=None))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert open_store(plain).uri == uri
    assert open_store(uri, create=False).get("absent") is None


def test_large_data_goes_in_parts_and_appears_whole(store, proxy):
    data = random.Random(1).randbytes(2 * PART_BYTES + 1)
    seen = len(proxy.requests)
    store.put("large", data)
    assert sum("partNumber" in path for _, path in proxy.requests[seen:]) == 3
    assert store.get("large") == data
    store.put("large", data[:-1])
    assert store.get("large") == data[:-1]


def test_an_upload_that_fails_in_the_middle_leaves_nothing(store, proxy):
    proxy.befall(Fault.REFUSE, times=HURRIED.tries, method="PUT", path="partNumber=2")
    seen = len(proxy.requests)
    with pytest.raises(StorageUnavailable, match="SlowDown"):
        store.put("large", bytes(3 * PART_BYTES))
    assert store.get("large") is None
    assert store.list("") == []
    assert [path for method, path in proxy.requests[seen:] if method == "DELETE" and "uploadId" in path]


def test_many_keys_are_listed_over_several_pages(store, proxy):
    keys = [f"many/{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    seen = len(proxy.requests)
    assert store.list("many") == keys
    assert len(proxy.requests) == seen + 2


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.REFUSE, Fault.LOSE_ANSWER, Fault.CUT_ANSWER, Fault.STRAY_PAGE])
def test_passing_troubles_are_not_seen(store, proxy, fault):
    def troubled(answer):
        proxy.befall(fault, times=HURRIED.tries - 1)
        found = answer()
        proxy.recover()
        return found

    troubled(lambda: store.put("a/b", b"data"))
    assert troubled(lambda: store.get("a/b")) == b"data"
    assert troubled(lambda: store.get("a/c")) is None
    assert troubled(lambda: store.list("a")) == ["a/b"]
    troubled(lambda: store.delete("a/b"))
    assert store.get("a/b") is None


@pytest.mark.parametrize("fault", [Fault.DROP, Fault.REFUSE, Fault.LOSE_ANSWER, Fault.CUT_ANSWER, Fault.STRAY_PAGE])
def test_lasting_troubles_are_outages_and_never_absence(store, proxy, fault):
    store.put("a/b", b"data")
    proxy.befall(fault, times=1000)
    for verb in (
        lambda: store.get("a/b"),
        lambda: store.get("absent"),
        lambda: store.list("a"),
        lambda: store.list("nothing"),
    ):
        with pytest.raises(StorageUnavailable, match="cannot"):
            verb()
    if fault is not Fault.CUT_ANSWER:
        for verb in (lambda: store.put("a/b", b"other"), lambda: store.put_if_absent("a/d", b"")):
            with pytest.raises(StorageUnavailable, match="cannot"):
                verb()
        with pytest.raises(StorageUnavailable, match="cannot"):
            store.delete("a/b")


def test_a_create_is_tried_once_so_that_nobody_is_told_of_his_own_object(store, proxy):
    seen = len(proxy.requests)
    proxy.befall(Fault.LOSE_ANSWER, method="PUT")
    with pytest.raises(StorageUnavailable):
        store.put_if_absent("a/b", b"mine")
    assert len(proxy.requests) == seen + 1
    assert store.get("a/b") == b"mine"
    assert not store.put_if_absent("a/b", b"other")


def test_a_server_that_is_not_there_is_an_outage(tmp_path, s3):
    with S3Server(tmp_path) as server:
        uri = server.s3.new_store()
        store = S3Store(S3Location.parse(uri), backoff=HURRIED)
        store.put("a/b", b"1")
    for verb in (lambda: store.get("a/b"), lambda: store.list("a"), lambda: store.put_if_absent("a/b", b"2")):
        with pytest.raises(StorageUnavailable, match=r"http://127\.0\.0\.1"):
            verb()


def test_a_bucket_that_is_not_there_is_an_outage_and_not_an_empty_store(s3):
    uri = f"s3://no-such-bucket/runs?endpoint={s3.endpoint}"
    with pytest.raises(StorageUnavailable, match="create the bucket"):
        open_store(uri)
    reader = open_store(uri, create=False)
    for verb in (lambda: reader.get("a"), lambda: reader.list("workflows"), lambda: reader.put_if_absent("a", b"")):
        with pytest.raises(StorageUnavailable, match="NoSuchBucket"):
            verb()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        # This server answers 404 to strangers; it must not pass for an absent key.
        ("AWS_ACCESS_KEY_ID", "nobody", "No user exists with the provided access key"),
        ("AWS_SECRET_ACCESS_KEY", "not the secret", "check the credentials"),
    ],
)
def test_wrong_credentials_are_named(s3, monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageUnavailable, match=told):
        open_store(s3.new_store())


def test_missing_credentials_are_named(s3, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageUnavailable, match="AWS_ACCESS_KEY_ID"):
        open_store(s3.new_store())


def test_the_certificate_of_the_server_is_checked_against_what_the_user_trusts(s3, tmp_path, monkeypatch):
    certificate, key = new_certificate(tmp_path)
    with S3Server(tmp_path / "server", tls=(certificate, key)) as server:
        location = S3Location.parse(server.s3.new_store())
        with pytest.raises(StorageUnavailable, match="certificate verify failed"):
            S3Store(location, backoff=HURRIED)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        store = S3Store(location)
        assert store.put_if_absent("a/b", b"data")
        data = bytes(PART_BYTES + 1)
        store.put("large", data)
        assert store.get("large") == data


def test_a_slow_store_keeps_each_request_waiting(store, proxy):
    store.put("a/b", b"data")
    proxy.delay_ms = 30.0
    began = time.monotonic()
    assert store.get("a/b") == b"data"
    assert store.list("a") == ["a/b"]
    assert time.monotonic() - began >= 0.06


# --- journals on it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.DROP, Fault.REFUSE, Fault.STRAY_PAGE])
def test_an_append_whose_answer_is_lost_is_recognised(store, proxy, fault):
    journal = journal_of(store)
    journal.claim(None, [started(0)])
    for number in range(1, 5):
        proxy.befall(fault, method="PUT", path=journal_key("w", number + 1))
        journal.append([started(number)])
    tail = read_journal(store, "w")
    assert tail.header.number == 5
    assert tail.header.generation == 1
    puts = [path for method, path in proxy.requests if method == "PUT" and "/journal/" in path]
    assert len(puts) == 9


def test_of_many_claims_one_wins_and_the_stale_owner_is_fenced(s3):
    uri = s3.new_store()
    first = journal_of(open_store(uri))
    first.claim(None, [started(0)])
    tail = read_journal(open_store(uri), "w")
    start = threading.Barrier(8)

    def claim(_: int) -> bool:
        journal = journal_of(open_store(uri))
        start.wait()
        try:
            journal.claim(tail)
        except Fenced:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(8))) == 1
    with pytest.raises(Fenced):
        first.append([started(1)])
    assert read_journal(open_store(uri), "w").header.generation == 2


def test_a_server_killed_under_appends_loses_none_that_was_answered(tmp_path, s3):
    server = S3Server(tmp_path)
    with server:
        uri = server.s3.new_store()
        journal = journal_of(open_store(uri))
        journal.claim(None, [started(0)])
        answered: list[int] = []
        enough = threading.Event()
        failures: list[Exception] = []

        def append() -> None:
            number = 0
            while not enough.is_set():
                number += 1
                try:
                    journal.append([started(number)])
                except Exception as error:
                    failures.append(error)
                    return
                answered.append(number)

        writer = threading.Thread(target=append)
        writer.start()
        try:
            for kill in range(1, 4):
                before = len(answered)
                while len(answered) < before + 20 and writer.is_alive():
                    enough.wait(0.001)
                server.kill()
                server.start()
                assert writer.is_alive(), f"kill {kill}: {failures}"
            before = len(answered)
            while len(answered) < before + 5 and writer.is_alive():
                enough.wait(0.001)
        finally:
            enough.set()
            writer.join()
        assert failures == []
        tail = read_journal(open_store(uri), "w")
        assert tail.header.number == len(answered) + 1


def test_a_reader_sees_an_outage_or_the_workflow_but_never_nothing(tmp_path, s3):
    server = S3Server(tmp_path)
    with server:
        store = S3Store(S3Location.parse(server.s3.new_store()), backoff=Backoff(tries=1))
        journal_of(store).claim(None, [started(0)])
        enough = threading.Event()
        seen: list[str] = []

        def read() -> None:
            while not enough.is_set():
                try:
                    seen.append(f"generation {read_journal(store, 'w').header.generation}")
                except Exception as error:
                    seen.append(type(error).__name__)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for _ in range(3):
                server.kill()
                before = len(seen)
                while len(seen) < before + 3 and reader.is_alive():
                    enough.wait(0.001)
                server.start()
        finally:
            enough.set()
            reader.join()
    assert set(seen) == {"generation 1", StorageUnavailable.__name__}

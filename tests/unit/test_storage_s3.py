"""What the store on S3 makes of every kind of answer. The server here says what it is told to say."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from exoflow.errors import StorageUnavailable
from exoflow.storage.backoff import Backoff
from exoflow.storage.location import S3Location
from exoflow.storage.s3 import PART_BYTES, S3Store

TRIES = 3
HTML = "<html><body>Please sign in.</body></html>"
LIST = (
    "<ListBucketResult><Name>bucket</Name><Prefix>runs/a/</Prefix><IsTruncated>false</IsTruncated></ListBucketResult>"
)


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    body: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    missing_bytes: int = 0

    @classmethod
    def error(cls, status: int, code: str) -> Answer:
        return cls(status, f"<Error><Code>{code}</Code><Message>so it is</Message></Error>")


OK = Answer(200, "", {"ETag": '"e"'})


class Server:
    """Answers by a function of method and path, and keeps count."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.conditions: list[str | None] = []
        self.say: Callable[[str, str], Answer] = lambda method, path: OK
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                server.seen.append((self.command, self.path))
                server.conditions.append(self.headers["If-None-Match"])
                answer = server.say(self.command, self.path)
                body = answer.body.encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) + answer.missing_bytes))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = answer.missing_bytes > 0

            do_GET = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def connected() -> Iterator[tuple[Server, S3Store]]:
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        location = S3Location("bucket", "runs", server.endpoint)
        yield server, S3Store(location, create=False, backoff=Backoff(tries=TRIES, sleep=lambda seconds: None))


@pytest.fixture
def server(connected: tuple[Server, S3Store]) -> Server:
    server, _ = connected
    server.seen.clear()
    server.conditions.clear()
    return server


@pytest.fixture
def store(connected: tuple[Server, S3Store]) -> S3Store:
    return connected[1]


VERBS = {
    "get": lambda store: store.get("a/b"),
    "put": lambda store: store.put("a/b", b"data"),
    "create": lambda store: store.put_if_absent("a/b", b"data"),
    "list": lambda store: store.list("a"),
    "delete": lambda store: store.delete("a/b"),
}


def outage(server: Server, store: S3Store, verb: str, answer: Answer) -> tuple[str, int]:
    """Return the words and the number of requests of a verb that has to end in an outage."""
    server.say = lambda method, path: answer
    before = len(server.seen)
    with pytest.raises(StorageUnavailable) as caught:
        VERBS[verb](store)
    assert "s3://bucket/runs/a" in str(caught.value)
    assert server.endpoint in str(caught.value)
    return str(caught.value), len(server.seen) - before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (Answer.error(500, "InternalError"), True),
        (Answer.error(503, "SlowDown"), True),
        (Answer.error(503, "ServiceUnavailable"), True),
        (Answer.error(429, "TooManyRequests"), True),
        (Answer.error(400, "RequestTimeout"), True),
        (Answer.error(409, "ConditionalRequestConflict"), True),
        (Answer.error(409, "OperationAborted"), True),
        (Answer(502, HTML), True),
        (Answer(504, ""), True),
        (Answer(200, HTML, {"Content-Type": "text/html"}), True),
        (Answer(200, ""), True),
        (Answer(404, HTML), True),
        (Answer(404, ""), True),
        (Answer.error(403, "AccessDenied"), False),
        (Answer.error(403, "InvalidAccessKeyId"), False),
        (Answer.error(404, "NoSuchBucket"), False),
        (Answer.error(400, "InvalidArgument"), False),
        (Answer.error(501, "NotImplemented"), True),
    ],
    ids=lambda value: value.body[:40] + str(value.status) if isinstance(value, Answer) else "",
)
def test_outages_are_outages_and_what_may_pass_is_tried_again(server, store, verb, answer, passes):
    _, requests = outage(server, store, verb, answer)
    # Whether a create has happened is for its caller to find out.
    assert requests == (TRIES if passes and verb != "create" else 1)


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (Answer.error(404, "NoSuchBucket"), "create the bucket"),
        (Answer.error(403, "AccessDenied"), "s3:GetObject"),
        (Answer.error(403, "SomethingElse"), "s3:GetObject"),
        (Answer.error(403, "SignatureDoesNotMatch"), "check the credentials"),
        (Answer.error(400, "ExpiredToken"), "renew the credentials"),
        (Answer.error(403, "RequestTimeTooSkewed"), "clock"),
        (Answer(200, HTML), "not one of an S3 server"),
    ],
    ids=lambda value: value.body[:40] if isinstance(value, Answer) else "",
)
def test_outages_say_what_to_do(server, store, answer, advice):
    words, _ = outage(server, store, "get", answer)
    assert advice in words


def test_only_the_servers_own_word_is_absence(server, store):
    server.say = lambda method, path: Answer.error(404, "NoSuchKey")
    assert store.get("a/b") is None
    assert len(server.seen) == 1
    server.say = lambda method, path: Answer(200, LIST)
    assert store.list("a") == []


def test_only_the_servers_own_word_is_existence(server, store):
    server.say = lambda method, path: OK
    assert store.put_if_absent("a/b", b"data")
    server.say = lambda method, path: Answer.error(412, "PreconditionFailed")
    assert not store.put_if_absent("a/b", b"data")
    assert server.conditions == ["*", "*"]
    assert outage(server, store, "create", Answer(412, HTML))[1] == 1


def test_a_body_that_is_cut_short_is_an_outage(server, store):
    cut = Answer(200, "half", {"ETag": '"e"'}, missing_bytes=4)
    assert outage(server, store, "get", cut)[1] == TRIES
    assert outage(server, store, "list", Answer(200, LIST[:-30]))[1] == TRIES


@pytest.mark.parametrize(
    "page",
    [
        "<ListBucketResult/>",
        LIST.replace("<Name>bucket</Name>", "<Name>other</Name>"),
        LIST.replace("runs/a/", "runs/"),
        LIST.replace("false", "true"),
    ],
)
def test_a_page_that_answers_another_question_is_no_empty_folder(server, store, page):
    outage(server, store, "list", Answer(200, page))


def test_keys_that_mark_folders_are_not_listed(server, store):
    entries = "".join(f"<Contents><Key>runs/a/{name}</Key></Contents>" for name in ("", "b/", "b/c"))
    server.say = lambda method, path: Answer(200, LIST.replace("</Prefix>", f"</Prefix>{entries}"))
    assert store.list("a") == ["a/b/c"]


def test_a_page_instead_of_an_answer_to_a_part_is_an_outage(server, store):
    started = Answer(200, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
    server.say = lambda method, path: started if method == "POST" else Answer(200, HTML)
    with pytest.raises(StorageUnavailable, match="not one of an S3 server"):
        store.put("a/b", bytes(PART_BYTES + 1))
    assert [method for method, _ in server.seen].count("POST") == 1


@pytest.mark.parametrize("completed", [Answer.error(200, "InternalError"), Answer.error(500, "InternalError")])
def test_parts_that_cannot_be_put_together_are_removed_and_sent_again(server, store, completed):
    def say(method: str, path: str) -> Answer:
        if method == "POST" and path.endswith("uploads"):
            return Answer(200, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
        if method == "POST":
            return completed
        return Answer(204) if method == "DELETE" else OK

    server.say = say
    with pytest.raises(StorageUnavailable, match="InternalError"):
        store.put("a/b", bytes(PART_BYTES + 1))
    methods = [method for method, _ in server.seen]
    assert methods == ["POST", "PUT", "PUT", "POST", "DELETE"] * TRIES


def test_pauses_are_random_up_to_a_limit_that_doubles_and_end_in_time():
    limits, slept, now = [], [], [0.0]

    def uniform(least: float, limit: float) -> float:
        assert least == 0
        limits.append(limit)
        return limit / 2

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    def fail() -> None:
        now[0] += 1.0
        raise InterruptedError

    backoff = Backoff(
        tries=8,
        first_seconds=1.0,
        longest_seconds=5.0,
        total_seconds=100.0,
        sleep=sleep,
        uniform=uniform,
        clock=lambda: now[0],
    )
    with pytest.raises(InterruptedError):
        backoff.run(fail, lambda error: True)
    assert slept == [0.5, 1.0, 2.0, 2.5, 2.5, 2.5, 2.5]
    assert limits[:4] == [1.0, 2.0, 4.0, 5.0]

    now[0] = 0.0
    slept.clear()
    with pytest.raises(InterruptedError):
        dataclasses.replace(backoff, total_seconds=8.0).run(fail, lambda error: True)
    assert slept == [0.5, 1.0, 2.0]

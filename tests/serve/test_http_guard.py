"""The guard: which requests it passes on, and how much of a body it reads."""

import asyncio
import json
from dataclasses import replace

import pytest

from han_tf.serve.access import COOKIE, Access
from han_tf.serve.guards import POLICY, Guard
from han_tf.serve.limits import Limits

LIMITS = Limits(upload_bytes=1000, buffered_bytes=2500, body_seconds=0.3, request_seconds=0.3, requests=3)


OPEN_TO_ALL = Access()


class Application:
    """Answers with the size of the body; records the bodies."""

    def __init__(self, seconds=0.0, fail=False):
        self.bodies = []
        self.seconds = seconds
        self.fail = fail

    async def __call__(self, scope, receive, send):
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        await asyncio.sleep(self.seconds)
        if self.fail:
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


class Exchange:
    """One request, whose body arrives in pieces, and the answer to it."""

    def __init__(self, pieces=(b"",), method="POST", last=True, pause=0.0, path="/", **headers):
        headers = {"host": "localhost:8000", **headers}
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        self.pieces = list(pieces)
        self.last = last
        self.pause = pause
        self.taken = 0
        self.sent = []

    async def receive(self):
        await asyncio.sleep(self.pause)
        if not self.pieces:
            await asyncio.sleep(3600)
        body = self.pieces.pop(0)
        self.taken += len(body)
        return {"type": "http.request", "body": body, "more_body": bool(self.pieces) or not self.last}

    async def send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])

    @property
    def error(self):
        assert self.headers[b"content-type"] == b"application/json"
        return json.loads(self.sent[1]["body"])["error"]


def run(*exchanges, application=None, limits=LIMITS, refused=None, access=OPEN_TO_ALL):
    application = application or Application()
    statuses = []
    guard = Guard(application, limits, {"localhost", "127.0.0.1", "::1"}, statuses.append, access)

    async def main():
        await asyncio.gather(*(guard(one.scope, one.receive, one.send) for one in exchanges))

    asyncio.run(main())
    assert guard._requests == guard._buffered == 0
    if refused is not None:
        assert statuses == refused
    return application


def test_a_body_arrives_whole():
    exchange = Exchange([b"abc", b"", b"defg"])
    assert run(exchange, refused=[]).bodies == [b"abcdefg"]
    assert exchange.status == 200
    assert exchange.sent[1]["body"] == b"7"


def test_every_answer_has_the_security_headers():
    for exchange in (Exchange(), Exchange(host="elsewhere.example")):
        run(exchange)
        headers = exchange.headers
        assert headers[b"content-security-policy"] == POLICY.encode()
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"cross-origin-resource-policy"] == b"same-origin"
        assert headers[b"cache-control"] == b"no-store"
        assert b"access-control-allow-origin" not in headers
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"])
def test_names_of_the_service_are_accepted(host):
    exchange = Exchange(host=host)
    run(exchange)
    assert exchange.status == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[", "10.0.0.1"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_names_are_refused(host, method):
    exchange = Exchange(host=host, method=method)
    assert run(exchange, refused=[421]).bodies == []
    assert exchange.status == 421
    assert "localhost" in exchange.error


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9000"},
        {"origin": "http://localhost"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
def test_pages_of_other_sites_change_nothing(headers, method):
    exchange = Exchange(method=method, **headers)
    assert run(exchange, refused=[403]).bodies == []
    assert exchange.status == 403
    reading = Exchange(method="GET", **headers)
    run(reading)
    assert reading.status == 200


def test_the_own_page_may_change_something():
    for headers in ({"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}, {"sec_fetch_site": "none"}):
        exchange = Exchange(**headers)
        run(exchange)
        assert exchange.status == 200


def test_a_body_with_too_large_a_content_length_is_not_read():
    exchange = Exchange([b"x"], content_length="1001", expect="100-continue")
    assert run(exchange, refused=[413]).bodies == []
    assert exchange.status == 413
    assert "1,000 bytes" in exchange.error
    assert exchange.taken == 0


def test_a_body_that_is_too_long_is_refused_whatever_its_content_length():
    for headers in ({}, {"content_length": "3"}, {"transfer_encoding": "chunked"}, {"content_length": "x"}):
        exchange = Exchange([b"x" * 100] * 11, **headers)
        assert run(exchange).bodies == []
        assert exchange.status == 413


def test_a_body_exactly_as_long_as_allowed():
    exchange = Exchange([b"x" * 100] * 10, content_length="1000")
    run(exchange)
    assert exchange.status == 200


def test_the_rest_of_a_refused_body_is_dropped_up_to_a_limit():
    short = Exchange([b"x" * 100] * 20)
    run(short)
    assert (short.status, short.taken) == (413, 2000)
    endless = Exchange([b"x" * 100] * 1000)
    run(endless)
    assert endless.status == 413
    assert endless.taken < 6000
    assert endless.headers[b"connection"] == b"close"


def test_a_slow_body():
    for exchange in (Exchange([b"x"], last=False), Exchange([b"x"] * 100, pause=0.02)):
        assert run(exchange, refused=[408]).bodies == []
        assert exchange.status == 408


def test_a_client_that_goes_away_costs_nothing():
    exchange = Exchange()

    async def gone():
        return {"type": "http.disconnect"}

    exchange.receive = gone
    assert run(exchange, refused=[]).bodies == []
    assert exchange.sent == []


@pytest.mark.parametrize(
    ("method", "path", "again"),
    [
        ("GET", "/gallery", True),
        ("POST", "/search", True),
        ("POST", "/gallery", False),
        ("POST", "/gallery/batch", False),
        ("POST", "/compact", False),
    ],
)
def test_a_slow_answer_to_what_should_be_done_once_has_no_retry_after(method, path, again):
    exchange = Exchange(method=method, path=path)
    run(exchange, application=Application(seconds=20), refused=[503])
    assert exchange.status == 503
    assert exchange.headers.get(b"retry-after") == (b"1" if again else None)
    assert any(words in exchange.error for words in ("may have been added", "the compaction goes on")) != again


def test_stalled_bodies_are_ended_when_others_arrive():
    stalled = [Exchange([b"x"], last=False) for _ in range(5)]
    whole = Exchange([b"abc"])
    application = run(*stalled, whole, limits=replace(LIMITS, bodies=3, requests=1))
    assert application.bodies == [b"abc"]
    assert whole.status == 200
    assert [one.status for one in stalled] == [503, 503, 503, 408, 408]
    assert "taken longest" in stalled[0].error


def test_stalled_bytes_are_dropped_when_others_arrive():
    stalled = [Exchange([b"x" * 900], last=False) for _ in range(2)]
    whole = Exchange([b"x" * 900])
    run(*stalled, whole)
    assert [one.status for one in (*stalled, whole)] == [503, 408, 200]


TOKEN = "a long enough token".replace(" ", "-")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer  {TOKEN}"}, 200),
        ({"cookie": f"{COOKIE}={TOKEN}"}, 401),
        ({"cookie": f"other=1; {COOKIE}={Access(TOKEN).cookie}"}, 200),
        ({"cookie": f"{COOKIE}={Access(TOKEN + '2').cookie}"}, 401),
        ({"cookie": f'ui={{"theme":"dark"}}; {COOKIE}={Access(TOKEN).cookie}'}, 200),
        ({"cookie": f"{{}}[;\xff=;{COOKIE}={Access(TOKEN).cookie}; a b"}, 200),
        ({"cookie": f"x{COOKIE}={Access(TOKEN).cookie}"}, 401),
        ({"cookie": "\x00=;=\xff"}, 401),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_the_token(headers, status, method):
    exchange = Exchange(method=method, path="/search", **headers)
    run(exchange, access=Access(TOKEN))
    assert exchange.status == status
    if status == 401:
        assert exchange.headers[b"www-authenticate"] == b"Bearer"
        assert TOKEN not in exchange.error
    assert TOKEN not in repr(Access(TOKEN))


@pytest.mark.parametrize("path", ["/", "/docs", "/page/app.js", "/login"])
def test_the_page_itself_needs_no_token(path):
    exchange = Exchange(method="GET", path=path)
    run(exchange, access=Access(TOKEN))
    assert exchange.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/gallery", 200),
        ("POST", "/search", 200),
        ("POST", "/gallery", 403),
        ("POST", "/feedback", 403),
        ("PATCH", "/gallery/1", 403),
        ("DELETE", "/gallery/1", 403),
        ("POST", "/whatever/comes", 403),
    ],
)
def test_a_service_that_is_read_only(method, path, status):
    exchange = Exchange(method=method, path=path)
    run(exchange, access=Access(read_only=True))
    assert exchange.status == status


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("multipart/form-data; boundary=x", 200),
        ("multipart/form-data; boundary=x; charset=UTF-8", 200),
        ('application/json; charset="utf-8"', 200),
        ("multipart/form-data; charset=punycode; boundary=x", 415),
        ('multipart/form-data; boundary=x; CharSet = "punycode"', 415),
        ("multipart/form-data; boundary=x; charset*=utf-8''punycode", 415),
        ("multipart/form-data; boundary=x; charset=utf-8; charset=idna", 415),
    ],
)
def test_another_charset_is_refused(content_type, status):
    """Decoding a field as punycode takes seconds, in the event loop."""
    exchange = Exchange(**{"content-type": content_type})
    application = run(exchange)
    assert exchange.status == status
    assert bool(application.bodies) == (status == 200)


def test_a_second_content_type_is_refused():
    """The application might take either."""
    exchange = Exchange(**{"content-type": "text/plain"})
    exchange.scope["headers"] = [*exchange.scope["headers"], (b"Content-Type", b"text/plain")]
    run(exchange)
    assert exchange.status == 415


def test_too_many_at_a_time():
    exchanges = [Exchange() for _ in range(5)]
    run(*exchanges, application=Application(seconds=0.1))
    assert sorted(exchange.status for exchange in exchanges) == [200, 200, 200, 503, 503]


def test_too_many_bytes_at_a_time():
    exchanges = [Exchange([b"x" * 900]) for _ in range(3)]
    run(*exchanges, application=Application(seconds=0.1), refused=[503])
    assert sorted(exchange.status for exchange in exchanges) == [200, 200, 503]


def test_a_traceback_is_written_to_the_log_only(capsys):
    exchange = Exchange()
    run(exchange, application=Application(fail=True), refused=[500])
    assert exchange.status == 500
    assert "fault" in exchange.error
    assert "ZeroDivisionError" not in exchange.error
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_other_protocols_are_left_unanswered():
    async def main():
        guard = Guard(Application(), LIMITS, {"localhost"})
        await guard({"type": "websocket"}, None, None)

    asyncio.run(main())

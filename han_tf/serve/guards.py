"""Checks of requests before they reach the application: host, origin, access, size and time.

An ASGI middleware. It reads the whole body before it calls the application, so that size and time are checked in one
place and the application never gets part of a body.
"""

import asyncio
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, Optional
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from han_tf.serve.access import ONCE, OPEN, PAGE_FILES, READING, Access
from han_tf.serve.limits import Limits, Refusal, overloaded

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""The page uses only its own files; ``blob:`` allows it to show an image that was chosen but not yet sent."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

FAULT = "a fault of the service; its log says more"
"""The error that a client gets for a bug; the traceback is written to stderr."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

_CHARSET = re.compile(rb"charset[*\d\s]*=\s*\"?([^\";\s]*)", re.IGNORECASE)
_DRAINED_SECONDS = 2.0
_DRAINED_TIMES = 4
"""How long, and up to how many times the largest allowed body, the rest of a refused body is read and dropped."""


class Guard:
    """Refuses requests that must not reach the application, and answers 503 if the application is too slow.

    - 421: ``Host`` is none of ``hosts``. A page of another site whose name resolves to this machine (DNS rebinding)
      sends the name of that site.
    - 403: a request that may change something comes from a page of another site (``Origin``, ``Sec-Fetch-Site``), or
      the service is read-only.
    - 401: the token is missing or wrong.
    - 413: the body is too large, by its ``Content-Length`` or by the bytes that arrive. 408: it arrives too slowly.
    - 503: more bodies, or more bytes of bodies, arrive at a time than allowed. The body that has taken longest is
      ended, so that stalled clients do not block others.
    - 503: more requests are answered at a time than allowed; a request counts once its body has arrived.
    - 503: the answer takes too long; without ``Retry-After`` if images may have been added.

    HEAD is answered like GET, without the body.

    Args:
      app: the application.
      limits: the bounds.
      hosts: names of the service, without port, in lower case.
      refused: called with the status of each request that is refused here.
      access: who may do what.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        hosts: Collection[str],
        refused: Callable[[int], None] = lambda status: None,
        access: Access = Access(),  # noqa: B008 - frozen
    ):
        self._app = app
        self._limits = limits
        self._hosts = frozenset(hosts)
        self._refused = refused
        self._access = access
        self._requests = 0
        self._buffered = 0
        self._arriving: dict[_Body, asyncio.Task] = {}  # in the order in which they began

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request; other protocols, such as WebSocket, get no answer."""
        if scope["type"] != "http":
            return
        answer, body = _Answer(send, self._limits.request_seconds), _Body()
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check(scope, headers)
            announced = headers.get(b"content-length", b"0")
            if announced.isdigit() and int(announced[:20]) > self._limits.upload_bytes:
                raise _too_large(self._limits.upload_bytes)
            if not await self._arrived(body, receive):
                return
            if self._requests >= self._limits.requests:
                raise overloaded(f"{self._limits.requests} requests are being answered")
            self._requests += 1
            try:
                await self._run(scope, bytes(body.data), receive, answer)
            finally:
                self._requests -= 1
        except Refusal as refusal:
            self._refused(refusal.status)
            if not answer.started:
                # The rest of the body is read and dropped: closing a connection with unread data resets it, and the
                # client would not see the reason. A client that expects 100-continue has not sent the body yet.
                if body.more and refusal.status == 413 and b"100-continue" not in headers.get(b"expect", b""):
                    await _drain(receive, _DRAINED_TIMES * self._limits.upload_bytes)
                await answer.refuse(scope, receive, refusal)
        finally:
            self._buffered -= len(body.data)

    async def _arrived(self, body: "_Body", receive: Receive) -> bool:
        """Reads a body; returns whether it is complete, False if the client has disconnected."""
        self._arriving[body] = reading = asyncio.ensure_future(self._read(body, receive))
        if len(self._arriving) > self._limits.bodies:
            self._end_slowest(f"{self._limits.bodies} bodies are on their way")
        try:
            return await reading
        except asyncio.CancelledError:
            if body.ended is None:
                raise
            raise body.ended from None
        finally:
            self._arriving.pop(body, None)

    async def _read(self, body: "_Body", receive: Receive) -> bool:
        deadline = time.monotonic() + self._limits.body_seconds
        try:
            while body.more:
                message = await _receive_before(receive, deadline, self._limits.body_seconds)
                if body.ended is not None:  # wait_for may return a message although the task was cancelled
                    raise body.ended
                if message["type"] == "http.disconnect":
                    return False
                part = message.get("body", b"")
                body.data += part
                self._buffered += len(part)
                body.more = message.get("more_body", False)
                if len(body.data) > self._limits.upload_bytes:
                    raise _too_large(self._limits.upload_bytes)
                if self._buffered > self._limits.buffered_bytes:
                    self._end_slowest("too many bytes are on their way")
                    if body.ended is not None:
                        raise body.ended
            return True
        finally:
            self._arriving.pop(body, None)

    def _end_slowest(self, reason: str) -> None:
        """Ends the body that began to arrive first, and drops the bytes read so far."""
        slowest = next(iter(self._arriving))
        slowest.ended = overloaded(f"{reason}, and this one has taken longest")
        self._buffered -= len(slowest.data)
        slowest.data = bytearray()
        self._arriving.pop(slowest).cancel()

    async def _run(self, scope: Message, body: bytes, receive: Receive, answer: "_Answer") -> None:
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server leaves the body out
        try:
            await asyncio.wait_for(self._app(scope, replay, answer.send), self._limits.request_seconds)
        except asyncio.TimeoutError:
            late = f"no answer within {self._limits.request_seconds:g} seconds"
            goes_on = ONCE.get((scope["method"], scope["path"]))
            if goes_on is None:
                raise Refusal(503, late) from None
            raise Refusal(503, f"{late}; {goes_on}", again=False) from None
        except Exception:
            # A bug. If it were raised, uvicorn would close the connection before the client has read the answer.
            traceback.print_exc()
            if not answer.started:
                raise Refusal(500, FAULT) from None

    def _check(self, scope: Message, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _name(host) not in self._hosts:
            raise Refusal(421, f"host is {host[:100]!r}, expected {' or '.join(sorted(self._hosts))}")
        if scope["path"] not in OPEN and not scope["path"].startswith(PAGE_FILES) and not self._access.admits(headers):
            raise Refusal(401, "no token or a wrong one, expected the header 'Authorization: Bearer TOKEN'")
        if scope["method"] in SAFE_METHODS:
            return
        # Form fields are decoded in the event loop; some of Python's codecs, such as punycode, take seconds for that.
        types = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
        if len(types) > 1 or any(charset.lower() != b"utf-8" for charset in _CHARSET.findall(b"".join(types))):
            raise Refusal(415, "the content type is given twice or names another charset, expected utf-8")
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site", b"none")
        if site not in (b"none", b"same-origin") or (origin is not None and not _same(origin.decode("latin-1"), host)):
            raise Refusal(403, "a page of another site may not do this")
        if self._access.read_only and scope["path"] not in READING:
            raise Refusal(403, "this service is read-only")


class _Body:
    """A body that is being read: the bytes so far, whether more follow, and the reason if it was ended early."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.more = True
        self.ended: Optional[Refusal] = None


class _Answer:
    """Sends an answer, adds the headers that every answer has, and records whether it has begun."""

    def __init__(self, send: Send, seconds: float):
        self._send = send
        self._seconds = seconds
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", ()))
            if not any(name.lower() == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*headers, *HEADERS]}
        # Otherwise an answer that the client does not receive would stay in memory.
        await asyncio.wait_for(self._send(message), self._seconds)

    async def refuse(self, scope: Message, receive: Receive, refusal: Refusal) -> None:
        headers = {**refusal.headers, "Connection": "close"}  # the rest of the body may still arrive
        await JSONResponse({"error": str(refusal)}, refusal.status, headers)(scope, receive, self.send)


async def _receive_before(receive: Receive, deadline: float, seconds: float) -> Message:
    try:
        return await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
    except asyncio.TimeoutError:
        raise Refusal(408, f"the body has not arrived within {seconds:g} seconds") from None


async def _drain(receive: Receive, most: int) -> None:
    deadline = time.monotonic() + _DRAINED_SECONDS
    try:
        while most > 0:
            message = await _receive_before(receive, deadline, _DRAINED_SECONDS)
            most -= len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return
    except Refusal:
        return


def _name(host: str) -> Optional[str]:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _same(origin: str, host: str) -> bool:
    """Returns whether an ``Origin`` is the one that the request was sent to; ``null`` never is."""
    return origin.lower() in (f"http://{host}", f"https://{host}")


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the request is too large, expected at most {limit:,} bytes")

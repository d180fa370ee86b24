"""uvicorn with limits on connections and on the time in which the head of a request must arrive."""

import asyncio
import json
import socket
from typing import Any, Optional

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from han_tf.common.errors import UserError
from han_tf.serve.limits import RETRY_AFTER, Limits

BACKLOG = 512
"""Connections that may wait to be accepted."""

_FULL = json.dumps({"error": "too many connections, try again in a moment"}).encode()
_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
    + f"retry-after: {RETRY_AFTER}\r\ncontent-length: {len(_FULL)}\r\n\r\n".encode()
    + _FULL
)


def make_protocol(limits: Limits) -> type[H11Protocol]:
    """Returns uvicorn's protocol in pure Python with further limits.

    uvicorn itself waits without limit for the head of a request and for the client to read the answer, so that a few
    hundred slow clients could use up all connections.
    """

    class GuardedProtocol(H11Protocol):
        _head_timer: Optional[asyncio.TimerHandle] = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                milliseconds = int(1000 * limits.request_seconds)
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            hosts = [other.client and other.client[0] for other in self.connections]
            own = hosts.count(self.client[0]) if self.client else 0
            if len(hosts) > limits.connections or own > limits.client_connections:
                transport.write(_TURNED_AWAY)
                transport.close()
                return
            self._arm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waiting = self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)
            if not waiting:
                self._disarm()
            elif self._head_timer is None:
                self._arm()

        def connection_lost(self, exc: Optional[Exception]) -> None:
            self._disarm()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            body = json.dumps({"error": "not a valid HTTP request"}).encode()
            headers = [("content-type", "application/json"), ("connection", "close")]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _arm(self) -> None:
            self._head_timer = self.loop.call_later(limits.header_seconds, self._head_late)

        def _disarm(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _head_late(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return GuardedProtocol


def server_config(app: Any, limits: Limits) -> uvicorn.Config:
    """Returns the uvicorn configuration that runs ``app`` on a socket of :func:`listen`."""
    return uvicorn.Config(
        app,
        http=make_protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,  # its own would close the handlers of all other loggers
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=limits.shutdown_seconds,
        h11_max_incomplete_event_size=16 * 1024,
    )


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on the address; port 0 is any free one.

    Clients that connect before :func:`han_tf.serve.running.serve` is called wait.

    Raises:
      UserError: the address is not this machine's, is in use, or may not be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: of a host's name with two dots side by side, for example
        reason = getattr(error, "strerror", None) or "no valid name"
        raise UserError(
            f"cannot listen on {host} port {port}: {reason}, expected a free port of this machine"
        ) from error
    return bound

"""The service's bounds, and the errors of requests beyond them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on the requests of clients.

    Attributes:
      upload_bytes: largest body of a request.
      pixels: largest image, width times height; read from its header before it is decoded.
      buffered_bytes: most bytes of all bodies that are held at a time.
      bodies: most bodies that arrive at a time; if there are more, the one that has taken longest is ended.
      body_seconds: time for a body to arrive.
      request_seconds: time from the end of the body to the answer; as long again for the client to receive it.
      header_seconds: time for the head of a request to arrive.
      keep_alive_seconds: how long a connection may be idle between requests.
      connections: most open connections.
      client_connections: most open connections from one address.
      requests: most requests that are answered at a time; a request counts once its body has arrived.
      batch: most images of one pass through the network.
      batch_wait_ms: how long the first image of a batch waits for others.
      queue: most images waiting for the network, most searches and most changes waiting for the gallery. Small images
        and large ones wait for decoding in queues of as many places each; a place is
        :data:`han_tf.serve.pictures.WORK_UNIT` pixels.
      max_k: most hits of a search.
      verdicts: most stored verdicts.
      shutdown_seconds: how long a stopping service continues to answer accepted requests.
    """

    upload_bytes: int = 8 * 2**20
    pixels: int = 16_000_000
    buffered_bytes: int = 256 * 2**20
    bodies: int = 256
    body_seconds: float = 15.0
    request_seconds: float = 30.0
    header_seconds: float = 10.0
    keep_alive_seconds: int = 15
    connections: int = 512
    client_connections: int = 384
    requests: int = 256
    batch: int = 32
    batch_wait_ms: float = 4.0
    queue: int = 256
    max_k: int = 200
    verdicts: int = 1_000_000
    shutdown_seconds: int = 30


RETRY_AFTER = 1
"""Seconds after which a refused client may try again; a full queue takes less than a second."""


class Refusal(Exception):
    """The reason why a request is refused, one line for the client.

    Attributes:
      status: the HTTP status: 4xx or 503; 500 for a bug.
      again: whether an answer with status 503 has ``Retry-After``.
    """

    def __init__(self, status: int, reason: str, again: bool = True):
        super().__init__(reason)
        self.status = status
        self.again = again

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER)} if self.status == 503 and self.again else {}


def overloaded(what: str) -> Refusal:
    """Returns the refusal of a request because a queue is full."""
    return Refusal(503, f"too much at once: {what}; try again in a moment")

"""The service's bounds, and the errors of requests beyond them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on the requests of clients.

    Attributes:
      upload_bytes: largest body of a request.
      pixels: largest image, width times height; judged by its header, before it is decoded.
      buffered_bytes: all bodies together that are held at a time.
      bodies: requests whose bodies are still arriving; beyond it, the one that has taken longest is ended.
      body_seconds: time in which a body must have arrived.
      request_seconds: time for everything else, from the whole body to the answer; also for a client to take it.
      header_seconds: time in which the head of a request must have arrived.
      keep_alive_seconds: how long a connection may be idle between requests.
      connections: open at a time.
      client_connections: open at a time from one address.
      requests: being answered at a time; a request counts from when its body is there.
      batch: most images of one pass through the network.
      batch_wait_ms: how long the first image of a batch waits for others.
      queue: most images waiting for the network; the same number of searches may wait for the gallery, and as much
        decoding as this number of small images needs, once more for large ones.
      max_k: most hits of a search.
      verdicts: most that are kept.
      shutdown_seconds: how long a stopping service goes on answering accepted requests.
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
"""Seconds after which a client that was turned away may come again: a full queue is worked off within one."""


class Refusal(Exception):
    """A request is not answered as asked; the message is one line for the client.

    Attributes:
      status: the HTTP status: 4xx or 503; 500 for a bug.
      again: whether a 503 invites to send the same request again.
    """

    def __init__(self, status: int, reason: str, again: bool = True):
        super().__init__(reason)
        self.status = status
        self.again = again

    @property
    def headers(self) -> dict[str, str]:
        """What the answer tells beside its reason."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER)} if self.status == 503 and self.again else {}


def overloaded(what: str) -> Refusal:
    """Returns the refusal of a request for which a queue is full."""
    return Refusal(503, f"too much at once: {what}; try again in a moment")

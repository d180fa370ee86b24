"""Sends damaged HTTP requests; expected is an answer or a closed connection, in bounded time and memory."""

import io
import os
import re
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.bench_service import form
from experiments.chaos.damage import MEMORY_BYTES, damage
from experiments.chaos.kills import MODEL
from experiments.chaos.process import Fault, wait
from experiments.chaos.service import port_of, start_service
from experiments.measuring import make_picture, memory_mb

ANSWER_SECONDS = 2
"""Longest wait for an answer: the service may wait for more of a damaged request."""


def _requests() -> list[bytes]:
    """Returns valid requests of every kind."""
    jpeg = make_picture(0)
    png = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(png, "PNG")

    def request(method: str, path: str, body: bytes = b"", kind: str = "") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\n" * bool(body) + f"Content-Type: {kind}\r\n" * bool(kind)
        return f"{head}\r\n".encode() + body

    reads = ("/", "/healthz", "/metrics", "/overview", "/gallery", "/gallery?after=5&limit=3", "/gallery/1")
    reads += ("/gallery/1/image", "/feedback.csv", "/openapi.json", "/page/app.js", "/examples")
    json_type = "application/json"
    return [
        *(request("GET", path) for path in reads),
        *(
            request("POST", path, *form(picture))
            for picture in (jpeg, png.getvalue())
            for path in ("/embed", "/gallery")
        ),
        request("POST", "/search", *form(jpeg, k=5, cameras=1, threshold=1.5, rerank="true")),
        request("POST", "/search", *form(id=1, k=5, not_cameras=2, after=1e9)),
        request("POST", "/gallery", *form(jpeg, pid=4, camid=2, time=1.5e9, name="someone")),
        request("PATCH", "/gallery/1", b'{"pid": 3, "camid": null, "time": 1.5e9}', json_type),
        request("POST", "/feedback", b'{"query": "id:1", "hit": 2, "verdict": "right", "distance": 0.5}', json_type),
        request("DELETE", "/gallery/2"),
    ]


def ask_damaged(root: Path, inputs: int, seed: int) -> dict[str, Any]:
    """Sends damaged requests to a service; returns the numbers of answers, the service's memory, and faults."""
    log, folder = root / "service.log", root / "asked"
    requests = _requests()
    service = start_service(root / "exports" / MODEL, folder, log, Fault(), f"--body_seconds={ANSWER_SECONDS / 2}")
    port = port_of(service, log)
    if port is None:
        return {"case": "http", "inputs": 0, "faults": [f"no service: {wait(service, log, 0).said}"]}
    for request in requests:
        _ask(port, request)
    before = memory_mb("VmRSS", service)
    statuses: Counter[str] = Counter()
    faults: list[str] = []
    begun = time.monotonic()
    for number in range(inputs):
        rng = np.random.default_rng([seed, 100, number])
        valid, other = (requests[int(place)] for place in rng.integers(len(requests), size=2))
        status = _ask(port, _damaged_request(valid, other, rng))
        statuses[status] += 1
        if status not in ("2", "3", "4", "503", "closed", "waits"):
            faults.append(f"http {number} of seed {seed}: {status}")
    alive = _ask(port, requests[1])
    more = int(memory_mb("VmHWM", service) - before) if alive == "2" else 0
    os.kill(service, signal.SIGTERM)
    ended = wait(service, log, 60)
    if alive != "2" or ended.status != -signal.SIGTERM or "Traceback" in ended.said or more > MEMORY_BYTES >> 20:
        faults.append(f"http: {alive}, {ended.status}, {more} MiB more: {ended.said}")
    return {
        "case": "http",
        "inputs": inputs,
        "read": statuses["2"] + statuses["3"],
        "refused": statuses["4"] + statuses["503"] + statuses["closed"] + statuses["waits"],
        "peak_mb": more,
        "seconds": time.monotonic() - begun,
        "faults": faults,
    }


def _damaged_request(valid: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Returns a damaged request; half of those with a body have a valid head, so that the body is parsed."""
    head, _, body = valid.partition(b"\r\n\r\n")
    if not body or rng.random() < 0.5:
        return damage(valid, other, rng)
    body = damage(body, other, rng)
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + b"\r\n\r\n" + body


def _ask(port: int, request: bytes) -> str:
    """Returns the status's first digit, or all of a 5xx; ``closed`` without one, ``waits`` if none comes in time."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as connection:
            with suppress(OSError):  # the service may answer before all is sent
                connection.sendall(request)
            answer = b""
            while part := connection.recv(2**16):
                answer += part
    except TimeoutError:
        return "waits"
    except OSError:
        return "closed"
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else "closed"
    return status if status[0] == "5" else "closed" if status == "closed" else status[0]

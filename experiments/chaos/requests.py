"""Sends damaged HTTP requests; expected is an answer or a closed connection, in bounded time and memory."""

import io
import json
import re
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import numpy as np
from PIL import Image

from experiments.bench_service import FORM, multipart
from experiments.chaos.damage import MEMORY_BYTES, damage
from experiments.chaos.kills import MODEL
from experiments.chaos.process import Tally
from experiments.chaos.service import ENTRIES, start_service
from experiments.measuring import make_picture, memory_mb

ANSWER_SECONDS, HANG_SECONDS = 2, 60
"""Longest waits for an answer: the service may wait for more of a request that is damaged as bytes; else it hangs."""

BYTES_SHARE = 0.2
"""Of the requests: damaged as bytes, the others in their values, headers or method."""

COUNTED = ("inputs", "read", "refused", "not HTTP")

UNANSWERABLE = ("/attention", "/gallery/{id}/attention", "/examples/{number}/image")
"""Routes that find nothing in this service: it draws no attention and has no examples."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", "NONE")
PLACES = ("path", "query", "form", "file", "json", "header")
WEIRD = b"null true [] {} [1,2] -1 0 1.5 1_0 0x10 NaN -Infinity 1e999 9007199254740993 18446744073709551616 x".split()
WEIRD += [b'""', b'" 7 "', b'"x"', b'"%s"' % (b"x" * 5000), rb'"\ud800"', rb'"\u0000\u202e\r\n"', b'"\xed\xa0\x80"']
WEIRD += [b"", b"\0", b"\xff\xfe", b"\xd9\xa7", b"../../etc/passwd", b"id:1\n", b"\r\n--b0undary--\r\n", b"9" * 5000]
WEIRD.append(b"[" * 5000 + b"]" * 5000)
"""Values in place of valid ones: JSON of other types, sizes and depths; text and bytes that are not JSON."""

NAMES = ("id", "image", "images", "k", "cameras", "pid", "time", "name", "query", "hit", "token", "limit", "", "é\0")
NAMES += ("x" * 5000, 'image"; filename="', 'image"; filename="../a\\b\xff.png')
HEADERS = [
    *(f"Content-Type: {FORM}; charset={name}" for name in ("utf-16", "undefined", "unicode_escape")),
    *(f"Content-Type: multipart/form-data; boundary={boundary}" for boundary in ("", '"', "b" * 5000)),
    *(f"Content-Type: {kind}" for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded")),
    *(f"Content-Length: {number}" for number in ("-1", "1e3", "99999999999")),
    *(f"Host: {host}" for host in ("elsewhere", "[::1", "127.0.0.1:x")),
    *("Expect: 100-continue", "Content-Encoding: gzip", "Origin: null", "Origin: http://[::1"),
    *("Sec-Fetch-Site: cross-site", "Upgrade: websocket", "If-None-Match: *", "Range: bytes=9-1"),
    *('Cookie: han_tf="\xff\\400; =;', "Authorization: Bearer \xff"),
]


class Request(NamedTuple):
    """A request: method, path with names of values in braces, and values: place, name, and bytes (``json``: JSON)."""

    method: str
    route: str
    values: Sequence[tuple[str, str, bytes]] = ()

    def encode(self, change: Callable[[bytes], bytes] = bytes) -> bytes:
        """Returns the bytes to send, with ``change`` applied to those of the body."""
        of: dict[str, list[tuple[str, bytes]]] = {place: [] for place in PLACES}
        for place, name, value in self.values:
            of[place].append((name, value))
        path, body, kind = self.route, b"", ""
        for name, value in of["path"]:
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        if of["form"] or of["file"]:
            kind = FORM
            parts = [(f'name="{name}"', value) for name, value in of["form"]]
            body = multipart([*parts, *((f'name="{name}"; filename="p.jpg"', value) for name, value in of["file"])])
        elif of["json"]:
            kind = "application/json"
            body = b"{%s}" % b", ".join(json.dumps(name).encode() + b": " + value for name, value in of["json"])
        body, headers = change(body), {"Host": "127.0.0.1", "Connection": "close"}
        headers |= {"Content-Length": str(len(body)), "Content-Type": kind} if body else {}
        headers |= {name: value.decode("latin-1") for name, value in of["header"]}
        head = [f"{self.method} {path}{'?' * bool(of['query'])}{urlencode(of['query'])} HTTP/1.1"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*head, "", ""]).encode("latin-1", "replace") + body


def _requests(pictures: Sequence[bytes], id: int) -> list[Request]:
    """Returns valid requests of every route, about the entry ``id`` where one is needed."""

    def request(method: str, route: str, place: str = "", **values: Any) -> Request:
        path = [("path", name, str(id).encode()) for name in re.findall(r"{(\w+)}", route)]
        image = [("file", name, values.pop(name)) for name in ("image", "images") if name in values]
        return Request(method, route, [*path, *image, *((place, n, str(v).encode()) for n, v in values.items())])

    jpeg, png = pictures
    known = {"pid": 4, "camid": 2, "time": 1.5e9}
    said = {"query": f'"id:{id}"', "hit": id - 1, "verdict": '"right"', "distance": 0.5}
    pages = ("/", "/docs", "/page/app.js", "/openapi.json", "/healthz", "/metrics", "/overview", "/examples")
    batch = request("POST", "/gallery/batch", "form", images=png, **known)
    return [
        *(request("GET", page) for page in (*pages, "/feedback.csv", "/gallery")),
        request("POST", "/gallery", "form", image=jpeg, name="someone", **known),
        batch._replace(values=[*batch.values, ("file", "images", jpeg)]),
        *(request("GET", f"/gallery/{{id}}{what}") for what in ("", "/image", "/attention")),
        request("GET", "/gallery/{id}/attention", "query", kind="soft", level=1),
        request("GET", "/gallery", "query", after=5, limit=3, pids=4, taken_before=2e9),
        *(request("POST", "/embed", image=picture) for picture in pictures),
        request("POST", "/search", "form", image=jpeg, k=5, cameras=1, threshold=1.5, rerank="true"),
        request("POST", "/search", "form", id=id, k=5, not_cameras=2, after=1e9, before=2e9),
        request("POST", "/attention", "query", image=png, kind="both", level=1),
        request("PATCH", "/gallery/{id}", "json", pid=3, camid="null", time=1.5e9),
        request("POST", "/feedback", "json", **said),
        request("POST", "/login", "json", token='"token"'),
        request("GET", "/examples/{number}/image"),
        request("DELETE", "/gallery/{id}"),
        request("DELETE", "/gallery", "query", pids=10**9, cameras=77, taken_after=1e9),
        request("POST", "/compact"),
    ]


def ask_damaged(root: Path, inputs: int, seed: int) -> dict[str, Any]:
    """Sends damaged requests to a service; returns the numbers of answers, the service's memory, and faults."""
    log, folder, tally = root / "service.log", root / "asked", Tally("http")
    png = io.BytesIO()
    Image.open(io.BytesIO(make_picture(0))).save(png, "PNG")
    pictures = make_picture(0), png.getvalue()
    service, port = start_service(root / "exports" / MODEL, folder, log, f"--body_seconds={ANSWER_SECONDS / 2}")
    if port is None:
        tally.faults.append(f"no service: {service.end(0).said}")
        return tally.figures(COUNTED)
    routes = set()
    undamaged = _requests(pictures, ENTRIES)
    for request in undamaged:  # the first one that it adds
        status, answer = _ask(port, request.encode(), HANG_SECONDS)
        if status[0] != "2" and (request.route not in UNANSWERABLE or status != "404"):
            tally.faults.append(f"http: {request.method} {request.route}, undamaged: {status}")
        routes.add((request.method.lower(), request.route))
        if request.route == "/openapi.json":
            described = json.loads(answer.partition(b"\r\n\r\n")[2])["paths"]
    without = {(method, route) for route, methods in described.items() for method in methods} - routes
    tally.faults += [f"http: no valid request of {without}"] if without else []
    before = memory_mb("VmRSS", service.pid)
    for number in range(inputs):
        rng = np.random.default_rng([seed, 100, number])
        requests = _requests(pictures, ENTRIES + int(rng.integers(-10, 10)))
        valid, other = (requests[int(place)] for place in rng.integers(len(requests), size=2))
        if bytewise := rng.random() < BYTES_SHARE:
            change = partial(damage, other=other.encode(), rng=rng)
            # Half of them have a valid head, so that the body is parsed.
            sent = valid.encode(change) if rng.random() < 0.5 else change(valid.encode())
        else:
            sent = _damaged_fields(valid, other, rng).encode()
        status, answer = _ask(port, sent, ANSWER_SECONDS if bytewise else HANG_SECONDS)
        unparsed = status in ("closed", "waits") or b"not a valid HTTP request" in answer
        tally.counts["read" if status[0] in "23" else "refused"] += 1
        tally.counts["not HTTP"] += unparsed
        if (status[0] == "5" and status != "503") or (status == "waits" and not bytewise):
            tally.faults.append(f"http {number} of seed {seed}: {status}: {sent[:200]!r}")
    alive, _ = _ask(port, undamaged[0].encode(), HANG_SECONDS)
    more = int(memory_mb("VmHWM", service.pid) - before) if alive == "200" else 0
    service.terminate()
    ended = service.end(60)
    if alive != "200" or ended.status != -signal.SIGTERM or "Traceback" in ended.said or more > MEMORY_BYTES >> 20:
        tally.faults.append(f"http: {alive}, {ended.status}, {more} MiB more: {ended.said}")
    tally.counts["inputs"] = inputs
    return tally.figures(COUNTED, peak_mb=more)


def _damaged_fields(valid: Request, other: Request, rng: np.random.Generator) -> Request:
    """Returns a request with one or two damages to its values, headers or method; most are valid HTTP."""
    method, values = valid.method, [*valid.values]
    for _ in range(int(rng.integers(1, 3))):
        step = rng.choice(["value", "value", "value", "header", "method", "remove", "repeat", "rename", "move", "add"])
        at = int(rng.integers(max(1, len(values))))
        if step == "method":
            method = METHODS[rng.integers(len(METHODS))]
        elif step == "header" or not values:
            name, _, text = HEADERS[rng.integers(len(HEADERS))].partition(": ")
            values.append(("header", name, text.encode("latin-1")))
        elif step == "add":
            values += other.values
        elif step == "remove":
            del values[at]
        elif step == "repeat":
            values.insert(at, values[at])
        else:
            place, name, value = values[at]
            if step == "value" and place == "file" and rng.random() < 0.7:
                value = damage(value, value, rng)
            elif step == "value":
                value = WEIRD[rng.integers(len(WEIRD))]
            elif step == "rename":
                name = NAMES[rng.integers(len(NAMES))]
            else:
                place = PLACES[rng.integers(1, len(PLACES) - 1)]
            values[at] = place, name, value
    return valid._replace(method=method, values=values)


def _ask(port: int, request: bytes, seconds: float) -> tuple[str, bytes]:
    """Returns the answer's status, and the answer; ``closed`` without a status, ``waits`` if not all comes in time."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), seconds) as connection:
            with suppress(OSError):  # the service may answer before all is sent
                connection.sendall(request)
            while part := connection.recv(2**16):
                answer += part
    except TimeoutError:
        return "waits", answer
    except OSError:
        return "closed", answer
    answer = answer.removeprefix(b"HTTP/1.1 100 \r\n\r\n")
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else ""
    return status or "closed", answer

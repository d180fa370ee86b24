"""Measure the search service under load: speed and memory while clients search, embed, add and delete.

  python -m experiments.bench_service [--model DIR]

Starts ``python -m han_tf.serve`` in a separate process, over a gallery of features drawn from a seed; the clients run
in this process. Each client waits for an answer before its next request. Without --model it serves the network of
drawn people that comes with the package. Fails if the service answers anything but 2xx and 503, or if an image that
was answered with 201 is not in the gallery afterwards.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from absl import flags

from experiments.measuring import make_picture, new_flags, product_flops, watched_memory, write_figures
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.processes import usable_cores
from han_tf.search import create_gallery, open_gallery

MIX = {"search": 60, "search_by_id": 15, "embed": 10, "image": 5, "add": 6, "delete": 4}
"""Kind of request -> share, in percent."""

PICTURES = 64
FLAGS = new_flags()
flags.DEFINE_string("model", "han_small-synthetic", "Run or model to serve.", flag_values=FLAGS)
command_line.old_name(FLAGS, "run", "model")
flags.DEFINE_integer("clients", 64, "How many ask at a time.", 1, flag_values=FLAGS)
flags.DEFINE_float("seconds", 60, "How long.", 1, flag_values=FLAGS)
flags.DEFINE_integer("gallery", 10_000, "Images in the gallery.", 1, flag_values=FLAGS)


class Answer(NamedTuple):
    """One answer: its status, and its body if it is JSON."""

    status: int
    body: Any


class Connection:
    """A client's persistent connection, with the minimum of HTTP/1.1, so that clients take little CPU time."""

    def __init__(self, host: str, port: int):
        self._address = host, port
        self._streams: Optional[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = None

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> Answer:
        """Sends a request and returns the answer; opens the connection if it is closed."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._address[0]}\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + (f"Content-Type: {kind}\r\n\r\n".encode() if kind else b"\r\n") + body)
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        data = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        is_json = headers.get("content-type", "").startswith("application/json")
        return Answer(int(status_line.split()[1]), json.loads(data) if is_json else None)

    def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def form(picture: Optional[bytes] = None, **fields: Any) -> tuple[bytes, str]:
    """Returns a multipart body and its content type."""
    boundary = "b0undary"
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    if picture is not None:
        head = 'Content-Disposition: form-data; name="image"; filename="p.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        parts.append(head.encode() + picture)
    body = b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


class Load:
    """The clients' requests and their results.

    Attributes:
      seconds: times of the answers, by (kind, status).
      added: ids that were answered with 201 and not deleted since.
      broken: number of connections that broke.
    """

    def __init__(self, host: str, port: int, gallery: int):
        self._address = host, port
        self._gallery = gallery
        self._pictures = [make_picture(seed) for seed in range(PICTURES)]
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.added: set[int] = set()
        self.broken = 0

    async def run(self, clients: int, seconds: float) -> None:
        """Sends requests from ``clients`` clients for ``seconds``."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(number, end) for number in range(clients)))

    async def _client(self, number: int, end: float) -> None:
        rng = np.random.default_rng(number)
        connection = Connection(*self._address)
        kinds, weights = list(MIX), np.array(list(MIX.values())) / sum(MIX.values())
        own: list[int] = []
        while time.monotonic() < end:
            kind = str(rng.choice(kinds, p=weights))
            if kind == "delete" and not own:
                kind = "add"
            picture = self._pictures[rng.integers(PICTURES)]
            id = int(rng.integers(self._gallery))
            start = time.perf_counter()
            try:
                if kind == "search":
                    answer = await connection.ask("POST", "/search", *form(picture, k=20, not_cameras=1))
                elif kind == "search_by_id":
                    answer = await connection.ask("POST", "/search", *form(id=id, k=20))
                elif kind == "embed":
                    answer = await connection.ask("POST", "/embed", *form(picture))
                elif kind == "image":
                    answer = await connection.ask("GET", f"/gallery/{own[-1]}/image" if own else "/overview")
                elif kind == "add":
                    answer = await connection.ask("POST", "/gallery", *form(picture, camid=3, time=1.5e9))
                    if answer.status == 201:
                        own.append(answer.body["id"])
                        self.added.add(own[-1])
                else:
                    answer = await connection.ask("DELETE", f"/gallery/{own[-1]}")
                    if answer.status == 200:
                        self.added.discard(own.pop())
            except (OSError, asyncio.IncompleteReadError):
                self.broken += 1
                connection.close()
                continue
            self.seconds.setdefault((kind, answer.status), []).append(time.perf_counter() - start)
            if answer.status == 503:
                await asyncio.sleep(1)
        connection.close()


def _fill(path: Path, images: int, model: str) -> int:
    from han_tf.features.extractor import FeatureExtractor

    extractor = FeatureExtractor(model)
    rng = np.random.default_rng(0)
    with create_gallery(path, extractor.feature_dim, extractor.checksum) as gallery:
        features = rng.standard_normal((images, extractor.feature_dim)).astype(np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        gallery.add(features, camids=rng.integers(1, 7, images).tolist(), times=rng.uniform(1e9, 2e9, images).tolist())
    return extractor.feature_dim


async def _measure(load: Load, process: int, clients: int, seconds: float) -> list[float]:
    """Runs the load after a warm-up of five seconds; returns the service's memory at every second, in MiB."""
    await load.run(clients, 5)
    load.seconds.clear()
    with watched_memory(process, every=1) as memory:
        await load.run(clients, seconds)
    return memory


def main(values: flags.FlagValues) -> None:
    """Starts the service, puts load on it and reports."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dimension = _fill(folder / "index", values.gallery, values.model)
        flops = product_flops()
        arguments = [f"--index={folder / 'index'}", f"--model={values.model}", "--port=0"]
        command = [sys.executable, "-m", "han_tf.serve", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if match := re.search(r"ready: http://([\d.]+):(\d+)", line):
                    break
            else:
                raise UserError(f"the service did not start, it said: {' '.join(lines) or 'nothing'}")
            load = Load(match[1], int(match[2]), values.gallery)
            memory = asyncio.run(_measure(load, process.pid, values.clients, values.seconds))
            process.send_signal(signal.SIGTERM)
            stopped = process.wait(60)
        finally:
            process.kill()
            process.stdout.close()
        with open_gallery(folder / "index") as gallery:
            kept = len(gallery.entries(sorted(load.added)))
            expected = values.gallery + len(load.added)
            lost = expected - len(gallery)
    figures = _figures(load, values, memory, flops)
    figures[0].update(dimension=dimension, model_format=_said(lines, "model"), exit_status=stopped, added_kept=kept)
    for figure in figures:
        print(json.dumps(figure))
    write_figures(values.output, "service_bench", figures=figures)
    bad = {status for _, status in load.seconds if status >= 300 and status != 503}
    if bad or load.broken or lost or stopped != -signal.SIGTERM:
        raise UserError(
            f"answered with {sorted(bad)}, {load.broken} broken connections, {lost} entries lost, exit {stopped}; "
            "expected 2xx and 503 alone, none broken, none lost, ended by SIGTERM"
        )


def _said(lines: list[str], what: str) -> str:
    return next((line.partition(": ")[2].strip() for line in lines if line.startswith(f"{what}: ")), "")


def _figures(load: Load, values: flags.FlagValues, memory: list[float], flops: float) -> list[dict[str, Any]]:
    """Returns one figure for all requests, then one for each kind."""

    def figure(case: str, kinds: Collection[str]) -> dict[str, Any]:
        answers = [(status, seconds) for (kind, status), seconds in load.seconds.items() if kind in kinds]
        times = np.concatenate([seconds for status, seconds in answers if status < 300] or [[]])
        statuses = Counter(str(status) for status, seconds in answers for _ in seconds)
        points = dict(zip(("p50_ms", "p99_ms"), (1000 * np.percentile(times, (50, 99))).tolist())) if len(times) else {}
        return {"case": case, "per_second": len(times) / values.seconds, **points, "statuses": dict(statuses)}

    half = len(memory) // 2
    whole = {
        **figure("all", MIX),
        "clients": values.clients,
        "seconds": values.seconds,
        "gallery": values.gallery,
        "memory_mb": {"start": memory[0], "middle": memory[half], "end": memory[-1], "peak": max(memory)},
        "cores": usable_cores(),
        "product_gflops": flops / 1e9,
    }
    return [whole, *(figure(kind, (kind,)) for kind in MIX)]


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))

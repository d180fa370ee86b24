"""Measure the search service under load: speed and memory while clients search, embed, add and delete.

  python -m experiments.bench_service [--model DIR]

Starts ``python -m han_tf.serve`` in a separate process, over a gallery of features drawn from a seed; the clients run
in this process. Each client waits for an answer before its next request. Without --model it serves the network of
drawn people that comes with the package. Fails if the service answers anything but 2xx and 503, or if an image that
was answered with 201 is not in the gallery afterwards.
"""

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Optional

import numpy as np

from experiments.measuring import make_picture, new_flags, product_flops, watched_memory, write_figures
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import temporary_folder
from han_tf.common.processes import usable_cores
from han_tf.metrics import normalise
from han_tf.search import create_gallery, open_gallery

with command_line.deferred_imports(__name__):
    from han_tf.features.extractor import FeatureExtractor

MIX = {"search": 60, "search_by_id": 15, "embed": 10, "image": 5, "add": 6, "delete": 4}
"""Kind of request -> share, in percent."""

PICTURES = 64
CAMERAS = 1000
WARM_UP_SECONDS, STOP_SECONDS = 5, 60
FLAGS = new_flags()
FLAGS.group("model")
FLAGS.string("model", "han_small-synthetic", "Run or model to serve.")
FLAGS.old_name("run", "model")
FLAGS.group("load")
FLAGS.integer("clients", 64, "Clients that ask at the same time.", 1)
FLAGS.real("seconds", 60, "Duration of the load, seconds.", 1)
FLAGS.integer("gallery", 10_000, "Images in the gallery.", 1)


FORM = "multipart/form-data; boundary=b0undary"


def multipart(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """Returns a body of the type :data:`FORM`; each part is its attributes, such as ``name="k"``, and its value."""
    heads = [(f"--b0undary\r\nContent-Disposition: form-data; {about}\r\n\r\n", value) for about, value in parts]
    return b"".join(head.encode() + value + b"\r\n" for head, value in heads) + b"--b0undary--\r\n"


def form(picture: Optional[bytes] = None, **fields: Any) -> tuple[bytes, str]:
    """Returns the body of a request with these ``fields`` and an image, and its content type."""
    parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
    return multipart([*parts, *([('name="image"; filename="p.jpg"', picture)] if picture else [])]), FORM


class Load:
    """Clients' requests, and what is known of the images that they add.

    ``gallery`` is the number of images that the gallery holds before; ``mix`` maps kinds of requests, those of
    :data:`MIX` and ``correct``, to their shares.
    """

    def __init__(self, gallery: int, mix: Mapping[str, int] = MIX):
        self._gallery = gallery
        self._kinds, self._shares = list(mix), np.array(list(mix.values())) / sum(mix.values())
        self._pids = itertools.count(1)
        self._pictures = [make_picture(seed) for seed in range(PICTURES)]
        self.seconds: dict[tuple[str, int], list[float]] = {}  # times of the answers, by (kind, status)
        self.cameras: dict[int, set[int]] = {}  # pid of each image -> the cameras it may have; none if it was deleted
        self.ids: dict[int, int] = {}  # pid -> id of the images that are there for sure
        self.unsure: set[int] = set()  # pids of images whose addition or deletion was not confirmed
        self.broken = 0  # number of clients that lost their connection

    def run(self, host: str, port: int, clients: int, seconds: float, seed: int = 0) -> None:
        """Sends requests from ``clients`` clients for ``seconds``, or until the service ends."""
        end = time.monotonic() + seconds
        owned = [sorted(self.ids)[number::clients] for number in range(clients)]
        rngs = [np.random.default_rng([seed, number]) for number in range(clients)]
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(partial(self._client, f"{host}:{port}", end), rngs, owned))

    def _client(self, address: str, end: float, rng: np.random.Generator, own: list[int]) -> None:
        with closing(HTTPConnection(address, timeout=60)) as connection:
            try:
                while time.monotonic() < end:
                    kind = str(rng.choice(self._kinds, p=self._shares))
                    if kind in ("delete", "correct") and not own:
                        kind = "add"
                    start = time.perf_counter()
                    status = self._request(connection, kind, rng, own)
                    self.seconds.setdefault((kind, status), []).append(time.perf_counter() - start)
                    if status == 503:
                        time.sleep(1)
            except (OSError, HTTPException):
                self.broken += 1

    def _request(self, connection: HTTPConnection, kind: str, rng: np.random.Generator, own: list[int]) -> int:
        """Sends a request of a kind, about one of the client's ``own`` images; returns the status of its answer."""
        picture, pid = self._pictures[rng.integers(PICTURES)], int(rng.choice(own)) if own else 0
        if kind == "add":
            pid = next(self._pids)
            self.cameras[pid] = {3}
            self.unsure.add(pid)
            status, answer = _ask(connection, "POST", "/gallery", *form(picture, pid=pid, camid=3, time=1.5e9))
            if status == 201:
                self.unsure.remove(pid)
                self.ids[pid] = json.loads(answer)["id"]
                own.append(pid)
        elif kind == "delete":
            own.remove(pid)
            self.unsure.add(pid)
            status, _ = _ask(connection, "DELETE", f"/gallery/{self.ids.pop(pid)}")
            if status == 200:
                self.unsure.remove(pid)
                self.cameras[pid] = set()
        elif kind == "correct":
            camera = int(rng.integers(1, CAMERAS))
            self.cameras[pid].add(camera)
            body = json.dumps({"camid": camera}).encode()
            status, _ = _ask(connection, "PATCH", f"/gallery/{self.ids[pid]}", body, "application/json")
            if status == 200:
                self.cameras[pid] = {camera}
        elif kind == "image":
            status, _ = _ask(connection, "GET", f"/gallery/{self.ids[pid]}/image" if own else "/overview")
        elif kind == "embed":
            status, _ = _ask(connection, "POST", "/embed", *form(picture))
        else:
            query = form(picture, k=20, not_cameras=1)
            if kind == "search_by_id":
                query = form(id=int(rng.integers(self._gallery)), k=20)
            status, _ = _ask(connection, "POST", "/search", *query)
        return status


def _ask(
    connection: HTTPConnection, method: str, path: str, body: bytes = b"", content_type: str = ""
) -> tuple[int, bytes]:
    connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def fill_gallery(path: Path, images: int, dimension: int, checksum: str) -> None:
    """Makes a gallery of features drawn from a seed, of unit length, with cameras and times."""
    rng = np.random.default_rng(0)
    features = normalise(rng.standard_normal((images, dimension), np.float32))
    with create_gallery(path, dimension, checksum) as gallery:
        gallery.add(features, camids=rng.integers(1, 7, images).tolist(), times=rng.uniform(1e9, 2e9, images).tolist())


def main(values: command_line.Flags) -> None:
    """Starts the service, puts load on it and reports."""
    with temporary_folder() as folder:
        extractor = FeatureExtractor(values.model)
        dimension = extractor.feature_dim
        fill_gallery(folder / "index", values.gallery, dimension, extractor.checksum)
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
            load, address = Load(values.gallery), (match[1], int(match[2]))
            load.run(*address, values.clients, WARM_UP_SECONDS)
            statuses = {status for _, status in load.seconds}
            load.seconds.clear()
            with watched_memory(process.pid, every=1) as memory:
                load.run(*address, values.clients, values.seconds)
            process.send_signal(signal.SIGTERM)
            try:
                stopped = process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise UserError(f"the service still runs {STOP_SECONDS} s after SIGTERM, expected it to end") from error
        finally:
            process.kill()
            process.stdout.close()
        with open_gallery(folder / "index") as gallery:
            kept = len(gallery.entries(sorted(load.ids.values())))
            more = len(gallery) - values.gallery - len(load.ids)
    figures = _figures(load, values, memory, flops)
    model = next((line.partition(": ")[2].strip() for line in lines if line.startswith("model: ")), "")
    figures[0].update(dimension=dimension, model_format=model, exit_status=stopped, added_kept=kept)
    for figure in figures:
        print(json.dumps(figure))
    write_figures(values.output, "service_bench", figures=figures)
    statuses.update(status for _, status in load.seconds)
    bad = {status for status in statuses if status >= 300 and status != 503}
    if bad or load.broken or not 0 <= more <= len(load.unsure) or stopped != -signal.SIGTERM:
        raise UserError(
            f"answered with {sorted(bad)}, {load.broken} broken connections, {more} entries too many, exit {stopped}; "
            "expected 2xx and 503 alone, none broken, none lost, ended by SIGTERM"
        )


def _figures(load: Load, values: command_line.Flags, memory: list[float], flops: float) -> list[dict[str, Any]]:
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

"""Kills the service during writes and makes its disk fail; every confirmed write must be there exactly once."""

import http.client
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np

from experiments.bench_service import PICTURES, form
from experiments.chaos import process
from experiments.chaos.kills import KINDS, chosen, complaints, figures, run_command
from experiments.chaos.process import UNDISTURBED, Child, Ended, Fault, result_of
from experiments.measuring import make_picture
from han_tf.data.reading import decode_image
from han_tf.runs.card import read_card
from han_tf.search import create_gallery, open_gallery
from han_tf.serve import __main__ as serve

WRITERS, WRITING_SECONDS, ENTRIES = 3, 1.5, 100
CAMERAS = 1000


class Writers:
    """Clients that add, correct and delete images, and record the confirmed writes.

    Attributes:
      cameras: pid of each image, all different -> the cameras that it may have; none if it was deleted.
      unsure: pids of images whose addition or deletion was not answered.
      wrong: unexpected answers.
      confirmed: number of confirmed writes.
    """

    def __init__(self) -> None:
        self.cameras: dict[int, set[int]] = {}
        self.unsure: set[int] = set()
        self.wrong: list[str] = []
        self.confirmed = 0
        self._ids: dict[int, int] = {}
        self._pictures = [make_picture(number) for number in range(PICTURES)]

    def run(self, port: int, seconds: float, seed: int) -> None:
        """Writes until the service has ended, at most for ``seconds``."""
        end, first = time.monotonic() + seconds, (max(self.cameras, default=0) // WRITERS + 1) * WRITERS
        with ThreadPoolExecutor(WRITERS) as pool:
            list(
                pool.map(lambda n: self._write(port, end, first + n, np.random.default_rng([seed, n])), range(WRITERS))
            )

    def _write(self, port: int, end: float, new: int, rng: np.random.Generator) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        own = [pid for pid in list(self._ids) if pid % WRITERS == new % WRITERS and pid not in self.unsure]
        with closing(connection), suppress(OSError, http.client.HTTPException):  # raised once the service has ended
            while time.monotonic() < end:
                step = rng.choice(["add", "correct", "delete"]) if own else "add"
                pid = new if step == "add" else own[int(rng.integers(len(own)))]
                if step == "correct":
                    camera = int(rng.integers(1, CAMERAS))
                    self.cameras[pid].add(camera)
                    body = json.dumps({"camid": camera}).encode()
                    if self._ask(connection, "PATCH", f"/gallery/{self._ids[pid]}", body, "application/json"):
                        self.cameras[pid] = {camera}
                    continue
                self.unsure.add(pid)
                if step == "add":
                    new += WRITERS
                    self.cameras[pid] = {1}
                    answer = self._ask(
                        connection, "POST", "/gallery", *form(self._pictures[pid % PICTURES], pid=pid, camid=1)
                    )
                    if answer:
                        self._ids[pid] = answer["id"]
                        own.append(pid)
                else:
                    own.remove(pid)
                    answer = self._ask(connection, "DELETE", f"/gallery/{self._ids.pop(pid)}")
                    if answer:
                        self.cameras[pid] = set()
                if answer:
                    self.unsure.remove(pid)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", kind: str = ""
    ) -> Any:
        """Returns the answer's JSON; None if the status is 300 or higher."""
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status >= 300:
            self.wrong += [f"{method} {path}: {answer.status} {said[:200]!r}"] * (answer.status != 503)
            return None
        self.confirmed += 1
        return json.loads(said)


def audit(folder: Path, writers: Writers) -> dict[str, set[int]]:
    """Compares gallery and pictures with the writers' records; returns the pids of wrong entries, by kind of error."""
    with open_gallery(folder / "index") as gallery:
        entries = [entry for entry in gallery.page(10**6) if entry.pid in writers.cameras]
        len(gallery.features([entry.id for entry in entries]))
    times = Counter(entry.pid for entry in entries)
    sure = {pid: bool(cameras) for pid, cameras in writers.cameras.items() if pid not in writers.unsure}
    wrong: dict[str, set[int]] = {
        "lost": {pid for pid, there in sure.items() if there and not times[pid]},
        "doubled": {pid for pid in times if times[pid] > 1 or not sure.get(pid, True)},
        "differing": {e.pid for e in entries if sure.get(e.pid, True) and e.camid not in writers.cameras[e.pid]},
        "unreadable": set(),
    }
    for entry in entries:
        try:
            decode_image(str(folder / "state" / entry.path))
        except Exception:
            wrong["unreadable"].add(entry.pid)
    return wrong


def start_service(model: Path, folder: Path, log: Path, *more: str, fault: Fault = UNDISTURBED) -> Child:
    """Starts a service over the gallery in ``folder``, which is made if it is missing."""
    if not folder.exists():
        result_of(partial(_make, model, folder), log)
    arguments = [f"--index={folder / 'index'}", f"--state={folder / 'state'}", f"--model={model}"]
    call = partial(run_command, serve, *arguments, "--port=0", "--threads=1", *more)
    log.unlink(missing_ok=True)
    return Child(call, log, folder, fault)


def _make(model: Path, folder: Path) -> None:
    card = read_card(model)
    folder.mkdir()
    with create_gallery(folder / "index", card.feature_dim, card.checksum) as gallery:
        features = np.random.default_rng(0).standard_normal((ENTRIES, card.feature_dim)).astype(np.float32)
        gallery.add(features / np.linalg.norm(features, axis=1, keepdims=True))


def port_of(service: Child, log: Path, seconds: float = 60) -> Optional[int]:
    """Waits until the service is ready and returns its port; None if it ends before that or takes too long."""
    end = time.monotonic() + seconds
    while service.is_alive() and time.monotonic() < end:
        if log.exists() and (match := re.search(r"ready: http://[\d.]+:(\d+)", log.read_text(errors="replace"))):
            return int(match[1])
        time.sleep(0.005)
    return None


def disturb_service(model: Path, root: Path, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """Disturbs the service while clients write, as :func:`experiments.chaos.kills.disturb` disturbs a command."""
    rng, log, folder, writers = np.random.default_rng(seed), root / "log", root / "service", Writers()
    counts: Counter[str] = Counter()
    faults: list[str] = []
    begun = time.monotonic()
    plain, number = Ended(0, "", (0, 0), 0.0), 0
    while counts["kill"] < rounds and time.monotonic() < begun + seconds:
        # The first round ends with Ctrl-C; the faults of the others are drawn from its calls and seconds.
        fault = chosen(rng, plain) if number else UNDISTURBED
        service = start_service(model, folder, log, fault=fault)
        killer = threading.Timer(600 if fault.seconds is None else fault.seconds, service.kill)
        killer.start()
        port = port_of(service, log)
        if port:
            writers.run(port, WRITING_SECONDS, number + seed)
        killer.cancel()
        if port and not number:
            os.kill(service.pid, signal.SIGINT)
        else:
            service.kill()
        ended = service.end()
        if number:
            counts["kill" if fault.kind <= process.KILL else KINDS[fault.kind]] += 1
            faults += complaints("service", fault, ended)
        else:
            plain = ended
            faults += [] if ended.status == 130 else [f"service, Ctrl-C: {ended.status}: {ended.said}"]
        if "Traceback" in ended.said:
            faults.append(f"service, {KINDS.get(fault.kind, 'no fault')}: {ended.said[-1500:]}")
        for what, pids in result_of(partial(audit, folder, writers), log).items():
            counts[what] += len(pids)
            faults += [f"service, round {number}, {fault}: {what}: {sorted(pids)}"] if pids else []
            for pid in pids:
                writers.cameras.pop(pid, None)
        number += 1
    service = start_service(model, folder, log)  # removes the pictures of unfinished additions
    port_of(service, log)
    service.terminate()
    service.end()
    counts["orphans"] = result_of(partial(_orphans, folder), log)
    faults += writers.wrong
    made = figures("service", counts, number, faults, time.monotonic() - begun, len(writers.cameras))
    return {**made, "writes confirmed": writers.confirmed, "pictures without entries": counts["orphans"]}


def _orphans(folder: Path) -> int:
    with open_gallery(folder / "index") as gallery:
        kept = {Path(entry.path).name for entry in gallery.page(10**6) if entry.path}
    return sum(path.name not in kept for path in (folder / "state" / "images").iterdir())

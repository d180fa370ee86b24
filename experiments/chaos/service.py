"""Kills the service during writes and makes its disk fail; every confirmed write must be there exactly once."""

import os
import re
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np

from experiments.bench_service import Load
from experiments.chaos.kills import chosen, complaints, figures, run_command
from experiments.chaos.process import UNDISTURBED, Child, Ended, Fault, result_of
from han_tf.data.reading import decode_image
from han_tf.runs.card import read_card
from han_tf.search import create_gallery, open_gallery
from han_tf.serve import __main__ as serve

MIX = {"add": 1, "correct": 1, "delete": 1}
WRITERS, WRITING_SECONDS, ENTRIES = 3, 1.5, 100


def audit(folder: Path, load: Load) -> dict[str, set[int]]:
    """Compares gallery and pictures with the writers' records; returns the pids of wrong entries, by kind of error."""
    with open_gallery(folder / "index") as gallery:
        entries = [entry for entry in gallery.page(10**6) if entry.pid in load.cameras]
        len(gallery.features([entry.id for entry in entries]))
    times = Counter(entry.pid for entry in entries)
    sure = {pid: bool(cameras) for pid, cameras in load.cameras.items() if pid not in load.unsure}
    wrong: dict[str, set[int]] = {
        "lost": {pid for pid, there in sure.items() if there and not times[pid]},
        "doubled": {pid for pid in times if times[pid] > 1 or not sure.get(pid, True)},
        "differing": {e.pid for e in entries if sure.get(e.pid, True) and e.camid not in load.cameras[e.pid]},
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


def port_of(service: Child, log: Path) -> Optional[int]:
    """Waits until the service is ready and returns its port; None if it ends before that or takes over a minute."""
    end = time.monotonic() + 60
    while service.is_alive() and time.monotonic() < end:
        if log.exists() and (match := re.search(r"ready: http://[\d.]+:(\d+)", log.read_text(errors="replace"))):
            return int(match[1])
        time.sleep(0.005)
    return None


def disturb_service(model: Path, root: Path, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """Disturbs the service while clients write, as :func:`experiments.chaos.kills.disturb` disturbs a command."""
    rng, log, folder, load = np.random.default_rng(seed), root / "log", root / "service", Load(ENTRIES, MIX)
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
            load.run("127.0.0.1", port, WRITERS, WRITING_SECONDS, number + seed)
        killer.cancel()
        if port and not number:
            os.kill(service.pid, signal.SIGINT)
        else:
            service.kill()
        ended = service.end()
        if number:
            counts[fault.kind or "kill"] += 1
            faults += complaints("service", fault, ended)
        else:
            plain = ended
            faults += [] if ended.status == 130 else [f"service, Ctrl-C: {ended.status}: {ended.said}"]
        if "Traceback" in ended.said:
            faults.append(f"service, {fault}: {ended.said[-1500:]}")
        for what, pids in result_of(partial(audit, folder, load), log).items():
            counts[what] += len(pids)
            faults += [f"service, round {number}, {fault}: {what}: {sorted(pids)}"] if pids else []
            for pid in pids:
                del load.cameras[pid]
                load.ids.pop(pid, None)
        number += 1
    service = start_service(model, folder, log)  # removes the pictures of unfinished additions
    port_of(service, log)
    service.terminate()
    service.end()
    counts["orphans"] = result_of(partial(_orphans, folder), log)
    answers = {(kind, status): len(times) for (kind, status), times in load.seconds.items() if status != 503}
    faults += [
        f"service: {kind} answered with {status}, {n}×" for (kind, status), n in answers.items() if status >= 300
    ]
    confirmed = sum(n for (_, status), n in answers.items() if status < 300)
    made = figures("service", counts, number, faults, time.monotonic() - begun, len(load.cameras))
    return {**made, "writes confirmed": confirmed, "pictures without entries": counts["orphans"]}


def _orphans(folder: Path) -> int:
    with open_gallery(folder / "index") as gallery:
        kept = {Path(entry.path).name for entry in gallery.page(10**6) if entry.path}
    return sum(path.name not in kept for path in (folder / "state" / "images").iterdir())

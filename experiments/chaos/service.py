"""Kills the service during writes and makes its disk fail; every confirmed write must be there exactly once."""

import os
import re
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np

from experiments.bench_service import Load, fill_gallery
from experiments.chaos.kills import COUNTED, chosen, complaints, run_command
from experiments.chaos.process import UNDISTURBED, Child, Ended, Fault, Tally, result_of
from han_tf.data.reading import decode_image
from han_tf.runs.card import read_card
from han_tf.search import open_gallery
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


def start_service(
    model: Path, folder: Path, log: Path, *more: str, fault: Fault = UNDISTURBED
) -> tuple[Child, Optional[int]]:
    """Starts a service over the gallery in ``folder``, which is made if it is missing.

    Returns:
      The service, and its port once it is ready; None if it ends before that or takes over a minute.
    """
    if not folder.exists():
        folder.mkdir()
        card = read_card(model)
        result_of(partial(fill_gallery, folder / "index", ENTRIES, card.feature_dim, card.checksum), log)
    arguments = [f"--index={folder / 'index'}", f"--state={folder / 'state'}", f"--model={model}"]
    call = partial(run_command, serve, *arguments, "--port=0", "--threads=1", *more)
    log.unlink(missing_ok=True)
    service, end = Child(call, log, folder, fault), time.monotonic() + 60
    while service.is_alive() and time.monotonic() < end:
        if log.exists() and (match := re.search(r"ready: http://[\d.]+:(\d+)", log.read_text(errors="replace"))):
            return service, int(match[1])
        time.sleep(0.005)
    return service, None


def disturb_service(model: Path, root: Path, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """Disturbs the service while clients write, as :func:`experiments.chaos.kills.disturb` disturbs a command."""
    rng, log, folder, load = np.random.default_rng(seed), root / "log", root / "service", Load(ENTRIES, MIX)
    tally, plain, number = Tally("service"), Ended(0, "", (0, 0), 0.0), 0
    while tally.counts["kill"] < rounds and tally.seconds < seconds:
        # The first round ends with Ctrl-C; the faults of the others are drawn from its calls and seconds.
        fault = chosen(rng, plain) if number else UNDISTURBED
        service, port = start_service(model, folder, log, fault=fault)
        if port is None and service.is_alive():
            tally.faults.append(f"service, {fault}: not ready after a minute")
        if port:
            load.run("127.0.0.1", port, WRITERS, WRITING_SECONDS, number + seed)
        if port and not number:
            os.kill(service.pid, signal.SIGINT)
        else:
            service.kill()
        ended = service.end()
        if number:
            tally.counts[fault.kind or "kill"] += 1
            tally.faults += complaints("service", fault, ended)
        else:
            plain = ended
            tally.faults += [] if ended.status == 130 else [f"service, Ctrl-C: {ended.status}: {ended.said}"]
        if "Traceback" in ended.said:
            tally.faults.append(f"service, {fault}: {ended.said[-1500:]}")
        for what, pids in result_of(partial(audit, folder, load), log).items():
            tally.counts[what] += len(pids)
            tally.faults += [f"service, round {number}, {fault}: {what}: {sorted(pids)}"] if pids else []
            for pid in pids:
                load.cameras.pop(pid, None)
                load.ids.pop(pid, None)
        number += 1
    tally.counts["compared"] = number
    service, port = start_service(model, folder, log)  # removes the pictures of unfinished additions
    service.terminate()
    ended = service.end()
    tally.faults += [] if port else [f"service: did not start at last: {ended.said}"]
    left = tally.counts["pictures without entries"] = result_of(partial(_orphans, folder), log)
    tally.faults += [f"service: {left} pictures without entries"] if left else []
    for (kind, status), times in load.seconds.items():
        if status < 300:
            tally.counts["writes confirmed"] += len(times)
        elif status != 503:
            tally.faults.append(f"service: {kind} answered with {status}, {len(times)}×")
    return tally.figures((*COUNTED, "writes confirmed", "pictures without entries"), rows=len(load.cameras))


def _orphans(folder: Path) -> int:
    with open_gallery(folder / "index") as gallery:
        kept = {Path(entry.path).name for entry in gallery.page(10**6) if entry.path}
    return sum(path.name not in kept for path in (folder / "state" / "images").iterdir())

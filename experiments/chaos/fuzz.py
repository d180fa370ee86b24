"""Reads damaged inputs of every kind; expected is an answer or one line of error, in bounded time and memory."""

import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.chaos.damage import MEMORY_BYTES, damage
from experiments.chaos.inputs import KINDS, Kind
from experiments.chaos.process import Child, bound_memory, result_of
from experiments.chaos.requests import ask_damaged
from experiments.measuring import memory_mb
from han_tf.common.errors import UserError

SECONDS = 30
"""Most seconds that one input may take; more counts as a hang."""


def fuzz(root: Path, inputs: int, seed: int, kept: str) -> Iterator[dict[str, Any]]:
    """Yields figures for the damaged inputs of each kind, then for HTTP requests."""
    for number, kind in enumerate(KINDS):
        samples = root / "samples" / kind.name
        samples.mkdir(parents=True)
        result_of(partial(kind.make, root, samples), root / "log")
        yield _read_damaged(kind, samples, root, round(inputs * kind.share), [seed, number], kept)
    yield ask_damaged(root, round(inputs * (1 - sum(kind.share for kind in KINDS))), seed)


def _read_damaged(kind: Kind, samples: Path, root: Path, inputs: int, seed: list[int], kept: str) -> dict[str, Any]:
    damaged = root / "damaged"
    counts: Counter[str] = Counter()
    faults: list[str] = []
    begun, first, peak_mb = time.monotonic(), 0, 0
    while first < inputs:
        answers, sender = Pipe(duplex=False)
        child = Child(partial(_read_many, kind, samples, damaged, range(first, inputs), seed, sender), root / "log")
        sender.close()
        patience = 4 * SECONDS  # until the first one, with the imports
        with suppress(EOFError):
            while first < inputs and answers.poll(patience):
                what, said, more_mb = answers.recv()
                counts[what] += 1
                faults += [f"{kind.name} {first} of seed {seed}: {said}"] if said else []
                peak_mb, patience, first = max(peak_mb, more_mb), SECONDS, first + 1
        ended = child.end(most=10)
        if first < inputs:
            what = "hang" if ended.status == -signal.SIGKILL else f"status {ended.status}"
            faults.append(f"{kind.name} {first} of seed {seed}: {what}: {ended.said[-1500:]}")
            if kept:
                shutil.copytree(damaged, Path(kept) / f"{kind.name}-{first}", dirs_exist_ok=True)
            first += 1
    return {
        "case": kind.name,
        "inputs": inputs,
        **{what: counts[what] for what in ("read", "refused")},
        "peak_mb": peak_mb,
        "seconds": time.monotonic() - begun,
        "faults": faults,
    }


def _read_many(kind: Kind, samples: Path, damaged: Path, numbers: range, seed: list[int], answers: Connection) -> None:
    """Reads damaged copies; sends of each: read, refused or fault, the traceback, and the peak of memory in MiB."""
    chosen = sorted(samples.iterdir())
    # Memory of one-time imports is not to count for an input. A copy, since reading may write beside the input.
    kind.read(_copy(chosen[0], damaged))
    before = memory_mb("VmRSS")
    bound_memory(MEMORY_BYTES)
    for number in numbers:
        rng = np.random.default_rng([*seed, number])
        sample, other = (chosen[int(place)] for place in rng.integers(len(chosen), size=2))
        copy = _damaged_copy(sample, other, damaged, rng)
        what, said = "read", ""
        try:
            kind.read(copy)
        except UserError:
            what = "refused"
        except BaseException:
            what, said = "fault", " | ".join(traceback.format_exc().strip().splitlines()[-6:])
        answers.send((what, said, int(memory_mb("VmHWM") - before)))


def _copy(sample: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy = folder / sample.name
    return Path(shutil.copy(sample, copy) if sample.is_file() else shutil.copytree(sample, copy))


def _damaged_copy(sample: Path, other: Path, folder: Path, rng: np.random.Generator) -> Path:
    copy = _copy(sample, folder)
    if sample.is_file():
        copy.write_bytes(damage(sample.read_bytes(), other.read_bytes(), rng))
        return copy
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    chosen, spliced = (files[int(place)] for place in rng.integers(len(files), size=2))
    chosen.write_bytes(damage(chosen.read_bytes(), spliced.read_bytes(), rng))
    return copy

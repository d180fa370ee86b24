"""Reads damaged inputs of every kind; expected is an answer or one line of error, in bounded time and memory."""

import resource
import shutil
import traceback
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
from experiments.chaos.process import Child, Tally, result_of
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
    damaged, tally, peak_mb = root / "damaged", Tally(kind.name), 0
    while (first := tally.counts["inputs"]) < inputs:
        answers, sender = Pipe(duplex=False)
        child = Child(partial(_read_many, kind, samples, damaged, range(first, inputs), seed, sender), root / "log")
        sender.close()
        patience = 4 * SECONDS  # until the first one, with the imports
        with suppress(EOFError):
            while tally.counts["inputs"] < inputs and answers.poll(patience):
                what, said, more_mb = answers.recv()
                if said:
                    tally.faults.append(f"{kind.name} {tally.counts['inputs']} of seed {seed}: {said}")
                tally.counts[what] += 1
                tally.counts["inputs"] += 1
                peak_mb, patience = max(peak_mb, more_mb), SECONDS
        ended, number = child.end(most=10), tally.counts["inputs"]
        if number < inputs:
            what = "hang" if ended.hung else f"status {ended.status}"
            tally.faults.append(f"{kind.name} {number} of seed {seed}: {what}: {ended.said[-1500:]}")
            if kept:
                shutil.copytree(damaged, Path(kept) / f"{kind.name}-{number}", dirs_exist_ok=True)
            tally.counts["inputs"] += 1
    return tally.figures(("inputs", "read", "refused"), peak_mb=peak_mb)


def _read_many(kind: Kind, samples: Path, damaged: Path, numbers: range, seed: list[int], answers: Connection) -> None:
    """Reads damaged copies; sends of each: read, refused or fault, the traceback, and the peak of memory in MiB."""
    chosen, parts = sorted(samples.iterdir()), _files(samples)
    # Memory of one-time imports is not to count for an input. A copy, since reading may write beside the input.
    kind.read(_copy(chosen[0], damaged))
    before = memory_mb("VmRSS")
    most = int(2**20 * memory_mb("VmSize")) + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in numbers:
        rng = np.random.default_rng([*seed, number])
        copy = _copy(chosen[rng.integers(len(chosen))], damaged)
        files = _files(damaged)
        changed, other = files[rng.integers(len(files))], parts[rng.integers(len(parts))]
        changed.write_bytes(damage(changed.read_bytes(), other.read_bytes(), rng))
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


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)

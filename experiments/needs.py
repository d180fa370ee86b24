"""Estimates of the time, memory and disk a training needs, and how much of them is free."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from experiments.plan import Training, network_of
from experiments.results import Result

PROGRAM_MB = 800
"""Memory of TensorFlow and the program, before any image."""

BYTES_PER_ELEMENT = 16
"""Training memory per output element of convolutions, for one image: activations, gradients and workspace."""

EVALUATION_MB = 400
"""Features, distances and decoded images of the evaluations between epochs."""


class Need(NamedTuple):
    """Estimates for a training; None if nothing is known.

    Attributes:
      seconds, memory_mb, disk_mb: time, peak memory and space in its run folder.
      how: the source of the time.
    """

    seconds: Optional[float]
    memory_mb: Optional[float]
    disk_mb: Optional[float]
    how: str


def needs(training: Training, images: int, results: Sequence[Result], here: Mapping[str, Any]) -> Need:
    """Estimates what ``training`` needs, from earlier results.

    The time comes from the latest training of the same network at the same size, or else from another network's, scaled
    by multiply-adds; trainings on this machine go first. Memory is that of an earlier training of the same network and
    batch size, or at least the estimate from the number of elements that the convolutions put out.

    Args:
      training: the training.
      images: number of training images.
      results: earlier results.
      here: this machine (:func:`han_tf.runs.environment.machine`).
    """
    config, costs = training.config, {network_of(r["settings"]): r for r in results if r["kind"] == "network"}
    cost = costs.get(training.network)
    trained = [(network_of(r["settings"]), r) for r in results if r["kind"] == "training"]

    # Preferred are rates of this machine, then of this network, then the latest.
    rates = [
        (result.get("machine") == here, network == training.network, result.get("date") or "", result)
        for network, result in trained
        if result.get("images_per_second") and (network == training.network or (cost and network in costs))
    ]
    seconds, how = None, "no measurement yet"
    if rates:
        on_this_machine, same, _, result = max(rates, key=lambda rate: rate[:3])
        ratio = 1.0 if same else cost["macs"] / costs[network_of(result["settings"])]["macs"]
        seconds = images * config.epochs / result["images_per_second"] * ratio
        how = f"{'as' if same else 'scaled from'} {result.name}" + ("" if on_this_machine else ", another machine")

    pixels_mb = images * config.input_height * config.input_width * 3 / 2**20
    in_memory = pixels_mb if pixels_mb <= config.cache_mb else 0
    memory = disk = None
    if cost is not None:
        elements = cost["norm_macs"] * config.batch_size
        memory = PROGRAM_MB + EVALUATION_MB + in_memory + elements * BYTES_PER_ELEMENT / 2**20
        # Each checkpoint that is kept holds weights and momenta, the best one only weights.
        weights_mb = 4 * cost["parameters"] / 2**20
        disk = weights_mb * (2 * config.keep_checkpoints + 1) * 1.3 + 20 + (pixels_mb - in_memory)
    for network, result in trained:
        same = network == training.network and result["settings"]["batch_size"] == config.batch_size
        if same and result.get("peak_mb") and result.get("train_images"):
            theirs_mb = pixels_mb * result["train_images"] / images
            memory = max(memory or 0, result["peak_mb"] + max(0, in_memory - theirs_mb))
    return Need(seconds, memory, disk, how)


def free_memory_mb() -> Optional[float]:
    """Returns how much memory is free for programs, in MiB; None if the system does not report it."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("MemAvailable")) / 1024
    except (OSError, StopIteration):
        return None


def free_disk_mb(folder: Path) -> float:
    """Returns how much space is free where ``folder`` is or will be, in MiB."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free / 2**20


def size(megabytes: Optional[float]) -> str:
    """Returns a size in words: ``40 MiB``, ``1.5 GiB``; ``unknown`` of None."""
    if megabytes is None:
        return "unknown"
    return f"{megabytes:.0f} MiB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GiB"


def duration(seconds: Optional[float]) -> str:
    """Returns a length of time in words: ``40 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``; ``unknown`` of None."""
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"

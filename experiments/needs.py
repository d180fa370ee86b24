"""Estimates of the time, memory and disk a training needs, and how much space is free."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Optional

from experiments.plan import Training, network_of, networks_by_name
from experiments.results import Result, settings_of

PROGRAM_MB = 1200
"""Memory of TensorFlow, the program, and the features and images of the evaluations between epochs."""

BYTES_PER_ELEMENT = 16
"""Training memory per output element of convolutions, for one image: activations, gradients and workspace."""


class Need(NamedTuple):
    """Estimates for a training; None if nothing is known."""

    seconds: Optional[float]
    memory_mb: Optional[float]  # at its peak
    disk_mb: Optional[float]  # in its run folder
    how: str  # the source of the time


def needs(training: Training, images: int, results: Sequence[Result], here: Mapping[str, Any]) -> Need:
    """Estimates what ``training`` on that many images needs, from earlier results.

    The time comes from a training of the same network at the same size, or else from another network's, scaled by
    multiply-adds. Preferred are trainings in the same precision, then those without frozen epochs, then those that
    tables may show, then those on the machine ``here``, then those on as many cores; of several the fastest, since
    others may have run beside other work. Memory is that of an earlier training of the same network and batch size, or
    at least the estimate from the number of elements that the convolutions put out.
    """
    config, costs = training.config, networks_by_name(results)
    mine = network_of(config.to_dict())
    cost = costs.get(mine)
    seconds, how, preferred = None, "no measurement yet", None
    pixels_mb = images * config.input_height * config.input_width * 3 / 2**20
    in_memory = pixels_mb if pixels_mb <= config.cache_mb else 0
    memory = disk = None
    if cost is not None:
        elements = cost["norm_macs"] * config.batch_size
        memory = PROGRAM_MB + in_memory + elements * BYTES_PER_ELEMENT / 2**20
        # Each checkpoint that is kept holds weights and momenta, the best one only weights.
        weights_mb = 4 * cost["parameters"] / 2**20
        disk = weights_mb * (2 * config.keep_checkpoints + 1) * 1.3 + 20 + (pixels_mb - in_memory)
    for result in (result for result in results if result["kind"] == "training"):
        network, on_this_machine = network_of(result["settings"]), result.get("machine") == here
        same = network == mine
        settings = settings_of(result["settings"])
        alike = (settings["precision"] == config.precision, not settings["freeze_epochs"], "apart" not in result)
        cores = (result.get("machine") or {}).get("cores") == here.get("cores")
        rate, date = result.get("images_per_second") or 0, result.get("date") or ""
        preference = (*alike, on_this_machine, cores, same, rate, date)
        usable = rate and (same or (cost and network in costs))
        if usable and (preferred is None or preference > preferred):
            preferred = preference
            scale = 1.0 if same else cost["macs"] / costs[network]["macs"]
            seconds = images * config.epochs / rate * scale
            how = f"{'as' if same else 'scaled from'} {result.name}" + ("" if on_this_machine else ", another machine")
            how += "" if alike[0] else f", in {settings['precision']}"
        if same and result["settings"]["batch_size"] == config.batch_size and result.get("peak_mb"):
            memory = max(memory or 0, result["peak_mb"])
    return Need(seconds, memory, disk, how)


def free_disk_mb(folder: Path) -> float:
    """Returns how much space is free where ``folder`` is or will be, in MiB."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free / 2**20


def size(megabytes: Optional[float]) -> str:
    """Returns a size in words: ``1,500 MiB``; ``unknown`` of None."""
    return "unknown" if megabytes is None else f"{megabytes:,.0f} MiB"


def duration(seconds: Optional[float]) -> str:
    """Returns a length of time in words: ``3:05:00``, ``2 days, 7:33:20``; ``unknown`` of None."""
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))

"""Shared by the benchmarks: the file of figures, times, memory, pictures, and a matrix product to compare with."""

import io
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Union

import numpy as np
from PIL import Image

from experiments.results import stamp
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import write_json
from han_tf.metrics.products import product

PRODUCT_SIZE = 4096
STATED_PRODUCT = 330e9
"""Operations per second of the matrix product on the machine for which scaled bars are stated."""

ANCHORS = {"hacnn": ("torchreid HACNN", 112.0, 10.0), "osnet": ("torchreid OSNet x0.25", 456.0, 2.5)}
"""Flag of ``experiments.bench_runtimes`` -> a network, its most images per second where the product is STATED_PRODUCT,
and how many times as many the fastest model should reach."""

PICTURE_SIZE = (64, 128)
"""Width and height of Market-1501's images, in pixels."""


def new_flags() -> command_line.Flags:
    """Returns the flags that every benchmark has."""
    values = command_line.Flags()
    values.group("output")
    values.string("output", "", "JSON file for the figures.")
    values.group("options")
    return values


def write_figures(output: str, kind: str, **figures: Any) -> None:
    """Writes a benchmark's result to the JSON file ``output``; writes nothing if ``output`` is empty.

    The result has ``kind``, one of :data:`experiments.results.KINDS`, the ``figures``, and
    :func:`experiments.results.stamp`.
    """
    if output:
        write_json(output, {"kind": kind, **figures, **stamp()})


def seconds(call: Callable[[], Any]) -> float:
    """Returns the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def product_flops() -> float:
    """Returns operations per second of the metrics' 4096³ float32 matrix product, the best of five, and prints them."""
    matrix = np.random.default_rng(0).standard_normal((PRODUCT_SIZE, PRODUCT_SIZE), np.float32)
    other, out = matrix.copy(), np.empty_like(matrix)
    flops = 2 * PRODUCT_SIZE**3 / min(seconds(lambda: product(matrix, other, out)) for _ in range(5))
    print(f"4096³ float32 product: {flops / 1e9:.0f} GFLOP/s", flush=True)
    return flops


def memory_mb(entry: str = "RssAnon", process: Union[int, str] = "self") -> float:
    """Returns a process's memory from /proc, in MiB; by default without file pages (memory maps).

    Raises:
      UserError: the system does not report it.
    """
    try:
        with open(f"/proc/{process}/status", encoding="utf-8") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith(entry)) / 1024
    except (OSError, StopIteration) as error:
        raise UserError("memory cannot be measured here, expected Linux with /proc/self/status") from error


@contextmanager
def watched_memory(process: Union[int, str] = "self", every: float = 0.02) -> Iterator[list[float]]:
    """Yields a list that gets a process's memory at the block's start and end and every few seconds between, in MiB."""
    samples, ended = [memory_mb(process=process)], threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            samples.append(memory_mb(process=process))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
    samples.append(memory_mb(process=process))


def make_picture(seed: int) -> bytes:
    """Returns a JPEG of coarse noise."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 8, 3), np.uint8))
    stream = io.BytesIO()
    coarse.resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def check_names(names: Iterable[str], known: Collection[str], what: str = "case") -> None:
    """Raises UsageError if one of ``names`` is not in ``known``; ``what`` says of what they are the names."""
    for name in names:
        if name not in known:
            raise command_line.UsageError(f"unknown {what} {name!r}, expected one of {', '.join(known)}")

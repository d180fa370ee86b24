"""Shared by the benchmarks: a matrix product to compare with, memory, pictures, and the file of their figures."""

import io
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Union

import numpy as np
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.common.files import write_json
from han_tf.runs import environment

PRODUCT_SIZE = 4096
STATED_PRODUCT = 330e9
"""Operations per second of the matrix product on the machine for which scaled bars are stated."""

PICTURE_SIZE = (64, 128)
"""Width and height of Market-1501's images, in pixels."""


def seconds(call: Callable[[], Any]) -> float:
    """Returns the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def product_flops() -> float:
    """Returns operations per second of a 4096³ float32 matrix product in NumPy, the best of five."""
    matrix = np.random.default_rng(0).standard_normal((PRODUCT_SIZE, PRODUCT_SIZE), np.float32)
    other, out = matrix.copy(), np.empty_like(matrix)
    return 2 * PRODUCT_SIZE**3 / min(seconds(lambda: np.matmul(matrix, other, out=out)) for _ in range(5))


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


def make_picture(seed: int) -> bytes:
    """Returns a JPEG of coarse noise."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 8, 3), np.uint8))
    stream = io.BytesIO()
    coarse.resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def check_cases(names: Iterable[str], cases: Collection[str]) -> None:
    """Raises UserError if one of ``names`` is not in ``cases``."""
    for name in names:
        if name not in cases:
            raise UserError(f"unknown case {name!r}, expected one of {', '.join(cases)}")


def write_figures(output: str, figures: Sequence[dict[str, Any]], **entries: Any) -> None:
    """Writes figures and other entries to a JSON file, with the environment; writes nothing if ``output`` is empty."""
    if output:
        write_json(output, {"environment": environment.describe(), **entries, "figures": figures})

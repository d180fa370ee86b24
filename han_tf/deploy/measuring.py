"""Features and speed of an exported model, measured in a separate process, so that a crash ends only that process.

    python -m han_tf.deploy.measuring MODEL JOB

The process imports TensorFlow only for the formats that TensorFlow runs.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.files import read_npz, temporary_folder, write_npz
from han_tf.common.processes import end_with_parent, signal_name
from han_tf.data.reading import ImageReader
from han_tf.data.records import Record
from han_tf.runtimes import Runtime, open_runtime
from han_tf.runtimes.probes import embed

TIMED_IMAGES, REPEATS = 256, 5

_GIVEN, _FOUND = "given.npz", "found.npz"
"""Files of a job: the arguments of :func:`measure_apart`, and its result."""


class Comparison(NamedTuple):
    """The images that exports are checked with.

    Attributes:
      images: ``[n, height, width, 3]`` uint8, for the speed and, without a ranking, for the features.
      query, gallery: records whose features and ranking are compared; empty for no ranking.
      name: of their data set.
    """

    images: np.ndarray
    query: Sequence[Record] = ()
    gallery: Sequence[Record] = ()
    name: str = ""


class Measured(NamedTuple):
    """Features and speed of a model on a :class:`Comparison`.

    Attributes:
      features: ``[m, d]`` float32, of the queries and the gallery, or of the images if there are none.
      kept: int64 ``[m]``, indices of the features' records; images that cannot be decoded are left out.
      images_per_second: speed on decoded images.
      probes: ``[p, d]`` float32, features of the probe images.
    """

    features: np.ndarray
    kept: np.ndarray
    images_per_second: float
    probes: np.ndarray


def measure(
    runtime: Runtime, images: np.ndarray, probes: np.ndarray, paths: Sequence[str], size: Sequence[int]
) -> Measured:
    """Returns features and speed of a model.

    Args:
      runtime: the model.
      images, probes: ``[n, *size, 3]`` uint8.
      paths: of the image files whose features are wanted; those of ``images`` if empty.
      size: height and width of the model's images.
    """
    speed = images_per_second(runtime, images)
    if not paths:
        return Measured(runtime(images), np.arange(len(images)), speed, embed(runtime, probes))
    features, kept = [], []
    for batch, indices in ImageReader(paths, size, skip_bad_images=True):
        features.append(runtime(batch))
        kept.append(indices)
    return Measured(np.concatenate(features), np.concatenate(kept), speed, embed(runtime, probes))


def measure_apart(folder: Path, images: np.ndarray, probes: np.ndarray, paths: Sequence[str]) -> Measured:
    """Returns what :func:`measure` does for the exported model in ``folder``, measured in another process.

    Raises:
      UserError: the model cannot be run, or a signal ended the process, for example in a crash of the runtime.
    """
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    with temporary_folder() as job:
        write_npz(job / _GIVEN, images=images, probes=probes, paths=np.array(paths, np.str_))
        command = [sys.executable, "-m", __name__, str(folder), str(job)]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1].strip()[:300]
            if done.returncode < 0:
                raise UserError(f"the process that ran it was ended by {signal_name(-done.returncode)}: {said}")
            raise UserError(said)
        found = read_npz(job / _FOUND, Measured._fields)
    return Measured(**{**found, "images_per_second": float(found["images_per_second"])})


def images_per_second(runtime: Runtime, images: np.ndarray) -> float:
    """Returns how many decoded images the runtime embeds per second, by the median time of :data:`REPEATS` calls.

    Args:
      runtime: the model.
      images: ``[n, height, width, 3]`` uint8, n ≥ 1; repeated to :data:`TIMED_IMAGES`.
    """
    images = np.resize(images, (TIMED_IMAGES, *images.shape[1:]))
    seconds = []
    for _ in range(1 + REPEATS):  # the first is not counted
        start = time.perf_counter()
        runtime(images)
        seconds.append(time.perf_counter() - start)
    return TIMED_IMAGES / median(seconds[1:])


def _main(folder: str, job: str) -> None:
    end_with_parent()
    given = read_npz(Path(job) / _GIVEN, ("images", "probes", "paths"))
    card, runtime = open_runtime(folder)
    found = measure(runtime, given["images"], given["probes"], given["paths"].tolist(), card.input_size)
    write_npz(Path(job) / _FOUND, **found._asdict())


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))

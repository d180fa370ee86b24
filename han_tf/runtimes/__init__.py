"""Runtimes of networks: one module for each format, which opens a model as a :data:`Runtime`.

A runtime's module is imported when a model of its format is opened, so the packages of other formats are not needed.
The runtimes for ONNX and OpenVINO do not need TensorFlow.
"""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Optional, Union

import numpy as np

from han_tf.common.errors import UserError, one_line
from han_tf.common.files import exists
from han_tf.common.run_files import CONFIG
from han_tf.runs.card import CARD, ModelCard, read_card, verify_files
from han_tf.weights import resolve, shipped_names

KERAS = "keras"
"""The format of a training run's folder."""

GPU_FORMATS = (KERAS, "saved_model")
"""Formats that TensorFlow runs, on a GPU if there is one; the others run on the processor."""


Runtime = Callable[[np.ndarray], np.ndarray]
"""A network that is ready to run: maps ``[n, height, width, 3]`` uint8 of the card's ``input_size``, n ≥ 1, to
``[n, feature_dim]`` float32. May be called from several threads at once."""

RUNTIMES = {"saved_model": "", "tflite": "", "onnx": "onnxruntime", "openvino": "openvino"}
"""Format of an export -> the package to be installed beside TensorFlow; ``""`` for none.

The module of the same name in this package runs it. Its function ``open_model(folder, card, threads)`` returns a
:data:`Runtime` and raises the runtime's own exceptions for a file that it cannot use.
"""


def open_runtime(path: Union[str, os.PathLike], threads: Optional[int] = None) -> tuple[ModelCard, Runtime]:
    """Opens a training run, an exported model, or a network that comes with the package.

    Args:
      path: the folder of the run or export, or the network's name.
      threads: number of threads of the runtime; the number of usable cores if None.

    Returns:
      The model's card and its runtime.

    Raises:
      UserError: the folder holds neither run nor export; a file is missing, damaged, changed or of another version;
        the format is unknown, or a package that runs it is not installed or cannot be imported.
    """
    folder = resolve(path)
    if not exists(folder / CARD):
        if not exists(folder / CONFIG):
            raise UserError(
                f"{folder}: neither {CONFIG} nor {CARD} in it, expected the folder of a training run or of an "
                f"exported model, or one of {', '.join(shipped_names())}"
            )
        return load_module(f"{__name__}.{KERAS}", "a training run").open_run(folder, threads)
    card = read_card(folder)
    if card.format not in RUNTIMES:
        raise UserError(f"{folder / CARD}: format is {card.format!r}, expected one of {', '.join(RUNTIMES)}")
    verify_files(folder, card)
    what = f"a model in format {card.format}"
    require(RUNTIMES[card.format], what)
    module = load_module(f"{__name__}.{card.format}", what)
    try:
        return card, module.open_model(folder, card, threads)
    except UserError:
        raise
    except Exception as error:  # each runtime has exceptions of its own
        reason = one_line(error)[:300]
        raise UserError(f"{folder}: {card.format} cannot run this model ({reason}); export the run anew") from error


def require(package: str, what: str) -> None:
    """Raises UserError, with the line that installs it, if ``package``, which ``what`` needs, is missing."""
    if not package:
        return
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # no origin: an empty folder of this name
        raise UserError(f"{what} needs {package}, which is not installed: pip install '.[export]' in han-tf's folder")


def load_module(name: str, what: str) -> ModuleType:
    """Returns the module called ``name``, which ``what`` needs.

    Raises:
      UserError: a package that it imports is missing or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # versions that do not fit together raise AttributeError, for example
        reason = one_line(error)[:300]
        raise UserError(
            f"{what} needs a package that cannot be imported ({reason}): pip install '.[export]' in han-tf's folder"
        ) from error


def model_file(folder: Path, card: ModelCard, suffix: str) -> str:
    """Returns the path of a model's only file with this suffix.

    Raises:
      UserError: the card names no such file, or several.
    """
    names = [name for name in card.files if name.endswith(suffix)]
    if len(names) != 1:
        raise UserError(f"{folder / CARD}: names {len(names)} files {suffix}, expected one")
    return str(folder / names[0])


def limit_tensorflow(threads: Optional[int]) -> None:
    """Limits TensorFlow's threads, unless ``threads`` is None; has no effect after TensorFlow's first computation."""
    if threads is not None:
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)


def in_batches(images: np.ndarray, size: int) -> Sequence[np.ndarray]:
    """Returns views of ``images``, ``size`` rows each; the last one may have fewer."""
    return [images[start : start + size] for start in range(0, len(images), size)]

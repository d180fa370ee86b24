"""Runs a TFLite model, one interpreter for each thread."""

import queue
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from han_tf.common.errors import Note, one_line
from han_tf.common.processes import usable_cores
from han_tf.runs.card import ModelCard
from han_tf.runtimes import in_batches, model_file

BATCH = 8
"""Images per call of an interpreter: enough for fast products, few enough for the maps to stay in the cache."""

_WITHOUT_XNNPACK = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


class TFLiteModel:
    """A TFLite model.

    Each thread has an interpreter of its own, which is faster than one interpreter with many threads.

    Args:
      path: of the model.
      threads: number of interpreters.
    """

    def __init__(self, path: str, threads: int):
        content = Path(path).read_bytes()
        self._free: queue.SimpleQueue = queue.SimpleQueue()
        with warnings.catch_warnings():
            # TensorFlow advertises another package in six lines.
            warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated", UserWarning)
            options: dict[str, Any] = {"model_content": content, "num_threads": 1}
            try:
                first = _interpreter(options)
            except RuntimeError as error:
                # XNNPACK's kernels refuse an int8 layer that gave only 0 in the calibration: its scale is too small.
                options["experimental_op_resolver_type"] = _WITHOUT_XNNPACK
                first = _interpreter(options)
                warnings.warn(f"{path}: runs without XNNPACK, more slowly ({one_line(error)})", Note, stacklevel=2)
            for interpreter in (first, *(_interpreter(options) for _ in range(threads - 1))):
                self._free.put(interpreter)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tflite")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Maps images to features, see :data:`han_tf.runtimes.Runtime`."""
        return np.concatenate(list(self._pool.map(self._embed_batch, in_batches(images, BATCH))))

    def _embed_batch(self, images: np.ndarray) -> np.ndarray:
        interpreter = self._free.get()
        try:
            details = interpreter.get_input_details()[0]
            if tuple(details["shape"]) != images.shape:
                interpreter.resize_tensor_input(details["index"], images.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(details["index"], images)
            interpreter.invoke()
            return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        finally:
            self._free.put(interpreter)


def _interpreter(options: dict[str, Any]) -> tf.lite.Interpreter:
    interpreter = tf.lite.Interpreter(**options)
    interpreter.allocate_tensors()
    return interpreter


def open_model(folder: Path, card: ModelCard, threads: Optional[int]) -> TFLiteModel:
    """Opens a TFLite model, see :data:`han_tf.runtimes.RUNTIMES`."""
    return TFLiteModel(model_file(folder, card, ".tflite"), threads or usable_cores())

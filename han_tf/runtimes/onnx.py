"""Runs an ONNX model with ONNX Runtime; needs no TensorFlow."""

from pathlib import Path
from typing import Optional

import numpy as np
import onnxruntime

from han_tf.common.processes import usable_cores
from han_tf.runs.card import ModelCard
from han_tf.runtimes import in_batches, model_file

BATCH = 16
"""Images per call: enough for fast matrix products, few enough for the maps to stay in the cache."""


class ONNXModel:
    """An ONNX model.

    Args:
      path: of the model.
      threads: number of threads that compute.
    """

    def __init__(self, path: str, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Maps images to features, see :class:`han_tf.runtimes.Runtime`."""
        return np.concatenate([self._session.run(None, {"images": batch})[0] for batch in in_batches(images, BATCH)])


def open_model(folder: Path, card: ModelCard, threads: Optional[int]) -> ONNXModel:
    """Opens an ONNX model, see :data:`han_tf.runtimes.RUNTIMES`."""
    return ONNXModel(model_file(folder, card, ".onnx"), threads or usable_cores())

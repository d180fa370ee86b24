"""Runs an ONNX model with ONNX Runtime; needs no TensorFlow."""

from pathlib import Path
from typing import Optional

import numpy as np
import onnxruntime

from han_tf.common.processes import usable_cores
from han_tf.runs.card import ModelCard
from han_tf.runtimes import Runtime, in_batches, model_file

BATCH = 16
"""Images per call: enough for fast matrix products, few enough for the maps to stay in the cache."""


def open_model(folder: Path, card: ModelCard, threads: Optional[int]) -> Runtime:
    """Opens an ONNX model, see :data:`han_tf.runtimes.RUNTIMES`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3
    path = model_file(folder, card, ".onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: np.concatenate([session.run(None, {"images": part})[0] for part in in_batches(images, BATCH)])

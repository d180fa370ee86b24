"""TFLite: one flat file."""

from pathlib import Path
from typing import Optional

import numpy as np
import tensorflow as tf

from han_tf.deploy.exporters import FLOAT16, INT8, quiet

FLAT = False


def export(
    function: tf.types.experimental.ConcreteFunction, folder: Path, precision: str, images: Optional[np.ndarray]
) -> None:
    """Writes the model, see :class:`han_tf.deploy.exporters.Exporter`."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    if precision == FLOAT16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    elif precision == INT8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
    with quiet():
        (folder / "model.tflite").write_bytes(converter.convert())

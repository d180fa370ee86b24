"""TensorFlow SavedModel with one signature; the weights are constants of the graph."""

from pathlib import Path
from typing import Optional

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from han_tf.deploy.graph import OUTPUT

FLAT = False


def export(
    function: tf.types.experimental.ConcreteFunction, folder: Path, precision: str, images: Optional[np.ndarray]
) -> None:
    """Writes the model, see :class:`han_tf.deploy.exporters.Exporter`."""
    frozen = convert_variables_to_constants_v2(function)
    (signature,) = [spec for spec in function.inputs if spec.dtype == tf.uint8]
    module = tf.Module()
    module.features = tf.function(
        lambda images: {OUTPUT: frozen(images)[0]},
        [tf.TensorSpec(signature.shape, tf.uint8, name="images")],
        autograph=False,
    )
    tf.saved_model.save(module, str(folder), signatures=module.features.get_concrete_function())

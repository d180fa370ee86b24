"""Runs a TensorFlow SavedModel."""

from pathlib import Path
from typing import Optional

import numpy as np
import tensorflow as tf

from han_tf.runs.card import ModelCard
from han_tf.runtimes import limit_tensorflow


class SavedModel:
    """The default signature of a SavedModel.

    Args:
      folder: of the SavedModel.
    """

    def __init__(self, folder: Path):
        self._loaded = tf.saved_model.load(str(folder))
        self._function = self._loaded.signatures["serving_default"]

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Maps images to features, see :class:`han_tf.runtimes.Runtime`."""
        return self._function(images=tf.constant(images))["features"].numpy()


def open_model(folder: Path, card: ModelCard, threads: Optional[int]) -> SavedModel:
    """Opens a SavedModel, see :data:`han_tf.runtimes.RUNTIMES`."""
    limit_tensorflow(threads)
    return SavedModel(folder)

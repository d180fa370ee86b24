"""Runs a TensorFlow SavedModel."""

from pathlib import Path
from typing import Optional

import tensorflow as tf

from han_tf.runs.card import ModelCard
from han_tf.runs.checkpoints import check_folder
from han_tf.runtimes import Runtime, limit_tensorflow


def open_model(folder: Path, card: ModelCard, threads: Optional[int]) -> Runtime:
    """Opens a SavedModel, see :data:`han_tf.runtimes.RUNTIMES`; its default signature gives the features."""
    check_folder(folder, "a SavedModel")
    limit_tensorflow(threads)
    loaded = tf.saved_model.load(str(folder))  # kept: a signature alone does not keep its variables
    return lambda images: loaded.signatures["serving_default"](images=tf.constant(images))["features"].numpy()

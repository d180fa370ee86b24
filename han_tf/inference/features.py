"""From batches to features."""

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from han_tf.data.reading import ImageReader
from han_tf.data.records import Record
from han_tf.errors import UserError
from han_tf.inference.feature_files import FeatureSet
from han_tf.models.network import ReIDNetwork


def extract_features(
    model: ReIDNetwork,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    skip_bad_images: bool = False,
    progress: Optional[str] = "features",
) -> tuple[np.ndarray, tuple[Record, ...]]:
    """Returns the features of the images of ``records``.

    Args:
      model: the network.
      records: what to read, decode and embed.
      batch_size: images per forward pass.
      skip_bad_images: leave out files that cannot be decoded instead of raising.
      progress: what the progress bar is called; None for no bar.

    Returns:
      ``[n, feature_dim]`` float32, the branches' parts side by side, each of unit norm; and the ``n``
      records they belong to: all of them, unless bad images were skipped.

    Raises:
      UserError: an image cannot be decoded.
    """
    embed = inference_function(model)
    reader = ImageReader(records, model.input_size, batch_size, skip_bad_images, progress)
    features = np.empty([len(records), model.feature_dim], np.float32)
    kept: list[int] = []
    for images, indices in reader:
        features[len(kept) : len(kept) + len(images)] = embed(images)
        kept.extend(indices)
    return features[: len(kept)], tuple(records[index] for index in kept)


def feature_set(model: ReIDNetwork, records: Sequence[Record], **options: Any) -> FeatureSet:
    """Returns :func:`extract_features` of ``records`` with their labels."""
    return FeatureSet.of(*extract_features(model, records, **options))


def branch_features(features: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the joint features and views of the parts that the branches gave, by name (Table 8).

    Args:
      features: ``[n, d]``; the equally wide features of the branches, side by side.
      names: the branches, in order; with fewer than two there is only the joint feature.

    Raises:
      UserError: d is no multiple of the number of branches.
    """
    parts = {"joint": features}
    if len(names) > 1:
        width, rest = divmod(features.shape[1], len(names))
        if rest:
            raise UserError(
                f"the features have dimension {features.shape[1]}, expected a multiple of {len(names)} "
                f"(branches {', '.join(names)})"
            )
        parts.update({name: features[:, i * width : (i + 1) * width] for i, name in enumerate(names)})
    return parts


def inference_function(model: ReIDNetwork) -> tf.types.experimental.GenericFunction:
    """Returns the network's inference graph for batches of any size, traced once per network."""
    if getattr(model, "_inference", None) is None:
        signature = tf.TensorSpec([None, *model.input_size, 3], tf.uint8)
        model._inference = tf.function(lambda images: model(images, training=False), [signature])
    return model._inference

"""A network's features of images."""

from collections.abc import Sequence
from typing import Optional, Union

import numpy as np

from han_tf.data.reading import ImageReader
from han_tf.data.records import Record
from han_tf.features.archives import FeatureSet
from han_tf.features.extractor import FeatureExtractor
from han_tf.models.network import ReIDNetwork, inference_function


def feature_set(
    model: Union[ReIDNetwork, FeatureExtractor],
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    skip_bad_images: bool = False,
    progress: Optional[str] = "features",
) -> FeatureSet:
    """Returns the features of the images of ``records`` with their labels.

    Args:
      model: the network, or the extractor of an exported one.
      records: of the images.
      batch_size: images per forward pass.
      skip_bad_images: whether to leave out files that cannot be decoded instead of raising.
      progress: title of the progress bar; None for no bar.

    Raises:
      UserError: an image cannot be decoded.
    """
    embed = model.embed if isinstance(model, FeatureExtractor) else inference_function(model)
    reader = ImageReader(records, model.input_size, batch_size, skip_bad_images, progress)
    features = np.empty([len(records), model.feature_dim], np.float32)
    kept: list[int] = []
    for images, indices in reader:
        features[len(kept) : len(kept) + len(images)] = embed(images)
        kept.extend(indices)
    return FeatureSet.of(features[: len(kept)], [records[index] for index in kept])

"""MobileNet (Table 7) and ResNet50 (Tables 5 and 6, Fig. 6) of ``tf.keras.applications``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import tensorflow as tf

from han_tf.common.errors import UserError
from han_tf.layers.convolutions import Conv, DepthwiseConv
from han_tf.layers.norm import batch_norm
from han_tf.models.baseline import Baseline
from han_tf.models.network import IMAGE_DEVIATION, IMAGE_MEAN


class Application(Baseline):
    """A network of ``tf.keras.applications`` with the head of HAN's branches; arguments as :class:`Baseline`.

    It starts from random weights and HAN's input normalisation or, if a file is given, from Keras' ImageNet weights
    and their normalisation. Checkpoints hold the normalisation.
    """

    def add_body(
        self,
        body: tf.keras.Model,
        weights: Optional[Union[str, os.PathLike]],
        mean: Sequence[float],
        deviation: Sequence[float],
    ) -> None:
        """Adds the body: the network up to its last map.

        Args:
          body: the network, with random weights.
          weights: file of its weights that Keras publishes, ``*_no_top.h5`` or ``*_notop.h5``; None for random ones.
          mean, deviation: the normalisation of those weights, for each channel, RGB in [0, 255].

        Raises:
          UserError: the file is missing or does not hold the body's weights.
        """
        self.body = _with_own_layers(body)
        if weights is not None:
            _load_weights(self.body, Path(weights))
        self.image_mean = tf.Variable(IMAGE_MEAN if weights is None else mean, trainable=False, name="image_mean")
        self.image_deviation = tf.Variable(
            IMAGE_DEVIATION if weights is None else deviation, trainable=False, name="image_deviation"
        )

    def normalised(self, images: tf.Tensor) -> tf.Tensor:
        """Returns images normalised for the initial weights, see :meth:`ReIDNetwork.normalised`."""
        return (tf.cast(images, tf.float32) - self.image_mean) / self.image_deviation

    def backbone(self, pixels: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps pixels to the body's last map, see :meth:`Baseline.backbone`."""
        return self.body(pixels, training=training)

    def body_parts(self) -> dict[str, tf.Module]:
        """Returns the body."""
        return {"body": self.body}


class MobileNet(Application):
    """MobileNet, the first version (Howard et al. 2017): 569 million multiply-adds at 224×224 and 1,000 classes.

    Args:
      num_classes: number of training identities; 0 for a network without classifiers.
      input_size: height and width of the images, in pixels.
      feature_dim: dimension of the feature.
      width: the width multiplier α.
      weights: file of weights, see :meth:`Application.add_body`; Keras' weights expect RGB in [-1, 1].

    Raises:
      ValueError: an argument does not fit; the message names it.
      UserError: as :meth:`Application.add_body`.
    """

    def __init__(
        self,
        num_classes: int = 0,
        input_size: Sequence[int] = (160, 64),
        feature_dim: int = 1024,
        width: float = 1.0,
        weights: Optional[Union[str, os.PathLike]] = None,
        name: str = "mobilenet",
    ):
        super().__init__(num_classes, input_size, feature_dim, name, width=width)
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}")
        body = tf.keras.applications.MobileNet((*input_size, 3), width, include_top=False, weights=None)
        self.add_body(body, weights, mean=(127.5, 127.5, 127.5), deviation=(127.5, 127.5, 127.5))
        self.add_heads()


class ResNet50(Application):
    """ResNet50 (He et al. 2016): 3.8 billion multiply-adds at 224×224 and 1,000 classes.

    Args:
      num_classes: number of training identities; 0 for a network without classifiers.
      input_size: height and width of the images, in pixels.
      feature_dim: dimension of the feature.
      weights: file of weights, see :meth:`Application.add_body`; Keras' weights expect BGR minus ImageNet's mean, so
        the channels of their first convolution are reversed.

    Raises:
      ValueError: an argument does not fit; the message names it.
      UserError: as :meth:`Application.add_body`.
    """

    def __init__(
        self,
        num_classes: int = 0,
        input_size: Sequence[int] = (160, 64),
        feature_dim: int = 1024,
        weights: Optional[Union[str, os.PathLike]] = None,
        name: str = "resnet50",
    ):
        super().__init__(num_classes, input_size, feature_dim, name)
        body = tf.keras.applications.ResNet50(include_top=False, weights=None, input_shape=(*input_size, 3))
        self.add_body(body, weights, mean=(123.68, 116.779, 103.939), deviation=(1.0, 1.0, 1.0))
        if weights is not None:
            kernel = self.body.get_layer("conv1_conv").kernel
            kernel.assign(kernel[:, :, ::-1])
        self.add_heads()


def _with_own_layers(body: tf.keras.Model) -> tf.keras.Model:
    """Returns the network with its batch norm and convolutions as in our own networks."""
    own = {tf.keras.layers.Conv2D: Conv, tf.keras.layers.DepthwiseConv2D: DepthwiseConv}

    def copy(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        settings = layer.get_config()
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            told = ("name", "axis", "epsilon", "center", "scale")
            return batch_norm(**{name: settings[name] for name in told})
        kind: type[tf.keras.layers.Layer] = own.get(type(layer), type(layer))
        return kind.from_config(settings)

    return tf.keras.models.clone_model(body, clone_function=copy)


def _load_weights(body: tf.keras.Model, path: Path) -> None:
    expected = f"the ImageNet weights of {body.name} without its top layers, as Keras publishes them (.h5)"
    # Keras reads a file with any other suffix as a TensorFlow checkpoint.
    if path.suffix != ".h5":
        raise UserError(f"{path}: the name ends in {path.suffix or 'nothing'!r}, expected {expected}")
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected {expected}")
    try:
        body.load_weights(str(path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # h5py raises any of them for a damaged file
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{path}: {reason}; expected {expected}") from error

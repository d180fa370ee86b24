"""The base class of all networks: RGB images in; features and identity logits out, branch by branch."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import tensorflow as tf

from han_tf.layers.norm import batch_norm

IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_DEVIATION = (58.395, 57.12, 57.375)
"""ImageNet's per-channel statistics, RGB in [0, 255]; usual in re-id, also without pre-training."""


class LevelAttention(NamedTuple):
    """Attention of one level.

    Attributes:
      soft: soft attention, ``[batch, height, width, channels]`` in [0.5, 1); None if switched off.
      theta: (t_x, t_y) of each region, ``[batch, T, 2]`` in [-1, 1]; None at a level without regions.
      boxes: the regions as (x_min, y_min, x_max, y_max), ``[batch, T, 4]``, in pixels of the input
        image; they may reach past its border. None at a level without regions.
      spatial: soft spatial attention S, ``[batch, height, width, 1]`` ≥ 0; None if switched off.
    """

    soft: Optional[tf.Tensor]
    theta: Optional[tf.Tensor]
    boxes: Optional[tf.Tensor]
    spatial: Optional[tf.Tensor] = None


class Branches(NamedTuple):
    """The results of one forward pass.

    Attributes:
      features: each branch's feature by its name, in the order of the network's ``branch_names``;
        ``[batch, feature_dim / number of branches]``, not normalised.
      attention: one :class:`LevelAttention` per level, first level first; empty in a network without attention.
    """

    features: dict[str, tf.Tensor]
    attention: tuple[LevelAttention, ...] = ()


class FeatureHead(tf.keras.layers.Layer):
    """The fully connected feature layer that ends a branch: FC, batch norm, ReLU; float32 in any network.

    Args:
      units: the feature's dimension.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.dense = tf.keras.layers.Dense(units, use_bias=False, dtype="float32", name="fc")
        self.norm = batch_norm(dtype="float32", name="norm")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, channels]`` to ``[batch, units]``, ≥ 0."""
        # As maps of one position: for vectors, Keras' batch norm is made of many operations, and TensorFlow adds their
        # gradients in an order that timing decides.
        maps = tf.reshape(self.dense(inputs), [-1, 1, 1, self.dense.units])
        return tf.nn.relu(tf.squeeze(self.norm(maps, training=training), [1, 2]))


class ReIDNetwork(tf.keras.Model):
    """A network that gives one feature per image and that the training loop can train.

    Called on a batch of images it returns the deployed feature, ``[batch, feature_dim]`` float32: the
    L2-normalised features of the branches, concatenated (Sec. 3.4). :meth:`branches` returns each branch's
    feature and the attention.

    A subclass makes its layers and then calls :meth:`add_heads`; it implements :meth:`pooled` and
    :meth:`body_parts`, and sets ``branch_names`` if it has several branches. The heads are the
    attributes ``{branch}_head`` and ``{branch}_classifier``; checkpoints use these names.

    Args:
      num_classes: number of training identities; 0 for a network without classifiers.
      input_size: height and width of the images, in pixels.
      feature_dim: dimension of the joint feature, in equal parts for the branches.
      name: Keras' name.

    Raises:
      ValueError: ``input_size`` or ``feature_dim`` does not fit.
    """

    branch_names: tuple[str, ...] = ("global",)
    """The branches whose features make the joint one, in this order; equally wide, each of unit norm."""

    map_sizes: Sequence[tuple[int, int]] = ()
    """Height and width of the map that each level's regions are cut out of, first level first."""

    def __init__(self, num_classes: int, input_size: Sequence[int], feature_dim: int, name: str):
        super().__init__(name=name)
        if len(input_size) != 2:
            raise ValueError(f"input_size must be height and width, got {input_size}")
        if feature_dim < 1 or feature_dim % len(self.branch_names):
            raise ValueError(
                f"feature_dim must be a positive multiple of {len(self.branch_names)}, the number of branches, "
                f"got {feature_dim}"
            )
        self.num_classes = num_classes
        self.input_size = tuple(input_size)
        self.feature_dim = feature_dim

    def add_heads(self) -> None:
        """Adds each branch's feature layer and, unless ``num_classes`` is 0, its classifier."""
        for name in self.branch_names:
            setattr(self, f"{name}_head", FeatureHead(self.feature_dim // len(self.branch_names), name=f"{name}_head"))
        if self.num_classes:
            for name in self.branch_names:
                options = {"use_bias": False, "dtype": "float32", "name": f"{name}_classifier"}
                setattr(self, f"{name}_classifier", tf.keras.layers.Dense(self.num_classes, **options))

    def make_variables(self) -> None:
        """Makes all variables by running one forward pass."""
        branches = self.branches(tf.zeros([1, *self.input_size, 3]))
        if self.num_classes:
            self.classify(branches)

    def normalised(self, images: tf.Tensor) -> tf.Tensor:
        """Returns ``images``, as :meth:`branches` takes them, as float32 with about mean 0 and deviation 1."""
        return (tf.cast(images, tf.float32) - IMAGE_MEAN) / IMAGE_DEVIATION

    def pooled(
        self, pixels: tf.Tensor, training: Optional[bool] = None
    ) -> tuple[dict[str, tf.Tensor], tuple[LevelAttention, ...]]:
        """Runs everything below the heads.

        Args:
          pixels: ``[batch, height, width, 3]`` float32, normalised.
          training: whether batch norm uses the batch's statistics.

        Returns:
          The input of each branch's feature layer, ``[batch, channels]`` float32, by branch; and the attention, as in
          :class:`Branches`.
        """
        raise NotImplementedError

    def body_parts(self) -> dict[str, tf.Module]:
        """Returns the parts below the heads by name, in the order of the forward pass."""
        raise NotImplementedError

    def branches(self, images: tf.Tensor, training: Optional[bool] = None) -> Branches:
        """Runs all branches.

        Args:
          images: ``[batch, height, width, 3]`` uint8 or float, RGB in [0, 255], of ``input_size``.
          training: whether batch norm uses the batch's statistics.

        Returns:
          The features before normalisation, and the attention of every level.

        Raises:
          ValueError: the images have another size.
        """
        if tuple(images.shape[1:]) != (*self.input_size, 3):
            raise ValueError(
                f"images must be [batch, {self.input_size[0]}, {self.input_size[1]}, 3], got {images.shape}"
            )
        pooled, attention = self.pooled(self.normalised(images), training=training)
        features = {name: getattr(self, f"{name}_head")(pooled[name], training=training) for name in self.branch_names}
        return Branches(features, attention)

    def call(self, images: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps images, as :meth:`branches` takes them, to ``[batch, feature_dim]`` float32 features."""
        return joint_feature(self.branches(images, training=training))

    def classify(self, branches: Branches) -> dict[str, tf.Tensor]:
        """Returns each branch's identity logits (eq. 1), ``[batch, num_classes]`` float32, by its name.

        Raises:
          ValueError: the network was made without classifiers.
        """
        if not self.num_classes:
            raise ValueError("this network has no classifiers: it was made with num_classes 0")
        return {name: getattr(self, f"{name}_classifier")(branches.features[name]) for name in self.branch_names}

    @property
    def localisation_variables(self) -> list[tf.Variable]:
        """The trainable variables that place the regions of hard attention; empty in a network without."""
        return []

    def begin_step(self, step: int, steps: int) -> None:
        """Updates a network that changes its form during training; the trainer calls it before each step.

        Args:
          step: number of steps taken so far.
          steps: number of steps of the whole training.
        """

    def penalty(self) -> tf.Tensor:
        """Returns the network's own term of the training objective, beside weight decay; scalar float32."""
        return tf.zeros([])

    def deployed(self) -> "ReIDNetwork":
        """Returns the network's deployed form, which gives the same features; itself if there is no other form."""
        return self

    def parts(self) -> dict[str, tf.Module]:
        """Returns the network's parts by name: those of the body, then the heads and classifiers."""
        kinds = ("head", "classifier") if self.num_classes else ("head",)
        heads = {f"{name} {kind}": getattr(self, f"{name}_{kind}") for kind in kinds for name in self.branch_names}
        return {**self.body_parts(), **heads}


def mean_over_positions(maps: tf.Tensor) -> tf.Tensor:
    """Maps ``[batch, height, width, channels]`` of any precision to ``[batch, channels]`` float32."""
    return tf.reduce_mean(tf.cast(maps, tf.float32), axis=[1, 2])


def unit_features(branches: Branches) -> dict[str, tf.Tensor]:
    """Returns each branch's L2-normalised feature, by its name."""
    return {name: tf.math.l2_normalize(feature, axis=-1) for name, feature in branches.features.items()}


def joint_feature(branches: Branches) -> tf.Tensor:
    """Returns the branches' L2-normalised features, concatenated: ``[batch, feature_dim]`` (Sec. 3.4)."""
    return tf.concat(list(unit_features(branches).values()), axis=-1)


def inference_function(model: ReIDNetwork) -> tf.types.experimental.GenericFunction:
    """Returns the network's inference graph for batches of any size, traced once per network."""
    if getattr(model, "_inference", None) is None:
        signature = tf.TensorSpec([None, *model.input_size, 3], tf.uint8)
        model._inference = tf.function(lambda images: model(images, training=False), [signature], autograph=False)
    return model._inference

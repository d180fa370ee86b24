"""CondenseNet (Huang, Liu, van der Maaten and Weinberger, CVPR 2018) (Table 7)."""

from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from han_tf.common.errors import UserError
from han_tf.layers.convolutions import Conv
from han_tf.layers.groups import GroupConv, IndexedGroupConv, LearnedGroupConv, channel_shuffle
from han_tf.layers.norm import batch_norm
from han_tf.layers.units import KERNEL_INITIALIZER
from han_tf.models.baseline import Baseline

BOTTLENECK = 4
"""Filters of a 1×1 convolution per filter of the 3×3 convolution that follows."""

MOST_BLOCKS = 5
"""With more blocks the smallest images would have an empty map."""

GROUP_LASSO = 1e-5
"""λ of the group-lasso regulariser, as in Huang et al.'s ImageNet models."""


class CondenseLayer(tf.keras.layers.Layer):
    """A layer of CondenseNet (their Fig. 1): learned 1×1 group conv, permutation, 3×3 group conv, dense connection.

    Batch norm and ReLU precede each convolution.

    Args:
      growth: number k of channels that the layer adds.
      groups: G, of both convolutions.
      condensation: C, see :class:`LearnedGroupConv`.
      condensed: whether it has its deployed form.
    """

    def __init__(self, growth: int, groups: int, condensation: int, condensed: bool, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        form = IndexedGroupConv if condensed else LearnedGroupConv
        self.norm1 = batch_norm(name="norm1")
        self.learned = form(BOTTLENECK * growth, groups, condensation, name="learned")
        self.norm2 = batch_norm(name="norm2")
        self.conv = GroupConv(growth, 3, groups, name="conv")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, height, width, channels + growth]``."""
        outputs = self.learned(tf.nn.relu(self.norm1(inputs, training=training)))
        # Otherwise each group of the next convolution would depend on the few channels that one group has kept.
        outputs = channel_shuffle(outputs, self.groups)
        outputs = self.conv(tf.nn.relu(self.norm2(outputs, training=training)))
        return tf.concat([inputs, outputs], axis=-1)


class CondenseBlock(tf.keras.layers.Layer):
    """Layers of one growth rate; each gets the outputs of all earlier layers, also those of earlier blocks.

    Args:
      depth: number of layers.
      growth, groups, condensation, condensed: see :class:`CondenseLayer`.
    """

    def __init__(self, depth: int, growth: int, groups: int, condensation: int, condensed: bool, **kwargs):
        super().__init__(**kwargs)
        self.units = [
            CondenseLayer(growth, groups, condensation, condensed, name=f"layer{number}")
            for number in range(1, depth + 1)
        ]

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, height, width, channels + depth·growth]``."""
        for unit in self.units:
            inputs = unit(inputs, training=training)
        return inputs


class CondenseNet(Baseline):
    """CondenseNet with the head of HAN's branches.

    The defaults make CondenseNet-74 with G = C = 8, that of the paper's Table 7: 2.74e8 operations at 224×224 and
    1,000 classes. Huang et al. count multiply-adds and one operation for each element that goes into a ReLU or a
    pooling.

    Training condenses it: the first half of training has C − 1 stages of equal length, and at the end of each every
    learned group convolution loses 1/C of its connections. A group-lasso regulariser acts until the last stage ends.
    Unlike in Huang et al., the learning rate follows this project's schedule instead of a cosine, and the head, which
    has a feature layer, keeps all connections; they remove half of their ImageNet classifier's.

    Args:
      num_classes: number of training identities; 0 for a network without classifiers.
      input_size: height and width of the images, in pixels.
      feature_dim: dimension of the feature.
      depths: number of layers of each block; between blocks a 2×2 average pool halves the map.
      growth: how many channels a layer adds, block by block; multiples of ``groups`` and of ``condensation``.
      groups: G.
      condensation: C.
      condensed: whether the network has its deployed form, see :meth:`deployed`.

    Raises:
      ValueError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        num_classes: int = 0,
        input_size: Sequence[int] = (160, 64),
        feature_dim: int = 1024,
        depths: Sequence[int] = (4, 6, 8, 10, 8),
        growth: Sequence[int] = (8, 16, 32, 64, 128),
        groups: int = 8,
        condensation: int = 8,
        condensed: bool = False,
        name: str = "condensenet",
    ):
        super().__init__(
            num_classes,
            input_size,
            feature_dim,
            name,
            depths=list(depths),
            growth=list(growth),
            groups=groups,
            condensation=condensation,
            condensed=condensed,
        )
        if not 1 <= len(depths) == len(growth) <= MOST_BLOCKS:
            raise ValueError(
                f"depths and growth must be equally many, 1 to {MOST_BLOCKS}, got {len(depths)} and {len(growth)}"
            )
        if min(groups, condensation) < 1:
            raise ValueError(f"groups and condensation must be at least 1, got {groups} and {condensation}")
        if any(rate < 1 or rate % groups or rate % condensation for rate in growth):
            raise ValueError(
                f"growth must be multiples of the groups {groups} and the condensation {condensation}, got {growth}"
            )
        self.condensation = condensation
        self.stages_over = tf.Variable(0, trainable=False, dtype=tf.int64, name="stages_over")
        self.stem = Conv(2 * growth[0], 3, 2, kernel_initializer=KERNEL_INITIALIZER, name="stem")
        self.blocks = [
            CondenseBlock(depth, rate, groups, condensation, condensed, name=f"block{number}")
            for number, (depth, rate) in enumerate(zip(depths, growth), start=1)
        ]
        self.norm = batch_norm(name="norm")
        self.add_heads()

    def backbone(self, pixels: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps pixels to the map of the last block, see :meth:`Baseline.backbone`."""
        outputs = self.stem(pixels)
        for number, block in enumerate(self.blocks):
            if number:
                outputs = tf.nn.avg_pool2d(outputs, 2, 2, "VALID")
            outputs = block(outputs, training=training)
        return tf.nn.relu(self.norm(outputs, training=training))

    def body_parts(self) -> dict[str, tf.Module]:
        """Returns the parts below the head by name, in the order of the forward pass."""
        blocks = {f"block {number}": block for number, block in enumerate(self.blocks, start=1)}
        return {"stem": self.stem, **blocks, "norm": self.norm}

    @property
    def learned_convs(self) -> list[LearnedGroupConv]:
        """The learned group convolutions in the order of the forward pass; none in a condensed network."""
        convs = [unit.learned for block in self.blocks for unit in block.units]
        return [conv for conv in convs if isinstance(conv, LearnedGroupConv)]

    def begin_step(self, step: int, steps: int) -> None:
        """Condenses as far as ``step`` of ``steps`` demands, see :meth:`ReIDNetwork.begin_step`."""
        stages = min(self.condensation - 1, 2 * step * (self.condensation - 1) // steps)
        if stages > int(self.stages_over):
            for conv in self.learned_convs:
                conv.condense(stages)
            self.stages_over.assign(stages)

    def penalty(self) -> tf.Tensor:
        """Returns the group-lasso regulariser, scalar float32; 0 once all condensing stages have ended."""
        condensing = tf.cast(self.stages_over < self.condensation - 1, tf.float32)
        return GROUP_LASSO * condensing * sum((conv.group_lasso() for conv in self.learned_convs), tf.zeros([]))

    def deployed(self) -> "CondenseNet":
        """Returns the network with index layers and standard group convolutions instead of learned ones.

        It gives the same features, with 1/C of the multiply-adds of the 1×1 convolutions.

        Raises:
          UserError: not all condensing stages have ended.
        """
        stages, expected = int(self.stages_over), self.condensation - 1
        if stages < expected:
            raise UserError(
                f"this CondenseNet has ended {stages} of {expected} condensing stages, expected all: they end half-way "
                "through training"
            )
        twin = CondenseNet(**{**self._config, "condensed": True})
        twin.make_variables()
        twin.stages_over.assign(self.stages_over)
        for layer, copy in zip(_weighted_layers(self), _weighted_layers(twin)):
            copy.set_weights(layer.condensed() if isinstance(layer, LearnedGroupConv) else layer.get_weights())
        return twin


def _weighted_layers(model: CondenseNet) -> list[tf.keras.layers.Layer]:
    """Returns the layers that have weights, in an order that is the same for both forms of the network."""
    layers = [model.stem, model.norm]
    for block in model.blocks:
        for unit in block.units:
            layers += [unit.norm1, unit.learned, unit.norm2, unit.conv]
    body = model.body_parts()
    return layers + [part for part_name, part in model.parts().items() if part_name not in body]

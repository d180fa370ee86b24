"""ShuffleNet (Zhang, Zhou, Lin and Sun, CVPR 2018), the first version (Table 7)."""

from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from han_tf.layers.convolutions import DepthwiseConv
from han_tf.layers.groups import GroupConv, channel_shuffle
from han_tf.layers.norm import batch_norm
from han_tf.layers.units import KERNEL_INITIALIZER, ConvBNReLU
from han_tf.models.baseline import Baseline

STEM_WIDTH = 24
FIRST_STAGE_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Number of groups -> channels of stage 2; each further stage doubles them (their Table 1)."""

STAGE_UNITS = (4, 8, 4)
"""Units of stages 2, 3 and 4 (their Table 1); the first of a stage has stride 2."""

BOTTLENECK = 4


class ShuffleUnit(tf.keras.layers.Layer):
    """The ShuffleNet unit (their Fig. 2b and c): 1×1 group conv, channel shuffle, 3×3 depthwise conv, 1×1 group conv.

    With stride 1 the input is added to the result; with stride 2 the input's 3×3 average pool is concatenated before
    it.

    Args:
      filters: number of output channels; the bottleneck has a quarter of them.
      strides: stride of the depthwise convolution, 1 or 2.
      groups: number of groups of the 1×1 convolutions.
      grouped_first: whether the first of them is grouped, too; stage 2 has too few input channels for that.
    """

    def __init__(self, filters: int, strides: int, groups: int, grouped_first: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.groups = groups
        self.reduce = GroupConv(filters // BOTTLENECK, groups=groups if grouped_first else 1, name="reduce")
        self.depthwise = DepthwiseConv(3, strides, depthwise_initializer=KERNEL_INITIALIZER, name="depthwise")
        self.norms = [batch_norm(name=f"norm{number}") for number in (1, 2, 3)]

    def build(self, input_shape: tf.TensorShape) -> None:
        """Sizes the last convolution, which has fewer filters with stride 2, by the channels of the pooled input."""
        added = input_shape[-1] if self.strides > 1 else 0
        self.expand = GroupConv(self.filters - added, groups=self.groups, name="expand")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/s⌉, ⌈width/s⌉, filters]``, ≥ 0."""
        outputs = tf.nn.relu(self.norms[0](self.reduce(inputs), training=training))
        outputs = channel_shuffle(outputs, self.groups)
        outputs = self.norms[1](self.depthwise(outputs), training=training)
        outputs = self.norms[2](self.expand(outputs), training=training)
        if self.strides == 1:
            return tf.nn.relu(inputs + outputs)
        return tf.nn.relu(tf.concat([tf.nn.avg_pool2d(inputs, 3, self.strides, "SAME"), outputs], axis=-1))


class ShuffleStage(tf.keras.layers.Layer):
    """A stage (their Table 1): units of one width, the first of which halves the map.

    Args:
      filters: number of output channels.
      units: number of units.
      groups, grouped_first: see :class:`ShuffleUnit`; the latter is for the first unit only.
    """

    def __init__(self, filters: int, units: int, groups: int, grouped_first: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.units = [ShuffleUnit(filters, 2, groups, grouped_first, name="unit1")]
        self.units += [ShuffleUnit(filters, 1, groups, name=f"unit{number}") for number in range(2, units + 1)]

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/2⌉, ⌈width/2⌉, filters]``, ≥ 0."""
        for unit in self.units:
            inputs = unit(inputs, training=training)
        return inputs


class ShuffleNet(Baseline):
    """ShuffleNet with the head of HAN's branches.

    The paper's Table 7 gives 1.40e8 FLOPs, that is, ShuffleNet 1×: for any number of groups, Zhang et al. choose widths
    for about 140 million multiply-adds at 224×224 and 1,000 classes. With three groups it has 137 million (their
    Table 1). The paper does not say how many groups it used.

    Args:
      num_classes: number of training identities; 0 for a network without classifiers.
      input_size: height and width of the images, in pixels.
      feature_dim: dimension of the feature.
      groups: number of groups of the 1×1 convolutions, a key of :data:`FIRST_STAGE_WIDTHS`.
      scale: factor on all widths, the s of "ShuffleNet s×".

    Raises:
      ValueError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        num_classes: int = 0,
        input_size: Sequence[int] = (160, 64),
        feature_dim: int = 1024,
        groups: int = 3,
        scale: float = 1.0,
        name: str = "shufflenet",
    ):
        super().__init__(num_classes, input_size, feature_dim, name, groups=groups, scale=scale)
        if groups not in FIRST_STAGE_WIDTHS:
            raise ValueError(f"groups must be one of {sorted(FIRST_STAGE_WIDTHS)}, got {groups}")
        width = round(scale * FIRST_STAGE_WIDTHS[groups])
        if width < 1 or width % (BOTTLENECK * groups):
            raise ValueError(
                f"scale must make the width {FIRST_STAGE_WIDTHS[groups]} of stage 2 a positive multiple of "
                f"{BOTTLENECK * groups}, got {scale}"
            )
        stem_width = round(scale * STEM_WIDTH)
        # The first unit of stage 2 concatenates the stem's channels with its own.
        if (width - stem_width) % groups:
            raise ValueError(
                f"scale must make the width {width} of stage 2 and the stem's {stem_width} differ by a multiple of the "
                f"groups {groups}, got {scale}"
            )
        self.stem = ConvBNReLU(stem_width, 3, 2, name="stem")
        self.stages = [
            ShuffleStage(width * 2**number, units, groups, grouped_first=number > 0, name=f"stage{number + 2}")
            for number, units in enumerate(STAGE_UNITS)
        ]
        self.add_heads()

    def backbone(self, pixels: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps pixels to the map of stage 4, see :meth:`Baseline.backbone`."""
        outputs = tf.nn.max_pool2d(self.stem(pixels, training=training), 3, 2, "SAME")
        for stage in self.stages:
            outputs = stage(outputs, training=training)
        return outputs

    def body_parts(self) -> dict[str, tf.Module]:
        """Returns the parts below the head by name, in the order of their Table 1."""
        return {"stem": self.stem, **{f"stage {number}": stage for number, stage in enumerate(self.stages, start=2)}}

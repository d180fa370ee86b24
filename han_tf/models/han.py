"""The Harmonious Attention Network (Fig. 1, Sec. 3.3)."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Optional

import tensorflow as tf

from han_tf.layers.attention import REDUCTION, HarmoniousAttention
from han_tf.layers.blocks import BLOCKS, DOWNSAMPLING, GlobalBlock, LocalBlock
from han_tf.layers.crop import AffineCrop, region_origins
from han_tf.layers.units import ConvBNReLU
from han_tf.models.network import LevelAttention, ReIDNetwork, mean_over_positions

STEM_STRIDE = 2


class HAN(ReIDNetwork):
    """The Harmonious Attention Network.

    One conv layer feeds a global branch of three levels and a local branch of T streams with shared
    weights. Harmonious Attention at level l is computed from the output of global block l: its soft map
    multiplies that output, and its regions are cut out of that block's *input*. The crops are the local
    branch's input at level 1 and are added to its input at later levels (eq. 8).

    The joint feature concatenates the global and the local one.

    Args:
      strides: the global units' strides, one unit for each (Table 1); None: the building block's default.
      num_classes: number of training identities; 0 for a network without classifiers.
      input_size: height and width of the images, in pixels.
      stem_width: filters of the first conv layer; not in the paper, inferred from Table 12's FLOPs.
      widths: filters d_1, d_2, d_3 of the levels; multiples of 16 with channel attention.
      regions: number T of regions and of local streams.
      region_scale: height and width of a region, as fractions of the map: 24×28 of 80×32.
      feature_dim: dimension of the joint feature, half for each branch.
      unit: the building block, a key of :data:`han_tf.layers.blocks.BLOCKS` (Table 12).
      spatial, channel, hard: the attention types in use (Table 9).
      interaction: cross-attention interaction learning, eq. (8) (Table 10). Without it the levels after the first
        have no crops and no hard attention.

    Raises:
      ValueError: an argument does not fit; the message names it.
    """

    branch_names = ("global", "local")

    def __init__(
        self,
        strides: Optional[Sequence[int]] = None,
        num_classes: int = 0,
        input_size: Sequence[int] = (160, 64),
        stem_width: int = 32,
        widths: Sequence[int] = (128, 256, 384),
        regions: int = 4,
        region_scale: Sequence[float] = (0.3, 0.875),
        feature_dim: int = 1024,
        unit: str = "depthwise",
        spatial: bool = True,
        channel: bool = True,
        hard: bool = True,
        interaction: bool = True,
        name: str = "han",
    ):
        super().__init__(num_classes, input_size, feature_dim, name)
        if unit not in BLOCKS:
            raise ValueError(f"unit must be one of {sorted(BLOCKS)}, got {unit!r}")
        if regions < 1:
            raise ValueError(f"regions must be at least 1, got {regions}")
        if not widths:
            raise ValueError(f"widths must be one or more, a level for each, got {widths}")
        if channel and any(width % REDUCTION for width in widths):
            raise ValueError(f"widths must be multiples of {REDUCTION} with channel attention, got {widths}")
        smallest = STEM_STRIDE * DOWNSAMPLING ** len(widths)
        if min(input_size) < smallest:
            raise ValueError(f"input_size must be at least {smallest} pixels either way, got {input_size}")
        if len(region_scale) != 2 or not all(0 < scale <= 1 for scale in region_scale):
            raise ValueError(f"region_scale must be two numbers that lie in (0, 1], got {region_scale}")
        # Keras would make a plain dict part of the checkpoints.
        self._config = MappingProxyType(
            {
                "strides": None if strides is None else list(strides),
                "num_classes": num_classes,
                "input_size": list(input_size),
                "stem_width": stem_width,
                "widths": list(widths),
                "regions": regions,
                "region_scale": list(region_scale),
                "feature_dim": feature_dim,
                "unit": unit,
                "spatial": spatial,
                "channel": channel,
                "hard": hard,
                "interaction": interaction,
            }
        )
        self.regions = regions
        self.interaction = interaction
        self.map_sizes, self.region_sizes = _level_sizes(input_size, region_scale, len(widths))

        levels = range(1, len(widths) + 1)
        self.stem = ConvBNReLU(stem_width, 3, STEM_STRIDE, name="stem")
        self.global_blocks = [
            GlobalBlock(width, strides, unit, name=f"global_block{level}") for level, width in zip(levels, widths)
        ]
        self.attentions = [
            HarmoniousAttention(
                regions, spatial, channel, hard and (interaction or level == 1), name=f"attention{level}"
            )
            for level in levels
        ]
        self.crops = [AffineCrop(size, name=f"crop{level}") for level, size in zip(levels, self.region_sizes)]
        self.local_blocks = [
            LocalBlock(width, unit, name=f"local_block{level}") for level, width in zip(levels, widths)
        ]
        self.add_heads()

    def pooled(
        self, pixels: tf.Tensor, training: Optional[bool] = None
    ) -> tuple[dict[str, tf.Tensor], tuple[LevelAttention, ...]]:
        """Runs both branches up to their pooling, see :meth:`ReIDNetwork.pooled`."""
        features = self.stem(pixels, training=training)
        streams = None
        levels = []
        for global_block, attend, crop, local_block in zip(
            self.global_blocks, self.attentions, self.crops, self.local_blocks
        ):
            attention = attend(global_block(features, training=training), training=training)
            theta = boxes = None
            # Only the first level needs its crop when the branches do not interact (Table 10).
            if streams is None or self.interaction:
                theta = attention.theta
                boxes = self._boxes(theta, features.shape[1:3], crop.region_size)
                regions = crop(features, theta)
                regions = tf.reshape(regions, [-1, *regions.shape[2:]])
                streams = regions if streams is None else streams + regions  # eq. (8)
            levels.append(LevelAttention(attention.soft, theta, boxes, attention.spatial))
            streams = local_block(streams, training=training)
            features = attention.attended

        pooled_streams = mean_over_positions(streams)
        pooled_streams = tf.reshape(pooled_streams, [-1, self.regions * pooled_streams.shape[-1]])
        pooled = {"global": mean_over_positions(features), "local": pooled_streams}
        return pooled, tuple(levels)

    @property
    def localisation_variables(self) -> list[tf.Variable]:
        """The trainable variables that place the regions; empty with hard attention off."""
        return [variable for attend in self.attentions for variable in attend.hard.trainable_variables]

    def body_parts(self) -> dict[str, tf.Module]:
        """Returns the parts below the heads by name, in the order of Fig. 1."""
        parts = {"stem": self.stem}
        for level in range(len(self.global_blocks)):
            parts[f"global block {level + 1}"] = self.global_blocks[level]
            parts[f"attention {level + 1}"] = self.attentions[level]
            parts[f"affine crop {level + 1}"] = self.crops[level]
            parts[f"local block {level + 1}"] = self.local_blocks[level]
        return parts

    def get_config(self) -> dict:
        """Returns the constructor's arguments, as JSON holds them."""
        return dict(self._config)

    def _boxes(self, theta: tf.Tensor, map_size: Sequence[int], region_size: Sequence[int]) -> tf.Tensor:
        origins = region_origins(theta, map_size, region_size)
        size = tf.constant(region_size[::-1], theta.dtype)
        scale = tf.constant([self.input_size[1] / map_size[1], self.input_size[0] / map_size[0]], theta.dtype)
        return tf.concat([origins * scale, (origins + size) * scale], axis=-1)


def _level_sizes(
    input_size: Sequence[int], region_scale: Sequence[float], levels: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns each level's map size and region size: 80×32 and 24×28, 40×16 and 12×14, 20×8 and 6×7.

    Region sizes halve with each level, as the local blocks halve their maps, so that crops and the maps they are added
    to have the same size.
    """
    map_size = tuple(-(-side // STEM_STRIDE) for side in input_size)
    region_size = tuple(max(1, round(scale * side)) for scale, side in zip(region_scale, map_size))
    map_sizes, region_sizes = [], []
    for _ in range(levels):
        map_sizes.append(map_size)
        region_sizes.append(region_size)
        map_size = tuple(-(-side // DOWNSAMPLING) for side in map_size)
        region_size = tuple(-(-side // DOWNSAMPLING) for side in region_size)
    return map_sizes, region_sizes

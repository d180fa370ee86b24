"""FLOPs and parameters of a network, part by part (Tables 1 and 12).

Two conventions are in use. Sec. 4 of the paper calls FLOPs "the number of multiply-adds", but its own networks seem to
be counted as TensorFlow's profiler does: a multiply-add is two operations, and batch norm one multiply-add for each
output element of a convolution. This is inferred: only with it, the stem's 32 filters and the widths of the 1×1
convolutions used here are all five published figures matched within 0.5 %. Most other papers count a multiply-add once
and leave out batch norm.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from han_tf.models.network import FeatureHead

_COUNTED = (
    tf.keras.layers.Conv2D,
    tf.keras.layers.DepthwiseConv2D,
    tf.keras.layers.Dense,
    tf.keras.layers.BatchNormalization,
)


class Cost(NamedTuple):
    """Cost of a part of a network, for one image.

    Attributes:
      macs: multiply-adds of convolutions and fully connected layers.
      norm_macs: multiply-adds of batch norm after convolutions, one for each element.
      parameters: trainable numbers.
    """

    macs: int = 0
    norm_macs: int = 0
    parameters: int = 0

    @property
    def paper_flops(self) -> int:
        """Operations as the paper counts them: two for each multiply-add, batch norm included."""
        return 2 * (self.macs + self.norm_macs)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(mine + theirs for mine, theirs in zip(self, other)))


def total(costs: Mapping[str, Cost]) -> Cost:
    """Returns the sum over parts."""
    return sum(costs.values(), Cost())


def part_costs(model: tf.keras.Model, parts: Mapping[str, tf.Module], input_size: Sequence[int]) -> dict[str, Cost]:
    """Returns the cost of each part of a network, from its layers' kernels and output sizes.

    Operations without a kernel (pooling, resizing, activations, the crop's interpolation) are not counted, as in the
    paper: with pooling, the Inception network of Table 12 would have 1.10e9 FLOPs, not 1.09e9.

    Args:
      model: a network that takes ``[batch, height, width, 3]`` images.
      parts: the network's parts by name; every layer counts in the first part that holds it.
      input_size: height and width of the images, in pixels.
    """
    parts_of_layers: dict[int, str] = {}
    for name, part in parts.items():
        for module in (part, *part.submodules):
            parts_of_layers.setdefault(id(module), name)
    costs = {
        name: Cost(parameters=sum(int(np.prod(v.shape)) for v in part.trainable_variables))
        for name, part in parts.items()
    }
    of_heads = {id(part.norm) for part in model.submodules if isinstance(part, FeatureHead)}
    layers = [layer for layer in model.submodules if id(layer) in parts_of_layers and id(layer) not in of_heads]
    with _recorded_calls(layers) as calls:
        model(tf.zeros([1, *input_size, 3]), training=False)
    for layer, output in calls:
        costs[parts_of_layers[id(layer)]] += _layer_cost(layer, output)
    return costs


def _layer_cost(layer: tf.keras.layers.Layer, output: tf.TensorShape) -> Cost:
    # The batch dimension holds the local streams of one image.
    positions = int(np.prod(output[:-1]))
    if isinstance(layer, tf.keras.layers.BatchNormalization):
        return Cost(norm_macs=positions * int(output[-1]))
    kernel = layer.depthwise_kernel if isinstance(layer, tf.keras.layers.DepthwiseConv2D) else layer.kernel
    return Cost(macs=positions * int(np.prod(kernel.shape)))


@contextmanager
def _recorded_calls(
    layers: Sequence[tf.keras.layers.Layer],
) -> Iterator[list[tuple[tf.keras.layers.Layer, tf.TensorShape]]]:
    """Records (layer, output shape) of every call of ``layers`` inside the block."""
    calls = []
    patched = []
    for layer in layers:
        if isinstance(layer, _COUNTED):
            original = layer.call

            def noted(inputs, *args, _layer=layer, _original=original, **kwargs):
                output = _original(inputs, *args, **kwargs)
                calls.append((_layer, output.shape))
                return output

            layer.call = noted
            patched.append(layer)
    try:
        yield calls
    finally:
        for layer in patched:
            del layer.call

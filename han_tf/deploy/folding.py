"""Folding of batch norm into the layers before it.

In inference, batch norm is y = s·x + o with s = γ/√(σ² + ε) and o = β − s·μ. Together with a layer before it that is
linear in its kernel, x = W∗z + b, it is that layer with the kernel s·W and the bias s·b + o.
"""

import numpy as np
import tensorflow as tf

from han_tf.models.network import ReIDNetwork

_LINEAR = (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D, tf.keras.layers.Dense)


def fold_batch_norm(model: ReIDNetwork) -> tuple[int, int]:
    """Folds every batch norm that ``model`` calls once, in place; the model can then only be used for inference.

    A forward pass shows which layer a norm follows. A norm that follows no linear layer, such as one before its
    convolution or after a concatenation, becomes one scale and one offset.

    Returns:
      The numbers of norms that were folded, and of those that became a scale and an offset.
    """
    folded = kept = 0
    for norm, layer in _norms_and_layers(model).items():
        scale = 1 / np.sqrt(norm.moving_variance.numpy().astype(np.float64) + norm.epsilon)
        if norm.gamma is not None:
            scale *= norm.gamma.numpy()
        offset = -scale * norm.moving_mean.numpy()
        if norm.beta is not None:
            offset += norm.beta.numpy()
        if layer is None:
            norm.call = _affine(scale, offset)
            kept += 1
            continue
        depthwise = isinstance(layer, tf.keras.layers.DepthwiseConv2D)
        kernel = layer.depthwise_kernel if depthwise else layer.kernel
        # The last two axes of a depthwise kernel, [height, width, channels, multiplier], make up the outputs.
        kernel.assign(kernel.numpy() * (scale.reshape(kernel.shape[2:]) if depthwise else scale))
        if layer.bias is not None:
            offset += scale * layer.bias.numpy()
            layer.bias.assign(tf.zeros_like(layer.bias))
        norm.call = _bias(offset)
        folded += 1
    # A graph that was traced before still has the norms.
    model._inference = None
    return folded, kept


def _bias(offset: np.ndarray):
    constant = offset.astype(np.float32)
    return lambda inputs, training=None: tf.nn.bias_add(inputs, constant)


def _affine(scale: np.ndarray, offset: np.ndarray):
    factor, constant = scale.astype(np.float32), offset.astype(np.float32)
    return lambda inputs, training=None: inputs * factor + constant


def _unshaped(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor before a reshape that keeps the channels and that is its only reader."""
    before = tensor.op.inputs[0] if tensor.op.type == "Reshape" else tensor
    return before if before.shape[-1:] == tensor.shape[-1:] and len(before.consumers()) == 1 else tensor


def _norms_and_layers(model: ReIDNetwork) -> dict:
    """Returns batch norm -> the linear layer whose output only this norm reads, or None."""
    layers = [layer for layer in model.submodules if isinstance(layer, _LINEAR)]
    norms = [layer for layer in model.submodules if isinstance(layer, tf.keras.layers.BatchNormalization)]
    calls: dict[int, list] = {id(layer): [] for layer in (*layers, *norms)}

    def noted(layer, original):
        def call(inputs, *args, **kwargs):
            outputs = original(inputs, *args, **kwargs)
            calls[id(layer)].append((inputs, outputs))
            return outputs

        return call

    for layer in (*layers, *norms):
        layer.call = noted(layer, layer.call)
    try:
        tf.function(lambda images: model(images, training=False), autograph=False).get_concrete_function(
            tf.TensorSpec([1, *model.input_size, 3])
        )
        # Left out are layers that are called twice, and outputs with other readers, which need them unscaled.
        made_by = {
            id(calls[id(layer)][0][1]): layer
            for layer in layers
            if len(calls[id(layer)]) == 1 and len(calls[id(layer)][0][1].consumers()) == 1
        }
        return {norm: made_by.get(id(_unshaped(calls[id(norm)][0][0]))) for norm in norms if len(calls[id(norm)]) == 1}
    finally:
        for layer in (*layers, *norms):
            del layer.call

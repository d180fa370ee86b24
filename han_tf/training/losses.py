"""What HAN minimises (Sec. 3.1)."""

from collections.abc import Sequence

import tensorflow as tf


def identity_loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy of one branch, mean over the batch (eqs. 1 and 2).

    Args:
      labels: ``[batch]`` int, class indices.
      logits: ``[batch, classes]`` float32.

    Returns:
      Scalar float32, in nats.
    """
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def weight_penalty(kernels: Sequence[tf.Variable]) -> tf.Tensor:
    """Returns ½‖w‖² summed over ``kernels``; times the weight decay it is the coupled L2 penalty."""
    return tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])


def decayed_kernels(model: tf.Module) -> list[tf.Variable]:
    """Returns the variables that weight decay acts on: kernels, neither biases nor batch norm."""
    return [v for v in model.trainable_variables if v.name.rsplit("/", 1)[-1].split(":")[0].endswith("kernel")]

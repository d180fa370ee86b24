"""Training losses: Sec. 3.1, and the alternatives of Table 11."""

from collections.abc import Sequence

import tensorflow as tf

from han_tf.training.config import MINING


def identity_loss(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy of one branch, mean over the batch (eqs. 1 and 2).

    Args:
      labels: ``[batch]`` int, class indices.
      logits: ``[batch, classes]`` float32.
      smoothing: ε in [0, 1) of label smoothing (Szegedy et al. 2016): the target is 1 - ε for the label plus
        ε / classes for every class. The paper has none.

    Returns:
      Scalar float32, in nats.
    """
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * tf.reduce_mean(tf.nn.log_softmax(logits))


class TripletLoss:
    """Triplet loss of one branch with online mining, ``max(0, margin + d_ap - d_an)`` (Table 11).

    d are Euclidean distances, not squared, of the features of anchor, positive and negative. The distance of equal
    features has gradient 0. The loss is the mean over the active triplets alone, those "yielding positive loss
    values"; it is 0 where none is active.

    Args:
      margin: in units of distance; features of unit norm are at most 2 apart.
      mining: which triplets of a batch count. ``hard``: each image with its farthest positive and its nearest
        negative (Hermans et al. 2017). ``semihard``: each ordered pair of a person's images with the nearest
        negative that is farther away than the positive, or the farthest negative if none is (Schroff et al. 2015).
        An image without a positive or without a negative is no anchor.

    Raises:
      ValueError: the mining is unknown.
    """

    def __init__(self, margin: float = 0.3, mining: str = "hard"):
        if mining not in MINING:
            raise ValueError(f"mining must be one of {', '.join(MINING)}, got {mining!r}")
        self.margin = margin
        self.mining = mining

    def __call__(self, labels: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
        """Returns the loss, scalar float32.

        Args:
          labels: ``[batch]`` int, class indices.
          features: ``[batch, d]`` float32, as deployed: of unit norm. The distances take ``batch² · d`` values, the
            semi-hard negatives ``batch³``.
        """
        labels = tf.convert_to_tensor(labels)
        distances = _distances(tf.convert_to_tensor(features))
        negative = labels[:, None] != labels[None]
        positive = ~(negative | tf.eye(tf.size(labels), dtype=tf.bool))
        if self.mining == "hard":
            # Without a positive or without a negative the hinge is far below 0.
            hinges = self.margin + _largest(distances, positive) - _smallest(distances, negative)
            active = hinges > 0
        else:
            farther = negative[:, None] & (distances[:, None] > distances[..., None])
            nearest = _smallest(distances[:, None], farther)
            d_an = tf.where(tf.reduce_any(farther, -1), nearest, _largest(distances, negative)[:, None])
            hinges = self.margin + distances - d_an
            active = positive & tf.reduce_any(negative, -1)[:, None] & (hinges > 0)
        count = tf.cast(tf.math.count_nonzero(active), hinges.dtype)
        return tf.reduce_sum(tf.where(active, hinges, 0)) / tf.maximum(count, 1)


def weight_penalty(kernels: Sequence[tf.Variable]) -> tf.Tensor:
    """Returns ½‖w‖² summed over ``kernels``; times the weight decay it is the coupled L2 penalty."""
    return tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])


def decayed_kernels(model: tf.Module, depthwise: bool = True) -> list[tf.Variable]:
    """Returns the variables that weight decay acts on: kernels, neither biases nor batch norm.

    ``depthwise`` says whether those of depthwise convolutions are among them.
    """
    kernels = [v for v in model.trainable_variables if v.name.split(":")[0].endswith("kernel")]
    return [v for v in kernels if depthwise or "depthwise_kernel" not in v.name]


def _distances(features: tf.Tensor) -> tf.Tensor:
    """Returns the Euclidean distances of all pairs, ``[batch, batch]``."""
    # From the differences: |a|² - 2ab + |b|² loses the digits of small distances, which the hardest triplets have.
    squares = tf.reduce_sum(tf.square(features[:, None] - features[None]), -1)
    apart = squares > 0
    return tf.where(apart, tf.sqrt(tf.where(apart, squares, 1)), 0)


def _largest(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.where(mask, values, values.dtype.min), -1)


def _smallest(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_min(tf.where(mask, values, values.dtype.max), -1)

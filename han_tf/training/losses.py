"""What a network minimises: Sec. 3.1, and the alternatives of Table 11."""

import warnings
from collections.abc import Sequence
from types import ModuleType

import tensorflow as tf

from han_tf.errors import UserError


def identity_loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy of one branch, mean over the batch (eqs. 1 and 2).

    Args:
      labels: ``[batch]`` int, class indices.
      logits: ``[batch, classes]`` float32.

    Returns:
      Scalar float32, in nats.
    """
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


class TripletLoss:
    """Triplet loss of one branch with online hard mining, ``max(0, margin + d_ap - d_an)`` (Table 11).

    d are Euclidean distances, not squared, of the features of anchor, positive and negative. The distance of equal
    features has gradient 0.

    A departure: the paper uses only triplets "yielding positive loss values". Here the others, which are 0 and add
    nothing to the gradient, count in the mean as well, so that the loss is smaller by the share of active ones.

    Args:
      margin: in units of distance; features of unit norm are at most 2 apart.
      mining: which triplets of a batch count. ``hard``: each image with its farthest positive and its nearest
        negative (Hermans et al. 2017), mean over images; d_ap is 0 without a positive. ``semihard``:
        each ordered pair of a person's images with the nearest negative that is farther away than the
        positive, or the farthest negative if none is (Schroff et al. 2015), mean over pairs.

    Raises:
      UserError: TensorFlow Addons is not installed.
    """

    def __init__(self, margin: float = 0.3, mining: str = "hard"):
        losses = _import_addons().losses
        self.function = {"hard": losses.triplet_hard_loss, "semihard": losses.triplet_semihard_loss}[mining]
        self.margin = margin

    def __call__(self, labels: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
        """Returns the loss, scalar float32.

        Args:
          labels: ``[batch]`` int, class indices; at least one of them twice.
          features: ``[batch, d]`` float32, as deployed: of unit norm.
        """
        return self.function(labels, features, margin=self.margin)


def weight_penalty(kernels: Sequence[tf.Variable]) -> tf.Tensor:
    """Returns ½‖w‖² summed over ``kernels``; times the weight decay it is the coupled L2 penalty."""
    return tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])


def decayed_kernels(model: tf.Module) -> list[tf.Variable]:
    """Returns the variables that weight decay acts on: kernels, neither biases nor batch norm."""
    return [v for v in model.trainable_variables if v.name.rsplit("/", 1)[-1].split(":")[0].endswith("kernel")]


def _import_addons() -> ModuleType:
    try:
        with warnings.catch_warnings():
            # It says at every import that it is no longer developed.
            warnings.simplefilter("ignore")
            import tensorflow_addons
    except ImportError as error:
        raise UserError(
            f"the triplet loss needs TensorFlow Addons ({error}), expected: pip install 'han-tf[triplet]'"
        ) from error
    return tensorflow_addons

"""One step of training: forward, losses, gradients, update; on one device or on several."""

import tensorflow as tf

from han_tf.models.network import Branches, ReIDNetwork, unit_features
from han_tf.runs.folder import create_network
from han_tf.training.attention import LevelStatistics, level_statistics, map_statistics
from han_tf.training.config import TRIPLET, TrainConfig
from han_tf.training.devices import computing, own_part, whole
from han_tf.training.losses import TripletLoss, decayed_kernels, identity_loss, weight_penalty


class Step:
    """One step of SGD (Sec. 4, eqs. 1 and 2).

    Args:
      config: the run's settings.
      model: the network as it is evaluated and saved: on one device, in float32.
      strategy: the devices.

    Attributes:
      network: the network that is trained: ``model`` itself, or a copy on all devices and in the run's precision.
      optimizer: SGD; its state is part of a checkpoint.
    """

    def __init__(self, config: TrainConfig, model: ReIDNetwork, strategy: tf.distribute.Strategy):
        self.config = config
        self.model = model
        self.strategy = strategy
        self.triplet_loss = TripletLoss(config.margin, config.mining) if TRIPLET in config.loss else None
        replicas = strategy.num_replicas_in_sync
        with strategy.scope():
            self.network = model
            if tf.distribute.has_strategy() or config.precision != "float32":
                with computing(config.precision, synchronised=replicas > 1 and config.sync_batch_norm):
                    self.network = create_network(config.to_dict(), model.num_classes)
            compiled = config.xla and replicas == 1
            self.optimizer = tf.keras.optimizers.SGD(config.lr, momentum=config.momentum, jit_compile=compiled)
            if config.precision == "mixed_float16":
                self.optimizer = tf.keras.mixed_precision.LossScaleOptimizer(self.optimizer)
            self.optimizer.build(self.network.trainable_variables)
        localisation = {id(variable) for variable in self.network.localisation_variables}
        self._gradient_factors = [
            config.localisation_lr if id(variable) in localisation else 1.0
            for variable in self.network.trainable_variables
        ]
        self._kernels = decayed_kernels(self.network, config.depthwise_decay)
        self._classifiers = [
            variable
            for name in (self.network.branch_names if model.num_classes else ())
            for variable in getattr(self.network, f"{name}_classifier").trainable_variables
        ]
        self._gradients = (
            tf.function(self._replica_gradients, autograph=False, jit_compile=True)
            if config.xla
            else self._replica_gradients
        )

    def start(self) -> None:
        """Copies the weights of ``model`` to the network."""
        if self.network is not self.model:
            self.network.set_weights(self.model.get_weights())

    def give_back(self) -> None:
        """Copies the network's weights to ``model``; batch norm's statistics are means over the replicas."""
        if self.network is not self.model:
            self.model.set_weights(self.network.get_weights())

    @tf.function(autograph=False)
    def take(
        self, images: tf.Tensor, labels: tf.Tensor, frozen: bool = False
    ) -> tuple[dict[str, tf.Tensor], list[LevelStatistics]]:
        """Takes one step of SGD on the images of all devices.

        Args:
          images: ``[batch, height, width, 3]`` uint8.
          labels: ``[batch]`` int32, class indices.
          frozen: whether only the classifiers learn; batch norm then keeps its statistics.

        Returns:
          Losses and accuracies of this batch by name, ``loss``, ``global_loss``, ``global_accuracy``, …; and the
          statistics of attention at each level.
        """
        means, levels = self.strategy.run(self._replica_step, (images, labels, frozen))
        means = {name: self.strategy.reduce("MEAN", value, axis=None) for name, value in means.items()}
        return means, [
            map_statistics(lambda value: self.strategy.reduce("SUM", value, None), level) for level in levels
        ]

    def _replica_step(
        self, images: tf.Tensor, labels: tf.Tensor, frozen: bool
    ) -> tuple[dict[str, tf.Tensor], list[LevelStatistics]]:
        """Takes one replica's part of a step; returns what :meth:`take` does, for this replica's images."""
        gradients, means, levels = self._gradients(images, labels, frozen)
        if self.config.precision == "mixed_float16":
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        if not frozen:
            gradients = [
                gradient if factor == 1.0 else factor * gradient
                for factor, gradient in zip(self._gradient_factors, gradients)
            ]
        # Sums the gradients over all replicas.
        self.optimizer.apply_gradients(zip(gradients, self._variables(frozen)))
        return means, levels

    def _variables(self, frozen: bool) -> list[tf.Variable]:
        return self._classifiers if frozen else self.network.trainable_variables

    def _replica_gradients(
        self, images: tf.Tensor, labels: tf.Tensor, frozen: bool
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor], list[LevelStatistics]]:
        """Returns this replica's gradients (with float16, of the scaled objective), losses and attention statistics."""
        own_labels = own_part(labels)
        with tf.GradientTape() as tape:
            branches = self.network.branches(own_part(images), training=not frozen)
            logits = self.network.classify(branches) if self.network.num_classes else {}
            losses = self._losses(labels, branches, logits)
            loss = tf.add_n(list(losses.values()))
            objective = loss + self.config.weight_decay * weight_penalty(self._kernels) + self.network.penalty()
            objective /= self.strategy.num_replicas_in_sync
            if self.config.precision == "mixed_float16":
                objective = self.optimizer.get_scaled_loss(objective)
        gradients = tape.gradient(objective, self._variables(frozen))
        means = {"loss": loss, **{f"{name}_loss": value for name, value in losses.items()}}
        means.update({f"{name}_accuracy": _accuracy(own_labels, scores) for name, scores in logits.items()})
        return gradients, means, [level_statistics(level) for level in branches.attention]

    def _losses(self, labels: tf.Tensor, branches: Branches, logits: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns each branch's loss: cross-entropy of its logits, if any, plus triplet loss of its feature, if used.

        The cross-entropy is the mean over this replica's images; the triplet loss uses the images of all replicas.
        """
        smoothing = self.config.label_smoothing
        losses = {name: [identity_loss(own_part(labels), scores, smoothing)] for name, scores in logits.items()}
        if self.triplet_loss is not None:
            for name, feature in unit_features(branches).items():
                losses.setdefault(name, []).append(self.triplet_loss(labels, whole(feature)))
        return {name: tf.add_n(terms) for name, terms in losses.items()}


def _accuracy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels)
    return tf.reduce_mean(tf.cast(hits, tf.float32))

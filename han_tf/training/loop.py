"""The training loop: epochs, the steps of an epoch, and the work at its end."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from han_tf.common.errors import Stopped, UserError
from han_tf.common.files import exists
from han_tf.common.processes import stop_signals
from han_tf.data.augmentation import AUGMENTATIONS
from han_tf.data.pipeline import LoadedImages, training_batches
from han_tf.data.sampling import PeopleAndImages, ShuffledImages
from han_tf.models.network import ReIDNetwork
from han_tf.runs.folder import CHECKPOINTS, create_network
from han_tf.training.attention import AttentionStatistics
from han_tf.training.config import CROSS_ENTROPY, NEUTRAL, TRIPLET, TrainConfig
from han_tf.training.devices import check_agreement, create_strategy, is_chief, mean_over_workers
from han_tf.training.progress import Progress, draw_pictures, draw_scalars
from han_tf.training.run_folder import RunFolder
from han_tf.training.schedule import learning_rate
from han_tf.training.step import Step


def make_deterministic(seed: int) -> None:
    """Makes all later computation reproducible for this seed on one machine."""
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


class Trainer:
    """Trains a network, from the start or from where an earlier process stopped.

    Args:
      config: the run's settings.
      run_dir: its folder; empty, or with a run of the same settings.
      data: the decoded training images.
      evaluate: called as ``evaluate(model)`` when an evaluation is due; returns a report, ready for JSON.
      scalars: called as ``scalars(report)``; returns the numbers for TensorBoard, among them ``mAP``, which decides
        on the best network. Required with ``evaluate``.
      panel: called as ``panel(model)``; returns pictures by name, ``[n, height, width, 3]`` uint8.
      fingerprints: of the images to ``train`` and to ``test`` on, see
        :meth:`han_tf.data.records.ReIDDataset.fingerprint`. A run with other training images is refused; if the test
        images differ, its earlier evaluations are dropped.
      strategy: from :func:`han_tf.training.devices.create_strategy`; created here if None. Several workers train one
        run: all have the same data and the same ``run_dir``, and only the chief writes to it.

    Attributes:
      model: the network as it is evaluated and saved: on one device, in float32.
      trained: the network that is trained, see :class:`~han_tf.training.step.Step`. ``model`` gets its weights at the
        end of an epoch.
      train_step: :meth:`han_tf.training.step.Step.take`.
      history: one row for each finished epoch, as in history.json.

    Raises:
      UserError: the folder holds another run or one of other training images, or its checkpoint cannot be read; there
        are fewer people than a batch needs; the batch cannot be divided evenly among the devices.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        data: LoadedImages,
        evaluate: Optional[Callable[[ReIDNetwork], dict[str, Any]]] = None,
        scalars: Optional[Callable[[dict[str, Any]], dict[str, float]]] = None,
        panel: Optional[Callable[[ReIDNetwork], dict[str, np.ndarray]]] = None,
        fingerprints: Optional[Mapping[str, str]] = None,
        strategy: Optional[tf.distribute.Strategy] = None,
    ):
        self.config = config
        self.run_dir = Path(run_dir)
        self.data = data
        self.evaluate = evaluate
        self.scalars = scalars
        self.panel = panel

        self.pids = sorted({record.pid for record in data.records})
        class_of = {pid: index for index, pid in enumerate(self.pids)}
        self.labels = np.array([class_of[record.pid] for record in data.records])
        self.sampler = self._sampler()
        self.augmentations = [name for name in AUGMENTATIONS if getattr(config, name)]

        self.strategy = create_strategy(config.strategy) if strategy is None else strategy
        self.chief = is_chief(self.strategy)
        self._check_devices(dict(fingerprints or {}))

        make_deterministic(config.seed)
        classes = len(self.pids) if CROSS_ENTROPY in config.loss else 0
        begun = exists(self.run_dir / CHECKPOINTS["last"] / "checkpoint")
        self.model = create_network(config.to_dict(), classes, "" if begun else config.weights)
        if config.localisation_lr != TrainConfig.localisation_lr and not self.model.localisation_variables:
            raise UserError(f"--localisation_lr {config.localisation_lr}, but no layer of this network places regions")
        self._step = Step(config, self.model, self.strategy)
        self.trained, self.optimizer, self.train_step = self._step.network, self._step.optimizer, self._step.take

        kinds = ("loss", "accuracy") if classes else ("loss",)
        names = ["loss", *(f"{branch}_{kind}" for kind in kinds for branch in self.model.branch_names)]
        self.means = {name: tf.keras.metrics.Mean(name=name) for name in names}
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.batch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.folder = RunFolder(
            config,
            self.run_dir,
            {
                "model": self.model,
                "optimizer": self.optimizer,
                "epoch": self.epoch,
                "batch": self.batch,
                **self.means,
            },
            {
                "num_classes": classes,
                "num_images": len(self.labels),
                "replicas": self.strategy.num_replicas_in_sync,
            },
            dict(fingerprints or {}),
            writes=self.chief,
        )
        self.history = self.folder.history
        self._step.start()

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps that an epoch takes."""
        return self.sampler.batches_per_epoch

    @property
    def global_step(self) -> int:
        """Number of steps taken since the start of the run."""
        return int(self.epoch) * self.steps_per_epoch + int(self.batch)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return int(self.epoch) >= self.config.epochs

    def run(self) -> None:
        """Trains to the end.

        Raises:
          Stopped: SIGINT, SIGTERM or SIGHUP came during an epoch; all is saved, and the same call resumes. During an
            evaluation, before which all has been saved, these signals have their usual effect.
          UserError: the loss is no longer finite, or a checkpoint cannot be written.
        """
        total = self.config.epochs * self.steps_per_epoch
        with Progress(self.run_dir if self.chief else None, total, self.global_step) as progress:
            if self.global_step == 0:
                self._draw_panel()
            self._evaluate_if_due()
            while not self.finished:
                with stop_signals() as stop:
                    self._run_epoch(stop, progress)
                if self._told_to_stop(stop):
                    number = stop[0] if stop else signal.SIGTERM
                    raise Stopped(
                        f"stopped by {signal.Signals(number).name} after {self.global_step} steps; "
                        f"saved in {self.run_dir}, the same command resumes the run",
                        number,
                    )
                self._evaluate_if_due()

    def _run_epoch(self, stop: list[int], progress: Progress) -> None:
        """Takes the remaining steps of an epoch; after a signal in ``stop`` it saves all and returns early."""
        config, epoch = self.config, int(self.epoch)
        rate = learning_rate(epoch, config.epochs, config.lr, config.lr_decay, config.lr_drops)
        self.optimizer.learning_rate.assign(rate)
        attention = AttentionStatistics(self.model.map_sizes, learned=bool(self.model.localisation_variables))
        if sums := self.folder.unfinished(self.global_step).get("attention"):
            attention.restore(sums)
        progress.start_epoch(epoch + 1, config.epochs)
        for images, labels in training_batches(
            self.data.images, self.labels, self.sampler, config.seed, epoch, int(self.batch), self.augmentations
        ):
            self.trained.begin_step(self.global_step, config.epochs * self.steps_per_epoch)
            losses, levels = self.train_step(images, labels, epoch < config.freeze_epochs)
            loss = losses["loss"].numpy()
            self._check_finite(loss, f"loss is {loss} in epoch {epoch + 1}, step {int(self.batch) + 1}")
            if levels:
                attention.update(levels, len(labels), self.strategy.num_replicas_in_sync)
            for name, mean in self.means.items():
                mean.update_state(losses[name])
            self.batch.assign_add(1)
            progress.step(self.means, len(labels))
            if self._told_to_stop(stop) and int(self.batch) < self.steps_per_epoch:
                self._step.give_back()
                self.folder.save(self.global_step, {"attention": attention.sums()})
                return
        self._end_epoch(rate, attention, progress)

    def _end_epoch(self, rate: float, attention: AttentionStatistics, progress: Progress) -> None:
        """Adds the epoch's row to the history and to TensorBoard, and saves all."""
        self.batch.assign(0)
        self.epoch.assign_add(1)
        epoch = int(self.epoch)
        self._step.give_back()
        for variable in self.model.variables:
            self._check_finite(variable.numpy(), f"{variable.name} is not finite after epoch {epoch}")
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": rate,
            "seconds": round(progress.seconds, 1),
            "images_per_second": round(progress.images_per_second, 1),
            **{name: float(mean.result()) for name, mean in self.means.items()},
        }
        for mean in self.means.values():
            mean.reset_state()
        drawn = {f"train/{name}": row[name] for name in (*self.means, "images_per_second")}
        draw_scalars({**drawn, "train/learning_rate": rate}, self.global_step)
        if attention.count:
            row["attention"] = attention.to_dict()
            draw_scalars(attention.scalars(), self.global_step)
            for complaint in attention.complaints():
                # Regions and maps that do not move yet may still start to; the end of the training reports those.
                if "saturated" in complaint:
                    tqdm.write(f"warning: attention after epoch {epoch}: {complaint}")
        self.history.append(row)
        self.folder.save(self.global_step)

    def _evaluate_if_due(self) -> None:
        """Evaluates if it is due after this epoch and was not done before an interruption."""
        epoch, every = int(self.epoch), self.config.evaluation_interval
        due = self.finished or epoch % every == 0
        if self.evaluate is None or not self.chief or not due or epoch == 0 or int(self.batch):
            return
        if "evaluation" in self.history[-1]:
            return
        earlier = [self.scalars(row["evaluation"])["mAP"] for row in self.history if "evaluation" in row]
        evaluation = self.evaluate(self.model)
        scalars = self.scalars(evaluation)
        draw_scalars({f"evaluation/{name}": value for name, value in scalars.items()}, self.global_step)
        self._draw_panel()
        self.folder.add_evaluation(evaluation, scalars["mAP"] >= max(earlier, default=0), self.global_step)

    def _draw_panel(self) -> None:
        if self.panel is not None and self.chief:
            draw_pictures(self.panel(self.model), self.global_step)

    def _told_to_stop(self, stop: list[int]) -> bool:
        """Returns whether any worker has received a signal, so that all stop after the same step."""
        return mean_over_workers(self.strategy, float(bool(stop))) > 0

    def _check_finite(self, values: np.ndarray, complaint: str) -> None:
        if not np.isfinite(values).all():
            raise UserError(
                f"{complaint}; stopped, last good checkpoint: {self.folder.checkpoints.latest or 'none'}; "
                "a lower --lr may help"
            )

    def _sampler(self) -> ShuffledImages | PeopleAndImages:
        """Returns the sampler of batches: shuffled images, or people and their images for the triplet loss."""
        config = self.config
        if TRIPLET not in config.loss:
            return ShuffledImages(len(self.labels), config.batch_size)
        if config.people > len(self.pids):
            raise UserError(f"--people {config.people}, expected at most {len(self.pids)}, as many as are to train on")
        return PeopleAndImages(self.labels, config.people, config.images_per_person)

    def _check_devices(self, fingerprints: Mapping[str, str]) -> None:
        """Raises UserError if the devices cannot share this run's work, or the workers' settings or data differ."""
        config, replicas = self.config, self.strategy.num_replicas_in_sync
        batch_size = getattr(self.sampler, "batch_size", config.batch_size)
        if batch_size % replicas:
            raise UserError(f"batches of {batch_size} images on {replicas} devices: expected a multiple of {replicas}")
        if config.xla and replicas > 1 and (config.sync_batch_norm or TRIPLET in config.loss):
            raise UserError(
                f"--xla on {replicas} devices, expected --nosync_batch_norm and no triplet loss: it compiles what each "
                "device does by itself"
            )
        settings = {name: value for name, value in config.to_dict().items() if name not in NEUTRAL}
        listing = self.run_dir / CHECKPOINTS["last"] / "checkpoint"
        newest = listing.read_bytes().decode(errors="replace") if listing.exists() else None
        check_agreement(
            self.strategy,
            [settings, newest, fingerprints, len(self.labels)],
            f"flags, training images or the newest checkpoint in {self.run_dir}",
        )

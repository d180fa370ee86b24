"""The training loop."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from han_tf.common.errors import Stopped, UserError
from han_tf.common.files import write_json
from han_tf.data.augmentation import AUGMENTATIONS
from han_tf.data.pipeline import LoadedImages, training_batches
from han_tf.data.sampling import PeopleAndImages, ShuffledImages
from han_tf.models.network import Branches, ReIDNetwork, unit_features
from han_tf.models.transfer import named_variables, take_over
from han_tf.runs import environment
from han_tf.runs.checkpoints import Checkpoints
from han_tf.runs.folder import CHECKPOINTS, CONFIG, LoadedRun, create_network, load_run, read_config
from han_tf.training.attention import AttentionStatistics, LevelStatistics, level_statistics
from han_tf.training.config import CROSS_ENTROPY, LOSSES, NEUTRAL, OF_DATA, TRIPLET, TrainConfig
from han_tf.training.devices import (
    check_agreement,
    computing,
    create_strategy,
    is_chief,
    mean_over_workers,
    own_part,
    whole,
)
from han_tf.training.losses import TripletLoss, decayed_kernels, identity_loss, weight_penalty
from han_tf.training.schedule import learning_rate
from han_tf.weights import is_stored, read_about

HISTORY = "history.json"
ENVIRONMENT = "environment.json"
TENSORBOARD = "tensorboard"


def make_deterministic(seed: int) -> None:
    """Makes everything that follows the same on every run of this seed on one machine."""
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


class Trainer:
    """Trains a network, from the start or from where an earlier process stopped.

    Args:
      config: the run.
      run_dir: its folder; holds nothing, or a run of the same settings.
      data: the decoded training images.
      evaluate: called as ``evaluate(model)`` when it is time; returns a report, as JSON holds it.
      scalars: called as ``scalars(report)``; returns the numbers to draw, among them ``mAP``, by which the best
        network is chosen. Goes with ``evaluate``.
      panel: called as ``panel(model)``; returns pictures by name, ``[n, height, width, 3]`` uint8.
      fingerprints: of the images to ``train`` and to ``test`` on, see
        :meth:`han_tf.data.records.ReIDDataset.fingerprint`. A run of other training images does not go on; where the
        test images are others, its earlier evaluations are dropped.
      strategy: from :func:`han_tf.training.devices.create_strategy`; made here if None. Several workers train one run:
        all have the same data and see the same ``run_dir``, to which the chief alone writes.

    Attributes:
      model: the network as it is evaluated and saved: on one device, in float32.
      trained: the network that steps are taken on; ``model`` itself, or its copy on all devices and in the precision of
        the run. At the end of an epoch, ``model`` gets its weights.

    Raises:
      UserError: the folder holds another run or one of other training images, or its checkpoint cannot be read; there
        are fewer people than a batch is to hold; the batch cannot be divided evenly among the devices.
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
        self.fingerprints = dict(fingerprints or {})

        self.pids = sorted({record.pid for record in data.records})
        class_of = {pid: index for index, pid in enumerate(self.pids)}
        self.labels = np.array([class_of[record.pid] for record in data.records])
        losses = LOSSES[config.loss]
        if TRIPLET not in losses:
            self.triplet_loss = None
            self.sampler = ShuffledImages(len(self.labels), config.batch_size)
        elif config.people > len(self.pids):
            raise UserError(f"--people {config.people}, expected at most {len(self.pids)}, as many as are to train on")
        else:
            self.triplet_loss = TripletLoss(config.margin, config.mining)
            self.sampler = PeopleAndImages(self.labels, config.people, config.images_per_person)
        self.augmentations = [name for name in AUGMENTATIONS if getattr(config, name)]

        self.strategy = create_strategy(config.strategy) if strategy is None else strategy
        self.chief = is_chief(self.strategy)
        self._check_devices()

        make_deterministic(config.seed)
        classes = len(self.pids) if CROSS_ENTROPY in losses else 0
        self.model = create_network(config.to_dict(), classes, config.weights)
        if config.localisation_lr != TrainConfig.localisation_lr and not self.model.localisation_variables:
            raise UserError(f"--localisation_lr {config.localisation_lr}, but no layer of this network places regions")
        replicas = self.strategy.num_replicas_in_sync
        with self.strategy.scope():
            self.trained = self.model
            if tf.distribute.has_strategy() or config.precision != "float32":
                with computing(config.precision, synchronised=replicas > 1 and config.sync_batch_norm):
                    self.trained = create_network(config.to_dict(), classes)
            compiled = config.xla and replicas == 1
            self.optimizer = tf.keras.optimizers.SGD(config.lr, momentum=config.momentum, jit_compile=compiled)
            if config.precision == "mixed_float16":
                self.optimizer = tf.keras.mixed_precision.LossScaleOptimizer(self.optimizer)
            self.optimizer.build(self.trained.trainable_variables)
        kinds = ("loss", "accuracy") if self.model.num_classes else ("loss",)
        names = ["loss", *(f"{branch}_{kind}" for kind in kinds for branch in self.model.branch_names)]
        self.means = {name: tf.keras.metrics.Mean(name=name) for name in names}
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.batch = tf.Variable(0, dtype=tf.int64, trainable=False)

        self.checkpoints = Checkpoints(
            self.run_dir / CHECKPOINTS["last"],
            config.keep_checkpoints,
            model=self.model,
            optimizer=self.optimizer,
            epoch=self.epoch,
            batch=self.batch,
            **self.means,
        )
        self.best = Checkpoints(self.run_dir / CHECKPOINTS["best"], 1, model=self.model)
        self.history: list[dict[str, Any]] = []
        self._open_run_folder()
        if self.trained is not self.model:
            self.trained.set_weights(self.model.get_weights())

        localisation = {id(variable) for variable in self.trained.localisation_variables}
        self._gradient_factors = [
            config.localisation_lr if id(variable) in localisation else 1.0
            for variable in self.trained.trainable_variables
        ]
        self._kernels = decayed_kernels(self.trained)
        self._classifiers = [
            variable
            for name in (self.trained.branch_names if classes else ())
            for variable in getattr(self.trained, f"{name}_classifier").trainable_variables
        ]
        self._gradients = (
            tf.function(self._replica_gradients, jit_compile=True) if config.xla else self._replica_gradients
        )

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
          Stopped: SIGINT or SIGTERM came while an epoch ran; all is saved, and the same call goes on. An evaluation,
            before which all has been saved, they end as they end anything else.
          UserError: the loss is no longer finite, or a checkpoint cannot be written.
        """
        total = self.config.epochs * self.steps_per_epoch
        writer = tf.summary.create_noop_writer()
        if self.chief:
            writer = tf.summary.create_file_writer(str(self.run_dir / TENSORBOARD))
        bar = tqdm(total=total, initial=self.global_step, unit="step", dynamic_ncols=True, smoothing=0.05)
        with writer.as_default(), bar:
            if self.global_step == 0:
                self._write_panel(0)
            self._evaluate_if_due()
            while not self.finished:
                with _stop_signals() as stop:
                    self._run_epoch(stop, bar)
                if self._told_to_stop(stop):
                    self._stop(stop[0] if stop else signal.SIGTERM)
                self._evaluate_if_due()
            writer.flush()

    def _run_epoch(self, stop: list[int], bar: tqdm) -> None:
        epoch = int(self.epoch)
        config = self.config
        rate = learning_rate(epoch, config.epochs, config.lr, config.lr_decay, config.lr_drops)
        self.optimizer.learning_rate.assign(rate)
        attention = AttentionStatistics(self.model.map_sizes, learned=bool(self.model.localisation_variables))
        started, seen = time.perf_counter(), 0
        batches = training_batches(
            self.data.images, self.labels, self.sampler, self.config.seed, epoch, int(self.batch), self.augmentations
        )
        for images, labels in batches:
            self.trained.begin_step(self.global_step, self.config.epochs * self.steps_per_epoch)
            losses, levels = self.train_step(images, labels, epoch < config.freeze_epochs)
            if not np.isfinite(losses["loss"].numpy()):
                raise UserError(
                    f"loss is {float(losses['loss'])} in epoch {epoch + 1}, step {int(self.batch) + 1}; "
                    f"stopped, last good checkpoint: {self.checkpoints.latest or 'none'}; a lower --lr may help"
                )
            if levels:
                attention.update(levels, len(labels), self.strategy.num_replicas_in_sync)
            for name, mean in self.means.items():
                mean.update_state(losses[name])
            self.batch.assign_add(1)
            seen += len(labels)
            bar.set_description(f"epoch {epoch + 1}/{self.config.epochs}", refresh=False)
            shown = [f"loss {self.means['loss'].result():.3f}"]
            accuracies = [mean.result() for name, mean in self.means.items() if name.endswith("_accuracy")]
            if accuracies:
                shown.append("acc " + "/".join(f"{accuracy:.1%}" for accuracy in accuracies))
            shown.append(f"{seen / (time.perf_counter() - started):.0f} img/s")
            bar.set_postfix_str(", ".join(shown), refresh=False)
            bar.update()
            if self._told_to_stop(stop) and int(self.batch) < self.steps_per_epoch:
                self._take_weights()
                self._save()
                return
        self._end_epoch(rate, attention, time.perf_counter() - started, seen)

    def _told_to_stop(self, stop: list[int]) -> bool:
        """Returns whether a signal has come, to this worker or to any other one: they stop after the same step."""
        return mean_over_workers(self.strategy, float(bool(stop))) > 0

    def _stop(self, number: int) -> None:
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after {self.global_step} steps; "
            f"saved in {self.run_dir}, the same command goes on",
            number,
        )

    def _end_epoch(self, rate: float, attention: AttentionStatistics, seconds: float, seen: int) -> None:
        self.batch.assign(0)
        self.epoch.assign_add(1)
        epoch, step = int(self.epoch), self.global_step
        self._take_weights()
        for variable in self.model.variables:
            if not np.isfinite(variable.numpy()).all():
                raise UserError(
                    f"{variable.name} is not finite after epoch {epoch}; stopped, "
                    f"last good checkpoint: {self.checkpoints.latest or 'none'}; a lower --lr may help"
                )
        speed = round(seen / seconds, 1)
        row: dict[str, Any] = {"epoch": epoch, "lr": rate, "seconds": round(seconds, 1), "images_per_second": speed}
        for name, mean in self.means.items():
            row[name] = float(mean.result())
            tf.summary.scalar(f"train/{name}", row[name], step)
            mean.reset_state()
        tf.summary.scalar("train/learning_rate", rate, step)
        tf.summary.scalar("train/images_per_second", speed, step)
        if attention.count:
            row["attention"] = attention.to_dict()
            for name, value in attention.scalars().items():
                tf.summary.scalar(name, value, step)
            for complaint in attention.complaints():
                # What does not move yet may still be pushed; what matters of that is said at the end.
                if "saturated" in complaint:
                    tqdm.write(f"warning: attention after epoch {epoch}: {complaint}")

        self.history.append(row)
        self._save()

    def _take_weights(self) -> None:
        """Gives ``model`` the weights of ``trained``, and batch norm's statistics as means over the replicas."""
        if self.trained is not self.model:
            self.model.set_weights(self.trained.get_weights())

    def _save(self) -> None:
        if self.chief:
            write_json(self.run_dir / HISTORY, self.history)
            self.checkpoints.save(self.global_step)

    def _evaluate_if_due(self) -> None:
        """Evaluates after an epoch whose turn it is, unless that was done before an interruption."""
        epoch, every = int(self.epoch), self.config.evaluation_interval
        due = self.finished or epoch % every == 0
        if self.evaluate is None or not self.chief or not due or epoch == 0 or int(self.batch):
            return
        if "evaluation" in self.history[-1]:
            return
        earlier = [self.scalars(row["evaluation"])["mAP"] for row in self.history if "evaluation" in row]
        evaluation = self.evaluate(self.model)
        for name, value in self.scalars(evaluation).items():
            tf.summary.scalar(f"evaluation/{name}", value, self.global_step)
        self._write_panel(self.global_step)
        if self.scalars(evaluation)["mAP"] >= max(earlier, default=0):
            self.best.save(self.global_step)
        self.history[-1]["evaluation"] = evaluation
        write_json(self.run_dir / HISTORY, self.history)

    def _write_panel(self, step: int) -> None:
        if self.panel is not None and self.chief:
            for name, pictures in self.panel(self.model).items():
                tf.summary.image(name, pictures, step, max_outputs=len(pictures))

    @tf.function
    def train_step(
        self, images: tf.Tensor, labels: tf.Tensor, frozen: bool = False
    ) -> tuple[dict[str, tf.Tensor], list[LevelStatistics]]:
        """Takes one step of SGD.

        Args:
          images: ``[batch, height, width, 3]`` uint8.
          labels: ``[batch]`` int32, class indices.
          frozen: whether the classifiers alone learn; batch norm keeps its statistics then.

        Returns:
          The loss and accuracies of this batch, by the names of what is averaged over an epoch; what attention did
          at each level.
        """
        means, levels = self.strategy.run(self._replica_step, (images, labels, frozen))
        means = {name: self.strategy.reduce("MEAN", value, axis=None) for name, value in means.items()}
        return means, [
            LevelStatistics(
                *(None if value is None else self.strategy.reduce("SUM", value, axis=None) for value in level)
            )
            for level in levels
        ]

    def _replica_step(
        self, images: tf.Tensor, labels: tf.Tensor, frozen: bool
    ) -> tuple[dict[str, tf.Tensor], list[LevelStatistics]]:
        """Takes one replica's part of a step; returns what :meth:`train_step` does, of the images of this replica."""
        gradients, means, levels = self._gradients(images, labels, frozen)
        if self.config.precision == "mixed_float16":
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        if not frozen:
            gradients = [
                gradient if factor == 1.0 else factor * gradient
                for factor, gradient in zip(self._gradient_factors, gradients)
            ]
        # Adds up the gradients of all replicas.
        self.optimizer.apply_gradients(zip(gradients, self._variables(frozen)))
        return means, levels

    def _variables(self, frozen: bool) -> list[tf.Variable]:
        return self._classifiers if frozen else self.trained.trainable_variables

    def _replica_gradients(
        self, images: tf.Tensor, labels: tf.Tensor, frozen: bool
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor], list[LevelStatistics]]:
        """Returns a replica's part of the gradients; with float16, of the scaled objective; and what it tells of it."""
        own_labels = own_part(labels)
        with tf.GradientTape() as tape:
            branches = self.trained.branches(own_part(images), training=not frozen)
            logits = self.trained.classify(branches) if self.trained.num_classes else {}
            losses = self._losses(labels, branches, logits)
            loss = tf.add_n(list(losses.values()))
            objective = loss + self.config.weight_decay * weight_penalty(self._kernels) + self.trained.penalty()
            objective /= self.strategy.num_replicas_in_sync
            if self.config.precision == "mixed_float16":
                objective = self.optimizer.get_scaled_loss(objective)
        gradients = tape.gradient(objective, self._variables(frozen))
        means = {"loss": loss, **{f"{name}_loss": value for name, value in losses.items()}}
        means.update({f"{name}_accuracy": _accuracy(own_labels, scores) for name, scores in logits.items()})
        return gradients, means, [level_statistics(level) for level in branches.attention]

    def _losses(self, labels: tf.Tensor, branches: Branches, logits: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns each branch's loss: of its logits, if it has any, plus of its feature as it is deployed.

        The first is the mean over the images of this replica; the second looks at those of all.
        """
        smoothing = self.config.label_smoothing
        losses = {name: [identity_loss(own_part(labels), scores, smoothing)] for name, scores in logits.items()}
        if self.triplet_loss is not None:
            for name, feature in unit_features(branches).items():
                losses.setdefault(name, []).append(self.triplet_loss(labels, whole(feature)))
        return {name: tf.add_n(terms) for name, terms in losses.items()}

    def _check_devices(self) -> None:
        """Raises UserError if the devices cannot share this run's work, or the workers are to do different things."""
        config, replicas = self.config, self.strategy.num_replicas_in_sync
        batch_size = getattr(self.sampler, "batch_size", config.batch_size)
        if batch_size % replicas:
            raise UserError(f"batches of {batch_size} images on {replicas} devices: expected a multiple of {replicas}")
        if config.xla and replicas > 1 and (config.sync_batch_norm or self.triplet_loss):
            raise UserError(
                f"--xla on {replicas} devices, expected --nosync_batch_norm and no triplet loss: it compiles what each "
                "device does by itself"
            )
        settings = {name: value for name, value in config.to_dict().items() if name not in NEUTRAL}
        listing = self.run_dir / CHECKPOINTS["last"] / "checkpoint"
        newest = listing.read_bytes().decode(errors="replace") if listing.exists() else None
        check_agreement(
            self.strategy,
            [settings, newest, self.fingerprints, len(self.labels)],
            f"flags, training images or the newest checkpoint in {self.run_dir}",
        )

    def _start_from(self, source: Path) -> dict[str, Any]:
        """Takes over the weights of another run; returns what is to be told of it."""
        run = load_run(source)
        same = self.fingerprints.get("train") == (run.config.get("fingerprints") or {}).get("train")
        if self.config.init_classifiers and not (same and self.fingerprints):
            raise UserError(
                f"--init_classifiers, but {source} was trained on other images: expected the same; without it, the "
                "classifiers start anew"
            )
        take_over(self.model, named_variables(run.model), str(source), self.config.init_classifiers)
        tqdm.write(
            f"starting from {run.checkpoint}" + ("" if self.config.init_classifiers else ", but the classifiers")
        )
        return _of_source(run)

    def _open_run_folder(self) -> None:
        check_run_folder(self.config, self.run_dir)
        found = {"num_classes": self.model.num_classes, "num_images": len(self.labels)}
        replicas = self.strategy.num_replicas_in_sync
        fingerprints = self.fingerprints
        if (self.run_dir / CONFIG).exists():
            saved = read_config(self.run_dir)
            for name, number in found.items():
                if saved.get(name) != number:
                    raise UserError(
                        f"{self.run_dir} holds a run with {name} {saved.get(name)}, the training set has {number} now; "
                        "give another --run_dir, or the same images to go on with that run"
                    )
            before = saved.get("replicas", replicas)
            if before != replicas and not self.config.sync_batch_norm:
                raise UserError(
                    f"{self.run_dir} holds a run whose batch norm saw a part of a batch on each of {before} devices, "
                    f"there are {replicas} now; give another --run_dir, or as many devices to go on with that run"
                )
            # An earlier version's run tells none.
            fingerprints = saved.get("fingerprints", fingerprints)
        same = {name: fingerprints.get(name, digits) == digits for name, digits in self.fingerprints.items()}
        if not same.get("train", True):
            raise UserError(
                f"{self.run_dir} holds a run whose training images had other names, labels or sizes; "
                "give another --run_dir, or the same images to go on with that run"
            )
        if self.checkpoints.latest is not None:
            path = self.checkpoints.restore()
            try:
                history = json.loads((self.run_dir / HISTORY).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                tqdm.write(f"warning: {self.run_dir / HISTORY} is missing or damaged; earlier epochs are not in it")
                history = []
            # What the file lacks has been trained all the same.
            lost = [{"epoch": epoch} for epoch in range(len(history) + 1, int(self.epoch) + 1)]
            self.history = history[: int(self.epoch)] + lost
            if not same.get("test", True):
                tqdm.write("note: the test images are others now; earlier evaluations are dropped")
                for row in self.history:
                    row.pop("evaluation", None)
                if self.chief:
                    write_json(self.run_dir / HISTORY, self.history)
            tqdm.write(f"going on from {path}: epoch {int(self.epoch)}, step {int(self.batch)}")
        else:
            made_with = environment.describe()
            if self.config.init_from:
                made_with["init_from"] = self._start_from(Path(self.config.init_from))
            if self.chief:
                write_json(self.run_dir / ENVIRONMENT, made_with)
        # Last, so that a kill before here leaves the fingerprints that the history fits.
        told = {**self.config.to_dict(), **found, "replicas": replicas, "fingerprints": self.fingerprints}
        if self.chief:
            write_json(self.run_dir / CONFIG, told)


def _of_source(run: LoadedRun) -> dict[str, Any]:
    """Returns what environment.json tells of the run that another one starts from, and of the one before it."""
    told = {
        name: run.config[name] for name in ("dataset", "recipe", "input_height", "input_width") if name in run.config
    }
    if is_stored(run.run_dir):
        about = read_about(run.run_dir)
        return {**told, **{name: about[name] for name in ("epochs", "commit", "init_from") if name in about}}
    try:
        history = json.loads((run.run_dir / HISTORY).read_text(encoding="utf-8"))
        before = json.loads((run.run_dir / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return told  # They are for people; the network is all there.
    told.update(epochs=len(history), commit=before.get("commit"))
    return {**told, **({"init_from": before["init_from"]} if "init_from" in before else {})}


def check_run_folder(config: TrainConfig, run_dir: Path) -> None:
    """Raises UserError if ``run_dir`` holds a run that cannot go on with the settings ``config``."""
    path = Path(run_dir) / CONFIG
    if path.exists():
        saved = read_config(run_dir)
        settings = {name: value for name, value in saved.items() if name not in OF_DATA}
        config.check_resumable(TrainConfig.from_dict(settings, str(path)), str(run_dir))


def _accuracy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    hits = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels)
    return tf.reduce_mean(tf.cast(hits, tf.float32))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Turns SIGINT, SIGTERM and SIGHUP into entries of the list it gives, for as long as the block runs."""
    caught: list[int] = []
    previous = {
        number: signal.signal(number, lambda received, _: caught.append(received))
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))  # which Windows does not have
        if number in (signal.SIGINT, signal.SIGTERM) or (number and signal.getsignal(number) != signal.SIG_IGN)  # nohup
    }
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

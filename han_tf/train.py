"""Train a Harmonious Attention Network and evaluate it.

The defaults are the paper's: SGD with momentum 0.9, learning rate 0.03, multiplied by 0.1 at three points, batches of
32, weight decay 5e-4, 300 epochs, no augmentation. The embedded synthetic set has a shorter schedule; --recipe strong
has settings for higher accuracy. An interrupted run goes on with the same command.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

from han_tf.common import cli as command_line
from han_tf.common.files import locked, write_json
from han_tf.common.run_files import METRICS
from han_tf.data import DATASETS, Record, ReIDDataset, load_dataset
from han_tf.data.records import check_training
from han_tf.models import MODELS
from han_tf.runs.folder import create_network
from han_tf.training.config import (
    LOSSES,
    MINING,
    PRECISIONS,
    RECIPES,
    STRATEGIES,
    TrainConfig,
    flag_of,
    parse_drops,
    parse_model_args,
)
from han_tf.training.schedule import drop_epochs

with command_line.deferred_imports(__name__):
    import tensorflow as tf
    from PIL import Image

    from han_tf.data.pipeline import load_images
    from han_tf.data.reading import decode_image
    from han_tf.data.synthetic.baseline import histogram_features
    from han_tf.evaluation.scoring import evaluate_features, scalars, to_json
    from han_tf.evaluation.tables import table
    from han_tf.features.archives import FeatureSet
    from han_tf.features.keras import feature_set
    from han_tf.models.network import ReIDNetwork
    from han_tf.training.devices import (
        check_precision,
        chief_first,
        create_strategy,
        is_chief,
        mean_over_workers,
        restarted_when_a_worker_is_lost,
    )
    from han_tf.training.loop import Trainer
    from han_tf.training.run_folder import check_run_folder
    from han_tf.viz.attention import attend, attention_panels, attention_sheet
    from han_tf.viz.drawing import save_png

SYNTHETIC_EPOCHS, SYNTHETIC_DROPS = 8, (3 / 4, 9 / 10, 19 / 20)
"""Epochs, and drops of the learning rate, on the embedded set: a few minutes on two cores.

The rate drops late, since in a short training only the time at the first rate counts.
"""

SHOWN_COMPLAINTS = 6
"""Number of sentences on attention that are printed at the end; metrics.json has all."""

LOCK = ".lock"
"""Lock file in the run's folder, held by the process that trains there."""

FLAGS = command_line.Flags()
_DEFAULT = TrainConfig()

FLAGS.group("data")
FLAGS.string(
    "dataset",
    _DEFAULT.dataset,
    f"Data set: {', '.join(DATASETS)}; or several, separated by commas: the people and cameras of each stay apart.",
)
FLAGS.string("split", _DEFAULT.split, "Protocol variant; its default if empty. Of several data sets one for each.")
FLAGS.string(
    "data_dir",
    _DEFAULT.data_dir,
    "Data folder; datasets/NAME if empty. Of several data sets one for each, separated by commas.",
)
FLAGS.group("run")
FLAGS.string("runs_dir", "runs", "Where runs are kept.")
FLAGS.string("run", "", "This run's folder; named after the settings if empty.")
FLAGS.old_name("run_dir", "run")
FLAGS.group("network")
FLAGS.enum("arch", _DEFAULT.model, list(MODELS), "Network (Tables 1 and 12).")
FLAGS.old_name("model", "arch")
FLAGS.integer("input_height", _DEFAULT.input_height, "Image height, pixels.", 32)
FLAGS.integer("input_width", _DEFAULT.input_width, "Image width, pixels.", 32)
FLAGS.integer("feature_dim", _DEFAULT.feature_dim, "Feature dimension (Fig. 6).", 2)
FLAGS.boolean("spatial", _DEFAULT.spatial, "Soft spatial attention (Table 9).")
FLAGS.boolean("channel", _DEFAULT.channel, "Soft channel attention (Table 9).")
FLAGS.boolean("hard", _DEFAULT.hard, "Hard attention; if not, the regions are fixed.")
FLAGS.boolean("interaction", _DEFAULT.interaction, "Interaction of the branches, eq. (8) (Table 10).")
FLAGS.list_of(
    "model_args",
    [],
    "Other arguments of the network, for example regions=6,widths=[96,192,288].",
    separator=r",(?=\s*\w+\s*=)",
)
FLAGS.group("weights to start from")
FLAGS.string("weights", _DEFAULT.weights, "ImageNet weights (.h5) that MobileNet or ResNet50 starts from.")
FLAGS.string(
    "init_from",
    _DEFAULT.init_from,
    "Fine-tuning: folder of a run, or name of a network that comes with the package, from which this network starts, "
    "all but the classifiers.",
)
FLAGS.boolean(
    "init_classifiers",
    _DEFAULT.init_classifiers,
    "Take over the classifiers, too; the training images must be the same.",
)
FLAGS.integer(
    "freeze_epochs",
    _DEFAULT.freeze_epochs,
    "Train the classifiers alone in so many of the first epochs, after --init_from.",
    0,
)
FLAGS.group("training")
FLAGS.enum(
    "recipe",
    _DEFAULT.recipe,
    list(RECIPES),
    "Settings to start from: the paper's, or those that reach more; flags that are given go before both.",
)
FLAGS.integer(
    "epochs",
    None,
    f"Passes over the training images; {_DEFAULT.epochs} if not given, {SYNTHETIC_EPOCHS} for the synthetic set.",
    1,
)
FLAGS.integer("batch_size", _DEFAULT.batch_size, "Images per step.", 2)
FLAGS.enum("loss", _DEFAULT.loss, list(LOSSES), "Loss of each branch (Table 11).")
FLAGS.enum("mining", _DEFAULT.mining, list(MINING), "Choice of triplets in a batch.")
FLAGS.real("margin", _DEFAULT.margin, "Margin of the triplet loss.", 0)
FLAGS.integer(
    "people",
    _DEFAULT.people,
    "P, people per batch with the triplet loss; times --images_per_person it is --batch_size.",
    2,
)
FLAGS.integer("images_per_person", _DEFAULT.images_per_person, "K, images of each of these people.", 2)
FLAGS.real(
    "label_smoothing",
    _DEFAULT.label_smoothing,
    "ε of the cross-entropy: the target is 1 - ε for a person, and ε shared by all.",
    0,
)
FLAGS.group("augmentation")
FLAGS.boolean("horizontal_flip", _DEFAULT.horizontal_flip, "Mirror half of the training images.")
FLAGS.boolean(
    "random_translation",
    _DEFAULT.random_translation,
    "Enlarge half of the training images by 1/8 and crop them back at a random place.",
)
FLAGS.boolean("random_erasing", _DEFAULT.random_erasing, "Fill a rectangle of half of the training images with noise.")
FLAGS.group("optimiser")
FLAGS.real("lr", _DEFAULT.lr, "Initial learning rate.", 0)
FLAGS.real("lr_decay", _DEFAULT.lr_decay, "Factor of each drop.", 0, 1)
FLAGS.string(
    "lr_drops",
    ",".join(str(Fraction(part).limit_denominator(1000)) for part in _DEFAULT.lr_drops),
    "After which parts of the epochs the learning rate drops, for example 3/4,9/10,19/20.",
)
FLAGS.real("momentum", _DEFAULT.momentum, "Momentum of SGD.", 0, 1)
FLAGS.real("weight_decay", _DEFAULT.weight_decay, "λ of λ/2·‖w‖² on the kernels.", 0)
FLAGS.real(
    "localisation_lr", _DEFAULT.localisation_lr, "Factor on the learning rate of the layers that place the regions.", 0
)
FLAGS.group("computation")
FLAGS.enum(
    "precision",
    _DEFAULT.precision,
    list(PRECISIONS),
    "What convolutions compute in; weights, features and losses are float32.",
)
FLAGS.enum(
    "strategy",
    _DEFAULT.strategy,
    list(STRATEGIES),
    "Train on one device, on all GPUs of this machine, or on all machines that TF_CONFIG tells of.",
)
FLAGS.boolean(
    "sync_batch_norm",
    _DEFAULT.sync_batch_norm,
    "Batch norm over the whole batch where several devices share it, not over the part of each.",
)
FLAGS.boolean("xla", _DEFAULT.xla, "Compile the training step with XLA.")
FLAGS.integer("seed", _DEFAULT.seed, "Seed of the weights and of the images' order.", 0, 2**32 - 1)
FLAGS.group("checkpoints and evaluations")
FLAGS.integer("eval_every", _DEFAULT.eval_every, "Epochs between evaluations; 0: six of them.", 0)
FLAGS.integer("keep_checkpoints", _DEFAULT.keep_checkpoints, "Newest checkpoints kept.", 1)
FLAGS.integer("panel_images", _DEFAULT.panel_images, "Images whose attention TensorBoard shows.", 0)
FLAGS.group("data")
FLAGS.integer("cache_mb", _DEFAULT.cache_mb, "Largest decoded training set kept in memory, MiB.", 0)
FLAGS.boolean("skip_bad_images", _DEFAULT.skip_bad_images, "Leave out unreadable images instead of stopping.")


def config_of(values: command_line.Flags) -> TrainConfig:
    """Returns the settings of the flags; those that are not given take the values of ``--recipe``."""
    recipe = values.recipe
    settings = {
        field.name: values[flag_of(field.name)].value
        for field in dataclasses.fields(TrainConfig)
        if field.name not in RECIPES[recipe] or values[flag_of(field.name)].present
    }
    if "lr_drops" in settings:
        settings["lr_drops"] = parse_drops(settings["lr_drops"])
    settings["model_args"] = parse_model_args(settings["model_args"])
    if settings["epochs"] is None:
        synthetic = settings["dataset"] == "synthetic"
        settings["epochs"] = SYNTHETIC_EPOCHS if synthetic else _DEFAULT.epochs
        if synthetic and not values["lr_drops"].present:
            settings["lr_drops"] = SYNTHETIC_DROPS
    del settings["recipe"]
    return TrainConfig.of_recipe(recipe, **settings)


def evaluate_network(
    model: ReIDNetwork, dataset: ReIDDataset, skip_bad_images: bool, whole: bool = True
) -> dict[str, Any]:
    """Returns the report on ``model``, with the joint feature and each branch's.

    Joined data sets are evaluated separately: the report is on the first, its entry ``others`` holds those on the
    others. Unless ``whole``, multi-query and the other data sets, which take most of the time, are left out.
    """
    first, *others = dataset.separate()
    left_out = ("train",) if whole else ("train", "multi_query")
    subsets = {name: records for name, records in first.subsets().items() if name not in left_out}
    features = (
        feature_set(model, records, skip_bad_images=skip_bad_images, progress=None) for records in subsets.values()
    )
    report = to_json(evaluate_features(*features, branches=model.branch_names), curves=False)
    if whole and others:
        report["others"] = [{**_described(part), **evaluate_network(model, part, skip_bad_images)} for part in others]
    return report


def baseline_rows(config: TrainConfig, dataset: ReIDDataset) -> list[dict[str, Any]]:
    """Returns rows of a colour histogram and of the untrained network, to show how hard a data set is."""
    untrained = create_network(config.to_dict())
    baselines = {
        "colour histogram": lambda records: FeatureSet.of(histogram_features(_opened(records)), records),
        "untrained": lambda records: feature_set(untrained, records, progress=None),
    }
    rows = []
    for name, features_of in baselines.items():
        results = evaluate_features(features_of(dataset.query), features_of(dataset.gallery))
        rows += [{**row, "feature": name} for row in to_json(results, curves=False)["results"]]
    return rows


def main(values: command_line.Flags) -> None:
    """Trains as the flags say."""
    config = config_of(values)
    dataset = load_dataset(config.dataset, config.data_dir or None, config.split)
    config = dataclasses.replace(config, dataset=dataset.name, split=dataset.split)
    for part in dataset.separate():
        check_training(part)
        for sentence in part.notes + part.differences:
            print(f"note: {part.name}: {sentence}")
    if RECIPES[config.recipe]:
        told = ", ".join(f"--{name} {getattr(config, name)}" for name in RECIPES[config.recipe])
        print(f"recipe {config.recipe}: {told}")
    if (config.epochs, config.lr_drops) != (_DEFAULT.epochs, _DEFAULT.lr_drops):
        drops = ", ".join(map(str, drop_epochs(config.epochs, config.lr_drops))) or "no epoch"
        print(f"schedule: {config.epochs} epochs; lr drops after {drops} (the paper: 300, after 100, 200, 250)")
    run_dir = Path(values.run or Path(values.runs_dir) / config.run_name())
    check_run_folder(config, run_dir)
    taken = f"another process trains in {run_dir}, expected one at a time; give another --run"
    with restarted_when_a_worker_is_lost(config.strategy):
        strategy = create_strategy(config.strategy)
        check_precision(config.precision)
        with locked(run_dir / LOCK, taken) if is_chief(strategy) else nullcontext():
            train(config, dataset, run_dir, strategy)
            mean_over_workers(strategy, 0)  # a worker must not leave earlier: the others would consider it lost


def train(config: TrainConfig, dataset: ReIDDataset, run_dir: Path, strategy: tf.distribute.Strategy) -> None:
    """Trains in the folder ``run_dir``, evaluates and reports; of several workers only the chief reports."""
    with chief_first(strategy):  # the others use its cache
        data = load_images(
            dataset.train,
            config.input_size,
            cache_dir=run_dir / "cache",
            memory_mb=config.cache_mb,
            skip_bad_images=config.skip_bad_images,
            progress="training images",
        )
    shown = dataset.query[:: max(1, len(dataset.query) // max(1, config.panel_images))][: config.panel_images]
    panel = load_images(shown, config.input_size, skip_bad_images=config.skip_bad_images).images if shown else None
    trainer = Trainer(
        config,
        run_dir,
        data,
        # Multi-query and further data sets, which take most of the time, are evaluated only at the end.
        evaluate=lambda model: evaluate_network(model, dataset, config.skip_bad_images, trainer.finished),
        scalars=scalars,
        panel=None if panel is None else lambda model: attention_panels(model, panel),
        fingerprints={
            "train": dataset.fingerprint("train"),
            "test": dataset.fingerprint("query", "gallery", "multi_query"),
        },
        strategy=strategy,
    )
    print(f"run: {run_dir}: {config.model}, {len(data.records)} images of {len(trainer.pids)} people")
    trainer.run()
    if not trainer.chief:
        return

    last = trainer.history[-1]
    report = {
        **_described(dataset.separate()[0]),
        "trained_on": {"dataset": dataset.name, "split": dataset.split},
        "model": config.model,
        "epochs": config.epochs,
        **last["evaluation"],
        "attention": last.get("attention", {"complaints": []}),
    }
    if dataset.name == "synthetic":
        report["results"] += baseline_rows(config, dataset)
    write_json(run_dir / METRICS, report)
    for tested in (report, *report.get("others", ())):
        print(f"\n{config.model} on {tested['dataset']} {tested['split']}".rstrip() + f", {config.epochs} epochs:")
        print(table(tested))
    complaints = report["attention"]["complaints"]
    for complaint in complaints[:SHOWN_COMPLAINTS]:
        print(f"warning: {complaint}")
    if len(complaints) > SHOWN_COMPLAINTS:
        print(f"warning: {len(complaints) - SHOWN_COMPLAINTS} more sentences on attention, see {METRICS}")
    levels = () if panel is None else attend(trainer.model, panel)
    if levels:
        save_png(run_dir / "attention.png", attention_sheet(panel, levels))
        print(f"attention: {run_dir / 'attention.png'} (make tensorboard shows it over training)")
    print(f"numbers: {run_dir / METRICS}")


def _described(dataset: ReIDDataset) -> dict[str, Any]:
    """Returns a report's entries on its data set."""
    return {"dataset": dataset.name, "split": dataset.split, "differences": list(dataset.differences)}


def _opened(records: Sequence[Record]) -> Iterator[Image.Image]:
    for record in records:
        yield Image.fromarray(decode_image(record.path))


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))

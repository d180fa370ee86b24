"""Train a Harmonious Attention Network and evaluate it.

The defaults are the paper's: SGD with momentum 0.9, learning rate 0.03, multiplied by 0.1 at three points, batches of
32, weight decay 5e-4, 300 epochs, no augmentation; but the layers that place the regions learn at --localisation_lr
times the rate. The embedded synthetic set has a shorter schedule; --recipe strong has settings for higher accuracy.
The same command resumes an interrupted run.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import exists, locked, write_json
from han_tf.common.run_files import CONFIG, METRICS
from han_tf.data import ReIDDataset, load_dataset, only_tested
from han_tf.data.records import check_training
from han_tf.runs import environment
from han_tf.runs.folder import create_network, read_config
from han_tf.training.config import RECIPES, TITLES, TRIPLET, TrainConfig, flag_of, parse_drops, parse_model_args
from han_tf.training.schedule import drop_epochs

with command_line.deferred_imports(__name__):
    import tensorflow as tf
    from PIL import Image

    from han_tf.data.pipeline import load_images
    from han_tf.data.reading import decode_image
    from han_tf.data.synthetic.baseline import histogram_features
    from han_tf.evaluation.scoring import evaluate_features, scalars, to_json
    from han_tf.evaluation.tables import table
    from han_tf.features.keras import feature_set
    from han_tf.models.network import ReIDNetwork
    from han_tf.runs.checkpoints import check_folder
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


def _define(setting: dataclasses.Field) -> None:
    """Adds the flag of a setting."""
    name, default, told = flag_of(setting.name), setting.default, setting.metadata
    if name == "epochs":
        others = f"; {default} if not given, {SYNTHETIC_EPOCHS} for the synthetic set."
        FLAGS.integer(name, None, told["help"].replace(".", others), told["lower"])
    elif name == "lr_drops":
        FLAGS.string(name, ",".join(str(Fraction(part).limit_denominator(1000)) for part in default), told["help"])
    elif name == "model_args":
        FLAGS.list_of(name, [], told["help"], separator=r",(?=\s*\w+\s*=)")
    elif told["choices"]:
        FLAGS.enum(name, default, list(told["choices"]), told["help"])
    elif setting.type in (int, float):
        number = FLAGS.integer if setting.type is int else FLAGS.real
        number(name, default, told["help"], told["lower"], told["upper"])
    else:
        (FLAGS.boolean if setting.type is bool else FLAGS.string)(name, default, told["help"])


FLAGS.group("run")
FLAGS.string("runs_dir", "runs", "Where runs are kept.")
FLAGS.string("run", "", "This run's folder; named after the settings if empty.")
FLAGS.old_name("run_dir", "run")
for _title in TITLES:
    FLAGS.group(_title)
    for _field in dataclasses.fields(TrainConfig):
        if _field.metadata["title"] == _title:
            _define(_field)
FLAGS.old_name("model", "arch")


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
    synthetic = settings["dataset"] == "synthetic"
    if settings["epochs"] is None:
        settings["epochs"] = SYNTHETIC_EPOCHS if synthetic else _DEFAULT.epochs
    if synthetic and not values["lr_drops"].present:
        settings["lr_drops"] = SYNTHETIC_DROPS
    del settings["recipe"]
    return TrainConfig.of_recipe(recipe, **settings)


def faster_in_bfloat16(config: TrainConfig) -> bool:
    """Returns whether bfloat16 would make a training in float32 faster on this machine's processor."""
    on_cpu = not tf.config.list_physical_devices("GPU")
    return config.precision == "float32" and on_cpu and environment.faster_in_bfloat16()


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
    network = create_network(config.to_dict())
    untrained = [
        feature_set(network, records, skip_bad_images=config.skip_bad_images, progress=None)
        for records in (dataset.query, dataset.gallery)
    ]
    histograms = [found._replace(features=histogram_features(_opened(found.paths))) for found in untrained]
    rows = []
    for name, features in (("colour histogram", histograms), ("untrained", untrained)):
        results = evaluate_features(*features)
        rows += [{**row, "feature": name} for row in to_json(results, curves=False)["results"]]
    return rows


def check_network(config: TrainConfig, dataset: ReIDDataset) -> None:
    """Raises UserError if the settings of a new training do not fit its network, its start or its people.

    The training would find this, too, but only after all images have been decoded.
    """
    people = len({record.pid for record in dataset.train})
    if TRIPLET in config.loss and config.people > people:
        raise UserError(f"--people {config.people}, expected at most {people}, as many as are to train on")
    if config.init_from:
        read_config(config.init_from)
    if config.model_args or config.weights:
        create_network(config.to_dict(), weights=config.weights)


def main(values: command_line.Flags) -> None:
    """Trains as the flags say."""
    config = config_of(values)
    if tested := only_tested(config.dataset):
        raise UserError(f"--dataset {tested[0]} is for evaluation only, expected a data set with training images")
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
        within = dict.fromkeys(epoch for epoch in drop_epochs(config.epochs, config.lr_drops) if epoch < config.epochs)
        drops = ", ".join(map(str, within)) or "no epoch"
        print(f"schedule: {config.epochs} epochs; lr drops after {drops} (the paper: 300, after 100, 200, 250)")
    run_dir = Path(values.run or Path(values.runs_dir) / config.run_name())
    check_folder(run_dir)
    check_run_folder(config, run_dir)
    taken = f"another process trains in {run_dir}, expected one at a time; give another --run"
    with restarted_when_a_worker_is_lost(config.strategy):
        strategy = create_strategy(config.strategy)
        check_precision(config.precision)
        if not exists(run_dir / CONFIG):
            if faster_in_bfloat16(config):
                print("hint: --precision mixed_bfloat16 trains faster on this processor (han_tf.bench measures both)")
            check_network(config, dataset)
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
    panel = None
    try:
        panel = load_images(shown, config.input_size, skip_bad_images=config.skip_bad_images).images if shown else None
    except UserError as error:
        if not config.skip_bad_images:
            raise
        print(f"note: no attention is drawn: {error}")
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
        print(f"warning: {len(complaints) - SHOWN_COMPLAINTS} more warnings on attention, see {METRICS}")
    levels = () if panel is None else attend(trainer.model, panel)
    if levels:
        save_png(run_dir / "attention.png", attention_sheet(panel, levels))
        print(f"attention: {run_dir / 'attention.png'} (make tensorboard shows it over training)")
    print(f"numbers: {run_dir / METRICS}")


def _described(dataset: ReIDDataset) -> dict[str, Any]:
    """Returns a report's entries on its data set."""
    return {"dataset": dataset.name, "split": dataset.split, "differences": list(dataset.differences)}


def _opened(paths: Iterable[str]) -> Iterator[Image.Image]:
    for path in paths:
        yield Image.fromarray(decode_image(str(path)))


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, check=config_of))

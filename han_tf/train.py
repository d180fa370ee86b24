"""Train a Harmonious Attention Network and evaluate it.

The defaults are the paper's: SGD with momentum 0.9, learning rate 0.03 dropping by 0.1 at three points,
batches of 32, weight decay 5e-4, 300 epochs, no augmentation; only the embedded synthetic set has a shorter
schedule. An interrupted run goes on with the same command.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags

from han_tf import cli as command_line
from han_tf.data import DATASETS, load_dataset
from han_tf.data.pipeline import load_images
from han_tf.errors import UserError
from han_tf.models import MODELS
from han_tf.training.config import TrainConfig
from han_tf.training.loop import Interrupted, Trainer

SYNTHETIC_EPOCHS = 12
"""Enough for the embedded set to show what HAN does within a few minutes on two cores."""

FLAGS = command_line.new_flags()
_DEFAULT = TrainConfig()

flags.DEFINE_string("dataset", _DEFAULT.dataset, f"Data set: {', '.join(DATASETS)}.", flag_values=FLAGS)
flags.DEFINE_string("split", _DEFAULT.split, "Protocol variant; its default if empty.", flag_values=FLAGS)
flags.DEFINE_string("data_dir", _DEFAULT.data_dir, "Data folder; datasets/NAME if empty.", flag_values=FLAGS)
flags.DEFINE_string("runs_dir", "runs", "Where runs are kept.", flag_values=FLAGS)
flags.DEFINE_string("run_dir", "", "This run's folder; named after the settings if empty.", flag_values=FLAGS)
flags.DEFINE_enum("model", _DEFAULT.model, list(MODELS), "Network (Table 1).", flag_values=FLAGS)
flags.DEFINE_integer("input_height", _DEFAULT.input_height, "Image height, pixels.", 32, flag_values=FLAGS)
flags.DEFINE_integer("input_width", _DEFAULT.input_width, "Image width, pixels.", 32, flag_values=FLAGS)
flags.DEFINE_integer("feature_dim", _DEFAULT.feature_dim, "Feature dimension (Fig. 6).", 2, flag_values=FLAGS)
flags.DEFINE_integer(
    "epochs",
    None,
    f"Passes over the training images; {_DEFAULT.epochs} if not given, {SYNTHETIC_EPOCHS} for the synthetic set.",
    1,
    flag_values=FLAGS,
)
flags.DEFINE_integer("batch_size", _DEFAULT.batch_size, "Images per step.", 2, flag_values=FLAGS)
flags.DEFINE_float("lr", _DEFAULT.lr, "Initial learning rate.", 0, flag_values=FLAGS)
flags.DEFINE_float("lr_decay", _DEFAULT.lr_decay, "Factor of each of the three drops.", 0, 1, flag_values=FLAGS)
flags.DEFINE_float("momentum", _DEFAULT.momentum, "Momentum of SGD.", 0, 1, flag_values=FLAGS)
flags.DEFINE_float("weight_decay", _DEFAULT.weight_decay, "λ of λ/2·‖w‖² on the kernels.", 0, flag_values=FLAGS)
flags.DEFINE_float(
    "localisation_lr",
    _DEFAULT.localisation_lr,
    "Factor on the learning rate of the layers that place the regions.",
    0,
    flag_values=FLAGS,
)
flags.DEFINE_integer("seed", _DEFAULT.seed, "Seed of the weights and of the images' order.", 0, flag_values=FLAGS)
flags.DEFINE_integer(
    "eval_every", _DEFAULT.eval_every, "Epochs between evaluations; 0: at the end only.", 0, flag_values=FLAGS
)
flags.DEFINE_integer("keep_checkpoints", _DEFAULT.keep_checkpoints, "Newest checkpoints kept.", 1, flag_values=FLAGS)
flags.DEFINE_integer(
    "panel_images", _DEFAULT.panel_images, "Images whose attention TensorBoard shows.", 0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "cache_mb", _DEFAULT.cache_mb, "Largest decoded training set kept in memory, MiB.", 0, flag_values=FLAGS
)
flags.DEFINE_boolean(
    "skip_bad_images", _DEFAULT.skip_bad_images, "Leave out unreadable images instead of stopping.", flag_values=FLAGS
)


def config_of(values: flags.FlagValues) -> TrainConfig:
    """Returns the settings that the flags say."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    settings = {name: values[name].value for name in names}
    if settings["epochs"] is None:
        settings["epochs"] = SYNTHETIC_EPOCHS if settings["dataset"] == "synthetic" else _DEFAULT.epochs
    settings["split"] = settings["split"] or DATASETS[settings["dataset"]].splits[0]
    return TrainConfig(**settings)


def main(values: flags.FlagValues) -> None:
    """Trains as the flags say."""
    config = config_of(values)
    run_dir = Path(values.run_dir or Path(values.runs_dir) / config.run_name())
    dataset = load_dataset(config.dataset, config.data_dir or None, config.split)
    for sentence in dataset.notes + dataset.differences:
        print(f"note: {dataset.name}: {sentence}")
    data = load_images(
        dataset.train,
        config.input_size,
        cache_dir=run_dir / "cache",
        memory_mb=config.cache_mb,
        skip_bad_images=config.skip_bad_images,
        progress="training images",
    )
    trainer = Trainer(config, run_dir, data)
    try:
        trainer.run()
    except Interrupted as interruption:
        raise UserError(str(interruption)) from interruption


def cli() -> None:
    """Runs the command line."""
    sys.exit(command_line.run(main, FLAGS, __doc__))


if __name__ == "__main__":
    cli()

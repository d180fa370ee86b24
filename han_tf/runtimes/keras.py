"""Runs the network of a training run with TensorFlow."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from han_tf import __version__
from han_tf.common.errors import UserError
from han_tf.models import switched_off
from han_tf.models.costs import part_costs, total
from han_tf.models.network import ReIDNetwork, inference_function
from han_tf.runs.card import ModelCard, licence_of
from han_tf.runs.folder import CHECKPOINTS, LoadedRun, load_run, origin_of, trained_on
from han_tf.runtimes import KERAS, Runtime, limit_tensorflow
from han_tf.weights import accuracy, is_stored

VALUE = ".ATTRIBUTES/VARIABLE_VALUE"
"""What TensorFlow's checkpoints append to the name of a variable."""

UNSEEN_ARGUMENTS = ("region_scale", "strides")
"""Arguments of networks that change the features but not the number, order and shapes of the weights."""

SCHEDULE = ("epochs", "batch_size", "loss", "lr", "seed")


def runtime_of(model: ReIDNetwork) -> Runtime:
    """Returns a network of ours, run by TensorFlow."""
    embed = inference_function(model).get_concrete_function()  # traced here, so that no two threads trace it
    return lambda images: embed(tf.constant(images)).numpy()


def open_run(folder: Path, threads: Optional[int]) -> tuple[ModelCard, Runtime]:
    """Opens a training run's folder, see :func:`han_tf.runtimes.open_runtime`."""
    limit_tensorflow(threads)
    run = load_run(folder)
    return card_of(run), runtime_of(run.model)


def card_of(run: LoadedRun) -> ModelCard:
    """Returns the card of a run's network."""
    config, model = run.config, run.model
    epochs_done = _epochs_done(run)
    schedule = {name: config[name] for name in SCHEDULE if name in config}
    if epochs_done is not None:
        schedule = {"epochs_done": epochs_done, **schedule}
    finished = epochs_done is not None and epochs_done == config.get("epochs")
    return ModelCard(
        format=KERAS,
        precision="float32",
        checksum=network_checksum(model, config),
        model=config["model"],
        input_size=tuple(model.input_size),
        feature_dim=model.feature_dim,
        branch_names=tuple(model.branch_names),
        dataset=config["dataset"],
        split=config["split"],
        licence=licence_of(*trained_on(run)),
        schedule=schedule,
        accuracy=accuracy(run.run_dir) if finished else None,
        flops=_flops(model),
        han_tf_version=__version__,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def network_checksum(model: ReIDNetwork, settings: Mapping[str, Any]) -> str:
    """Returns the hex SHA-256 of the weights without classifiers and of the settings that shape the network.

    Features of networks with the same checksum can be compared.

    Args:
      model: the network, as it was trained.
      settings: those of the run.
    """
    shape = {name: settings[name] for name in ("model", "input_height", "input_width", "feature_dim")}
    shape.update(switched_off(settings))
    # Only those that are given, so that checksums of networks without stay what they were.
    given = settings.get("model_args", {})
    shape.update({name: given[name] for name in UNSEEN_ARGUMENTS if name in given})
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    classifiers = [getattr(model, f"{name}_classifier", None) for name in model.branch_names]
    left_out = {id(weight) for layer in classifiers if layer is not None for weight in layer.weights}
    for weight in model.weights:
        if id(weight) not in left_out:
            digest.update(f"{weight.dtype.name}{list(weight.shape)}".encode())
            digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()


def _flops(model: ReIDNetwork) -> int:
    """Returns the operations of a network's deployed form as the paper counts them."""
    with contextlib.suppress(UserError):  # it still condenses
        model = model.deployed()
    return total(part_costs(model, model.parts(), model.input_size)).paper_flops


def _epochs_done(run: LoadedRun) -> Optional[int]:
    """Returns after how many whole epochs the network was saved; None if it is not known.

    A checkpoint's name ends with its number of steps. The last checkpoint also counts epochs and batches, which gives
    the number of steps per epoch.
    """
    if is_stored(run.run_dir):
        return origin_of(run.run_dir).get("epochs")
    try:
        last = tf.train.latest_checkpoint(str(run.run_dir / CHECKPOINTS["last"]))
        reader = tf.train.load_checkpoint(last)
        epochs, batches = (int(reader.get_tensor(f"{name}/{VALUE}")) for name in ("epoch", "batch"))
        if not epochs:
            return 0
        return int(_steps(run.checkpoint) * epochs // (_steps(last) - batches))
    except (tf.errors.OpError, ValueError, TypeError):
        return None


def _steps(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])

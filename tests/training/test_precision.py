"""Mixed precision and XLA: dtypes, results, and resumed runs."""

import signal

import numpy as np
import pytest
import tensorflow as tf

from han_tf.common.errors import Stopped, UserError
from han_tf.data import load_dataset
from han_tf.data.pipeline import load_images
from han_tf.layers.norm import batch_norm
from han_tf.models import MODELS, create_model
from han_tf.runs.folder import load_run
from han_tf.training.config import TrainConfig
from han_tf.training.devices import computing
from han_tf.training.loop import Trainer
from han_tf.training.step import Step

SETTINGS = {"dataset": "market1501", "input_height": 48, "input_width": 32, "batch_size": 16, "lr": 0.005}


@pytest.fixture(scope="module")
def data(tiny_data):
    return load_images(load_dataset("market1501", tiny_data).train, (48, 32))


def trainer(run_dir, data, **changes):
    return Trainer(TrainConfig(**{**SETTINGS, "epochs": 2, **changes}), run_dir, data)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_step_is_that_of_float32_with_fewer_digits(data, tmp_path, monkeypatch, precision):
    # Without a graph, which would take longer to build than one step.
    monkeypatch.setattr(Step, "take", Step.take.python_function)
    images, labels = data.images[:16], None
    moved, losses = {}, {}
    for name in ("float32", precision):
        made = trainer(tmp_path / name, data, precision=name, model_args={"widths": [16]}, localisation_lr=1.0)
        labels = tf.constant(made.labels[:16], tf.int32)
        before = made.trained.get_weights()
        losses[name] = {key: float(value) for key, value in made.train_step(images, labels)[0].items()}
        steps = [after - weights for after, weights in zip(made.trained.get_weights(), before)]
        moved[name] = np.concatenate([step.ravel() for step in steps])
    for name in ("loss", "global_loss", "local_loss"):
        assert losses[precision][name] == pytest.approx(losses["float32"][name], rel=0.02)
        assert losses[precision][name] != losses["float32"][name]
    cosine = moved[precision] @ moved["float32"] / np.prod([np.linalg.norm(step) for step in moved.values()])
    assert cosine > 0.95

    branches = made.trained.branches(images)
    short = tf.as_dtype(precision.removeprefix("mixed_"))
    (level,) = branches.attention
    assert (level.theta.dtype, level.boxes.dtype, level.soft.dtype) == (tf.float32, tf.float32, short)
    assert {feature.dtype for feature in branches.features.values()} == {tf.float32}
    assert {scores.dtype for scores in made.trained.classify(branches).values()} == {tf.float32}
    assert {variable.dtype for variable in made.trained.trainable_variables} == {tf.float32}
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    assert made.model(images).dtype == tf.float32


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith(("han_medium", "han_large"))])
def test_every_network_computes_in_bfloat16(name):
    with computing("mixed_bfloat16", synchronised=True):
        narrow = {"widths": (16, 16)} if name.startswith("han") else {}
        model = create_model(name, num_classes=3, input_size=(48, 32), **narrow)
    norms = [layer for layer in model.submodules if isinstance(layer, tf.keras.layers.BatchNormalization)]
    assert norms
    assert all(layer.synchronized for layer in norms)
    assert {feature.dtype for feature in model.branches(np.zeros((2, 48, 32, 3), np.uint8)).features.values()} == {
        tf.float32
    }


@pytest.mark.parametrize("name", ["han_small", "mobilenet", "resnet50", "shufflenet", "condensenet"])
def test_convolutions_are_those_with_fast_gradients(name):
    model = create_model(name, num_classes=3, input_size=(48, 32))
    kinds = {layer.__class__ for layer in model.submodules if isinstance(layer, tf.keras.layers.Conv2D)}
    assert not kinds & {tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D}


def stop_in_the_second_epoch(made):
    """Trains ``made`` until a signal stops it, one step into its second epoch."""
    step = made.train_step

    def stopping(*batch):
        if made.global_step == made.steps_per_epoch + 1:
            signal.raise_signal(signal.SIGTERM)
        return step(*batch)

    made.train_step = stopping
    with pytest.raises(Stopped):
        made.run()


@pytest.mark.parametrize("computation", [{"precision": "mixed_float16"}, {"xla": True}], ids=["float16", "xla"])
def test_a_stopped_run_goes_on_to_the_same_weights(data, tmp_path, monkeypatch, colours, computation):
    """In float16 the checkpoint also holds the scale of the objective."""
    if "precision" in computation:  # without a graph: on some processors TensorFlow crashes in graphs of float16
        monkeypatch.setattr(Step, "take", Step.take.python_function)
    settings = {"model": colours, "lr": 0.001, **computation}
    whole = trainer(tmp_path / "whole", data, **settings)
    whole.run()
    stop_in_the_second_epoch(trainer(tmp_path / "halved", data, **settings))
    resumed = trainer(tmp_path / "halved", data, **settings)
    assert resumed.global_step == resumed.steps_per_epoch + 2
    if "precision" in computation:
        assert int(resumed.optimizer.dynamic_counter) == resumed.global_step
    resumed.run()
    for ours, theirs in zip(resumed.model.get_weights(), whole.model.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    images = data.images[:3]
    np.testing.assert_array_equal(load_run(tmp_path / "halved").model(images), whole.model(images))


def test_a_run_goes_on_in_its_precision_only(data, tmp_path, colours):
    trainer(tmp_path, data, model=colours, precision="mixed_float16")
    with pytest.raises(UserError, match="holds a run with --precision mixed_float16, this command has float32"):
        trainer(tmp_path, data, model=colours)


def test_xla_changes_the_last_digits_alone(data, tmp_path, colours):
    rows = {}
    for xla in (False, True):
        made = trainer(tmp_path / str(xla), data, model=colours, epochs=1, lr=0.001, xla=xla)
        made.run()
        rows[xla] = made.history[0]["loss"]
    assert rows[True] == pytest.approx(rows[False], rel=1e-5)


def test_batch_norm_of_all_devices_adds_up_in_float32():
    """The sums would be wrong in bfloat16: the mean is far from 0, and the pixels are too many to count."""
    images = tf.cast(100 + 4 * np.random.default_rng(0).normal(size=(2, 32, 32, 3)), tf.bfloat16)
    with computing("mixed_bfloat16", synchronised=True):
        norm = batch_norm()
    found = norm(images, training=True)
    assert found.dtype == tf.bfloat16
    images = tf.cast(images, tf.float32).numpy()
    expected = (images - images.mean((0, 1, 2))) / np.sqrt(images.var((0, 1, 2)) + norm.epsilon)
    np.testing.assert_allclose(tf.cast(found, tf.float32), expected, atol=0.03)

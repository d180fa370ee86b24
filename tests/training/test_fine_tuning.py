"""Starting from another network: the weights taken over, the frozen epochs, and resuming."""

import json
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

from han_tf import weights
from han_tf.common.errors import Stopped, UserError
from han_tf.data import load_dataset
from han_tf.data.pipeline import LoadedImages, load_images
from han_tf.models import create_model
from han_tf.models.transfer import named_variables, take_over
from han_tf.runs.folder import create_network, load_run
from han_tf.training.config import TrainConfig
from han_tf.training.loop import Trainer
from han_tf.weights import HERE, read_arrays

SIZE = {"input_height": 48, "input_width": 32}
FINGERPRINTS = {"train": "a", "test": "b"}


@pytest.fixture(scope="module")
def data(tiny_data):
    return load_images(load_dataset("market1501", tiny_data).train, (48, 32))


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """A run of one epoch on all people."""
    run_dir = tmp_path_factory.mktemp("source")
    Trainer(config(epochs=1), run_dir, data, fingerprints=FINGERPRINTS).run()
    return run_dir


def config(**changes):
    """Returns settings; unless ``changes`` say otherwise, of a HAN of one level, whose graph is built fast."""
    network = {} if "model" in changes else {"model_args": {"widths": [16]}}
    settings = {"dataset": "market1501", "epochs": 2, "batch_size": 16, "lr": 0.01, **SIZE, **network, **changes}
    return TrainConfig(**settings)


def fewer_people(data):
    pids = sorted({record.pid for record in data.records})[:5]
    kept = [index for index, record in enumerate(data.records) if record.pid in pids]
    return LoadedImages(data.images[kept], tuple(data.records[index] for index in kept))


def values(model, **options):
    return {name: variable.numpy() for name, variable in named_variables(model, **options).items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_names_are_those_of_checkpoints(source):
    reader = tf.train.load_checkpoint(str(tf.train.latest_checkpoint(str(source / "checkpoints"))))
    prefix, suffix = "model/", "/.ATTRIBUTES/VARIABLE_VALUE"
    saved = {name[len(prefix) : -len(suffix)] for name in reader.get_variable_to_shape_map() if name.startswith(prefix)}
    model = load_run(source).model
    assert set(named_variables(model)) == saved
    assert len(named_variables(model)) == len(model.variables)
    without = set(named_variables(model, classifiers=False))
    assert saved - without == {"global_classifier/kernel", "local_classifier/kernel"}


def test_all_but_the_classifiers_come_for_other_people_and_another_size(data, source, tmp_path):
    resized = LoadedImages(np.repeat(fewer_people(data).images, 2, axis=1), fewer_people(data).records)
    settings = config(init_from=str(source), input_height=96)
    trainer = Trainer(settings, tmp_path / "run", resized, fingerprints={"train": "c"})
    run = load_run(source)
    assert_same(values(trainer.model, classifiers=False), values(run.model, classifiers=False))
    assert trainer.model.num_classes == 5
    told = json.loads((tmp_path / "run" / "environment.json").read_text())["init_from"]
    assert told["epochs"] == 1
    assert (told["model"], told["dataset"], told["input_height"]) == ("han_small", "market1501", 48)


def test_a_network_of_the_package_is_named(data, tmp_path):
    name = "han_small-synthetic"
    trainer = Trainer(config(init_from=name, model_args={}), tmp_path / "run", data)
    stored = read_arrays(HERE / name)
    for found, variable in named_variables(trainer.model, classifiers=False).items():
        np.testing.assert_array_equal(variable, stored[found], err_msg=found)
    told = json.loads((tmp_path / "run" / "environment.json").read_text())["init_from"]
    assert (told["model"], told["dataset"], told["epochs"]) == ("han_small", "synthetic", 8)


def test_weights_are_read_once(data, tmp_path, monkeypatch):
    """The checkpoint holds all; the file may be gone when the training goes on."""
    monkeypatch.setattr(weights, "HERE", tmp_path)
    stored = tmp_path / "han_small-mine"
    settings = config()
    network = create_network(settings.to_dict())
    weights.write_arrays(stored, values(network), {}, {})
    begun = Trainer(config(weights="mine"), tmp_path / "run", data)
    expected = {name: weights.compact(value) for name, value in values(network).items()}
    assert_same(values(begun.model, classifiers=False), {name: np.float32(v) for name, v in expected.items()})
    begun.folder.save(0)
    shutil.rmtree(stored)
    resumed = Trainer(config(weights="mine"), tmp_path / "run", data)
    assert_same(values(resumed.model), values(begun.model))
    with pytest.raises(UserError, match="has no weights 'mine'"):
        Trainer(config(weights="mine"), tmp_path / "new", data)


def test_classifiers_come_for_the_same_images_alone(data, source, tmp_path):
    settings = config(init_from=str(source), init_classifiers=True)
    trainer = Trainer(settings, tmp_path / "same", data, fingerprints=FINGERPRINTS)
    assert_same(values(trainer.model), values(load_run(source).model))
    for fingerprints in ({"train": "c"}, {}):
        with pytest.raises(UserError, match="was trained on other images: expected the same"):
            Trainer(settings, tmp_path / "other", data, fingerprints=fingerprints)


def test_the_classifiers_learn_first_and_stopping_changes_nothing(data, tmp_path, colours):
    source = tmp_path / "source"
    Trainer(config(model=colours, epochs=1), source, data).run()
    settings = config(model=colours, init_from=str(source), freeze_epochs=1)
    other = fewer_people(data)

    def stopping_after(steps, run_dir):
        trainer = Trainer(settings, run_dir, other)
        step = trainer.train_step

        def stopping(*batch):
            if trainer.global_step + 1 == steps:
                signal.raise_signal(signal.SIGTERM)
            return step(*batch)

        trainer.train_step = stopping
        with pytest.raises(Stopped):
            trainer.run()
        return trainer

    trainer = stopping_after(Trainer(settings, tmp_path / "steps", other).steps_per_epoch, tmp_path / "run")
    body = values(load_run(source).model, classifiers=False)
    assert_same(values(trainer.model, classifiers=False), body)  # batch norm's statistics included
    resumed = stopping_after(trainer.steps_per_epoch + 1, tmp_path / "run")
    assert any((value != body[name]).any() for name, value in values(resumed.model, classifiers=False).items())
    last = Trainer(settings, tmp_path / "run", other)
    last.run()
    whole = Trainer(settings, tmp_path / "whole", other)
    untrained = values(whole.model)["global_classifier/kernel"]
    assert (values(trainer.model)["global_classifier/kernel"] != untrained).any()
    whole.run()
    assert_same(values(last.model), values(whole.model))


def test_another_network_is_refused(data, source, tmp_path):
    with pytest.raises(UserError, match=r"weights .* have shape .*, expected .* as in this network"):
        Trainer(config(init_from=str(source), feature_dim=512), tmp_path / "run", data)
    with pytest.raises(UserError, match="no such folder, expected that of a training run"):
        Trainer(config(init_from=str(tmp_path / "nowhere")), tmp_path / "run", data)
    with pytest.raises(UserError, match=r"no weights .*, expected those of a network like this one"):
        take_over(create_model("han_small", input_size=(48, 32)), {}, "nothing")

"""CondenseNet's condensation during training, and its deployed form."""

import json
import signal

import numpy as np
import pytest
import tensorflow as tf

from han_tf import models
from han_tf.common.errors import Stopped, UserError
from han_tf.data.pipeline import LoadedImages
from han_tf.data.records import Record
from han_tf.models import Entry, create_deployed, create_model
from han_tf.models.condensenet import GROUP_LASSO, CondenseNet
from han_tf.models.costs import part_costs, total
from han_tf.runs.folder import LoadedRun, load_run
from han_tf.runtimes.keras import card_of
from han_tf.training.config import TrainConfig
from han_tf.training.loop import Trainer

CONDENSATION = 4
TINY = {"depths": (1, 2), "growth": (4, 8), "groups": 2, "condensation": CONDENSATION}
SIZE = (48, 32)


def tiny(**arguments):
    tf.keras.utils.set_random_seed(0)
    return create_model("condensenet", input_size=SIZE, feature_dim=16, **{**TINY, **arguments})


def random_images(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *SIZE, 3)).astype(np.uint8)


def densities(model):
    """The share of connections that each group of each learned convolution still has."""
    return np.concatenate([conv.mask.numpy().mean(axis=0) for conv in model.learned_convs])


def reducing_convs(model):
    return [unit.learned for block in model.blocks for unit in block.units]


@pytest.mark.parametrize("steps", [7, 12, 60])
def test_stages_share_the_first_half_of_training(steps):
    """Stage i of C − 1 ends when i/(C − 1) of the first half is over; each removes 1/C."""
    model = tiny(depths=(1,), growth=(4,))
    for step in range(steps):
        model.begin_step(step, steps)
        ended = sum(step / steps >= i / (CONDENSATION - 1) / 2 - 1e-9 for i in range(1, CONDENSATION))
        np.testing.assert_allclose(densities(model), 1 - ended / CONDENSATION)
        assert int(model.stages_over) == ended
    assert ended == CONDENSATION - 1


def test_the_deployed_network_gives_the_same_features():
    model = tiny(num_classes=3)
    model.branches(random_images(16), training=True)
    model.begin_step(1, 1)
    deployed = model.deployed()
    branches, theirs = model.branches(random_images(4)), deployed.branches(random_images(4))
    np.testing.assert_allclose(theirs.features["global"], branches.features["global"], atol=1e-5)
    np.testing.assert_allclose(deployed.classify(theirs)["global"], model.classify(branches)["global"], atol=1e-5)
    assert not deployed.learned_convs
    assert float(deployed.penalty()) == 0


def test_deployed_it_has_one_cth_of_the_learned_convolutions():
    model = tiny()
    deployed = create_deployed("condensenet", input_size=SIZE, feature_dim=16, **TINY)
    before, after = (
        part_costs(network, {str(n): conv for n, conv in enumerate(reducing_convs(network))}, SIZE)
        for network in (model, deployed)
    )
    assert len(before) == 3
    for name, cost in before.items():
        assert after[name].macs * CONDENSATION == cost.macs
        assert after[name].parameters * CONDENSATION == cost.parameters


def test_the_card_has_the_flops_of_the_form_that_is_deployed(tmp_path):
    model = tiny()
    settings = {"model": "condensenet", "input_height": SIZE[0], "input_width": SIZE[1], "feature_dim": 16}
    run = LoadedRun(model, {**settings, "dataset": "synthetic", "split": ""}, tmp_path, "")

    def flops(network):
        return total(part_costs(network, network.parts(), SIZE)).paper_flops

    assert card_of(run).flops == flops(model)  # it still condenses
    model.begin_step(1, 1)
    deployed = create_deployed("condensenet", input_size=SIZE, feature_dim=16, **TINY)
    assert card_of(run).flops == flops(deployed) < flops(model)


def test_an_unfinished_network_is_not_deployed():
    model = tiny()
    model.begin_step(1, 3)
    with pytest.raises(UserError, match=r"^this CondenseNet has ended 2 of 3 condensing stages, expected all"):
        model.deployed()


def test_group_lasso_acts_while_connections_are_chosen():
    model = tiny()
    expected = GROUP_LASSO * sum(float(conv.group_lasso()) for conv in model.learned_convs)
    assert float(model.penalty()) == pytest.approx(expected, rel=1e-5)
    assert expected > 0
    model.begin_step(1, 2)
    assert float(model.penalty()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (1,)}, "depths and growth must be equally many, 1 to 5, got 1 and 2"),
        ({"depths": (1,) * 6, "growth": (4,) * 6}, "depths and growth must be equally many, 1 to 5, got 6 and 6"),
        ({"groups": 0}, "groups and condensation must be at least 1, got 0 and 4"),
        ({"growth": (4, 6)}, r"growth must be multiples of the groups 2 and the condensation 4, got \(4, 6\)"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=f"^model condensenet: {message}$"):
        create_model("condensenet", **{**TINY, **arguments})


@pytest.fixture
def trainer(monkeypatch):
    """Makes trainers of a tiny CondenseNet on 12 random images of 3 people: 6 steps in 2 epochs."""
    monkeypatch.setitem(models.MODELS, "condensenet", Entry(CondenseNet, TINY))
    records = tuple(Record(f"{number}.jpg", number % 3, 1) for number in range(12))
    data = LoadedImages(random_images(12), records)
    settings = {"input_height": SIZE[0], "input_width": SIZE[1], "feature_dim": 16, "epochs": 2, "batch_size": 4}
    return lambda run_dir, **changes: Trainer(TrainConfig(model="condensenet", **settings, **changes), run_dir, data)


def weights(run_dir):
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(run_dir / "checkpoints")))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


def test_training_condenses_and_a_stopped_run_goes_on_to_the_same_weights(trainer, tmp_path):
    """It is stopped within an epoch, between two of the three condensing stages, which end at steps 1, 2 and 3 of 6."""
    whole = trainer(tmp_path / "whole")
    assert whole.steps_per_epoch == 3
    whole.run()
    np.testing.assert_allclose(densities(whole.model), 1 / CONDENSATION)

    stopped = trainer(tmp_path / "stopped")
    step = stopped.train_step

    def stopping(*batch):
        if stopped.global_step == 1:
            np.testing.assert_allclose(densities(stopped.model), 3 / CONDENSATION)
            signal.raise_signal(signal.SIGTERM)
        return step(*batch)

    stopped.train_step = stopping
    with pytest.raises(Stopped):
        stopped.run()
    resumed = trainer(tmp_path / "stopped")
    assert resumed.global_step == 2
    assert int(resumed.model.stages_over) == 1
    resumed.run()
    ours, theirs = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert any("mask" in name for name in ours)

    history = json.loads((tmp_path / "whole" / "history.json").read_text())
    assert {"global_loss", "global_accuracy"} <= set(history[-1])
    assert "regions" not in history[-1]
    loaded = load_run(tmp_path / "whole").model
    np.testing.assert_array_equal(loaded(random_images(2)), whole.model(random_images(2)))
    np.testing.assert_allclose(loaded.deployed()(random_images(2)), loaded(random_images(2)), atol=1e-5)


def test_a_rate_for_regions_is_refused_where_there_are_none(trainer, tmp_path):
    with pytest.raises(UserError, match=r"^--localisation_lr 0.5, but no layer of this network places regions$"):
        trainer(tmp_path, localisation_lr=0.5)

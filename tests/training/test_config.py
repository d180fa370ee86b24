"""The settings of a run: checks, the name of its folder, and config.json of older runs."""

import itertools
import json
import re

import pytest

from han_tf.common.errors import UserError
from han_tf.models import MODELS
from han_tf.training.config import (
    LOSSES,
    MINING,
    NAMED,
    NEUTRAL,
    RECIPES,
    TrainConfig,
    parse_drops,
    parse_model_args,
)
from han_tf.training.run_folder import check_run_folder


def test_the_default_settings_give_a_short_name():
    assert TrainConfig().run_name() == "synthetic-han_small-300epochs-seed0"
    named = TrainConfig(init_from="runs/a[1]\\\udcff").run_name()  # TensorFlow takes paths for patterns in UTF-8
    assert named == "synthetic-han_small-init_from_a_1___-300epochs-seed0"
    config = TrainConfig(dataset="cuhk03", split="detected", model="han_large", epochs=30, seed=7)
    assert config.run_name() == "cuhk03-detected-han_large-30epochs-seed7"


def test_the_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.input_size, config.feature_dim, config.epochs, config.batch_size) == ((160, 64), 1024, 300, 32)
    assert (config.lr, config.lr_decay, config.lr_drops) == (0.03, 0.1, (1 / 3, 2 / 3, 5 / 6))
    assert (config.momentum, config.weight_decay) == (0.9, 5e-4)


def test_six_evaluations_unless_it_is_said_otherwise():
    assert [TrainConfig(epochs=epochs).evaluation_interval for epochs in (300, 35, 8, 5)] == [50, 6, 2, 1]
    assert TrainConfig(eval_every=7).evaluation_interval == 7


def test_the_name_tells_what_is_not_the_default():
    config = TrainConfig(dataset="market1501,dukemtmc", init_from="runs/first", lr=0.0123456, lr_drops=())
    expected = "market1501+dukemtmc-han_small-init_from_first-lr_0.0123456-lr_drops_none-300epochs-seed0"
    assert config.run_name() == expected
    config = TrainConfig(dataset="market1501", spatial=False, hard=False, lr=0.01)
    assert config.run_name() == "market1501-han_small-spatial_False-hard_False-lr_0.01-300epochs-seed0"


def test_a_long_name_is_one_that_a_folder_may_have(tmp_path):
    names = [TrainConfig(dataset="market1501", init_from="ä" * 200, lr=0.1, seed=seed).run_name() for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("market1501-han_small-init_from_ää")
    (tmp_path / names[0]).mkdir()


def test_all_ablations_have_names_of_their_own():
    names = {
        TrainConfig(spatial=spatial, channel=channel, hard=hard, interaction=interaction).run_name()
        for spatial, channel, hard, interaction in itertools.product([True, False], repeat=4)
    }
    assert len(names) == 16


def test_what_does_not_matter_is_not_told():
    other = {"data_dir": "/else/where", "eval_every": 5, "keep_checkpoints": 9, "panel_images": 0, "cache_mb": 1}
    other.update(skip_bad_images=True, strategy="mirrored", xla=True)
    assert set(other) == set(NEUTRAL)
    assert TrainConfig(**other).run_name() == TrainConfig().run_name()
    assert not set(NAMED) & set(NEUTRAL)


def test_a_recipe_sets_what_is_not_said_otherwise():
    assert TrainConfig.of_recipe("paper") == TrainConfig()
    strong = TrainConfig.of_recipe("strong", dataset="market1501", label_smoothing=0.2)
    assert strong.horizontal_flip
    assert strong.label_smoothing == 0.2
    assert strong.run_name() == "market1501-han_small-recipe_strong-label_smoothing_0.2-300epochs-seed0"
    assert TrainConfig.of_recipe("strong", lr_drops=TrainConfig.lr_drops).lr_drops == TrainConfig.lr_drops
    with pytest.raises(UserError, match="--recipe 'weak', expected one of paper, strong"):
        TrainConfig.of_recipe("weak")


@pytest.mark.parametrize("recipe", RECIPES)
def test_settings_come_back_from_json(recipe):
    config = TrainConfig.of_recipe(recipe, hard=False, lr=0.5, model_args={"widths": [96, 192, 288]})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())), "config.json") == config


def test_arguments_of_the_network_are_named():
    config = TrainConfig(model_args=parse_model_args(["regions=6", "widths=[96,192,288]", "unit=residual"]))
    assert config.model_args == {"regions": 6, "widths": [96, 192, 288], "unit": "residual"}
    assert config.run_name() == "synthetic-han_small-regions_6-widths_96+192+288-unit_residual-300epochs-seed0"


@pytest.mark.parametrize("text", ["regions", "=6", "re-gions=6"])
def test_arguments_without_a_name(text):
    with pytest.raises(UserError, match="expected NAME=VALUE"):
        parse_model_args([text])
    with pytest.raises(UserError, match="each name once"):
        parse_model_args(["regions=6", "regions=5"])


def test_drops_are_fractions():
    assert parse_drops("1/3,2/3,5/6") == TrainConfig.lr_drops
    assert parse_drops("3/4, 0.9") == (0.75, 0.9)
    assert parse_drops("") == ()
    assert TrainConfig(lr_drops=(0.75, 0.9)).run_name() == "synthetic-han_small-lr_drops_0.75+0.9-300epochs-seed0"
    for text in ("3/0", "early", "1e400"):
        with pytest.raises(UserError, match=f"--lr_drops '{text}', expected fractions such as"):
            parse_drops(text)


def test_an_unknown_setting_is_named():
    with pytest.raises(UserError, match=r"^config.json: setting 'colour' is unknown, expected a run of this version$"):
        TrainConfig.from_dict({**TrainConfig().to_dict(), "colour": "red"}, "config.json")


@pytest.mark.parametrize(
    "change", [{"loss": "x"}, {"lr_drops": None}, {"lr_drops": ["x"]}, {"label_smoothing": "0"}, {"epochs": "3"}]
)
def test_a_wrong_setting_is_one_line(change):
    with pytest.raises(UserError, match=r"^config.json: a setting is wrong \(.+\), expected a run of this"):
        TrainConfig.from_dict({**TrainConfig().to_dict(), **change}, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 2.5},
        {"batch_size": 16.5},
        {"seed": True},
        {"hard": "no"},
        {"lr": "0.1"},
        {"lr": True},
        {"init_from": 5},
        {"model": ["han_small"]},
        {"model_args": []},
        {"lr_drops": (0.5, "x")},
        {"lr_drops": 0.5},
        {"label_smoothing": None},
    ],
    ids=str,
)
def test_types_are_checked(change):
    ((name, value),) = change.items()
    flag = "arch" if name == "model" else name
    with pytest.raises(UserError, match=rf"^--{flag} {re.escape(repr(value))}, expected (a|numbers|arguments|True)"):
        TrainConfig(**change)


def test_losses_and_augmentations_have_names_of_their_own():
    combinations = [("cross_entropy", "hard", 0.3)]
    combinations += itertools.product([loss for loss in LOSSES if "triplet" in loss], MINING, [0.3, 0.5])
    names = {
        TrainConfig(loss=loss, mining=mining, margin=margin, horizontal_flip=flip, random_erasing=erase).run_name()
        for loss, mining, margin in combinations
        for flip, erase in itertools.product([False, True], repeat=2)
    }
    assert len(names) == 4 * 9
    config = TrainConfig(loss="cross_entropy+triplet", margin=0.5, random_erasing=True)
    expected = "synthetic-han_small-loss_cross_entropy+triplet-margin_0.5-random_erasing_True-300epochs-seed0"
    assert config.run_name() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "triplet", "people": 16},
            "--people 16 times --images_per_person 4 is 64, but --batch_size is 32: expected the same",
        ),
        (
            {"loss": "cross_entropy+triplet", "batch_size": 64},
            "--people 8 times --images_per_person 4 is 32, but --batch_size is 64: expected the same",
        ),
        ({"margin": 0.5}, "--margin 0.5 is a setting of the triplet loss, but --loss is cross_entropy"),
        ({"mining": "semihard"}, "--mining semihard is a setting of the triplet loss, but --loss is cross_entropy"),
        ({"people": 4}, "--people 4 is a setting of the triplet loss, but --loss is cross_entropy"),
        (
            {"images_per_person": 2},
            "--images_per_person 2 is a setting of the triplet loss, but --loss is cross_entropy",
        ),
        ({"lr_drops": (0.5, 0.4)}, "--lr_drops 0.5,0.4, expected ascending parts of the epochs, between 0 and 1"),
        ({"lr_drops": (0.5, 1)}, "--lr_drops 0.5,1, expected ascending parts of the epochs, between 0 and 1"),
        ({"lr_drops": (0.0, 0.5)}, "--lr_drops 0,0.5, expected ascending parts of the epochs, between 0 and 1"),
        ({"label_smoothing": -0.1}, "--label_smoothing -0.1, expected at least 0 and less than 1"),
        ({"label_smoothing": 1.0}, "--label_smoothing 1.0, expected at least 0 and less than 1"),
        ({"loss": "triplet", "label_smoothing": 0.1}, "--label_smoothing 0.1 means nothing with --loss triplet"),
        (
            {"model_args": {"hard": False}},
            "--model_args hard=..., expected an argument of the network that has no flag of its own",
        ),
        (
            {"model_args": {"num_classes": 5}},
            "--model_args num_classes=..., expected an argument of the network that has no flag of its own",
        ),
        (
            {"init_from": "run", "loss": "triplet", "freeze_epochs": 1},
            "--freeze_epochs 1 with --epochs 300 and --loss triplet, expected fewer than the epochs, "
            "and a loss with classifiers",
        ),
        ({"freeze_epochs": 1}, "--freeze_epochs means nothing without --init_from"),
        ({"init_classifiers": True}, "--init_classifiers means nothing without --init_from"),
        ({"init_from": "run", "weights": "a.h5"}, "--init_from run and --weights a.h5, expected one of them"),
        (
            {"init_from": "run", "epochs": 3, "freeze_epochs": 3},
            "--freeze_epochs 3 with --epochs 3 and --loss cross_entropy, expected fewer than the epochs, "
            "and a loss with classifiers",
        ),
        ({"loss": "hinge"}, "--loss 'hinge', expected one of cross_entropy, triplet, cross_entropy+triplet"),
        ({"loss": "triplet", "mining": "easy"}, "--mining 'easy', expected one of hard, semihard"),
        ({"model": "colour"}, f"--arch 'colour', expected one of {', '.join(MODELS)}"),
        ({"epochs": 0}, "--epochs 0, expected at least 1"),
        ({"momentum": 1.5}, "--momentum 1.5, expected 0 to 1"),
        ({"lr": float("nan")}, "--lr nan, expected at least 0"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(UserError) as raised:
        TrainConfig(**changes)
    assert str(raised.value) == message


def test_other_sizes_of_a_batch_of_people():
    assert TrainConfig(loss="triplet", people=16, images_per_person=2).batch_size == 32
    assert TrainConfig(loss="triplet", people=16, batch_size=64).images_per_person == 4
    # Without the triplet loss a batch may have any size.
    assert TrainConfig(batch_size=7).people == 8


@pytest.mark.parametrize("changes", [{"loss": "triplet"}, {"random_erasing": True}, {"hard": False}])
def test_a_run_does_not_go_on_with_other_settings(changes):
    (name,) = changes
    with pytest.raises(UserError, match=f"run holds a run with --{name} "):
        TrainConfig(**changes).check_resumable(TrainConfig(), "run")
    with pytest.raises(UserError, match="run holds a run with --arch han_small, this command has han_large"):
        TrainConfig(model="han_large").check_resumable(TrainConfig(), "run")


def test_a_run_of_an_earlier_version_may_go_on(tmp_path):
    saved = {**TrainConfig(dataset="market1501").to_dict(), "num_classes": 751, "num_images": 12936, "fingerprints": {}}
    for name in ("spatial", "channel", "hard", "interaction"):
        del saved[name]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    check_run_folder(TrainConfig(dataset="market1501"), tmp_path)
    with pytest.raises(UserError, match="--channel True, this command has False"):
        check_run_folder(TrainConfig(dataset="market1501", channel=False), tmp_path)

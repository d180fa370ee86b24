"""The configs: complete, described, trainable, and with the paper's numbers."""

import importlib
import re

import pytest

from experiments import schema
from experiments.plan import SCALES, make_plan, selected_rows, settings_for, shown_columns
from experiments.plots import published_flops
from experiments.results import identity
from han_tf import train
from han_tf.data import DATASETS, cuhk03, dukemtmc, market1501, msmt17
from han_tf.models import MODELS
from han_tf.training.config import TrainConfig

EXPERIMENTS = {name: schema.load(name) for name in schema.names()}
TRAINED = {name: experiment for name, experiment in EXPERIMENTS.items() if experiment.rows}

# Count and sum of the numbers in each column of the paper's tables, computed from the paper's text: rank-1 and
# mAP of the first data set, of the second, and so on.
SUMS = {
    "table3": ((42, 3643.0), (41, 2991.7), (25, 2265.7), (25, 1986.1)),
    "table4": ((32, 2556.0), (32, 2129.0)),
    "table5": ((16, 693.2), (16, 686.8), (20, 841.9), (20, 819.0)),
    "table6": ((11, 656.6), (11, 391.0)),
    "table7": (
        *((6, 520.4), (6, 409.9), (6, 545.2), (6, 456.7), (6, 454.2), (6, 339.8)),
        *((6, 236.3), (6, 234.9), (6, 231.5), (6, 226.9), (6, 324.3), (6, 163.9)),
    ),
    "table8": ((3, 269.8), (3, 221.9), (3, 236.3), (3, 183.7)),
    "table9": ((8, 706.7), (8, 561.1), (8, 613.5), (8, 458.1)),
    "table10": ((6, 443.1), (6, 344.4), (6, 390.5), (6, 291.4)),
    "table11": ((3, 246.8), (3, 194.7), (3, 218.3), (3, 163.2)),
    "table12": ((3, 273.8), (3, 227.4), (3, 239.6), (3, 190.0)),
}


def test_nothing_of_the_list_is_left_out():
    expected = [f"table{number}" for number in range(1, 13)] + ["figure6", "figure7", "cost_effectiveness"]
    assert schema.names() == expected


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_docstrings_say_what_is_needed(name):
    description = importlib.import_module(f"experiments.configs.{name}").__doc__
    for word in ("Reproduces: ", "Expect: ", "Time: "):
        assert description.count(word) == 1
    assert re.search(rf"^  make {name}\b", description, re.MULTILINE)
    assert re.search(rf"^  python -m experiments.run {name}\b", description, re.MULTILINE)


@pytest.mark.parametrize("name", SUMS)
def test_columns_add_up_as_in_the_paper(name):
    rows = EXPERIMENTS[name].rows
    found = []
    for column in range(len(EXPERIMENTS[name].columns)):
        for metric in range(2):
            numbers = [row.published[column][metric] for row in rows if row.published[column] is not None]
            numbers = [number for number in numbers if number is not None]
            found.append((len(numbers), round(sum(numbers), 1)))
    assert tuple(found) == SUMS[name]


def test_the_same_network_has_the_same_numbers_everywhere():
    """The paper prints HAN Large's accuracy on Market-1501 in eight tables."""
    seen = {}
    for experiment in TRAINED.values():
        for row in experiment.rows:
            for column, published in zip(experiment.columns, row.published):
                if row.settings is not None and published is not None:
                    key = (
                        identity(row.settings),
                        row.feature,
                        row.reranked,
                        column.dataset,
                        column.split,
                        column.query,
                    )
                    assert seen.setdefault(key, published) == published, (experiment.name, row.name)
    large = [p for key, p in seen.items() if key[0] == identity({"model": "han_large"})]
    assert (91.6, 76.7) in large


@pytest.mark.parametrize("name", TRAINED)
def test_rows_are_sound(name):
    experiment = TRAINED[name]
    names = [row.name for row in experiment.rows]
    assert len(set(names)) == len(names)
    for row in experiment.rows:
        assert len(row.published) == len(experiment.columns)
        for pair in row.published:
            assert pair is None or all(number is None or 0 < number < 100 for number in pair)
        if experiment.flops and row.flops != "N/A":
            assert 1e8 <= published_flops(row.flops) <= 2e10
    for column in experiment.columns:
        assert column.split in DATASETS[column.dataset].splits
        assert column.query == "single" or DATASETS[column.dataset].multi_query


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("scale", SCALES)
def test_every_row_can_be_trained(name, scale):
    experiment = TRAINED[name]
    for row in selected_rows(experiment, scale):
        for column in shown_columns(experiment, scale).values():
            config = TrainConfig(**settings_for(row, column, scale))
            assert config.model in MODELS
            assert config.model.startswith("han_") or row.feature == "joint"


def test_the_schedules_are_those_of_the_project():
    # 6 epochs (experiments/README.md), fewer than make train has.
    assert SCALES["synthetic"].settings["epochs"] < train.SYNTHETIC_EPOCHS
    assert "epochs" not in SCALES["full"].settings
    assert TrainConfig().epochs == 300


@pytest.mark.parametrize("scale", SCALES)
def test_names_tell_trainings_apart(scale):
    trainings = make_plan(list(EXPERIMENTS.values()), scale, seeds=(0, 1)).trainings.values()
    assert len({training.name for training in trainings}) == len(trainings)


@pytest.mark.parametrize(
    ("names", "count"),
    [(["table8"], 1), (["table10"], 2), (["table8", "table10", "figure7"], 2), (["table3"], 6), (["table9"], 8)],
)
def test_one_training_gives_several_rows(names, count):
    plan = make_plan([EXPERIMENTS[name] for name in names], "full", datasets=["market1501"])
    assert len(plan.trainings) == count


def test_training_once_serves_every_table_it_appears_in():
    plan = make_plan([EXPERIMENTS[f"table{number}"] for number in (8, 9, 10, 11, 12)], "synthetic")
    # 8 kinds of attention, one without CAIL, two further losses, two further units.
    assert len(plan.trainings) == 13
    (large,) = [t for t in plan.trainings.values() if len(t.experiments) > 1]
    assert large.experiments == ["table8", "table9", "table10", "table11", "table12"]
    assert large.wanted == {(feature, "single", False) for feature in ("global", "local", "joint")}


def test_feature_dimensions_are_those_of_figure_6():
    dimensions = [128, 256, 320, 448, 512, 640, 720, 832, 928, 1024]
    rows = EXPERIMENTS["figure6"].rows
    for model in ("han_large", "resnet50"):
        assert [row.settings["feature_dim"] for row in rows if row.settings["model"] == model] == dimensions


def test_table_2_counts_what_the_paper_counts():
    """Computed from the published sizes of the subsets, which the readers hold."""
    published = {
        "market1501": {"": market1501.PUBLISHED},
        "dukemtmc": {"": dukemtmc.PUBLISHED},
        "cuhk03": {split: cuhk03.PUBLISHED[split] for split in ("labelled", "detected")},
        "msmt17": {"trainval": msmt17.PUBLISHED_TRAINVAL},
    }
    for row in EXPERIMENTS["table2"].counts:
        images = 0
        for split, subsets in row.counted.items():
            for subset in subsets:
                counts = published[row.dataset][split][subset]
                images += counts.images + (counts.junk or 0)
        # CUHK03 has one more box than the paper says.
        assert images == row.published[3] + (row.dataset == "cuhk03")
        assert row.published[0] == row.published[1] + row.published[2]

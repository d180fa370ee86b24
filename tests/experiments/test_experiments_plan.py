"""From flags to trainings, and estimates of their needs."""

import dataclasses

import pytest

from experiments import schema
from experiments.counts import training_data
from experiments.needs import PROGRAM_MB, duration, needs
from experiments.plan import Training, make_plan, scale_of, selected_rows, shown_columns
from experiments.results import identity, settings_of
from han_tf.common.errors import UserError
from han_tf.data import load_dataset
from han_tf.data.synthetic import SyntheticPedestrians
from han_tf.training.config import NEUTRAL, TrainConfig
from tests.experiments.made_results import MACHINE, network, training


@pytest.mark.parametrize(
    ("scale", "dataset", "meant"),
    [
        ("", "", "synthetic"),
        ("", "synthetic", "synthetic"),
        ("", "market1501", "full"),
        ("", "market1501,dukemtmc", "full"),
        ("full", "", "full"),
        ("smoke", "", "smoke"),
        ("smoke", "synthetic", "smoke"),
    ],
)
def test_scale(scale, dataset, meant):
    assert scale_of(scale, dataset) == meant


@pytest.mark.parametrize(
    ("scale", "dataset", "words"),
    [
        ("smoke", "market1501", "--scale smoke has a drawn data set of its own, got --dataset market1501"),
        ("full", "synthetic", "--scale full is for real data sets"),
    ],
)
def test_scale_and_dataset_must_fit(scale, dataset, words):
    with pytest.raises(UserError, match=words):
        scale_of(scale, dataset)


def test_columns():
    table7 = schema.load("table7")
    titles = [column.title for column in shown_columns(table7, "full", ["cuhk03", "market1501"]).values()]
    assert titles == ["Market-1501 (SQ)", "Market-1501 (MQ)", "CUHK03 (labelled)", "CUHK03 (detected)"]
    assert [c.split for c in shown_columns(table7, "full", ["cuhk03"], "detected").values()] == ["detected"]
    # On the drawn set one column per query type, compared with the paper's first column of that type.
    drawn = shown_columns(table7, "synthetic")
    assert [(c.dataset, c.query, published) for published, c in drawn.items()] == [
        ("synthetic", "single", 0),
        ("synthetic", "multi", 1),
    ]


@pytest.mark.parametrize(
    ("datasets", "split", "words"),
    [
        (["msmt17"], "", "table5 is not about msmt17, expected cuhk03 labelled, cuhk03 detected"),
        (["cuhk03"], "new", "table5 is not about cuhk03 new"),
    ],
)
def test_columns_that_are_not_there(datasets, split, words):
    with pytest.raises(UserError, match=words):
        shown_columns(schema.load("table5"), "full", datasets, split)


def test_rows():
    table3 = schema.load("table3")
    assert len(selected_rows(table3, "full")) == 12
    assert [row.name for row in selected_rows(table3, "full", ["HAN (Small)"])] == ["HAN (Small)"]
    assert len(selected_rows(table3, "full", ["small"])) == 4
    names = [row.name for row in selected_rows(table3, "full", ["LARGE", "HAN (Small)"])]
    assert names[0] == "HAN (Small)"
    assert len(names) == 5
    with pytest.raises(UserError, match="table3 has no row 'craft' to run, expected HAN"):
        make_plan([table3], "synthetic", rows=["craft"])


def test_a_row_need_not_be_in_every_table():
    wanted = [schema.load("table9"), schema.load("table10")]
    trainings = make_plan(wanted, "full", datasets=["market1501"], rows=["SSA+SCA", "(w/o CAIL)"]).trainings.values()
    assert [t.experiments for t in trainings] == [["table9"], ["table10"]]


def test_seeds_and_epochs():
    plan = make_plan([schema.load("table8")], "full", datasets=["market1501"], seeds=(0, 3), epochs=40)
    assert [(t.config.seed, t.config.epochs) for t in plan.trainings.values()] == [(0, 40), (3, 40)]


def test_a_recipe_fills_what_rows_and_flags_leave_open():
    wanted = [schema.load("table9")]
    plan = make_plan(wanted, "full", datasets=["market1501"], rows=["HRA"], recipe="strong", input_height=80, epochs=40)
    (config,) = [training.config for training in plan.trainings.values()]
    assert (config.recipe, config.label_smoothing, config.weight_decay) == ("strong", 0.1, 2e-3)
    assert (config.input_height, config.epochs, config.spatial, config.hard) == (80, 40, False, True)


def test_only_losses_with_labels_are_smoothed():
    plan = make_plan([schema.load("table11")], "full", datasets=["market1501"], recipe="strong")
    found = {training.config.loss: training.config for training in plan.trainings.values()}
    assert {loss: config.label_smoothing for loss, config in found.items()} == {
        "cross_entropy": 0.1,
        "triplet": 0,
        "cross_entropy+triplet": 0.1,
    }
    others = [dataclasses.replace(config, loss="cross_entropy", label_smoothing=0.1) for config in found.values()]
    assert others == [found["cross_entropy"]] * 3


def test_names_of_rows_may_hold_commas():
    def chosen(*rows):
        plan = make_plan([schema.load("table3")], "full", datasets=["market1501"], rows=rows)
        return [
            (training.config.model, training.config.random_erasing, {reranked for *_, reranked in training.wanted})
            for training in plan.trainings.values()
        ]

    small, large = ("han_small", False, {True}), ("han_large", False, {False})
    assert chosen("HAN (Small), erasing") == [("han_small", True, {False})]
    assert chosen("HAN (Small), re-ranked") == [small]
    assert chosen('"HAN (Small), re-ranked","HAN (Large)"') == [large, small]
    assert chosen("HAN (Small), HAN (Large)") == chosen("HAN (Small)", "HAN (Large)")
    with pytest.raises(UserError, match=r"table3 has no row 'HAN \(Small\), erasing' to run, expected HAN"):
        make_plan([schema.load("table3")], "smoke", rows=["HAN (Small), erasing"])


def test_neutral_settings_and_missing_ones_do_not_tell_trainings_apart():
    config = TrainConfig()
    other = dataclasses.replace(config, data_dir="elsewhere", cache_mb=1)
    assert identity(config.to_dict()) == identity(other.to_dict())
    older = {name: value for name, value in config.to_dict().items() if name != "hard"}
    assert identity(older) == identity(config.to_dict())
    assert identity(older) != identity({**older, "hard": False})
    assert not set(settings_of(config.to_dict())) & set(NEUTRAL)


def test_a_result_counts_if_it_holds_all_that_is_wanted():
    wanted = Training(TrainConfig(dataset="market1501", model="han_large"), {("joint", "single", False)})
    assert wanted.result([training()]) is not None
    assert wanted.result([training(seed=1)]) is None
    assert wanted.result([training(epochs=40)]) is None
    assert wanted.result([training(apart="stopped early")]) is None
    wanted.wanted.add(("joint", "single", True))
    assert wanted.result([training()]) is None


def need_of(results, **changes):
    config = TrainConfig(**{"dataset": "market1501", "model": "han_large", **changes})
    return needs(Training(config), 12_936, results, MACHINE)


def test_time_of_the_same_network():
    need = need_of([training(epochs=40)])
    assert need.seconds == pytest.approx(12_936 * 300 / 60.0)
    assert need.how == "as market1501-han_large-epochs_40"
    assert need_of([training(machine={})]).how.endswith("another machine")
    assert need_of([]) == (None, None, None, "no measurement yet")


def test_the_fastest_measurement_counts():
    """Others may have run beside other work; of equal ones, the latest."""
    slow, fast = training(epochs=24), training(epochs=40, date="2026-11-22T10:00:00Z")
    slow["images_per_second"] /= 2
    assert need_of([slow, fast]).how == need_of([fast, slow]).how == "as market1501-han_large-epochs_40"


def test_the_latest_measurement_counts():
    earlier, latest = training(epochs=24, date="2026-11-22T10:00:00Z"), training(epochs=40)
    assert need_of([earlier, latest]).how == need_of([latest, earlier]).how == "as market1501-han_large-epochs_40"


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        {"freeze_epochs": 2, "init_from": "run"},
        {"apart": "beside other work"},
    ],
)
def test_measurements_of_other_kinds_count_last(changes):
    alike = training(epochs=40, machine={"processor": "other"}, date="2026-11-01T10:00:00Z")
    other = training(**changes)
    assert need_of([alike, other]).how == "as market1501-han_large-epochs_40, another machine"
    alone = need_of([other]).how
    assert alone == f"as {other.name}" + (", in mixed_bfloat16" if "precision" in changes else "")
    if "precision" in changes:
        assert need_of([alike, other], **changes).how == f"as {other.name}"


def test_time_of_another_network_is_scaled_by_multiply_adds():
    results = [training("han_small"), network("han_small", 100), network("han_large", 250)]
    need = need_of(results)
    assert need.seconds == pytest.approx(2.5 * 12_936 * 300 / 60.0)
    assert need.how.startswith("scaled from market1501-han_small")
    # A measurement on this machine is preferred to one of the same network elsewhere.
    assert need_of([*results, training(machine={"processor": "other"})]).how.startswith("scaled from")
    assert need_of(results[:2]).seconds is None


def test_memory_and_disk():
    images_mb = 12_936 * 160 * 64 * 3 / 2**20
    cached, on_disk = need_of([network()]), need_of([network()], cache_mb=100)
    assert cached.memory_mb - on_disk.memory_mb == pytest.approx(images_mb)
    assert on_disk.disk_mb - cached.disk_mb == pytest.approx(images_mb)
    assert on_disk.memory_mb > PROGRAM_MB
    # Five copies of the weights and three counters' worth of slack.
    assert cached.disk_mb > 5 * 4 * 2_000_000 / 2**20
    assert need_of([network(), training(peak_mb=9_000.0)]).memory_mb == pytest.approx(9_000)


def test_images_are_counted_without_drawing_them():
    frames = SyntheticPedestrians().frames()
    subsets = [frame.subset for frame in frames]
    assert training_data("synthetic", "", "") == (subsets.count("train"), "multi_query" in subsets)


def test_images_of_a_real_layout(tiny_data):
    found = load_dataset("market1501", tiny_data)
    assert training_data("market1501", "", str(tiny_data)) == (len(found.train), bool(found.multi_query))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "unknown"),
        (40, "0:00:40"),
        (11_100.4, "3:05:00"),
        (200_000, "2 days, 7:33:20"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words

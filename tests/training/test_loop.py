"""The training loop: it learns, it is deterministic, and a stop does not change the result."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from han_tf import train
from han_tf.common.cli import run
from han_tf.common.errors import Stopped, UserError
from han_tf.common.processes import stop_signals
from han_tf.data import load_dataset
from han_tf.data.pipeline import load_images
from han_tf.evaluation.scoring import scalars
from han_tf.runs.folder import load_run
from han_tf.training.config import TrainConfig
from han_tf.training.loop import Trainer
from han_tf.training.step import Step
from tests.conftest import TINY_ARGS, TINY_SIZE

SIZE = {"input_height": 48, "input_width": 32}

ONE_LEVEL = {"widths": [16], "strides": [2, 1]}


@pytest.fixture(scope="module")
def data(tiny_data):
    return load_images(load_dataset("market1501", tiny_data).train, (48, 32))


def config(**changes):
    """Returns settings; unless ``changes`` say otherwise, of a HAN of one level, whose graph is built fast."""
    network = {} if "model" in changes else {"model_args": ONE_LEVEL}
    return TrainConfig(**{"dataset": "market1501", "epochs": 3, "batch_size": 16, **SIZE, **network, **changes})


def weights(run_dir):
    """Returns all numbers of the newest checkpoint: weights, momenta, counters."""
    path = tf.train.latest_checkpoint(str(run_dir / "checkpoints"))
    reader = tf.train.load_checkpoint(path)
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    # TensorFlow's number of saves differs between a stopped run and an unbroken one.
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("unbroken")
    Trainer(config(), run_dir, data).run()
    return run_dir


def test_it_learns(data, tmp_path):
    trainer = Trainer(config(epochs=10, lr=0.005), tmp_path, data)
    trainer.run()
    first, last = trainer.history[0], trainer.history[-1]
    assert last["loss"] < 0.8 * first["loss"]
    assert last["local_accuracy"] > first["local_accuracy"]


def stop(trainer, number, after):
    """Runs a trainer that gets a signal in one of its steps, counted from 1, and checks that it stops after it."""
    step, taken = trainer.train_step, []

    def stopping(*batch):
        taken.append(batch)
        if len(taken) == after:
            signal.raise_signal(number)
        return step(*batch)

    trainer.train_step = stopping
    handlers = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match="the same command resumes the run") as stopped:
        trainer.run()
    assert stopped.value.signal == number
    assert len(taken) == after
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_stopped_run_goes_on_to_the_same_weights(data, unbroken, tmp_path):
    """Stopped three times: within an epoch, at the end of one (4 steps), and after the first step of the next."""
    for number, before, after in ((signal.SIGINT, 0, 2), (signal.SIGTERM, 2, 4), (signal.SIGTERM, 4, 5)):
        trainer = Trainer(config(), tmp_path, data)
        assert trainer.steps_per_epoch == 4
        assert trainer.global_step == before
        stop(trainer, number, after - before)
    resumed = Trainer(config(), tmp_path, data)
    assert resumed.global_step == 5
    resumed.run()
    assert_same_weights(tmp_path, unbroken)
    ours, theirs = (json.loads((folder / "history.json").read_text()) for folder in (tmp_path, unbroken))
    timings = ("seconds", "images_per_second")
    for rows in (ours, theirs):
        assert [row.pop(name) > 0 for row in rows for name in timings]
    assert ours == theirs
    assert not (tmp_path / "unfinished.json").exists()


PEOPLE = {"people": 4, "images_per_person": 4}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "cross_entropy+triplet", **PEOPLE},
        {"horizontal_flip": True, "random_translation": True, "random_erasing": True},
    ],
    ids=["people and images", "augmentation"],
)
def test_other_batches_go_on_to_the_same_weights(data, tmp_path, colours, changes):
    """Stopped in the middle of the second epoch."""
    settings = config(model=colours, epochs=2, lr=0.001, **changes)
    whole = Trainer(settings, tmp_path / "whole", data)
    whole.run()
    trainer = Trainer(settings, tmp_path / "halved", data)
    stop(trainer, signal.SIGTERM, trainer.steps_per_epoch + 2)
    resumed = Trainer(settings, tmp_path / "halved", data)
    assert resumed.global_step == resumed.steps_per_epoch + 2
    resumed.run()
    assert_same_weights(tmp_path / "halved", tmp_path / "whole")
    # The changes do change something.
    plain = Trainer(config(model=colours, epochs=2, lr=0.001), tmp_path / "plain", data)
    plain.run()
    assert whole.history[0]["global_accuracy"] != plain.history[0]["global_accuracy"]


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_weights(tiny_data, tmp_path):
    """Another process is killed while it trains; this one goes on, and does the whole for comparison."""

    def arguments(run_dir):
        chosen = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--run={run_dir}", *TINY_SIZE]
        return [*chosen, "--model_args=widths=[16],strides=[2,1]", "--epochs=3", "--panel_images=0", "--batch_size=16"]

    def finish(run_dir):
        assert run(train.main, train.FLAGS, train.__doc__, ["train", *arguments(run_dir)]) == 0

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "han_tf.train", *arguments(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (killed / "checkpoints" / "checkpoint").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (killed / "checkpoints" / "checkpoint").exists()
    assert not (killed / "metrics.json").exists(), "killed too late for the test to mean anything"
    finish(killed)
    finish(whole)
    assert_same_weights(killed, whole)
    assert (killed / "metrics.json").read_text() == (whole / "metrics.json").read_text()


@pytest.fixture
def without_graph(monkeypatch):
    """Takes steps without a graph, which would take longer to build than a step or two."""
    monkeypatch.setattr(Step, "take", Step.take.python_function)


def test_another_seed_gives_another_network(data, unbroken, tmp_path, without_graph):
    Trainer(config(seed=1, epochs=1), tmp_path, data).run()
    first, second = weights(tmp_path), weights(unbroken)
    name = next(name for name in first if "stem/conv/kernel" in name and "optimizer" not in name.lower())
    assert np.abs(first[name] - second[name]).max() > 1e-3


def test_localisation_learns_at_its_own_rate(data, tmp_path, without_graph):
    """With momentum off, one step of SGD moves the regions by the factor times the gradient."""
    moved = {}
    for factor in (1.0, 0.01):
        settings = config(localisation_lr=factor, momentum=0.0, model_args=TINY_ARGS)
        trainer = Trainer(settings, tmp_path / str(factor), data)
        before = [v.numpy() for v in trainer.model.trainable_variables]
        trainer.train_step(data.images[:16], tf.constant(trainer.labels[:16], tf.int32))
        after = [v.numpy() for v in trainer.model.trainable_variables]
        moved[factor] = {v.name: a - b for v, a, b in zip(trainer.model.trainable_variables, after, before)}
    localisation = {v.name for v in trainer.model.localisation_variables}
    assert len(localisation) == 6
    for name, full in moved[1.0].items():
        expected = full * (0.01 if name in localisation else 1.0)
        np.testing.assert_allclose(moved[0.01][name], expected, rtol=2e-2, atol=1e-7, err_msg=name)
        if name in localisation:
            assert np.abs(full).max() > 0


@pytest.mark.parametrize("depthwise", [True, False])
def test_weight_decay_is_coupled(depthwise, data, tmp_path, without_graph):
    """A step with decay differs from one without by -lr·λ·w on its kernels, and by nothing elsewhere."""
    stepped = {}
    for decay in (0.0, 0.1):
        settings = config(weight_decay=decay, depthwise_decay=depthwise, momentum=0.0, localisation_lr=1.0)
        trainer = Trainer(settings, tmp_path / str(decay), data)
        before = {v.name: v.numpy() for v in trainer.model.trainable_variables}
        trainer.train_step(data.images[:16], tf.constant(trainer.labels[:16], tf.int32))
        stepped[decay] = {v.name: v.numpy() for v in trainer.model.trainable_variables}
    for name, value in before.items():
        decayed = "kernel" in name and (depthwise or "depthwise_kernel" not in name)
        expected = -0.03 * 0.1 * value if decayed else np.zeros_like(value)
        np.testing.assert_allclose(stepped[0.1][name] - stepped[0.0][name], expected, atol=2e-6, err_msg=name)


def test_the_triplet_loss_alone_trains_a_network_without_classifiers(data, tmp_path, without_graph):
    trainer = Trainer(config(epochs=1, loss="triplet", **PEOPLE), tmp_path, data)
    trainer.run()
    (row,) = trainer.history
    assert {name for name in row if name.endswith(("loss", "accuracy"))} == {"loss", "global_loss", "local_loss"}
    assert row["loss"] == pytest.approx(row["global_loss"] + row["local_loss"], rel=1e-5)
    loaded = load_run(tmp_path)
    assert loaded.config["num_classes"] == loaded.model.num_classes == 0
    np.testing.assert_array_equal(loaded.model(data.images[:3]), trainer.model(data.images[:3]))


def test_losses_are_summed_over_kinds_and_branches(data, tmp_path, without_graph):
    """The loss of both kinds is the sum of the losses of each, on the same batch and weights."""
    losses = {}
    for loss in ("cross_entropy", "triplet", "cross_entropy+triplet"):
        people = PEOPLE if "triplet" in loss else {}
        trainer = Trainer(config(loss=loss, **people), tmp_path / loss, data)
        images, labels = data.images[:16], tf.constant(trainer.labels[:16], tf.int32)
        losses[loss] = {name: value.numpy() for name, value in trainer.train_step(images, labels)[0].items()}
    for name in ("loss", "global_loss", "local_loss"):
        expected = losses["cross_entropy"][name] + losses["triplet"][name]
        np.testing.assert_allclose(losses["cross_entropy+triplet"][name], expected, rtol=1e-4)


def test_more_people_than_there_are(data, tmp_path):
    settings = config(loss="triplet", people=9, images_per_person=2, batch_size=18)
    with pytest.raises(UserError, match="--people 9, expected at most 8, as many as are to train on"):
        Trainer(settings, tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_a_network_with_one_branch_trains_in_the_same_loop(data, tmp_path, colours):
    settings = config(model=colours, epochs=6, lr=0.001)
    trainer = Trainer(settings, tmp_path, data)
    trainer.run()
    numbers = {"loss", "global_loss", "global_accuracy"}
    assert [set(row) - {"epoch", "lr", "seconds", "images_per_second"} for row in trainer.history] == [numbers] * 6
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    assert Trainer(settings, tmp_path, data).finished
    np.testing.assert_array_equal(load_run(tmp_path).model(data.images[:3]), trainer.model(data.images[:3]))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(data, tmp_path, colours):
    settings = config(model=colours, lr=0.001)
    trainer = Trainer(settings, tmp_path, data)
    step = trainer.train_step

    def diverging(*batch):
        losses, levels = step(*batch)
        return ({**losses, "loss": tf.constant(np.nan)} if trainer.global_step == 6 else losses), levels

    trainer.train_step = diverging
    with pytest.raises(UserError, match=r"loss is nan in epoch 2, step 3; .* last good checkpoint: .*ckpt-4"):
        trainer.run()
    assert Trainer(settings, tmp_path, data).global_step == 4


def test_a_huge_rate_is_noticed(data, tmp_path, without_graph):
    with pytest.raises(UserError, match=r"not finite|loss is (nan|inf)"):
        Trainer(config(lr=1e30), tmp_path, data).run()


def test_saturated_regions_are_said(data, tmp_path, capsys, without_graph):
    settings = config(epochs=1, batch_size=64, model_args={"widths": [16, 16], "strides": [2]})
    trainer = Trainer(settings, tmp_path, data)
    trainer.model.attentions[1].hard.localisation.bias.assign([5.0] * 8)
    trainer.run()
    assert "level 2 region 1 is saturated" in capsys.readouterr().out
    assert any("level 2 region 4" in sentence for sentence in trainer.history[0]["attention"]["complaints"])


def test_evaluation_keeps_the_best_and_is_not_lost_by_a_kill(data, tmp_path, colours):
    """The mAP falls over three evaluations: the first network stays the best one."""
    counted = []

    def evaluate(model):
        counted.append(model.global_head.dense.kernel.numpy())
        row = {"feature": "joint", "query": "single", "reranked": False, "rank-1": 0.5, "mAP": 0.9 / len(counted)}
        return {"counts": {}, "results": [row]}

    def killed(model):
        raise KeyboardInterrupt

    settings = config(model=colours, lr=0.001, eval_every=1)
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings, tmp_path, data, evaluate=killed, scalars=scalars).run()
    trainer = Trainer(settings, tmp_path, data, evaluate=evaluate, scalars=scalars)
    trainer.run()
    assert len(counted) == 3
    assert ["evaluation" in row for row in trainer.history] == [True] * 3
    assert np.abs(counted[2] - counted[0]).max() > 0
    np.testing.assert_array_equal(load_run(tmp_path, "best").model.global_head.dense.kernel, counted[0])
    np.testing.assert_array_equal(load_run(tmp_path, "last").model.global_head.dense.kernel, counted[2])


@pytest.mark.parametrize(("handler", "caught"), [(signal.SIG_DFL, [signal.SIGHUP]), (signal.SIG_IGN, [])])
def test_a_closed_terminal_stops_it_unless_nohup_says_not_to(handler, caught):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop == caught
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def row_of(value):
    return {"feature": "joint", "query": "single", "reranked": False, "rank-1": 0.5, "mAP": value}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_evaluation_stops_at_once_and_is_made_again(data, tmp_path, colours, number, epoch):
    """During an evaluation, signals reach the process's own handlers."""

    def evaluate(model):
        if int(trainer.epoch) == epoch:
            signal.raise_signal(number)
            pytest.fail("went on")
        return {"counts": {}, "results": [row_of(0.5)]}

    def leave(*_):
        raise KeyboardInterrupt

    settings = config(model=colours, epochs=2, lr=0.001, eval_every=1)
    trainer = Trainer(settings, tmp_path, data, evaluate=evaluate, scalars=scalars)
    before = signal.signal(number, leave)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    finally:
        signal.signal(number, before)
    report = {"counts": {}, "results": [row_of(0.7)]}
    again = Trainer(settings, tmp_path, data, evaluate=lambda model: report, scalars=scalars)
    assert int(again.epoch) == epoch
    again.run()
    found = [row["evaluation"]["results"][0]["mAP"] for row in again.history]
    assert found == ([0.7, 0.7] if epoch == 1 else [0.5, 0.7])


def test_other_test_images_are_evaluated_anew(data, tmp_path, colours):
    def trained(value, test):
        settings = config(model=colours, epochs=2, lr=0.001, eval_every=1)
        report = {"counts": {}, "results": [row_of(value)]}
        fingerprints = {"train": "a", "test": test} if test else None
        trainer = Trainer(settings, tmp_path, data, lambda model: report, scalars, fingerprints=fingerprints)
        trainer.run()
        rows = json.loads((tmp_path / "history.json").read_text())
        return [row["evaluation"]["results"][0]["mAP"] if "evaluation" in row else None for row in rows]

    assert trained(0.9, None) == [0.9, 0.9]  # as in older runs
    assert trained(0.8, "v1") == [0.9, 0.9]
    assert trained(0.7, "v1") == [0.9, 0.9]
    assert trained(0.6, "v2") == [None, 0.6]
    assert trained(0.5, "v2") == [None, 0.6]


def test_checkpoints_are_kept_by_count(data, tmp_path, colours):
    Trainer(config(model=colours, lr=0.001, keep_checkpoints=2), tmp_path, data).run()
    assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.index")) == ["ckpt-12", "ckpt-8"]


def test_a_run_of_other_settings_is_left_alone(data, unbroken):
    with pytest.raises(UserError, match=r"holds a run with --lr 0.03, this command has 0.01; give another --run"):
        Trainer(config(lr=0.01), unbroken, data)


def test_a_training_set_that_changed_is_noticed(data, unbroken):
    fewer = dataclasses.replace(data, images=data.images[:-1], records=data.records[:-1])
    with pytest.raises(UserError, match=r"holds a run with num_images \d+, the training set has \d+ now"):
        Trainer(config(), unbroken, fewer)


def test_a_training_set_of_the_same_size_is_noticed_too(data, tmp_path, colours):
    settings = config(model=colours, epochs=1, lr=0.001)
    Trainer(settings, tmp_path, data, fingerprints={"train": "v1", "test": "a"}).run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a run whose training images had other names, labels or sizes; give"):
        Trainer(settings, tmp_path, data, fingerprints={"train": "v2", "test": "a"})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert Trainer(settings, tmp_path, data, fingerprints={"train": "v1", "test": "a"}).finished


@pytest.mark.parametrize("damage", [None, "[{", "[5]"])
def test_a_lost_history_does_not_stop_the_run(data, unbroken, tmp_path, damage):
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "history.json").unlink()
    if damage:
        (tmp_path / "run" / "history.json").write_text(damage)
    report = {
        "counts": {},
        "results": [{"feature": "joint", "query": "single", "reranked": False, "rank-1": 1, "mAP": 1}],
    }
    trainer = Trainer(config(), tmp_path / "run", data, evaluate=lambda model: report, scalars=scalars)
    trainer.run()
    assert [row["epoch"] for row in trainer.history] == [1, 2, 3]
    assert trainer.history[-1]["evaluation"] == report


def test_settings_that_do_not_matter_may_change(data, unbroken):
    assert Trainer(config(eval_every=7, keep_checkpoints=5), unbroken, data).finished


def test_a_disk_that_is_full_costs_no_earlier_checkpoint(tiny_data, tmp_path):
    """A limit on the size of files stands in for the disk."""
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--run={tmp_path}", *TINY_SIZE]
    limited = (
        "import resource, sys; from han_tf import train; from han_tf.common.cli import run;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18));"
        "sys.exit(run(train.main, train.FLAGS, '', sys.argv))"
    )
    command = [sys.executable, "-c", limited, *arguments, "--model_args=widths=[16]", "--epochs=2", "--panel_images=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")] == [
        line for line in done.stderr.splitlines() if "cannot write a checkpoint to" in line
    ]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "checkpoints").glob("checkpoint"))


def test_the_run_folder_says_what_the_run_is(unbroken):
    settings = json.loads((unbroken / "config.json").read_text())
    assert settings["epochs"] == 3
    assert settings["num_classes"] == 8
    environment = json.loads((unbroken / "environment.json").read_text())
    assert environment["packages"]["tensorflow"] == tf.__version__
    assert set(environment) == {"command", "commit", "python", "packages", "platform", "machine"}


def test_tensorboard_gets_curves_regions_and_attention(data, tmp_path, without_graph):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from han_tf.viz.attention import attention_panels

    images = data.images[:2]
    settings = config(epochs=1, batch_size=64, model_args=TINY_ARGS)
    Trainer(settings, tmp_path, data, panel=lambda model: attention_panels(model, images)).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert {"train/loss", "train/learning_rate", "train/global_accuracy", "train/local_accuracy"} <= tags
    for level in (1, 2, 3):
        assert f"regions{level}/tx_1_mean_pixels" in tags
        assert f"regions{level}/ty_4_deviation_pixels" in tags
        assert {f"attention{level}/spatial_deviation", f"attention{level}/soft_deviation"} <= tags
        assert any(f"level{level}" in tag and "soft" in tag for tag in tags)

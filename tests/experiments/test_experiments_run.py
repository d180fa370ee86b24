"""The runner: every experiment at the smallest scale, and its errors."""

import dataclasses
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from experiments import counts, needs, schema
from experiments import plan as planning
from experiments import run as runner
from experiments.launch import in_child
from experiments.results import load_results, training_result
from han_tf.common.cli import run
from han_tf.common.errors import Stopped, UserError
from han_tf.common.files import locked
from han_tf.data.synthetic import SyntheticPedestrians, generate, is_current
from han_tf.models import MODELS
from han_tf.training.config import TrainConfig
from tests.experiments.made_results import training
from tests.experiments.small_networks import small_networks

ROOT = Path(__file__).parent.parent.parent


def call(*arguments):
    return run(runner.main, runner.FLAGS, runner.__doc__, ["run", *map(str, arguments)], "experiments")


@pytest.fixture(scope="module")
def small():
    """Puts small networks in place of the paper's, which take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in small_networks().items():
            patch.setitem(MODELS, name, entry)
        yield


@pytest.fixture(scope="module")
def smoke(made_once, small):
    """The runs folder of all experiments at the smallest scale, with small networks."""

    def make(folder):
        assert call("all", "--scale=smoke", f"--runs_dir={folder}") == 0

    return made_once("smoke", make)


def test_every_experiment_gives_its_table(smoke):
    for name in schema.names():
        text = (smoke / f"{name}-smoke.md").read_text()
        experiment = schema.load(name)
        assert text.splitlines()[0].endswith(experiment.title)
        if experiment.counts:
            assert "| Market-1501 | **13** / 1,501 | **8** / 751 | **5** / 750 |" in text
            continue
        for row in experiment.rows:
            if row.settings is not None:
                (line,) = [line for line in text.splitlines() if line.startswith(f"| {row.name} |")]
                assert ("**" in line.split("|")[2]) == row.smoke


def test_every_training_was_done_once(smoke):
    plan = planning.make_plan([schema.load(name) for name in schema.names()], "smoke")
    wanted = {training.name: training for training in plan.trainings.values()}
    results = [result for result in load_results(smoke / "results") if result["kind"] == "training"]
    assert sorted(r.name for r in results) == sorted(wanted)
    assert sorted(path.parent.name for path in smoke.glob("*/config.json")) == sorted(wanted)
    for result in results:
        assert result["commit"]
        assert result["machine"]["cores"]
        assert result["seconds"] > 0
        # Both kinds of queries for every network; branches for networks that have them; re-ranked rows if shown.
        kinds = {(row["feature"], row["query"], row["reranked"]) for row in result["results"]}
        assert {("joint", "single", False), ("joint", "multi", False)} | wanted[result.name].wanted <= kinds
        assert (("global", "single", False) in kinds) == result["settings"]["model"].startswith("han_")


def test_pictures_and_sheets_are_there(smoke):
    for name in ("figure6", "cost_effectiveness"):
        assert (smoke / f"{name}-smoke-1epochs.png").stat().st_size > 10_000
    (sheet,) = smoke.glob("*/figure7/attention.png")
    assert "han_large" in str(sheet)
    # Only sheets of the embedded set go to the repository.
    assert not (smoke / "figures").exists()


def test_what_is_finished_is_skipped(smoke, capsys, monkeypatch):
    def never(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setattr(runner, "in_process", never)
    assert call("table8", "table9", "table2", "--scale=smoke", f"--runs_dir={smoke}") == 0
    out = capsys.readouterr().out
    assert out.count("finished  ") == 2
    assert "Table 8: " in out


KILLED = """
import os, signal, sys
from experiments import run
from han_tf.common import cli
from han_tf.models import MODELS
from han_tf.training.loop import Trainer
from tests.experiments.small_networks import small_networks

def killed(trainer):
    if trainer.history:
        os.kill(os.getpid(), signal.SIGKILL)

MODELS.update(small_networks())
Trainer._evaluate_if_due = killed
cli.run(run.main, run.FLAGS, run.__doc__, sys.argv, "experiments")
"""
"""A runner that is killed with SIGKILL when a training has saved its only epoch."""


@pytest.mark.long
def test_a_killed_runner_goes_on_to_the_same_result(smoke, tmp_path):
    shutil.copytree(smoke / "tiny", tmp_path / "tiny")
    command = [sys.executable, "-c", KILLED, "table8", "--scale=smoke", f"--runs_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (saved,) = tmp_path.glob("*/checkpoints/checkpoint")
    before = saved.stat().st_mtime_ns
    assert not (tmp_path / "results").exists()
    assert call("table8", "--scale=smoke", f"--runs_dir={tmp_path}") == 0
    (result,) = load_results(tmp_path / "results")
    assert saved.stat().st_mtime_ns == before
    (whole,) = [r for r in load_results(smoke / "results") if r.name == result.name]
    assert result["results"] == [row for row in whole["results"] if not row["reranked"]]

    # Another table also needs it re-ranked: it is evaluated again, not trained.
    trained = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/checkpoints/*"))]
    assert call("table3", "--scale=smoke", f"--runs_dir={tmp_path}", '--rows="HAN (Large), re-ranked"') == 0
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/checkpoints/*"))] == trained
    (result,) = [r for r in load_results(tmp_path / "results") if r.name == result.name]
    assert result["results"] == whole["results"]


def test_trainings_in_processes_of_their_own(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "in_process", in_child)
    shutil.copytree(smoke / "tiny", tmp_path / "tiny")
    assert call("table3", "--rows=HAN (Small)", "--scale=smoke", f"--runs_dir={tmp_path}", "--seeds=5") == 0
    results = {result["kind"]: result for result in load_results(tmp_path / "results")}
    assert results["training"]["settings"]["seed"] == 5
    assert results["training"]["peak_mb"] > 200
    assert results["network"]["macs"] > 0


def test_dry_run_says_what_would_be_done(tmp_path, capsys):
    result = training(feature="global", machine=runner.machine())
    result["results"].extend({**result["results"][0], "feature": feature} for feature in ("local", "joint"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{result.name}.json").write_text(json.dumps(result))
    arguments = ["--dry_run", f"--runs_dir={tmp_path / 'runs'}", f"--results_dir={tmp_path / 'results'}"]
    assert call("table8", *arguments) == 0
    (line, total) = capsys.readouterr().out.splitlines()
    images, epochs = counts.training_data("synthetic", "", "").images, planning.SCALES["synthetic"].settings["epochs"]
    expected = needs.duration(images * epochs / 60.0)
    assert line.startswith(
        f"to do     synthetic-han_large-{epochs}epochs-seed0 (for table8): {expected} (as {result.name}), "
    )
    assert total == f"in all about {expected}, one after the other"
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_draws_nothing(tmp_path, capsys):
    arguments = ["table8", "--scale=smoke", f"--runs_dir={tmp_path / 'runs'}"]
    assert call(*arguments, "--dry_run") == 0
    assert list(tmp_path.iterdir()) == []
    mine = SyntheticPedestrians(**{**planning.TINY, "junk": 3})
    generate(tmp_path / "mine", mine, workers=1)
    assert call(*arguments, f"--data_dir={tmp_path / 'mine'}", "--dry_run") == 0
    assert capsys.readouterr().out.count("to do     market1501-han_large-") == 2
    assert call(*arguments, f"--data_dir={tmp_path / 'mine'}") == 1
    assert "synthetic.json says " in capsys.readouterr().err
    assert is_current(tmp_path / "mine", mine)


def test_the_tiny_set_is_counted_as_it_is_drawn(tmp_path):
    pedestrians = SyntheticPedestrians(**planning.TINY)
    generate(tmp_path / "tiny", pedestrians, workers=1)
    assert counts.drawn_data(pedestrians) == counts.training_data("market1501", "", str(tmp_path / "tiny"))


def test_splits_may_be_spelt_as_in_the_files(tmp_path, capsys):
    generate(tmp_path / "cuhk03", SyntheticPedestrians(**planning.TINY), layout="cuhk03-np", workers=1)
    arguments = ["table5", "--dataset=cuhk03", "--rows=HAN (Small)", "--dry_run", f"--data_dir={tmp_path / 'cuhk03'}"]
    assert call(*arguments, "--split=labeled", f"--results_dir={tmp_path}") == 0
    assert "to do     cuhk03-labelled-han_small-" in capsys.readouterr().out


def test_another_network_can_stand_in_for_that_of_an_ablation(tmp_path, capsys):
    assert call("table9", "--rows=no attention", "--arch=han_small", "--dry_run", f"--results_dir={tmp_path}") == 0
    (line, total) = capsys.readouterr().out.splitlines()
    assert " synthetic-han_small-spatial_False-channel_False-hard_False-" in line
    assert total == "in all unknown: no measurement yet"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["table8", "--arch=resnet50"],
            "--arch resnet50 lacks the parts that table8 compares, expected a network of the",
        ),
        (["table12", "--arch=han_small"], "--arch han_small cannot replace the networks of table12"),
        (["table7", "--dataset=market1501,cuhk03", "--data_dir=x"], "--data_dir x is one data set's folder"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, arguments, words):
    assert call(*arguments, f"--runs_dir={tmp_path}") == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {words}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table13"], "unknown experiment 'table13', expected one of table1, "),
        (["table8", "--dataset=mars"], "flag --dataset=mars: value should be one of <synthetic|cuhk03|"),
    ],
)
def test_an_unknown_name_is_a_wrong_command_line(capsys, arguments, words):
    assert call(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"usage error: {words}")
    assert err.count("\n") == 1


def test_a_data_set_that_is_not_there(capsys, tmp_path):
    assert call("table8", "--dataset=dukemtmc", f"--data_dir={tmp_path / 'no'}", f"--runs_dir={tmp_path}") == 1
    err = capsys.readouterr().err
    assert "no such folder" in err
    assert "README" in err


def test_without_names_the_experiments_are_listed(capsys):
    assert call() == 0
    out = capsys.readouterr().out
    for name in schema.names():
        assert out.count(f"{name} ") == 1


@pytest.fixture
def prepared(tmp_path, tiny_data):
    """A runner for one training on tiny images whose commands are recorded instead of run."""
    plan = planning.make_plan([schema.load("table8")], "full", datasets=["market1501"], data_dir=str(tiny_data))
    made = runner.Runner(plan, "full", tmp_path / "runs", tmp_path / "results", str(tiny_data))
    made.find_data()
    made.launched = []

    def launch(module, arguments, *_):
        made.launched.append((module, arguments))

    made.launch = launch
    return made


def test_too_little_memory_or_disk_is_told_before_the_start(prepared, monkeypatch):
    needed = needs.Need(3600.0, 5_000.0, 2_000.0, "measured")
    monkeypatch.setattr(runner, "needs", lambda *_: needed)
    monkeypatch.setattr(runner, "free_memory_mb", lambda: 4_000.0)
    monkeypatch.setattr(runner, "free_disk_mb", lambda _: 1e6)
    with pytest.raises(
        UserError, match=r"market1501-han_large-300epochs-seed0 needs about 5,000 MiB of memory, 4,000 MiB are"
    ):
        prepared.check_resources()
    monkeypatch.setattr(runner, "free_memory_mb", lambda: 6_000.0)
    prepared.check_resources()
    monkeypatch.setattr(runner, "free_disk_mb", lambda _: 1_000.0)
    with pytest.raises(UserError, match=r"1 trainings need about 2,000 MiB in .*, 1,000 MiB are free"):
        prepared.check_resources()


def test_the_commands_are_those_of_the_project(prepared, tiny_data):
    (wanted,) = prepared.plan.trainings.values()
    wanted.wanted.add(("joint", "single", True))
    failures = prepared.run()
    name = "market1501-han_large-300epochs-seed0"
    run_dir = f"{prepared.runs_dir}/{name}"
    assert [module for module, _ in prepared.launched] == ["han_tf.train", "han_tf.evaluate"]
    assert prepared.launched[0][1] == [
        *(f"--run={run_dir}", "--dataset=market1501", f"--data_dir={tiny_data}"),
        *("--arch=han_large", "--epochs=300", "--seed=0"),
    ]
    assert prepared.launched[1][1][:2] == [f"--model={run_dir}", "--rerank"]
    # Nothing was trained, so there is nothing to read.
    (failure,) = failures
    assert f"{run_dir}/config.json" in failure


def test_a_finished_run_is_asked_whether_its_images_are_the_same(prepared, tmp_path):
    (wanted,) = prepared.plan.trainings.values()
    run_dir = prepared.runs_dir / wanted.name
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.json").write_text("{}")
    (run_dir / "config.json").write_text(json.dumps(wanted.config.to_dict()))

    def launch(module, arguments, *_):
        assert module == "han_tf.train"
        raise UserError("other images")

    prepared.launch = launch
    assert prepared.run() == ["other images"]
    assert not list((tmp_path / "results").glob("*"))


def test_the_memory_of_a_training_stays_when_rows_are_added(prepared, tmp_path, monkeypatch):
    (wanted,) = prepared.plan.trainings.values()
    wanted.wanted.add(("joint", "single", True))
    for name, entries in (("metrics.json", {}), ("config.json", wanted.config.to_dict())):
        (prepared.runs_dir / wanted.name).mkdir(parents=True, exist_ok=True)
        (prepared.runs_dir / wanted.name / name).write_text(json.dumps(entries))
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / f"{wanted.name}.json"
    path.write_text(json.dumps(training(peak_mb=1234.5)))
    monkeypatch.setattr(runner, "training_result", lambda run_dir, peak_mb: training(reranked=True, peak_mb=peak_mb))
    prepared.run()
    assert [module for module, _ in prepared.launched] == ["han_tf.train", "han_tf.evaluate"]
    written = json.loads(path.read_text())
    assert written["results"][0]["reranked"]
    assert written["peak_mb"] == 1234.5


def test_counts_are_kept_unless_better_ones_come(tmp_path, monkeypatch, capsys):
    plan = planning.make_plan([schema.load("table2")], "full", datasets=["market1501"])
    made = runner.Runner(plan, "full", tmp_path / "runs", tmp_path / "results")
    path = tmp_path / "results" / "statistics-market1501.json"

    def counted(images, *differences, date="2026-11-29"):
        found = {"kind": "statistics", "dataset": "market1501", "counts": {"images": images}}
        found |= {"differences": list(differences), "date": date}
        monkeypatch.setattr(runner, "count", lambda *_: found)
        made.run()
        return json.loads(path.read_text()), found

    kept, found = counted(30, "train: 2 images less")
    assert kept == found
    kept, _ = counted(30, "train: 2 images less", date="2026-11-30")
    assert kept["date"] == "2026-11-29"
    assert capsys.readouterr().out == ""
    kept, _ = counted(20, "train: 12 images less")
    assert kept["counts"] == {"images": 30}
    assert (
        capsys.readouterr().out == f"note: {path} is kept; the images here give other counts: train: 12 images less\n"
    )
    whole, found = counted(32)
    assert whole == found
    for changes in ((32,), (31, "train: 1 image less")):
        assert counted(*changes, date="2026-11-30")[0] == whole
    assert capsys.readouterr().out.endswith("train: 1 image less\n")


def with_seeds(prepared, *seeds):
    """Adds the same training with other seeds."""
    (wanted,) = prepared.plan.trainings.values()
    for seed in seeds:
        made = planning.Training(dataclasses.replace(wanted.config, seed=seed), {("joint", "single", False)})
        prepared.plan.trainings[made.identity] = made


def test_runners_share_the_work_and_wait_for_each_other_at_the_end(prepared):
    with_seeds(prepared, 1, 2)
    first, *others = prepared.plan.trainings.values()
    order, taken, waits = [], threading.Event(), threading.Event()

    def other_runner():
        with locked(prepared.runs_dir / f"{first.name}.lock"):
            taken.set()
            assert waits.wait(30)
            order.append("other runner")

    def launch(module, arguments, *_):
        order.append(arguments[0])
        if len(order) == len(others):
            waits.set()
        raise UserError("not trained in truth")

    prepared.launch = launch
    thread = threading.Thread(target=other_runner)
    thread.start()
    assert taken.wait(30)
    prepared.run()
    thread.join()
    run_dirs = [f"--run={prepared.runs_dir / training.name}" for training in (*others, first)]
    assert order == [*run_dirs[:2], "other runner", run_dirs[2]]


def test_one_failure_does_not_stop_the_others(prepared, capsys):
    with_seeds(prepared, 1, 2)

    def launch(module, arguments, *_):
        prepared.launched.append(arguments)
        raise UserError(f"{module}: it rains")

    prepared.launch = launch
    assert prepared.run() == ["han_tf.train: it rains"] * 3
    assert len(prepared.launched) == 3
    assert capsys.readouterr().out.count("failed: han_tf.train: it rains") == 3


def test_a_signal_stops_everything(prepared):
    def launch(*_):
        raise Stopped("stopped by SIGINT", signal.SIGINT)

    prepared.launch = launch
    with pytest.raises(Stopped):
        prepared.run()


def test_a_result_of_something_else_is_not_overwritten(prepared, tmp_path):
    other = training(apart="another network")
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "market1501-han_large-300epochs-seed0.json"
    path.write_text(json.dumps(other))
    (failure,) = prepared.run()
    assert failure.startswith(f"{path} holds a training of the same settings that is kept apart (another network); ")
    assert f"no place  {path.stem} (for table8): {failure}" in prepared.describe()
    assert prepared.launched == []
    assert json.loads(path.read_text()) == other


@pytest.mark.parametrize("dataset", ["synthetic", "market1501"])
def test_only_sheets_of_drawn_people_go_to_the_repository(tmp_path, tiny_data, dataset):
    scale, datasets = ("synthetic", []) if dataset == "synthetic" else ("full", [dataset])
    plan = planning.make_plan([schema.load("figure7")], scale, datasets=datasets, data_dir=str(tiny_data))
    (wanted,) = plan.trainings.values()
    result = training(**{"dataset": dataset, "epochs": wanted.config.epochs})
    (tmp_path / "repository" / "results").mkdir(parents=True)
    (tmp_path / "repository" / "results" / f"{wanted.name}.json").write_text(json.dumps(result))
    run_dir = tmp_path / "runs" / wanted.name
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.json").write_text("{}")
    (run_dir / "config.json").write_text(json.dumps(wanted.config.to_dict()))
    made = runner.Runner(plan, scale, tmp_path / "runs", tmp_path / "repository" / "results", str(tiny_data))
    made.find_data()

    def launch(module, arguments, *_):
        assert module == "han_tf.visualize"
        (out,) = [argument[len("--output=") :] for argument in arguments if argument.startswith("--output=")]
        Path(out).mkdir()
        (Path(out) / "attention.png").write_bytes(b"picture")

    made.launch = launch
    assert made.run() == []
    assert (run_dir / "figure7" / "attention.png").exists()
    committed = list((tmp_path / "repository" / "figures").glob("*"))
    assert [path.name for path in committed] == [f"figure7-{wanted.name}.png"] * (dataset == "synthetic")
    assert made.left(made.results()) == []
    for path in committed:
        path.unlink()
        assert made.left(made.results()) == [wanted]


def test_of_a_data_set_without_multi_query_images_none_are_wanted(tmp_path, tiny_data, capsys):
    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "gt_bbox")
    arguments = {"datasets": ["market1501"], "rows": ["HAN (Large)"], "data_dir": str(tmp_path / "data")}
    plan = planning.make_plan([schema.load("table3")], "full", **arguments)
    (wanted,) = plan.trainings.values()
    assert {query for _, query, _ in wanted.wanted} == {"single", "multi"}
    made = runner.Runner(plan, "full", tmp_path / "runs", tmp_path / "results", str(tmp_path / "data"))
    made.find_data()
    assert {query for _, query, _ in wanted.wanted} == {"single"}
    assert wanted.result([training()]) is not None
    assert "market1501 has no multi-query images here" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["network", "search"])
def test_speeds_of_another_machine_are_measured_anew(tmp_path, monkeypatch, kind):
    experiment, rows = {"network": ("cost_effectiveness", ["HAN (Small)"]), "search": ("figure6", ["(Large) 128"])}[
        kind
    ]
    plan = planning.make_plan([schema.load(experiment)], "smoke", rows=rows)
    plan.trainings.clear()
    here, name = runner.machine(), {"network": "network-han_small-48x32", "search": "search"}[kind]
    results = tmp_path / "results"
    results.mkdir()

    def measured(machine):
        settings = {"model": "han_small", "input_height": 48, "input_width": 32}
        speed = {"settings": settings, "macs": 1, "images_per_second": 5.0, "dimensions": [{"dimension": 128}]}
        (results / f"{name}.json").write_text(json.dumps({"kind": kind, **speed, "machine": machine}))

    made = runner.Runner(plan, "smoke", tmp_path / "runs", results)
    launched = []
    monkeypatch.setattr(made, "launch", lambda module, *_: launched.append(module))
    measured(here)
    assert made.run() == []
    assert launched == []
    measured({**here, "processor": "abacus"})
    assert made.run() == []
    assert launched == [{"network": "experiments.bench_networks", "search": "experiments.bench_search"}[kind]]


def test_an_evaluation_of_something_else_is_passed_over(tmp_path):
    counts = {"queries": 10, "gallery": 30}
    plain = {"feature": "joint", "query": "single", "rank-1": 0.5, "mAP": 0.4}
    trained = {"dataset": "synthetic", "split": "", "counts": counts, "results": [plain]}
    reranked = {**plain, "reranked": True, "mAP": 0.6}
    (tmp_path / "config.json").write_text(json.dumps(TrainConfig().to_dict()))
    (tmp_path / "metrics.json").write_text(json.dumps(trained))

    def recorded(**changes):
        evaluated = {**trained, "results": [plain, reranked], **changes}
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluated))
        return [row["mAP"] for row in training_result(tmp_path)["results"]]

    assert recorded() == [0.4, 0.6]
    assert recorded(dataset="dukemtmc") == [0.4]
    assert recorded(counts={**counts, "gallery": 31}) == [0.4]
    # An evaluation of an earlier or later state of the network.
    assert recorded(results=[{**plain, "mAP": 0.3}, reranked]) == [0.4]


def readme_commands():
    text = (ROOT / "experiments" / "README.md").read_text()
    return re.findall(r"^    python -m experiments\.run (.*?) *(?:#.*)?$", text, re.MULTILINE)


@pytest.mark.parametrize("command", readme_commands())
def test_commands_of_the_readme(command, tmp_path, tiny_data):
    own = ["--dry_run", f"--runs_dir={tmp_path / 'runs'}", f"--results_dir={tmp_path / 'results'}"]
    own += [f"--data_dir={tiny_data}"] if "--dataset" in command else []
    assert call(*shlex.split(command), *own) == 0

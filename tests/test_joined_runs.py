"""A run on several data sets: trained on all people, evaluated on each data set separately."""

import json
import shutil

import pytest

from han_tf import evaluate, train, visualize
from han_tf.common.cli import run
from han_tf.data import load_dataset
from han_tf.data.synthetic import SyntheticPedestrians, generate
from han_tf.runs.folder import data_of, read_config
from han_tf.runtimes.keras import card_of, load_run
from tests.conftest import TINY_SIZE


def call(command, *arguments, **options):
    return run(command.main, command.FLAGS, command.__doc__, ["command", *map(str, arguments)], **options)


def call_evaluate(*arguments):
    return call(evaluate, *arguments, positional="files")


@pytest.fixture(scope="module")
def csv_data(tmp_path_factory):
    """A data set with other people than the tiny one: five to train on, three to test."""
    root = tmp_path_factory.mktemp("own") / "csv"
    people = SyntheticPedestrians(
        seed=7,
        train_identities=5,
        test_identities=3,
        train_images_per_camera=1,
        images_per_camera=2,
        multi_query_per_camera=0,
        distractors=2,
        junk=1,
    )
    generate(root, people, layout="csv", workers=1)
    return root


@pytest.fixture(scope="module")
def arguments(tiny_data, csv_data):
    data = ["--dataset=market1501,csv", f"--data_dir={tiny_data},{csv_data}"]
    return [*data, *TINY_SIZE, "--model_args=widths=[16],strides=[2]", "--epochs=2", "--eval_every=1"]


@pytest.fixture(scope="module")
def run_dir(arguments, tmp_path_factory):
    """The folder of a finished run on both data sets."""
    runs_dir = tmp_path_factory.mktemp("joined")
    assert call(train, *arguments, f"--runs_dir={runs_dir}") == 0
    (folder,) = runs_dir.iterdir()
    return folder


def rows(report):
    return {(row["feature"], row["query"]): (row["rank-1"], row["mAP"]) for row in report["results"]}


def test_it_learns_the_people_of_both(run_dir, tiny_data, csv_data):
    assert run_dir.name.startswith("market1501+csv-han_small-")
    config = read_config(run_dir)
    assert config["num_classes"] == 8 + 5
    parts = load_dataset("market1501", tiny_data), load_dataset("csv", csv_data)
    assert config["num_images"] == sum(len(part.train) for part in parts)


def test_each_data_set_is_evaluated_by_itself(run_dir, tiny_data, csv_data, tmp_path):
    metrics = json.loads((run_dir / "metrics.json").read_text())
    (other,) = metrics["others"]
    assert (metrics["dataset"], other["dataset"]) == ("market1501", "csv")
    assert metrics["trained_on"] == {"dataset": "market1501,csv", "split": ""}
    for report, dataset in ((metrics, load_dataset("market1501", tiny_data)), (other, load_dataset("csv", csv_data))):
        assert report["counts"]["queries"] == len(dataset.query)
        assert report["counts"]["gallery"] == len(dataset.gallery)
    first, last = json.loads((run_dir / "history.json").read_text())
    assert "others" not in first["evaluation"]
    assert last["evaluation"]["others"][0]["results"] == other["results"]

    copy = shutil.copytree(run_dir, tmp_path / "run")
    assert call_evaluate(f"--run={copy}") == 0
    evaluated = {name: json.loads((copy / f"evaluation-{name}.json").read_text()) for name in ("market1501", "csv")}
    for trained in (metrics, other):
        report = evaluated[trained["dataset"]]
        assert report["trained_on"] == metrics["trained_on"]
        assert rows(report).keys() == rows(trained).keys()
        for key, scores in rows(trained).items():
            assert rows(report)[key] == pytest.approx(scores, abs=1e-6)

    # One of them alone is read from the run's data folder, and gives the same numbers.
    output = tmp_path / "csv.json"
    assert call_evaluate(f"--run={copy}", "--dataset=csv", f"--output={output}") == 0
    alone = json.loads(output.read_text())
    assert alone["results"] == evaluated["csv"]["results"]


def test_it_goes_on_with_the_same_command(run_dir, arguments, capsys, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    before = (copy / "metrics.json").read_text()
    assert call(train, *arguments, f"--run={copy}") == 0
    assert "resuming from" in capsys.readouterr().out
    assert (copy / "metrics.json").read_text() == before
    swapped = [argument.replace("market1501,csv", "csv,market1501") for argument in arguments]
    assert call(train, *swapped, f"--run={copy}") == 1


@pytest.mark.parametrize("flag", ["output", "per_query", "plots", "save_features"])
def test_files_of_one_data_set(run_dir, capsys, tmp_path, flag):
    path = tmp_path / ("out.csv" if flag == "per_query" else "out")
    assert call_evaluate(f"--run={run_dir}", f"--{flag}={path}") == 1
    assert f"error: --{flag} {path} is for the results of one data set, but there are 2" in capsys.readouterr().err


def test_the_settings_tell_where_each_data_set_is(run_dir, tiny_data, csv_data):
    config = read_config(run_dir)
    assert data_of(config) == ("market1501,csv", f"{tiny_data},{csv_data}", "")
    assert data_of(config, "csv") == ("csv", str(csv_data), "")
    assert data_of(config, "dukemtmc") == ("dukemtmc", "", "")


def test_the_terms_are_those_of_all_data_sets(run_dir):
    licence = card_of(load_run(run_dir)).licence
    assert "research use only" in licence
    assert "owner of the training images" in licence


def test_pictures_are_of_the_named_data_set(run_dir, tmp_path, capsys):
    def shown(*arguments):
        command = (visualize, f"--run={run_dir}", f"--output={tmp_path}", "--queries=2")
        assert call(*command, *arguments, positional="IMAGE") == 0
        return (tmp_path / "attention.png").read_bytes()

    first = shown()
    assert shown("--dataset=market1501") == first
    assert shown("--dataset=csv") != first

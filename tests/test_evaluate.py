"""The command line, on a tiny run: what it writes, and one line for each thing that can be wrong."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from han_tf import evaluate
from han_tf.cli import run
from han_tf.data import load_dataset
from han_tf.inference.feature_files import load_features
from han_tf.report import evaluate_features


def call(*arguments):
    return run(evaluate.main, evaluate.FLAGS, evaluate.__doc__, ["evaluate", *map(str, arguments)], positional="files")


def messages(stderr):
    """The lines of stderr that are no progress bars."""
    lines = stderr.replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip() and "%|" not in line]


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """The folder of everything that evaluating a copy of the run wrote."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(tiny_run, folder / "runs" / "tiny")
    status = call(
        f"--runs_dir={folder / 'runs'}",
        f"--save_features={folder / 'features'}",
        f"--per_query={folder / 'queries.csv'}",
        "--rerank",
        "--k1=8",
        "--k2=3",
    )
    assert status == 0
    return folder


@pytest.fixture(scope="module")
def report(evaluated):
    return json.loads((evaluated / "runs" / "tiny" / "evaluation.json").read_text())


def numbers(report):
    return {(row["feature"], row["query"], row["reranked"]): row for row in report["results"]}


def test_the_newest_run_is_evaluated_on_its_own_data(report, evaluated, tiny_data, tiny_run):
    assert report["run"] == str(evaluated / "runs" / "tiny")
    assert report["dataset"] == "market1501"
    assert report["trained_on"] == {"dataset": "market1501", "split": ""}
    assert any("published 12,936" in sentence for sentence in report["differences"])
    dataset = load_dataset("market1501", tiny_data)
    assert report["counts"]["queries"] == len(dataset.query)
    assert report["counts"]["gallery"] == len(dataset.gallery)
    assert report["counts"]["junk"] == 3
    assert report["counts"]["distractors"] == 6
    # What training reported at its end, on the same images.
    trained = numbers(json.loads((tiny_run / "metrics.json").read_text()))
    mine = numbers(report)
    assert set(mine) == {*trained, ("joint", "single", True), ("joint", "multi", True)}
    for key, row in trained.items():
        for name in ("rank-1", "mAP", "mAP_trapezoid"):
            assert mine[key][name] == pytest.approx(row[name], abs=1e-6)


def test_saved_features_carry_their_labels(evaluated, tiny_data):
    dataset = load_dataset("market1501", tiny_data)
    for name in ("query", "gallery", "multi_query"):
        features = load_features(evaluated / "features" / f"{name}.npz")
        records = getattr(dataset, name)
        assert features.paths.tolist() == [record.path for record in records]
        assert features.pids.tolist() == [record.pid for record in records]
        assert features.camids.tolist() == [record.camid for record in records]
        assert features.features.shape == (len(records), 1024)
        assert features.features.dtype == np.float32


@pytest.mark.parametrize("files", [None, ["query", "gallery", "multi_query"], ["query", "gallery"]])
def test_saved_features_give_the_same_numbers(evaluated, report, tmp_path, capsys, files):
    folder = evaluated / "features"
    paths = [folder] if files is None else [folder / f"{name}.npz" for name in files]
    output = tmp_path / "out.json"
    flags = ["--rerank", "--k1=8", "--k2=3", f"--output={output}"]
    assert call("--features", *paths, *flags) == 0
    expected, found = numbers(report), numbers(json.loads(output.read_text()))
    query_types = ("single",) if files and len(files) == 2 else ("single", "multi")
    assert set(found) == {("joint", query_type, reranked) for query_type in query_types for reranked in (False, True)}
    for key, row in found.items():
        assert row == expected[key]
    out = capsys.readouterr().out
    assert f"{100 * expected['joint', 'single', False]['mAP']:.1f}" in out
    assert out.endswith(f"written to {output}\n")


def test_features_need_no_output_file(evaluated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("--features", evaluated / "features") == 0
    assert "written" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_per_query_results(evaluated, report):
    features = [load_features(evaluated / "features" / f"{name}.npz") for name in ("query", "gallery")]
    result = evaluate_features(*features)[0]["result"]
    rows = list(csv.DictReader((evaluated / "queries.csv").open(encoding="utf-8")))
    assert [row["query"] for row in rows] == features[0].paths.tolist()
    assert [int(row["pid"]) for row in rows] == features[0].pids.tolist()
    np.testing.assert_allclose([float(row["ap"]) for row in rows], result.ap, atol=1e-9)
    assert np.mean([float(row["ap"]) for row in rows]) == pytest.approx(report["results"][0]["mAP"])
    assert [row["image_1"] for row in rows] == features[1].paths[result.topk_indices[:, 0]].tolist()


def test_per_query_results_of_images_without_names(evaluated, tmp_path):
    for name in ("query", "gallery"):
        features = load_features(evaluated / "features" / f"{name}.npz")
        np.savez(tmp_path / f"{name}.npz", features=features.features, pids=features.pids, camids=features.camids)
    assert call("--features", tmp_path, f"--per_query={tmp_path / 'queries.csv'}") == 0
    rows = list(csv.DictReader((tmp_path / "queries.csv").open()))
    named = list(csv.DictReader((evaluated / "queries.csv").open(encoding="utf-8")))
    assert [row["query"] for row in rows] == [str(number) for number in range(len(rows))]
    gallery = load_features(evaluated / "features" / "gallery.npz").paths
    assert [gallery[int(row["image_1"])] for row in rows] == [row["image_1"] for row in named]


class TestWrongInput:
    """Each is one line that names what is wrong, and a status."""

    def check(self, capsys, arguments, *named, status=1):
        assert call(*arguments) == status
        (line,) = messages(capsys.readouterr().err)
        assert line.startswith("error: " if status == 1 else "usage error: ")
        for words in named:
            assert words in line

    def test_no_runs(self, capsys, tmp_path):
        self.check(capsys, [f"--runs_dir={tmp_path}"], f"no run with a checkpoint in {tmp_path}: make train makes one")

    @pytest.mark.parametrize(("split", "name"), [("detected", "detected"), ("labeled", "labelled")])
    def test_a_split_without_a_run(self, capsys, evaluated, split, name):
        """The split alone says that CUHK03 is meant; the run of another data set is not taken for it."""
        expected = f"no cuhk03 {name} run with a checkpoint in {evaluated / 'runs'}: "
        command = f"make train DATASET=cuhk03 SPLIT={name} makes one"
        self.check(capsys, [f"--runs_dir={evaluated / 'runs'}", f"--split={split}"], expected + command)

    def test_a_data_set_without_a_run(self, capsys, evaluated):
        arguments = [f"--runs_dir={evaluated / 'runs'}", "--dataset=dukemtmc"]
        self.check(capsys, arguments, "no dukemtmc run with a checkpoint", "make train DATASET=dukemtmc makes one")

    def test_an_unknown_split(self, capsys, tiny_run):
        arguments = [f"--run={tiny_run}", "--split=detecte"]
        self.check(capsys, arguments, "no dataset has a split 'detecte'", "detected (cuhk03)", "trainval (msmt17)")

    def test_a_split_of_another_data_set(self, capsys, tiny_run):
        arguments = [f"--run={tiny_run}", "--split=detected", "--dataset=market1501"]
        self.check(capsys, arguments, "dataset 'market1501' has no split 'detected', expected no --split")

    def test_an_unknown_data_set(self, capsys, tiny_run):
        arguments = [f"--run={tiny_run}", "--dataset=market"]
        self.check(capsys, arguments, "unknown dataset 'market', expected one of synthetic, cuhk03, market1501")

    def test_no_such_run(self, capsys, tmp_path):
        arguments = [f"--run={tmp_path / 'nowhere'}"]
        self.check(capsys, arguments, f"{tmp_path}/nowhere/config.json: No such file or directory")

    @pytest.mark.parametrize(
        ("made", "found"), [(None, "no such folder"), ("file", "a file"), ("folder", "no bounding")]
    )
    def test_an_unreadable_data_folder(self, capsys, tmp_path, monkeypatch, tiny_run, made, found):
        monkeypatch.setattr("han_tf.inference.runs.Checkpoints.restore", lambda self, partial: "checkpoint")
        data = tmp_path / "data"
        if made == "file":
            data.touch()
        elif made == "folder":
            data.mkdir()
        self.check(capsys, [f"--run={tiny_run}", f"--data_dir={data}"], f"{data}: {found}")

    def test_an_unreadable_image(self, capsys, tmp_path, tiny_data, tiny_run, evaluated):
        shutil.copytree(tiny_data, tmp_path / "data")
        bad = sorted((tmp_path / "data" / "query").iterdir())[3]
        bad.write_bytes(b"")
        arguments = [f"--run={tiny_run}", f"--data_dir={tmp_path / 'data'}", f"--output={tmp_path / 'out.json'}"]
        self.check(capsys, arguments, f"{bad}: not a readable image", "--skip_bad_images")
        assert not (tmp_path / "out.json").exists()

        assert call(*arguments, "--skip_bad_images") == 0
        assert str(bad) in capsys.readouterr().out
        whole = numbers(json.loads((evaluated / "runs" / "tiny" / "evaluation.json").read_text()))
        less = json.loads((tmp_path / "out.json").read_text())
        features = {name: load_features(evaluated / "features" / f"{name}.npz") for name in ("query", "gallery")}
        without = features["query"].where(np.arange(len(features["query"].pids)) != 3)
        assert less["counts"]["queries"] == len(without.pids)
        expected = evaluate_features(without, features["gallery"])[0]["result"]
        found = numbers(less)["joint", "single", False]
        assert found["mAP"] == pytest.approx(expected.mAP, abs=1e-6)
        assert found["mAP"] != pytest.approx(whole["joint", "single", False]["mAP"], abs=1e-6)

    def test_features_that_are_not_there(self, capsys, evaluated, tmp_path):
        good = evaluated / "features" / "query.npz"
        missing = tmp_path / "nowhere"
        self.check(capsys, ["--features", missing], f"--features {missing}: no such folder")
        self.check(capsys, ["--features", tmp_path], f"{tmp_path}/query.npz: No such file or directory")
        self.check(capsys, ["--features", good, missing], f"{missing}: No such file or directory")
        self.check(capsys, ["--features", good], "--features has 1 files, expected query.npz gallery.npz")
        self.check(capsys, ["--features", *[good] * 4], "--features has 4 files")

    def test_features_that_do_not_fit(self, capsys, evaluated, tmp_path):
        files = {name: load_features(evaluated / "features" / f"{name}.npz") for name in ("query", "gallery")}
        query = [evaluated / "features" / "query.npz"]
        for features, words in (
            (files["gallery"].features[:, :10], "expected 1024"),
            (np.where(files["gallery"].pids[:, None] == -1, np.nan, files["gallery"].features), "nan"),
        ):
            np.savez(tmp_path / "odd.npz", **{**files["gallery"]._asdict(), "features": features})
            self.check(capsys, ["--features", *query, tmp_path / "odd.npz"], words)

    def test_a_file_without_its_flag(self, capsys, tiny_run):
        self.check(capsys, [f"--run={tiny_run}", "query.npz"], "unexpected argument 'query.npz'", "--features")

    def test_reranking_out_of_range(self, capsys, evaluated):
        arguments = ["--features", evaluated / "features", "--rerank"]
        self.check(capsys, [*arguments, "--k1=400"], "k1 is 400, expected 1 to ")
        self.check(capsys, [*arguments, "--lambda_value=1.5"], "--lambda_value=1.5", status=2)
        self.check(capsys, [*arguments, "--lambda_value=nan"], "--lambda_value=nan", status=2)
        self.check(capsys, [*arguments, "--memory_mb=1"], "--memory_mb=1", status=2)

    @pytest.mark.parametrize("flag", ["output", "per_query", "save_features"])
    def test_files_that_cannot_be_written(self, capsys, evaluated, tmp_path, flag):
        (tmp_path / "file").touch()
        arguments = ["--features", evaluated / "features", f"--{flag}={tmp_path}/file/inner"]
        self.check(capsys, arguments, f"cannot write {tmp_path}/file/inner")

    def test_a_checkpoint_of_another_network(self, tiny_run, tmp_path):
        """In a process of its own, as TensorFlow has warnings of its own at the end."""
        shutil.copytree(tiny_run, tmp_path / "run")
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "num_classes": 9}))
        command = [sys.executable, "-m", "han_tf.evaluate", f"--run={tmp_path / 'run'}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {tmp_path}/run/checkpoints/ckpt-")
        assert "checkpoint of another model" in line

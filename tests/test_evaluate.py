"""han_tf.evaluate on a tiny run and on files: its output, and one line for each error."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import han_tf.metrics.plots
from han_tf import evaluate
from han_tf.common.cli import run
from han_tf.data import DATASETS, load_dataset
from han_tf.data.reading import decode_image, resize
from han_tf.evaluation.scoring import METHODS, evaluate_features
from han_tf.evaluation.tables import camera_table, table, verification_table
from han_tf.features.archives import FeatureSet, load_features, save_features
from han_tf.features.shards import FeatureBatch, Manifest, write_manifest, write_shard
from han_tf.metrics import FeatureDistances, single_gallery_shot
from han_tf.runs.card import read_card
from tests.conftest import messages


def call(*arguments):
    return run(evaluate.main, evaluate.FLAGS, evaluate.__doc__, ["evaluate", *map(str, arguments)], positional="files")


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """The folder with all output of evaluating a copy of the run."""
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
    # The training's last report, on the same images.
    trained = numbers(json.loads((tiny_run / "metrics.json").read_text()))
    mine = numbers(report)
    assert set(mine) == {*trained, ("joint", "single", True), ("joint", "multi", True)}
    for key, row in trained.items():
        for name in ("rank-1", "mAP", "mAP_trapezoid"):
            assert mine[key][name] == pytest.approx(row[name], abs=1e-6)


def test_only_the_own_data_and_the_last_network_make_the_runs_evaluation(evaluated, tiny_data, tmp_path, monkeypatch):
    """Readers of evaluation.json expect the run's own result."""
    run_dir = tmp_path / "run"
    shutil.copytree(evaluated / "runs" / "tiny", run_dir)
    before = (run_dir / "evaluation.json").read_bytes()
    records = load_dataset("market1501", tiny_data)
    monkeypatch.setattr(
        evaluate,
        "load_dataset",
        lambda name, data_dir, split: dataclasses.replace(records, name=name, split=split or DATASETS[name].splits[0]),
    )
    assert call(f"--run={run_dir}", "--dataset=dukemtmc") == 0
    assert call(f"--run={run_dir}", "--split=detected", "--checkpoint=best") == 0
    assert call(f"--run={run_dir}", "--checkpoint=best") == 0
    for name, dataset in (
        ("evaluation-dukemtmc", "dukemtmc"),
        ("evaluation-cuhk03-detected-best", "cuhk03"),
        ("evaluation-market1501-best", "market1501"),
    ):
        assert json.loads((run_dir / f"{name}.json").read_text())["dataset"] == dataset
    assert (run_dir / "evaluation.json").read_bytes() == before
    assert len(list(run_dir.glob("evaluation*"))) == 4
    (run_dir / "evaluation.json").unlink()
    assert call(f"--run={run_dir}", "--dataset=market1501") == 0
    assert (run_dir / "evaluation.json").exists()


def test_results_on_other_images_replace_none(evaluated, tiny_data, tmp_path):
    """A data set of the same name in another folder may hold other images."""
    run_dir = tmp_path / "run"
    shutil.copytree(evaluated / "runs" / "tiny", run_dir)
    before = (run_dir / "evaluation.json").read_bytes()
    mine = json.loads(before)["fingerprint"]
    shutil.copytree(tiny_data, tmp_path / "moved")
    assert call(f"--run={run_dir}", f"--data_dir={tmp_path / 'moved'}") == 0
    assert json.loads((run_dir / "evaluation.json").read_text())["counts"] == json.loads(before)["counts"]
    before = (run_dir / "evaluation.json").read_bytes()
    for number in range(3):
        removed = min((tmp_path / "moved" / "query").glob("*.jpg"))
        removed.unlink()
        assert call(f"--run={run_dir}", f"--data_dir={tmp_path / 'moved'}") == 0
        found = {path: json.loads(path.read_text()) for path in run_dir.glob("evaluation*.json")}
        assert len(found) == 2 + number
        assert len({report["counts"]["queries"] for report in found.values()}) == 2 + number
    assert (run_dir / "evaluation.json").read_bytes() == before
    names = {path.name for path in found if path.name.startswith("evaluation-market1501-")}
    digits = {report["fingerprint"][:8] for report in found.values() if report["fingerprint"] != mine}
    assert names < {f"evaluation-market1501-{part}.json" for part in digits}


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
    given = [",".join(map(str, paths))] if len(paths) == 3 else paths  # commas, or further arguments
    assert call("--features", *given, *flags) == 0
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


DIMENSION, QUERIES, IMAGES, JUNK = 16, 30, 200, 7
BRANCHES = ("global", "local")


def synthetic(seed=0):
    """Queries and gallery of a network with two branches, with distractors and with junk in between."""
    rng = np.random.default_rng(seed)
    n = QUERIES + IMAGES
    pids, camids = rng.integers(1, 12, n), rng.integers(1, 4, n)
    features = rng.standard_normal((12, DIMENSION))[pids] + rng.standard_normal((n, DIMENSION))
    features = features.reshape(n, 2, -1)
    features = (features / np.linalg.norm(features, axis=2, keepdims=True)).reshape(n, -1).astype(np.float32)
    pids[QUERIES + 10 : QUERIES + 30] = 0
    pids[QUERIES + 40 : QUERIES + 40 + JUNK] = -1
    paths = np.array([f"images/{number:03}.jpg" for number in range(n)])
    parts = slice(0, QUERIES), slice(QUERIES, n)
    return [FeatureSet(*(array[part] for array in (features, pids, camids, paths))) for part in parts]


@pytest.fixture(scope="module")
def subsets():
    return synthetic()


@pytest.fixture(scope="module")
def saved(subsets, tmp_path_factory):
    """A folder with query.npz, gallery.npz and distances.npy."""
    folder = tmp_path_factory.mktemp("saved")
    for name, features in zip(("query", "gallery"), subsets):
        save_features(folder / f"{name}.npz", features)
    np.save(folder / "distances.npy", l2_distances(subsets))
    return folder


def l2_distances(subsets):
    query, gallery = subsets
    return np.linalg.norm(query.features[:, None].astype(float) - gallery.features, axis=2)


def evaluated_json(folder, tmp_path, *arguments):
    assert call("--features", folder, f"--output={tmp_path / 'out.json'}", *arguments) == 0
    return json.loads((tmp_path / "out.json").read_text())


class TestFeaturesFromFiles:
    def test_the_table_shows_all_kinds_of_scores(self, saved, subsets, tmp_path, capsys):
        report = evaluated_json(saved, tmp_path, "--camera_pairs")
        out = capsys.readouterr().out
        assert out.startswith(table(report) + "\n\n" + camera_table(report["results"][0]) + "\n")
        (row,) = report["results"]
        expected = evaluate_features(*subsets)[0]["result"]
        assert f"{100 * expected.mINP:.1f}\n" in out
        for name in ("mAP", "mAP_trapezoid", "mINP"):
            assert row[name] == pytest.approx(getattr(expected, name), rel=1e-12)
        assert len(row["camera_pairs"]) == 6

    def test_saved_features_are_those_of_one_evaluation(self, saved, subsets, tmp_path):
        for name in ("query", "gallery", "multi_query"):
            shutil.copy(saved / "gallery.npz", tmp_path / f"{name}.npz")
        assert call("--features", saved, f"--save_features={tmp_path}") == 0
        assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["gallery.npz", "query.npz"]

    def test_people_with_the_pid_of_distractors(self, subsets, tmp_path, capsys):
        save_features(tmp_path / "people.npz", subsets[1]._replace(pids=subsets[1].pids % 2))
        assert call("--features", tmp_path / "people.npz", "--query_is_gallery") == 0
        zeros = int((subsets[1].pids % 2 == 0).sum())
        assert f"note: {zeros} images of pid 0 are distractors, which search for nobody\n" in capsys.readouterr().out

    def test_every_query_as_csv(self, saved, subsets, tmp_path, capsys):
        path = tmp_path / "new" / "queries.csv"
        assert call("--features", saved, f"--per_query={path}", "--k=3") == 0
        assert capsys.readouterr().out.endswith(f"written to {path}\n")
        expected = evaluate_features(*subsets, topk=3)[0]["result"]
        rows = list(csv.DictReader(path.open(encoding="utf-8")))
        assert [float(row["ap"]) for row in rows] == pytest.approx(expected.ap)
        assert [int(row["first_hit"]) for row in rows] == expected.first_hit.tolist()
        assert [int(row["matches"]) for row in rows] == expected.matches.tolist()
        for place in range(3):
            names = [row[f"image_{place + 1}"] for row in rows]
            assert names == subsets[1].paths[expected.topk_indices[:, place]].tolist()
        assert "image_4" not in rows[0]

    def test_every_query_as_npz(self, saved, subsets, tmp_path):
        path = tmp_path / "queries.npz"
        assert call("--features", saved, f"--per_query={path}", "--k=3") == 0
        expected = evaluate_features(*subsets, topk=3)[0]["result"]
        with np.load(path, allow_pickle=False) as arrays:
            for name in ("ap", "ap_trapezoid", "inp", "first_hit", "matches", "topk_indices", "topk_distances", "cmc"):
                np.testing.assert_allclose(arrays[name], getattr(expected, name), rtol=1e-12)
            assert arrays["query_names"].tolist() == subsets[0].paths.tolist()
            np.testing.assert_array_equal(arrays["topk_names"], subsets[1].paths[expected.topk_indices])

    def test_branches(self, saved, subsets, tmp_path):
        report = evaluated_json(saved, tmp_path, "--branches=global,local")
        expected = evaluate_features(*subsets, branches=BRANCHES)
        assert [row["feature"] for row in report["results"]] == ["joint", *BRANCHES]
        assert [row["mAP"] for row in report["results"]] == [row["result"].mAP for row in expected]

    def test_methods(self, saved, subsets, tmp_path, capsys):
        """Methods add rows to the table; the plain row does not change."""
        flags = ["--rerank", "--k1=8", "--k2=3", "--lambda_value=0.4", "--query_expansion=alpha", "--qe_k=4"]
        flags += ["--qe_alpha=2", "--database_augmentation=3", "--dba_alpha=1", "--branches=global,local"]
        report = evaluated_json(saved, tmp_path, *flags)
        methods = {
            "augmented": {"neighbours": 3, "alpha": 1},
            "expanded": {"neighbours": 4, "alpha": 2},
            "reranked": {"k1": 8, "k2": 3, "lambda_value": 0.4},
        }
        assert report["methods"] == methods
        expected = evaluate_features(*subsets, branches=BRANCHES, **methods)
        assert len(report["results"]) == len(expected) == 3 + 3 + 1
        for row, other in zip(report["results"], expected):
            assert {name: row[name] for name in ("feature", *METHODS)} == {
                name: other[name] for name in ("feature", *METHODS)
            }
            assert row["mAP"] == other["result"].mAP
        assert capsys.readouterr().out.startswith(table(report) + "\n")
        assert report["results"][0] == evaluated_json(saved, tmp_path)["results"][0]

    def test_average_expansion_has_no_weights(self, saved, subsets, tmp_path):
        report = evaluated_json(saved, tmp_path, "--query_expansion=average", "--branches=global,local")
        assert report["methods"] == {"expanded": {"neighbours": 5, "alpha": 0}}
        expected = evaluate_features(*subsets, branches=BRANCHES, **report["methods"])[-1]["result"]
        assert report["results"][-1]["mAP"] == expected.mAP

    def test_verification(self, saved, subsets, tmp_path, capsys):
        report = evaluated_json(saved, tmp_path, "--verification", "--rerank")
        assert capsys.readouterr().out.startswith(f"{table(report)}\n\n{verification_table(report)}\n")
        for row in report["results"]:
            points = row["verification"]["operating_points"]
            assert [point["wanted_fpr"] for point in points] == [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]

    def test_the_threshold_for_a_rate_of_false_accepts(self, saved, subsets, tmp_path, capsys):
        """Compared with a count in loops: at the threshold at most the wanted share of strangers is accepted."""
        rate = 0.037
        report = evaluated_json(saved, tmp_path, f"--false_accept_rate={rate}")
        assert f"threshold@{rate}" in capsys.readouterr().out
        query, gallery = subsets
        same = query.pids[:, None] == gallery.pids
        ranked = (gallery.pids != -1) & ~(same & (query.camids[:, None] == gallery.camids))
        distances = l2_distances(subsets)
        (point,) = (
            point for point in report["results"][0]["verification"]["operating_points"] if point["wanted_fpr"] == rate
        )
        impostors, genuine = distances[ranked & ~same], distances[ranked & same]
        below = point["threshold"] * (1 - 1e-9)  # distances here are rounded differently
        assert np.mean(impostors < below) <= rate < np.mean(impostors < below * 1.001) + 2 / len(impostors)
        assert point["fpr"] == pytest.approx(np.mean(impostors < below))
        assert point["tpr"] == pytest.approx(np.mean(genuine < below))

    def test_plots(self, saved, tmp_path, capsys, monkeypatch):
        drawn = {}
        for name in ("cmc", "precision_recall", "roc"):
            draw = getattr(han_tf.metrics.plots, f"plot_{name}")
            monkeypatch.setattr(
                f"han_tf.metrics.plots.plot_{name}",
                lambda results, name=name, draw=draw: drawn.setdefault(name, draw(results)),
            )
        folder = tmp_path / "plots"
        report = evaluated_json(saved, tmp_path, f"--plots={folder}", "--rerank", "--branches=global,local")
        out = capsys.readouterr().out
        assert verification_table(report) in out
        assert sorted(path.name for path in folder.iterdir()) == ["cmc.png", "precision_recall.png", "roc.png"]
        for name, figure in drawn.items():
            assert f"written to {folder / name}.png\n" in out
            assert Image.open(folder / f"{name}.png").size == (1500, 675)
            assert len(figure.axes[0].get_lines()) == len(report["results"]) == 4
            (legend,) = figure.legends
            called = [text.get_text().split(" (")[0] for text in legend.get_texts()]
            assert called == ["joint", "global", "local", "joint, re-ranked"]

    def test_plots_without_matplotlib(self, saved, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "han_tf.metrics.plots", None)
        monkeypatch.delattr(han_tf.metrics, "plots", raising=False)
        assert call("--features", saved, "--plots=plots") == 1
        (line,) = messages(capsys.readouterr().err)
        assert line.startswith("error: --plots needs Matplotlib (")
        assert line.endswith("expected: pip install matplotlib")

    @pytest.mark.parametrize("flag", ["--memory=77", "--memory_mb=77"])
    def test_features_are_mapped_and_the_memory_is_handed_on(self, saved, monkeypatch, flag):
        seen = {}

        def spy(*subsets, **options):
            seen.update(options, subsets=subsets)
            return evaluate_features(*subsets, **options)

        monkeypatch.setattr("han_tf.evaluate.evaluate_features", spy)
        assert call("--features", saved, flag) == 0
        assert seen["memory_mb"] == 77
        assert all(isinstance(subset.features, np.memmap) for subset in seen["subsets"])

    @pytest.mark.parametrize("labels_only", [True, False])
    def test_given_distances(self, saved, subsets, tmp_path, monkeypatch, capsys, labels_only):
        """They give the same numbers as the features they were made from, and are memory-mapped."""
        folder = saved
        if labels_only:
            folder = tmp_path
            for name, subset in zip(("query", "gallery", "multi_query"), [*subsets, subsets[0]]):
                np.savez(tmp_path / f"{name}.npz", pids=subset.pids, camids=subset.camids, paths=subset.paths)
        seen = []
        source = evaluate.MatrixDistances
        monkeypatch.setattr(evaluate, "MatrixDistances", lambda values: seen.append(values) or source(values))
        matrix = saved / "distances.npy"
        flags = ["--camera_pairs", "--false_accept_rate=0.01", f"--per_query={tmp_path / 'queries.csv'}"]
        report = evaluated_json(folder, tmp_path, f"--distances={matrix}", *flags)
        assert isinstance(seen[0], np.memmap)
        assert report["distances"] == str(matrix)
        (row,) = report["results"]
        assert (row["feature"], row["query"]) == ("distances", "single")
        (expected,) = evaluated_json(saved, tmp_path, "--verification")["results"]
        for name in ("mAP", "mAP_trapezoid", "mINP", "cmc", "precision_recall", "camera_pairs"):
            assert row[name] == expected[name]
        for name in ("equal_error_rate", "equal_error_threshold"):
            assert row["verification"][name] == pytest.approx(expected["verification"][name], rel=1e-6)
        assert "distances  single  plain" in capsys.readouterr().out
        first = next(csv.DictReader((tmp_path / "queries.csv").open()))
        assert first["query"] == subsets[0].paths[0]

    def test_the_readmes_commands_run(self, saved, tmp_path, monkeypatch):
        text = Path(han_tf.metrics.__file__).with_name("README.md").read_text(encoding="utf-8")
        commands = re.findall(r"^python -m han_tf\.evaluate (.*)$", text.replace("\\\n", " "), re.MULTILINE)
        assert len(commands) >= 4
        monkeypatch.chdir(tmp_path)
        for path in saved.iterdir():
            shutil.copy(path, tmp_path)
        for command in commands:
            assert call(*command.split()) == 0, command


INTERRUPTED = """
import os, sys
from han_tf import evaluate
from han_tf.common import cli, files
from han_tf.metrics import FeatureDistances

number, moment = int(sys.argv.pop()), sys.argv.pop()

def interrupted(*arguments):
    os.kill(os.getpid(), number)
    return whole(*arguments)

name, owner = {"ranking": ("finish", FeatureDistances), "writing": ("fsync", files.os)}[moment]
whole = getattr(owner, name)
setattr(owner, name, interrupted)
sys.exit(cli.run(evaluate.main, evaluate.FLAGS, evaluate.__doc__, positional="files"))
"""


@pytest.mark.parametrize(
    ("moment", "number"),
    [("ranking", signal.SIGINT), ("writing", signal.SIGKILL)],
)
def test_an_interrupted_evaluation_leaves_files_as_they_were(saved, tmp_path, moment, number):
    (tmp_path / "out.json").write_text("old")
    flags = ["--features", str(saved), f"--output={tmp_path}/out.json", f"--per_query={tmp_path}/new/queries.csv"]
    command = [sys.executable, "-c", INTERRUPTED, *flags, moment, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True)
    if number == signal.SIGINT:
        assert done.returncode == 130
        assert messages(done.stderr) == ["interrupted"]
        assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    else:
        assert done.returncode == -number
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".out.json.")] == ["out.json"]
    assert (tmp_path / "out.json").read_text() == "old"


def check_error(capsys, arguments, *named, status=1):
    """Checks that an error gives a status and one line with ``words``."""
    assert call(*arguments) == status
    (line,) = messages(capsys.readouterr().err)
    assert line.startswith("error: " if status == 1 else "usage error: ")
    for words in named:
        assert words in line


def with_value(features, row, value):
    changed = features.copy()
    changed[row, 3] = value
    return changed


EXPANDED = ("--query_expansion=alpha", "--branches=global,local")


class TestWrongFeatures:
    @pytest.mark.parametrize(
        ("subset", "array", "change", "words"),
        [
            ("gallery", "features", lambda a: a[:, :10], "gallery.npz: features have dimension 10, expected 16 as in "),
            ("query", "features", lambda a: a[0], "query.npz: features (16,), pids (30,)"),
            ("query", "features", lambda a: a[:9], "query.npz: features (9, 16), pids (30,)"),
            ("gallery", "camids", lambda a: a[:9], "gallery.npz: features (200, 16), pids (200,), camids (9,)"),
            ("query", "features", lambda a: None, "query.npz: no array 'features', expected features, pids and camids"),
            ("gallery", "pids", lambda a: None, "gallery.npz: no array 'pids'"),
            ("gallery", "camids", lambda a: None, "gallery.npz: no array 'camids'"),
            ("query", "features", lambda a: a.astype(str), "query.npz: features are <U32, expected numbers"),
            ("query", "features", lambda a: a.astype(complex), "query.npz: features are complex128, expected numbers"),
            ("query", "features", lambda a: a.astype(object), "query.npz: no NumPy archive (.npz) of plain arrays"),
            ("query", "pids", lambda a: a * 1.0, "query.npz: pids are float64, expected integers"),
            ("gallery", "camids", lambda a: a * 1.0, "gallery.npz: camids are float64, expected integers"),
            ("query", "features", lambda a: with_value(a, 4, np.nan), "query_features row 4 holds nan"),
            ("gallery", "features", lambda a: with_value(a, 5, -np.inf), "gallery_features row 5 holds -inf"),
            ("gallery", "features", lambda a: a * np.float32(1e30), "gallery_features row 0 holds a squared norm of"),
            ("query", "camids", lambda a: a - 2, "query_camids entry"),
            ("gallery", "camids", lambda a: a - 2, "gallery_camids entry"),
            ("query", "pids", lambda a: a + 100, "none of the 30 queries has a match in the gallery"),
            ("gallery", "pids", lambda a: a * 0 - 1, "none of the 30 queries has a match in the gallery"),
        ],
    )
    def test_arrays(self, capsys, subsets, tmp_path, subset, array, change, words):
        self.save(tmp_path, subsets, subset, array, change)
        output = tmp_path / "out.json"
        check_error(capsys, ["--features", tmp_path, f"--output={output}"], words)
        assert not output.exists()

    def save(self, folder, subsets, changed, array, change):
        for name, features in zip(("query", "gallery"), subsets):
            arrays = features._asdict()
            if name == changed:
                arrays[array] = change(arrays[array])
            np.savez(folder / f"{name}.npz", **{key: value for key, value in arrays.items() if value is not None})

    @pytest.mark.parametrize(
        ("subset", "change", "words"),
        [
            ("query", lambda a: 2 * a, "query features row 0 part 1 of 2 has L2 norm 2 (30 such rows), expected 1"),
            (
                "gallery",
                lambda a: 2 * a,
                "gallery features row 0 part 1 of 2 has L2 norm 2 (200 such rows), expected 1",
            ),
            ("gallery", lambda a: with_value(a, 5, np.nan), "gallery features row 5 holds nan"),
        ],
    )
    @pytest.mark.parametrize("flag", ["--query_expansion=alpha", "--database_augmentation=3"])
    def test_features_that_must_be_normalised(self, capsys, subsets, tmp_path, subset, change, words, flag):
        self.save(tmp_path, subsets, subset, "features", change)
        check_error(capsys, ["--features", tmp_path, "--branches=global,local", flag], words)

    @pytest.mark.parametrize(
        "more", [(), ("--branches=global,local",), EXPANDED, ("--rerank",)], ids=["plain", "branches", "QE", "re-rank"]
    )
    @pytest.mark.parametrize("subset", ["query", "gallery", "multi_query"])
    def test_the_image_of_a_feature_that_is_not_finite_is_named(self, capsys, subsets, tmp_path, subset, more):
        query, gallery = subsets
        others = query._replace(paths=np.array([f"other/{number}.jpg" for number in range(QUERIES)]))
        files = {"query": query, "gallery": gallery, "multi_query": others}
        bad = files[subset]._replace(features=with_value(files[subset].features, 6, np.nan))
        for name, features in {**files, subset: bad}.items():
            save_features(tmp_path / f"{name}.npz", features)
        check_error(capsys, ["--features", tmp_path, *more], "row 6 holds nan", f"; the image is {bad.paths[6]}")

    def test_the_image_of_a_feature_in_parquet_files_is_named(self, capsys, subsets, tmp_path):
        pytest.importorskip("pyarrow")
        query, gallery = subsets
        save_features(tmp_path / "query.npz", query)
        bad = gallery._replace(features=with_value(gallery.features, 6, np.inf))
        manifest = Manifest("0" * 64, DIMENSION, ("global", "local"), "f" * 64, len(bad.paths), 100)
        write_manifest(tmp_path / "gallery", manifest)
        for number in range(manifest.shards):
            rows = bad.where(np.arange(*manifest.bounds(number)))
            times, paths = np.full(len(rows.pids), np.nan), rows.paths.astype(object)
            write_shard(tmp_path / "gallery", manifest, number, FeatureBatch(*rows[:3], times, paths))
        words = f"gallery_features row 6 holds inf (1 such rows), expected finite numbers; the image is {bad.paths[6]}"
        check_error(capsys, ["--features", tmp_path / "query.npz", tmp_path / "gallery"], words)

    def test_an_image_without_a_path_is_not_named(self, capsys, subsets, tmp_path):
        nameless = [features._replace(paths=np.full(len(features.paths), "")) for features in subsets]
        self.save(tmp_path, nameless, "query", "features", lambda a: with_value(a, 4, np.nan))
        assert call("--features", tmp_path) == 1
        assert capsys.readouterr().err.rstrip().endswith("expected finite numbers")

    @pytest.mark.parametrize("empty", ["query", "gallery"])
    def test_no_images(self, capsys, subsets, tmp_path, empty):
        for name, features in zip(("query", "gallery"), subsets):
            save_features(tmp_path / f"{name}.npz", features.where(features.pids > (99 if name == empty else -2)))
        check_error(capsys, ["--features", tmp_path], f"{tmp_path}/{empty}.npz: no images, expected at least one")

    def test_no_strangers(self, capsys, subsets, tmp_path):
        for name, features in zip(("query", "gallery"), subsets):
            save_features(tmp_path / f"{name}.npz", features.where(features.pids == 3))
        check_error(capsys, ["--features", tmp_path, "--verification"], "there are no impostor pairs")

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--rerank", "--k1=194"), "--k1 is 194, expected 1 to 193: junk aside, the gallery has 193 images"),
            (("--rerank", "--k2=194"), "--k2 is 194, expected 1 to 193"),
            ((*EXPANDED, "--qe_k=194"), "--qe_k is 194, expected 1 to 193"),
            (("--database_augmentation=193", EXPANDED[1]), "--database_augmentation is 193, expected 1 to 192"),
            (("--branches=a,b,c",), "dimension 16, expected a multiple of 3"),
            (("--query_expansion=average", "--branches=a,b,c"), "dimension 16, expected a multiple of 3"),
            (
                ("--database_augmentation=3",),
                "query features (as one part, without --branches) row 0 has L2 norm 1.414 (30 such rows), expected 1",
            ),
        ],
    )
    def test_settings_out_of_range(self, capsys, saved, flags, words):
        check_error(capsys, ["--features", saved, *flags], words)

    def test_the_limits_are_allowed(self, saved):
        flags = ["--rerank", "--k2=193", "--qe_k=193", "--database_augmentation=192", *EXPANDED]
        assert call("--features", saved, *flags) == 0

    def test_a_damaged_file(self, capsys, saved, tmp_path):
        """One wrong bit in the features must be found: it would change a number."""
        shutil.copy(saved / "query.npz", tmp_path)
        content = bytearray((saved / "gallery.npz").read_bytes())
        content[len(content) // 3] ^= 4
        (tmp_path / "gallery.npz").write_bytes(content)
        check_error(capsys, ["--features", tmp_path], f"{tmp_path}/gallery.npz: no NumPy archive", "Bad CRC-32")
        (tmp_path / "gallery.npz").write_bytes(content[:-100])
        check_error(capsys, ["--features", tmp_path], f"{tmp_path}/gallery.npz: no NumPy archive")

    def test_files_named_wrongly(self, capsys, saved, tmp_path):
        query, gallery = saved / "query.npz", saved / "gallery.npz"
        check_error(capsys, ["--features", gallery, gallery], f"--features has {gallery} twice")
        check_error(capsys, ["--features", query, gallery, gallery], f"--features has {gallery} twice")
        check_error(capsys, ["--features", saved, gallery], f"{saved}: Is a directory")
        shutil.copy(gallery, tmp_path)
        check_error(capsys, ["--features", tmp_path], f"{tmp_path}/query.npz: No such file or directory")

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda d: d.T, "shape [200, 30], expected [30, 200], queries × gallery images"),
            (lambda d: d[0], "shape [200], expected [30, 200]"),
            (lambda d: with_value(d, 2, np.nan), "distances[2, 3] is nan, expected finite numbers"),
            (lambda d: with_value(d, 2, np.inf), "distances[2, 3] is inf, expected finite numbers"),
            (lambda d: d.astype(complex), "distances has dtype complex128, expected real numbers"),
            (lambda d: d.astype(str), "distances has dtype <U32, expected real numbers"),
            (lambda d: d.astype(object), "d.npy: no matrix of distances (.npy) (Array can't be memory-mapped"),
        ],
    )
    def test_distances(self, capsys, saved, subsets, tmp_path, make, words):
        np.save(tmp_path / "d.npy", make(l2_distances(subsets)))
        check_error(capsys, [f"--distances={tmp_path}/d.npy", "--features", saved], words)

    def test_distances_in_other_files(self, capsys, saved, tmp_path):
        flags = ["--features", saved]
        check_error(capsys, [*flags, f"--distances={tmp_path}/no.npy"], f"{tmp_path}/no.npy: No such file or directory")
        check_error(capsys, [*flags, f"--distances={tmp_path}"], f"{tmp_path}: Is a directory")
        check_error(capsys, [*flags, f"--distances={saved}/query.npz"], "query.npz: no matrix of distances (.npy)")
        (tmp_path / "cut.npy").write_bytes((saved / "distances.npy").read_bytes()[:-8])
        check_error(capsys, [*flags, f"--distances={tmp_path}/cut.npy"], "cut.npy: no matrix of distances (.npy)")
        (tmp_path / "empty.npy").touch()
        check_error(capsys, [*flags, f"--distances={tmp_path}/empty.npy"], "empty.npy: no matrix of distances (.npy)")
        files = ["--features", saved / "query.npz", saved / "gallery.npz", saved / "multi.npz"]
        flags = [f"--distances={saved}/distances.npy", *files]
        check_error(capsys, flags, "--features has 3 files, expected query.npz,gallery.npz", status=2)

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            *(
                (("--features=folder", flag), f"expected them without {flag.split('=')[0]}")
                for flag in (
                    "--model=a",
                    "--runs_dir=a",
                    "--checkpoint=best",
                    "--dataset=market1501",
                    "--split=detected",
                    "--data_dir=a",
                    "--skip_bad_images",
                )
            ),
            *(
                (("--features=folder", "--distances=d.npy", flag), f"{flag.split('=')[0]} needs features")
                for flag in (
                    "--rerank",
                    "--query_expansion=alpha",
                    "--database_augmentation=3",
                    "--branches=a,b",
                    "--save_features=a",
                )
            ),
            (("--distances=d.npy",), "--distances means nothing without --features"),
            (("--draws=3",), "--draws means nothing without --single_gallery_shot"),
            (("--seed=3",), "--seed means nothing without --single_gallery_shot"),
            (("--single_gallery_shot", "--draws=0"), "--draws=0"),
            (("--query_is_gallery",), "--query_is_gallery means nothing without --features"),
            (("--names=market1501",), "--names means nothing without --images"),
            (("--images=a", "--dataset=market1501"), "--dataset means nothing with --images"),
            (("--images=a", "--rerank"), "--rerank with --images: each image would be its own neighbour"),
            (("--features=a", "--images=a"), "expected them without --images"),
            (
                ("--features=a", "--query_is_gallery", "--database_augmentation=2"),
                "--database_augmentation with --query_is_gallery: each image",
            ),
            (("--branches=a,b",), "--branches means nothing without --features"),
            (("--k1=3",), "--k1 means nothing without --rerank"),
            (("--k2=3",), "--k2 means nothing without --rerank"),
            (("--lambda_value=0.5",), "--lambda_value means nothing without --rerank"),
            (("--qe_k=3",), "--qe_k means nothing without --query_expansion"),
            (("--dba_alpha=3",), "--dba_alpha means nothing without --database_augmentation"),
            (("--k=3",), "--k means nothing without --per_query"),
            (("--query_expansion=average", "--qe_alpha=2"), "nothing without --query_expansion=alpha"),
            (("--qe_alpha=2",), "nothing without --query_expansion=alpha"),
            (("--query_expansion=mean",), "--query_expansion=mean"),
            (("--per_query=out.txt",), "--per_query=out.txt: expected a name that ends in .csv or .npz"),
            (("--per_query=out",), "expected a name that ends in .csv or .npz"),
            (("--false_accept_rate=0",), "--false_accept_rate=0.0: expected a rate above 0"),
            (("--false_accept_rate=2",), "--false_accept_rate=2"),
            (("--false_accept_rate=nan",), "--false_accept_rate=nan"),
            (("--branches=a,a", "--features=folder"), "two or more different names, none of them joint"),
            (("--branches=a", "--features=folder"), "two or more different names, none of them joint"),
            (("--branches=joint,a", "--features=folder"), "two or more different names, none of them joint"),
            (("--memory=15",), "15 is not integer >= 16"),
            (("--database_augmentation=-1",), "--database_augmentation=-1"),
        ],
    )
    def test_flags_that_do_not_go_together(self, capsys, flags, words):
        check_error(capsys, flags, words, status=2)


def mean_scores(queries, gallery, left_out):
    """Rank-1 and mAP without junk and without the pairs that are ``left_out(query, image)``, by plain loops."""
    first, precisions = [], []
    for query, pid in enumerate(queries.pids):
        squared = ((gallery.features.astype(float) - queries.features[query]) ** 2).sum(axis=1)
        others = [i for i in range(len(squared)) if gallery.pids[i] != -1 and not left_out(query, i)]
        others.sort(key=lambda image: (squared[image], image))
        hits = [place for place, image in enumerate(others, 1) if gallery.pids[image] == pid not in (-1, 0)]
        if hits:
            first.append(hits[0] == 1)
            precisions.append(np.mean([number / place for number, place in enumerate(hits, 1)]))
    return np.mean(first), np.mean(precisions)


class TestOtherProtocols:
    @pytest.mark.parametrize("within", [False, True])
    def test_queries_that_are_the_gallery(self, saved, subsets, tmp_path, capsys, within):
        _, images = subsets
        flags = ["--query_is_gallery", *["--within_camera"] * within]
        report = evaluated_json(saved / "gallery.npz", tmp_path, *flags)

        def left_out(query, image):
            same = images.pids[image] == images.pids[query] and images.camids[image] == images.camids[query]
            return image == query or (same and not within)

        row = report["results"][0]
        assert (row["rank-1"], row["mAP"]) == pytest.approx(mean_scores(images, images, left_out), abs=1e-12)
        assert report["counts"]["queries"] == report["counts"]["gallery"] == IMAGES
        assert (report["protocol"]["query_is_gallery"], report["protocol"]["within_camera"]) == (True, within)
        out = capsys.readouterr().out
        assert "every image searches all others" in out
        assert ("from its own camera count as matches" in out) == within

    def test_distractors_among_the_queries_find_nobody(self, tmp_path):
        """They have one pid, 0, but are different people."""
        rng = np.random.default_rng(0)
        people = np.repeat(np.eye(2, 8), 3, axis=0)
        features = np.concatenate([people, rng.standard_normal((60, 8))]).astype(np.float32)
        pids, camids = np.r_[[1] * 3, [2] * 3, np.zeros(60, int)], np.arange(66) % 3
        save_features(tmp_path / "all.npz", FeatureSet(features, pids, camids, np.full(66, "")))
        report = evaluated_json(tmp_path / "all.npz", tmp_path, "--query_is_gallery")
        row, counts = report["results"][0], report["counts"]
        assert (row["rank-1"], row["mAP"]) == (1, 1)
        assert (counts["queries"], counts["queries_without_match"], counts["distractors"]) == (66, 60, 60)

    @pytest.mark.parametrize("junk", [0, 3])
    def test_junk_among_the_queries_makes_no_pairs(self, tmp_path, junk):
        features = np.random.default_rng(0).standard_normal((5 + junk, 8)).astype(np.float32)
        pids, camids = np.array([1, 1, 2, 2, 0] + [-1] * junk), np.array([0, 1, 0, 1, 0] + [2] * junk)
        save_features(tmp_path / "all.npz", FeatureSet(features, pids, camids, np.full(5 + junk, "")))
        per_query = tmp_path / "queries.csv"
        report = evaluated_json(
            tmp_path / "all.npz", tmp_path, "--query_is_gallery", "--verification", f"--per_query={per_query}"
        )
        pairs = report["results"][0]["verification"]
        # Each of five images with the four others, without those of one person, which make four pairs.
        assert (pairs["genuine_pairs"], pairs["impostor_pairs"]) == (4, 5 * 4 - 4)
        with per_query.open(newline="") as stream:
            assert [int(row["pid"]) for row in csv.DictReader(stream)] == pids.tolist()

    def test_matches_within_a_camera(self, saved, subsets, tmp_path):
        row = evaluated_json(saved, tmp_path, "--within_camera")["results"][0]
        expected = mean_scores(*subsets, lambda query, image: False)
        assert (row["rank-1"], row["mAP"]) == pytest.approx(expected, abs=1e-12)

    def test_one_gallery_image_per_person(self, saved, subsets, tmp_path, capsys):
        report = evaluated_json(
            saved, tmp_path, "--single_gallery_shot", "--draws=7", "--seed=3", "--branches=global,local"
        )
        query, gallery = subsets
        labels = (query.pids, gallery.pids, query.camids, gallery.camids)
        expected = single_gallery_shot(FeatureDistances(query.features, gallery.features), *labels, draws=7, seed=3)
        row = report["results"][0]
        assert row["single_gallery_shot"]["cmc"] == expected.cmc.tolist()
        assert row["single_gallery_shot"]["rank-1"] < row["rank-1"]  # fewer matches, but also fewer other people
        assert {row["single_gallery_shot"]["seed"] for row in report["results"]} == {3}
        out = capsys.readouterr().out
        assert "one gallery image of every person: means over 7 draws for each query, seed 3" in out
        assert f"{expected.cmc[0]:.1%}"[:-1] in out

    def test_an_exported_model(self, plain_model, plain_weights, tiny_data, tmp_path, capsys):
        output = tmp_path / "out.json"
        arguments = [f"--model={plain_model}", "--dataset=market1501", f"--data_dir={tiny_data}", f"--output={output}"]
        assert call(*arguments, "--within_camera") == 0
        dataset = load_dataset("market1501", tiny_data)
        size = read_card(plain_model).input_size

        def features(records):
            pixels = [resize(decode_image(record.path)[None], size) for record in records]
            return FeatureSet.of(
                np.concatenate(pixels).reshape(len(records), -1).astype(np.float32) @ plain_weights, records
            )

        expected = mean_scores(features(dataset.query), features(dataset.gallery), lambda query, image: False)
        report = json.loads(output.read_text())
        assert (report["results"][0]["rank-1"], report["results"][0]["mAP"]) == pytest.approx(expected, abs=1e-3)
        assert (report["run"], report["checkpoint"]) == (str(plain_model), "openvino-float32")
        check_error(capsys, [*arguments, "--checkpoint=best"], "--checkpoint best with the export")

    def test_images_that_are_no_data_set(self, evaluated, tiny_run, tiny_data, tmp_path, capsys):
        output = f"--output={tmp_path / 'images.json'}"
        folder = tiny_data / "query"
        arguments = [f"--model={tiny_run}", f"--images={folder}", "--within_camera"]
        check_error(capsys, arguments, f"{folder}/", "no pid is known")
        twice = [
            f"--model={tiny_run}",
            f"--images={folder}",
            f"--images={folder}",
            "--within_camera",
            "--names=market1501",
            output,
        ]
        assert call(*twice) == 0
        assert "note: 22 images were listed more than once, taken once" in capsys.readouterr().out
        found = json.loads((tmp_path / "images.json").read_text())
        saved = evaluated_json(evaluated / "features" / "query.npz", tmp_path, "--query_is_gallery", "--within_camera")
        assert found["results"][0]["mAP"] == pytest.approx(saved["results"][0]["mAP"], abs=1e-6)
        assert found["images"] == [str(folder)] * 2
        assert not (tiny_run / "evaluation.json").exists()


class TestWrongInput:
    def test_outputs_in_the_place_of_inputs(self, saved, capsys, tmp_path):
        shutil.copytree(saved, tmp_path / "saved")
        features = tmp_path / "saved"
        before = {path: path.read_bytes() for path in features.iterdir()}
        for flags in (
            [f"--output={features / 'query.npz'}"],
            [f"--per_query={features / 'gallery.npz'}"],
            [f"--save_features={tmp_path / 'saved' / '..' / 'saved'}"],
        ):
            check_error(capsys, [f"--features={features}", *flags], "which is read, expected another name", status=2)
        check_error(capsys, [f"--features={features}", f"--output={tmp_path}"], f"cannot write {tmp_path}: it is a fol")
        assert {path: path.read_bytes() for path in features.iterdir()} == before

    def test_outputs_in_the_place_of_listed_images(self, capsys, tiny_run, tiny_data, tmp_path):
        records = tmp_path / "records.csv"
        images = [*(tiny_data / "query").glob("*.jpg")][:2]
        rows = [f"{image},1,{camid},{subset}" for image, camid, subset in zip(images, (1, 2), ("query", "gallery"))]
        records.write_text("\n".join(["path,pid,camid,subset", *rows]))
        before = records.read_text()
        for flags in (
            [f"--images={records}", f"--per_query={records}"],
            [f"--images={records}", f"--output={records}"],
            ["--dataset=csv", f"--data_dir={tmp_path}", f"--per_query={records}"],
            ["--dataset=csv", f"--data_dir={records}", f"--output={records}"],
        ):
            check_error(capsys, [f"--model={tiny_run}", *flags], "which is read, expected another name", status=2)
            assert records.read_text() == before

    def test_outputs_in_the_place_of_each_other(self, saved, capsys, tmp_path):
        for flags in (
            [f"--output={tmp_path / 'a.csv'}", f"--per_query={tmp_path / '.' / 'a.csv'}"],
            [f"--save_features={tmp_path}", f"--per_query={tmp_path / 'query.npz'}"],
        ):
            check_error(capsys, [f"--features={saved}", *flags], "writes, expected another name", status=2)
        assert not list(tmp_path.iterdir())

    def test_no_runs(self, capsys, tmp_path):
        check_error(capsys, [f"--runs_dir={tmp_path}"], f"no run with a checkpoint in {tmp_path}: make train makes one")

    @pytest.mark.parametrize(("split", "name"), [("detected", "detected"), ("labeled", "labelled")])
    def test_a_split_without_a_run(self, capsys, evaluated, split, name):
        """The split alone selects CUHK03; a run of another data set is not used."""
        expected = f"no cuhk03 {name} run with a checkpoint in {evaluated / 'runs'}: "
        command = f"make train DATASET=cuhk03 SPLIT={name} makes one"
        check_error(capsys, [f"--runs_dir={evaluated / 'runs'}", f"--split={split}"], expected + command)

    def test_a_data_set_without_a_run(self, capsys, evaluated):
        arguments = [f"--runs_dir={evaluated / 'runs'}", "--dataset=dukemtmc"]
        check_error(capsys, arguments, "no dukemtmc run with a checkpoint", "make train DATASET=dukemtmc makes one")

    def test_an_unknown_split(self, capsys, tiny_run):
        arguments = [f"--run={tiny_run}", "--split=detecte"]
        check_error(capsys, arguments, "no dataset has a split 'detecte'", "detected (cuhk03)", "trainval (msmt17)")

    def test_a_split_of_another_data_set(self, capsys, tiny_run):
        arguments = [f"--run={tiny_run}", "--split=detected", "--dataset=market1501"]
        check_error(capsys, arguments, "dataset 'market1501' has no split 'detected', expected no --split")

    def test_an_unknown_data_set(self, capsys, tiny_run):
        arguments = [f"--run={tiny_run}", "--dataset=market"]
        check_error(capsys, arguments, "unknown dataset 'market', expected one of synthetic, cuhk03, market1501")

    def test_no_such_run(self, capsys, tmp_path):
        arguments = [f"--run={tmp_path / 'nowhere'}"]
        check_error(capsys, arguments, f"{tmp_path}/nowhere: no such folder, expected that of a")

    @pytest.mark.parametrize(
        ("made", "found"), [(None, "no such folder"), ("file", "a file"), ("folder", "no bounding")]
    )
    def test_an_unreadable_data_folder(self, capsys, tmp_path, monkeypatch, tiny_run, made, found):
        monkeypatch.setattr("han_tf.runs.checkpoints.Checkpoints.restore", lambda self, partial: "checkpoint")
        data = tmp_path / "data"
        if made == "file":
            data.touch()
        elif made == "folder":
            data.mkdir()
        check_error(capsys, [f"--run={tiny_run}", f"--data_dir={data}"], f"{data}: {found}")

    def test_an_unreadable_image(self, capsys, tmp_path, tiny_data, tiny_run, evaluated):
        shutil.copytree(tiny_data, tmp_path / "data")
        bad = sorted((tmp_path / "data" / "query").iterdir())[3]
        bad.write_bytes(b"")
        arguments = [f"--run={tiny_run}", f"--data_dir={tmp_path / 'data'}", f"--output={tmp_path / 'out.json'}"]
        check_error(capsys, arguments, f"{bad}: not a readable image", "--skip_bad_images")
        assert not (tmp_path / "out.json").exists()

        assert call(*arguments, "--skip_bad_images") == 0
        assert str(bad) in capsys.readouterr().err
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
        check_error(capsys, ["--features", missing], f"--features {missing}: no such folder")
        check_error(capsys, ["--features", tmp_path], f"{tmp_path}/query.npz: No such file or directory")
        check_error(capsys, ["--features", good, missing], f"{missing}: No such file or directory")
        check_error(capsys, ["--features", good], "--features has 1 files, expected query.npz,gallery.npz", status=2)
        check_error(capsys, ["--features", *[good] * 4], "--features has 4 files", status=2)

    def test_names_that_are_too_long(self, capsys, evaluated):
        name = "n" * 300
        features = ["--features", evaluated / "features"]
        check_error(capsys, [*features, f"--output={name}.json"], f"{name}.json: File name too long")
        check_error(capsys, [*features, f"--per_query={name}.csv"], f"{name}.csv: File name too long")
        check_error(capsys, ["--features", name], f"--features {name}: no such folder")
        check_error(capsys, ["--model", name], f"{name}/card.json: File name too long")

    def test_features_that_do_not_fit(self, capsys, evaluated, tmp_path):
        files = {name: load_features(evaluated / "features" / f"{name}.npz") for name in ("query", "gallery")}
        query = [evaluated / "features" / "query.npz"]
        for features, words in (
            (files["gallery"].features[:, :10], "expected 1024"),
            (np.where(files["gallery"].pids[:, None] == -1, np.nan, files["gallery"].features), "nan"),
        ):
            np.savez(tmp_path / "odd.npz", **{**files["gallery"]._asdict(), "features": features})
            check_error(capsys, ["--features", *query, tmp_path / "odd.npz"], words)

    def test_a_file_without_its_flag(self, capsys, tiny_run):
        words = "unexpected argument 'query.npz'", "--features"
        check_error(capsys, [f"--run={tiny_run}", "query.npz"], *words, status=2)

    def test_reranking_out_of_range(self, capsys, evaluated):
        arguments = ["--features", evaluated / "features", "--rerank"]
        check_error(capsys, [*arguments, "--k1=400"], "k1 is 400, expected 1 to ")
        check_error(capsys, [*arguments, "--lambda_value=1.5"], "--lambda_value=1.5", status=2)
        check_error(capsys, [*arguments, "--lambda_value=nan"], "--lambda_value=nan", status=2)
        check_error(capsys, [*arguments, "--memory_mb=1"], "--memory_mb=1", status=2)

    @pytest.mark.parametrize("flag", ["output", "per_query", "save_features", "plots"])
    def test_files_that_cannot_be_written(self, capsys, evaluated, tmp_path, monkeypatch, flag):
        """They are found before any computation."""
        monkeypatch.setattr(evaluate, "load_features", None)
        (tmp_path / "file").touch()
        arguments = ["--features", evaluated / "features", f"--{flag}={tmp_path}/file/inner.csv"]
        check_error(capsys, arguments, f"cannot write {tmp_path}/file/inner")

    def test_a_checkpoint_of_another_network(self, tiny_run, tmp_path):
        """In a separate process, since TensorFlow prints warnings at the end."""
        shutil.copytree(tiny_run, tmp_path / "run")
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "num_classes": 9}))
        command = [sys.executable, "-m", "han_tf.evaluate", f"--run={tmp_path / 'run'}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        # Since 2.16 TensorFlow writes lines of its own, whatever it is told.
        own = re.compile(r"[IW]\d{4} |WARNING: All log messages before absl")
        (line,) = [line for line in done.stderr.splitlines() if not own.match(line)]
        assert line.startswith(f"error: {tmp_path}/run/checkpoints/ckpt-")
        assert "checkpoint of another model" in line


def test_saved_features_are_evaluated_without_tensorflow(saved, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    done = subprocess.run(
        [sys.executable, "-m", "han_tf.evaluate", "--features", str(saved), "--rerank", "--verification"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mAP" in done.stdout

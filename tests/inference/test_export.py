"""A trained network is exported, checked, and kept only if it still does what it did."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from han_tf import export
from han_tf.cli import run
from han_tf.errors import UserError
from han_tf.inference import checking, exporters
from han_tf.inference.card import CARD, READABLE, read_card
from han_tf.inference.export import _replace
from han_tf.inference.exporters import FORMATS, INT8, check_supported
from han_tf.inference.extractor import FeatureExtractor

FAST = "saved_model"
"""The format that is written in a second."""


def command(*arguments):
    return run(export.main, export.FLAGS, export.__doc__, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """The folder of the exports of the tiny run in two formats, and what was printed."""
    folder = tmp_path_factory.mktemp("exports")
    assert command("--run", tiny_run, "--format", "saved_model,tflite", "--output", folder) == 0
    return folder


def test_exports_are_folders_with_a_card(exported, tiny_run):
    original = FeatureExtractor(tiny_run).card
    for name in ("saved_model", "tflite"):
        folder = exported / f"{name}-float32"
        card = read_card(folder)
        assert (card.format, card.precision) == (name, "float32")
        assert card.checksum == original.checksum
        assert card.accuracy == original.accuracy
        assert card.licence.startswith("research use only")
        assert set(card.files) == {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and path.name not in (CARD, READABLE)
        }
        assert card.check["least_cosine"] > 0.99999
        assert card.check["accuracy"] == pytest.approx(card.check["keras_accuracy"], abs=1e-3)
        assert "research use only" in (folder / READABLE).read_text()
        assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(exported.stat().st_mode)


def test_the_table_is_saved(exported):
    report = json.loads((exported / export.TABLE).read_text())
    assert [(row["format"], row["precision"]) for row in report["exports"]] == [
        ("keras", "float32"),
        ("saved_model", "float32"),
        ("tflite", "float32"),
    ]
    for row in report["exports"]:
        assert row["images_per_second"] > 0
        assert 0 <= row["mAP"] <= 1
    assert report["dataset"] == "market1501"
    text = export.table(report["exports"])
    assert len({len(line) for line in text.splitlines()}) == 1


def test_the_table_keeps_earlier_exports_of_the_same_network(tmp_path):
    rows = [{"format": name, "precision": "float32", "mAP": 0.5} for name in ("keras", "onnx", "tflite", "openvino")]
    for name in ("onnx", "tflite"):
        (tmp_path / f"{name}-float32").mkdir()
        (tmp_path / f"{name}-float32" / CARD).write_text("{}")
    assert export._earlier(tmp_path, "a", rows[:1]) == []
    (tmp_path / export.TABLE).write_text(json.dumps({"checksum": "a", "exports": rows}))
    assert export._earlier(tmp_path, "a", rows[:1]) == rows[1:3]  # the last one's folder is gone
    assert export._earlier(tmp_path, "a", rows[:2]) == rows[2:3]
    assert export._earlier(tmp_path, "b", rows[:1]) == []
    (tmp_path / export.TABLE).write_text("[")
    assert export._earlier(tmp_path, "a", rows[:1]) == []


def test_nothing_else_is_left(exported):
    assert sorted(path.name for path in exported.iterdir()) == ["exports.json", "saved_model-float32", "tflite-float32"]


@pytest.fixture
def spoiled(monkeypatch):
    """Lets the exported features be those of other images."""

    def spoil(amount):
        original = FeatureExtractor.embed
        noise = np.random.default_rng(0)

        def embed(extractor, images):
            features = original(extractor, images)
            return features + amount * noise.normal(size=features.shape).astype(np.float32)

        monkeypatch.setattr(FeatureExtractor, "embed", embed)

    return spoil


def test_what_differs_is_not_kept(tiny_run, tmp_path, capsys, spoiled):
    """One that stood there before stays."""
    old = tmp_path / "saved_model-float32"
    old.mkdir()
    (old / CARD).write_text("{}")
    spoiled(0.05)
    assert command("--run", tiny_run, "--format", FAST, "--output", tmp_path, "--noaccuracy") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: not kept: saved_model in float32 the norm of a branch is off 1 by")
    assert "not kept" in captured.out
    assert [path.name for path in old.iterdir()] == [CARD]
    assert (old / CARD).read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exports.json", old.name]


def test_a_lost_accuracy_is_told():
    check = {"largest_difference": 0.01, "mean_cosine": 0.99999, "least_cosine": 0.9, "norm_error": 0.0}
    losses = {"keras_accuracy": {"mAP": 0.5}, "accuracy": {"mAP": 0.497}}
    assert checking.shortcomings(check, "float32") is None
    assert checking.shortcomings({**check, **losses}, INT8) is None
    assert checking.shortcomings({**check, **losses}, "bfloat16") == "loses 0.30 points of mAP, expected at most 0.1"
    losses["accuracy"] = {"mAP": 0.494}
    assert checking.shortcomings({**check, **losses}, INT8) == "loses 0.60 points of mAP, expected at most 0.5"
    assert checking.shortcomings({**check, "largest_difference": np.nan}, INT8) == "its features are not finite"
    assert "mean cosine to the Keras features is 0.8000" in checking.shortcomings({**check, "mean_cosine": 0.8}, INT8)
    assert "off 1 by 0.020" in checking.shortcomings({**check, "norm_error": 0.02}, INT8)


def test_features_are_compared_row_by_row():
    expected = np.array([[1, 0], [0, 1], [3, 4]], np.float32)
    found = np.array([[1, 0], [1, 0], [3, 4.5]], np.float32)
    result = checking.compare(expected, found, 1)
    assert result["images"] == 3
    assert result["largest_difference"] == pytest.approx(1)
    assert result["least_cosine"] == pytest.approx(0, abs=1e-6)
    assert result["norm_error"] == pytest.approx(np.hypot(3, 4.5) - 1)
    assert checking.compare(expected, found, 2)["norm_error"] == pytest.approx(3.5)
    assert result["mean_cosine"] == pytest.approx((1 + 0 + (9 + 18) / (5 * np.hypot(3, 4.5))) / 3)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("--format", "onnx", "--precision", "bfloat16"),
            "onnx cannot be exported in bfloat16, expected float32 or int8",
        ),
        (
            ("--format", "saved_model", "--precision", "int8"),
            "saved_model cannot be exported in int8, expected float32",
        ),
        (("--format", "caffe"), "--format is 'caffe', expected some of saved_model, tflite, onnx, openvino, or all"),
        (("--precision", "float8"), "--precision is 'float8', expected some of float32"),
        (("--format", FAST, "--data_dir", "/no/such/folder"), "/no/such/folder"),
        (("--format", FAST, "--dataset", "nothing"), "unknown dataset 'nothing'"),
        (("--format", FAST, "--run", "/no/such/run"), "/no/such/run/config.json: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(tiny_run, tmp_path, capsys, arguments, line):
    assert command("--run", tiny_run, "--output", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_all_stands_for_what_there_is():
    pairs = export._pairs(["all"], ["all"])
    assert pairs == [(name, precision) for name, entry in FORMATS.items() for precision in entry.precisions]
    assert export._pairs(["tflite", "onnx"], ["all"]) == [pair for pair in pairs if pair[0] in ("tflite", "onnx")]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(exporters, "require", lambda package, what: (_ for _ in ()).throw(UserError(package)))
    check_supported("tflite", INT8)
    with pytest.raises(UserError, match=r"nncf|openvino"):
        check_supported("openvino", INT8)


def test_int8_wants_the_training_images(tiny_run, tmp_path, capsys):
    moved = tmp_path / "run"
    moved.mkdir()
    for name in ("checkpoints", "config.json"):
        (moved / name).symlink_to(Path(tiny_run) / name)
    config = json.loads((Path(tiny_run) / "config.json").read_text())
    (moved / "config.json").unlink()
    (moved / "config.json").write_text(json.dumps({**config, "data_dir": str(tmp_path / "gone")}))
    assert command("--run", moved, "--format", "onnx", "--precision", "int8") == 1
    captured = capsys.readouterr()
    assert "int8 is calibrated on the training images of market1501, which are not there" in captured.err
    assert "note: no accuracies are compared" in captured.out


def test_something_else_in_the_way_is_not_overwritten(tmp_path):
    target, temporary = tmp_path / "saved_model-float32", tmp_path / "new"
    for folder, name in ((target, "mine"), (temporary, CARD)):
        folder.mkdir()
        (folder / name).write_text(name)
    with pytest.raises(UserError, match="exists and is no exported model, expected another --output"):
        _replace(target, temporary)
    assert (target / "mine").read_text() == "mine"
    (target / CARD).write_text("an older one")
    _replace(target, temporary)
    assert [path.name for path in target.iterdir()] == [CARD]
    assert [path.name for path in tmp_path.iterdir()] == [target.name]

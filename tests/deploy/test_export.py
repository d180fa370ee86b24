"""A trained network is exported, checked, and kept only if its features and accuracy are good enough."""

import base64
import dataclasses
import functools
import io
import json
import shutil
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from han_tf import export
from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.common.files import locked
from han_tf.data import load_dataset
from han_tf.deploy import checking, exporters, measuring, writing
from han_tf.deploy.exporters import FORMATS, INT8, check_supported
from han_tf.deploy.graph import INPUT, OUTPUT
from han_tf.deploy.writing import Comparison, Export, check_place
from han_tf.features.extractor import FeatureExtractor
from han_tf.runs.card import CARD, READABLE, read_card, verify_files
from han_tf.runs.checkpoints import Checkpoints
from han_tf.runs.folder import CHECKPOINTS, load_run
from han_tf.runtimes import probes
from han_tf.runtimes.keras import card_of
from tests.conftest import measure_here, rewrite_card

FAST = "saved_model"
"""The format that is fastest to write."""


def command(*arguments):
    return run(export.main, export.FLAGS, export.__doc__, ["export", *map(str, arguments)])


@pytest.fixture(autouse=True, scope="module")
def _loaded_once(tiny_run):
    """Exports share the network of the tiny run, which they leave as it is: to load and trace it takes seconds."""
    load = writing.load_run
    once = functools.cache(load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "TIMED_IMAGES", 16)
        patch.setattr(writing, "load_run", lambda folder, which: (once if folder == tiny_run else load)(folder, which))
        yield


@pytest.fixture(autouse=True)
def _measured_here(monkeypatch):
    """All exports but those of :func:`exported` are measured in this process."""
    monkeypatch.setattr(writing, "measure_apart", measure_here)


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """The folder of the tiny run's exports in two formats."""
    folder = tmp_path_factory.mktemp("exports")
    for name in (".tflite-float32.abc.tmp", ".tflite-float32.abc.old"):
        (folder / name).mkdir()
        (folder / name / "model.tflite").touch()
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


def test_the_table_keeps_earlier_exports_of_any_network(exported, tmp_path):
    checksum = read_card(exported / "tflite-float32").checksum
    rows = [{"format": name, "precision": "float32", "mAP": 0.5} for name in ("keras", "onnx", "tflite", "openvino")]
    for name in ("onnx", "tflite"):
        (tmp_path / f"{name}-float32").mkdir()
        shutil.copy(exported / "tflite-float32" / CARD, tmp_path / f"{name}-float32")
    assert export._earlier(tmp_path, rows[:1]) == []
    (tmp_path / export.TABLE).write_text(json.dumps({"checksum": checksum, "exports": rows}))  # as older versions
    told = [{"checksum": checksum, **row} for row in rows]
    assert export._earlier(tmp_path, rows[:1]) == told[1:3]  # openvino has no folder
    assert export._earlier(tmp_path, rows[:2]) == told[2:3]
    others = [{**told[1], "checksum": "b"}, told[2]]
    (tmp_path / export.TABLE).write_text(json.dumps({"checksum": checksum, "exports": others}))
    assert export._earlier(tmp_path, rows[:1]) == [told[2]]
    (tmp_path / export.TABLE).write_text("[")
    assert export._earlier(tmp_path, rows[:1]) == []


def test_somebody_elses_table_stays(exported, tiny_run, tmp_path, capsys):
    (tmp_path / export.TABLE).write_text('{"mine": 1}')
    assert command("--run", tiny_run, "--format", FAST, "--output", tmp_path, "--noaccuracy") == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path / export.TABLE}: not a table of exports, expected another --output\n"
    )
    assert (tmp_path / export.TABLE).read_text() == '{"mine": 1}'


def names(folder):
    """Returns the names in a folder, without empty lock files."""
    found = [path for path in folder.iterdir() if path.suffix != ".lock" or path.stat().st_size]
    return sorted(path.name for path in found)


def test_nothing_else_is_left(exported):
    """The remains of a killed export, see the fixture, are removed, too."""
    assert names(exported) == ["exports.json", "saved_model-float32", "tflite-float32"]


def test_a_card_proves_its_export(exported, tiny_run):
    """The card holds probe images and the run's Keras features of them, which the model has to reproduce."""
    folder = exported / "tflite-float32"
    card = read_card(folder)
    found = card.probes
    images = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found["images"]])
    assert images.shape == (probes.PROBES, 48, 32, 3)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == probes.PROBES
    expected = FeatureExtractor(tiny_run).embed(images)
    stored = np.frombuffer(base64.b64decode(found["features"]), "<f4").reshape(probes.PROBES, -1)
    np.testing.assert_allclose(stored, expected, atol=1e-5)
    assert 1 - 1e-6 < found["cosine"] < 1 + 1e-6
    assert found["least_cosine"] == 1 - 1e-5
    assert found["processor"] == probes.processor()
    assert f"checked on | {found['processor']}" in (folder / READABLE).read_text()


def test_one_export_leaves_the_unfinished_one_of_another_alone(tiny_run, tmp_path, monkeypatch):
    """An export holds the lock of its model, and removes only unfinished folders of that model."""
    (tmp_path / f".{FAST}-float32.dead.tmp").mkdir()
    (tmp_path / ".tflite-float32.live.tmp").mkdir()

    def fail(function, folder, *arguments):
        held = (pytest.raises(UserError, match="held"), locked(tmp_path / f".{FAST}-float32.lock", "held"))
        with held[0], held[1]:
            pass
        (folder / "half").touch()
        assert names(tmp_path) == sorted([folder.name, ".tflite-float32.live.tmp"])
        raise RuntimeError("no\nmore")

    monkeypatch.setattr(exporters.exporter(FAST), "export", fail)
    exports = Export(tiny_run, "last", Comparison(np.zeros([1, 48, 32, 3], np.uint8)), None)
    with pytest.raises(UserError, match=r"^cannot be converted \(no more\)$"):
        exports.export(FAST, "float32", tmp_path)
    assert names(tmp_path) == [".tflite-float32.live.tmp"]


def test_two_commands_keep_each_others_rows(exported, tmp_path, monkeypatch):
    """The second command starts when the first has read the table but not yet written it."""
    report = {"checksum": read_card(exported / "tflite-float32").checksum}
    rows = [{"format": name, "precision": "float32"} for name in ("onnx", "tflite")]
    for row in rows:
        (tmp_path / f"{row['format']}-float32").mkdir()
        shutil.copy(exported / "tflite-float32" / CARD, tmp_path / f"{row['format']}-float32")
    second = threading.Thread(target=lambda: export._write(tmp_path, report, rows[1:]))
    read = export._earlier

    def earlier(*arguments):
        found = read(*arguments)
        if second.ident is None:
            second.start()
            second.join(1)  # it waits for the first, or has written already
        return found

    monkeypatch.setattr(export, "_earlier", earlier)
    export._write(tmp_path, report, rows[:1])
    second.join()
    written = json.loads((tmp_path / export.TABLE).read_text())["exports"]
    assert sorted(row["format"] for row in written) == ["onnx", "tflite"]


def test_what_was_made_is_not_made_again(exported, tiny_run, tmp_path, capsys, spoiled):
    """A stopped command resumes. Every new export is spoiled here, so those that pass were made earlier."""
    spoiled(0.05)
    folder = tmp_path / "exports"
    shutil.copytree(exported, folder)
    before = json.loads((folder / export.TABLE).read_text())["exports"]
    arguments = ["--run", tiny_run, "--output", folder]
    assert command(*arguments, "--format", "saved_model,tflite") == 0
    assert f"tflite in float32: {folder / 'tflite-float32'}, made earlier" in capsys.readouterr().out
    assert json.loads((folder / export.TABLE).read_text())["exports"][1:] == before[1:]

    assert command(*arguments, "--format", FAST, "--noaccuracy", "--overwrite") == 1
    assert capsys.readouterr().err.startswith("error: not kept: saved_model in float32 the norm")
    shutil.copy(exported / export.TABLE, folder)
    (folder / "saved_model-float32" / "saved_model.pb").write_bytes(b"half")
    assert command(*arguments, "--format", FAST, "--noaccuracy") == 1


def test_what_was_made_of_this_network_and_compared_on_these_images(exported, tmp_path):
    folder = exported / "saved_model-float32"
    checksum = read_card(folder).checksum
    assert export._is_made(folder, checksum, Comparison(()))
    assert export._is_made(folder, checksum, Comparison((), "query", "gallery", "market1501"))
    assert not export._is_made(folder, checksum, Comparison((), "query", "gallery", "msmt17"))
    assert not export._is_made(folder, "0" * 64, Comparison(()))
    assert not export._is_made(exported / "onnx-float32", checksum, Comparison(()))
    earlier = shutil.copytree(folder, tmp_path / "earlier")  # older cards have no probes
    values = json.loads((earlier / CARD).read_text())
    assert export._is_made(earlier, checksum, Comparison(()))
    (earlier / CARD).write_text(json.dumps({**values, "probes": {}}))
    assert not export._is_made(earlier, checksum, Comparison(()))


@pytest.fixture
def changing(tiny_run, tmp_path):
    """A copy of the tiny run, and a function that saves another network in it, as continued training would."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)

    def change(which="last", step=None, epoch=None, batch=0):
        run = load_run(folder, which)
        kernel = run.model.stem.conv.kernel
        kernel.assign(-kernel)
        counts = {} if epoch is None else {"epoch": tf.Variable(epoch), "batch": tf.Variable(batch)}
        step = step or int(run.checkpoint.rpartition("-")[2])
        Checkpoints(folder / CHECKPOINTS[which], 1, model=run.model, **counts).save(step)

    return folder, change


def test_a_run_that_goes_on_training_is_exported_as_it_was(changing, tmp_path):
    folder, change = changing
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 32, 3), np.uint8)
    exports = Export(folder, "last", Comparison(images), None)
    expected = FeatureExtractor(folder).embed(images)
    change()
    assert np.abs(FeatureExtractor(folder).embed(images) - expected).max() > 0.01
    found = exports.export(FAST, "float32", tmp_path / "exports")
    assert found.failure is None
    np.testing.assert_allclose(FeatureExtractor(found.folder).embed(images), expected, atol=1e-5)


def test_the_card_tells_of_this_network_alone(changing):
    """The accuracies of the training belong to the last network of a finished run only."""
    folder, change = changing
    ended = card_of(load_run(folder))
    epochs, step = 2, int(load_run(folder).checkpoint.rpartition("-")[2])
    assert ended.schedule["epochs_done"] == ended.schedule["epochs"] == epochs
    results = json.loads((folder / "metrics.json").read_text())["results"][0]
    assert ended.accuracy == {name: results[name] for name in ("rank-1", "mAP")}

    change("best", step // epochs)
    best = card_of(load_run(folder, "best"))
    assert (best.schedule["epochs_done"], best.accuracy) == (1, None)

    change("last", step - 1, 1, step // epochs - 1)  # in the middle of the second epoch
    stopped = card_of(load_run(folder))
    assert (stopped.schedule["epochs_done"], stopped.schedule["epochs"], stopped.accuracy) == (1, epochs, None)
    change("last", 1, 0, 1)
    assert card_of(load_run(folder)).schedule["epochs_done"] == 0
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "dataset": "csv", "init_from": "a run that is gone"}))
    assert card_of(load_run(folder)).licence.startswith("that of the owner of the training images")
    assert "; research use only" in card_of(load_run(folder)).licence


def test_an_unknown_accuracy_is_measured_on_the_runs_own_data_set_alone(changing, tiny_data):
    folder, _ = changing
    (folder / "metrics.json").unlink()
    dataset = load_dataset("market1501", tiny_data)
    images = np.zeros([1, 48, 32, 3], np.uint8)
    for name, known in (("market1501", True), ("msmt17", False)):
        made = Export(folder, "last", Comparison(images, dataset.query, dataset.gallery, name), None)
        assert (made.accuracy is not None, made.card.accuracy) == (True, made.accuracy if known else None)


@pytest.fixture
def spoiled(monkeypatch):
    """A function that makes exported networks add noise to the features."""

    def spoil(amount):
        original = Export._function

        def function(exports, flat):
            right = original(exports, flat)
            noise = np.random.default_rng(0).normal(size=exports.card.feature_dim).astype(np.float32)
            signature = tf.TensorSpec([None, *exports.card.input_size, 3], tf.uint8, name=INPUT)
            wrong = tf.function(lambda images: {OUTPUT: right(images=images)[OUTPUT] + amount * noise}, [signature])
            return wrong.get_concrete_function()

        monkeypatch.setattr(Export, "_function", function)

    return spoil


@pytest.mark.parametrize("place", [f"{FAST}-float32", f".{FAST}-float32.abc.old"], ids=["in place", "left by a kill"])
def test_what_differs_is_not_kept(exported, tiny_run, tmp_path, capsys, spoiled, place):
    """An earlier export stays, also one that a killed process was about to replace."""
    earlier = shutil.copytree(exported / f"{FAST}-float32", tmp_path / place)
    before = sorted(path.relative_to(earlier) for path in earlier.rglob("*"))
    old = tmp_path / f"{FAST}-float32"
    spoiled(0.05)
    assert command("--run", tiny_run, "--format", FAST, "--output", tmp_path, "--noaccuracy", "--overwrite") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: not kept: saved_model in float32 the norm of a branch is off that")
    assert "not kept" in captured.out
    assert sorted(path.relative_to(old) for path in old.rglob("*")) == before
    verify_files(old, read_card(old))
    assert names(tmp_path) == ["exports.json", old.name]


def test_features_that_are_not_finite_are_told(tiny_run, tmp_path, capsys, spoiled):
    spoiled(np.nan)
    assert command("--run", tiny_run, "--format", FAST, "--output", tmp_path) == 1
    assert capsys.readouterr().err == "error: not kept: saved_model in float32 its features are not finite\n"
    keras, row = json.loads((tmp_path / export.TABLE).read_text())["exports"]
    assert "mAP" in keras
    assert "mAP" not in row
    assert row["failure"] == "its features are not finite"
    assert names(tmp_path) == [export.TABLE]


def test_an_export_that_fails_does_not_stop_the_others(tiny_run, tmp_path, capsys, monkeypatch):
    """The converter fails with an exception of its own, as for an operation that it cannot convert."""
    original, calls = Export._function, []

    def function(exports, flat):
        calls.append(flat)
        if len(calls) > 1:
            return original(exports, flat)
        signature = tf.TensorSpec([None, *exports.card.input_size, 3], tf.uint8, name=INPUT)
        unknown = tf.function(lambda images: {OUTPUT: tf.py_function(np.float32, [images], tf.float32)}, [signature])
        return unknown.get_concrete_function()

    monkeypatch.setattr(Export, "_function", function)
    assert command("--run", tiny_run, "--format", "tflite,saved_model", "--output", tmp_path, "--noaccuracy") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: not kept: tflite in float32: cannot be converted (")
    assert error.count("\n") == 1
    rows = json.loads((tmp_path / export.TABLE).read_text())["exports"]
    assert [row["format"] for row in rows] == ["keras", "saved_model"]
    assert names(tmp_path) == ["exports.json", "saved_model-float32"]


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
    assert "off that of the Keras network by 0.020" in checking.shortcomings({**check, "norm_error": 0.02}, INT8)


def test_features_are_compared_row_by_row():
    expected = np.array([[1, 0], [0, 1], [3, 4]], np.float32)
    found = np.array([[1, 0], [1, 0], [3, 4.5]], np.float32)
    result = checking.compare(expected, found, 1)
    assert result["images"] == 3
    assert result["largest_difference"] == pytest.approx(1)
    assert result["least_cosine"] == pytest.approx(0, abs=1e-6)
    assert result["norm_error"] == pytest.approx(np.hypot(3, 4.5) - 5)
    assert checking.compare(expected, found, 2)["norm_error"] == pytest.approx(1)
    assert result["mean_cosine"] == pytest.approx((1 + 0 + (9 + 18) / (5 * np.hypot(3, 4.5))) / 3)


def test_a_branch_without_any_feature_is_exported():
    """An export that equals the network is good enough, and one with a feature in that place is not."""
    expected = np.array([[0, 0, 1, 0], [0, 0, 0, 0]], np.float32)
    assert checking.shortcomings(checking.compare(expected, expected, 2), "float32") is None
    assert checking.shortcomings(checking.compare(expected[1:], expected[1:], 1), "float32") is None
    found = expected + np.array([[0, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    assert "off that of the Keras network by 1.000" in checking.shortcomings(checking.compare(expected, found, 2), INT8)


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
        (("--format", FAST, "--data_dir", "/no/such/folder"), "/no/such/folder"),
        (("--format", FAST, "--dataset", "nothing"), "unknown dataset 'nothing'"),
        (
            ("--format", FAST, "--run", "/no/such/run"),
            "/no/such/run: no such folder, expected that of a training run, or",
        ),
    ],
)
def test_bad_input_is_one_line(tiny_run, tmp_path, capsys, arguments, line):
    assert command("--run", tiny_run, "--output", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("--format", "onnx,caffe"), ("--precision", "float8"), ("--format", "")])
def test_formats_that_are_not_known(capsys, arguments):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert "should be one of" in error
    assert error.count("\n") == 1


def test_all_stands_for_what_there_is(monkeypatch):
    openvino = pytest.importorskip("han_tf.runtimes.openvino")
    monkeypatch.setattr(openvino, "has_bfloat16", lambda: True)
    pairs = export._pairs(["all"], ["all"])
    assert pairs == [(name, precision) for name, entry in FORMATS.items() for precision in entry.precisions]
    assert export._pairs(["tflite", "onnx"], ["all"]) == [pair for pair in pairs if pair[0] in ("tflite", "onnx")]


def test_without_bfloat16_all_leaves_it_out(monkeypatch, capsys):
    openvino = pytest.importorskip("han_tf.runtimes.openvino")
    monkeypatch.setattr(openvino, "has_bfloat16", lambda: False)
    line = "export to openvino in bfloat16 cannot be checked: this processor has no bfloat16, expected one with"
    for asked in (["openvino"], ["all"]):
        with pytest.raises(UserError, match=f"^{line}"):
            export._pairs(asked, ["bfloat16"])
    assert export._pairs(["openvino"], ["all"]) == [("openvino", name) for name in ("float32", "float16", "int8")]
    assert capsys.readouterr().out.startswith(f"note: left out: {line}")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(exporters, "require", lambda package, what: (_ for _ in ()).throw(UserError(package)))
    check_supported("tflite", INT8)
    with pytest.raises(UserError, match=r"nncf|openvino"):
        check_supported("openvino", INT8)


def test_int8_wants_the_training_images(tiny_run, tiny_data, tmp_path, capsys, monkeypatch):
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

    def stop(*arguments):
        raise UserError("stopped")

    monkeypatch.setattr(export, "Export", stop)
    assert command("--run", moved, "--format", "onnx", "--precision", "all") == 1
    captured = capsys.readouterr()
    assert captured.err == "error: stopped\n"  # float32 is made
    assert "note: left out: int8 is calibrated on the training images of market1501, which are not" in captured.out

    other = dataclasses.replace(load_dataset("market1501", tiny_data), name="msmt17")
    monkeypatch.setattr(export, "load_dataset", lambda *_: other)
    assert command("--run", moved, "--format", "onnx", "--precision", "int8", "--dataset", "msmt17") == 1
    line = "training images of market1501, --dataset is msmt17; expected int8 to be exported without it"
    assert line in capsys.readouterr().err


@pytest.fixture
def earlier(exported, tmp_path):
    """A copy of an export, in the folder for the next one."""
    return shutil.copytree(exported / f"{FAST}-float32", tmp_path / "exports" / f"{FAST}-float32")


def test_what_is_not_part_of_a_model_is_not_replaced(earlier, tmp_path):
    checksum = read_card(earlier).checksum
    assert check_place(earlier, checksum, False) == read_card(earlier)
    (earlier / "variables" / "notes.txt").touch()
    line = rf"^{earlier} holds variables/notes.txt, which is not part of the model; expected another --output$"
    for overwrite in (False, True):
        with pytest.raises(UserError, match=line):
            check_place(earlier, checksum, overwrite)
    place = tmp_path / "place"
    for kind in ("nothing", "folder"):
        if kind == "folder":
            place.mkdir()
        assert check_place(place, checksum, False) is None
    (place / CARD).write_text("{}")  # of another program
    with pytest.raises(UserError, match=f"^{place} holds {CARD}, which is not part of the model"):
        check_place(place, checksum, True)
    for other in (tmp_path / "link", place / CARD):
        if other.name == "link":
            other.symlink_to(earlier)
        with pytest.raises(UserError, match=f"^{other} is a .*, expected a folder or nothing$"):
            check_place(other, checksum, True)


def test_a_model_of_another_network_is_replaced_on_demand(earlier):
    checksum, card = "ab" * 32, read_card(earlier)
    line = rf"^{earlier} holds an export of another network, checksum {card.checksum[:16]}; expected --overwrite or"
    with pytest.raises(UserError, match=line):
        check_place(earlier, checksum, False)
    assert check_place(earlier, checksum, True) == card


def test_what_is_in_the_way_is_told_before_the_work(earlier, tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Export, "original", property(lambda exports: pytest.fail("measured")))
    rewrite_card(earlier, checksum="ab" * 32)
    (tmp_path / "file").touch()
    name, long = earlier.name, tmp_path / ("a" * 300)
    lines = {
        earlier.parent: f"{earlier} holds an export of another network, checksum {'ab' * 8}; expected --overwrite or ",
        tmp_path / "file": f"cannot write {tmp_path / 'file'}: File exists",
        long: f"cannot write {long / name}: File name too long",
        tmp_path / "a[1]": f"{tmp_path / 'a[1]' / name}: a SavedModel here could not be read, expected a path in UTF-8",
        Path("/proc/no"): "cannot write /proc/no: No such file or directory",
    }
    for output, line in lines.items():
        assert command("--run", tiny_run, "--format", FAST, "--output", output, "--noaccuracy") == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {line}")
        assert error.count("\n") == 1
    assert not (tmp_path / "a[1]").exists()


def test_a_run_that_was_trained_further_is_exported_again(changing, exported, capsys):
    folder, change = changing
    earlier = shutil.copytree(exported / f"{FAST}-float32", folder / "exports" / f"{FAST}-float32")
    before = read_card(earlier)
    change()
    arguments = ("--run", folder, "--format", FAST, "--noaccuracy")
    assert command(*arguments, "--output", folder / "exports") == 1
    assert "holds an export of another network" in capsys.readouterr().err
    assert command(*arguments) == 0
    line = f"note: replaced an export of another network, checksum {before.checksum[:16]}, of {before.created}\n"
    assert line in capsys.readouterr().out
    assert read_card(earlier).checksum != before.checksum
    assert names(folder / "exports") == [export.TABLE, earlier.name]


def test_splits_may_be_spelt_as_in_the_files(tmp_path, capsys):
    assert command("--runs_dir", tmp_path, "--dataset", "cuhk03", "--split", "labeled") == 1
    assert capsys.readouterr().err.startswith("error: no cuhk03 labelled run with a checkpoint in ")

"""Bad input to han_tf.train: a status, one line that names it, and no saved file is lost."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf
from PIL import Image

from han_tf import train, weights
from han_tf.common.cli import run
from han_tf.common.errors import Note, UserError
from han_tf.common.files import locked
from han_tf.data import load_dataset
from han_tf.training.config import TrainConfig
from tests.conftest import TINY_ARGS, TINY_NETWORK, TINY_SIZE, messages


def call(*arguments):
    return run(train.main, train.FLAGS, train.__doc__, ["train", *TINY_SIZE, TINY_NETWORK, *map(str, arguments)])


@pytest.fixture
def check(capsys, tmp_path):
    """Calls the command and checks that it fails with one line that holds the words."""

    def call_and_check(arguments, *named, status=1):
        assert call(f"--run={tmp_path / 'run'}", *arguments) == status
        (line,) = messages(capsys.readouterr().err)
        assert line.startswith("error: " if status == 1 else "usage error: ")
        for words in named:
            assert words in line
        assert not (tmp_path / "run" / "checkpoints").exists()

    return call_and_check


@pytest.fixture
def copied(tiny_data, tmp_path):
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--epochs=0"], "--epochs=0"),
        (["--epochs=many"], "--epochs=many"),
        (["--batch_size=1"], "--batch_size=1"),
        (["--arch=han_huge"], "--arch=han_huge"),
        (["--lr=-0.1"], "--lr=-0.1"),
        (["--lr=nan"], "--lr=nan"),
        (["--weight_decay=inf"], "--weight_decay=inf"),
        (["--lr_decay=1.5"], "--lr_decay=1.5"),
        (["--input_height=8"], "--input_height=8"),
        (["--seed=-1"], "--seed=-1"),
        (["--learning_rate=0.1"], "learning_rate"),
        (["market1501"], "'market1501'"),
    ],
)
def test_flags(check, arguments, named):
    check(arguments, named, status=2)


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="a GPU computes in float16")
def test_float16_needs_a_gpu(check, tiny_data):
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", "--precision=mixed_float16"]
    check(arguments, "--precision mixed_float16, but no GPU is here; expected float32 or mixed_bfloat16")


def test_data_sets(check, tmp_path, tiny_data):
    check(["--dataset=market"], "unknown dataset 'market', expected one of synthetic, cuhk03, market1501")
    check(["--dataset=market1501", f"--data_dir={tmp_path / 'no'}"], f"{tmp_path}/no: no such folder")
    check(["--dataset=market1501", "--split=detected", f"--data_dir={tiny_data}"], "market1501 has no split 'detected'")
    check(
        ["--dataset=cuhk03", "--split=other", f"--data_dir={tmp_path}"],
        "cuhk03 has no split 'other', expected one of detected, labelled",
    )
    check(["--dataset=dukemtmc", f"--data_dir={tiny_data / 'query'}"], f"{tiny_data}/query: no bounding_box_train")
    check(["--dataset=market1501,occluded_reid"], "--dataset occluded_reid is for evaluation only, expected a data set")
    (tmp_path / "file").touch()
    check(["--dataset=msmt17", f"--data_dir={tmp_path / 'file'}"], f"{tmp_path}/file: a file, expected the data set")


@pytest.mark.parametrize("folder", ["bounding_box_train", "query", "bounding_box_test"])
def test_a_folder_without_images(check, copied, folder):
    shutil.rmtree(copied / folder)
    arguments = ["--dataset=market1501", f"--data_dir={copied}"]
    # A data set may have only query and gallery, but training is not possible on it.
    training = f"{copied}: no train images found, expected some to train on"
    missing = f"{copied}: no {folder} in it, expected bounding_box_train, query, bounding_box_test"
    check(arguments, training if folder == "bounding_box_train" else missing)
    (copied / folder).mkdir()
    names = {"query": "query", "bounding_box_test": "gallery"}
    empty = f"{copied}: no {names.get(folder)} images found, expected at least one"
    check(arguments, training if folder == "bounding_box_train" else empty)


def test_a_file_in_place_of_the_run_folder(capsys, tmp_path, tiny_data):
    (tmp_path / "run").write_text("precious")
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--run={tmp_path / 'run'}", "--panel_images=0"]
    assert call(*arguments) == 1
    (line,) = messages(capsys.readouterr().err)
    assert line.startswith(f"error: cannot write {tmp_path}/run/.lock: ")
    assert (tmp_path / "run").read_text() == "precious"


def test_an_unreadable_image(check, capsys, copied, tmp_path):
    bad = [sorted((copied / folder).iterdir())[3] for folder in ("bounding_box_train", "bounding_box_test", "query")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:300])
    arguments = ["--dataset=market1501", f"--data_dir={copied}", "--epochs=1", "--panel_images=2"]
    check(arguments, f"{bad[0]}: not a readable image (", "--skip_bad_images leaves it out")

    assert call(*arguments, f"--run={tmp_path / 'run'}", "--skip_bad_images") == 0
    out, err = capsys.readouterr()
    notes = messages(err)
    assert len(notes) == len(bad)
    for path in bad:
        assert sum(note.startswith(f"note: {path}: not a readable image (") for note in notes) == 1
    whole = {folder: len(list((copied / folder).glob("*.jpg"))) for folder in ("bounding_box_train", "query")}
    assert int(re.search(r"(\d+) images of 8 people", out).group(1)) == whole["bounding_box_train"] - 1
    counts = json.loads((tmp_path / "run" / "metrics.json").read_text())["counts"]
    assert counts["queries"] == whole["query"] - 1


def test_an_unreadable_image_for_the_baselines(copied):
    bad = [sorted((copied / folder).iterdir())[3] for folder in ("bounding_box_test", "query")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:300])
    dataset = load_dataset("market1501", copied)
    settings = {"input_height": 48, "input_width": 32, "model_args": TINY_ARGS}
    with pytest.warns(Note, match="not a readable image"):
        rows = train.baseline_rows(TrainConfig(**settings, skip_bad_images=True), dataset)
    assert [row["feature"] for row in rows] == ["colour histogram", "untrained"]
    assert all(0 < row["mAP"] < 1 for row in rows)
    with pytest.raises(UserError, match=f"^{bad[1]}: not a readable image"):
        train.baseline_rows(TrainConfig(**settings), dataset)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model_args=region=6"], "model han_small has no argument 'region'"),
        (["--init_from=nowhere"], "nowhere: no such folder, expected that of a training run"),
        (["--weights=mars"], "model han_small has no weights 'mars', expected one of"),
        (["--loss=triplet", "--people=16", "--images_per_person=2"], "--people 16, expected at most 8"),
    ],
)
def test_what_does_not_fit_the_network_is_told_before_images_are_read(check, tiny_data, monkeypatch, arguments, named):
    monkeypatch.setattr(train, "load_images", None)
    check(["--dataset=market1501", f"--data_dir={tiny_data}", *arguments], named)


def test_stored_weights_are_no_run(capsys, tiny_data, tmp_path):
    folder = shutil.copytree(weights.HERE / "han_small-synthetic", tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert call("--dataset=market1501", f"--data_dir={tiny_data}", f"--run={folder}") == 1
    (line,) = messages(capsys.readouterr().err)
    assert line.startswith(
        f"error: {folder} holds stored weights, expected another --run; --init_from {folder} goes on from them"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_readable_image_to_draw(capsys, copied, tmp_path):
    first = min((copied / "query").glob("*.jpg"))
    first.write_bytes(b"")
    arguments = ["--dataset=market1501", f"--data_dir={copied}", f"--run={tmp_path / 'run'}", "--epochs=1"]
    assert call(*arguments, "--panel_images=1", "--skip_bad_images") == 0
    assert "\nnote: no attention is drawn: none of the 1 images could be read" in capsys.readouterr().out
    assert not (tmp_path / "run" / "attention.png").exists()


@pytest.mark.parametrize("name", ["a[1]", "a\\b"])
def test_a_folder_that_tensorflow_could_not_read_from(capsys, tiny_data, tmp_path, name):
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--run={tmp_path / name}"]
    assert call(*arguments) == 1
    (line,) = messages(capsys.readouterr().err)
    assert "checkpoints here could not be read, expected a path in UTF-8, without [ and \\" in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_other_settings_is_left_alone(capsys, tiny_data, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--run={folder}", "--panel_images=0"]
    assert call(*arguments, "--epochs=3") == 1
    (line,) = messages(capsys.readouterr().err)
    assert line.startswith(f"error: {folder} holds a run with --epochs 2, this command has 3; ")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_recipe_is_told(capsys, tiny_data, tiny_run):
    """Before the run's folder is refused."""
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", "--recipe=strong", "--label_smoothing=0.2"]
    assert run(train.main, train.FLAGS, train.__doc__, ["train", *arguments, f"--run={tiny_run}"]) == 1
    told = "recipe strong: --label_smoothing 0.2, --horizontal_flip True, --random_translation True, --lr_drops (0.75, "
    assert f"\n{told}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--weights=none.h5"], ["--weights=none.h5", "--precision=mixed_bfloat16"]])
@pytest.mark.parametrize("faster", [True, False])
def test_a_faster_precision_is_named(capsys, monkeypatch, tiny_data, tmp_path, faster, arguments):
    """Before the run's folder is made."""
    monkeypatch.setattr(train.environment, "faster_in_bfloat16", lambda: faster)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])  # on a machine with GPUs, too
    assert call("--dataset=market1501", f"--data_dir={tiny_data}", f"--run={tmp_path / 'run'}", *arguments) == 1
    assert ("hint: --precision mixed_bfloat16" in capsys.readouterr().out) == (faster and len(arguments) == 1)


def test_a_run_of_other_images_is_left_alone(capsys, copied, tiny_run, tmp_path):
    """One file has another size; number and people are the same. A data set that has only moved is accepted."""
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    arguments = ["--dataset=market1501", f"--data_dir={copied}", f"--run={folder}", "--epochs=2"]
    stored = json.loads((folder / "history.json").read_text())
    assert call(*arguments) == 0
    assert json.loads((folder / "history.json").read_text()) == stored

    changed = sorted((copied / "query").iterdir())[0]
    Image.new("RGB", (20, 50), "green").save(changed)
    assert call(*arguments) == 0
    assert "the test images have changed" in capsys.readouterr().out
    first, last = json.loads((folder / "history.json").read_text())
    assert "evaluation" not in first
    assert last["evaluation"] != stored[1]["evaluation"]

    changed = sorted((copied / "bounding_box_train").iterdir())[0]
    Image.new("RGB", (20, 50), "green").save(changed)
    assert call(*arguments) == 1
    assert "holds a run whose training images had other names, labels or sizes" in capsys.readouterr().err


def test_one_process_trains_in_a_folder(check, tiny_data, tmp_path):
    with locked(tmp_path / "run" / ".lock"):
        arguments = ["--dataset=market1501", f"--data_dir={tiny_data}"]
        check(arguments, f"another process trains in {tmp_path}/run, expected one at a time; give another --run")


def test_a_damaged_checkpoint_is_not_started_over(capsys, tiny_data, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    (folder / "checkpoints" / "checkpoint").write_bytes(b"")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--run={folder}", "--panel_images=0"]
    assert call(*arguments, "--epochs=2") == 1
    (line,) = messages(capsys.readouterr().err)
    assert line == f"error: {folder}/checkpoints/checkpoint: damaged, expected the name of the newest checkpoint"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_process_says_no_more_than_the_line(tmp_path):
    command = [sys.executable, "-m", "han_tf.train", "--dataset=market1501", f"--data_dir={tmp_path / 'no'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/no: no such folder, expected")

"""The networks that come with the package, and storing one: features stay the same, damage is detected."""

import hashlib
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from han_tf import FeatureExtractor, demo, evaluate, export, extract, visualize, weights
from han_tf.common.cli import run
from han_tf.common.errors import UserError
from han_tf.data import load_dataset
from han_tf.evaluation.scoring import evaluate_features
from han_tf.features.keras import feature_set
from han_tf.features.shards import FeatureShards
from han_tf.models import create_model
from han_tf.models.network import inference_function
from han_tf.models.transfer import named_variables
from han_tf.runs.card import licence_of
from han_tf.runs.folder import LoadedRun, create_network, load_run, trained_on
from han_tf.runtimes.keras import card_of
from han_tf.training.run_folder import _of_source
from han_tf.weights import __main__ as command
from tests.conftest import TINY_ARGS

SHIPPED = weights.shipped_names()


def test_there_are_some():
    assert "han_small-synthetic" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
class TestShipped:
    def test_features_are_those_it_was_stored_with(self, name):
        arrays = weights.read_arrays(weights.HERE / name)
        extractor = FeatureExtractor(name)
        features = extractor.embed(arrays[weights.PROBE_IMAGES])
        np.testing.assert_allclose(features, arrays[weights.PROBE_FEATURES], atol=2e-4)
        network, _, trained_on = name.partition("-")
        same = create_model(network, weights=trained_on)(arrays[weights.PROBE_IMAGES])
        np.testing.assert_allclose(same, features, atol=2e-4)
        assert extractor.card.accuracy == weights.accuracy(weights.HERE / name)

    def test_it_is_small_and_says_what_it_may_be_used_for(self, name):
        folder = weights.HERE / name
        about = weights.read_about(folder)
        assert (folder / weights.ARRAYS).stat().st_size == about["bytes"] <= 5e6
        assert ("research use only" in about["licence"]) == (about["dataset"] != "synthetic")
        assert not any("classifier" in array for array in weights.read_arrays(folder))

    def test_it_tells_drawn_people_apart(self, name, drawn):
        """By chance rank-1 is about one divided by the number of people."""
        model = load_run(name).model
        features = [feature_set(model, records, progress=None) for records in (drawn.query, drawn.gallery)]
        joint = evaluate_features(*features)[0]["result"]
        chance = 1 / len({record.pid for record in drawn.gallery})
        assert joint.cmc[0] > 5 * chance


@pytest.mark.parametrize(
    ("name", "checksum"), [("han_small-market1501", "b5799e80e74c"), ("han_large-market1501", "9dfd0557866c")]
)
def test_galleries_of_earlier_versions_fit(name, checksum):
    """They hold the checksum of the network that made their features."""
    assert FeatureExtractor(name).checksum.startswith(checksum)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Forty drawn people that no network was trained on."""
    from han_tf.data.synthetic import SyntheticPedestrians, generate

    root = tmp_path_factory.mktemp("drawn") / "data"
    people = SyntheticPedestrians(
        seed=11,
        train_identities=2,
        test_identities=40,
        images_per_camera=2,
        multi_query_per_camera=0,
        distractors=0,
        junk=0,
    )
    generate(root, people, layout="market1501", workers=1)
    return load_dataset("market1501", root)


def call(*arguments):
    return run(command.main, command.FLAGS, command.__doc__, ["weights", *map(str, arguments)])


def test_all_are_listed(capsys):
    assert call() == 0
    listed = capsys.readouterr().out
    for name in SHIPPED:
        assert f"{name}\n" in listed
        assert weights.read_about(weights.HERE / name)["sha256"] in listed


@pytest.mark.parametrize("arguments", [["--checkpoint=third"], ["--checkpoint=best"]])
def test_a_checkpoint_is_of_the_run_that_is_stored(arguments, capsys):
    assert call(*arguments) == 2
    assert capsys.readouterr().err.startswith("usage error: ")


def test_a_run_is_stored_and_read_like_one(tiny_run, tmp_path, capsys):
    folder = tmp_path / "mine"
    assert call(f"--run={tiny_run}", f"--output={folder}") == 0
    assert "features differ from the run's by at most" in capsys.readouterr().out
    ours, theirs = load_run(folder), load_run(tiny_run)
    values = {name: variable.numpy() for name, variable in named_variables(theirs.model, classifiers=False).items()}
    for name, variable in named_variables(ours.model).items():
        np.testing.assert_array_equal(variable, weights.compact(values[name]), err_msg=name)
    images = np.random.default_rng(0).integers(0, 256, (3, *ours.model.input_size, 3), np.uint8)
    features = [inference_function(loaded.model)(images).numpy() for loaded in (ours, theirs)]
    np.testing.assert_allclose(*features, atol=5e-3)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["data_dir"] == ""
    assert weights.read_about(folder)["licence"] == licence_of("market1501")


def test_only_stored_weights_are_replaced(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights, "HERE", tmp_path / "package")
    thesis, other = tmp_path / "thesis" / "chapter" / "1.txt", tmp_path / "package" / "__init__.py"
    for path in (thesis, other):
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "thesis" / weights.ABOUT).touch()
    settings = tmp_path / "settings"  # of another program
    settings.mkdir()
    for name in ("config.json", "metrics.json"):
        (settings / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    before = sorted(tiny_run.rglob("*"))
    for output in (tiny_run, tiny_run.parent, tmp_path / "thesis", settings, ".", "..", other, tmp_path / "link"):
        assert call(f"--run={tiny_run}", f"--output={output}") == 1, output
        assert ", expected " in capsys.readouterr().err
    assert thesis.exists()
    assert other.exists()
    assert sorted(tiny_run.rglob("*")) == before
    assert sorted(path.name for path in settings.iterdir()) == ["config.json", "metrics.json"]
    monkeypatch.chdir(tmp_path)
    for output in (tmp_path / "mine", "./mine"):  # the second replaces the first
        assert call(f"--run={tiny_run}", f"--output={output}") == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"  written to {tmp_path / 'mine'}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine", "package", "settings", "thesis"]
    assert [path.name for path in (tmp_path / "package").iterdir()] == ["__init__.py"]
    # A process that was killed while it replaced them.
    before = tmp_path / ".mine.before"
    (tmp_path / "mine").rename(before)
    assert call(f"--run={tmp_path / 'gone'}", f"--output={tmp_path / 'mine'}") == 1
    assert weights.is_stored(tmp_path / "mine")
    assert not before.exists()
    assert call(f"--run={tiny_run}", f"--output={tmp_path / ('a' * 300)}") == 1
    assert capsys.readouterr().err.endswith(": File name too long\n")


def test_another_network_than_the_last_has_no_accuracy(tiny_run, tmp_path):
    """That in metrics.json is of the last."""
    other = shutil.copytree(tiny_run, tmp_path / "run")
    last = load_run(other).checkpoint
    for path in (other / "checkpoints").glob(f"{Path(last).name}.*"):
        shutil.copy(path, other / "best" / path.name.replace(Path(last).name, "ckpt-1"))
    (other / "best" / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"\n')
    for checkpoint, epochs in (("last", 2), ("best", 0)):
        folder = tmp_path / checkpoint
        assert call(f"--run={other}", f"--output={folder}", f"--checkpoint={checkpoint}") == 0
        card = card_of(load_run(folder))
        assert card.schedule["epochs_done"] == epochs
        assert (card.accuracy is None) == (checkpoint == "best")


def test_scalars_stay_scalars():
    assert weights.compact(np.float32(3)).shape == ()
    assert weights.compact(np.zeros((2, 3), np.float32)).dtype == np.float16


def test_terms_are_also_those_of_the_networks_it_started_from(tmp_path):
    source = {"dataset": "csv", "init_from": {"dataset": "dukemtmc"}}
    found = LoadedRun(None, {"dataset": "synthetic"}, tmp_path, "")
    assert trained_on(found) == ["synthetic"]
    (tmp_path / "environment.json").write_text(json.dumps({"init_from": source}))
    assert trained_on(found) == ["synthetic", "csv", "dukemtmc"]
    (tmp_path / "environment.json").write_text("[")
    assert trained_on(found._replace(config={"dataset": "synthetic", "init_from": "runs/a"})) == ["synthetic", ""]
    started = {"model": "han_small", "weights": "market1501", "dataset": "csv", "init_from": ""}
    assert trained_on(found._replace(config=started))[:2] == ["csv", "market1501"]
    started = {"model": "resnet50", "weights": "/data/notop.h5", "dataset": "synthetic"}
    assert trained_on(found._replace(config=started)) == ["synthetic", ""]  # ImageNet, or whatever the file has seen
    started = {"model": "han_small", "weights": "market1501", "dataset": "csv", "init_from": ""}
    (tmp_path / "environment.json").write_text(json.dumps({"init_from": _of_source(found._replace(config=started))}))
    assert trained_on(found)[:3] == ["synthetic", "csv", "market1501"]
    (tmp_path / weights.ARRAYS).touch()  # now a stored network
    (tmp_path / weights.ABOUT).write_text(json.dumps({"init_from": source}))
    assert trained_on(found) == ["synthetic", "csv", "dukemtmc"]
    drawn, owned, research = (licence_of(name) for name in ("synthetic", "csv", "dukemtmc"))
    assert licence_of("synthetic", "csv,dukemtmc", "market1501") == f"{drawn}; {owned}; {research}"
    assert licence_of("") == research


class TestNames:
    """Commands take the name of a network of the package where they take a run, and write nothing into the package."""

    NAME = "han_small-tiny"

    @pytest.fixture(scope="class")
    def package(self, tiny_run, tmp_path_factory):
        """Stands in for the package's folder of networks."""
        parent = tmp_path_factory.mktemp("package")
        assert call(f"--run={tiny_run}", f"--output={parent / self.NAME}") == 0
        return parent

    @pytest.fixture(scope="class")
    def extractor(self, package):
        return FeatureExtractor(package / self.NAME)

    @pytest.fixture(autouse=True)
    def folder(self, package, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(weights, "HERE", package)
        before = sorted(package.rglob("*"))
        yield package / self.NAME
        assert sorted(package.rglob("*")) == before

    def call(self, module, *arguments, positional=None):
        return run(module.main, module.FLAGS, module.__doc__, ["command", *map(str, arguments)], positional)

    def test_evaluation(self, folder, tiny_data, tiny_run):
        arguments = [f"--weights={self.NAME}", "--dataset=market1501", f"--data_dir={tiny_data}"]
        assert self.call(evaluate, *arguments) == 0
        written = json.loads(Path("runs", self.NAME, "evaluation.json").read_text())
        assert written["run"] == str(folder)
        trained = json.loads((tiny_run / "metrics.json").read_text())
        # Weights are rounded to float16; with so few images, a change in one place of one list counts much.
        assert written["results"][0]["mAP"] == pytest.approx(trained["results"][0]["mAP"], abs=0.02)

    def test_pictures_and_features(self, tiny_data, extractor):
        images = sorted((tiny_data / "query").iterdir())[:2]
        assert self.call(visualize, f"--model={self.NAME}", *images, positional="images") == 0
        assert Path("runs", self.NAME, "attention.png").exists()
        assert self.call(extract, f"--model={self.NAME}", "--output=out", *images, positional="images") == 0
        (batch,) = FeatureShards("out")
        np.testing.assert_allclose(batch.features, extractor(images), atol=1e-5)

    def test_export_demo_and_service_find_it(self, folder, extractor, monkeypatch, capsys):
        """They stop before their long work."""

        def stop(*arguments):
            raise UserError(f"stopped with {arguments[0]}")

        monkeypatch.setattr(export, "Export", stop)
        assert self.call(export, f"--model={self.NAME}", "--format=saved_model", "--noaccuracy") == 1
        assert capsys.readouterr().err == f"error: stopped with {folder}\n"
        monkeypatch.setattr(demo, "load_dataset", stop)
        assert self.call(demo, f"--model={self.NAME}", "--port=0") == 1
        assert f"run: {folder}\n" in capsys.readouterr().out
        running = pytest.importorskip("han_tf.serve.running")
        assert running.run_of(self.NAME) == str(folder)
        assert running.run_of(f"runs/{self.NAME}/exports/onnx-float32") == str(folder)
        assert running.find_model("runs", extractor.checksum) == self.NAME


def test_damage_is_noticed(tiny_run, tmp_path):
    folder = tmp_path / "mine"
    call(f"--run={tiny_run}", f"--output={folder}")
    path = folder / weights.ARRAYS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"weights.safetensors: damaged or changed, SHA-256 is .*, expected .* as in"):
        load_run(folder)
    path.unlink()
    (folder / weights.ABOUT).write_text("{")
    with pytest.raises(UserError, match=r"about.json: not JSON"):
        weights.read_arrays(folder)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "complex64"])
def test_numbers_that_numpy_does_not_have_are_one_line(tmp_path, kind):
    head = json.dumps({"a": {"dtype": kind, "shape": [2], "data_offsets": [0, 4 if kind == "BF16" else 2]}}).encode()
    data = struct.pack("<Q", len(head)) + head + bytes(4 if kind == "BF16" else 2)
    (tmp_path / weights.ARRAYS).write_bytes(data)
    (tmp_path / weights.ABOUT).write_text(json.dumps({"sha256": hashlib.sha256(data).hexdigest()}))
    with pytest.raises(UserError, match=rf"^{tmp_path / weights.ARRAYS}: .*{kind}.*, expected ") as raised:
        weights.read_arrays(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_stored_ablation_is_opened_as_one(tmp_path, monkeypatch):
    """Hard attention is off: the network has fewer weights than one with it."""
    monkeypatch.setattr(weights, "HERE", tmp_path)
    settings = {"input_height": 48, "input_width": 32, "feature_dim": 64, "model_args": TINY_ARGS, "hard": False}
    network = create_network({**settings, "model": "han_small"})
    arrays = {name: variable.numpy() for name, variable in named_variables(network).items()}
    folder = tmp_path / "han_small-ablation"
    weights.write_arrays(folder, arrays, {}, {})
    (folder / "config.json").write_text(json.dumps(settings))
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 32, 3), np.uint8)
    opened = create_model("han_small", weights="ablation")
    assert opened.get_config() == network.get_config()
    np.testing.assert_allclose(opened(images), network(images), atol=5e-3)
    # A training's network is what its own settings say.
    started = create_network({**settings, "model": "han_small"}, weights="ablation")
    np.testing.assert_allclose(started(images), network(images), atol=5e-3)
    with pytest.raises(UserError, match=r"^han_small-ablation: no weights .*/hard/") as raised:
        create_network({**settings, "model": "han_small", "hard": True}, weights="ablation")
    assert "\n" not in str(raised.value)


def test_a_run_that_has_not_ended_is_not_stored(tiny_run, tmp_path, capsys):
    other = shutil.copytree(tiny_run, tmp_path / "run")
    (other / "metrics.json").unlink()
    assert call(f"--run={other}", f"--output={tmp_path / 'mine'}") == 1
    assert "expected a run that has ended" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    "damage", [{"model": None}, {"bytes": "many"}, {"init_from": "runs/a"}, {"init_from": {"init_from": 5}}]
)
def test_a_description_of_other_types_is_one_line(tmp_path, damage):
    about = json.loads((weights.HERE / SHIPPED[0] / weights.ABOUT).read_text()) | damage
    (tmp_path / weights.ABOUT).write_text(json.dumps({name: value for name, value in about.items() if value}))
    with pytest.raises(UserError, match=r"about.json: damaged \(.+\), expected what python -m han_tf.weights writes"):
        command.describe(tmp_path)


def test_an_environment_of_another_type_is_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("han_tf.runs.folder.load_run", lambda *_: LoadedRun(None, {}, tmp_path, ""))
    for name in ("metrics.json", "environment.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match=r"environment.json: a JSON list, expected the environment of a training run"):
        command.store("run", tmp_path / "mine", "last")


def test_weights_that_there_are_none_of():
    with pytest.raises(UserError, match=r"model han_small has no weights 'mars', expected one of .*synthetic"):
        create_model("han_small", weights="mars")
    with pytest.raises(UserError, match="model han_medium has no weights 'mars', expected none"):
        create_model("han_medium", weights="mars")

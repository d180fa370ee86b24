"""Finding runs and loading their networks; damaged ones give one line of error."""

import json
import os
import shutil
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import tensorflow as tf

from han_tf.common.errors import UserError
from han_tf.models import SWITCHES, create_model
from han_tf.models.network import ReIDNetwork
from han_tf.runs import folder as runs
from han_tf.runs.checkpoints import Checkpoints, check_folder
from han_tf.runs.folder import create_network, find_run, load_run, read_config
from han_tf.runtimes import open_runtime
from han_tf.weights import is_stored, shipped_names
from tests.conftest import TINY_ARGS

SETTINGS = {
    "dataset": "market1501",
    "split": "",
    "data_dir": "",
    "model": "han_small",
    "num_classes": 8,
    "input_height": 48,
    "input_width": 32,
    "feature_dim": 1024,
}


SMALL = {**SETTINGS, "feature_dim": 64, "input_width": 40}
"""Settings of a network that differs from the default, which :func:`create_network` has to pass on."""


def message_of(function, *arguments, **options):
    with pytest.raises(UserError) as raised:
        function(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


class TestFindRun:
    @staticmethod
    def make(folder, name, age, dataset="market1501", split="", which="checkpoints"):
        """Makes a run whose checkpoint is ``age`` seconds old and whose settings were written just now."""
        run = folder / name
        (run / which).mkdir(parents=True)
        (run / which / "checkpoint").touch()
        os.utime(run / which / "checkpoint", (1e9 - age, 1e9 - age))
        (run / "config.json").write_text(json.dumps({**SETTINGS, "dataset": dataset, "split": split}))
        return run

    @pytest.fixture
    def folder(self, tmp_path):
        self.make(tmp_path, "old", 30)
        self.make(tmp_path, "a_detected", 20, "cuhk03", "detected")
        self.make(tmp_path, "b_labelled", 10, "cuhk03", "labelled")
        self.make(tmp_path, "c_detected", 40, "cuhk03", "detected")
        (tmp_path / "no_checkpoint").mkdir()
        (tmp_path / "no_checkpoint" / "config.json").write_text(json.dumps(SETTINGS))
        (tmp_path / "no_run").mkdir()
        (tmp_path / "file").touch()
        return tmp_path

    @pytest.mark.parametrize(
        ("dataset", "split", "name"),
        [
            (None, None, "b_labelled"),
            ("market1501", None, "old"),
            ("cuhk03", None, "b_labelled"),
            ("cuhk03", "detected", "a_detected"),
            (None, "detected", "a_detected"),
            ("market1501", "", "old"),
        ],
    )
    def test_the_newest_checkpoint_that_fits(self, folder, dataset, split, name):
        assert find_run(folder, dataset, split) == folder / name

    def test_the_best_network_counts_as_well(self, folder):
        expected = self.make(folder, "d_best", 1, which="best")
        assert find_run(folder) == expected

    @pytest.mark.parametrize(
        ("dataset", "split", "what", "command"),
        [
            ("msmt17", None, "no msmt17 run with a checkpoint in ", "make train DATASET=msmt17 makes one"),
            (
                "cuhk03",
                "detect",
                "no cuhk03 detect run with a checkpoint in ",
                "make train DATASET=cuhk03 SPLIT=detect makes one",
            ),
        ],
    )
    def test_none_fits(self, folder, dataset, split, what, command):
        assert message_of(find_run, folder, dataset, split) == f"{what}{folder}: {command}"

    def test_a_name_that_no_folder_can_have(self, folder):
        """Python raises the same for a folder that others may not read."""
        path = folder / ("a" * 300)
        line = f"{path}: File name too long, expected a path that can be read"
        assert message_of(find_run, path) == line
        assert message_of(load_run, path) == line
        assert message_of(open_runtime, path) == line
        assert message_of(is_stored, path).startswith(f"{path}/")

    @pytest.mark.parametrize("dataset", ["occluded_reid", "market1501,occluded_reid"])
    def test_no_run_is_trained_on_a_set_for_evaluation_only(self, folder, dataset):
        expected = f"no {dataset} run with a checkpoint in {folder}, since occluded_reid has no training images: "
        expected += "expected --model, such as --model han_small-market1501"
        assert message_of(find_run, folder, dataset) == expected

    @pytest.mark.parametrize("name", ["nowhere", "file"])
    def test_no_folder_of_runs(self, folder, name):
        expected = f"no run with a checkpoint in {folder / name}: make train makes one"
        assert message_of(find_run, folder / name) == expected


class TestReadConfig:
    def test_it_comes_back(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({**SETTINGS, "lr": 0.03}))
        assert read_config(tmp_path) == {**SETTINGS, "lr": 0.03}

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b'{"dataset": ', "not JSON"),
            (b"", "not JSON"),
            (b"\xff\xfe\x00", "not JSON"),
            (b"[1, 2]", "a JSON list"),
            (b"null", "a JSON NoneType"),
            (b"{}", "no setting 'dataset'"),
            (json.dumps({**SETTINGS, "dataset": ["a"]}).encode(), "dataset is ['a'], "),
            (json.dumps({**SETTINGS, "model_args": None}).encode(), "model_args is None, "),
            (json.dumps({**SETTINGS, "input_height": 48.0}).encode(), "input_height is 48.0, "),
            *(
                (json.dumps({k: v for k, v in SETTINGS.items() if k != name}).encode(), f"no setting '{name}'")
                for name in SETTINGS
            ),
        ],
    )
    def test_what_is_wrong_with_it(self, tmp_path, content, expected):
        path = tmp_path / "run" / "config.json"
        path.parent.mkdir()
        path.write_bytes(content)
        message = message_of(read_config, path.parent)
        assert message.startswith(f"{path}: {expected}")
        assert message.endswith("expected the settings of a training run")
        # find_run does not skip a run that cannot be read.
        Checkpoints(path.parent / "checkpoints", 1, value=tf.Variable(0)).save(1)
        assert message_of(find_run, tmp_path) == message

    def test_no_run(self, tmp_path):
        expected = f"{tmp_path}/no: no such folder, expected that of a training run, or one of "
        for read in (read_config, load_run):
            assert message_of(read, tmp_path / "no") == expected + ", ".join(shipped_names())
        (tmp_path / "no").mkdir()
        expected = f"{tmp_path}/no/config.json: No such file or directory, expected the settings of a training run"
        assert message_of(read_config, tmp_path / "no") == expected


class TestCreateNetwork:
    """From the settings in config.json to the network's arguments."""

    @pytest.fixture(autouse=True)
    def unbuilt(self, monkeypatch):
        """Skips the variables, since a network without them is made fast."""
        monkeypatch.setattr(ReIDNetwork, "make_variables", lambda network: None)

    def test_the_settings_are_the_networks(self):
        model = create_network(SMALL, 5)
        assert (model.num_classes, model.input_size, model.feature_dim) == (5, (48, 40), 64)
        assert create_network(SMALL).num_classes == 0

    def test_a_run_that_knew_no_ablations_had_everything_on(self):
        config = create_network(SMALL).get_config()
        assert {name: config[name] for name in SWITCHES} == dict.fromkeys(SWITCHES, True)
        assert config == create_network({**SMALL, **dict.fromkeys(SWITCHES, True)}).get_config()

    @pytest.mark.parametrize("off", SWITCHES)
    def test_an_ablation(self, off):
        config = create_network({**SMALL, **dict.fromkeys(SWITCHES, True), off: False}).get_config()
        assert {name: config[name] for name in SWITCHES} == {name: name != off for name in SWITCHES}

    def test_a_network_without_attention(self):
        """It accepts the switches only if all are on."""
        on = {**SMALL, **dict.fromkeys(SWITCHES, True), "model": "shufflenet"}
        assert create_network(on).branch_names == ("global",)
        assert "hard" in message_of(create_network, {**on, "hard": False})


class TestLoadRun:
    @staticmethod
    def copy(run, folder, **settings):
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("tensorboard", "*.png"))
        config = {**json.loads((folder / "config.json").read_text()), **settings}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_the_weights_are_those_of_the_checkpoint(self, tiny_run, tmp_path):
        """Also after the run was moved."""
        run = load_run(self.copy(tiny_run, tmp_path / "copy"))
        newest = Path(tf.train.latest_checkpoint(str(tiny_run / "checkpoints"))).name
        assert run.checkpoint == str(tmp_path / "copy" / "checkpoints" / newest)
        assert run.run_dir == tmp_path / "copy"
        assert run.config == json.loads((tiny_run / "config.json").read_text())
        assert run.model.input_size == (48, 32)

        reader = tf.train.load_checkpoint(run.checkpoint)
        saved = [
            reader.get_tensor(name)
            for name in reader.get_variable_to_shape_map()
            if name.startswith("model/")
            and name.endswith(".ATTRIBUTES/VARIABLE_VALUE")
            and "OPTIMIZER_SLOT" not in name
        ]
        weights = [variable.numpy() for variable in run.model.variables]
        assert len(weights) == len(saved)

        def in_order(arrays):
            return sorted(arrays, key=lambda array: (array.shape, array.tobytes()))

        for mine, theirs in zip(in_order(weights), in_order(saved)):
            np.testing.assert_array_equal(mine, theirs)
        named = reader.get_tensor("model/global_classifier/kernel/.ATTRIBUTES/VARIABLE_VALUE")
        np.testing.assert_array_equal(run.model.global_classifier.kernel.numpy(), named)

    def test_the_last_one_stands_in_for_the_best(self, tiny_run, tmp_path, monkeypatch):
        model = create_model("han_small", num_classes=8, input_size=(48, 32), **TINY_ARGS)
        monkeypatch.setattr(runs, "create_model", lambda name, **arguments: model)
        folder = self.copy(tiny_run, tmp_path / "copy")
        assert load_run(folder, "best").checkpoint.startswith(str(folder / "best" / "ckpt-"))
        shutil.rmtree(folder / "best")
        assert load_run(folder, "best").checkpoint == load_run(folder).checkpoint

    def test_an_ablation_comes_back(self, tmp_path):
        """Table 9's first row, without interaction: the checkpoint fits no other network."""
        config = {**SETTINGS, **dict.fromkeys(SWITCHES, False), "feature_dim": 64}
        saved = create_network(config, config["num_classes"])
        Checkpoints(tmp_path / "checkpoints", 1, model=saved).save(1)
        (tmp_path / "config.json").write_text(json.dumps(config))
        loaded = load_run(tmp_path).model
        assert loaded.get_config() == saved.get_config()
        images = np.random.default_rng(0).integers(0, 256, (2, 48, 32, 3), np.uint8)
        np.testing.assert_array_equal(loaded(images), saved(images))

        (tmp_path / "config.json").write_text(json.dumps({**config, "spatial": True}))
        assert ": checkpoint of another model (" in message_of(load_run, tmp_path)

    @pytest.mark.parametrize(
        ("settings", "shapes"), [({"num_classes": 9}, "(512, 9)"), ({"feature_dim": 64}, "(32, 8)")]
    )
    def test_another_network(self, tiny_run, tmp_path, settings, shapes):
        folder = self.copy(tiny_run, tmp_path / "copy", **settings)
        message = message_of(load_run, folder)
        assert message.startswith(f"{folder}/checkpoints/ckpt-")
        assert ": checkpoint of another model (" in message
        assert shapes in message

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"model": "han_huge"}, "model 'han_huge' does not exist, expected one of han_small"),
            ({"input_height": 1}, "input_size must be at least"),
            ({"input_width": None}, "input_width is None, "),
            ({"model_args": {"stem_width": None}}, "model han_small: "),
            ({"model_args": {"name": "a"}}, "model_args has 'name', expected arguments that no other setting"),
            ({"model_args": {"num_classes": 3}}, "model_args has 'num_classes', "),
            ({"model_args": {"input_size": [48, 32]}}, "model_args has 'input_size', "),
            ({"model_args": {"hard": False}, "hard": False}, "model_args has 'hard', "),
            ({"feature_dim": 7}, "feature_dim must be a positive multiple of 2"),
            ({"model": "resnet50", "hard": False}, "model resnet50 has no argument 'hard'"),
            ({"num_classes": -1}, "model han_small: "),
        ],
    )
    def test_impossible_settings(self, tmp_path, settings, expected):
        (tmp_path / "config.json").write_text(json.dumps({**SETTINGS, **settings}))
        message = message_of(load_run, tmp_path)
        assert message.startswith(f"{tmp_path}/config.json: ")
        assert expected in message

    def test_no_checkpoint(self, tmp_path, monkeypatch):
        monkeypatch.setattr(runs, "create_model", lambda name, **arguments: tf.Variable(0.0))
        (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
        expected = f"{tmp_path}/checkpoints: no checkpoint found, expected one of a training run"
        assert message_of(load_run, tmp_path) == expected
        assert message_of(load_run, tmp_path, "best") == expected
        assert os.listdir(tmp_path) == ["config.json"]


class TestCheckpoints:
    DATA = "ckpt-2.data-00000-of-00001"
    INDEX = "ckpt-2.index"

    @staticmethod
    def objects(size=1000, **more):
        return {"value": tf.Variable(np.zeros(size, np.float32)), "count": tf.Variable(0), **more}

    @pytest.fixture
    def folder(self, tmp_path):
        """Two checkpoints: ones with count 1, and twos with count 2."""
        objects = self.objects()
        checkpoints = Checkpoints(tmp_path / "run", 2, **objects)
        for number in (1, 2):
            objects["value"].assign(np.full(1000, number, np.float32))
            objects["count"].assign(number)
            checkpoints.save(number)
        return tmp_path / "run"

    def test_the_newest_is_restored(self, folder):
        objects = self.objects()
        assert Checkpoints(folder, 2, **objects).restore() == str(folder / "ckpt-2")
        assert objects["count"].numpy() == 2
        np.testing.assert_array_equal(objects["value"], np.full(1000, 2))

    @pytest.mark.parametrize("name", ["a[1]", "a\\b", "a\udcff"])
    def test_a_folder_that_tensorflow_could_not_read_from(self, tmp_path, name):
        with pytest.raises(UserError, match="checkpoints here could not be read, expected a path in UTF-8, without"):
            Checkpoints(tmp_path / name, 1)

    def test_windows_paths_are_none_of_these(self):
        check_folder(PureWindowsPath("C:\\runs\\a"))

    @pytest.mark.parametrize("name", ["a b", "ä", "a*", "%s", "-x", "a]", "a?"])
    def test_a_folder_of_another_name(self, tmp_path, name):
        saved = tf.Variable(3)
        Checkpoints(tmp_path / name, 1, value=saved).save(1)
        saved.assign(5)
        Checkpoints(tmp_path / name, 1, value=saved).restore()
        assert saved.numpy() == 3

    def test_only_so_many_are_kept(self, folder):
        objects = self.objects()
        checkpoints = Checkpoints(folder, 2, **objects)
        checkpoints.restore()
        checkpoints.save(3)
        assert sorted(path.name for path in folder.glob("*.index")) == ["ckpt-2.index", "ckpt-3.index"]

    def test_part_of_it(self, folder):
        count = tf.Variable(0)
        checkpoints = Checkpoints(folder, 2, count=count)
        assert "checkpoint of another model" in message_of(checkpoints.restore)
        checkpoints.restore(partial=True)
        assert count.numpy() == 2

    @pytest.mark.parametrize(("name", "size"), [(DATA, 1000), (DATA, 0), (INDEX, 60), (INDEX, 0)])
    def test_a_truncated_file(self, folder, name, size):
        os.truncate(folder / name, size)
        message = message_of(Checkpoints(folder, 2, **self.objects()).restore)
        assert message.startswith(f"{folder}/ckpt-2: damaged or incomplete checkpoint (")

    @pytest.mark.parametrize("name", [DATA, INDEX])
    def test_a_missing_file(self, folder, name):
        (folder / name).unlink()
        message = message_of(Checkpoints(folder, 2, **self.objects()).restore)
        assert message.startswith(f"{folder}/ckpt-2: damaged or incomplete checkpoint (")

    @pytest.mark.parametrize("objects", [{"size": 999}, {"more": tf.Variable(1.0)}])
    def test_another_model(self, folder, objects):
        message = message_of(Checkpoints(folder, 2, **self.objects(**objects)).restore, partial=True)
        assert message.startswith(f"{folder}/ckpt-2: checkpoint of another model (")

    @pytest.mark.parametrize("state", [b"", b"garbage }{", b"\xff\x00"])
    def test_a_damaged_list_of_checkpoints(self, folder, state):
        (folder / "checkpoint").write_bytes(state)
        message = message_of(Checkpoints, folder, 2, **self.objects())
        assert message == f"{folder}/checkpoint: damaged, expected the name of the newest checkpoint"

    def test_a_folder_that_cannot_be_written(self, folder, tmp_path):
        checkpoints = Checkpoints(folder, 2, **self.objects())
        kept = checkpoints.restore()
        shutil.move(folder, tmp_path / "away")
        folder.touch()
        message = message_of(checkpoints.save, 3)
        assert message.startswith(f"cannot write a checkpoint to {folder}: ")
        assert message.endswith(f"; kept {kept}")

"""An ablation from the command line: trained, resumed, evaluated and drawn with the right network."""

import json
import shutil

import pytest

from han_tf import evaluate, train, visualize
from han_tf.common import cli
from han_tf.models import SWITCHES
from han_tf.runs.folder import load_run
from tests.conftest import TINY_NETWORK, TINY_SIZE


def call(command, *arguments, **options):
    return cli.run(command.main, command.FLAGS, command.__doc__, ["command", *map(str, arguments)], **options)


@pytest.fixture(scope="module")
def run_dir(tiny_data, tmp_path_factory):
    """The folder of a run with everything off that can be off."""
    runs = tmp_path_factory.mktemp("runs")
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--runs_dir={runs}", "--epochs=1"]
    assert call(train, *arguments, *TINY_SIZE, TINY_NETWORK, *(f"--no{name}" for name in SWITCHES)) == 0
    (folder,) = runs.iterdir()
    return folder


def test_the_folder_tells_what_is_off(run_dir):
    for name in SWITCHES:
        assert f"-{name}_False-" in run_dir.name
    config = json.loads((run_dir / "config.json").read_text())
    assert [config[name] for name in SWITCHES] == [False] * 4
    assert load_run(run_dir).model.get_config()["interaction"] is False


def test_nobody_complains_about_fixed_regions(run_dir):
    regions = json.loads((run_dir / "metrics.json").read_text())["attention"]
    assert regions["complaints"] == []
    assert len(regions["mean"]) == 1


def test_the_same_command_goes_on_and_another_one_does_not(run_dir, tiny_data, tmp_path, capsys):
    arguments = ["--dataset=market1501", f"--data_dir={tiny_data}", f"--run={run_dir}", "--epochs=1"]
    arguments += [*TINY_SIZE, TINY_NETWORK]
    assert call(train, *arguments, *(f"--no{name}" for name in SWITCHES[:3])) == 1
    assert f"{run_dir} holds a run with --interaction False, this command has True" in capsys.readouterr().err
    copy = shutil.copytree(run_dir, tmp_path / "run")
    (row,) = json.loads((copy / "history.json").read_text())
    row["attention"]["complaints"] = [f"complaint {number}" for number in range(8)]
    (copy / "history.json").write_text(json.dumps([row]))
    arguments[2] = f"--run={copy}"
    assert call(train, *arguments, *(f"--no{name}" for name in SWITCHES)) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert told[:6] == [f"warning: complaint {number}" for number in range(6)]
    assert told[6:] == ["warning: 2 more warnings on attention, see metrics.json"]
    assert json.loads((copy / "metrics.json").read_text())["attention"] == row["attention"]


def test_it_is_evaluated_and_drawn(run_dir, tmp_path, capsys):
    assert call(evaluate, f"--model={run_dir}", f"--output={tmp_path / 'evaluation.json'}") == 0
    assert {row["feature"] for row in json.loads((tmp_path / "evaluation.json").read_text())["results"]} == {
        "joint",
        "global",
        "local",
    }
    assert call(visualize, f"--model={run_dir}", f"--output={tmp_path}", "--queries=2", positional="IMAGE") == 0
    assert (tmp_path / "attention.png").stat().st_size > 1000

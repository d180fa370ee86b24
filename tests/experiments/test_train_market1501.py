"""The script that repeats the trainings of the networks in the package."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from experiments.results import HERE, RESULTS, identity
from han_tf import train
from han_tf.training.config import TrainConfig

RESULT_OF = {
    "m80": "market1501-han_small-strong-80x32-20epochs-seed0",
    "m112": "market1501-han_small-strong-112x48-10epochs-seed0",
    "e112": "market1501-han_small-strong-erasing-112x48-14epochs-seed1",
    "e160": "market1501-han_small-strong-erasing-5epochs-seed2",
    "f112": "market1501-han_small-strong-erasing-112x48-10epochs-seed4",
    "t112": "market1501-han_small-strong-erasing-112x48-1epochs-losses-triplet",
    "t160": "market1501-han_small-strong-triplet-7epochs-seed7",
    "a112": "market1501-han_small-strong-triplet-112x48-20epochs-seed8",
    "b160": "market1501-han_small-strong-triplet-16epochs-seed9",
    "c160": "market1501-han_small-strong-triplet-31epochs-seed10",
    "l160": "market1501-han_large-strong-triplet-14epochs-seed11",
    "m160": "market1501-han_large-strong-triplet-21epochs-seed12",
    "n160c": "market1501-han_large-strong-triplet-4epochs-seed13",
    "n160": "market1501-han_large-strong-triplet-13epochs-seed14",
    "o160": "market1501-han_large-strong-triplet-32epochs-seed15",
}
"""Name of a run in the script -> its result."""

RECORDER = """#!/bin/sh
for argument; do printf '%s\\0' "$argument"; done >> "$COMMANDS"
printf '\\n' >> "$COMMANDS"
"""
"""Python's place: writes its arguments down, one call a line."""


@pytest.fixture
def commands(tmp_path):
    """Returns the arguments of the commands that the script calls."""
    recorder, called = tmp_path / "python", tmp_path / "commands"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(recorder), "COMMANDS": str(called)}
    script = HERE / "train_market1501.sh"
    subprocess.run(["sh", str(script), "my data"], cwd=tmp_path, env=environment, check=True)
    return [line.split("\0")[:-1] for line in called.read_text().splitlines()]


def test_its_trainings_are_those_of_the_results(commands):
    trained, stored = {}, []
    for _, module, *arguments in commands:
        if module != "han_tf.train":
            stored.append([module, *arguments])
            continue
        train.FLAGS.unparse_flags()
        train.FLAGS(["train", *arguments])
        config = train.config_of(train.FLAGS)
        assert config.data_dir == "my data"
        trained[Path(train.FLAGS.run).name] = identity(config.to_dict())
    train.FLAGS.unparse_flags()
    assert list(trained) == list(RESULT_OF)
    assert stored == [
        ["han_tf.weights", "--run", f"runs/{run}", "--output", f"runs/{run}-stored"] for run in ("t160", "m160")
    ]
    for run, name in RESULT_OF.items():
        result = json.loads((RESULTS / f"{name}.json").read_text())
        assert trained[run] == identity(TrainConfig.from_dict(result["settings"], name).to_dict()), run

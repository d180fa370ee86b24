"""A training run on disk: its settings, checkpoints and history, from which it resumes."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from han_tf.common.errors import UserError
from han_tf.common.files import exists, write_json
from han_tf.common.run_files import CONFIG, ENVIRONMENT, HISTORY, UNFINISHED
from han_tf.models.transfer import named_variables, take_over
from han_tf.runs import environment
from han_tf.runs.checkpoints import Checkpoints
from han_tf.runs.folder import CHECKPOINTS, LoadedRun, load_run, origin_of, read_config, source_of
from han_tf.training.config import OF_DATA, TrainConfig
from han_tf.weights import is_stored


class RunFolder:
    """The folder of one run; opening it restores the state that an earlier process left.

    Args:
      config: the run's settings.
      path: the folder; empty, or with a run of the same settings.
      state: what a checkpoint holds, by name: ``model``, ``optimizer``, the counts ``epoch`` and ``batch``, means.
      found: ``num_classes``, ``num_images`` and ``replicas`` of this process.
      fingerprints: of the images to ``train`` and to ``test`` on.
      writes: whether this process writes files; of several workers, only one does.

    Attributes:
      history: one row for each finished epoch.
      checkpoints: the newest checkpoints.
      best: the network of the best evaluation.

    Raises:
      UserError: the folder holds another run or one of other training images, or its checkpoint cannot be read.
    """

    def __init__(
        self,
        config: TrainConfig,
        path: Path,
        state: Mapping[str, Any],
        found: Mapping[str, int],
        fingerprints: Mapping[str, str],
        writes: bool = True,
    ):
        self.config = config
        self.path = path
        self.state = state
        self.fingerprints = fingerprints
        self.writes = writes
        self.history: list[dict[str, Any]] = []
        self.checkpoints = Checkpoints(path / CHECKPOINTS["last"], config.keep_checkpoints, **state)
        self.best = Checkpoints(path / CHECKPOINTS["best"], 1, model=state["model"])
        self._open(found)

    def save(self, step: int, unfinished: Optional[Mapping[str, Any]] = None) -> None:
        """Writes history and state after ``step`` steps, and within an epoch what is known of it, ``unfinished``."""
        if self.writes:
            write_json(self.path / HISTORY, self.history)
            if unfinished is not None:
                write_json(self.path / UNFINISHED, {**unfinished, "step": step})
            self.checkpoints.save(step)
            if unfinished is None:
                (self.path / UNFINISHED).unlink(missing_ok=True)

    def unfinished(self, step: int) -> dict[str, Any]:
        """Returns what :meth:`save` was given on the epoch that was stopped after ``step`` steps; empty if nothing."""
        try:
            found = json.loads((self.path / UNFINISHED).read_text(encoding="utf-8"))
            return found if found["step"] == step else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def add_evaluation(self, evaluation: Mapping[str, Any], is_best: bool, step: int) -> None:
        """Adds an evaluation to the last epoch's row, and saves the network if it is the best so far."""
        if is_best:
            self.best.save(step)
        self.history[-1]["evaluation"] = evaluation
        write_json(self.path / HISTORY, self.history)

    def _open(self, found: Mapping[str, Any]) -> None:
        saved = check_run_folder(self.config, self.path)
        for name in ("num_classes", "num_images"):
            if saved and saved.get(name) != found[name]:
                raise UserError(
                    f"{self.path} holds a run with {name} {saved.get(name)}, the training set has {found[name]} now; "
                    "give another --run, or the same images to resume that run"
                )
        replicas, before = found["replicas"], saved.get("replicas", found["replicas"])
        if before != replicas and not self.config.sync_batch_norm:
            raise UserError(
                f"{self.path} holds a run whose batch norm saw a part of a batch on each of {before} devices, "
                f"there are {replicas} now; give another --run, or as many devices to resume that run"
            )
        fingerprints = saved.get("fingerprints", self.fingerprints)  # older runs have none
        same = {name: fingerprints.get(name, digits) == digits for name, digits in self.fingerprints.items()}
        if not same.get("train", True):
            raise UserError(
                f"{self.path} holds a run whose training images had other names, labels or sizes; "
                "give another --run, or the same images to resume that run"
            )
        if self.checkpoints.latest is not None:
            path = self.checkpoints.restore()
            try:
                history = [dict(row) for row in json.loads((self.path / HISTORY).read_text(encoding="utf-8"))]
            except (OSError, ValueError, TypeError):
                tqdm.write(f"warning: {self.path / HISTORY} is missing or damaged; earlier epochs are not in it")
                history = []
            # Epochs that are missing in the file have been trained nevertheless.
            lost = [{"epoch": epoch} for epoch in range(len(history) + 1, int(self.state["epoch"]) + 1)]
            self.history = history[: int(self.state["epoch"])] + lost
            if not same.get("test", True):
                tqdm.write("note: the test images have changed; earlier evaluations are dropped")
                for row in self.history:
                    row.pop("evaluation", None)
                if self.writes:
                    write_json(self.path / HISTORY, self.history)
            tqdm.write(f"resuming from {path}: epoch {int(self.state['epoch'])}, step {int(self.state['batch'])}")
        else:
            made_with = environment.describe()
            if self.config.init_from:
                made_with["init_from"] = self._start_from(Path(self.config.init_from))
            if self.writes:
                write_json(self.path / ENVIRONMENT, made_with)
        if self.writes:
            # Last: after a kill before this line, the stored fingerprints still belong to the stored history.
            write_json(self.path / CONFIG, {**self.config.to_dict(), **found, "fingerprints": self.fingerprints})

    def _start_from(self, source: Path) -> dict[str, Any]:
        """Takes over the weights of another run; returns its entry for environment.json."""
        run = load_run(source)
        same = self.fingerprints.get("train") == (run.config.get("fingerprints") or {}).get("train")
        if self.config.init_classifiers and not (same and self.fingerprints):
            raise UserError(
                f"--init_classifiers, but {source} was trained on other images: expected the same; without it, the "
                "classifiers start anew"
            )
        take_over(self.state["model"], named_variables(run.model), str(source), self.config.init_classifiers)
        tqdm.write(
            f"starting from {run.checkpoint}" + ("" if self.config.init_classifiers else ", but the classifiers")
        )
        return _of_source(run)


def _of_source(run: LoadedRun) -> dict[str, Any]:
    """Returns the entry of environment.json on the run that another one starts from, and on that run's own source."""
    told = {
        name: run.config[name]
        for name in ("model", "dataset", "recipe", "input_height", "input_width")
        if name in run.config
    }
    if not is_stored(run.run_dir):
        with suppress(OSError, ValueError, TypeError):
            told["epochs"] = len(json.loads((run.run_dir / HISTORY).read_text(encoding="utf-8")))
    return {**told, **origin_of(run.run_dir), **source_of(run)}


def check_run_folder(config: TrainConfig, run_dir: Path) -> dict[str, Any]:
    """Returns the config.json of the run in ``run_dir``; empty if there is no run yet.

    Raises:
      UserError: the run cannot resume with the settings ``config``, its config.json is damaged, or the folder holds
        stored weights.
    """
    if is_stored(run_dir):
        raise UserError(
            f"{run_dir} holds stored weights, expected another --run; --init_from {run_dir} goes on from them"
        )
    path = Path(run_dir) / CONFIG
    if not exists(path):
        return {}
    saved = read_config(run_dir)
    settings = {name: value for name, value in saved.items() if name not in OF_DATA}
    config.check_resumable(TrainConfig.from_dict(settings, str(path)), str(run_dir))
    return saved

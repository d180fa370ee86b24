"""Finding training runs and loading their networks."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

from han_tf.common.errors import UserError
from han_tf.common.files import exists, read_json
from han_tf.common.run_files import CONFIG, ENVIRONMENT
from han_tf.data import only_tested
from han_tf.data.joined import NamedDataset, named_datasets
from han_tf.models import create_model, switched_off
from han_tf.weights import ABOUT, ARRAYS, is_stored, read_about, read_arrays, resolve, shipped_names

if TYPE_CHECKING:
    from han_tf.models.network import ReIDNetwork

SETTINGS = ("dataset", "split", "data_dir", "model", "num_classes", "input_height", "input_width", "feature_dim")
"""Settings that every run's config.json must hold."""

TYPES = {"dataset": str, "split": str, "data_dir": str, "model": str, "model_args": dict, "init_from": str}
TYPES |= dict.fromkeys(("num_classes", "input_height", "input_width", "feature_dim"), int)
"""Settings whose type is checked when they are read -> the type."""

CHECKPOINTS = {"last": "checkpoints", "best": "best"}
"""Which network of a run -> the folder of its checkpoint."""


class LoadedRun(NamedTuple):
    """The network of a training run.

    Attributes:
      model: the trained network, or the :class:`han_tf.FeatureExtractor` of an export.
      config: the run's settings.
      run_dir: its folder.
      checkpoint: path prefix of the checkpoint, path of the stored weights, or format and precision of the export.
    """

    model: "ReIDNetwork"
    config: dict[str, Any]
    run_dir: Path
    checkpoint: str


def read_config(run_dir: Union[str, os.PathLike]) -> dict[str, Any]:
    """Returns the settings of a run, or of a shipped network by its name.

    Raises:
      UserError: the folder holds no run, or the file is damaged.
    """
    folder = resolve(run_dir)
    if not exists(folder):
        raise UserError(
            f"{run_dir}: no such folder, expected that of a training run, or one of {', '.join(shipped_names())}"
        )
    path = folder / CONFIG
    config = read_json(path, "the settings of a training run")
    if not isinstance(config, dict):
        raise UserError(f"{path}: a JSON {type(config).__name__}, expected the settings of a training run")
    for name in SETTINGS:
        if name not in config:
            raise UserError(f"{path}: no setting {name!r}, expected the settings of a training run")
    for name, kind in TYPES.items():
        if not isinstance(config.get(name, kind()), kind):
            raise UserError(f"{path}: {name} is {config[name]!r}, expected the settings of a training run")
    return config


def find_run(runs_dir: Union[str, os.PathLike], dataset: Optional[str] = None, split: Optional[str] = None) -> Path:
    """Returns the folder of the run in ``runs_dir`` whose checkpoint was written last.

    Args:
      runs_dir: the folder of runs.
      dataset, split: only runs with these settings; any if None.

    Raises:
      UserError: there is no such run, or the folder or the settings of one with a checkpoint cannot be read.
    """
    found = []
    for config_path in Path(runs_dir).glob(f"*/{CONFIG}") if exists(runs_dir) else ():
        run_dir = config_path.parent
        states = [state for name in CHECKPOINTS.values() for state in (run_dir / name).glob("checkpoint")]
        config = read_config(run_dir) if states else {}
        if states and dataset in (None, config["dataset"]) and split in (None, config["split"]):
            found.append((max(state.stat().st_mtime_ns for state in states), run_dir))
    if not found:
        what = " ".join(word for word in (dataset, split) if word)
        if tested := only_tested(dataset or ""):
            raise UserError(
                f"no {what} run with a checkpoint in {runs_dir}, since {tested[0]} has no training images: "
                "expected --model, such as --model han_small-market1501"
            )
        train = "make train" + (f" DATASET={dataset}" if dataset else "") + (f" SPLIT={split}" if split else "")
        raise UserError(f"no {what + ' ' if what else ''}run with a checkpoint in {runs_dir}: {train} makes one")
    return max(found)[1]


def data_of(config: Mapping[str, Any], name: str = "") -> NamedDataset:
    """Returns the data set ``name`` with the folder and split of a run; without them if the run did not use it.

    Args:
      config: the run's settings.
      name: of a data set, or of one of several that were joined; if empty, all that the run was trained on.
    """
    trained_on = NamedDataset(config["dataset"], config["data_dir"], config["split"])
    for own in (trained_on, *named_datasets(*trained_on)):
        if name in ("", own.name):
            return own
    return NamedDataset(name)


def trained_on(run: LoadedRun) -> list[str]:
    """Returns the data sets that a network was trained on: the run's, then those of the networks that it started from.

    A source that is not known is ``""``.
    """
    source = source_of(run).get("init_from")
    if source is None and run.config.get("init_from"):
        source = {}
    found = [run.config["dataset"]]
    if run.config.get("weights") and source is None:  # a file, of whatever images
        found.append("")
    while isinstance(source, dict):
        found.append(str(source.get("dataset", "")))
        source = source.get("init_from")
    return found


def source_of(run: LoadedRun) -> dict[str, Any]:
    """Returns the entry ``init_from`` on the network that a run started from; empty if none is known."""
    shipped = f"{run.config.get('model')}-{run.config.get('weights')}"  # --weights takes those of the package, too
    source = origin_of(run.run_dir).get("init_from")
    if source is None and shipped in shipped_names():
        source = read_about(resolve(shipped))
    return {} if source is None else {"init_from": source}


def origin_of(run_dir: Path) -> dict[str, Any]:
    """Returns the entries ``commit`` and ``init_from`` on a run or on stored weights, and the latter's ``epochs``."""
    try:
        found = json.loads((run_dir / (ABOUT if is_stored(run_dir) else ENVIRONMENT)).read_text(encoding="utf-8"))
        return {name: found[name] for name in ("epochs", "commit", "init_from") if name in found}
    except (OSError, UserError, ValueError, TypeError):
        return {}  # for information only; the network is complete without it


def create_network(settings: Mapping[str, Any], num_classes: int = 0, weights: str = "") -> "ReIDNetwork":
    """Returns the untrained network that a run's settings describe.

    Args:
      settings: those of :class:`han_tf.training.config.TrainConfig`, as config.json holds them.
      num_classes: number of training identities; 0 for a network without classifiers.
      weights: file of the weights to start training from, or the name of a data set that a network of the package was
        trained on; ``""`` for random ones, and if a checkpoint will be restored, which holds all weights.

    Raises:
      UserError: there is no such network, it does not take these settings, or they do not fit the weights.
    """
    shipped = f"{settings['model']}-{weights}"
    if shipped in shipped_names():
        from han_tf.models.transfer import take_over

        # Not create_model's, which takes the arguments of the shipped network, whatever these settings say.
        model = create_network(settings, num_classes)
        take_over(model, read_arrays(resolve(shipped)), shipped)
        return model
    arguments = {
        "num_classes": num_classes,
        "input_size": (settings["input_height"], settings["input_width"]),
        "feature_dim": settings["feature_dim"],
        **switched_off(settings),
        **({"weights": weights} if weights else {}),
    }
    more = settings.get("model_args", {})
    if twice := sorted({"name", *arguments} & set(more)):
        raise UserError(f"model_args has {twice[0]!r}, expected arguments that no other setting determines")
    return create_model(settings["model"], **arguments, **more)


def load_run(run_dir: Union[str, os.PathLike], which: str = "last") -> LoadedRun:
    """Loads the network of a run.

    Args:
      run_dir: the run's folder, one that ``han_tf.weights`` stored, or the name of a network that comes with the
        package; stored networks have no classifiers.
      which: ``last``, as papers report; or ``best``, the one with the highest mAP during training, which is chosen
        on the test set; the last one if there was no evaluation.

    Raises:
      UserError: there is no such run, or its checkpoint is missing, damaged or of another model.
    """
    run_dir = resolve(run_dir)
    config = read_config(run_dir)
    from han_tf.models.transfer import take_over
    from han_tf.runs.checkpoints import Checkpoints  # imports TensorFlow, which finding a run does not need

    stored = is_stored(run_dir)
    try:
        model = create_network(config, 0 if stored else config["num_classes"])
    except UserError as error:
        raise UserError(f"{run_dir / CONFIG}: {error}") from error
    if stored:
        take_over(model, read_arrays(run_dir), str(run_dir))
        return LoadedRun(model, config, run_dir, str(run_dir / ARRAYS))
    checkpoints = Checkpoints(run_dir / CHECKPOINTS[which], 1, model=model)
    if which == "best" and checkpoints.latest is None:
        checkpoints = Checkpoints(run_dir / CHECKPOINTS["last"], 1, model=model)
    return LoadedRun(model, config, run_dir, checkpoints.restore(partial=True))

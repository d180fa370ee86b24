"""List the trained networks that come with the package, or store a run's network in the same form.

  python -m han_tf.weights
  python -m han_tf.weights --run runs/NAME --output han_small-market1501

A stored folder can be used in place of a run's folder: --model, --init_from.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from han_tf import weights
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import check_no_file, read_json, write_json, writing
from han_tf.common.run_files import CONFIG, ENVIRONMENT, METRICS
from han_tf.runs.folder import CHECKPOINTS
from han_tf.runs.replacing import put_back, replace_folder

PROBES = 4
"""Number of drawn images whose features are stored beside the weights."""

FLAGS = command_line.Flags()
FLAGS.string("run", "", "Folder of a finished run whose network is to be stored.", needs="output")
FLAGS.old_name("store", "run")
FLAGS.string("output", "", "Folder to write; a name without a slash is a folder of the package.", needs="run")
FLAGS.enum("checkpoint", "last", list(CHECKPOINTS), "Which network of the run.", needs="run")


def main(values: command_line.Flags) -> None:
    """Lists or stores as the flags say."""
    if values.run:
        is_path = any(separator in values.output for separator in (os.sep, os.altsep) if separator)
        folder = Path(os.path.abspath(values.output)) if is_path else weights.HERE / values.output
        store(values.run, folder, values.checkpoint)
        return
    for name in weights.shipped_names():
        print(describe(weights.HERE / name))


def describe(folder: Path) -> str:
    """Returns a paragraph on stored weights.

    Raises:
      UserError: their description is damaged.
    """
    about, found = weights.read_about(folder), weights.accuracy(folder) or {}
    shown = ", ".join(f"{name} {value:.1%}" for name, value in found.items()) or "accuracy not known"
    try:
        return (
            f"{folder.name}\n  {about['model']} on {about['dataset']}, recipe {about['recipe']}, {about['epochs']} "
            f"epochs{_before(about)}: {shown}\n  {about['bytes'] / 1e6:.1f} MB, sha256 {about['sha256']}\n"
            f"  {about['licence']}"
        )
    except (AttributeError, KeyError, TypeError) as error:
        path = folder / weights.ABOUT
        raise UserError(f"{path}: damaged ({error!r}), expected what python -m han_tf.weights writes") from error


def _before(about: dict[str, Any]) -> str:
    stages = []
    source = about.get("init_from")
    while source:
        stages.append(f"{source.get('epochs')} at {source.get('input_height')}×{source.get('input_width')}")
        source = source.get("init_from")
    return f" after {', '.join(stages)}" if stages else ""


def store(run_dir: str, folder: Path, checkpoint: str) -> None:
    """Stores the network of a finished run, and prints how much its features change.

    Raises:
      UserError: there is no finished run, or the folder holds something else or cannot be written.
    """
    import numpy as np

    from han_tf.data.reading import resize
    from han_tf.data.synthetic import SyntheticPedestrians
    from han_tf.models.network import inference_function
    from han_tf.models.transfer import named_variables
    from han_tf.runs.card import licence_of
    from han_tf.runs.folder import load_run, source_of, trained_on
    from han_tf.runtimes.keras import card_of

    with writing(folder):
        _check_replaceable(folder)
        temporary, before = (folder.with_name(f".{folder.name}.{what}") for what in ("tmp", "before"))
        if _is_whole(before):
            put_back(folder, before)  # left by a process that was killed
    run = load_run(run_dir, checkpoint)
    metrics, made_with = (read_json(run.run_dir / name, "a run that has ended") for name in (METRICS, ENVIRONMENT))
    if not isinstance(made_with, dict):
        found = f"a JSON {type(made_with).__name__}"
        raise UserError(f"{run.run_dir / ENVIRONMENT}: {found}, expected the environment of a training run")
    config = {**run.config, "data_dir": ""}
    config.update({name: Path(run.config.get(name, "")).name for name in ("init_from", "weights")})
    card = card_of(run)  # it has the accuracy if that is of this checkpoint
    people = SyntheticPedestrians()
    frames = [frame for frame in people.frames() if frame.subset == "query"][::PROBES][:PROBES]
    drawn = [np.asarray(people.draw(frame).image)[None] for frame in frames]
    images = np.concatenate([resize(image, run.model.input_size) for image in drawn])
    features = inference_function(run.model)(images).numpy()
    about = {
        "model": config["model"],
        "dataset": config["dataset"],
        "recipe": config.get("recipe", "paper"),
        "epochs": card.schedule.get("epochs_done"),
        "licence": licence_of(*trained_on(run)),
        "commit": made_with.get("commit"),
        **source_of(run),
    }
    arrays = {name: variable.numpy() for name, variable in named_variables(run.model, classifiers=False).items()}
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(folder):
            write_json(temporary / CONFIG, config)
            if card.accuracy is not None:
                write_json(temporary / METRICS, metrics)
            weights.write_arrays(temporary, arrays, {}, about)
            stored = inference_function(load_run(temporary).model)(images).numpy()
            probes = {weights.PROBE_IMAGES: images, weights.PROBE_FEATURES: stored}
            weights.write_arrays(temporary, arrays, probes, about)
            _check_replaceable(folder)  # the user may have put something there meanwhile
            shutil.rmtree(before, ignore_errors=True)
            replace_folder(folder, temporary, before)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{describe(folder)}\n  features differ from the run's by at most {np.abs(stored - features).max():.1e}")
    print(f"  written to {folder}")


def _is_whole(folder: Path) -> bool:
    """Returns whether ``folder`` holds stored weights and their description."""
    return all((folder / name).is_file() for name in (weights.ABOUT, weights.ARRAYS))


def _check_replaceable(folder: Path) -> None:
    """Raises UserError if ``folder`` is a file or link, or holds anything but stored weights."""
    check_no_file(folder)
    own = {CONFIG, METRICS, weights.ABOUT, weights.ARRAYS} if _is_whole(folder) else set()
    if others := {path.name for path in folder.glob("*")} - own:
        raise UserError(
            f"{folder} holds {min(others)}, expected weights that were stored earlier, an empty folder or none"
        )


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))

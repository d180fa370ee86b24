"""Export a trained network to SavedModel, TFLite, ONNX or OpenVINO, checked before it is kept.

Without --model it takes the newest run, of --dataset and --split if they are given. Each model is a folder with the
model's files, card.json and MODEL_CARD.md; it takes RGB images as uint8 [n, height, width, 3] and gives features as
float32 [n, feature_dim]. Its features are compared with the Keras network's on the same images and, if the data set is
there, its rank-1 and mAP, too. int8 is calibrated on training images of the run's data set, which must be there. A
model that loses more than 0.1 points of mAP (int8: 0.5) is not kept. The card holds probe images and their Keras
features, with which the model is checked whenever it is opened. Repeat a stopped command to continue it: finished
exports of the same network are not made again. A new export replaces an earlier one if that is of the same network or
lies in the run's own folder; in --output, --overwrite replaces those of other networks, too. Files that are not part of
an export are never replaced. Formats and precisions may be lists, or all:

  python -m han_tf.export --format openvino --precision bfloat16,int8
  python -m han_tf.export --format all --precision all
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from absl import flags

from han_tf import __version__
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import locked, temporary_folder, write_json, writing
from han_tf.data import Record, ReIDDataset, canonical_split, load_dataset
from han_tf.data.sampling import spread
from han_tf.deploy.exporters import FLOAT32, FORMATS, INT8, PRECISIONS, check_supported
from han_tf.runs import environment
from han_tf.runs.card import read_card, verify_files
from han_tf.runs.folder import CHECKPOINTS, data_of, find_run, read_config
from han_tf.weights import output_folder, resolve

with command_line.deferred_imports(__name__):
    import numpy as np

    from han_tf.data.pipeline import load_images
    from han_tf.data.synthetic import SyntheticPedestrians, generate
    from han_tf.deploy.writing import Comparison, Export, Exported, check_place
    from han_tf.runs.checkpoints import check_folder

ALL = "all"
TABLE = "exports.json"
COMPARED_IMAGES = 64

FLAGS = command_line.Flags()
FLAGS.group("formats")
FLAGS.list_of("format", ["openvino"], "File formats.", flags.EnumParser([*FORMATS, ALL]))
FLAGS.list_of("precision", [FLOAT32], "Precisions.", flags.EnumParser([*PRECISIONS, ALL]))
FLAGS.group("model")
FLAGS.define_run()
FLAGS.enum("checkpoint", "last", list(CHECKPOINTS), "Which network of the run.")
FLAGS.group("output")
FLAGS.string("output", "", "Where the models' folders go; exports in the run if empty.")
FLAGS.boolean(
    "overwrite",
    False,
    "Export again what an earlier command has exported, and replace exports of other networks in --output.",
)
FLAGS.group("data")
FLAGS.string("dataset", "", "Data set to compare accuracies on; the run's own if empty.")
FLAGS.string("split", "", "Its protocol variant; that of the run if empty.")
FLAGS.string("data_dir", "", "Data folder; that of the run if empty.")
FLAGS.boolean("accuracy", True, "Compare rank-1 and mAP, too.")


def main(values: command_line.Flags) -> None:
    """Exports as the flags say."""
    pairs = _pairs(values.format, values.precision)
    split = canonical_split(values.dataset, values.split)
    run_dir = resolve(values.model or find_run(values.runs_dir, values.dataset or None, split or None))
    config = read_config(run_dir)
    input_size = (config["input_height"], config["input_width"])
    dataset = _dataset(values, config)
    calibration = (dataset.train or None) if dataset and dataset.name == config["dataset"] else None
    if any(precision == INT8 for _, precision in pairs) and calibration is None:
        why = f"int8 is calibrated on the training images of {config['dataset']}, " + (
            f"--dataset is {dataset.name}; expected int8 to be exported without it"
            if dataset and dataset.name != config["dataset"]
            else "which are not there; expected --data_dir to say where they are"
        )
        if INT8 in values.precision:
            raise UserError(why)
        print(f"note: left out: {why}")
        pairs = [pair for pair in pairs if pair[1] != INT8]
    if dataset is None:
        comparison = Comparison(_drawn_images(input_size))
    else:
        dataset = dataset.separate()[0]
        records = spread(dataset.query + dataset.gallery, COMPARED_IMAGES)
        ranked = (dataset.query, dataset.gallery) if values.accuracy else ((), ())
        name = f"{dataset.name} {dataset.split}".rstrip()
        comparison = Comparison(_read_images(records, input_size), *ranked, name)
    export = Export(run_dir, values.checkpoint, comparison, calibration)
    print(f"run: {run_dir}: {config['model']}, checksum {export.checksum[:16]}")

    parent = Path(values.output or output_folder(run_dir, values.runs_dir) / "exports")
    folders = {pair: parent / "-".join(pair) for pair in pairs}
    _check_table(parent / TABLE)
    found = [] if values.overwrite else _earlier(parent, [])
    found = [row for row in found if row["checksum"] == export.checksum and "failure" not in row]
    earlier = {(row["format"], row["precision"]): row for row in found}
    made = {pair for pair in pairs if pair in earlier and _is_made(folders[pair], export.checksum, comparison)}
    overwrite = values.overwrite or not values.output
    replaced = {pair: check_place(folders[pair], export.checksum, overwrite) for pair in pairs if pair not in made}
    for pair in replaced:
        if pair[0] == "saved_model":
            check_folder(folders[pair], "a SavedModel")
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(prefix=f".{TABLE}.", dir=parent).cleanup()

    rows, failures = [_keras_row(export)], []
    report = {
        "run": str(run_dir),
        "checksum": export.checksum,
        "dataset": comparison.name,
        "environment": environment.describe(),
    }
    _write(parent, report, rows)
    for pair in pairs:
        name = " in ".join(pair)
        if pair in made:
            rows.append(earlier[pair])
            print(f"{name}: {folders[pair]}, made earlier (--overwrite makes it again)", flush=True)
            continue
        try:
            exported = export.export(*pair, parent, overwrite)
        except UserError as error:
            failures.append(f"{name}: {error}")
            print(failures[-1], flush=True)
            continue
        rows.append(_row(exported, export.checksum))
        _write(parent, report, rows)
        if exported.failure:
            failures.append(f"{name} {exported.failure}")
        elif card := replaced[pair]:
            whose = "the same" if card.checksum == export.checksum else "another"
            print(f"note: replaced an export of {whose} network, checksum {card.checksum[:16]}, of {card.created}")
        print(f"{name}: {exported.failure or exported.folder}", flush=True)
    print("", table(rows), f"written to {parent / TABLE}", sep="\n")
    if failures:
        raise UserError("not kept: " + "; ".join(failures))


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the table of size, speed and accuracy, one line for each of ``rows``; the first is the Keras network."""
    lines = [
        f"{'format':<12}{'precision':<10}{'MB':>7}{'img/s':>7}{'rank-1':>8}{'mAP':>7}{'largest diff.':>15}{'cosine':>9}"
    ]
    lines.append("-" * len(lines[0]))
    for row in rows:
        cells = [
            f"{row['format']:<12}{row['precision']:<10}",
            _cell(row.get("megabytes"), 7, ".1f"),
            _cell(row["images_per_second"], 7, ".0f"),
            _cell(row.get("rank-1"), 8, ".2f", 100),
            _cell(row.get("mAP"), 7, ".2f", 100),
            _cell(row.get("largest_difference"), 15, ".1e"),
            _cell(row.get("least_cosine"), 9, ".5f"),
        ]
        lines.append("".join(cells) + ("  not kept" if row.get("failure") else ""))
    return "\n".join(lines)


def _cell(value: Optional[float], width: int, form: str, factor: float = 1) -> str:
    return f"{'-' if value is None else format(factor * value, form):>{width}}"


def _pairs(formats: list[str], precisions: list[str]) -> list[tuple[str, str]]:
    """Returns the (format, precision) pairs to export; ``all`` means those supported here, with a note about others."""
    pairs = [
        (format_name, precision)
        for format_name in (FORMATS if ALL in formats else dict.fromkeys(formats))
        for precision in (PRECISIONS if ALL in precisions else dict.fromkeys(precisions))
    ]
    everything = ALL in formats or ALL in precisions
    supported, refusals = [], []
    for name, precision in pairs:
        if everything and precision not in FORMATS[name].precisions:
            continue
        try:
            check_supported(name, precision)
            supported.append((name, precision))
        except UserError as error:
            refusals.append(error)
    if refusals and not (everything and supported):
        raise refusals[0]
    for error in refusals:
        print(f"note: left out: {error}")
    return supported


def _dataset(values: command_line.Flags, config: dict[str, Any]) -> Optional[ReIDDataset]:
    """Returns the data set to compare on: the named one or the run's own; None if the run's own cannot be read."""
    own = data_of(config, values.dataset)
    asked = values.dataset or values.data_dir or values.split
    try:
        dataset = load_dataset(own.name, values.data_dir or own.data_dir or None, values.split or own.split)
    except UserError as error:
        if asked:
            raise
        print(f"note: no accuracies are compared, since the run's data set cannot be read: {error}")
        return None
    for sentence in dataset.notes + dataset.differences:
        print(f"note: {dataset.name}: {sentence}")
    return dataset


def _drawn_images(input_size: tuple[int, int]) -> np.ndarray:
    """Returns drawn pedestrians, for a comparison without a data set."""
    people = SyntheticPedestrians(
        train_identities=2, test_identities=6, images_per_camera=2, multi_query_per_camera=0, distractors=4, junk=0
    )
    with temporary_folder() as folder:
        generate(folder / "data", people, layout="market1501")
        dataset = load_dataset("market1501", folder / "data")
        return _read_images(spread(dataset.query + dataset.gallery, COMPARED_IMAGES), input_size)


def _read_images(records: Sequence[Record], input_size: tuple[int, int]) -> np.ndarray:
    return load_images(records, input_size, skip_bad_images=True).images


def _check_table(path: Path) -> None:
    """Raises UserError if somebody else's file has the table's name."""
    with contextlib.suppress(OSError, ValueError):  # none yet, or damaged
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or "exports" not in found:
            raise UserError(f"{path}: not a table of exports, expected another --output")


def _earlier(parent: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of earlier exports, of any network, that still exist and are not made anew by ``rows``."""
    try:
        report = json.loads((parent / TABLE).read_text(encoding="utf-8"))
        made = {(row["format"], row["precision"]) for row in rows}
        found = [{"checksum": report["checksum"], **row} for row in report["exports"]]  # older tables have only one
        return [
            row
            for row in found
            if (row["format"], row["precision"]) not in made
            and _checksum(parent / f"{row['format']}-{row['precision']}") == row["checksum"]
        ]
    except (OSError, ValueError, LookupError, TypeError):
        return []  # no table yet, or one of another version


def _checksum(folder: Path) -> Optional[str]:
    """Returns the checksum of an exported network; None if there is none in ``folder``."""
    try:
        return read_card(folder).checksum
    except UserError:
        return None


def _write(parent: Path, report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    with locked(parent / f".{TABLE}.lock"):  # another command may write its rows at the same time
        write_json(parent / TABLE, {**report, "exports": rows + _earlier(parent, rows)})


def _is_made(folder: Path, checksum: str, comparison: Comparison) -> bool:
    """Returns whether ``folder`` holds a complete export of this network, with probe images and the same check."""
    try:
        card = read_card(folder)
        verify_files(folder, card)
    except UserError:
        return False
    compared = not comparison.query or card.check.get("dataset") == comparison.name
    return compared and bool(card.probes) and (card.checksum, card.han_tf_version) == (checksum, __version__)


def _keras_row(export: Export) -> dict[str, Any]:
    return {
        "format": export.card.format,
        "precision": export.card.precision,
        "checksum": export.checksum,
        "images_per_second": export.original.images_per_second,
        **(export.accuracy or {}),
    }


def _row(exported: Exported, checksum: str) -> dict[str, Any]:
    """Returns an export's row of the table and of its JSON."""
    row = {
        "format": exported.format,
        "precision": exported.precision,
        "checksum": checksum,
        "megabytes": exported.megabytes,
        "images_per_second": exported.images_per_second,
        **{name: value for name, value in exported.check.items() if _is_plain(value)},
        **exported.check.get("accuracy", {}),
    }
    return {**row, "failure": exported.failure} if exported.failure else row


def _is_plain(value: Any) -> bool:
    """Returns whether a value is a string or a finite number."""
    return isinstance(value, str) or (not isinstance(value, dict) and np.isfinite(value))


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))

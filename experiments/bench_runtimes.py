"""Measure the formats and precisions that a run was exported in, beside the run itself: size, speed, accuracy.

  python -m han_tf.export --model RUN --format all --precision all
  python -m experiments.bench_runtimes --model RUN

Each figure is the median of several measurements: images per second of decoded images and of JPEG files of
Market-1501's size on disk, and the time of a single image. They are printed with the speed of a 4096³ float32 matrix
product in the same run. The fastest model should reach 10 times torchreid's HACNN and 2.5 times its OSNet x0.25, in
PyTorch's fastest mode on a processor. --hacnn and --osnet give their rates on this machine; otherwise, rates
of another machine are scaled by the product. Accuracies are those of the export's check.
"""

import sys
from pathlib import Path
from typing import Any

from experiments import bench_sections
from experiments.measuring import ANCHORS, STATED_PRODUCT, make_picture, new_flags, product_flops, write_figures
from experiments.results import Result
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import temporary_folder
from han_tf.data import canonical_split
from han_tf.runs.card import CARD, read_card
from han_tf.runs.folder import find_run
from han_tf.weights import output_folder, resolve

with command_line.deferred_imports(__name__):
    import numpy as np

    from han_tf.bench import seconds
    from han_tf.features.extractor import FeatureExtractor

FILES = 512

OF_DECODED = 0.6
"""The rate from files must reach this share of the rate of decoded images."""

FLAGS = new_flags()
FLAGS.group("model")
FLAGS.define_run()
FLAGS.string("dataset", "", "Data set of the run, if several are there.")
FLAGS.string("split", "", "Its protocol variant.")
FLAGS.string("exports", "", "Folder of the exported models; those of the run if empty.")
FLAGS.group("measurements")
FLAGS.integer("repeats", 7, "Measurements per figure; the median counts.", 3)
FLAGS.real("hacnn", 0.0, "Images per second of HACNN on this machine, if measured.", 0)
FLAGS.real("osnet", 0.0, "Images per second of OSNet x0.25 on this machine.", 0)


def exports_of(run_dir: Path, exports: Path) -> list[Path]:
    """Returns the folders in ``exports`` with models of the run's network; prints a note about those of other networks.

    Raises:
      UserError: there are none, or a card is damaged.
    """
    checksum = FeatureExtractor(run_dir).checksum
    folders = []
    for path in sorted(exports.glob(f"*/{CARD}")):
        if path.parent.name.startswith("."):
            continue
        if read_card(path.parent).checksum == checksum:
            folders.append(path.parent)
        else:
            print(f"note: left out: {path.parent} is of another network than {run_dir}")
    if not folders:
        raise UserError(f"{exports}: no models of this run, expected some: python -m han_tf.export --model {run_dir}")
    return folders


def figures(folder: Path, paths: list[Path], repeats: int) -> dict[str, Any]:
    """Returns the figures of one model."""
    extractor = FeatureExtractor(folder)
    images = np.random.default_rng(0).integers(0, 256, (FILES, *extractor.input_size, 3), np.uint8)
    files = [folder / name for name in extractor.card.files]
    row = {
        "format": extractor.format,
        "precision": extractor.precision,
        "megabytes": sum(path.stat().st_size for path in files) / 1e6 if files else None,
        "decoded": len(images) / seconds(lambda: extractor.embed(images), repeats),
        "from_files": len(paths) / seconds(lambda: extractor(paths), repeats),
        "single_ms": 1000 * seconds(lambda: extractor.embed(images[:1]), 5 * repeats),
    }
    check = extractor.card.check
    if "accuracy" in check:
        row["accuracy"] = {"dataset": check["dataset"], **check["accuracy"]}
        row["mAP_difference"] = check["accuracy"]["mAP"] - check["keras_accuracy"]["mAP"]
    return row


def bars(rows: list[dict[str, Any]], product: float, measured: dict[str, float]) -> list[dict[str, Any]]:
    """Returns a comparison of the fastest model with each aim."""
    best = max(rows, key=lambda row: row["decoded"])
    found = []
    for flag, (name, rate, factor) in ANCHORS.items():
        anchor = measured[flag] or rate * product / STATED_PRODUCT
        bar = {"of": name, "anchor": anchor, "measured_here": bool(measured[flag]), "factor": factor}
        found.append({**bar, "reached": best["decoded"] / anchor})
    share = best["from_files"] / best["decoded"]
    return [*found, {"of": "decoded, from files", "anchor": best["decoded"], "factor": OF_DECODED, "reached": share}]


def main(values: command_line.Flags) -> None:
    """Measures as the flags say."""
    split = canonical_split(values.dataset, values.split)
    run_dir = Path(values.model or find_run(values.runs_dir, values.dataset or None, split or None))
    folders = exports_of(run_dir, Path(values.exports or output_folder(resolve(run_dir), values.runs_dir) / "exports"))
    before = product_flops()
    rows = []
    with temporary_folder() as images:
        paths = [images / f"{number:04}.jpg" for number in range(FILES)]
        for number, path in enumerate(paths):
            path.write_bytes(make_picture(number))
        for folder in (run_dir, *folders):
            rows.append(figures(folder, paths, values.repeats))
            print(f"{rows[-1]['format']} in {rows[-1]['precision']}: {rows[-1]['decoded']:.0f} img/s", flush=True)
    product = (before + product_flops()) / 2
    found = bars(rows, product, {flag: getattr(values, flag) for flag in ANCHORS})
    report = {"product_flops": product, "runtimes": rows, "bars": found}
    print("", *bench_sections.runtimes(Result("", report), []), sep="\n\n")
    write_figures(values.output, "runtimes", **report)


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))

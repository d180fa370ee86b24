"""Draw a trained network's attention and, with --ranked, the images that it ranks first.

Writes attention.png, the sheet of Fig. 7, for the images on the command line or for some queries of the run's data set.
With --ranked it also writes ranked.png: the same queries with their nearest gallery images, right ones framed green,
wrong ones red.

  python -m han_tf.visualize [flags] [IMAGE ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.data import JUNK_PID, Record, canonical_split, load_dataset
from han_tf.runs.folder import CHECKPOINTS, LoadedRun, data_of, find_run, load_run
from han_tf.weights import output_folder

with command_line.deferred_imports(__name__):
    import numpy as np
    from PIL import Image

    from han_tf.data.pipeline import load_images
    from han_tf.data.sampling import spread
    from han_tf.evaluation.scoring import evaluate_features
    from han_tf.features.archives import FeatureSet, load_features
    from han_tf.features.keras import feature_set
    from han_tf.viz.attention import attend, attention_sheet
    from han_tf.viz.drawing import save_png
    from han_tf.viz.ranked import RankedList, ranked_sheet

CELL_SIZE = (192, 96)
"""Height and width of an image in a ranked list, in pixels: 2:1, the shape of most data sets' boxes."""

LEAST_COSINE = 0.9
"""Least mean cosine of saved features to the network's; also features of an int8 export reach it, those of networks
that were trained apart do not."""

FLAGS = command_line.Flags()
FLAGS.group("model")
FLAGS.define_run()
FLAGS.enum("checkpoint", "last", list(CHECKPOINTS), "Which network of the run.")
FLAGS.group("data")
FLAGS.string(
    "dataset",
    "",
    "Data set whose images are shown; without --model, the newest run on it is taken. If empty, any run, and its own "
    "data set (the first of several).",
)
FLAGS.string("split", "", "Its protocol variant; without --model, also that of the run.")
FLAGS.string("data_dir", "", "Data folder; that of the run if empty.")
FLAGS.boolean("skip_bad_images", False, "Leave out unreadable images instead of stopping.")
FLAGS.group("output")
FLAGS.string("output", "", "Folder for the pictures; that of the run if empty.")
FLAGS.old_name("out", "output")
FLAGS.group("pictures")
FLAGS.integer("queries", 8, "How many queries, evenly spread over all.", 1)
FLAGS.boolean("ranked", False, "Also rank the gallery for these queries.")
FLAGS.string(
    "features", "", "Folder of features that han_tf.evaluate --save_features wrote; made now if empty.", needs="ranked"
)
FLAGS.integer("k", 10, "Gallery images per ranked list.", 1, needs="ranked")
FLAGS.old_name("topk", "k")
FLAGS.group("computation")
FLAGS.integer("batch_size", 64, "Images per forward pass over the gallery.", 1, needs="ranked")


def ranked_lists(queries: FeatureSet, gallery: FeatureSet, topk: int = 10) -> list[RankedList]:
    """Returns each query's ranked list by the benchmark's protocol (see :func:`han_tf.metrics.evaluate`).

    Args:
      queries, gallery: features with labels and paths; the images are read from there.
      topk: length of the lists.

    Raises:
      UserError: the features do not fit, no query has a match, or an image cannot be decoded.
    """
    result = evaluate_features(queries, gallery, topk=topk)[0]["result"]
    lists = []
    for number, (query, ap) in enumerate(zip(_records(queries), result.ap)):
        indices = result.topk_indices[number]
        indices = indices[indices >= 0]
        pictures = load_images([query, *_records(gallery.where(indices))], CELL_SIZE).images
        lists.append(
            RankedList(
                query=pictures[0],
                gallery=pictures[1:],
                distances=result.topk_distances[number, : len(indices)],
                correct=gallery.pids[indices] == query.pid,
                camids=gallery.camids[indices],
                caption=(
                    f"pid {query.pid}",
                    f"camera {query.camid}",
                    "no match" if np.isnan(ap) else f"AP {ap:.1%}",
                ),
            )
        )
    return lists


def main(values: command_line.Flags) -> None:
    """Draws as the flags say."""
    if values.positional and values.ranked:
        raise command_line.UsageError(
            f"--ranked with image {values.positional[0]}: only for the data set's own queries is it known who is "
            "right, expected no images, or --noranked (make visualize asks for --ranked)"
        )
    if values.positional:
        _check_image_flags(values)
    split = canonical_split(values.dataset, values.split)
    run = load_run(values.model or find_run(values.runs_dir, values.dataset or None, split or None), values.checkpoint)
    print(f"network: {run.checkpoint}")
    out = Path(values.output) if values.output else output_folder(run.run_dir, values.runs_dir)

    if values.positional:
        records = tuple(Record(path, JUNK_PID, 0) for path in values.positional)
    else:
        own = data_of(run.config, values.dataset)
        dataset = load_dataset(own.name, values.data_dir or own.data_dir or None, split or own.split).separate()[0]
        for sentence in dataset.notes + dataset.differences:
            print(f"note: {dataset.name}: {sentence}")
        records = spread(dataset.query, values.queries)
    shown = load_images(records, run.model.input_size, skip_bad_images=values.skip_bad_images)
    levels = attend(run.model, shown.images)
    if levels:
        captions = [
            Path(record.path).name if values.positional else f"pid {record.pid}, camera {record.camid}"
            for record in shown.records
        ]
        _save(out / "attention.png", attention_sheet(shown.images, levels, captions))
    elif values.ranked:
        print(f"note: {run.config['model']} has no attention to show")
    else:
        raise UserError(f"{run.run_dir}: {run.config['model']} has no attention to show, expected a HAN, or --ranked")

    if values.ranked:
        ranked = [record for record in dataset.gallery if record.pid != JUNK_PID]
        lists = ranked_lists(
            _features(values, run, "query", shown.records), _features(values, run, "gallery", ranked), values.k
        )
        title = f"{run.run_dir.name}: {len(lists)} of {len(dataset.query):,} queries"
        _save(out / "ranked.png", ranked_sheet(lists, CELL_SIZE, title))


def _check_image_flags(values: command_line.Flags) -> None:
    """Raises UsageError if a flag is given that means nothing with images on the command line."""
    of_data = ("dataset", "split") if values.model else ()  # without --model they choose the run
    for flag in ("queries", "data_dir", *of_data):
        if values[flag].present:
            beside = f"--model {values.model} and " if flag in of_data else ""
            raise command_line.UsageError(
                f"--{flag} {values[flag].value} means nothing with {beside}image {values.positional[0]}"
            )


def _features(values: command_line.Flags, run: LoadedRun, subset: str, records: Sequence[Record]) -> FeatureSet:
    """Returns the features of ``records``: saved ones if ``--features`` is given, otherwise the network's."""
    if not values.features:
        return feature_set(
            run.model,
            records,
            batch_size=values.batch_size,
            skip_bad_images=values.skip_bad_images,
            progress=f"{subset} features",
        )
    path = Path(values.features) / f"{subset}.npz"
    saved = load_features(path)
    if saved.features.shape[1] != run.model.feature_dim:
        raise UserError(
            f"{path}: features have dimension {saved.features.shape[1]}, expected {run.model.feature_dim} as those of "
            f"{run.run_dir}"
        )
    rows = {image: row for row, image in enumerate(saved.paths)}
    missing = [record.path for record in records if record.path not in rows]
    if missing:
        lacking = f"{path}: no features of {missing[0]} ({len(missing)} such images)"
        if not values.skip_bad_images or len(missing) == len(records):
            raise UserError(f"{lacking}, expected those of all images")
        print(f"note: {lacking}, left out")
    kept = [record for record in records if record.path in rows]
    few = spread(kept, values.queries)
    made = feature_set(run.model, few, skip_bad_images=values.skip_bad_images, progress=None)
    _check_same_network(path, run, saved.features[[rows[image] for image in made.paths]], made.features)
    return FeatureSet.of(saved.features[[rows[record.path] for record in kept]], kept)


def _check_same_network(path: Path, run: LoadedRun, saved: np.ndarray, made: np.ndarray) -> None:
    """Raises UserError if saved features of a few images are far from those that the network makes of them."""
    norms = np.linalg.norm(made, axis=1) * np.linalg.norm(saved, axis=1)
    cosine = float(np.mean((made * saved).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)))
    if not cosine >= LEAST_COSINE:
        raise UserError(
            f"{path}: features of another network or of other images than those of {run.run_dir}: their cosine to its "
            f"features is {cosine:.2f}, expected at least {LEAST_COSINE}"
        )


def _records(features: FeatureSet) -> list[Record]:
    return [
        Record(str(path), int(pid), int(camid))
        for path, pid, camid in zip(features.paths, features.pids, features.camids)
    ]


def _save(path: Path, sheet: Image.Image) -> None:
    save_png(path, sheet)
    print(f"written to {path}")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="IMAGE"))

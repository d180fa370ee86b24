"""Evaluate a trained HAN, or features of any network, under a benchmark's protocol.

--model is a run or an export; without it, the newest run of --dataset and --split is evaluated. Reports CMC at ranks 1,
5, 10 and 20, mAP under both definitions and mINP, for the joint, the global and the local feature. Re-ranking, query
expansion and database augmentation add rows: each of them alone, and all together. --verification, --camera_pairs and
--plots add tables and curves.
Results are kept in the run's folder: those of its last network on its own data as evaluation.json, those on other data
sets under other names, those of --images and --features only where --output says. Several data sets
(--dataset market1501,dukemtmc, or those of the training) are evaluated separately.

Features of other networks are read from NumPy archives with the arrays features, pids and camids; given distances need
archives with pids and camids. A folder that python -m han_tf.extract wrote can replace an archive:

  python -m han_tf.evaluate --features query.npz,gallery.npz[,multi_query.npz]
  python -m han_tf.evaluate --distances matrix.npy --features query.npz,gallery.npz

If queries and gallery are the same images, every image searches all others:

  python -m han_tf.evaluate --features people.npz --query_is_gallery
  python -m han_tf.evaluate --model MODEL --images people.csv
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Union

import numpy as np

from han_tf.common import cli as command_line
from han_tf.common.errors import UserError, one_line
from han_tf.common.files import exists, remove, write_json
from han_tf.common.run_files import EVALUATION
from han_tf.data import DATASETS, DISTRACTOR_PID, JUNK_PID, Record, ReIDDataset, canonical_split, load_dataset
from han_tf.data.csv_dataset import FILE_NAME
from han_tf.data.image_lists import NAMES, UNKNOWN, list_images
from han_tf.data.joined import named_datasets
from han_tf.runs import environment
from han_tf.runs.card import CARD
from han_tf.runs.folder import CHECKPOINTS, LoadedRun, data_of, find_run, load_run
from han_tf.weights import is_stored, output_folder

with command_line.deferred_imports(__name__):
    from han_tf.evaluation.scoring import Protocol, evaluate_features, score, to_json
    from han_tf.evaluation.tables import camera_table, row_name, single_shot_table, table, verification_table
    from han_tf.features.archives import FeatureSet, load_features, save_features
    from han_tf.metrics import MatrixDistances, check_normalised
    from han_tf.metrics.checks import BadRow
    from han_tf.metrics.verification import REPORTED_FPR

SUBSETS = ("query", "gallery", "multi_query")
PER_QUERY_FORMATS = (".csv", ".npz")

FLAGS = command_line.Flags()
FLAGS.group("data")
FLAGS.string(
    "dataset",
    "",
    f"Data set: {', '.join(DATASETS)}; or several, separated by commas; the run's own if empty.",
    excludes="images",
)
FLAGS.string("split", "", "Protocol variant, e.g. detected (of CUHK03, if no data set is named).", excludes="images")
FLAGS.string("data_dir", "", "Data folder; that of the run if empty.", excludes="images")
FLAGS.boolean("skip_bad_images", False, "Leave out unreadable images.")
FLAGS.repeated(
    "images",
    [],
    "Folder, pattern or CSV file of images with pids (from 1; 0 are distractors) and camids, in place of a data set: "
    "every image searches all others. Repeat it for several.",
)
FLAGS.string(
    "names",
    "",
    f"How pid and camid are parsed from the names of these images: {', '.join(NAMES)}; or as in han_tf.extract.",
    needs="images",
)
FLAGS.group("model")
FLAGS.define_run("Folder of a run or an exported model")
FLAGS.old_name("weights", "model")
FLAGS.enum("checkpoint", "last", list(CHECKPOINTS), "Which network of the run.")
FLAGS.group("saved features")
FLAGS.strings(
    "features",
    [],
    "Saved features of queries and gallery: query.npz,gallery.npz; or the folder that holds both.",
)
FLAGS.strings(
    "branches",
    [],
    "Names of the equally wide parts of saved features, which get rows of their own; for those of a HAN: global,local. "
    "Expansion and augmentation need parts of unit norm.",
    needs="features",
)
FLAGS.string(
    "distances", "", "Distances, queries × gallery images, a .npy file; --features has the labels.", needs="features"
)
FLAGS.group("protocol")
FLAGS.boolean("within_camera", False, "Images of a query's person from its own camera are matches, too.")
FLAGS.boolean(
    "query_is_gallery",
    False,
    "--features is one file or Parquet folder; every image searches all others. People are numbered from 1: images of "
    "pid 0 are distractors.",
    needs="features",
)
FLAGS.boolean(
    "single_gallery_shot",
    False,
    "Also with one gallery image per person, drawn anew for each query: CUHK03's old protocol.",
)
FLAGS.integer(
    "draws",
    100,
    "Galleries drawn per query, over which the results are averaged.",
    1,
    1_000_000,
    needs="single_gallery_shot",
)
FLAGS.integer("seed", 0, "Seed of the draws.", 0, needs="single_gallery_shot")
FLAGS.group("methods that change the ranking")
FLAGS.boolean("rerank", False, "Also with k-reciprocal re-ranking.")
FLAGS.integer("k1", 20, "Re-ranking: size of the neighbourhoods.", 1, needs="rerank")
FLAGS.integer("k2", 6, "Re-ranking: nearest images that are averaged.", 1, needs="rerank")
FLAGS.real("lambda_value", 0.3, "Re-ranking: weight of the original distance.", 0, 1, needs="rerank")
FLAGS.enum(
    "query_expansion",
    "none",
    ["none", "average", "alpha"],
    "Also with queries blended with their nearest gallery images, averaged or weighted by similarity^alpha.",
)
FLAGS.integer("qe_k", 5, "Query expansion: gallery images per query.", 1, needs="query_expansion")
FLAGS.real("qe_alpha", 3.0, "Query expansion: alpha.", 0)
FLAGS.integer(
    "database_augmentation", 0, "Also with gallery images blended with so many of their nearest; none if 0.", 0
)
FLAGS.real("dba_alpha", 0.0, "Database augmentation: alpha; 0 is the average.", 0, needs="database_augmentation")
FLAGS.group("further tables and plots")
FLAGS.boolean("verification", False, "Also the error rates of accepting pairs by a threshold.")
FLAGS.real(
    "false_accept_rate",
    None,
    "Also the distance below which this share of the impostor pairs is accepted; implies --verification.",
    0,
    1,
)
FLAGS.boolean("camera_pairs", False, "Also the table of query and gallery cameras.")
FLAGS.string("plots", "", "Folder for cmc.png, precision_recall.png and roc.png; implies --verification.")
FLAGS.group("computation")
FLAGS.integer("memory_mb", 1024, "Memory beside the features, MiB.", 16)
FLAGS.old_name("memory", "memory_mb")
FLAGS.group("output")
FLAGS.string("save_features", "", "Folder to save the features in.")
FLAGS.string(
    "output",
    "",
    "JSON file of the results; if empty, none for --images and --features, otherwise in the run: evaluation.json, or "
    "for other images than the run's own, its best network or --within_camera "
    "evaluation-DATASET[-SPLIT][-best][-within_camera][-IMAGES].json.",
)
FLAGS.string(
    "per_query", "", "File of every query's results and nearest images, .csv or .npz; those of the table's first row."
)
FLAGS.integer("k", 10, "Nearest images per query in --per_query.", 0, needs="per_query")
FLAGS.old_name("topk", "k")

for _flag in ("model", "runs_dir", "checkpoint", "dataset", "split", "data_dir", "skip_bad_images", "images"):
    FLAGS.check_pair(_flag, "features", False, f"features from files belong to no run, expected them without --{_flag}")
for _flag in ("rerank", "query_expansion", "database_augmentation"):
    for _other in ("images", "query_is_gallery"):
        FLAGS.check_pair(_flag, _other, False, f"--{_flag} with --{_other}: each image would be its own neighbour")
for _flag in ("rerank", "query_expansion", "database_augmentation", "branches", "save_features"):
    FLAGS.check_pair(_flag, "distances", False, f"--{_flag} needs features, expected --features without --distances")
FLAGS.check_pair(
    "qe_alpha", "query_expansion", True, "--qe_alpha means nothing without --query_expansion=alpha", "alpha"
)
FLAGS.check_value(
    "per_query",
    lambda path: not path or Path(path).suffix in PER_QUERY_FORMATS,
    f"expected a name that ends in {' or '.join(PER_QUERY_FORMATS)}",
)
FLAGS.check_value("false_accept_rate", lambda rate: rate is None or rate > 0, "expected a rate above 0")
FLAGS.check_value(
    "branches",
    lambda names: all(names) and "joint" not in names and len({*names}) == len(names) != 1,
    "expected two or more different names, none of them joint",
)


def main(values: command_line.Flags) -> None:
    """Evaluates as the flags say."""
    if values.plots:
        _import_plots()  # a missing package shows now, not at the end
    for path in filter(None, (values.output, values.per_query)):
        _check_file(path)
    for path in filter(None, (values.plots, values.save_features)):
        _check_folder(path, Path(path))
    if values.features:
        paths = _feature_paths(values)
        _check_outputs(values, [*paths, *filter(None, [values.distances])])
        subsets = {name: load_features(path, bool(values.distances)) for name, path in zip(SUBSETS, paths)}
        if values.query_is_gallery:
            subsets["gallery"] = subsets["query"]
        expected = subsets["query"].features.shape[1]
        for path, subset in zip(paths, subsets.values()):
            if subset.features.shape[1] != expected:
                found = subset.features.shape[1]
                raise UserError(f"{path}: features have dimension {found}, expected {expected} as in {paths[0]}")
        _check_counts(values, subsets["gallery"].pids)
        origin = {"features": [str(path) for path in paths]}
        _evaluate(values, subsets, origin, tuple(values.branches), values.output)
        return
    if values.positional:
        raise command_line.UsageError(f"unexpected argument {values.positional[0]!r}: files go with --features")
    if values.images:
        _evaluate_images(values)
        return
    run, dataset = _run_and_data(values)
    datasets = dataset.separate()
    for flag in ("output", "per_query", "plots", "save_features"):
        if values[flag].value and len(datasets) > 1:
            raise UserError(
                f"--{flag} {values[flag].value} is for the results of one data set, but there are {len(datasets)}: "
                f"expected --dataset to name one of {', '.join(part.name for part in datasets)}"
            )
    for part in datasets:
        if len(datasets) > 1:
            print(f"\n{part.name} {part.split}".rstrip() + ":")
        origin = _origin(run, part)
        folder = values.data_dir or data_of(run.config, part.name).data_dir or part.root
        _check_outputs(values, [folder, os.path.join(folder, FILE_NAME)])
        output = values.output or str(_result_path(values, run, origin))
        _check_file(output)
        _check_counts(values, [record.pid for record in part.gallery])
        _evaluate(values, _features_of_run(values, run, part), origin, run.model.branch_names, output)


def _evaluate_images(values: command_line.Flags) -> None:
    """Evaluates a run or an export on images that are no data set; each image searches all others."""
    from han_tf.features.keras import feature_set  # imports TensorFlow, which saved features do not need

    _check_outputs(values, values.images)
    listed = list_images(values.images, values.names)
    for note in listed.notes:
        print(f"note: {note}")
    if values.within_camera:
        listed.camids[listed.camids == UNKNOWN] = 0
    for name, labels in (("pid", listed.pids), ("camid", listed.camids)):
        unknown = np.flatnonzero(labels == UNKNOWN)
        if len(unknown):
            raise UserError(
                f"{listed.paths[unknown[0]]}: no {name} is known ({len(unknown)} such images), expected one in a "
                "CSV file, or --names"
            )
    run = _load(values.model or find_run(values.runs_dir), values.checkpoint)
    records = [Record(*found) for found in zip(listed.paths, listed.pids.tolist(), listed.camids.tolist())]
    features = feature_set(run.model, records, skip_bad_images=values.skip_bad_images, progress="features")
    origin = {"run": str(run.run_dir), "checkpoint": run.checkpoint, "images": values.images}
    _evaluate(values, dict.fromkeys(SUBSETS[:2], features), origin, run.model.branch_names, values.output)


def _evaluate(
    values: command_line.Flags,
    subsets: Mapping[str, FeatureSet],
    origin: dict[str, Any],
    branches: Sequence[str],
    output: str,
) -> None:
    """Evaluates the features of one data set, prints the tables and writes the files that the flags ask for."""
    if values.save_features:
        for name, features in subsets.items():
            save_features(Path(values.save_features) / f"{name}.npz", features)
        for name in set(SUBSETS) - set(subsets):  # of an earlier evaluation; --features would take them together
            remove(Path(values.save_features) / f"{name}.npz")
    with _naming_images(subsets):
        methods = _methods(values, subsets, branches)

    distractors = int((subsets["query"].pids == DISTRACTOR_PID).sum())
    if distractors and (values.query_is_gallery or values.images):
        print(f"note: {distractors:,} images of pid {DISTRACTOR_PID} are distractors, which search for nobody")
    rate = values.false_accept_rate
    wanted_fpr = sorted({*REPORTED_FPR, *([] if rate is None else [rate])}, reverse=True)
    options = {
        "protocol": Protocol(
            values.within_camera,
            values.query_is_gallery or bool(values.images),
            values.draws if values.single_gallery_shot else 0,
            values.seed,
        ),
        "wanted_fpr": wanted_fpr if values.verification or values.plots or rate is not None else (),
        "topk": values.k,
        "memory_mb": values.memory_mb,
        "progress": True,
    }
    if values.distances:
        query, gallery = subsets.values()
        distances = _map_distances(values.distances, (len(query.pids), len(gallery.pids)))
        origin["distances"] = values.distances
        rows = [score(MatrixDistances(distances), query, gallery, "distances", **options)]
    else:
        with _naming_images(subsets):
            rows = evaluate_features(*subsets.values(), branches=branches, **methods, **options)

    if options["protocol"] != Protocol():
        origin["protocol"] = options["protocol"]._asdict()
    report = {**origin, "environment": environment.describe(), "methods": methods, **to_json(rows)}
    print(table(report))
    if options["wanted_fpr"]:
        print("", verification_table(report, rate), sep="\n")
    if values.single_gallery_shot:
        print("", single_shot_table(report), sep="\n")
    if values.camera_pairs:
        print("", camera_table(report["results"][0]), sep="\n")
    written = []
    if output:
        write_json(output, report)
        written.append(output)
    if values.per_query:
        names = [subsets[name].paths if all(subsets[name].paths) else None for name in ("query", "gallery")]
        result = rows[0]["result"]
        save = result.save_npz if Path(values.per_query).suffix == ".npz" else result.save_csv
        save(values.per_query, *names)
        written.append(values.per_query)
    if values.plots:
        written += _save_plots(rows, Path(values.plots))
    for path in written:
        print(f"written to {path}")


@contextmanager
def _naming_images(subsets: Mapping[str, FeatureSet]) -> Iterator[None]:
    """Adds the image, where its path is known, to an error about one of the features."""
    try:
        yield
    except BadRow as error:
        own = [subset for subset in subsets.values() if np.may_share_memory(subset.features, error.features)]
        if not own or not own[0].paths[error.row]:
            raise
        raise UserError(f"{error}; the image is {own[0].paths[error.row]}") from error


def _result_path(values: command_line.Flags, run: LoadedRun, origin: Mapping[str, Any]) -> Path:
    """Returns where a run's results go: ``evaluation.json`` only for its last network on its own test images.

    Results on other images are not replaced: the name then ends in the first digits of the images' fingerprint.
    """
    tested_on = {name: origin[name] for name in ("dataset", "split")}
    images, own = origin["fingerprint"], (run.config.get("fingerprints") or {}).get("test")
    # Images of a package's network may be stored otherwise where it is used.
    own = tested_on == origin["trained_on"] and (own in (None, images) or is_stored(run.run_dir))
    words = [values.checkpoint if values.checkpoint != "last" else "", "within_camera" * values.within_camera]
    if not own or any(words):
        words = [*tested_on.values(), *words]
    path = output_folder(run.run_dir, values.runs_dir) / "-".join(filter(None, [Path(EVALUATION).stem, *words]))
    path = path.with_name(f"{path.name}.json")
    with suppress(OSError, ValueError, AttributeError):
        if json.loads(path.read_text(encoding="utf-8")).get("fingerprint", images) != images:
            return path.with_stem(f"{path.stem}-{images[:8]}")
    return path


def _check_outputs(values: command_line.Flags, inputs: Iterable[Union[str, Path]]) -> None:
    """Raises UsageError if an output would take the place of one of the files ``inputs`` or of another output."""
    outputs = [(name, values[name].value) for name in ("output", "per_query") if values[name].value]
    if values.save_features:
        outputs += [("save_features", os.path.join(values.save_features, f"{name}.npz")) for name in SUBSETS]
    taken = {os.path.realpath(given): f"{given}, which is read" for given in inputs}
    for flag, path in outputs:
        place = os.path.realpath(path)
        if place in taken:
            raise command_line.UsageError(f"--{flag} would replace {taken[place]}, expected another name")
        taken[place] = f"{path}, which --{flag} writes"


def _check_file(path: str) -> None:
    """Raises UserError if the file ``path`` cannot be written."""
    if exists(path) and os.path.isdir(path):
        raise UserError(f"cannot write {path}: it is a folder, expected the name of a file")
    _check_folder(path, Path(path).parent)


def _check_folder(path: str, folder: Path) -> None:
    """Raises UserError if ``folder``, in which ``path`` is to be written, cannot be made or written to."""
    folder = folder.absolute()
    nearest = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {nearest} is expected to be a folder that can be written")


def _check_counts(values: command_line.Flags, gallery_pids: Any) -> None:
    """Raises UserError if a flag asks for more gallery images than there are, junk aside."""
    others = int((np.asarray(gallery_pids) != JUNK_PID).sum())
    counts = {"database_augmentation": others - 1} if values.database_augmentation else {}
    if values.query_expansion != "none":
        counts["qe_k"] = others
    if values.rerank:
        counts["k1"] = counts["k2"] = others
    for flag, most in counts.items():
        if values[flag].value > most:
            raise UserError(
                f"--{flag} is {values[flag].value}, expected 1 to {most}: junk aside, the gallery has {others} images"
            )


def _methods(
    values: command_line.Flags, subsets: Mapping[str, FeatureSet], branches: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns the settings of the methods that the flags ask for, after checking that the features suit them."""
    methods = {}
    if values.database_augmentation:
        methods["augmented"] = {"neighbours": values.database_augmentation, "alpha": values.dba_alpha}
    if values.query_expansion != "none":
        alpha = values.qe_alpha if values.query_expansion == "alpha" else 0.0
        methods["expanded"] = {"neighbours": values.qe_k, "alpha": alpha}
    if {"augmented", "expanded"} & set(methods):
        hint = " (as one part, without --branches)" if values.features and not branches else ""
        for name in ("query", "gallery"):
            check_normalised(subsets[name].features, max(1, len(branches)), f"{name} features{hint}")
    if values.rerank:
        methods["reranked"] = {"k1": values.k1, "k2": values.k2, "lambda_value": values.lambda_value}
    return methods


def _run_and_data(values: command_line.Flags) -> tuple[LoadedRun, ReIDDataset]:
    """Returns the run and the named data set, by default the run's own, from the run's data folder if it has one."""
    names, split = [part.name for part in named_datasets(values.dataset)], values.split
    if len(names) == 1:
        # Only CUHK03 has the splits "detected" and "labelled", so a split alone determines the data set.
        split = canonical_split(values.dataset, split)
        if values.dataset and values.dataset not in DATASETS:
            raise UserError(f"unknown dataset {values.dataset!r}, expected one of {', '.join(DATASETS)}")
        candidates = [values.dataset] if values.dataset else list(DATASETS)
        named = [name for name in candidates if split and split in DATASETS[name].splits]
        if split and not named:
            known = [f"{known} ({name})" for name in candidates for known in DATASETS[name].splits if known]
            what = f"dataset {values.dataset!r} has no" if values.dataset else "no dataset has a"
            raise UserError(f"{what} split {values.split!r}, expected {', '.join(known) or 'no --split'}")
        names = [values.dataset or (named[0] if named else "")]
    run_dir = values.model or find_run(values.runs_dir, ",".join(names) or None, split or None)
    run = _load(run_dir, values.checkpoint)
    own = [data_of(run.config, name) for name in names]
    folders, splits = (",".join(getattr(part, field) for part in own) for field in ("data_dir", "split"))
    return run, load_dataset(",".join(part.name for part in own), values.data_dir or folders or None, split or splits)


def _load(path: Union[str, Path], checkpoint: str) -> LoadedRun:
    """Returns a run, or an export as one: its model is the extractor, its checkpoint format and precision."""
    folder = Path(path)
    if not exists(folder / CARD):
        return load_run(path, checkpoint)
    if checkpoint != "last":
        raise UserError(f"--checkpoint {checkpoint} with the export {path}, expected a run")
    from han_tf.features.extractor import FeatureExtractor

    extractor = FeatureExtractor(folder)
    card = extractor.card
    config = {"dataset": card.dataset, "split": card.split, "data_dir": "", "model": card.model}
    return LoadedRun(extractor, config, folder, f"{card.format}-{card.precision}")


def _origin(run: LoadedRun, dataset: ReIDDataset) -> dict[str, Any]:
    """Returns the report's entries on run and data set."""
    return {
        "run": str(run.run_dir),
        "checkpoint": run.checkpoint,
        "trained_on": {"dataset": run.config["dataset"], "split": run.config["split"]},
        "dataset": dataset.name,
        "split": dataset.split,
        "fingerprint": dataset.fingerprint(*SUBSETS),
        "differences": list(dataset.differences),
    }


def _features_of_run(values: command_line.Flags, run: LoadedRun, dataset: ReIDDataset) -> dict[str, FeatureSet]:
    """Returns the features of a data set's test images."""
    from han_tf.features.keras import feature_set  # imports TensorFlow, which saved features do not need

    for sentence in dataset.notes + dataset.differences:
        print(f"note: {dataset.name}: {sentence}")
    return {
        subset: feature_set(run.model, records, skip_bad_images=values.skip_bad_images, progress=f"{subset} features")
        for subset, records in dataset.subsets().items()
        if subset in SUBSETS
    }


def _feature_paths(values: command_line.Flags) -> list[Path]:
    first, *rest = [*values.features, *values.positional]
    if os.path.isdir(first) and not rest and not values.query_is_gallery:
        paths = [Path(first) / f"{name}.npz" for name in SUBSETS]
        return paths if exists(paths[2]) and not values.distances else paths[:2]
    if not rest and not os.path.isfile(first) and not values.query_is_gallery:
        raise UserError(f"--features {first}: no such folder, expected query.npz and gallery.npz in it")
    paths = [Path(first), *map(Path, rest)]
    if values.query_is_gallery:
        if rest:
            raise command_line.UsageError(f"--features has {len(paths)} files, expected one with --query_is_gallery")
        return paths
    most = 2 if values.distances else 3
    if not 2 <= len(paths) <= most:
        expected = "query.npz,gallery.npz" + "[,multi_query.npz]" * (most == 3)
        raise command_line.UsageError(f"--features has {len(paths)} files, expected {expected}")
    for number, path in enumerate(paths):
        if path.resolve() in [earlier.resolve() for earlier in paths[:number]]:
            raise UserError(f"--features has {path} twice, expected queries and gallery in files of their own")
    return paths


def _map_distances(path: str, shape: tuple[int, int]) -> np.ndarray:
    try:
        distances = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a matrix of distances (.npy)") from error
    except Exception as error:  # a damaged header can raise many kinds of errors, in NumPy and in tokenize
        raise UserError(f"{path}: no matrix of distances (.npy) ({one_line(error)})") from error
    if distances.shape != shape:
        raise UserError(f"{path}: shape {list(distances.shape)}, expected {list(shape)}, queries × gallery images")
    return distances


def _import_plots() -> ModuleType:
    try:
        from han_tf.metrics import plots
    except ImportError as error:
        raise UserError(f"--plots needs Matplotlib ({error}), expected: pip install matplotlib") from error
    return plots


def _save_plots(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draws three files with a curve for each row; returns their paths."""
    plots, paths = _import_plots(), []
    for name, draw, kind in (
        ("cmc", plots.plot_cmc, "result"),
        ("precision_recall", plots.plot_precision_recall, "result"),
        ("roc", plots.plot_roc, "verification"),
    ):
        figure = draw({row_name(row): row[kind] for row in rows})
        # With many rows the legend would cover the curves; after ten lines the colours repeat.
        (axes,) = figure.axes
        axes.get_legend().remove()
        for line in axes.get_lines()[10:]:
            line.set_linestyle("--")
        figure.set_figwidth(10)
        figure.legend(loc="outside right upper")
        paths.append(folder / f"{name}.png")
        plots.save_figure(figure, paths[-1])
    return paths


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="files"))

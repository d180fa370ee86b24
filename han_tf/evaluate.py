"""Evaluate a trained HAN, or features of any network, under a benchmark's protocol.

Without --run it takes the newest run of --dataset and --split. Reports CMC at ranks 1, 5, 10 and 20 and mAP under
both definitions, for the joint, the global and the local feature. The features of other networks are evaluated from
NumPy archives with the arrays features, pids and camids:

  python -m han_tf.evaluate --features query.npz gallery.npz [multi_query.npz]
"""

import sys
from pathlib import Path

from absl import flags

from han_tf import cli as command_line
from han_tf.data import DATASETS, load_dataset
from han_tf.errors import UserError
from han_tf.files import write_json
from han_tf.inference.feature_files import FeatureSet, load_features, save_features
from han_tf.inference.features import feature_set
from han_tf.inference.runs import CHECKPOINTS, find_run, load_run
from han_tf.report import evaluate_features, table, to_json
from han_tf.training import environment

SUBSETS = ("query", "gallery", "multi_query")

FLAGS = command_line.new_flags()
flags.DEFINE_string("dataset", "", f"Data set: {', '.join(DATASETS)}; the run's own if empty.", flag_values=FLAGS)
flags.DEFINE_string(
    "split", "", "Protocol variant, e.g. detected (of CUHK03, if no data set is named).", flag_values=FLAGS
)
flags.DEFINE_string("data_dir", "", "Data folder; that of the run if empty.", flag_values=FLAGS)
flags.DEFINE_string("runs_dir", "runs", "Where runs are kept.", flag_values=FLAGS)
flags.DEFINE_string("run", "", "The run's folder; the newest that fits if empty.", flag_values=FLAGS)
flags.DEFINE_enum("checkpoint", "last", list(CHECKPOINTS), "Which network of the run.", flag_values=FLAGS)
flags.DEFINE_string("features", "", "Saved features: query.npz, then gallery.npz; or their folder.", flag_values=FLAGS)
flags.DEFINE_boolean("rerank", False, "Also with k-reciprocal re-ranking.", flag_values=FLAGS)
flags.DEFINE_integer("k1", 20, "Re-ranking: size of the neighbourhoods.", 1, flag_values=FLAGS)
flags.DEFINE_integer("k2", 6, "Re-ranking: images averaged over.", 1, flag_values=FLAGS)
flags.DEFINE_float("lambda_value", 0.3, "Re-ranking: weight of the original distance.", 0, 1, flag_values=FLAGS)
flags.DEFINE_integer("memory_mb", 1024, "Memory for distances, MiB.", 16, flag_values=FLAGS)
flags.DEFINE_boolean("skip_bad_images", False, "Leave out unreadable images.", flag_values=FLAGS)
flags.DEFINE_string("save_features", "", "Folder to save the features in.", flag_values=FLAGS)
flags.DEFINE_string("output", "", "JSON file of the results; evaluation.json in the run if empty.", flag_values=FLAGS)
flags.DEFINE_string("per_query", "", "CSV file of every query's results and nearest images.", flag_values=FLAGS)


def main(values: flags.FlagValues) -> None:
    """Evaluates as the flags say."""
    if values.features:
        paths = _feature_paths(values.features, values.positional)
        subsets = {name: load_features(path) for name, path in zip(SUBSETS, paths)}
        origin = {"features": [str(path) for path in paths]}
        output = values.output
    else:
        if values.positional:
            raise UserError(f"unexpected argument {values.positional[0]!r}: files go with --features")
        subsets, origin, run_dir = _features_of_run(values)
        output = values.output or str(run_dir / "evaluation.json")
    if values.save_features:
        for name, features in subsets.items():
            save_features(Path(values.save_features) / f"{name}.npz", features)

    rows = evaluate_features(
        *subsets.values(),
        branches=not values.features,
        reranked=values.rerank,
        rerank_options={"k1": values.k1, "k2": values.k2, "lambda_value": values.lambda_value},
        memory_mb=values.memory_mb,
        progress=True,
    )
    report = {**origin, "environment": environment.describe(), **to_json(rows)}
    print(table(report))
    if output:
        write_json(output, report)
        print(f"written to {output}")
    if values.per_query:
        names = [subsets[name].paths if all(subsets[name].paths) else None for name in ("query", "gallery")]
        rows[0]["result"].save_csv(values.per_query, *names)


def _features_of_run(values: flags.FlagValues) -> tuple[dict[str, FeatureSet], dict, Path]:
    # Only CUHK03 has the splits "detected" and "labelled", so the split alone says which data set is meant.
    split = next((e.spellings[values.split] for e in DATASETS.values() if values.split in e.spellings), values.split)
    if values.dataset and values.dataset not in DATASETS:
        raise UserError(f"unknown dataset {values.dataset!r}, expected one of {', '.join(DATASETS)}")
    candidates = [values.dataset] if values.dataset else list(DATASETS)
    named = [name for name in candidates if split and split in DATASETS[name].splits]
    if split and not named:
        known = [f"{known} ({name})" for name in candidates for known in DATASETS[name].splits if known]
        what = f"dataset {values.dataset!r} has no" if values.dataset else "no dataset has a"
        raise UserError(f"{what} split {values.split!r}, expected {', '.join(known) or 'no --split'}")
    dataset_name = values.dataset or (named[0] if named else "")
    run_dir = values.run or find_run(values.runs_dir, dataset_name or None, split or None)
    run = load_run(run_dir, values.checkpoint)
    name = dataset_name or run.config["dataset"]
    same = name == run.config["dataset"]
    dataset = load_dataset(
        name,
        values.data_dir or (run.config["data_dir"] if same else "") or None,
        split or (run.config["split"] if same else ""),
    )
    for sentence in dataset.notes + dataset.differences:
        print(f"note: {dataset.name}: {sentence}")
    subsets = {
        subset: feature_set(run.model, records, skip_bad_images=values.skip_bad_images, progress=f"{subset} features")
        for subset, records in dataset.subsets().items()
        if subset in SUBSETS
    }
    origin = {
        "run": str(run.run_dir),
        "checkpoint": run.checkpoint,
        "trained_on": {"dataset": run.config["dataset"], "split": run.config["split"]},
        "dataset": dataset.name,
        "split": dataset.split,
        "differences": list(dataset.differences),
    }
    return subsets, origin, run.run_dir


def _feature_paths(first: str, rest: list[str]) -> list[Path]:
    if Path(first).is_dir():
        paths = [Path(first) / f"{name}.npz" for name in SUBSETS]
        return [path for path in paths if path.name != "multi_query.npz" or path.exists()]
    if not rest and not Path(first).is_file():
        raise UserError(f"--features {first}: no such folder, expected query.npz and gallery.npz in it")
    if not 1 <= len(rest) <= 2:
        raise UserError(f"--features has {1 + len(rest)} files, expected query.npz gallery.npz [multi_query.npz]")
    return [Path(first), *map(Path, rest)]


def cli() -> None:
    """Runs the command line."""
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="files"))


if __name__ == "__main__":
    cli()

"""Results on disk: one JSON per training or measurement, with its settings, commit and machine."""

import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Optional, Union

from han_tf.common.errors import UserError
from han_tf.common.files import read_json
from han_tf.common.run_files import CONFIG, ENVIRONMENT, EVALUATION, HISTORY, METRICS
from han_tf.evaluation.scoring import METHODS
from han_tf.runs import environment
from han_tf.training.config import DEFAULTS, NEUTRAL, OF_DATA, TrainConfig, flag_of

HERE = Path(__file__).parent
RESULTS = HERE / "results"

KINDS = ("training", "network", "search", "statistics", "bench", "metrics_bench", "runtimes", "index_bench")
KINDS += ("service_bench", "chaos", "norm")
"""Kinds of results: a training and its evaluation; FLOPs and speed of a network; search time by feature dimension;
counts of a data set; the output of ``han_tf.bench`` and of ``bench_metrics``, ``bench_runtimes``, ``bench_indexes``,
``bench_service``, ``chaos`` and ``bench_norm`` of ``experiments``."""

EXPECTED = "results as the runner writes them"

RUNTIMES = ("openvino", "onnxruntime")
"""Packages that may run a model, beside TensorFlow."""


class Result(dict[str, Any]):
    """The content of one JSON of the results' folder, and the file's name without its suffix."""

    def __init__(self, name: str, data: Mapping[str, Any]):
        super().__init__(data)
        self.name = name


def load_results(folder: Union[str, os.PathLike]) -> list[Result]:
    """Returns all results of ``folder``, sorted by name; an empty list if there is no such folder.

    Raises:
      UserError: a file is damaged, or of no known kind.
    """
    results = []
    for path in sorted(Path(folder).glob("*.json")):
        data = read_json(path, EXPECTED)
        kind = data.get("kind") if isinstance(data, dict) else None
        if kind not in KINDS:
            raise UserError(
                f"{path}: kind is {kind!r}, expected one of {', '.join(KINDS)}; "
                "python -m experiments.record adds results"
            )
        results.append(Result(path.stem, data))
    return results


@contextmanager
def reading(where: Union[str, os.PathLike]) -> Iterator[None]:
    """Makes what missing entries and wrong types of the JSON in ``where`` raise in the block a UserError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: damaged ({type(error).__name__}: {error}), expected {EXPECTED}") from error


def shown_trainings(results: Iterable[Result]) -> list[Result]:
    """Returns the trainings that tables may show."""
    return [result for result in results if result["kind"] == "training" and "apart" not in result]


def check_replaceable(folder: Union[str, os.PathLike], name: str, data: Mapping[str, Any]) -> None:
    """Raises UserError if writing ``data`` as the result ``name`` would overwrite the result of something else."""
    path = Path(folder) / f"{name}.json"
    if path.exists():
        old = read_json(path, EXPECTED)
        with reading(path):
            same = old.get("kind") == data.get("kind")
            same = same and identity(old.get("settings", {})) == identity(data.get("settings", {}))
            apart = old.get("apart")
        if same and apart and not data.get("apart"):
            raise UserError(
                f"{path} holds a training of the same settings that is kept apart ({apart}); rename that file, or give "
                "another --results_dir"
            )
        if not same or apart != data.get("apart"):
            raise UserError(f"{path} holds the result of something else; give another --name, or rename that file")


def stamp() -> dict[str, Any]:
    """Returns commit, date, machine and packages, for a result that is measured now."""
    made_with = environment.describe()
    made_with.pop("command")  # holds this machine's paths
    for package in RUNTIMES:
        with suppress(metadata.PackageNotFoundError):
            made_with["packages"][package] = metadata.version(package)
    return {**made_with, "date": _date(datetime.now(timezone.utc).timestamp())}


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a training's outcome depends on: all but the neutral ones.

    Settings that ``values`` lacks get their defaults, which keep the behaviour of versions without them.
    """
    return {name: value for name, value in {**DEFAULTS, **values}.items() if name not in (*NEUTRAL, *OF_DATA)}


def identity(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Returns :func:`settings_of` in a form that can be compared and hashed: names, and values as JSON."""
    return tuple(sorted((name, json.dumps(value, sort_keys=True)) for name, value in settings_of(values).items()))


def flags_of(config: TrainConfig) -> list[str]:
    """Returns the flags of ``han_tf.train`` for a training: its name's, and those that are not the defaults."""
    wanted, told = {"dataset", "model", "epochs", "seed", *config.changes()}, []
    if config.dataset == "synthetic":  # it has another default
        wanted.add("lr_drops")
    for setting, value in config.to_dict().items():
        name = flag_of(setting)
        if setting not in wanted:
            continue
        if isinstance(value, Mapping):
            told += [f"--{name}={argument}={json.dumps(given)}" for argument, given in value.items()]
        elif isinstance(value, list):
            told.append(f"--{name}={','.join(map(str, value))}")
        else:
            told.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return told


def training_result(run_dir: Union[str, os.PathLike], peak_mb: Optional[float] = None) -> dict[str, Any]:
    """Returns the result of a finished run, from the files in its folder.

    It holds ``metrics.json``, and ``evaluation.json`` if it was evaluated again (with re-ranking). An evaluation of
    another network or on other data is ignored. ``peak_mb`` is the most memory the training held, in MiB, if known.

    Raises:
      UserError: the folder holds no finished run.
    """
    run_dir = Path(run_dir)

    def read(name: str, otherwise: Any = None) -> Any:
        path = run_dir / name
        return read_json(path, "a finished training run") if otherwise is None or path.exists() else otherwise

    config, trained = read(CONFIG), read(METRICS)
    evaluated = read(EVALUATION, trained)
    rows, more = _rows(trained), _rows(evaluated)
    if _data_of(evaluated) != _data_of(trained) or not all(
        math.isclose(rows[key][metric], more[key][metric], abs_tol=1e-3)
        for key in rows.keys() & more.keys()
        for metric in ("rank-1", "mAP")
    ):
        evaluated, more = trained, rows
    told = {**{name: value for name, value in config.items() if name not in OF_DATA}, "data_dir": ""}
    flags = flags_of(TrainConfig.from_dict(told, str(run_dir / CONFIG)))
    history, made_with = read(HISTORY, []), read(ENVIRONMENT, {})
    made_with.pop("command", None)
    speeds = [row["images_per_second"] for row in history if "images_per_second" in row]
    # Of the evaluations during training only the joint feature's, which comes first, is kept.
    evaluated_at = {row["epoch"]: row["evaluation"]["results"][0] for row in history if "evaluation" in row}
    evaluations = [{"epoch": epoch, **{m: row[m] for m in ("rank-1", "mAP")}} for epoch, row in evaluated_at.items()]
    # A repeated command writes METRICS anew.
    ended = run_dir / (HISTORY if (run_dir / HISTORY).exists() else METRICS)
    result = {
        "kind": "training",
        "settings": settings_of(config),
        "command": " ".join(["python -m han_tf.train", *flags]),
        "train_images": config.get("num_images"),
        "train_identities": config.get("num_classes"),
        "seconds": round(sum(row.get("seconds", 0) for row in history), 1) or None,
        "images_per_second": statistics.median(speeds) if speeds else None,
        "peak_mb": peak_mb,
        "disk_mb": round(sum(p.stat().st_size for p in run_dir.rglob("*") if p.is_file()) / 2**20, 1),
        "differences": evaluated.get("differences", []),
        "counts": evaluated["counts"],
        "results": list({**rows, **more}.values()),
        "regions": trained.get("attention") or trained.get("regions") or {},
        "loss": [round(row["loss"], 4) for row in history if "loss" in row],
        "evaluations": evaluations,
        **made_with,
        "date": _date(ended.stat().st_mtime),
    }
    evaluation_commit = evaluated.get("environment", {}).get("commit")
    if evaluation_commit not in (None, result.get("commit")):
        result["evaluation_commit"] = evaluation_commit
    return result


def _rows(report: Mapping[str, Any]) -> dict[tuple, dict[str, Any]]:
    """Returns an evaluation's rows by feature, query type and methods, without curves and tables of cameras."""
    return {
        (row["feature"], row["query"], _methods(row)): {
            name: value for name, value in row.items() if not isinstance(value, (list, dict))
        }
        for row in report["results"]
    }


def _data_of(report: Mapping[str, Any]) -> tuple[Any, ...]:
    return report.get("dataset"), report.get("split"), report["counts"]["queries"], report["counts"]["gallery"]


def score(result: Result, feature: str, query: str, reranked: bool, metric: str) -> Optional[float]:
    """Returns one number of a training's results, in percent; None if it was not evaluated."""
    for row in result["results"]:
        if (row["feature"], row["query"], _methods(row)) == (feature, query, ("reranked",) * reranked):
            return 100 * row[metric]
    return None


def _methods(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in METHODS if row.get(name))


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

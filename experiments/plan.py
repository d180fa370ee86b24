"""From experiments to what has to be run: trainings (each once), measurements, and what they will need."""

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

from experiments.results import Result, identity, score
from experiments.schema import METRICS, AnyExperiment, Column, Experiment, Row, Statistics
from han_tf.common.errors import UserError
from han_tf.common.files import read_json
from han_tf.common.run_files import HISTORY
from han_tf.data import DATASETS, load_dataset
from han_tf.data.synthetic import SyntheticPedestrians
from han_tf.training.config import TrainConfig

TINY = {
    "train_identities": 8,
    "test_identities": 5,
    "train_images_per_camera": 1,
    "images_per_camera": 2,
    "multi_query_per_camera": 1,
    "distractors": 4,
    "junk": 2,
}
"""The arguments of the few drawn pedestrians that the smoke scale trains on."""


class Scale(NamedTuple):
    """How large an experiment is run.

    Attributes:
      dataset: the drawn set that stands for every data set of the paper; None for the real ones.
      title: what that set is called in tables.
      settings: what every training changes.
      in_process: whether trainings share the runner's process, and run without graphs, to save start-up time.
    """

    dataset: Optional[str]
    title: str
    settings: Mapping[str, Any]
    in_process: bool = False


SCALES = {
    "smoke": Scale(
        "market1501",
        "tiny drawn set",
        {"epochs": 1, "input_height": 48, "input_width": 32, "panel_images": 0},
        in_process=True,
    ),
    "synthetic": Scale("synthetic", "embedded set", {"epochs": 6, "eval_every": 6}),
    "full": Scale(None, "", {}),
}
"""Scale -> what it means. The tiny set has Market-1501's layout and is read as such."""


class ShownColumn(NamedTuple):
    """A column as it is run at a scale, and which of the paper's columns it stands beside."""

    column: Column
    published: int


def scale_of(scale: str, dataset: str) -> str:
    """Returns the scale that the flags mean: without one, ``full`` if real data sets are named, else ``synthetic``.

    Raises:
      UserError: scale and data set do not go together.
    """
    drawn = dataset in ("", "synthetic")
    scale = scale or ("synthetic" if drawn else "full")
    if scale != "full" and not drawn:
        raise UserError(f"--scale {scale} has a drawn data set of its own, got --dataset {dataset}")
    if scale == "full" and dataset == "synthetic":
        raise UserError("--scale full is for real data sets, got --dataset synthetic; --scale synthetic --epochs 300?")
    return scale


def shown_columns(
    experiment: Experiment, scale: str, datasets: Sequence[str] = (), split: str = ""
) -> tuple[ShownColumn, ...]:
    """Returns the columns of a table at a scale: the paper's, or one per query type on the drawn set.

    Args:
      experiment: the table.
      scale: a key of :data:`SCALES`.
      datasets: the data sets wanted; all of the table's if empty.
      split: the protocol variant wanted; all of the table's if empty.

    Raises:
      UserError: the table has no column of a data set or split that is wanted.
    """
    drawn = SCALES[scale].dataset
    if drawn is None:
        for name in datasets:
            if name not in DATASETS:
                raise UserError(f"unknown dataset {name!r}, expected one of {', '.join(DATASETS)}")
        chosen = tuple(
            ShownColumn(column, index)
            for index, column in enumerate(experiment.columns)
            if (not datasets or column.dataset in datasets) and split in ("", column.split)
        )
        if not chosen:
            known = dict.fromkeys(" ".join((c.dataset, c.split)).strip() for c in experiment.columns)
            wanted = " ".join([*datasets, split]).strip()
            raise UserError(f"{experiment.name} is not about {wanted}, expected {', '.join(known)}")
        return chosen
    first = {}
    for index, column in enumerate(experiment.columns):
        title = SCALES[scale].title + (" (multi-query)" if column.query == "multi" else "")
        first.setdefault(column.query, ShownColumn(Column(title, drawn, "", column.query), index))
    return tuple(first.values())


def settings_for(row: Row, column: Column, scale: str, model: str = "") -> dict[str, Any]:
    """Returns the settings of a row's training on a column's data set, but for seed and data folder.

    Args:
      row, column: of a table.
      scale: a key of :data:`SCALES`.
      model: the network that stands in for the row's; ``""`` for the row's own.

    Raises:
      UserError: the row needs a setting that this version's training does not have.
    """
    own = {**row.settings, **({"model": model} if model else {})}
    settings = {**own, **SCALES[scale].settings, "dataset": column.dataset, "split": column.split}
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    for name in settings:
        if name not in known:
            raise UserError(f"row {row.name!r} needs the setting {name!r}, which han_tf.train does not have")
    return settings


@dataclass
class Training:
    """A training and what tables want of it.

    Attributes:
      config: its settings.
      wanted: the results that are shown: (feature, query type, re-ranked).
      experiments: the names of the experiments that want it.
      sheet: whether an attention sheet is drawn.
    """

    config: TrainConfig
    wanted: set[tuple[str, str, bool]] = field(default_factory=set)
    experiments: list[str] = field(default_factory=list)
    sheet: bool = False

    @property
    def name(self) -> str:
        """Name of its run folder and of its result."""
        return self.config.run_name()

    @property
    def identity(self) -> tuple[tuple[str, Any], ...]:
        """What it learns from; two trainings with the same are one."""
        return identity(self.config.to_dict())

    @property
    def network(self) -> tuple[str, int, int]:
        """What its cost depends on, see :func:`network_of`."""
        return network_of(self.config.to_dict())

    def result(self, results: Iterable[Result]) -> Optional[Result]:
        """Returns the result of this training if it is among ``results`` and holds all that is wanted."""
        for result in results:
            if result["kind"] == "training" and "apart" not in result.data:
                same = identity(result["settings"]) == self.identity
                if same and all(score(result, *wanted, METRICS[0]) is not None for wanted in self.wanted):
                    return result
        return None


def family(model: str) -> str:
    """Returns what a network is of, e.g. ``han`` of ``han_small``."""
    return model.partition("_")[0]


def selected_rows(experiment: Experiment, scale: str, words: Sequence[str] = ()) -> list[Row]:
    """Returns the rows that are run: those of this project that fit one of ``words``.

    Args:
      experiment: the table.
      scale: a key of :data:`SCALES`; the smallest leaves out some.
      words: row names or parts of them, in any case; all rows if empty. A word that is a whole name means that row.
    """
    rows = [row for row in experiment.rows if row.settings is not None and (row.smoke or scale != "smoke")]
    chosen = [] if words else rows
    for word in (word.strip().lower() for word in words):
        whole = [row for row in rows if row.name.lower() == word]
        chosen += whole or [row for row in rows if word in row.name.lower()]
    return [row for row in rows if row in chosen]


def _check_rows(experiments: Iterable[AnyExperiment], scale: str, words: Sequence[str]) -> None:
    """Raises UserError if one of ``words`` fits no row of any of the experiments."""
    tables = [experiment for experiment in experiments if isinstance(experiment, Experiment)]
    for word in words:
        if not any(selected_rows(table, scale, [word]) for table in tables):
            known = dict.fromkeys(row.name for table in tables for row in selected_rows(table, scale))
            names = ", ".join(table.name for table in tables)
            raise UserError(f"{names} has no row {word!r} to run, expected {', '.join(known)}")


@dataclass
class Plan:
    """What has to be there for some experiments, each thing once.

    Attributes:
      trainings: by what they learn from.
      networks: (model, height, width) whose FLOPs are shown -> whether their speed is shown, too.
      dimensions: feature dimensions whose search is timed.
      datasets: data sets to count.
    """

    trainings: dict[tuple, Training] = field(default_factory=dict)
    networks: dict[tuple[str, int, int], bool] = field(default_factory=dict)
    dimensions: set[int] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)


def make_plan(
    experiments: Sequence[AnyExperiment],
    scale: str,
    *,
    datasets: Sequence[str] = (),
    split: str = "",
    data_dir: str = "",
    seeds: Sequence[int] = (0,),
    epochs: Optional[int] = None,
    rows: Sequence[str] = (),
    model: str = "",
    cache_mb: Optional[int] = None,
) -> Plan:
    """Returns what the experiments need.

    Args:
      experiments: the tables and figures.
      scale: a key of :data:`SCALES`.
      datasets, split: see :func:`shown_columns`.
      data_dir: the data set's folder; ``""`` for the default one.
      seeds: one training each.
      epochs: instead of the scale's.
      rows: see :func:`selected_rows`.
      model: the network that stands in for that of ablations; ``""`` for none.
      cache_mb: instead of the default, see :class:`~han_tf.training.config.TrainConfig`.

    Raises:
      UserError: what :func:`shown_columns` and :func:`settings_for` say; one of ``rows`` fits no row; ``model`` is
        given for an experiment that compares networks, or is of another kind than the experiment's.
    """
    plan = Plan()
    _check_rows(experiments, scale, rows)
    overrides = {"data_dir": data_dir}
    overrides.update(
        {} if epochs is None else {"epochs": epochs}, **({} if cache_mb is None else {"cache_mb": cache_mb})
    )
    for experiment in experiments:
        if isinstance(experiment, Statistics):
            counted = [SCALES[scale].dataset] if scale == "smoke" else datasets
            plan.datasets.update(row.dataset for row in experiment.rows if not counted or row.dataset in counted)
            continue
        if model and not experiment.model:
            raise UserError(
                f"--arch {model} cannot stand in for the networks of {experiment.name}, which compares them"
            )
        if model and family(model) != family(experiment.model):
            raise UserError(
                f"--arch {model} has not the parts that {experiment.name} is about, expected a relative of "
                f"{experiment.model}"
            )
        chosen = selected_rows(experiment, scale, rows)
        if experiment.search:
            plan.dimensions.update(row.settings["feature_dim"] for row in chosen)
        for row in chosen:
            for column, _ in shown_columns(experiment, scale, datasets, split):
                settings = {**settings_for(row, column, scale, model), **overrides}
                if experiment.flops:
                    config = TrainConfig(**settings)
                    network = (config.model, *config.input_size)
                    plan.networks[network] = plan.networks.get(network, False) or experiment.speed
                if not experiment.trains:
                    continue
                for seed in seeds:
                    training = Training(TrainConfig(**settings, seed=seed))
                    training = plan.trainings.setdefault(training.identity, training)
                    training.wanted.add((row.feature, column.query, row.reranked))
                    training.sheet |= experiment.sheet
                    if experiment.name not in training.experiments:
                        training.experiments.append(experiment.name)
    return plan


class TrainingData(NamedTuple):
    """What a training needs to know of its data set.

    Attributes:
      images: number of training images.
      multi_query: whether there are several images of each query.
    """

    images: int
    multi_query: bool


def training_data(dataset: str, split: str, data_dir: str) -> TrainingData:
    """Looks at a data set; the embedded one is not drawn for that.

    Raises:
      UserError: the data set is not there; the message says how to get it.
    """
    if dataset == "synthetic":
        subsets = [frame.subset for frame in SyntheticPedestrians().frames()]
        return TrainingData(subsets.count("train"), "multi_query" in subsets)
    try:
        found = load_dataset(dataset, data_dir or None, split)
        return TrainingData(len(found.train), bool(found.multi_query))
    except UserError as error:
        how = f"datasets/{dataset}/README.md says how to get it, --data_dir where it lies"
        raise UserError(f"{error}; {how}" if "README" not in str(error) else str(error)) from error


def network_of(settings: Mapping[str, Any]) -> tuple[str, int, int]:
    """Returns what the cost of a network depends on: model, input height and width."""
    return settings["model"], settings["input_height"], settings["input_width"]


class Need(NamedTuple):
    """What a training will need; None where nothing is known.

    Attributes:
      seconds, memory_mb, disk_mb: time, peak memory and space in its run folder.
      how: where the time is known from.
    """

    seconds: Optional[float]
    memory_mb: Optional[float]
    disk_mb: Optional[float]
    how: str


PROGRAM_MB = 800
"""Memory of TensorFlow and the program, before any image."""

BYTES_PER_ELEMENT = 16
"""Training memory per element that a convolution puts out, for one image: activations, gradients and workspace."""

EVALUATION_MB = 400
"""Features, distances and decoded images of the evaluations between epochs."""


def needs(training: Training, images: int, results: Sequence[Result], here: Mapping[str, Any]) -> Need:
    """Estimates what ``training`` needs, from earlier results.

    The time is that of the latest training of the same network at the same size; or else that of another one, scaled by
    multiply-adds. Memory is what an earlier training of the same network and batch held, or is reckoned from the
    number of elements that the convolutions put out.

    Args:
      training: the training.
      images: number of training images.
      results: earlier results.
      here: this machine (:func:`experiments.results.machine`).
    """
    config = training.config
    networks = {network_of(r["settings"]): r for r in results if r["kind"] == "network"}
    rates = [
        (r.get("machine") == here, network_of(r["settings"]) == training.network, r.get("date") or "", r)
        for r in results
        if r["kind"] == "training" and r.get("images_per_second")
    ]
    seconds, how = None, "no measurement yet"
    # Best are those of this machine, then those of this network, then the latest: the code changes.
    for on_this_machine, same, _, result in sorted(rates, key=lambda rate: rate[:3], reverse=True):
        theirs, mine = networks.get(network_of(result["settings"])), networks.get(training.network)
        if not same and (theirs is None or mine is None):
            continue
        ratio = 1.0 if same else mine["macs"] / theirs["macs"]
        seconds = images * config.epochs / result["images_per_second"] * ratio
        how = f"{'as' if same else 'scaled from'} {result.name}" + ("" if on_this_machine else ", another machine")
        break

    pixels_mb = images * config.input_height * config.input_width * 3 / 2**20
    in_memory = pixels_mb if pixels_mb <= config.cache_mb else 0
    network = networks.get(training.network)
    memory = disk = None
    if network is not None:
        elements = network["norm_macs"] * config.batch_size
        memory = PROGRAM_MB + EVALUATION_MB + in_memory + elements * BYTES_PER_ELEMENT / 2**20
        # Two copies, weights and momenta, in each checkpoint kept, and one in the best.
        weights_mb = 4 * network["parameters"] / 2**20
        disk = weights_mb * (2 * config.keep_checkpoints + 1) * 1.3 + 20 + (pixels_mb - in_memory)
    for result in results:
        if (
            result["kind"] == "training"
            and result.get("peak_mb")
            and network_of(result["settings"]) == training.network
        ):
            same_batch = result["settings"]["batch_size"] == config.batch_size
            if same_batch and result.get("train_images"):
                theirs_mb = pixels_mb * result["train_images"] / images
                memory = max(memory or 0, result["peak_mb"] + max(0, in_memory - theirs_mb))
    return Need(seconds, memory, disk, how)


def free_memory_mb() -> Optional[float]:
    """Returns how much memory is free for programs, in MiB; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("MemAvailable")) / 1024
    except (OSError, StopIteration):
        return None


def free_disk_mb(folder: Path) -> float:
    """Returns how much space is free where ``folder`` is or will be, in MiB."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**20


def epochs_done(run_dir: Path) -> int:
    """Returns how many epochs of a run are finished, by its history; 0 if there is none."""
    path = run_dir / HISTORY
    return len(read_json(path, "the history of a training run")) if path.exists() else 0


def duration(seconds: Optional[float]) -> str:
    """Returns a length of time in words: ``40 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``; ``unknown`` of None."""
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"

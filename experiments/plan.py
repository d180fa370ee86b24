"""Plans: the trainings that experiments need, each once, and the other measurements."""

import csv
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, Optional

from experiments.results import Result, identity, score, shown_trainings
from experiments.schema import METRICS, Column, Experiment, Row
from han_tf.common.errors import UserError
from han_tf.training.config import CROSS_ENTROPY, DEFAULTS, RECIPES, TrainConfig

TINY = {
    "train_identities": 8,
    "test_identities": 5,
    "train_images_per_camera": 1,
    "images_per_camera": 2,
    "multi_query_per_camera": 1,
    "distractors": 4,
    "junk": 2,
}
"""Arguments of :class:`SyntheticPedestrians` for the few drawn people of the smoke scale."""


class Scale(NamedTuple):
    """Data and settings at which experiments are run."""

    dataset: Optional[str]  # the drawn set that replaces every data set of the paper; None for the real ones
    title: str  # that set's name in tables
    settings: Mapping[str, Any]  # changes to every training's settings


SCALES = {
    "smoke": Scale(
        "market1501", "tiny drawn set", {"epochs": 1, "input_height": 48, "input_width": 32, "panel_images": 0}
    ),
    "synthetic": Scale("synthetic", "embedded set", {"epochs": 6, "eval_every": 6}),
    "full": Scale(None, "", {}),
}
"""Scale by name. The tiny set has Market-1501's layout and is read by its reader."""


SCHEDULE = ("epochs", "recipe", "input_height", "input_width", *RECIPES["strong"])
"""Settings that the trainings of a table have in common, and in which they may all differ from the paper."""


def scale_of(scale: str, dataset: str) -> str:
    """Returns the scale of the flags; if none is given, ``full`` for real data sets and ``synthetic`` otherwise.

    Raises:
      UserError: scale and data set do not fit.
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
) -> dict[int, Column]:
    """Returns the columns of a table as they are run at a scale, by the index of the paper's column.

    On the drawn set there is one for each query type, which is compared with the paper's first one of that type.
    ``datasets`` and ``split`` restrict the columns if they are not empty.

    Raises:
      UserError: the table has no column of these data sets and this split.
    """
    drawn, shown = SCALES[scale].dataset, {}
    for index, column in enumerate(experiment.columns):
        if drawn is None:
            if (not datasets or column.dataset in datasets) and split in ("", column.split):
                shown[index] = column
        elif column.query not in [known.query for known in shown.values()]:
            title = SCALES[scale].title + (" (multi-query)" if column.query == "multi" else "")
            shown[index] = Column(title, drawn, "", column.query)
    if experiment.columns and not shown:
        known = dict.fromkeys(" ".join((c.dataset, c.split)).strip() for c in experiment.columns)
        named = " ".join([*datasets, split]).strip()
        raise UserError(f"{experiment.name} is not about {named}, expected {', '.join(known)}")
    return shown


def settings_for(row: Row, column: Column, scale: str, model: str = "") -> dict[str, Any]:
    """Returns the settings of a row's training, without seed and data folder; ``model`` replaces its network."""
    network = {"model": model} if model else {}
    return {**row.settings, **network, **SCALES[scale].settings, "dataset": column.dataset, "split": column.split}


def network_of(settings: Mapping[str, Any]) -> tuple[str, int, int]:
    """Returns the settings on which a network's cost depends: model, input height and width."""
    return settings["model"], settings["input_height"], settings["input_width"]


def networks_by_name(results: Iterable[Result]) -> dict[tuple[str, int, int], Result]:
    """Returns the results of kind ``network`` by model, input height and width."""
    return {network_of(result["settings"]): result for result in results if result["kind"] == "network"}


def family(model: str) -> str:
    """Returns the family of a network, e.g. ``han`` of ``han_small``."""
    return model.partition("_")[0]


@dataclass
class Training:
    """A training, and what tables show of it."""

    config: TrainConfig
    wanted: set[tuple[str, str, bool]] = field(default_factory=set)  # results: feature, query type, whether re-ranked
    experiments: list[str] = field(default_factory=list)  # names of those that need it
    sheet: bool = False  # whether an attention sheet is drawn

    @property
    def name(self) -> str:
        """Name of its run folder and of its result."""
        return self.config.run_name()

    @property
    def identity(self) -> tuple[tuple[str, Any], ...]:
        """The settings it learns from; trainings with equal ones are the same training."""
        return identity(self.config.to_dict())

    def result(self, results: Iterable[Result]) -> Optional[Result]:
        """Returns this training's result in ``results``; None if there is none with all of :attr:`wanted`."""
        for result in shown_trainings(results):
            same = identity(result["settings"]) == self.identity
            if same and all(score(result, *wanted, METRICS[0]) is not None for wanted in self.wanted):
                return result
        return None


def selected_rows(experiment: Experiment, scale: str, words: Sequence[str] = ()) -> list[Row]:
    """Returns the rows to run: those with settings that match one of ``words``.

    Words are row names or parts of them, case-insensitive; a whole name selects that row alone. Without words all rows
    are returned. The smallest scale leaves out some rows.
    """
    rows = [row for row in experiment.rows if row.settings is not None and (row.smoke or scale != "smoke")]
    chosen = [] if words else rows
    for word in (word.strip().lower() for word in words):
        whole = [row for row in rows if row.name.lower() == word]
        chosen += whole or [row for row in rows if word in row.name.lower()]
    return [row for row in rows if row in chosen]


def _words(text: str, experiments: Iterable[Experiment]) -> list[str]:
    """Returns ``text`` if it is in the name of a row, otherwise its parts between commas, which may be in quotes."""
    if any(selected_rows(experiment, "full", [text]) for experiment in experiments):
        return [text]
    return next(csv.reader([text], skipinitialspace=True), [])


@dataclass
class Plan:
    """Everything that some experiments need, each thing once.

    ``networks`` maps the (model, height, width) whose FLOPs are shown to whether their speed is shown, too.
    """

    trainings: dict[tuple, Training] = field(default_factory=dict)  # by Training.identity
    networks: dict[tuple[str, int, int], bool] = field(default_factory=dict)
    dimensions: set[int] = field(default_factory=set)  # feature dimensions whose search is timed
    datasets: set[str] = field(default_factory=set)  # data sets to count


def make_plan(
    experiments: Sequence[Experiment],
    scale: str,
    *,
    datasets: Sequence[str] = (),
    split: str = "",
    seeds: Sequence[int] = (0,),
    rows: Sequence[str] = (),
    model: str = "",
    **overrides: Any,
) -> Plan:
    """Returns the plan of some experiments.

    Args:
      experiments, scale: the tables and figures, and a key of :data:`SCALES`.
      datasets, split: see :func:`shown_columns`.
      seeds: one training each.
      rows: words of :func:`selected_rows`; one that matches no row is a list of words, separated by commas.
      model: the network in place of an ablation's; ``""`` for none.
      overrides: settings that override the rows' and the scale's; ``recipe`` those of the recipe that they leave open.

    Raises:
      UserError: as :func:`shown_columns`; one of ``rows`` matches no row; ``model`` is given for an experiment that
        compares networks, or is of another family than the experiment's.
    """
    plan = Plan()
    rows = [word for text in rows for word in _words(text, experiments)]
    for word in rows:
        if not any(selected_rows(table, scale, [word]) for table in experiments):
            known = dict.fromkeys(row.name for table in experiments for row in selected_rows(table, scale))
            names = ", ".join(table.name for table in experiments if table.rows)
            raise UserError(f"{names} has no row {word!r} to run, expected {', '.join(known)}")
    counted = [SCALES[scale].dataset] if scale == "smoke" else datasets
    for experiment in experiments:
        plan.datasets.update(row.dataset for row in experiment.counts if not counted or row.dataset in counted)
        if model and experiment.rows and not experiment.model:
            raise UserError(f"--arch {model} cannot replace the networks of {experiment.name}, which compares them")
        if model and experiment.rows and family(model) != family(experiment.model):
            raise UserError(
                f"--arch {model} lacks the parts that {experiment.name} compares, expected a network of the family of "
                f"{experiment.model}"
            )
        chosen = selected_rows(experiment, scale, rows)
        if experiment.search:
            plan.dimensions.update(row.settings["feature_dim"] for row in chosen)
        columns = shown_columns(experiment, scale, datasets, split)
        for row, column in product(chosen, columns.values()):
            settings = {**settings_for(row, column, scale, model), **overrides}
            if CROSS_ENTROPY not in settings.get("loss", DEFAULTS["loss"]):
                settings["label_smoothing"] = 0.0  # whatever the recipe says
            config = TrainConfig.of_recipe(settings.pop("recipe", DEFAULTS["recipe"]), **settings)
            if experiment.flops:
                network = network_of(config.to_dict())
                plan.networks[network] = plan.networks.get(network, False) or experiment.speed
            for seed in seeds if experiment.trains else ():
                training = Training(dataclasses.replace(config, seed=seed))
                training = plan.trainings.setdefault(training.identity, training)
                training.wanted.add((row.feature, column.query, row.reranked))
                training.sheet |= experiment.sheet
                if experiment.name not in training.experiments:
                    training.experiments.append(experiment.name)
    return plan

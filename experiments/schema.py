"""The types of the configs under ``experiments/configs``: data only, so that one runner can read them all."""

import dataclasses
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

CONFIGS = Path(__file__).parent / "configs"

METRICS = ("rank-1", "mAP")
"""The two numbers in each column of the paper's tables, in percent."""

HAN_FLOPS = {"Small": "3.68e8", "Medium": "5.33e8", "Large": "7.01e8"}
"""Size of a HAN -> the FLOPs that the paper prints."""

EFFICIENT_FLOPS = {"MobileNet": "5.69e8", "ShuffleNet": "1.40e8", "CondenseNet": "2.74e8"}
"""Network that HAN is compared with -> the FLOPs that the paper prints."""


class Column(NamedTuple):
    """A pair of columns, rank-1 and mAP."""

    title: str  # the paper's heading
    dataset: str  # registry name of the data that is trained on and tested
    split: str = ""
    query: str = "single"  # or multi


MARKET = Column("Market-1501", "market1501")
DUKE = Column("DukeMTMC", "dukemtmc")
MARKET_SQ = Column("Market-1501 (SQ)", "market1501")
MARKET_MQ = Column("Market-1501 (MQ)", "market1501", query="multi")
CUHK03_LABELLED = Column("CUHK03 (labelled)", "cuhk03", "labelled")
CUHK03_DETECTED = Column("CUHK03 (detected)", "cuhk03", "detected")
MSMT17 = Column("MSMT17", "msmt17")

LARGE = {"model": "han_large"}
"""Settings of the network that the paper's ablations use."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Its settings are the training's changes to :class:`han_tf.training.config.TrainConfig`; None for a row that is only
    quoted, because its method is not part of this project.
    """

    name: str  # unique within a table
    published: Sequence[Optional[tuple[Optional[float], Optional[float]]]]  # (rank-1, mAP) of each column, in percent
    settings: Optional[Mapping[str, Any]] = None
    feature: str = "joint"  # whose result the row shows: joint, global or local
    reranked: bool = False  # whether it is the result after re-ranking
    flops: str = ""  # the paper's, as printed except for the notation of powers
    smoke: bool = True  # whether the row is run at the smallest scale


def han(size: str, *published: tuple[float, float], erasing: bool = False, reranked: bool = False) -> Row:
    """Returns the row of a HAN, ``Small``, ``Medium`` or ``Large``, with the paper's numbers for each column."""
    return Row(
        f"HAN ({size}){', erasing' * erasing}{', re-ranked' * reranked}",
        published,
        {"model": f"han_{size.lower()}", **({"random_erasing": True} if erasing else {})},
        reranked=reranked,
        flops=HAN_FLOPS[size],
        smoke=not erasing,
    )


def efficient(name: str, *published: tuple[float, float]) -> Row:
    """Returns the row of one of :data:`EFFICIENT_FLOPS`, with the paper's numbers for each column."""
    return Row(name, published, {"model": name.lower()}, flops=EFFICIENT_FLOPS[name], smoke=name != "CondenseNet")


class Counts(NamedTuple):
    """The paper's counts of a data set, a row of Table 2."""

    title: str  # as the paper prints it
    dataset: str  # registry name
    published: tuple[int, int, int, int, int]  # identities, those of training and of testing, images, cameras
    counted: Mapping[str, Sequence[str]]  # split -> the subsets that the paper's number of images includes


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, made from trainings."""

    title: str
    columns: Sequence[Column] = ()  # the data sets, in the paper's order
    rows: Sequence[Row] = ()  # in the paper's order
    counts: Sequence[Counts] = ()  # the rows of Table 2, which has neither columns nor rows of the other kind
    trains: bool = True  # False if it only shows results of other experiments' trainings
    flops: bool = False  # whether it shows FLOPs, so that the networks have to be counted
    speed: bool = False  # whether it shows images per second, too
    search: bool = False  # whether it shows the search time for each of its feature dimensions
    sheet: bool = False  # whether an attention sheet is drawn for each training
    name: str = ""  # the config's, such as table9

    @property
    def model(self) -> str:
        """The network of all trainings, as in an ablation; ``""`` if there are several networks."""
        models = {row.settings["model"] for row in self.rows if row.settings is not None}
        return models.pop() if len(models) == 1 else ""

    @property
    def datasets(self) -> list[str]:
        """The data sets of its columns and counts, without duplicates."""
        columns = [column.dataset for column in self.columns]
        return list(dict.fromkeys([*columns, *(row.dataset for row in self.counts)]))


def names() -> list[str]:
    """Returns the names of all experiments: tables, then figures, by number."""

    def place(name: str) -> tuple[bool, bool, int]:
        kind, number = re.fullmatch(r"(.*?)(\d*)", name).groups()
        return (not number, kind != "table", int(number or 0))

    return sorted((path.stem for path in CONFIGS.glob("*.py")), key=place)


def load(name: str) -> Experiment:
    """Returns the experiment called ``name``, one of :func:`names`."""
    module = importlib.import_module(f"experiments.configs.{name}")
    return dataclasses.replace(module.EXPERIMENT, name=name)

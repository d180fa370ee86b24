"""Pictures of results, drawn from their JSONs alone."""

import re
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Optional

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plan import family, network_of, networks_by_name
from experiments.results import Result
from experiments.schema import METRICS, load
from experiments.tables import Group, size_in_words
from han_tf.metrics.plots import save_figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933", "#000000")
"""Palettes of Okabe and Ito, and of Tol, which readers with any colour vision can distinguish."""

QUOTED = "#9a9a9a"


def picture_name(group: Group) -> str:
    """Returns the file name of a picture of one schedule's results; ``""`` if their experiment has none."""
    name, schedule = group.experiment.name, re.sub(r"\W+", "_", f"-{group.schedule}" if group.schedule else "")
    return f"{name}-{group.scale}-{group.epochs}epochs{schedule}.png" if name in PICTURES else ""


def draw(found: Sequence[Group], results: Sequence[Result], folder: Path) -> list[Path]:
    """Draws the pictures of an experiment's :func:`~experiments.tables.groups` into ``folder``; returns the files."""
    written = []
    for group in found:
        if name := picture_name(group):
            written.append(folder / name)
            save_figure(PICTURES[group.experiment.name](group, results), written[-1])
    return written


def feature_dimension(group: Group, results: Sequence[Result]) -> Figure:
    """Returns Fig. 6, and beside it accuracy and search time against the bytes of a feature."""
    searches = [result for result in results if result["kind"] == "search"]
    times = {row["dimension"]: 1e3 * row["seconds_per_query"] for result in searches for row in result["dimensions"]}
    figure = Figure(figsize=(15, 4.2 * len(group.columns)), layout="constrained")
    panels = figure.subplots(len(group.columns), 3, squeeze=False)
    for line, (column, shown) in zip(panels, group.columns.items()):
        readable = [row for row in group.experiment.rows if row.published[column] is not None]
        for place, (axes, metric) in enumerate(zip(line, METRICS)):
            curves: dict[str, dict[int, float]] = {}
            for index, row in enumerate(group.experiment.rows):
                if numbers := group.numbers(index, column, metric):
                    network = row.name.rsplit(" ", 1)[0]
                    curves.setdefault(network, {})[row.settings["feature_dim"]] = statistics.mean(numbers)
            _lines(axes, curves)
            if readable and not group.drawn:
                x = [row.settings["feature_dim"] for row in readable]
                y = [row.published[column][place] for row in readable]
                style = {"facecolors": "none", "edgecolors": QUOTED, "marker": "s"}
                axes.scatter(x, y, label="HAN (Large), as published", **style)
            axes.set(xlabel="feature dimension", ylabel=f"{metric} (%)", title=shown.title)
            axes.legend(loc="best")
        axes = line[2]
        _lines(axes, {name: {4 * n: y for n, y in curve.items()} for name, curve in curves.items()})  # of mAP
        axes.set(xlabel="bytes per identity (one float32 feature)", ylabel="mAP (%)", title=f"{shown.title}: its cost")
        if times:
            beside = axes.twinx()
            dimensions = sorted(times)
            style = {"color": QUOTED, "linestyle": "--", "marker": "x"}
            beside.plot([4 * n for n in dimensions], [times[n] for n in dimensions], **style)
            beside.set_ylabel(f"search time per query (ms), {searches[-1]['gallery']:,} features", color="#5f5f5f")
            beside.set_ylim(bottom=0)
    return figure


def cost_effectiveness(group: Group, results: Sequence[Result]) -> Figure:
    """Returns rank-1 and mAP against multiply-adds and against images per second, for each data set of the group."""
    networks = networks_by_name(results)
    figure = Figure(figsize=(14, 9 * len(group.columns)), layout="constrained")
    panels = figure.subplots(2 * len(group.columns), 2, squeeze=False)
    places = product(group.columns.items(), enumerate(METRICS))
    for (by_cost, by_speed), ((column, shown), (place, metric)) in zip(panels, places):
        source = "" if not group.drawn else f", {group.experiment.columns[column].title}"
        _quoted(by_cost, place, f"as published{source}")
        for row in group.experiment.rows:
            if (paper := row.published[column]) is not None:
                # The efficient networks' FLOPs are multiply-adds, like those of the other quoted methods.
                is_han = family(row.settings["model"]) == "han"
                style = {"facecolors": "none" if is_han else QUOTED, "marker": "s" if is_han else "o"}
                label = f"HAN as published{source} (a multiply-add is two FLOPs)" if is_han else None
                by_cost.scatter(
                    [published_flops(row.flops)], [paper[place]], edgecolors=QUOTED, s=24, label=label, **style
                )
        for index, row in enumerate(group.experiment.rows):
            numbers = group.numbers(index, column, metric)
            cost = networks.get(network_of(group.cells[index, column][0]["settings"])) if numbers else None
            if cost is not None:
                point = statistics.mean(numbers), row.name, COLOURS[index % len(COLOURS)]
                _point(by_cost, cost["macs"], *point)
                if "images_per_second" in cost:
                    _point(by_speed, cost["images_per_second"], *point)
        size = size_in_words(group.input_size)
        by_cost.set(
            xscale="log", xlabel=f"multiply-adds per image at {size}; quoted: as published, at their own input sizes"
        )
        by_speed.set(xlabel="images per second, measured here")
        for axes in (by_cost, by_speed):
            axes.set(ylabel=f"{metric} (%)", title=f"{shown.title}, {group.epochs} epochs")
            axes.grid(alpha=0.3)
            axes.margins(x=0.16)
    # Below the panels: in a panel it would cover points.
    labelled = dict(zip(*reversed(panels[0][0].get_legend_handles_labels())))
    figure.legend(labelled.values(), labelled, fontsize="small", loc="outside lower center", ncols=3)
    return figure


PICTURES = {"figure6": feature_dimension, "cost_effectiveness": cost_effectiveness}
"""Name of an experiment -> the function that draws it."""


def published_flops(text: str) -> Optional[float]:
    """Returns the number in printed FLOPs such as ``> 3.80e9``; None if there is none."""
    match = re.search(r"[\d.]+e\d+", text)
    return float(match[0]) if match else None


def _quoted(axes: Axes, place: int, label: str) -> None:
    """Draws the methods that Table 3 quotes, except those with re-ranking or random erasing."""
    exact, bounds = [], []
    for row in load("table3").rows:
        flops, number = published_flops(row.flops), row.published[0][place]
        plain = row.settings is None and "re-ranked" not in row.name and "erasing" not in row.name
        if plain and flops and number is not None:
            (bounds if row.flops[0] in ">≫" else exact).append((flops, number))
    axes.scatter(*zip(*exact), color=QUOTED, marker="o", s=24, label=label)
    axes.scatter(*zip(*bounds), color=QUOTED, marker=">", s=24, label=f"{label}, a lower bound of FLOPs")


def _point(axes: Axes, x: float, y: float, name: str, colour: str) -> None:
    axes.scatter([x], [y], color=colour, s=50, zorder=3)
    axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize="small")


def _lines(axes: Axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    for (name, curve), colour in zip(curves.items(), COLOURS):
        places = sorted(curve)
        axes.plot(places, [curve[x] for x in places], color=colour, marker="o", label=name)
    axes.grid(alpha=0.3)

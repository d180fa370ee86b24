"""Build experiments/RESULTS.md from the JSONs in experiments/results.

  python -m experiments.report
  python -m experiments.report --output elsewhere/RESULTS.md

Every number comes from a JSON. Prose stands in experiments/notes, one file per result or experiment, and takes its
numbers from the JSONs, too: {{NAME:path.to.entry:format}}, e.g. {{market1501-…-seed0:history.7.loss:.2f}}. Prose on an
experiment says which results it was written for; when there are others, this command asks to read it again.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

from absl import flags

from experiments import schema, tables
from experiments.plan import duration
from experiments.results import HERE, RESULTS, Result, command_of, load_results
from experiments.tables import machine_name, markdown_table, settings_in_words, short_commit
from han_tf import cli as command_line
from han_tf.errors import UserError
from han_tf.files import atomic_open
from han_tf.training.config import TrainConfig

with command_line.deferred_imports(__name__):
    from experiments import plots

NOTES = HERE / "notes"
SCALES = ("full", "synthetic")
"""What is reported; the smallest scale says only that the code runs."""

METRICS = {"rank-1": "rank-1", "rank-5": "rank-5", "rank-10": "rank-10", "rank-20": "rank-20", "mAP": "mAP"}
METRICS.update(mAP_trapezoid="mAP (trapezoid)", mINP="mINP")

_METHODS = {"augmented": "database augmentation", "expanded": "query expansion", "reranked": "re-ranking"}

EXACT_MILLION = "rerank-million, exact"
"""How the case begins that approximate neighbours are compared with."""

_WRITTEN_FOR = re.compile(r"<!-- written for (\w+) -->\n")
_PLACEHOLDER = re.compile(r"\{\{([^:{}]+):([^:{}]+)(?::([^{}]*))?\}\}")

FLAGS = command_line.new_flags()
flags.DEFINE_string("results_dir", str(RESULTS), "Where the JSONs are.", flag_values=FLAGS)
flags.DEFINE_string("notes_dir", str(NOTES), "Where the prose is.", flag_values=FLAGS)
flags.DEFINE_string("output", str(HERE / "RESULTS.md"), "The report; its pictures go beside it.", flag_values=FLAGS)


class Report:
    """Builds the report.

    Args:
      results: all there are.
      notes_dir: folder of the prose.
      output: the report's file.
      results_dir: where the results are, for the links.
    """

    def __init__(self, results: Sequence[Result], notes_dir: Path, output: Path, results_dir: Path):
        self.results = results
        self.notes_dir = notes_dir
        self.output = output
        self.results_dir = results_dir

    def text(self) -> str:
        """Returns the whole report; its pictures are :meth:`draw`'s."""
        sections = [_INTRODUCTION]
        experiments = [schema.load(name) for name in schema.names()]
        missing = []
        for experiment in experiments:
            section = self._experiment(experiment)
            if section:
                sections.append(section)
            else:
                missing.append(f"- {tables.heading(experiment)}: `make {experiment.name}`")
        if missing:
            sections.append("\n".join(["## Not run yet", "", *missing]))
        for heading, kind, render in (
            ("Runs in full", "training", self._training),
            ("Speed of the networks", "bench", _bench),
            ("Speed of the exported models", "runtimes", _runtimes),
            ("Speed of the metrics", "metrics_bench", self._metrics_bench),
            ("Search", "index_bench", _index_bench),
            ("The service under load", "service_bench", _service_bench),
        ):
            found = [result for result in self.results if result["kind"] == kind]
            if found:
                parts = [self._with_note(result.name, render(result)) for result in found]
                sections.append("\n\n".join([f"## {heading}", *([_RUNS] if kind == "training" else []), *parts]))
        sections += self._further_notes()
        sections.append(self._sources())
        return "\n\n".join(sections) + "\n"

    def _metrics_bench(self, result: Result) -> str:
        exact = [
            other
            for other in self.results
            if other["kind"] == "metrics_bench" and any(f["case"].startswith(EXACT_MILLION) for f in other["figures"])
        ]
        return _metrics_bench(result, exact[-1] if exact else None)

    def stale_notes(self) -> dict[Path, str]:
        """Returns the prose on experiments whose results are others by now -> the mark of those there are."""
        stale = {}
        for experiment in map(schema.load, schema.names()):
            path = self.notes_dir / f"{experiment.name}.md"
            if path.exists() and not isinstance(experiment, schema.Statistics):
                mark = self._mark(experiment)
                found = _WRITTEN_FOR.match(path.read_text(encoding="utf-8"))
                if found is None or found[1] != mark:
                    stale[path] = mark
        return stale

    def _mark(self, experiment: schema.Experiment) -> str:
        """Returns a word that changes with the numbers of the experiment's tables."""
        numbers = []
        for scale in SCALES:
            for group in tables.groups(experiment, scale, self.results, least_rows=_least_rows(experiment, scale)):
                for row, column in sorted(group.cells):
                    scores = [group.numbers(experiment, row, column, metric) for metric in schema.METRICS]
                    numbers.append([scale, group.epochs, group.model, row, column, scores])
        return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:8]

    def draw(self) -> None:
        """Draws the pictures that the report shows, into the folder ``figures`` beside it."""
        for experiment in map(schema.load, schema.names()):
            if not isinstance(experiment, schema.Statistics):
                for scale in SCALES:
                    least = _least_rows(experiment, scale)
                    plots.draw(experiment, scale, self.results, self.output.parent / "figures", least)

    def link(self, name: str, text: str = "") -> str:
        """Returns the Markdown link to a result, called ``text`` or else by its name."""
        folder = os.path.relpath(self.results_dir, self.output.parent)
        return f"[{text or name}]({quote(folder)}/{quote(name, safe='+')}.json)"

    def _experiment(self, experiment: schema.AnyExperiment) -> str:
        """Returns an experiment's section; empty if it has no result of its own."""
        if isinstance(experiment, schema.Statistics):
            if not any(result["kind"] == "statistics" for result in self.results):
                return ""
            return self._with_note(experiment.name, f"## {tables.render(experiment, '', self.results, self.link)}")
        parts = []
        for scale in SCALES:
            least = _least_rows(experiment, scale)
            if tables.groups(experiment, scale, self.results, least_rows=least):
                text = tables.render(experiment, scale, self.results, self.link, least_rows=least)
                _, _, body = text.partition("\n\n")
                parts.append(body)
                for name in plots.pictures(experiment, scale, self.results, least):
                    parts.append(f"![{tables.heading(experiment)}](figures/{quote(name)})")
        if experiment.sheet:
            sheets = sorted(plots.folder_of(self.results_dir).glob(f"{experiment.name}-*.png"))
            folder = os.path.relpath(plots.folder_of(self.results_dir), self.output.parent)
            parts += [f"![{sheet.stem}]({quote(folder)}/{quote(sheet.name)})" for sheet in sheets]
        costs_only = experiment.flops and not experiment.trains
        if not parts and costs_only and any(result["kind"] == "network" for result in self.results):
            _, _, body = tables.render(experiment, "full", self.results, self.link).partition("\n\n")
            parts.append(body)
        if not parts:
            return ""
        command = f"`make {experiment.name}`, or with `DATASET={experiment.columns[0].dataset}`."
        return self._with_note(experiment.name, "\n\n".join([f"## {tables.heading(experiment)}", command, *parts]))

    def _training(self, result: Result) -> str:
        settings = result["settings"]
        lines = []
        for row in result["results"]:
            method = [called for name, called in _METHODS.items() if row.get(name)]
            numbers = [f"{100 * row[metric]:.1f}" if metric in row else tables.NONE for metric in METRICS]
            lines.append([row["feature"], row["query"], ", ".join(method) or "plain", *numbers])
        counts = result["counts"]
        text = [f"### {result.name}"]
        if "apart" in result.data:
            text.append(f"In no table: {result['apart']}.")
        where = " ".join(filter(None, (settings["dataset"], settings["split"])))
        made = f"{settings['model']} on {where}, {settings_in_words(settings)}, seed {settings['seed']}"
        if settings["epochs"] != TrainConfig().epochs:
            made += f" (the paper: {TrainConfig().epochs} epochs)"
        trained = f"{result['train_images']:,} training images, " if result.get("train_images") else ""
        text.append(f"{made}. {trained}{_counts(counts)}")
        text.append(f"`{result.get('command') or command_of(settings)}`")
        text.append(f"{self._origin(result)}{_effort(result)}")
        text += [f"- {difference}" for difference in result.get("differences", [])]
        text.append(markdown_table(["feature", "query", "method", *METRICS.values()], lines, left=3))
        text += [_regions(result["regions"])] if "largest_mean" in (result.get("regions") or {}) else []
        return "\n\n".join(text)

    def _origin(self, result: Result) -> str:
        text = f"{self.link(result.name)}: commit {short_commit(result.get('commit'))}"
        if result.get("evaluation_commit"):
            text += f", evaluated at {short_commit(result['evaluation_commit'])}"
        return f"{text}; {result['date'][:10]}; {machine_name(result.get('machine'))}."

    def _with_note(self, name: str, text: str) -> str:
        path = self.notes_dir / f"{name}.md"
        if not path.exists():
            return text
        prose = _WRITTEN_FOR.sub("", path.read_text(encoding="utf-8"), count=1).strip()
        return f"{text}\n\n{fill(prose, self.results, str(path))}"

    def _further_notes(self) -> list[str]:
        """Returns the notes that are about no single result or experiment; they begin with a heading of their own."""
        known = {*(result.name for result in self.results), *schema.names()}
        paths = sorted(path for path in self.notes_dir.glob("*.md") if path.stem not in known)
        return [fill(path.read_text(encoding="utf-8").strip(), self.results, str(path)) for path in paths]

    def _sources(self) -> str:
        lines = []
        for result in self.results:
            settings = result.get("settings", {})
            told = settings_in_words(settings) if result["kind"] == "training" else ""
            lines.append(
                [
                    self.link(result.name),
                    result["kind"].replace("_", " "),
                    told,
                    short_commit(result.get("commit")),
                    machine_name(result.get("machine")),
                    (result.get("date") or "")[:10],
                ]
            )
        head = ["result", "kind", "setting", "commit", "machine", "date"]
        return f"## All results\n\n{markdown_table(head, lines, left=len(head))}"


def _least_rows(experiment: schema.Experiment, scale: str) -> int:
    """Returns of how many rows a table needs results: one row on drawn people compares with nothing."""
    return 1 if scale == "full" or experiment.sheet else 2


def fill(text: str, results: Sequence[Result], where: str) -> str:
    """Returns ``text`` with each {{NAME:path:format}} replaced by that entry of the result NAME.

    A path leads through objects by name and lists by index, with dots in between; a format is Python's.

    Raises:
      UserError: there is no such result or entry; ``where`` is named.
    """
    by_name = {result.name: result.data for result in results}

    def value(match: "re.Match[str]") -> str:
        name, path, form = match.groups()
        entry: Any = by_name.get(name)
        if entry is None:
            raise UserError(f"{where}: there is no result {name!r}, expected one of {', '.join(by_name)}")
        for step in path.split("."):
            try:
                entry = entry[int(step) if isinstance(entry, list) else step]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise UserError(f"{where}: {name} has no entry {path!r} (at {step!r})") from error
        return format(entry, form or "")

    return _PLACEHOLDER.sub(value, text)


_INTRODUCTION = """# Measured results

Built by `python -m experiments.report` from the JSON files in [results](results); do not edit it, every number in it is
one of theirs. [README.md](README.md) says how to run an experiment and how to add a result. Accuracies are in percent;
"mAP" is the mean precision at the hits, "mAP (trapezoid)" that of Market-1501's MATLAB code. Tables that hold results
of several commits say so. Networks trained on the real data sets are for research only."""

_RUNS = "Every training with all its numbers, those included that stand in no table of the paper."


def _counts(counts: dict[str, int]) -> str:
    return (
        f"{counts['queries']:,} queries, {counts['gallery'] - counts['junk']:,} gallery images "
        f"({counts['distractors']:,} of them distractors), {counts['junk']:,} junk images not ranked."
    )


def _effort(result: Result) -> str:
    told = []
    if result.get("seconds"):
        told.append(f"{duration(result['seconds'])} of training")
    if result.get("images_per_second"):
        told.append(f"{result['images_per_second']:.0f} img/s")
    if result.get("peak_mb"):
        told.append(f"at most {result['peak_mb']:.0f} MiB of memory")
    return f" {', '.join(told)}." if told else ""


def _regions(regions: dict[str, Any]) -> str:
    count = sum(map(len, regions["mean"]))
    return (
        f"Hard attention over the training images of the last epoch: {regions['saturated']} of {count} regions "
        f"saturated; largest mean |θ| {regions['largest_mean']:.2f}; every region's deviation over images is at "
        f"least {regions['least_deviation']:.3f} along one axis."
    )


def _bench(result: Result) -> str:
    product = result["product_flops"]
    lines = []
    for name, rates in result["networks"].items():
        # A training step goes forward once and backward twice, for the inputs and for the weights.
        line = [name]
        for what, passes in (("inference", 1), ("training", 3)):
            share = rates.get(f"{what}_of_product", passes * 2 * rates["macs"] * rates[what] / product)
            line += [f"{rates[what]:.0f} img/s", f"{share:.1%}"]
        lines.append(line)
    fastest = max(rates["training"] for rates in result["networks"].values())
    pipeline = result["pipeline"]
    times = float(f"{pipeline['cached'] / fastest:.2g}")
    return "\n\n".join(
        [
            f"### {result.name}",
            f"`python -m han_tf.bench`, float32 matrix product of the same run: {product / 1e9:.0f} GFLOP/s. "
            f"{_measured(result)}",
            markdown_table(["network", "inference", "of product", "training", "of product"], lines),
            f"The input pipeline alone delivers {pipeline['cached']:,.0f} img/s from the cache, "
            f"about {times:.0f} times the fastest training, and {pipeline['decoding']:,.0f} img/s from files.",
        ]
    )


def _runtimes(result: Result) -> str:
    lines = []
    for row in result["runtimes"]:
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f} MB"
        accuracy, difference = row.get("accuracy", {}), row.get("mAP_difference")
        lines.append(
            [
                row["format"],
                row["precision"],
                size,
                f"{row['decoded']:,.0f} img/s",
                f"{row['from_files']:,.0f} img/s",
                f"{row['single_ms']:.1f} ms",
                f"{100 * accuracy['rank-1']:.2f}" if accuracy else "",
                f"{100 * accuracy['mAP']:.2f}" if accuracy else "",
                "" if difference is None else f"{100 * difference:+.2f}",
            ]
        )
    datasets = sorted({row["accuracy"]["dataset"] for row in result["runtimes"] if "accuracy" in row})
    compared = (
        f" Accuracies on {', '.join(datasets)}; the last column is against the Keras network." if datasets else ""
    )
    origins = {True: "measured here", False: "scaled by the product"}
    bars = []
    for bar in result["bars"]:
        origin = f" ({bar['anchor']:.0f} img/s, {origins[bar['measured_here']]})" if "measured_here" in bar else ""
        missed = "" if bar["reached"] >= bar["factor"] else ", missed"
        bars.append(f"- {bar['reached']:.2f} times {bar['of']}{origin}; bar {bar['factor']:g}{missed}")
    busy = " Measured beside other work: processor time, shared by all cores, is counted." if result.get("busy") else ""
    head = ["format", "precision", "size", "decoded", "from files", "one image", "rank-1", "mAP", "mAP, difference"]
    return "\n\n".join(
        [
            f"### {result.name}",
            f"`python -m experiments.bench_runtimes`, float32 matrix product of the same run: "
            f"{result['product_flops'] / 1e9:.0f} GFLOP/s.{busy}{compared} {_measured(result)}",
            markdown_table(head, lines, left=2),
            "The fastest of them reaches:\n\n" + "\n".join(bars),
        ]
    )


def _metrics_bench(result: Result, exact: Optional[Result]) -> str:
    """Describes figures of the metrics.

    Args:
      result: the figures.
      exact: those with exact neighbours of a million, to compare approximate ones with; None if not measured.
    """
    lines = []
    notes = []
    for figure in result["figures"]:
        if figure["case"].startswith("rerank-million"):
            note = f"- {figure['case'].split(',')[1].strip()} neighbours of a million: mAP {100 * figure['mAP']:.2f} %"
            if exact is not None:
                reference = next(f["mAP"] for f in exact["figures"] if f["case"].startswith(EXACT_MILLION))
                note += f", {100 * (figure['mAP'] - reference):+.2f} points against exact ones"
            notes.append(note)
        seconds, bar = figure["seconds"], figure.get("bar_seconds")
        aim = "" if bar is None else f"{bar:.2f} s" + ("" if seconds <= bar else ", missed")
        memory_bar = figure.get("bar_megabytes")
        memory_aim = (
            ""
            if memory_bar is None
            else f"{memory_bar:.0f} MiB" + ("" if figure["megabytes"] <= memory_bar else ", missed")
        )
        lines.append([figure["case"], f"{seconds:.2f} s", aim, f"{figure['megabytes']:.0f} MiB", memory_aim])
    products = [figure["product_gflops"] for figure in result["figures"] if "product_gflops" in figure]
    product = f", float32 matrix product of the same run: {products[0]:.0f} GFLOP/s" if products else ""
    return "\n\n".join(
        [
            f"### {result.name}",
            f"`python -m experiments.bench_metrics`, features made from a seed{product}. {_measured(result)}",
            markdown_table(["case", "time", "aim", "memory above the features", "aim"], lines),
            *(["\n".join(notes)] if notes else []),
        ]
    )


def _index_bench(result: Result) -> str:
    lines = []
    for figure in result["figures"]:
        threads = sorted(int(key.split("_")[2]) for key in figure if key.startswith("p50_ms_"))
        latencies = [f"{figure[f'p50_ms_{n}_threads']:.2f} / {figure[f'p99_ms_{n}_threads']:.2f}" for n in threads]
        speedup = figure.get("times_faster_than_flat")
        lines.append(
            [
                f"{figure['rows']:,} × {figure['dimension']:,}",
                figure["engine"],
                f"{figure['recall_at_10']:.4f}",
                latencies[0],
                latencies[-1],
                "" if speedup is None else f"{speedup:.0f}",
                f"{figure['memory_mb']:.0f} MiB",
                f"{figure['mapped_mb']:.0f} MiB",
                f"{figure['build_cpu_seconds']:.0f} s",
            ]
        )
    head = ["vectors", "engine", "recall@10", "1 thread, ms p50 / p99", "all threads", "times flat"]
    head += ["memory", "mapped files", "processor time to build"]
    product = result["figures"][0]["product_gflops"]
    return "\n\n".join(
        [
            f"### {result.name}",
            f"`python -m experiments.bench_indexes --folder DIR`, features made from a seed, single queries; float32 "
            f"matrix product of the same run: {product:.0f} GFLOP/s. {_measured(result)}",
            markdown_table(head, lines, left=2),
        ]
    )


def _service_bench(result: Result) -> str:
    whole, *kinds = result["figures"]
    lines = [
        [
            figure["case"],
            f"{figure['per_second']:.1f}/s",
            f"{figure['p50_ms']:.0f} ms" if "p50_ms" in figure else "",
            f"{figure['p99_ms']:.0f} ms" if "p99_ms" in figure else "",
            ", ".join(f"{count:,} × {status}" for status, count in sorted(figure["statuses"].items())),
        ]
        for figure in (whole, *kinds)
    ]
    memory = whole["memory_mb"]
    return "\n\n".join(
        [
            f"### {result.name}",
            f"`python -m experiments.bench_service`: {whole['clients']} clients for {whole['seconds']:.0f} s "
            f"on a gallery of {whole['gallery']:,}, clients and service on the same {whole['cores']} cores; float32 "
            f"matrix product of the same run: {whole['product_gflops']:.0f} GFLOP/s. {_measured(result)}",
            markdown_table(["requests", "answered", "p50", "p99", "answers"], lines),
            f"Memory of the service at the start, half-way and at the end: {memory['start']:.0f}, "
            f"{memory['middle']:.0f} and {memory['end']:.0f} MiB.",
        ]
    )


def _measured(result: Result) -> str:
    date: Optional[str] = result.get("date")
    return f"Commit {short_commit(result.get('commit'))}; {(date or '')[:10]}; {machine_name(result.get('machine'))}."


def main(values: flags.FlagValues) -> None:
    """Builds the report that the flags ask for."""
    results_dir, output = Path(values.results_dir), Path(values.output)
    report = Report(load_results(results_dir), Path(values.notes_dir), output, results_dir)
    text = report.text()
    report.draw()
    with atomic_open(output) as stream:
        stream.write(text.encode("utf-8"))
    print(f"written to {output}")
    for path, mark in report.stale_notes().items():
        print(
            f"note: {path} was written for other results: read it again, then begin it with <!-- written for {mark} -->"
        )


def cli() -> None:
    """Runs the command line."""
    sys.exit(command_line.run(main, FLAGS, __doc__))


if __name__ == "__main__":
    cli()

"""Build experiments/RESULTS.md from the JSONs in experiments/results.

  python -m experiments.report
  python -m experiments.report --output elsewhere/RESULTS.md

Every number comes from a JSON. Prose stands in experiments/notes, one file per section or result, and takes its
numbers from the JSONs, too: {{NAME:path.to.entry:format}}, e.g. {{market1501-…-seed0:history.7.loss:.2f}}.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

from absl import flags

from experiments import schema, tables
from experiments.plan import family
from experiments.results import HERE, RESULTS, Result, load_results, score
from experiments.tables import machine_name, markdown_table, scientific, settings_in_words, short_commit
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open

with command_line.deferred_imports(__name__):
    from experiments import plots

NOTES = HERE / "notes"

EXACT_MILLION = "rerank-million, exact"
"""How the case begins that approximate neighbours are compared with."""

_SCORES = (
    ("rank-1", "joint", "single", False, "rank-1"),
    ("mAP", "joint", "single", False, "mAP"),
    ("multi-query", "joint", "multi", False, "rank-1"),
    ("mAP", "joint", "multi", False, "mAP"),
    ("re-ranked", "joint", "single", True, "rank-1"),
    ("mAP", "joint", "single", True, "mAP"),
    ("global", "global", "single", False, "rank-1"),
    ("local", "local", "single", False, "rank-1"),
)
"""The columns of the first tables: title, then what :func:`experiments.results.score` is asked for."""

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
        sections = [_INTRODUCTION, *self._accuracy(), *self._further_notes(), *self._costs()]
        sections += filter(None, map(self._experiment, map(schema.load, schema.names())))
        for heading, kind, render in (
            ("Speed of the networks", "bench", _bench),
            ("Speed of the exported models", "runtimes", _runtimes),
            ("Speed of the metrics", "metrics_bench", self._metrics_bench),
            ("Search", "index_bench", _index_bench),
            ("The service under load", "service_bench", _service_bench),
            ("Kills, faults and damaged inputs", "chaos", _chaos),
            ("Statistics of batch norm", "norm", _norm),
        ):
            found = self._of_kind(kind)
            if found:
                parts = [self._with_note(result.name, render(result)) for result in found]
                sections.append("\n\n".join([f"## {heading}", *parts]))
        return "\n\n".join(sections) + "\n"

    def draw(self) -> None:
        """Draws the pictures that the report shows, into the folder ``figures`` beside it."""
        for experiment in map(schema.load, schema.names()):
            if self._groups(experiment):
                plots.draw(experiment, "full", self.results, self.output.parent / "figures", least_rows=2)

    def link(self, name: str, text: str = "") -> str:
        """Returns the Markdown link to a result, called ``text`` or else by its name."""
        folder = os.path.relpath(self.results_dir, self.output.parent)
        return f"[{text or name}]({quote(folder)}/{quote(name, safe='+')}.json)"

    def _of_kind(self, kind: str) -> list[Result]:
        return [result for result in self.results if result["kind"] == kind]

    def _accuracy(self) -> list[str]:
        """Returns a table of all trainings on real people beside the paper's HANs, and one of those on drawn people."""
        trainings = self._of_kind("training")
        head = ["training", "data set", *(title for title, *_ in _SCORES)]
        sections = []
        for name, heading, mine in (
            ("accuracy", "Accuracy on real people", [r for r in trainings if r["settings"]["dataset"] != "synthetic"]),
            ("embedded", "Accuracy on drawn people", [r for r in trainings if r["settings"]["dataset"] == "synthetic"]),
        ):
            mine = sorted(mine, key=lambda result: score(result, *_SCORES[1][1:]) or 0, reverse=True)
            lines = [self._scores(result) for result in mine]
            if name == "accuracy" and mine:
                lines = [*_published(), *lines]
            if lines:
                apart = [f"- {self.link(r.name)}: {r['apart']}." for r in mine if "apart" in r.data]
                sections.append(
                    self._with_note(name, "\n\n".join([f"## {heading}", markdown_table(head, lines, 2), *apart]))
                )
        return sections

    def _scores(self, result: Result) -> list[str]:
        settings = result["settings"]
        numbers = [score(result, *wanted) for _, *wanted in _SCORES]
        where = " ".join(filter(None, (settings["dataset"], settings["split"])))
        told = f"{settings['model']}, {settings_in_words(settings)}"
        return [self.link(result.name, told), where, *(tables.NONE if n is None else f"{n:.1f}" for n in numbers)]

    def _costs(self) -> list[str]:
        """Returns the networks' costs beside those that the paper prints."""
        printed: dict[str, str] = {}
        for experiment in map(schema.load, schema.names()):
            for row in getattr(experiment, "rows", ()) if isinstance(experiment, schema.Experiment) else ():
                if row.settings is not None and row.flops:
                    printed.setdefault(row.settings["model"], row.flops)
        lines = []
        counted = self._of_kind("network")
        for result in counted:
            model = result["settings"]["model"]
            ours, paper = result["flops"] if family(model) == "han" else result["macs"], printed.get(model, tables.NONE)
            error = f" ({ours / float(paper) - 1:+.1%})" if family(model) == "han" else ""
            speed = result.get("images_per_second")
            lines.append(
                [
                    self.link(result.name, model),
                    f"{scientific(ours)} / {paper}{error}",
                    scientific(result["macs"]),
                    f"{result['parameters']:,}",
                    tables.NONE if speed is None else f"{speed:.0f}",
                ]
            )
        if not lines:
            return []
        head = ["network", "FLOPs / the paper's", "multiply-adds", "parameters", "img/s"]
        parts = ["## What the networks cost", markdown_table(head, lines), f"{tables.made(*counted)}."]
        return [self._with_note("costs", "\n\n".join(parts))]

    def _groups(self, experiment: schema.AnyExperiment) -> list[tables.Group]:
        """Returns the schedules under which a table's rows can be compared: all, or those of several trainings."""
        if isinstance(experiment, schema.Statistics):
            return []
        own = sum(row.settings is not None for row in experiment.rows)
        found = tables.groups(experiment, "full", self.results, least_rows=2)
        return [g for g in found if len(g.results()) > 1 or len({row for row, _ in g.cells}) == own]

    def _experiment(self, experiment: schema.AnyExperiment) -> str:
        """Returns an experiment's section; empty if it has no result that says something."""
        if isinstance(experiment, schema.Statistics):
            shown = bool(self._of_kind("statistics"))
        else:
            shown = bool(self._groups(experiment))
        if not shown:
            return ""
        text = tables.render(experiment, "full", self.results, self.link, least_rows=2)
        pictures = plots.pictures(experiment, "full", self.results, least_rows=2)
        drawn = [f"![{tables.heading(experiment)}](figures/{quote(name)})" for name in pictures]
        return self._with_note(experiment.name, "\n\n".join([f"## {text}", *drawn]))

    def _metrics_bench(self, result: Result) -> str:
        exact = [
            r for r in self._of_kind("metrics_bench") if any(f["case"].startswith(EXACT_MILLION) for f in r["figures"])
        ]
        return _metrics_bench(result, exact[-1] if exact else None)

    def _with_note(self, name: str, text: str) -> str:
        path = self.notes_dir / f"{name}.md"
        if not path.exists():
            return text
        return f"{text}\n\n{fill(path.read_text(encoding='utf-8').strip(), self.results, str(path))}"

    def _further_notes(self) -> list[str]:
        """Returns the notes that are about no single section; they begin with a heading of their own."""
        known = {*SECTIONS, *(result.name for result in self.results), *schema.names()}
        paths = sorted(path for path in self.notes_dir.glob("*.md") if path.stem not in known)
        return [fill(path.read_text(encoding="utf-8").strip(), self.results, str(path)) for path in paths]


SECTIONS = ("accuracy", "embedded", "costs")
"""Sections of the report that a note may be on, beside those of results and experiments."""


def _published() -> Iterable[list[str]]:
    """Yields the rows of the paper's HANs on Market-1501."""
    rows = {row.name: row.published for row in schema.load("table3").rows}
    halves = {row.feature: row.published[0][0] for row in schema.load("table8").rows}
    for size in ("Small", "Medium", "Large"):
        single, multi = rows[f"HAN ({size})"]
        reranked, _ = rows[f"HAN ({size}), re-ranked"]
        branches = [halves["global"], halves["local"]] if size == "Large" else [None, None]
        numbers = [*single, *multi, *reranked, *branches]
        told = [tables.NONE if number is None else f"{number:.1f}" for number in numbers]
        yield [f"**the paper's HAN ({size})**, 300 epochs", "market1501", *told]


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

`python -m experiments.report` builds this page from the JSON files in [results](results); every number on it is one of
theirs. They also hold each result's settings, command, commit and machine. Accuracies are in percent; mAP is the mean
precision at the hits. [README.md](README.md) says how to run an experiment and how to add a result. Networks trained on
real data sets are for research only."""


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


def _norm(result: Result) -> str:
    lines = [[f["statistics"], f"{100 * f['rank-1']:.1f}", f"{100 * f['mAP']:.1f}"] for f in result["figures"]]
    height, width = result["input_size"]
    return "\n\n".join(
        [
            f"### {result.name}",
            f"`python -m experiments.bench_norm` on {result['model']}, {result['dataset']}, {height}×{width}, "
            f"{result['epochs']} epochs; {result['batches']} batches of training images. {_measured(result)}",
            markdown_table(["statistics", "rank-1", "mAP"], lines),
        ]
    )


def _chaos(result: Result) -> str:
    def rows(part: str, names: Sequence[str]) -> list[list[str]]:
        figures = [figure for figure in result["figures"] if figure["part"] == part]
        return [
            [figure["case"], *(f"{figure.get(name, 0):,}" for name in names), f"{len(figure['faults']):,}"]
            for figure in figures
        ]

    disturbed = ["kill", "disk full", "EIO, write", "EIO, read", "compared", *("lost", "doubled", "differing")]
    skipped = f"{result['skipped']}. " if result["skipped"] else ""
    parts = [
        f"### {result.name}",
        f"`make chaos`, seed {result['seed']}, {result['minutes']:.0f} min without the load. {skipped}"
        f"{_measured(result)}",
    ]
    if kills := rows("kills", [*disturbed, "unreadable"]):
        parts.append(markdown_table(["disturbed", *disturbed, "unreadable", "other faults"], kills))
    if fuzz := rows("fuzz", ["inputs", "read", "refused", "peak_mb"]):
        parts.append(markdown_table(["damaged", "inputs", "read", "refused", "MiB more, at most", "faults"], fuzz))
    for load in (figure for figure in result["figures"] if figure["part"] == "load" and "statuses" in figure):
        memory = load["memory_mb"]
        answers = ", ".join(f"{count:,} × {status}" for status, count in sorted(load["statuses"].items()))
        parts.append(
            f"{load['clients']} clients for {load['seconds'] / 60:.0f} min (load average {load['load_average']:.0f}): "
            f"{answers}, {len(load['faults'])} faults. Memory of the service at the start, half-way and at the end: "
            f"{memory['start']:.0f}, {memory['middle']:.0f} and {memory['end']:.0f} MiB."
        )
    return "\n\n".join(parts)


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


def cli() -> None:
    """Runs the command line."""
    sys.exit(command_line.run(main, FLAGS, __doc__))


if __name__ == "__main__":
    cli()

"""Build experiments/RESULTS.md from the JSONs in experiments/results.

  python -m experiments.report
  python -m experiments.report --output elsewhere/RESULTS.md

Every number comes from a JSON. Prose is in experiments/notes, one file per section or result; its numbers are written
as {{NAME:path.to.entry:format}}, e.g. {{market1501-…-seed0:loss.7:.2f}}.
"""

import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from experiments import bench_sections, schema, tables
from experiments.results import HERE, RESULTS, Result, load_results, reading, score, shown_trainings
from experiments.tables import NONE, markdown_table, settings_in_words
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open

with command_line.deferred_imports(__name__):
    from experiments import plots

NOTES = HERE / "notes"

HEADINGS = {"accuracy": "Accuracy on real people", "embedded": "Accuracy on drawn people"}
SECTIONS = ("summary", *HEADINGS, "costs")
"""Sections that may have a note, beside those of results and experiments; the summary follows the introduction."""

SCORES = (
    ("rank-1", "joint", "single", False, "rank-1"),
    ("mAP", "joint", "single", False, "mAP"),
    ("multi-query", "joint", "multi", False, "rank-1"),
    ("mAP", "joint", "multi", False, "mAP"),
    ("re-ranked", "joint", "single", True, "rank-1"),
    ("mAP", "joint", "single", True, "mAP"),
    ("global", "global", "single", False, "rank-1"),
    ("local", "local", "single", False, "rank-1"),
)
"""The columns of the first tables: title, then arguments of :func:`experiments.results.score`."""

PLACEHOLDER = re.compile(r"\{\{([^:{}]+):([^:{}]+)(?::([^{}]*))?\}\}")

INTRODUCTION = """# Measured results

`python -m experiments.report` builds this page from the JSON files in [results](results); every measured number on it
is one of theirs. They also hold each result's settings, command, commit and machine. Accuracies are in percent; mAP is
the mean precision at the hits. [README.md](README.md) says how to run an experiment and how to add a result. Networks
trained on real data sets are for research only."""

FLAGS = command_line.Flags()
FLAGS.string("results_dir", str(RESULTS), "Where the JSONs are.")
FLAGS.string("notes_dir", str(NOTES), "Where the prose is.")
FLAGS.string("output", str(HERE / "RESULTS.md"), "The report; its pictures go beside it.")


class Report(NamedTuple):
    """Builds the report."""

    results: Sequence[Result]
    notes_dir: Path  # folder of the prose
    output: Path  # the report's file
    results_dir: Path  # folder of the results, for the links

    def text(self) -> str:
        """Returns the whole report; its pictures are :meth:`draw`'s."""
        sections = [self._with_note("summary", INTRODUCTION), *map(self._accuracy, HEADINGS)]
        sections += [*self._further_notes(), self._costs()]
        sections += map(self._experiment, map(schema.load, schema.names()))
        sections += map(self._benchmarks, bench_sections.SECTIONS)
        return "\n\n".join(filter(None, sections)) + "\n"

    def draw(self) -> None:
        """Draws the pictures that the report shows, into the folder ``figures`` beside it."""
        for experiment in map(schema.load, schema.names()):
            found = tables.groups(experiment, "full", self.results, comparable=True)
            plots.draw(found, self.results, self.output.parent / "figures")

    def check_each(self) -> None:
        """Raises UserError if the file of a single result is damaged, so that no table can be made of it."""
        for result in self.results:
            with reading(self.results_dir / f"{result.name}.json"):
                self._replace(results=[result], notes_dir=Path(os.devnull)).text()
                for experiment in map(schema.load, schema.names()):
                    tables.render(experiment, "full", [result], tables.groups(experiment, "full", [result]))

    def link(self, name: str, text: str = "") -> str:
        """Returns the Markdown link to a result, called ``text`` or else by its name."""
        folder = os.path.relpath(self.results_dir, self.output.parent)
        return f"[{text or name}]({quote(folder)}/{quote(name, safe='+')}.json)"

    def _of_kind(self, kind: str) -> list[Result]:
        return [result for result in self.results if result["kind"] == kind]

    def _accuracy(self, name: str) -> str:
        """Returns a table of the trainings on real people beside the paper's HANs, or of those on drawn people."""
        drawn = name == "embedded"
        mine = [r for r in self._of_kind("training") if (r["settings"]["dataset"] == "synthetic") == drawn]
        if not mine:
            return ""
        mine.sort(key=lambda result: score(result, *SCORES[1][1:]) or 0, reverse=True)
        head = ["training", "data set", *(title for title, *_ in SCORES)]
        lines = [*([] if drawn else _published()), *map(self._scores, shown_trainings(mine))]
        apart: dict[str, list[str]] = {}
        for result in mine:
            if "apart" in result:
                apart.setdefault(result["apart"], []).append(self.link(result.name))
        told = [f"- {', '.join(links)}: {why}." for why, links in apart.items()]
        parts = [f"## {HEADINGS[name]}", markdown_table(head, lines, 2), "\n".join(told)]
        return self._with_note(name, *filter(None, parts))

    def _scores(self, result: Result) -> list[str]:
        settings = result["settings"]
        where = " ".join(filter(None, (settings["dataset"], settings["split"])))
        told = f"{settings['model']}, {settings_in_words(settings, result.name)}"
        numbers = [score(result, *wanted) for _, *wanted in SCORES]
        return [self.link(result.name, told), where, *map(tables.one_digit, numbers)]

    def _costs(self) -> str:
        """Returns the networks' costs beside those that the paper prints."""
        rows = [row for name in schema.names() for row in schema.load(name).rows]
        # If several tables print a network's FLOPs, the first counts.
        printed = {row.settings["model"]: row.flops for row in reversed(rows) if row.settings is not None and row.flops}
        counted, lines = self._of_kind("network"), []
        for result in counted:
            model = result["settings"]["model"]
            lines.append([self.link(result.name, model), *tables.cost_cells(model, printed.get(model, NONE), result)])
        if not lines:
            return ""
        table = markdown_table(["network", "FLOPs / the paper's", "multiply-adds", "parameters", "img/s"], lines)
        return self._with_note("costs", "## What the networks cost", table, f"{tables.made(*counted)}.")

    def _experiment(self, experiment: schema.Experiment) -> str:
        """Returns an experiment's section; empty if it has no results to compare."""
        found = tables.groups(experiment, "full", self.results, comparable=True)
        if not found and not (experiment.counts and self._of_kind("statistics")):
            return ""
        text = tables.render(experiment, "full", self.results, found, self.link)
        pictures = filter(None, map(plots.picture_name, found))
        drawn = [f"![{tables.heading(experiment)}](figures/{quote(name)})" for name in pictures]
        return self._with_note(experiment.name, f"## {text}", *drawn)

    def _benchmarks(self, kind: str) -> str:
        """Returns the section on all results of a kind; empty if there are none."""
        heading, render = bench_sections.SECTIONS[kind]
        parts = []
        for result in self._of_kind(kind):
            about, *paragraphs = render(result, self.results)
            date, commit = (result.get("date") or "")[:10], tables.short_commit(result.get("commit"))
            about += f" Commit {commit}; {date}; {tables.machine_name(result.get('machine'))}."
            parts.append(self._with_note(result.name, f"{self.link(result.name)}: {about}", *paragraphs))
        return "\n\n".join([f"## {heading}", *parts]) if parts else ""

    def _with_note(self, name: str, *paragraphs: str) -> str:
        path = self.notes_dir / f"{name}.md"
        return "\n\n".join([*paragraphs, *([self._note(path)] if path.exists() else [])])

    def _further_notes(self) -> list[str]:
        """Returns the notes on no single section or result; each begins with its own heading."""
        known = {*SECTIONS, *(result.name for result in self.results), *schema.names()}
        return [self._note(path) for path in sorted(self.notes_dir.glob("*.md")) if path.stem not in known]

    def _note(self, path: Path) -> str:
        return fill(path.read_text(encoding="utf-8").strip(), self.results, str(path))


def _published() -> Iterable[list[str]]:
    """Yields the rows of the paper's HANs on Market-1501, without and with random erasing."""
    rows = {row.name: row.published for row in schema.load("table3").rows}
    halves = {row.feature: row.published[0][0] for row in schema.load("table8").rows}
    for erasing, size in itertools.product(("", ", erasing"), ("Small", "Medium", "Large")):
        single, multi = rows[f"HAN ({size}){erasing}"]
        reranked, _ = rows[f"HAN ({size}){erasing}, re-ranked"]
        branches = [halves["global"], halves["local"]] if size == "Large" and not erasing else [None, None]
        numbers = map(tables.one_digit, [*single, *multi, *reranked, *branches])
        yield [f"**the paper's HAN ({size})**, 300 epochs{erasing}", "market1501", *numbers]


def fill(text: str, results: Sequence[Result], where: str) -> str:
    """Returns ``text`` with each {{NAME:path:format}} replaced by that entry of the result NAME.

    A path consists of names of objects' entries and indices of lists, with dots in between; a format is Python's.

    Raises:
      UserError: there is no such result or entry, or the format does not fit it; the message names ``where``.
    """
    by_name = {result.name: result for result in results}

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
        try:
            return format(entry, form or "")
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {name}'s {path} cannot be written as {form!r} ({error})") from error

    return PLACEHOLDER.sub(value, text)


def main(values: command_line.Flags) -> None:
    """Builds the report as the flags say."""
    results_dir, output = Path(values.results_dir), Path(values.output)
    report = Report(load_results(results_dir), Path(values.notes_dir), output, results_dir)
    try:
        text = report.text()
        report.draw()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        report.check_each()
        raise
    with atomic_open(output) as stream:
        stream.write(text.encode("utf-8"))
    print(f"written to {output}")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))

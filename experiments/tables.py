"""Markdown tables in the paper's layout: our results beside the paper's, and whether the orders of rows agree."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple, Optional

from experiments.plan import SCALES, SCHEDULE, family, network_of, networks_by_name, settings_for, shown_columns
from experiments.results import Result, identity, score, settings_of, shown_trainings
from experiments.schema import METRICS, Column, Experiment
from han_tf.training.config import CROSS_ENTROPY, DEFAULTS, NAMED, RECIPES, TrainConfig

NONE = "–"
"""Shown in place of a missing number."""

SHOWN_PAIRS = 4
"""Most pairs of rows in another order than the paper's that are listed singly."""

PUBLISHED_EPOCHS = DEFAULTS["epochs"]

Link = Callable[[str, str], str]
"""Called with a result's name and the link's text; returns Markdown."""


class Group(NamedTuple):
    """The results of an experiment under one schedule.

    ``cells`` maps indices into the experiment's rows and columns to results, one per seed.
    """

    experiment: Experiment
    scale: str  # a key of plan.SCALES
    epochs: int  # of all its trainings
    model: str  # the network in place of the table's one; "" for none
    columns: Mapping[int, Column]  # those that have results, by their index among the paper's
    cells: Mapping[tuple[int, int], Sequence[Result]]
    schedule: str = ""  # what else the trainings have in common and the paper has not, in words

    @property
    def drawn(self) -> bool:
        """Whether a drawn data set replaces those of the paper, so that only orders can be compared."""
        return SCALES[self.scale].dataset is not None

    def numbers(self, row: int, column: int, metric: str) -> list[float]:
        """Returns one number in percent for each seed."""
        query, of_row = self.columns[column].query, self.experiment.rows[row]
        results = self.cells.get((row, column), ())
        return [score(result, of_row.feature, query, of_row.reranked, metric) for result in results]

    def published(self, row: int, column: int) -> tuple[Optional[float], Optional[float]]:
        """Returns the paper's rank-1 and mAP."""
        return self.experiment.rows[row].published[column] or (None, None)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images of its trainings; those of the scale if there is none."""
        settings = {**DEFAULTS, **SCALES[self.scale].settings}
        settings.update(*(result["settings"] for result in self.results()[:1]))
        return settings["input_height"], settings["input_width"]

    def results(self) -> list[Result]:
        """Returns every result once."""
        by_name = {result.name: result for found in self.cells.values() for result in found}
        return [by_name[name] for name in sorted(by_name)]


def groups(
    experiment: Experiment, scale: str, results: Sequence[Result], model: str = "", comparable: bool = False
) -> list[Group]:
    """Returns a table's results, one group per schedule, those with the most epochs first.

    If an ablation has no result of its own network, the results of related networks are returned.

    Args:
      experiment: the table.
      scale, model: see :class:`Group`.
      results: all results.
      comparable: leave out groups in which nothing can be compared: those with one row, or with one training that does
        not give all rows.
    """
    trainings = shown_trainings(results)
    found = [group for group in _groups(experiment, scale, trainings, model) if not comparable or _compares(group)]
    if found or model or not experiment.model or experiment.sheet:
        return found
    models = {result["settings"]["model"] for result in trainings}
    related = sorted(model for model in models - {experiment.model} if family(model) == family(experiment.model))
    return [group for model in related for group in groups(experiment, scale, results, model, comparable)]


def _compares(group: Group) -> bool:
    rows = {row for row, _ in group.cells}
    own = sum(row.settings is not None for row in group.experiment.rows)
    return len(rows) > 1 and (len(group.results()) > 1 or len(rows) == own)


def _groups(experiment: Experiment, scale: str, trainings: Sequence[Result], model: str) -> list[Group]:
    shown = shown_columns(experiment, scale)
    rows = [(index, row) for index, row in enumerate(experiment.rows) if row.settings is not None]
    identities = [identity(result["settings"]) for result in trainings]
    found: dict[tuple[int, str], dict[tuple[int, int], list[Result]]] = {}
    for (row_index, row), (column_index, column) in product(rows, shown.items()):
        expected = dict(identity(settings_for(row, column, scale, model)))
        for result, own in zip(trainings, identities):
            settings = result["settings"]
            differing = {name for name, value in own if value != expected[name]} - {"seed"}
            is_shown = score(result, row.feature, column.query, row.reranked, METRICS[0]) is not None
            if is_shown and differing <= {*SCHEDULE} - row.settings.keys():
                changed = {name: settings[name] for name in differing}
                if CROSS_ENTROPY not in settings.get("loss", DEFAULTS["loss"]):
                    # It has none, but its schedule is that of the rows with the recipe's label smoothing.
                    recipe = RECIPES.get(settings.get("recipe", ""), {})
                    changed["label_smoothing"] = recipe.get("label_smoothing", DEFAULTS["label_smoothing"])
                schedule = settings_in_words({**DEFAULTS, **changed}, result.name)
                key = (settings["epochs"], schedule.partition(", ")[2])
                found.setdefault(key, {}).setdefault((row_index, column_index), []).append(result)
    made = []
    for (epochs, schedule), cells in sorted(found.items(), key=lambda pair: (-pair[0][0], pair[0][1])):
        used = {column for _, column in cells}
        columns = {index: column for index, column in shown.items() if index in used}
        made.append(Group(experiment, scale, epochs, model, columns, cells, schedule))
    return made


def render(
    experiment: Experiment,
    scale: str,
    results: Sequence[Result],
    found: Sequence[Group],
    link: Link = lambda name, text: text,
) -> str:
    """Returns an experiment's heading and a table for each of its groups ``found``, with notes on how to read them.

    Without groups the table has only the paper's numbers.
    """
    if experiment.counts:
        parts = _statistics(experiment, results, link)
    else:
        found = found or [Group(experiment, scale, 0, "", shown_columns(experiment, scale), {})]
        parts = [_render_group(group, results, link) for group in found]
    return "\n\n".join([heading(experiment), *parts])


def heading(experiment: Experiment) -> str:
    """Returns an experiment's heading, e.g. ``Table 9: Evaluating different types of attention``."""
    word, number = experiment.name.rstrip("0123456789"), experiment.name.lstrip("abcdefghijklmnopqrstuvwxyz_")
    return f"{word.capitalize()} {number}: {experiment.title}" if number else experiment.title


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """Returns a Markdown table whose first ``left`` columns are aligned to the left and the others to the right."""
    rows = [head, [*["---"] * left, *["---:"] * (len(head) - left)], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def mean_and_deviation(numbers: Sequence[float]) -> str:
    """Returns ``90.2``, or ``90.2 ± 0.3`` of several numbers (sample deviation), or :data:`NONE`."""
    if not numbers:
        return NONE
    mean = f"{statistics.mean(numbers):.1f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.1f}"


def order_agreement(names: Sequence[str], ours: Sequence[Sequence[float]], theirs: Sequence[float]) -> str:
    """Returns a sentence on how many pairs of rows have the paper's order.

    It lists the other pairs or, if they are more than :data:`SHOWN_PAIRS`, our order of all rows. Pairs that are equal
    in the paper have no order and do not count; equal means of ours do not agree. Pairs with several seeds are counted
    a second time if they are clear, that is, if every seed of one row is above every seed of the other. ``ours`` has a
    number per seed for each of the rows ``names``, ``theirs`` the paper's number.
    """
    means = [statistics.mean(numbers) for numbers in ours]
    pairs = [(a, b) for a, b in permutations(range(len(names)), 2) if theirs[a] > theirs[b]]
    if not pairs:
        return "the paper has no order"
    against = [f"{names[a]} not above {names[b]}" for a, b in pairs if means[a] <= means[b]]
    text = f"{len(pairs) - len(against)} of {len(pairs)} pairs of rows in the paper's order"
    several = [(ours[a], ours[b]) for a, b in pairs if max(len(ours[a]), len(ours[b])) > 1]
    agreeing = sum(min(a) > max(b) for a, b in several)
    clear = agreeing + sum(max(a) < min(b) for a, b in several)
    text += f"; of the {clear} in which the seeds do not overlap, {agreeing}" if several else ", one seed each"
    if len(against) > SHOWN_PAIRS:
        order = sorted(range(len(names)), key=lambda index: -means[index])
        return f"{text} (ours from the best down: {', '.join(names[index] for index in order)})"
    return text + (f" (against it: {'; '.join(against)})" if against else "")


def origin(results: Sequence[Result], link: Link) -> str:
    """Returns a table's results, commits and machines in words, with a warning if commits differ."""
    text = f"Results: {_named(results, link)}. {made(*results)}."
    if any(result.get("differences") for result in results):
        text += " **A data set differs from the published one**, see its run."
    if len({result.get("commit") for result in results}) > 1:
        text += " **The rows come from different commits**: what changed between them may explain a difference."
    return text


def made(*results: Result) -> str:
    """Returns dates, commits and machines of results, in words."""
    dates = sorted({result["date"][:10] for result in results if result.get("date")})
    commits = [short_commit(commit) for commit in dict.fromkeys(result.get("commit") for result in results)]
    told = [" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else []
    told.append(f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}")
    return "; ".join([*told, *dict.fromkeys(machine_name(result.get("machine")) for result in results)])


def _named(results: Iterable[Result], link: Link) -> str:
    """Returns the results' names; if some differ in the seed alone, only the first of them in full."""
    seeds: dict[str, list[tuple[str, str]]] = {}
    for result in results:
        run, _, seed = result.name.rpartition("-seed")
        seeds.setdefault(run or result.name, []).append((result.name, seed))
    texts = []
    for (first, _), *others in seeds.values():
        texts.append(" ".join([link(first, first), *(link(name, f"seed{seed}") for name, seed in others)]))
    return ", ".join(texts)


def short_commit(commit: Optional[str]) -> str:
    """Returns the first seven digits of a commit, and whether files differed from it."""
    if not commit:
        return "unknown"
    digits, plus, changes = commit.partition("+")
    return digits[:7] + (" with uncommitted changes" if plus and changes else "")


def machine_name(machine: Optional[Mapping[str, Any]]) -> str:
    """Returns a machine in a few words."""
    if not machine:
        return "machine not recorded"
    cores, memory = machine["cores"], machine["memory_gib"]
    return f"{machine['processor']}, {cores} core{'s' * (cores != 1)}" + (f", {memory:.0f} GiB" if memory else "")


def one_digit(number: Optional[float]) -> str:
    """Returns ``90.2``, or :data:`NONE` of None."""
    return NONE if number is None else f"{number:.1f}"


def size_in_words(size: tuple[int, int]) -> str:
    """Returns a height and width as ``160×64``."""
    return "×".join(map(str, size))


def scientific(number: float) -> str:
    """Returns ``3.69e8``."""
    digits, exponent = f"{number:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def _render_group(group: Group, results: Sequence[Result], link: Link) -> str:
    experiment, networks = group.experiment, networks_by_name(results)
    searches = [result for result in results if result["kind"] == "search" and experiment.search]
    times = {found["dimension"]: found for result in searches for found in result["dimensions"]}
    measured = {result.name: result for result in searches}
    size = group.input_size
    head, lines = [""], []
    for column, shown in group.columns.items():
        paper = experiment.columns[column].title
        head += [f"{shown.title if group.drawn else paper}: R1", "mAP"]
        head += [f"paper, {paper}: R1", "mAP"] if group.drawn else []
    head += ["FLOPs", "multiply-adds", "parameters"] * experiment.flops + ["img/s"] * experiment.speed
    head += ["bytes per identity", "search, ms per query"] * experiment.search
    for index, row in enumerate(experiment.rows):
        if row.settings is None and group.drawn:
            continue
        cells = [cell for column in group.columns for cell in _score_cells(group, index, column)]
        if experiment.flops:
            model = row.settings["model"] if row.settings is not None else ""
            cost = networks.get((model, *size))
            cells += cost_cells(model, row.flops, cost)[: 4 if experiment.speed else 3]
            measured.update({cost.name: cost} if cost else {})
        if experiment.search:
            found = times.get(row.settings["feature_dim"])
            told = [f"{found['bytes_per_identity']:,}", f"{1e3 * found['seconds_per_query']:.3f}"] if found else None
            cells += told or [NONE, NONE]
        lines.append([row.name, *cells])

    text = [_setting(group), markdown_table(head, lines), *_agreements(group)]
    if experiment.flops:
        text.append(
            "FLOPs of HAN: ours / the paper's, a multiply-add counted as two operations and batch norm included. Those "
            f"of all others are multiply-adds: quoted at the input sizes of the papers they come from, ours at "
            f"{size_in_words(size)}."
        )
    if group.cells:
        text.append(origin(group.results(), link))
    if measured:
        text.append(f"Costs: {_named(measured.values(), link)}. {made(*measured.values())}.")
    return "\n\n".join(text)


def _score_cells(group: Group, row: int, column: int) -> list[str]:
    """Returns a row's cells of a column: rank-1 and mAP, ours and the paper's."""
    paper = group.published(row, column)
    quoted = [one_digit(number) for number in paper]
    if group.experiment.rows[row].settings is None:
        return quoted
    ours = [group.numbers(row, column, metric) for metric in METRICS]
    told = [_bold(mean_and_deviation(numbers)) for numbers in ours]
    if group.drawn:
        return [*told, *quoted]
    cells = []
    for mine, theirs, numbers, number in zip(told, quoted, ours, paper):
        known = numbers and number is not None
        cells.append(f"{mine} / {theirs}" + (f" ({statistics.mean(numbers) - number:+.1f})" if known else ""))
    return cells


def _setting(group: Group) -> str:
    """Returns a group's schedule and its differences from the paper, in words."""
    if not group.cells:
        return "Nothing has been trained yet; the paper's numbers:"
    seeds = sorted({result["settings"]["seed"] for result in group.results()})
    text = f"{group.epochs} epoch{'s' * (group.epochs != 1)}"
    text += "" if group.epochs == PUBLISHED_EPOCHS else f" (the paper: {PUBLISHED_EPOCHS})"
    text += f", {group.schedule}" if group.schedule else ""
    text += f", seed {seeds[0]}" if len(seeds) == 1 else f", seeds {', '.join(map(str, seeds))}: mean ± deviation"
    if any(len({r["settings"]["seed"] for r in cell}) < len(seeds) for cell in group.cells.values()):
        text += " where a row has been trained with more than one"
    if group.model:
        text += f"; {group.model} in place of the paper's {group.experiment.model}"
    if group.drawn:
        title = SCALES[group.scale].title.capitalize()
        return f"{title}, {text}. The paper's numbers are for other images; only the order of the rows can be compared."
    return f"{text}. Ours / the paper's (difference), in percent."


def _agreements(group: Group) -> list[str]:
    """Returns how far the order of rows agrees with the paper's, a Markdown list with a line per column and metric."""
    sentences = []
    for (column, shown), (place, metric) in product(group.columns.items(), enumerate(METRICS)):
        names, ours, theirs = [], [], []
        for index, row in enumerate(group.experiment.rows):
            numbers, paper = group.numbers(index, column, metric), group.published(index, column)[place]
            if numbers and paper is not None:
                names.append(row.name)
                ours.append(numbers)
                theirs.append(paper)
        if len(names) > 1:
            sentences.append(f"- {shown.title}, {metric}: {order_agreement(names, ours, theirs)}")
    return ["\n".join(sentences)] if sentences else []


def cost_cells(model: str, paper: str, cost: Optional[Result]) -> list[str]:
    """Returns four cells: a network's FLOPs (ours and the paper's), multiply-adds, parameters, images per second.

    ``model`` is ``""`` for a network that is only quoted; ``cost`` is its result of kind ``network``.
    """
    if not model or cost is None:
        return [f"{NONE} / {paper}", NONE, NONE, NONE] if model else [paper or NONE, "", "", ""]
    ours, difference = cost["macs"], ""
    if family(model) == "han":
        ours = cost["flops"]
        if network_of(cost["settings"]) == network_of({**DEFAULTS, "model": model}):  # the paper's input size
            difference = f" ({ours / float(paper) - 1:+.1%})"
    rate = cost.get("images_per_second")
    rate = NONE if rate is None else f"{rate:.0f}"
    return [f"{scientific(ours)} / {paper}{difference}", scientific(cost["macs"]), f"{cost['parameters']:,}", rate]


def _statistics(experiment: Experiment, results: Sequence[Result], link: Link) -> list[str]:
    counted = {result["dataset"]: result for result in results if result["kind"] == "statistics"}
    names = ("identities", "train", "test", "images", "cameras")
    lines, notes = [], []
    for row in experiment.counts:
        found = counted.get(row.dataset)
        ours = [NONE if found is None else f"{found['counts'][name]:,}" for name in names]
        lines.append([row.title, *(f"{_bold(mine)} / {paper:,}" for mine, paper in zip(ours, row.published))])
        missing = f"not found here, the published counts are shown; datasets/{row.dataset}/README.md says how to get it"
        notes += [f"- {row.title}: {sentence}" for sentence in (found["differences"] if found else [missing])]
    table = markdown_table(["", "# ID", "# Train", "# Test", "# Image", "# Cam"], lines)
    told = ["\n".join(notes)] if notes else []
    told += [origin(list(counted.values()), link)] if counted else []
    return ["Counted by the readers / the paper's.", table, *told]


def settings_in_words(settings: Mapping[str, Any], where: str) -> str:
    """Returns the settings of a training that differ from the paper's, e.g. ``12 epochs, 80×32, hard False``.

    Another recipe is named, followed by the settings that differ from it.

    Raises:
      UserError: there is no such setting, or one has a wrong type; the error names ``where``.
    """
    changed = TrainConfig.from_dict(settings_of(settings), where).changes()
    told = [f"{settings['epochs']} epochs"]
    if "recipe" in changed:
        told.append(f"recipe {changed.pop('recipe')}")
    if "input_height" in changed or "input_width" in changed:
        told.append(size_in_words((settings["input_height"], settings["input_width"])))
    for name, value in changed.items():
        if name == "init_from":
            told.append(f"from {Path(value).name}")
        elif name == "lr_drops":
            told.append(f"drops at {', '.join(f'{drop:.2g}' for drop in value)}" if value else "no drops")
        elif name not in (*NAMED, "input_height", "input_width"):
            told.append(f"{name} {value}")
    return ", ".join(told)


def _bold(text: str) -> str:
    return text if text == NONE else f"**{text}**"

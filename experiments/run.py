"""Run the paper's experiments: train and evaluate what is missing, and write the tables with the paper's numbers.

  python -m experiments.run                                       lists the experiments
  python -m experiments.run table9                                on the embedded data set
  python -m experiments.run table9 --dataset market1501           the paper's schedule
  python -m experiments.run table9 --dataset market1501 --epochs 40 --seeds 0,1,2
  python -m experiments.run all --dry_run                         prints what would be run and what it needs

Trainings with a JSON in --results_dir are finished and are skipped. After any interruption, the same command continues.
To repeat a training, delete its JSON and its run folder.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from experiments import schema, tables
from experiments.counts import TrainingData, count, drawn_data, training_data
from experiments.launch import in_child, in_process
from experiments.measuring import check_names
from experiments.needs import Need, duration, free_disk_mb, needs, size
from experiments.plan import SCALES, TINY, Plan, Training, make_plan, network_of, scale_of
from experiments.results import (
    EXPECTED,
    RESULTS,
    Result,
    check_replaceable,
    flags_of,
    identity,
    load_results,
    training_result,
)
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, locked, read_json, write_json
from han_tf.common.processes import free_memory_mb
from han_tf.common.progress import progress_bar
from han_tf.common.run_files import CONFIG, EVALUATION, HISTORY, METRICS
from han_tf.data import DATASETS, canonical_split
from han_tf.data.synthetic import SyntheticPedestrians, draw_once
from han_tf.models import MODELS
from han_tf.runs.environment import machine
from han_tf.training.config import RECIPES

with command_line.deferred_imports(__name__):
    from experiments import plots

FLAGS = command_line.Flags()
FLAGS.group("trainings")
FLAGS.enum(
    "scale",
    "",
    ["", *SCALES],
    "smoke: seconds on a few tiny images; synthetic: the embedded set, minutes to hours; full: the paper's schedule. "
    "If empty: full where --dataset names a real data set, else synthetic.",
)
FLAGS.list_of("seeds", [0], "Seeds; several give mean ± deviation.", flags.IntegerParser(0, 2**32 - 1))
FLAGS.integer("epochs", None, "Epochs, instead of the scale's; tables name them.", 1)
FLAGS.enum("recipe", None, list(RECIPES), "Recipe of the trainings; tables name it.")
FLAGS.real("weight_decay", None, "Weight decay, instead of the recipe's; tables name it.", 0)
FLAGS.integer("input_height", None, "Image height, pixels, instead of the scale's.", 32)
FLAGS.integer("input_width", None, "Image width, pixels.", 32)
FLAGS.repeated(
    "rows",
    [],
    "Row to run: its name or a part of it; repeat it for several. A text with commas that is in no name is a list.",
)
FLAGS.enum("arch", "", ["", *MODELS], "Network instead of an ablation's (Tables 8 to 11), e.g. han_small.")
FLAGS.old_name("model", "arch")
FLAGS.group("data")
FLAGS.list_of("dataset", [], "Data sets, e.g. market1501,dukemtmc.", flags.EnumParser([*DATASETS]))
FLAGS.string("split", "", "Protocol variant, e.g. detected (CUHK03); all if empty.")
FLAGS.string("data_dir", "", "Data folder of the one data set; datasets/NAME if empty.")
FLAGS.group("computation")
FLAGS.integer("cache_mb", None, "Largest decoded training set kept in memory, MiB.", 0)
FLAGS.boolean("check_resources", True, "Refuse to start if memory or disk look too small.")
FLAGS.group("output")
FLAGS.string("runs_dir", "runs/experiments", "Where checkpoints, logs and tables go.")
FLAGS.string(
    "results_dir",
    "",
    "Where the JSONs are; if empty, experiments/results, and for --scale smoke the folder results in --runs_dir.",
)
FLAGS.boolean("dry_run", False, "Only print what would be run and what it needs.")


class Runner:
    """Runs a plan of a scale.

    Run folders, logs and locks go to ``runs_dir``, results to ``results_dir``. ``data_dir`` is the data set's folder;
    ``""`` for the default one.
    """

    def __init__(self, plan: Plan, scale: str, runs_dir: Path, results_dir: Path, data_dir: str = ""):
        self.plan = plan
        self.scale = scale
        self.runs_dir = runs_dir
        self.results_dir = results_dir
        self.data_dir = data_dir
        # At the smoke scale starting processes would take longer than the trainings.
        self.launch = in_process if scale == "smoke" else in_child
        self.data: dict[tuple[str, str], TrainingData] = {}

    def results(self) -> list[Result]:
        """Returns the results that exist now."""
        return load_results(self.results_dir)

    def left(self, results: Sequence[Result]) -> list[Training]:
        """Returns the trainings whose result or attention sheet is missing."""
        trainings = self.plan.trainings.values()
        return [t for t in trainings if t.result(results) is None or (t.sheet and not self._sheets(t)[1].exists())]

    def find_data(self, draw: bool = True) -> None:
        """Counts the training images of every data set that is needed; at the smoke scale draws the tiny set first.

        For a data set without several images of a query, multi-query results are not wanted. Unless ``draw``, the tiny
        set is only counted.

        Raises:
          UserError: a data set is missing, or the folder of the tiny set holds something else.
        """
        tiny = SyntheticPedestrians(**TINY) if self.scale == "smoke" else None
        if tiny and draw:
            draw_once(self.data_dir, tiny, workers=1)
        for training in self.left(self.results()):
            key = (training.config.dataset, training.config.split)
            if key not in self.data:
                self.data[key] = drawn_data(tiny) if tiny else training_data(*key, self.data_dir)
                if not self.data[key].multi_query:
                    print(f"note: {' '.join(filter(None, key))} has no multi-query images here, so no results for them")
            if not self.data[key].multi_query:
                training.wanted = {wanted for wanted in training.wanted if wanted[1] != "multi"}

    def need(self, training: Training, results: Sequence[Result]) -> Need:
        """Estimates what ``training`` needs."""
        images = self.data[training.config.dataset, training.config.split].images
        return needs(training, images, results, machine())

    def describe(self) -> list[str]:
        """Returns what is left to do and what it needs, line by line."""
        results = self.results()
        left = self.left(results)
        lines, seconds, unknown = [], 0.0, 0
        for training in self.plan.trainings.values():
            what = f"{training.name} (for {', '.join(training.experiments)})"
            if training not in left:
                lines.append(f"finished  {what}: {tables.made(training.result(results))}")
                continue
            try:
                check_replaceable(
                    self.results_dir, training.name, {"kind": "training", "settings": training.config.to_dict()}
                )
            except UserError as error:
                lines.append(f"no place  {what}: {error}")
                continue
            need, done, epochs = self.need(training, results), self._epochs_done(training), training.config.epochs
            state = f"{done}/{epochs} epochs" if done else "to do"
            rest = None if need.seconds is None else need.seconds * (1 - done / epochs)
            seconds, unknown = seconds + (rest or 0), unknown + (rest is None)
            told = f"{duration(rest)} ({need.how}), memory {size(need.memory_mb)}, disk {size(need.disk_mb)}"
            lines.append(f"{state:<9} {what}: {told}")
        lines += [f"to do     {name}: a minute or two" for name, *_ in self._measurements()]
        lines += [f"to do     counts of {name}" for name in sorted(self.plan.datasets)]
        if left and unknown == len(left):
            lines.append("in all unknown: no measurement yet")
        elif left:
            without = f", without {unknown} whose time is unknown" if unknown else ""
            lines.append(f"in all about {duration(seconds)}, one after the other{without}")
        return lines

    def _epochs_done(self, training: Training) -> int:
        path = self.runs_dir / training.name / HISTORY
        return min(len(read_json(path, "a run's history")), training.config.epochs) if path.exists() else 0

    def check_resources(self) -> None:
        """Raises UserError if memory or disk are too small for the trainings that are left."""
        results = self.results()
        known = [(training.name, self.need(training, results)) for training in self.left(results)]
        memory, disk = free_memory_mb(), free_disk_mb(self.runs_dir)
        for name, need in known:
            if memory is not None and (need.memory_mb or 0) > memory:
                raise UserError(
                    f"{name} needs about {size(need.memory_mb)} of memory, {size(memory)} are free; a smaller "
                    "--cache_mb keeps the images in a file instead, --nocheck_resources starts anyway"
                )
        # Files that an interrupted run has written already are counted twice, which overestimates the need.
        wanted = sum(need.disk_mb or 0 for _, need in known)
        if wanted > disk:
            raise UserError(
                f"{len(known)} trainings need about {size(wanted)} in {self.runs_dir}, {size(disk)} are free; "
                "give another --runs_dir, or --nocheck_resources to start anyway"
            )

    def run(self) -> list[str]:
        """Does everything that is left; returns the failures, one line each.

        Raises:
          Stopped: a signal came; another call with the same plan goes on from there.
        """
        failures: list[str] = []
        if self._measurements():
            # The lock keeps two runners from measuring at the same time, or the same thing twice.
            waiting = "another process is measuring; waiting for it"
            with locked(self.runs_dir / "measuring.lock", waiting=waiting):
                for name, module, arguments in self._measurements():
                    with _collected(failures):
                        output = f"--output={self.results_dir / name}.json"
                        self.launch(module, [*arguments, output], self.runs_dir / f"{name}.log")
        for name in sorted(self.plan.datasets):
            if counted := count(name, self.data_dir):
                self._keep_counts(name, counted)
        todo = self.left(self.results())
        epochs = sum(training.config.epochs - self._epochs_done(training) for training in todo)
        with progress_bar(total=epochs, unit="epoch", disable=not todo) as bar:
            # Trainings that another runner holds come again at the end and are waited for.
            queue = [(training, False) for training in todo]
            for training, last in queue:
                busy = f"another process runs {training.name}"
                path = self.runs_dir / f"{training.name}.lock"
                try:
                    with locked(path, None if last else busy, f"{busy}; waiting for it") as lock:
                        bar.set_postfix_str(training.name)
                        with _collected(failures):
                            self._train(training, lock, bar)
                except UserError:  # of the lock
                    if last:
                        raise
                    queue.append((training, True))
        return failures

    def _keep_counts(self, name: str, counted: dict[str, Any]) -> None:
        """Writes the counts of a data set, unless others are kept that are equal or not worse."""
        path = self.results_dir / f"statistics-{name}.json"
        if path.exists():
            check_replaceable(self.results_dir, path.stem, counted)
            kept = read_json(path, EXPECTED)
            if all(kept.get(entry) == counted[entry] for entry in ("counts", "differences")):
                return
            if counted["differences"] or not kept.get("differences"):
                found = "; ".join(counted["differences"]) or counted["counts"]
                print(f"note: {path} is kept; the images here give other counts: {found}")
                return
        write_json(path, counted)

    def _measurements(self) -> list[tuple[str, str, list[str]]]:
        """Returns the missing measurements: FLOPs and speed of networks, search times of feature dimensions.

        Each is the name of a result, and the module and the flags of the command that makes it.
        """
        results, here, missing = self.results(), machine(), []
        smoke = self.scale == "smoke"
        for network, speed in self.plan.networks.items():
            found = [r for r in results if r["kind"] == "network" and network_of(r["settings"]) == network]
            if any(not speed or ("images_per_second" in r and r.get("machine") == here) for r in found):
                continue
            model, height, width = network
            arguments = [f"--arch={model}", f"--input_height={height}", f"--input_width={width}"]
            arguments += ["--speed"] if speed else []
            arguments += ["--repeats=3", "--batch_size=4"] if speed and smoke else []
            missing.append((f"network-{model}-{height}x{width}", "experiments.bench_networks", arguments))
        of_here = [result for result in results if result["kind"] == "search" and result.get("machine") == here]
        searched = {row["dimension"] for result in of_here for row in result["dimensions"]}
        if not self.plan.dimensions <= searched:
            # All dimensions again, so that one run measures all times of a file.
            arguments = [f"--dimension={dimension}" for dimension in sorted(self.plan.dimensions | searched)]
            arguments += ["--queries=20", "--gallery=300", "--repeats=1"] if smoke else []
            missing.append(("search", "experiments.bench_search", arguments))
        return missing

    def _train(self, training: Training, lock: int, bar: tqdm) -> None:
        """Trains, evaluates and draws what is missing; ``bar`` counts epochs."""
        results, name, begun = self.results(), training.name, bar.n - self._epochs_done(training)
        if training not in self.left(results):
            return
        run_dir, log = self.runs_dir / name, self.runs_dir / f"{name}.log"
        data = [f"--data_dir={self.data_dir}"] if self.data_dir else []
        settings = training.config.to_dict()
        check_replaceable(self.results_dir, name, {"kind": "training", "settings": settings})
        is_new = not _is_trained(run_dir, training)
        # If only the sheet is missing and the run has to be trained for it, its result is written, too.
        if is_new or training.result(results) is None:
            # For a finished run han_tf.train only checks that settings and images are still the same.
            arguments = [f"--run={run_dir}", *flags_of(training.config)]
            show = lambda: bar.update(max(0, begun + self._epochs_done(training) - bar.n))  # noqa: E731
            peak_mb = self.launch("han_tf.train", arguments, log, (lock,), show)
            show()
            if any(reranked for _, _, reranked in training.wanted):
                arguments = [f"--model={run_dir}", "--rerank", f"--output={run_dir / EVALUATION}", *data]
                self.launch("han_tf.evaluate", arguments, log, (lock,))
            if not is_new:
                peak_mb = next((result.get("peak_mb") for result in results if result.name == name), None)
            write_json(self.results_dir / f"{name}.json", training_result(run_dir, peak_mb))
        if training.sheet:
            sheet, kept = self._sheets(training)
            self.launch("han_tf.visualize", [f"--model={run_dir}", f"--output={sheet.parent}", *data], log, (lock,))
            if kept != sheet:
                with atomic_open(kept) as stream:
                    stream.write(sheet.read_bytes())

    def _sheets(self, training: Training) -> tuple[Path, Path]:
        """Returns where the attention sheet is written and where it is kept: that of drawn people in the repository."""
        sheet = self.runs_dir / training.name / "figure7" / "attention.png"
        drawn = training.config.dataset == "synthetic"
        return sheet, self.results_dir.parent / "figures" / f"figure7-{training.name}.png" if drawn else sheet


def _is_trained(run_dir: Path, training: Training) -> bool:
    """Returns whether ``run_dir`` holds this training, finished; if it holds another one, han_tf.train refuses it."""
    if not (run_dir / METRICS).exists() or not (run_dir / CONFIG).exists():
        return False
    return identity(read_json(run_dir / CONFIG, "the settings of a training run")) == training.identity


@contextlib.contextmanager
def _collected(failures: list[str]) -> Iterator[None]:
    """Catches a UserError in the block, prints it and adds it to ``failures``."""
    try:
        yield
    except UserError as error:
        failures.append(str(error))
        tqdm.write(f"failed: {error}")


def _present(experiments: Sequence[schema.Experiment]) -> list[str]:
    """Returns the experiments' data sets that are on this machine; prints a note about the others.

    Raises:
      UserError: none is on this machine.
    """
    columns = [column for experiment in experiments if experiment.trains for column in experiment.columns]
    found, missing = [], []
    for name, split in {column.dataset: column.split for column in reversed(columns)}.items():
        try:
            training_data(name, split, "")
            found.append(name)
        except UserError as error:
            missing.append(f"{name} is left out: {error}")
    if missing and not found:
        raise UserError("; ".join(missing))
    for note in missing:
        print(f"note: {note}")
    return found


def main(values: command_line.Flags) -> None:
    """Runs what the flags say."""
    if not values.positional:
        print(*(f"{name:<20}{schema.load(name).title}" for name in schema.names()), "", sep="\n")
        print("python -m experiments.run NAME [--dataset market1501]; --help lists all flags")
        return
    wanted = schema.names() if values.positional == ["all"] else values.positional
    check_names(wanted, schema.names(), "experiment")
    experiments: list[schema.Experiment] = [schema.load(name) for name in dict.fromkeys(wanted)]
    scale = scale_of(values.scale, ",".join(values.dataset))
    datasets = values.dataset if scale == "full" else []
    runs_dir, data_dir = Path(values.runs_dir), values.data_dir
    results_dir = Path(values.results_dir or (runs_dir / "results" if scale == "smoke" else RESULTS))
    if scale == "smoke":
        data_dir = data_dir or str(runs_dir / "tiny" / "Market-1501")
    elif data_dir and scale == "full" and len(datasets) != 1:
        raise UserError(f"--data_dir {data_dir} is one data set's folder, expected one --dataset with it")
    if scale == "full" and not datasets:
        datasets = _present(experiments)
    if values.positional == ["all"] and datasets:
        experiments = [experiment for experiment in experiments if set(experiment.datasets) & set(datasets)]
    changes = ("epochs", "recipe", "weight_decay", "input_height", "input_width", "cache_mb")
    given = {name: getattr(values, name) for name in changes if getattr(values, name) is not None}
    plan = make_plan(
        experiments,
        scale,
        datasets=datasets,
        split=canonical_split("", values.split),
        seeds=values.seeds,
        rows=values.rows,
        model=values.arch,
        data_dir=data_dir,
        **given,
    )
    runner = Runner(plan, scale, runs_dir, results_dir, data_dir)
    runner.find_data(draw=not values.dry_run)
    print(*runner.describe(), sep="\n")
    if values.dry_run:
        return
    if values.check_resources:
        runner.check_resources()
    failures = runner.run()
    results = runner.results()
    for experiment in experiments:
        found = tables.groups(experiment, scale, results, values.arch)
        text = tables.render(experiment, scale, results, found)
        path = runs_dir / f"{'-'.join(filter(None, (experiment.name, values.arch, scale)))}.md"
        with atomic_open(path) as stream:
            stream.write(f"{text}\n".encode())
        drawn = plots.draw(found, results, runs_dir)
        print(f"\n{text}\n", *(f"written to {written}" for written in [path, *drawn]), sep="\n")
    if failures:
        raise UserError(f"{len(failures)} trainings or measurements failed: {'; '.join(failures)}")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="experiments"))

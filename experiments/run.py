"""Run the paper's experiments: train what is needed, evaluate it, and write the table with the paper's numbers.

  python -m experiments.run                                       lists the experiments
  python -m experiments.run table9                                on the embedded data set
  python -m experiments.run table9 --dataset market1501           the paper's schedule
  python -m experiments.run table9 --dataset market1501 --epochs 40 --seeds 0,1,2
  python -m experiments.run all --dry_run                         says what would be run, and what it needs

What is finished is skipped: its JSON lies in --results_dir. What was interrupted, in whatever way, goes on with the
same command. To train something anew, delete its JSON and its run folder.
"""

import contextlib
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from absl import flags
from tqdm import tqdm

from experiments import schema, tables
from experiments.launch import claimed, in_child, in_process
from experiments.plan import (
    SCALES,
    TINY,
    Need,
    Plan,
    Training,
    TrainingData,
    duration,
    epochs_done,
    free_disk_mb,
    free_memory_mb,
    make_plan,
    needs,
    network_of,
    scale_of,
    training_data,
)
from experiments.results import (
    CONFIG,
    EVALUATION,
    METRICS,
    RESULTS,
    Result,
    flags_of,
    identity,
    load_results,
    stamp,
    training_result,
    write_result,
)
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, read_json
from han_tf.common.progress import progress_bar
from han_tf.data import DATASETS, JUNK_PID, load_dataset
from han_tf.data.synthetic import SyntheticPedestrians, generate, is_current
from han_tf.runs.environment import machine

with command_line.deferred_imports(__name__):
    from experiments import plots

SHEET = "attention.png"

FLAGS = command_line.new_flags()
flags.DEFINE_enum(
    "scale",
    "",
    ["", *SCALES],
    "smoke: seconds on a few tiny images; synthetic: the embedded set, minutes to hours; full: the paper's schedule. "
    "If empty: full where --dataset names a real data set, else synthetic.",
    flag_values=FLAGS,
)
flags.DEFINE_list("dataset", [], f"Data sets, e.g. market1501,dukemtmc; of {', '.join(DATASETS)}.", flag_values=FLAGS)
flags.DEFINE_string(
    "split", "", "Protocol variant, e.g. detected (CUHK03); all of the table if empty.", flag_values=FLAGS
)
flags.DEFINE_string("data_dir", "", "Data folder of the one data set; datasets/NAME if empty.", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["0"], "Seeds; several give mean ± deviation.", flag_values=FLAGS)
flags.DEFINE_integer("epochs", None, "Instead of the scale's; the results say so.", 1, flag_values=FLAGS)
flags.DEFINE_list("rows", [], "Rows to run: names or parts of names.", flag_values=FLAGS)
flags.DEFINE_string(
    "arch", "", "Network in place of the one of an ablation (Tables 8 to 11), e.g. han_small.", flag_values=FLAGS
)
command_line.old_name(FLAGS, "model", "arch")
flags.DEFINE_integer("cache_mb", None, "Largest decoded training set kept in memory, MiB.", 0, flag_values=FLAGS)
flags.DEFINE_string("runs_dir", "runs/experiments", "Where checkpoints, logs and tables go.", flag_values=FLAGS)
flags.DEFINE_string(
    "results_dir",
    "",
    "Where the JSONs are; if empty, experiments/results, and for --scale smoke the folder results in --runs_dir.",
    flag_values=FLAGS,
)
flags.DEFINE_boolean("dry_run", False, "Only say what would be run and what it needs.", flag_values=FLAGS)
flags.DEFINE_boolean("check_resources", True, "Refuse to start if memory or disk look too small.", flag_values=FLAGS)


class Runner:
    """Runs a plan.

    Args:
      plan: what has to be there.
      scale: a key of :data:`experiments.plan.SCALES`.
      runs_dir: where run folders, logs and locks go.
      results_dir: where the results are.
      data_dir: the data set's folder; ``""`` for the default one.
    """

    def __init__(self, plan: Plan, scale: str, runs_dir: Path, results_dir: Path, data_dir: str = ""):
        self.plan = plan
        self.scale = scale
        self.runs_dir = runs_dir
        self.results_dir = results_dir
        self.data_dir = data_dir
        self.launch = in_process if SCALES[scale].in_process else in_child
        self.data: dict[tuple[str, str], TrainingData] = {}

    def results(self) -> list[Result]:
        """Returns what is there by now."""
        return load_results(self.results_dir)

    def finished(self, training: Training, results: Sequence[Result]) -> bool:
        """Tells whether nothing of ``training`` is left to do."""
        result = training.result(results)
        if result is None or not training.sheet:
            return result is not None
        return self._kept_sheet(training).exists()

    def find_data(self) -> None:
        """Counts the training images of every data set that is still trained on; draws the tiny set if it is that.

        Results for several images of a query are not asked of a data set that has none.

        Raises:
          UserError: a data set is not there.
        """
        if self.scale == "smoke":
            pedestrians = SyntheticPedestrians(**TINY)
            if not is_current(self.data_dir, pedestrians):
                generate(self.data_dir, pedestrians, workers=1)
        results = self.results()
        for training in self.plan.trainings.values():
            key = (training.config.dataset, training.config.split)
            if self.finished(training, results):
                continue
            if key not in self.data:
                self.data[key] = training_data(*key, self.data_dir)
                if not self.data[key].multi_query:
                    print(f"note: {' '.join(filter(None, key))} has no multi-query images here: no such results")
            if not self.data[key].multi_query:
                training.wanted = {wanted for wanted in training.wanted if wanted[1] != "multi"}

    def need(self, training: Training, results: Sequence[Result]) -> Need:
        """Estimates what ``training`` needs."""
        images = self.data[training.config.dataset, training.config.split].images
        return needs(training, images, results, machine())

    def describe(self) -> list[str]:
        """Returns what is to be done, and what it needs, line by line."""
        results = self.results()
        lines, seconds, unknown = [], 0.0, 0
        for training in self.plan.trainings.values():
            what = f"{training.name} (for {', '.join(training.experiments)})"
            if self.finished(training, results):
                lines.append(f"finished  {what}: {tables.made(training.result(results))}")
                continue
            need, done = self.need(training, results), epochs_done(self.runs_dir / training.name)
            epochs = training.config.epochs
            state = f"{done}/{epochs} epochs" if done else "to do"
            left = None if need.seconds is None else need.seconds * (1 - min(done, epochs) / epochs)
            seconds, unknown = seconds + (left or 0), unknown + (left is None)
            lines.append(
                f"{state:<9} {what}: {duration(left)} ({need.how}), "
                f"memory {_size(need.memory_mb)}, disk {_size(need.disk_mb)}"
            )
        for network, speed in self.plan.networks.items():
            if not _has_network(results, network, speed):
                lines.append(
                    f"to do     {'speed and ' if speed else ''}FLOPs of {_network_name(network)}: a minute at most"
                )
        if self._missing_dimensions(results):
            lines.append(f"to do     search times of {len(self.plan.dimensions)} dimensions: a minute or two")
        lines += [f"to do     counts of {name}" for name in sorted(self.plan.datasets)]
        rest = [f"about {duration(seconds)}"] * bool(seconds)
        rest += [f"{unknown} training{'s' * (unknown > 1)} of unknown length"] * bool(unknown)
        if rest:
            lines.append(f"in all {' and '.join(rest)}, one after the other")
        return lines

    def check_resources(self) -> None:
        """Raises UserError if memory or disk are too small for what is still to be trained."""
        results = self.results()
        left = [t for t in self.plan.trainings.values() if not self.finished(t, results)]
        known = [(self.need(training, results), training) for training in left]
        memory, disk = free_memory_mb(), free_disk_mb(self.runs_dir)
        largest = max(known, key=lambda pair: pair[0].memory_mb or 0, default=None)
        if largest and memory is not None and (largest[0].memory_mb or 0) > memory:
            raise UserError(
                f"{largest[1].name} needs about {_size(largest[0].memory_mb)} of memory, {_size(memory)} are free; a "
                "smaller --cache_mb keeps the images in a file instead, --nocheck_resources starts all the same"
            )
        # What an interrupted run has written already is there, and counted twice here, which errs on the safe side.
        wanted = sum(need.disk_mb or 0 for need, _ in known)
        if wanted > disk:
            raise UserError(
                f"{len(known)} trainings need about {_size(wanted)} in {self.runs_dir}, {_size(disk)} are free; "
                "another --runs_dir, or --nocheck_resources to start all the same"
            )

    def run(self) -> list[str]:
        """Does everything that is left, and returns what failed, one line each.

        Raises:
          Stopped: a signal came; the same plan goes on from there.
        """
        failures: list[str] = []
        for network, speed in self.plan.networks.items():
            with _collected(failures):
                self._measure_network(network, speed)
        if self._missing_dimensions(self.results()):
            with _collected(failures):
                self._measure_search()
        for name in sorted(self.plan.datasets):
            self._count(name)
        results = self.results()
        left = [training for training in self.plan.trainings.values() if not self.finished(training, results)]
        weights = self._weights(left)
        queue, elsewhere = deque(zip(left, weights)), 0
        with _Progress(sum(weights), len(self.plan.trainings) - len(left)) as progress:
            while queue:
                training, weight = queue.popleft()
                # What another runner is at comes last; if that is all there is, it is waited for.
                wait = elsewhere > len(queue)
                with self._claimed(training, wait) as lock:
                    if lock is None:
                        queue.append((training, weight))
                        elsewhere += 1
                        continue
                    elsewhere = 0
                    progress.start(training.name, weight, self._share_done(training))
                    with _collected(failures):
                        self._train(training, progress, lock)
                    progress.end()
        return failures

    def _weights(self, trainings: Sequence[Training]) -> list[float]:
        """Returns how much work each training is: image passes, times multiply-adds where they are known of all."""
        costs = {network_of(r["settings"]): r["macs"] for r in self.results() if r["kind"] == "network"}
        by_cost = all(training.network in costs for training in trainings)
        return [
            self.data[training.config.dataset, training.config.split].images
            * training.config.epochs
            * (costs[training.network] if by_cost else 1.0)
            for training in trainings
        ]

    def _share_done(self, training: Training) -> float:
        # The last epoch is not the end: evaluation and re-ranking follow.
        return min(epochs_done(self.runs_dir / training.name) / training.config.epochs, 0.99)

    def _claimed(self, training: Training, wait: bool) -> contextlib.AbstractContextManager[Optional[int]]:
        """Returns :func:`claimed` of this training's lock."""

        def waiting() -> None:
            tqdm.write(f"another process runs {training.name}; waiting for it")

        return claimed(self.runs_dir / f"{training.name}.lock", waiting if wait else None)

    def _train(self, training: Training, progress: "_Progress", lock: int) -> None:
        run_dir = self.runs_dir / training.name
        log = self.runs_dir / f"{training.name}.log"

        def poll() -> None:
            progress.reach(self._share_done(training))

        results = self.results()
        if self.finished(training, results):
            return
        self._check_replaceable(training, results)
        is_new = not _is_trained(run_dir, training)
        # Of a network that was trained for its sheet, the result belongs beside the sheet.
        if is_new or training.result(results) is None:
            # A finished run is not trained further, but asked whether the images are still those that it has seen.
            arguments = [f"--run={run_dir}", *flags_of(training.config.to_dict())]
            peak_mb = self.launch("han_tf.train", arguments, log, poll, (lock,))
            if any(reranked for _, _, reranked in training.wanted):
                arguments = [f"--model={run_dir}", "--rerank", f"--output={run_dir / EVALUATION}", *self._data_flag()]
                self.launch("han_tf.evaluate", arguments, log, poll, (lock,))
            write_result(self.results_dir, training.name, training_result(run_dir, peak_mb if is_new else None))
        if training.sheet:
            self._draw_sheet(training, log, lock)

    def _draw_sheet(self, training: Training, log: Path, lock: int) -> None:
        run_dir, sheet = self.runs_dir / training.name, self._sheet(training)
        arguments = [f"--model={run_dir}", f"--output={sheet.parent}", *self._data_flag()]
        self.launch("han_tf.visualize", arguments, log, None, (lock,))
        if self._kept_sheet(training) != sheet:
            with atomic_open(self._kept_sheet(training)) as stream:
                stream.write(sheet.read_bytes())

    def _sheet(self, training: Training) -> Path:
        return self.runs_dir / training.name / "figure7" / SHEET

    def _kept_sheet(self, training: Training) -> Path:
        # Drawn people go to the repository; those of real data sets stay in the run's folder.
        if training.config.dataset != "synthetic":
            return self._sheet(training)
        return plots.folder_of(self.results_dir) / f"figure7-{training.name}.png"

    def _data_flag(self) -> list[str]:
        return [f"--data_dir={self.data_dir}"] if self.data_dir else []

    def _check_replaceable(self, training: Training, results: Sequence[Result]) -> None:
        for result in results:
            if result.name == training.name and (
                "apart" in result.data
                or result["kind"] != "training"
                or identity(result["settings"]) != training.identity
            ):
                raise UserError(
                    f"{self.results_dir / training.name}.json holds the result of something else, which this training "
                    "would overwrite; rename it"
                )

    def _measure_network(self, network: tuple[str, int, int], speed: bool) -> None:
        model, height, width = network
        name = f"network-{_network_name(network)}"
        arguments = [f"--arch={model}", f"--input_height={height}", f"--input_width={width}"]
        if speed:
            arguments += ["--speed", *(["--repeats=3", "--batch_size=4"] if self.scale == "smoke" else [])]
        output = self.results_dir / f"{name}.json"
        with self._measuring():
            if not _has_network(self.results(), network, speed):
                log = self.runs_dir / f"{name}.log"
                self.launch("experiments.bench_networks", [*arguments, f"--output={output}"], log)

    def _missing_dimensions(self, results: Sequence[Result]) -> bool:
        return not self.plan.dimensions <= _searched(results)

    def _measure_search(self) -> None:
        # All of them anew, so that the times of one file were taken in one go.
        dimensions = sorted(self.plan.dimensions | _searched(self.results()))
        arguments = [f"--dimension={dimension}" for dimension in dimensions]
        if self.scale == "smoke":
            arguments += ["--queries=20", "--gallery=300", "--repeats=1"]
        output = self.results_dir / "search.json"
        with self._measuring():
            if self._missing_dimensions(self.results()):
                log = self.runs_dir / "search.log"
                self.launch("experiments.bench_search", [*arguments, f"--output={output}"], log)

    def _measuring(self) -> contextlib.AbstractContextManager[Optional[int]]:
        """Returns a claim on this machine: two runners do not measure against each other."""

        def waiting() -> None:
            tqdm.write("another process measures; waiting for it")

        return claimed(self.runs_dir / "measuring.lock", waiting)

    def _count(self, name: str) -> None:
        """Counts a data set for Table 2 if it is there."""
        (row,) = (row for row in schema.load("table2").rows if row.dataset == name)
        people: dict[str, set[int]] = {"train": set(), "test": set()}
        images, cameras, differences = 0, set(), []
        for split, subsets in row.counted.items():
            try:
                dataset = load_dataset(name, self.data_dir or None, split)
            except UserError as error:
                print(f"note: {row.title}: not found here ({error})")
                return
            people["train"] |= {record.pid for record in dataset.train}
            people["test"] |= {record.pid for record in dataset.query}
            images += sum(len(getattr(dataset, subset)) for subset in subsets)
            records = [r for subset in dataset.subsets().values() for r in subset]
            cameras |= {record.camid for record in records if record.pid != JUNK_PID}
            differences += [difference for difference in dataset.differences if difference not in differences]
        train, test = len(people["train"]), len(people["test"])
        counts = {"identities": train + test, "train": train, "test": test, "images": images, "cameras": len(cameras)}
        data = {"kind": "statistics", "dataset": name, "counts": counts, "differences": differences, **stamp()}
        write_result(self.results_dir, f"statistics-{name}", data)


class _Progress:
    """One bar over all trainings, in shares of the work that is left.

    Args:
      total: the work that is left.
      finished: how many trainings there are beside it that need none.
    """

    def __init__(self, total: float, finished: int):
        self.number = finished
        self.before = self.weight = 0.0
        self.bar = progress_bar(
            total=total,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
            smoothing=0,
            disable=not total,
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start(self, name: str, weight: float, done: float) -> None:
        """Goes on to the next training; the share ``done`` of it was done before, in no time of this bar's."""
        self.number += 1
        self.before, self.weight = self.bar.n, weight
        self.bar.initial += done * weight
        self.bar.set_description(f"training {self.number}", refresh=False)
        self.bar.set_postfix_str(name, refresh=False)
        self.reach(done)
        self.bar.refresh()

    def reach(self, share: float) -> None:
        """Shows that ``share`` of the training is done."""
        self.bar.update(max(0.0, self.before + share * self.weight - self.bar.n))

    def end(self) -> None:
        """Shows that the training is done."""
        self.reach(1.0)


@contextlib.contextmanager
def _collected(failures: list[str]) -> Iterator[None]:
    """Lets the work go on after a failure, which is told at once and kept for the end."""
    try:
        yield
    except UserError as error:
        failures.append(str(error))
        tqdm.write(f"failed: {error}")


def _is_trained(run_dir: Path, training: Training) -> bool:
    """Tells whether ``run_dir`` holds this training, finished; han_tf.train says what is wrong if it holds another."""
    if not (run_dir / METRICS).exists() or not (run_dir / CONFIG).exists():
        return False
    return identity(read_json(run_dir / CONFIG, "the settings of a training run")) == training.identity


def _has_network(results: Sequence[Result], network: tuple[str, int, int], speed: bool) -> bool:
    """Tells whether the FLOPs of a network are known and, if asked for, its speed on this machine."""
    found = [r for r in results if r["kind"] == "network" and network_of(r["settings"]) == network]
    return any(not speed or ("images_per_second" in r.data and r.get("machine") == machine()) for r in found)


def _searched(results: Sequence[Result]) -> set[int]:
    """Returns the dimensions whose search has been timed on this machine."""
    here = machine()
    measured = [r for r in results if r["kind"] == "search" and r.get("machine") == here]
    return {row["dimension"] for result in measured for row in result["dimensions"]}


def _network_name(network: tuple[str, int, int]) -> str:
    return f"{network[0]}-{network[1]}x{network[2]}"


def _size(megabytes: Optional[float]) -> str:
    if megabytes is None:
        return "unknown"
    return f"{megabytes:.0f} MiB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GiB"


def _seeds(words: Sequence[str]) -> list[int]:
    try:
        seeds = [int(word) for word in words]
    except ValueError as error:
        raise UserError(f"--seeds is {','.join(words)!r}, expected whole numbers such as 0,1,2") from error
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"--seeds is {','.join(words)!r}, expected different numbers from 0 to 4294967295")
    return seeds


def _listed() -> str:
    lines = []
    for name in schema.names():
        experiment = schema.load(name)
        lines.append(f"{name:<20}{experiment.title}")
    return "\n".join([*lines, "", "python -m experiments.run NAME [--dataset market1501]; --help lists all flags"])


def main(values: flags.FlagValues) -> None:
    """Runs what the flags say."""
    if not values.positional:
        print(_listed())
        return
    wanted = schema.names() if values.positional == ["all"] else values.positional
    experiments = [schema.load(name) for name in dict.fromkeys(wanted)]
    scale = scale_of(values.scale, ",".join(values.dataset))
    datasets = values.dataset if scale == "full" else []
    runs_dir = Path(values.runs_dir)
    results_dir = Path(values.results_dir or (runs_dir / "results" if scale == "smoke" else RESULTS))
    data_dir = values.data_dir
    if scale == "smoke":
        data_dir = data_dir or str(runs_dir / "tiny" / "Market-1501")
    elif data_dir and scale == "full" and len(datasets) != 1:
        raise UserError(f"--data_dir {data_dir} is one data set's folder, expected one --dataset with it")
    if scale == "full" and not datasets:
        datasets = _there(experiments)
    if values.positional == ["all"] and datasets:
        experiments = [experiment for experiment in experiments if _about(experiment, datasets)]
    if values.arch and values.arch not in schema.models():
        raise UserError(f"--arch {values.arch}, expected one of {', '.join(schema.models())}")
    plan = make_plan(
        experiments,
        scale,
        datasets=datasets,
        split=values.split,
        data_dir=data_dir,
        seeds=_seeds(values.seeds),
        epochs=values.epochs,
        rows=values.rows,
        model=values.arch,
        cache_mb=values.cache_mb,
    )
    runner = Runner(plan, scale, runs_dir, results_dir, data_dir)
    runner.find_data()
    print(*runner.describe(), sep="\n")
    if values.dry_run:
        return
    if values.check_resources:
        runner.check_resources()
    failures = runner.run()
    results = runner.results()
    for experiment in experiments:
        text = tables.render(experiment, scale, results, model=values.arch)
        path = runs_dir / f"{'-'.join(filter(None, (experiment.name, values.arch, scale)))}.md"
        with atomic_open(path) as stream:
            stream.write(f"{text}\n".encode())
        drawn = plots.draw(experiment, scale, results, runs_dir)
        print(f"\n{text}\n", *(f"written to {written}" for written in [path, *drawn]), sep="\n")
    if failures:
        raise UserError(f"{len(failures)} trainings or measurements failed: {'; '.join(failures)}")


def _there(experiments: Sequence[schema.AnyExperiment]) -> list[str]:
    """Returns those of the experiments' data sets that are on this machine, and says which are not.

    Raises:
      UserError: none is.
    """
    columns = [column for e in experiments if isinstance(e, schema.Experiment) and e.trains for column in e.columns]
    found, missing = [], {}
    for name in dict.fromkeys(column.dataset for column in columns):
        split = next(column.split for column in columns if column.dataset == name)
        try:
            training_data(name, split, "")
            found.append(name)
        except UserError as error:
            missing[name] = str(error)
    if missing and not found:
        raise UserError("; ".join(missing.values()))
    for name, reason in missing.items():
        print(f"note: without {name}: {reason}")
    return found


def _about(experiment: schema.AnyExperiment, datasets: Sequence[str]) -> bool:
    if isinstance(experiment, schema.Statistics):
        return any(row.dataset in datasets for row in experiment.rows)
    return any(column.dataset in datasets for column in experiment.columns)


def cli() -> None:
    """Runs the command line."""
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="experiments"))


if __name__ == "__main__":
    cli()

"""Add a result to experiments/results, from a run's folder or from a benchmark's output.

  python -m experiments.record runs/market1501-han_small-40epochs-seed0
  python -m experiments.record bench.json --name speed-2026-11-24

The run must be finished; if han_tf.evaluate --rerank was run on it, the re-ranked rows are added, too. A benchmark's
file is what han_tf.bench or one of the benchmarks of experiments wrote with --output. Tables choose their results by
the settings; --apart keeps a result out of them and says why. Remarks on a result belong in experiments/notes/NAME.md.
"""

import sys
from pathlib import Path
from typing import Any

from experiments.results import KINDS, RESULTS, check_replaceable, reading, stamp, training_result
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import read_json, write_json
from han_tf.common.run_files import CONFIG
from han_tf.training.config import TrainConfig

FLAGS = command_line.Flags()
FLAGS.string("name", "", "Name of the result; if empty, the run's, or the benchmark's kind.")
FLAGS.string("apart", "", "Why the result belongs in no table, e.g. 'stopped early'.")
FLAGS.string("results_dir", str(RESULTS), "Where the JSONs are.")


def result_of(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns name and content of the result in ``path``, a run's folder or a benchmark's file.

    Raises:
      UserError: ``path`` is neither.
    """
    if path.is_dir():
        with reading(path):
            result = training_result(path)
            return TrainConfig.from_dict(result["settings"], str(path / CONFIG)).run_name(), result
    figures = read_json(path, "a run's folder or a benchmark's figures")
    if isinstance(figures, dict) and "networks" in figures:
        figures = {"kind": "bench", **figures}  # han_tf.bench writes no kind
    if not isinstance(figures, dict) or figures.get("kind") not in KINDS:
        raise UserError(
            f"{path}: neither a run's folder nor a benchmark's figures, expected the output of han_tf.train, "
            "han_tf.bench or of a benchmark of experiments"
        )
    with reading(path):
        made_with = figures.pop("environment", {})
        made_with.pop("command", None)
        # A benchmark's file without commit and machine gets those of this call.
        return figures["kind"], {**stamp(), **figures, **made_with}


def main(values: command_line.Flags) -> None:
    """Adds the result that the command line names."""
    if len(values.positional) != 1:
        raise command_line.UsageError(
            f"{len(values.positional)} paths, expected one: a run's folder or a benchmark's JSON file"
        )
    name, data = result_of(Path(values.positional[0]))
    name = values.name or name
    if values.apart:
        data["apart"] = values.apart
    check_replaceable(values.results_dir, name, data)
    path = Path(values.results_dir) / f"{name}.json"
    if data["kind"] == "training" and path.exists():
        data["peak_mb"] = read_json(path, "a result").get("peak_mb")  # experiments.run measured it
    write_json(path, data)
    print(f"written to {path}")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="path"))

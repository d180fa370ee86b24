"""Test with kills, disk faults, damaged inputs and load, and count what is lost, doubled, unreadable or not answered.

  python -m experiments.chaos [--rounds 100] [--inputs 10000] [--load_minutes 30] [--output FILE]

Training, export, extraction, indexing and the service during writes are killed at random moments or writes, or their
disk is full or gives EIO; their results are compared with those of undisturbed runs. Damaged images, MATLAB files,
archives, Parquet, CSV, checkpoints, weights, cards, galleries and HTTP requests are read in processes with a memory
limit. Clients put load on the service. Fails if anything was lost, or ended in a traceback, a hang or a 5xx other than
503. The same --seed makes the same choices. Runs on Linux only.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from experiments.chaos.process import load_faults
from experiments.launch import in_child
from experiments.measuring import new_flags, write_figures
from han_tf.common import cli as command_line
from han_tf.common.errors import UserError

PARTS = ("kills", "fuzz", "load")
CASES = ("indexing", "service", "extraction", "export", "training")
"""What is killed, the quickest first: the others get the time that they leave."""

FLAT_SHARE, FLAT_MB = 0.1, 64
"""Memory counts as flat if the second half of the load adds no more than this share, or no more than these MiB."""

SHOWN = 5
"""Most faults of one kind that are printed; the JSON holds all."""

FLAGS = new_flags()
FLAGS.group("output")
FLAGS.string("kept", "", "Folder for inputs that crash or hang their reader.")
FLAGS.group("options")
FLAGS.list_of("parts", PARTS, "What to do.", flags.EnumParser([*PARTS]))
FLAGS.integer("seed", 0, "Seed of all choices.", 0)
FLAGS.group("kills and damaged inputs")
FLAGS.list_of("cases", CASES, "What to kill.", flags.EnumParser([*CASES]))
FLAGS.integer("rounds", 100, "Kills of each command.", 0)
FLAGS.integer("inputs", 10_000, "Damaged inputs.", 0)
FLAGS.real("minutes", 30, "Time for all but the load, minutes; after it, no more commands are killed.", 0.1)
FLAGS.group("load")
FLAGS.real("load_minutes", 30, "Duration of the load, minutes.", 0.1)
FLAGS.integer("clients", 64, "Clients that ask at the same time.", 1)


def main(values: command_line.Flags) -> None:
    """Runs the parts that the flags name, and reports."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        root = Path(temporary).resolve()
        skipped = load_faults(root)
        if skipped:
            print(f"note: {skipped}")
        begun, minutes, figures = time.monotonic(), 0.0, []
        for figure in _figures(values, root, begun + 60 * values.minutes):
            shown = figure["faults"][:SHOWN]
            print(json.dumps({**figure, "faults": len(figure["faults"])}), *shown, sep="\n", flush=True)
            figures.append(figure)
            if figure["part"] != "load":
                minutes = (time.monotonic() - begun) / 60
            # After each part, so that figures survive a crash.
            write_figures(values.output, "chaos", seed=values.seed, skipped=skipped, minutes=minutes, figures=figures)
    wrong = sum(len(figure["faults"]) for figure in figures)
    if wrong:
        raise UserError(f"{wrong} times something went wrong that should not, see above")


def _figures(values: command_line.Flags, root: Path, end: float) -> Iterator[dict[str, Any]]:
    """Yields figures: the part, the case, counts, and errors as ``faults``."""
    if set(values.parts) & {"kills", "fuzz"}:
        from experiments.chaos.fuzz import fuzz
        from experiments.chaos.kills import MODEL, disturb, prepare
        from experiments.chaos.service import disturb_service

        works = prepare(root)
        if "fuzz" in values.parts:
            for figure in fuzz(root, values.inputs, values.seed, values.kept):
                yield {"part": "fuzz", **figure}
        if "kills" in values.parts:
            calls = {work.name: partial(disturb, work, root) for work in works}
            calls["service"] = partial(disturb_service, root / "exports" / MODEL, root)
            cases = [case for case in CASES if case in values.cases]
            for left, case in zip(range(len(cases), 0, -1), cases):
                yield {"part": "kills", **calls[case](values.rounds, (end - time.monotonic()) / left, values.seed)}
    if "load" in values.parts:
        yield {"part": "load", **_load(values, root)}


def _load(values: command_line.Flags, root: Path) -> dict[str, Any]:
    output, faults = root / "load.json", []
    arguments = [f"--seconds={60 * values.load_minutes}", f"--clients={values.clients}", f"--output={output}"]
    try:
        in_child("experiments.bench_service", arguments, root / "load.log")
    except UserError as error:
        faults.append(str(error))
    if not output.exists():
        return {"case": "load", "faults": faults or ["no figures"]}
    whole = json.loads(output.read_text())["figures"][0]
    memory = whole["memory_mb"]
    if memory["end"] > max((1 + FLAT_SHARE) * memory["middle"], memory["middle"] + FLAT_MB):
        faults.append(f"memory grows: {memory}")
    return {**whole, "case": "load", "load_average": os.getloadavg()[0], "faults": faults}


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))

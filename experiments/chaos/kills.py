"""Kills commands and makes their disk fail, again and again; their results must equal those of undisturbed commands."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.chaos.process import KINDS, OF_DISK, UNDISTURBED, Child, Ended, Fault, Tally, result_of
from han_tf import export, extract, index, train
from han_tf.common import cli
from han_tf.common.files import write_npz
from han_tf.data.synthetic import SyntheticPedestrians, generate
from han_tf.features.extractor import FeatureExtractor
from han_tf.features.shards import FeatureShards
from han_tf.runs.card import read_card, verify_files
from han_tf.search import open_gallery

SHARES = (0, 0.8, 0.08, 0.06, 0.06)
"""Probability of each kind of fault. Half of the kills are at a random time, half at a random write."""

COUNTED = (*KINDS[1:], "compared", "lost", "doubled", "differing", "unreadable")
"""Figures of a disturbed command: disturbances, its results that were compared, and rows that are wrong."""

DIMENSION, ROWS = 64, 3000
MODEL = "onnx-float32"


class Work(NamedTuple):
    """A command that is disturbed."""

    name: str
    command: Callable[[Path], int]  # runs it to the end in a folder; returns the exit status
    rows: Callable[[Path], Iterable[tuple[str, Any]]]  # reads its results there: pairs of a key and numbers
    tolerance: float = 0.0  # most by which the numbers may differ from those of an undisturbed command


def prepare(root: Path) -> list[Work]:
    """Draws people, trains a small network on them, exports it, and returns the commands to disturb."""
    data, run, exports, features = root / "data", root / "run", root / "exports", root / "features.npz"
    log = root / "log"
    people = SyntheticPedestrians(
        train_identities=8, test_identities=4, train_images_per_camera=2, images_per_camera=2, distractors=6, junk=3
    )
    result_of(partial(generate, data, people, layout="market1501"), log)
    rng = np.random.default_rng(0)
    labels = {"pids": rng.integers(1, 50, ROWS), "camids": rng.integers(1, 7, ROWS)}
    paths = np.array([f"{row}.jpg" for row in range(ROWS)])
    write_npz(features, features=rng.standard_normal((ROWS, DIMENSION)).astype(np.float32), paths=paths, **labels)
    model = exports / MODEL
    works = [
        Work("training", partial(_train, data), _weights),
        Work("export", partial(_export, run), _exports, 1e-5),
        Work("extraction", partial(extract_features, model, data), _features, 1e-5),
        Work("indexing", partial(_index, features), _entries),
    ]
    for work, folder in ((works[0], run), (works[1], exports)):
        ended = Child(partial(work.command, folder), log, folder).end()
        if ended.status:
            raise RuntimeError(f"{work.name}: status {ended.status}: {ended.said}")
    return works


def run_command(module: Any, *arguments: Any, positional: str = "") -> int:
    """Runs a module's command line and returns its exit status."""
    argv = [module.__name__, *map(str, arguments)]
    return cli.run(module.main, module.FLAGS, module.__doc__, argv, positional or None)


def _train(data: Path, folder: Path) -> int:
    import tensorflow as tf

    # Optimising the graphs would take longer than the whole training.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    without = [f"--no{part}" for part in ("spatial", "channel", "hard", "interaction")]
    size = ["--input_height=48", "--input_width=32", "--epochs=4"]
    return run_command(train, "--dataset=market1501", f"--data_dir={data}", f"--run={folder}", *size, *without)


def _weights(folder: Path) -> Iterable[tuple[str, Any]]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / "checkpoints"))
    for name in reader.get_variable_to_shape_map():
        if reader.get_variable_to_dtype_map()[name] != tf.string:
            yield name, reader.get_tensor(name)


def _export(run: Path, folder: Path) -> int:
    return run_command(export, f"--model={run}", f"--output={folder}", "--format=onnx", "--noaccuracy")


def _exports(folder: Path) -> Iterable[tuple[str, Any]]:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 32, 3), np.uint8)
    for model in folder.glob("[!.]*/"):
        verify_files(model, read_card(model))
        yield model.name, FeatureExtractor(model, threads=1).embed(pixels)
    for row in json.loads((folder / "exports.json").read_text())["exports"]:
        yield f"row of {row['format']}", 0


def extract_features(model: Path, data: Path, folder: Path) -> int:
    """Extracts the features of the images below ``data``; returns the exit status."""
    arguments = (data, f"--model={model}", f"--output={folder}", "--shard_images=16", "--threads=1")
    return run_command(extract, *arguments, positional="images")


def _features(folder: Path) -> Iterable[tuple[str, Any]]:
    for batch in FeatureShards(folder):
        yield from zip(batch.paths.tolist(), batch.features)


def _index(features: Path, folder: Path) -> int:
    return run_command(index, features, f"--index={folder}", "--checksum=chaos", "--engine=hnsw", positional="features")


def _entries(folder: Path) -> Iterable[tuple[str, Any]]:
    with open_gallery(folder) as gallery:
        entries = gallery.page(10 * ROWS)
        features = gallery.features([entry.id for entry in entries])
        hits = gallery.search(features[:20], 1)
        found = [hit[0].entry.id == entry.id for hit, entry in zip(hits, entries)]
        yield "stored rows that find themselves", sum(found)
        for entry, feature in zip(entries, features):
            yield entry.path, np.array([*feature, entry.pid, entry.camid])


def disturb(work: Work, root: Path, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """Disturbs and restarts a command until it was killed ``rounds`` times or ``seconds`` are over.

    Returns:
      The number of each kind of fault, of rows that differ after runs that ended, and other errors as ``faults``.
    """
    rng, log, base, tally = np.random.default_rng(seed), root / "log", root / work.name, Tally(work.name)
    plain = Child(partial(work.command, base), log, base).end()
    if plain.status:
        tally.faults.append(f"undisturbed: status {plain.status}: {plain.said[-500:]}")
        return tally.figures(COUNTED)
    expected = result_of(lambda: list(work.rows(base)), log)
    folder, last = root / f"{work.name}-disturbed", False
    while not last:
        last = tally.counts["kill"] >= rounds or tally.seconds >= seconds
        fault = UNDISTURBED if last else chosen(rng, plain)
        ended = Child(partial(work.command, folder), log, folder, fault).end()
        if not last:
            tally.counts[_happened(fault, ended)] += 1
        tally.faults += complaints(work.name, fault, ended)
        if last or ended.status == 0:
            _compare(work, expected, folder, log, tally)
            shutil.rmtree(folder)
    return tally.figures(COUNTED, rows=len(expected))


def _happened(fault: Fault, ended: Ended) -> str:
    """Returns what disturbed a command, or "too late" if it ended before that."""
    if ended.status == -signal.SIGKILL:
        return "kill"
    began = ended.status or ended.calls[fault.kind == "EIO, read"] > fault.after
    return fault.kind if fault.kind in OF_DISK and began else "too late"


def chosen(rng: np.random.Generator, plain: Ended) -> Fault:
    """Returns a fault that falls into the time or the calls of the undisturbed command."""
    kind = str(rng.choice(KINDS, p=SHARES)) if any(plain.calls) else "kill"
    if kind == "kill" and (rng.random() < 0.5 or not any(plain.calls)):
        return Fault(seconds=rng.uniform(0, plain.seconds))
    return Fault(kind, int(rng.integers(max(1, plain.calls[kind == "EIO, read"]))))


def complaints(name: str, fault: Fault, ended: Ended) -> list[str]:
    """Returns a line if a command ended wrongly: not with status 0, a kill, or a line of error after a disk fault."""
    refused = ended.status == 1 and "error: " in ended.said and "Traceback" not in ended.said
    killed = ended.status == -signal.SIGKILL and not ended.hung
    if ended.status == 0 or killed or (refused and fault.kind in OF_DISK):
        return []
    return [f"{name}, {fault}: {'hang' if ended.hung else ended.status}: {ended.said[-1500:]}"]


def _compare(work: Work, expected: list[tuple[str, Any]], folder: Path, log: Path, tally: Tally) -> None:
    """Counts the rows in ``folder`` that are lost, doubled, or differ in their numbers from the ``expected`` ones."""
    tally.counts["compared"] += 1
    try:
        rows = result_of(lambda: list(work.rows(folder)), log)
    except RuntimeError as error:
        tally.counts["unreadable"] += 1
        tally.faults.append(f"{work.name}: not readable: {error}")
        return
    wanted, found, values = Counter(key for key, _ in expected), Counter(key for key, _ in rows), dict(expected)
    known = [(key, value) for key, value in rows if key in values]
    wrong = {
        "lost": [*(wanted - found).elements()],
        "doubled": [*(found - wanted).elements()],
        "differing": [key for key, value in known if not np.allclose(value, values[key], 0, work.tolerance, True)],
    }
    for what, keys in wrong.items():
        tally.counts[what] += len(keys)
        tally.faults += [f"{work.name}: {what}: {keys}"] if keys else []

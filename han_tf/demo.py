"""Search drawn pedestrians in the browser: a gallery, a service and example queries.

  make demo

It needs no training and no download. The network is that of the newest finished run on the embedded data set or, if
there is none, one that comes with the package; it embeds that set's gallery. Further people, who are in neither
training nor gallery, are drawn to choose the threshold and as queries without a match. All files are kept under demo/
in the run's folder, or in runs/han_small-synthetic, and used again.
"""

import itertools
import json
import math
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from han_tf.common import cli as command_line
from han_tf.common.errors import Note, UserError
from han_tf.common.files import atomic_open, locked, remove, write_json
from han_tf.common.run_files import CONFIG, METRICS
from han_tf.data import DISTRACTOR_PID, JUNK_PID, Record, ReIDDataset, load_dataset
from han_tf.runs.folder import data_of, read_config
from han_tf.weights import output_folder, resolve, shipped_names

with command_line.deferred_imports(__name__):
    import numpy as np
    from PIL import Image

    from han_tf.data.synthetic import SyntheticPedestrians
    from han_tf.data.synthetic.generator import GENERATOR_VERSION, Frame
    from han_tf.features.archives import FeatureSet
    from han_tf.features.extractor import FeatureExtractor

DATASET = "synthetic"

SHIPPED = "han_small-synthetic"
"""The network that is used if there is no finished run."""

STRANGERS = 80
"""Number of drawn strangers: 3 in 4 of them choose the threshold, the others test it."""

FALSE_ALARMS = 0.1
"""Share of strangers' images for which a search within the threshold may have a hit."""

EXAMPLES, STRANGE_EXAMPLES = 8, 4
"""Numbers of example queries: of people in the gallery, and of strangers."""

MIDNIGHT = 1_772_409_600.0
"""2 March 2026, 0:00 UTC, in seconds since 1970: the day of all images."""

SEED = 0
VERSION = 1
"""To be raised whenever the same run and data would give another demo."""

FLAGS = command_line.Flags()
FLAGS.define_run(newest="the newest finished run on the embedded data set, or a network of the package,")
FLAGS.integer("port", 8000, "Port to listen on; 0 for any free one.", 0, 65535)


def main(values: command_line.Flags) -> None:
    """Makes the demo's missing files and serves the demo."""
    from han_tf.serve.__main__ import check_installed

    check_installed()
    from han_tf.search import open_gallery
    from han_tf.serve.__main__ import LOOPBACK
    from han_tf.serve.running import address_of, open_service, serve
    from han_tf.serve.server import listen
    from han_tf.serve.service import Example

    run_dir = resolve(values.model) if values.model else newest_finished_run(values.runs_dir)
    bound = listen("127.0.0.1", values.port)
    print(f"run: {run_dir}", flush=True)
    config = read_config(run_dir)
    dataset = load_dataset(DATASET, data_of(config, DATASET).data_dir or None)
    extractor = FeatureExtractor(run_dir)
    folder = output_folder(run_dir, values.runs_dir) / "demo"
    made = prepare(folder, dataset, extractor)
    service = open_service(
        open_gallery(folder / "gallery", writable=True),
        extractor=extractor,
        attention=str(run_dir),
        state=folder / "state",
        image_roots=[dataset.root],
        examples=[Example(**example) for example in made["examples"]],
    )
    print(service.describe())

    def ready() -> None:
        address = address_of(bound)
        print(f"\nready: {address}  (open it in a browser; Ctrl-C stops)")
        print("The page offers queries to try. From a shell, a person of the gallery and a stranger:")
        for example in (made["examples"][0], made["examples"][-1]):
            print(f"  curl -F k=5 -F {_image_field(example['path'])} {address}/search")
        sys.stdout.flush()

    serve(service, bound, LOOPBACK, ready)


def _image_field(path: str) -> str:
    """Returns the argument of ``curl -F`` that uploads an image, quoted for curl and for the shell."""
    escaped = path.replace("\\", r"\\").replace('"', r"\"")
    return shlex.quote(f'image=@"{escaped}"')


def newest_finished_run(runs_dir: str) -> Path:
    """Returns the run on the embedded data set that finished last or, if there is none, the network of the package.

    Raises:
      UserError: there is neither.
    """
    ended = []
    for results in Path(runs_dir).glob(f"*/{METRICS}"):
        if (results.parent / CONFIG).is_file() and read_config(results.parent)["dataset"] == DATASET:
            ended.append((results.stat().st_mtime_ns, results.parent))
    if ended:
        return max(ended)[1]
    if SHIPPED in shipped_names():
        return resolve(SHIPPED)
    raise UserError(f"no finished run on the {DATASET} data set in {runs_dir}: make train makes one")


def prepare(folder: Path, dataset: ReIDDataset, extractor: FeatureExtractor) -> dict[str, Any]:
    """Makes the demo's gallery, threshold and examples in ``folder`` if they are missing or of another network or data.

    A demo that was served before is kept under another name then, with the people, images and feedback added to it.

    Of concurrent calls one makes the files, the others wait and use them.

    Returns:
      ``examples``, with path and title of each, and the versions, network and data that they were made with.

    Raises:
      UserError: something cannot be read or written.
    """
    waiting = f"another process makes {folder}; waiting for it"
    with locked(folder.with_name(f".{folder.name}.lock"), waiting=waiting):
        return _prepare(folder, dataset, extractor)


def _prepare(folder: Path, dataset: ReIDDataset, extractor: FeatureExtractor) -> dict[str, Any]:
    """Does what :func:`prepare` says; the caller holds the lock."""
    from han_tf.search import create_gallery
    from han_tf.search.calibration import calibrate_search

    origin = {
        "version": VERSION,
        "generator": GENERATOR_VERSION,
        "model": extractor.checksum,
        "data": str(Path(dataset.root).absolute()),
    }
    description = folder / "demo.json"
    with suppress(OSError, ValueError, AttributeError):  # a damaged one is made again
        made = json.loads(description.read_text(encoding="utf-8"))
        if all(made.get(name) == value for name, value in origin.items()):
            return _placed(made, folder)
    if (folder / "state").exists():
        _put_aside(folder)
    # The description is written last: without it, the rest is of an interrupted start and is made again.
    remove(description)
    shutil.rmtree(folder / "gallery", ignore_errors=True)
    records = [record for record in dataset.gallery if record.pid != JUNK_PID]
    features = extractor(records, progress="gallery features")
    times = plausible_times(records)
    with create_gallery(folder / "gallery", extractor.feature_dim, extractor.checksum) as gallery:
        gallery.add(
            features,
            paths=[str(Path(record.path).absolute()) for record in records],
            pids=[None if record.pid == DISTRACTOR_PID else record.pid for record in records],
            camids=[record.camid for record in records],
            times=times,
            checksum=extractor.checksum,
        )
        strangers = draw_strangers()
        seen = FeatureSet.of(
            extractor([np.asarray(image) for _, image in strangers], progress="strangers' features"),
            [Record("", frame.pid, frame.camid) for frame, _ in strangers],
        )
        held_out = seen.pids % 4 == 0
        threshold, facts = calibrate_search(seen.where(~held_out), FALSE_ALARMS, gallery)
        gallery.set_threshold(threshold, facts)
        answers = gallery.search(seen.features[held_out], 1)
        queries = _query_examples(dataset.query)
        nearest = gallery.search(extractor(queries), 1, threshold=math.inf)
    # Queries with the smallest distances come first.
    queries = [queries[index] for index in np.argsort([hits[0].distance for hits in nearest], kind="stable")]
    alarms = sum(map(bool, answers)) / len(answers)
    print(
        f"threshold {threshold:.3f}: within it, {facts['measured_rate']:.0%} of {facts['trials']} images of strangers "
        f"have a hit, and {alarms:.0%} of {len(answers)} others",
        flush=True,
    )
    unseen = [pair for pair, is_held_out in zip(strangers, held_out) if is_held_out]
    made = {**origin, "examples": _examples(folder, queries, unseen[::2])}
    write_json(description, made)
    return _placed(made, folder)


def _placed(made: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the description of a demo, with absolute paths of the images in its folder, which may have been moved."""
    examples = [{**one, "path": str((folder / one["path"]).absolute())} for one in made["examples"]]
    return {**made, "examples": examples}


def _put_aside(folder: Path) -> None:
    """Renames the folder of a demo to the first free of NAME-1, NAME-2, …"""
    from han_tf.search.store import LOCK

    with locked(folder / "gallery" / LOCK, f"{folder}: another process serves this demo, expected it to have ended"):
        pass  # Windows renames no folder with an open file
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    aside = next(other for other in others if not other.exists())
    try:
        folder.rename(aside)
    except OSError as error:
        raise UserError(f"cannot rename {folder} to {aside}: {error.strerror or error}") from error
    warnings.warn(
        f"{folder} held a demo of another version, network or data set: with all that was added it is now {aside}",
        Note,
        stacklevel=3,
    )


def plausible_times(records: Sequence[Record]) -> list[float]:
    """Returns a plausible time for each image, seconds since 1970 UTC; equal records give equal times.

    People arrive between 7 and 18 o'clock, take some minutes from one camera to the next, and are visible at each for
    some seconds. Distractors are seen once.
    """
    cameras: dict[int, set[int]] = {}
    for record in records:
        cameras.setdefault(record.pid, set()).add(record.camid)
    arrival: dict[tuple[int, int], float] = {}
    for pid, seen_by in cameras.items():
        rng = np.random.default_rng((SEED, pid))
        time = rng.uniform(7, 18) * 3600
        for camid in rng.permutation(sorted(seen_by)):
            arrival[pid, int(camid)] = time
            time += rng.uniform(90, 600)
    rng = np.random.default_rng(SEED)
    times = []
    for record in records:
        if record.pid == DISTRACTOR_PID:
            time = rng.uniform(7, 18) * 3600
        else:
            time = arrival[record.pid, record.camid]
            arrival[record.pid, record.camid] += rng.uniform(0.5, 3)
        times.append(MIDNIGHT + round(time, 1))
    return times


def draw_strangers() -> list[tuple[Frame, Image.Image]]:
    """Returns two drawn images, of two cameras, of each of some people who are not in the embedded data set."""
    known = SyntheticPedestrians()
    more = SyntheticPedestrians(test_identities=known.test_identities + STRANGERS)
    people = {frame.pid for frame in known.frames()}
    frames: dict[int, list[Frame]] = {}
    for frame in more.frames():
        if frame.subset == "query" and frame.pid not in people:
            frames.setdefault(frame.pid, []).append(frame)
    rng = np.random.default_rng(SEED)
    chosen = [own[index] for own in frames.values() for index in sorted(rng.permutation(len(own))[:2])]
    return [(frame, more.draw(frame).image) for frame in chosen]


def _query_examples(queries: Sequence[Record]) -> list[Record]:
    """Returns one query of each of some people, from different cameras."""
    people = sorted({record.pid for record in queries})
    chosen = people[:: max(1, len(people) // EXAMPLES)][:EXAMPLES]
    own = [[record for record in queries if record.pid == pid] for pid in chosen]
    return [records[number % len(records)] for number, records in enumerate(own)]


def _examples(
    folder: Path, queries: Sequence[Record], strangers: Sequence[tuple[Frame, Image.Image]]
) -> list[dict[str, str]]:
    examples = [
        {"path": str(Path(record.path).absolute()), "title": f"Person {record.pid}, camera {record.camid}"}
        for record in queries
    ]
    for frame, image in strangers[:STRANGE_EXAMPLES]:
        name = f"stranger-{frame.pid}.png"
        with atomic_open(folder / name) as stream:
            image.save(stream, "PNG")
        examples.append({"path": name, "title": f"A stranger, camera {frame.camid}"})
    return examples


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))

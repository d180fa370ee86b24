"""Make a gallery from extracted features, add to it, maintain it, and choose its threshold.

  python -m han_tf.index --index DIR FEATURES...
  python -m han_tf.index --index DIR --list --camera 3 > entries.csv
  python -m han_tf.index --index DIR --delete_where --before 2026-03-01
  python -m han_tf.index --index DIR --calibrate VALIDATION --false_accept_rate 0.01

FEATURES are folders that python -m han_tf.extract wrote, or NumPy archives (.npz) with features, pids and camids;
archives do not name their model, so --model or --checksum must. Junk (pid -1) is left out and distractors (pid 0) are
added without a pid. --index is a folder or, for Milvus, an address, http://HOST:PORT#COLLECTION, or the file of a
Milvus Lite, NAME.db; a token is taken from MILVUS_TOKEN in the environment or from the address,
http://USER:PASSWORD@HOST:PORT. If there is no gallery, one is made. Repeat a stopped command to continue it. An image
is identified by its path: images that are in the gallery already stay, with the same id; an image whose feature has
changed is replaced, and changed labels are corrected. So the same commands extract and index a growing folder again.
Deleted images come back if their source is added again.

--list and --count print the entries, or their number, in place of the description of the gallery. A list can be edited
and given to --relabel, which changes the labels of the entries in it: an empty field removes a label, a missing column
leaves it.

A threshold is a distance; images beyond it are not taken for the same person. --calibrate chooses it so that a search
for a person who is not in the gallery has a hit with the probability --false_accept_rate (NIST's FPIR). VALIDATION are
features with pids, of people who are not in the gallery or have the same pids there. With --within, the validation
images replace the gallery, and each person in turn is the stranger. --per_pair takes the rate over pairs of images
instead (false match rate); the rate of a search of N images can be up to N times as high.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any, Optional

import numpy as np
from absl import flags
from tqdm import tqdm

from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.progress import progress_bar
from han_tf.features.archives import FeatureSet
from han_tf.search.address import Address
from han_tf.search.calibration import Calibration, calibrate_pair, calibrate_search, calibrate_search_within
from han_tf.search.choice import ENGINES
from han_tf.search.entries import Filters, check_choice
from han_tf.search.filter_flags import NAMES, define_filters, filters_of
from han_tf.search.gallery import Gallery
from han_tf.search.opening import create_gallery, gallery_exists, open_gallery
from han_tf.search.sources import FeatureSource, add_source, open_source
from han_tf.search.tables import relabel_as_listed, write_entries

FLAGS = command_line.Flags()
FLAGS.group("gallery")
FLAGS.string("index", "", "The gallery: a folder, or an address of Milvus.")
FLAGS.enum(
    "engine",
    None,
    ["auto", *ENGINES, "milvus"],
    "Index of the gallery; auto, the default for a new gallery, chooses by size and memory. An existing gallery gets "
    "this index, if it has another one.",
)
FLAGS.integer("memory_mb", None, "Memory the index may take, MiB; half of what is free if not given.", 1)
FLAGS.old_name("memory", "memory_mb")
FLAGS.string("milvus_index", None, "Milvus: index type of a new collection, HNSW if not given; FLAT is exact.")
FLAGS.group("model")
FLAGS.string("model", "", "Folder of the run or export, or name of the network of the package, that made the features.")
FLAGS.string("checksum", "", "That model's checksum, or any name for another network.")
FLAGS.group("entries")
FLAGS.boolean("list", False, "Print the entries that pass the filters as CSV; other messages go to standard error.")
FLAGS.boolean("count", False, "Print the number of entries that pass the filters.")
define_filters(FLAGS)
FLAGS.group("changes")
FLAGS.list_of("delete", [], "Ids of entries to delete.", flags.IntegerParser())
FLAGS.boolean("delete_where", False, "Delete the entries that pass the filters.")
FLAGS.string("relabel", "", "CSV file of new labels, with columns id or path, and pid, camid or time.")
FLAGS.boolean("compact", False, "Give back the space of deleted entries, and rebuild.")
FLAGS.boolean("check", False, "Compare all stored vectors with their checksums.")
FLAGS.boolean("rebuild", False, "Train and build the index from the start.")
FLAGS.group("threshold")
FLAGS.string("calibrate", "", "Choose the threshold by these features, which have pids.")
FLAGS.real("false_accept_rate", 0.01, "Wanted false-accept rate of --calibrate.", 0, 1, needs="calibrate")
FLAGS.boolean("per_pair", False, "The rate is over pairs of images, not over searches.", needs="calibrate")
FLAGS.boolean("within", False, "Search among the validation images, not in the gallery.", needs="calibrate")
FLAGS.real("threshold", None, "Set the threshold to this distance.", 0)
FLAGS.boolean("nothreshold", False, "Remove the threshold.")
FLAGS.require("index", "a folder or an address for the gallery")
FLAGS.check_pair(
    "per_pair", "within", False, "--per_pair takes all pairs of validation images anyway, expected it without --within"
)
for _pair in combinations(("list", "count", "delete_where"), 2):
    FLAGS.check_pair(*_pair, False, "expected one of --list, --count and --delete_where")
for _pair in combinations(("threshold", "nothreshold", "calibrate"), 2):
    FLAGS.check_pair(*_pair, False, "expected one of --threshold, --nothreshold and --calibrate")


def main(values: command_line.Flags) -> None:
    """Makes, changes or describes the gallery, as the flags say."""
    tell = partial(print, file=sys.stderr if values.list or values.count else sys.stdout)
    filters = _filters(values)
    sources = [open_source(path) for path in values.positional]
    validation = open_source(values.calibrate) if values.calibrate else None
    given = _given_checksum(values)
    checksums = {}
    for source in [*sources, *([validation] if validation else [])]:
        checksum = checksums[source.name] = source.checksum or given
        if not checksum:
            raise UserError(f"{source.name} does not say which model made it, expected --model DIR or --checksum NAME")
        if given and checksum != given:
            raise UserError(f"{source.name}: features of the model {checksum[:12]}…, expected {given[:12]}…")
    new = not gallery_exists(values.index)
    with _open(values, [*sources, *([validation] if validation else [])], checksums) as gallery:
        _check_index(values, gallery)
        if values.memory_mb and (gallery.engine == "milvus" or (values.engine or "auto" * new) != "auto"):
            tell("note: --memory_mb changes nothing here, it is for the choice of an index in a folder: --engine auto")
        gallery.check_model(given)
        for checksum in checksums.values():
            gallery.check_model(checksum)
        if validation and validation.dimension != gallery.dimension:
            raise UserError(
                f"{validation.name}: features of dimension {validation.dimension}, expected {gallery.dimension}"
            )
        for source in sources:
            with _bar(source.name) as show:
                added = add_source(gallery, source, show)
            if source.note:
                tell(f"{source.name}: {source.note}")
            tell(f"{source.name}: {added}")
        if values.delete:
            tell(f"deleted {gallery.delete(values.delete):,} entries")
        if values.delete_where:
            tell(f"deleted {gallery.delete_where(filters):,} entries")
        if values.relabel:
            tell(f"labels of {relabel_as_listed(gallery, values.relabel):,} entries changed")
        _build(values, gallery, bool(sources))
        if validation:
            chosen = _calibrate(values, gallery, validation)
            if validation.note:
                tell(f"{validation.name}: {validation.note}")
            gallery.set_threshold(chosen.threshold, {**chosen.facts, "validation": validation.name})
        elif values.threshold is not None or values.nothreshold:
            gallery.set_threshold(values.threshold)
        if values.list:
            write_entries(gallery, filters, sys.stdout)
        elif values.count:
            print(gallery.count(filters))
        else:
            print(*describe(gallery.info()), sep="\n")
        if values.check:
            with _bar("check") as show:
                compared = gallery.check(show)
            left = len(gallery) - compared
            tell(f"checked: {compared:,} vectors" + f"; {left:,} of an earlier version have no checksums" * bool(left))


def _filters(values: command_line.Flags) -> Filters:
    """Returns the filters of the flags, after comparing them with the flags that they are for."""
    filters = filters_of(values)
    names = " or ".join(f"--{name}" for name in NAMES)
    if values.delete_where and not filters:
        raise command_line.UsageError(f"--delete_where would delete every entry, expected {names}")
    if filters and not (values.list or values.count or values.delete_where):
        raise command_line.UsageError(f"{names} means nothing without --list, --count or --delete_where")
    return filters


def _open(values: command_line.Flags, sources: list[FeatureSource], checksums: dict[str, str]) -> Gallery:
    """Opens the gallery, or makes one; ``sources`` also holds the validation features, which have to fit."""
    if gallery_exists(values.index):
        return open_gallery(values.index)
    if not values.positional:
        raise UserError(
            f"{Address.of(values.index) or values.index}: no gallery here, expected FEATURES to make one of"
        )
    added = sources[: len(values.positional)]
    first, rows, dimension = sources[0], sum(map(len, added)), sources[0].dimension
    for source in sources:  # before the gallery is made
        if checksums[source.name] != checksums[first.name]:
            models = f"{checksums[source.name][:12]}…, expected {checksums[first.name][:12]}…"
            raise UserError(f"{source.name}: features of the model {models}, as in {first.name}")
        if source.dimension != dimension:
            raise UserError(f"{source.name}: features of dimension {source.dimension}, expected {dimension}")
    options: dict[str, Any] = {"rows": rows, "memory_mb": values.memory_mb}
    if values.engine == "milvus" or Address.of(values.index):
        options = {"index": values.milvus_index or "HNSW"}
    return create_gallery(values.index, dimension, checksums[first.name], values.engine or "auto", **options)


def _check_index(values: command_line.Flags, gallery: Gallery) -> None:
    """Raises UserError if the gallery cannot have the wanted index, before anything is added to it."""
    milvus = gallery.engine == "milvus"
    if values.engine:
        check_choice(values.engine, "--engine", ("auto", *(["milvus"] if milvus else ENGINES)))
    index = gallery.info()["index"] if milvus else "a folder"
    if values.milvus_index not in (None, index):
        raise UserError(f"--milvus_index {values.milvus_index}, but {gallery.location} is {index} already")


def _build(values: command_line.Flags, gallery: Gallery, added: bool) -> None:
    options: dict[str, Any] = {"memory_mb": values.memory_mb} if gallery.engine != "milvus" else {}
    with _bar("index") as show:
        if values.compact:
            gallery.compact(show)
        if added or values.rebuild or values.engine:
            gallery.build(values.engine, anew=values.rebuild, progress=show, **options)


def _calibrate(values: command_line.Flags, gallery: Gallery, source: FeatureSource) -> Calibration:
    batches = list(source)
    features = FeatureSet(
        np.concatenate([batch.features for batch in batches]),
        *(np.concatenate([getattr(batch, name) for batch in batches]) for name in ("pids", "camids", "paths")),
    )
    if values.per_pair:
        return calibrate_pair(features, values.false_accept_rate)
    if values.within:
        return calibrate_search_within(features, values.false_accept_rate)
    return calibrate_search(features, values.false_accept_rate, gallery)


def describe(info: dict[str, Any]) -> list[str]:
    """Returns the result of :meth:`han_tf.search.Gallery.info` as lines of text."""
    what = f"{info['entries']:,} images of dimension {info['dimension']:,}, model {info['model'][:12]}"
    lines = [f"{info['location']}: {what}"]
    lines.append(f"engine {info['engine']}" + (f" ({info['reason']})" if "reason" in info else f", {info['index']}"))
    if info["threshold"] is None:
        lines.append("no threshold: every search has hits")
    else:
        lines.append(f"threshold {info['threshold']:.4f}" + _origin(info["calibration"]))
    return lines + [f"note: {note}" for note in info["notes"]]


def _origin(facts: Optional[dict[str, Any]]) -> str:
    try:
        return _calibrated(facts or {})
    except (KeyError, TypeError, ValueError):  # a program may store any facts
        return ", set by hand"


def _calibrated(facts: dict[str, Any]) -> str:
    trials = {
        "search": "of {trials:,} searches of strangers among {gallery_images:,} images have a hit",
        "pair": "of {trials:,} pairs of two people are accepted",
    }[facts["kind"]].format(**facts)
    text = f": {facts['measured_rate']:.3%} {trials} (wanted {facts['rate']:.3%}; {facts['people']:,} people)"
    if facts["accepted_rate"] is not None:
        text += f"; {facts['accepted_rate']:.1%} of the images have one of their own person within it"
    return text


def _given_checksum(values: command_line.Flags) -> Optional[str]:
    if not values.model:
        return values.checksum or None
    from han_tf.features.extractor import FeatureExtractor

    found = FeatureExtractor(values.model).checksum
    if values.checksum and values.checksum != found:
        raise UserError(f"{values.model}: the model {found[:12]}…, expected {values.checksum[:12]}…")
    return found


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows how many of how many images are done, on a bar that appears at its first call."""
    bars: list[tqdm] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(progress_bar(total=total, desc=label, unit="img", unit_scale=True))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="features"))

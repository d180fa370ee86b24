"""Market-1501 (Zheng et al., ICCV 2015), and other data sets with the same folders and file names.

File names are ``{pid:04}_c{camera}s{sequence}_{frame:06}_{box:02}.jpg``, e.g. ``0002_c1s1_000451_03.jpg``. Pid -1 is
junk, 0000 a distractor (see :mod:`han_tf.data.records`). A few files of the published archive end in ``.jpg.jpg``.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from han_tf.data.counts import Counts, compared
from han_tf.data.folders import NameParser, PathLike, find_folder, name_parser, read_folder
from han_tf.data.records import Record, ReIDDataset

PUBLISHED = {
    "train": Counts(images=12_936, identities=751, cameras=6, junk=0),
    "query": Counts(images=3_368, identities=750, cameras=6, junk=0),
    "gallery": Counts(images=15_913, identities=750, cameras=6, junk=3_819),
    "multi_query": Counts(images=25_259, cameras=6),
}
"""Published counts; multi_query is all of gt_bbox, with or without a query."""

LAYOUTS = (
    ("bounding_box_train", "query", "bounding_box_test"),
    ("query", "bounding_box_test"),
    ("query", "gallery"),
)
"""The folders that a data set may consist of; without ``bounding_box_train`` it is for evaluation only."""

parse_name = name_parser(r"(?P<pid>-1|\d{1,255})_c(?P<camid>\d{1,255})s\d+_\d+_\d+")


def read_subsets(root: Path, parse: NameParser, example: str, notes: list[str]) -> dict[str, tuple[Record, ...]]:
    """Returns train, query and gallery of a folder with one of the :data:`LAYOUTS`.

    The other arguments and errors are those of :func:`han_tf.data.folders.read_folder`; ``notes`` also gets a sentence
    if there are no training images.
    """
    gallery = "bounding_box_test" if (root / "bounding_box_test").exists() else "gallery"
    subsets = {"train": (), "query": (), "gallery": ()}
    for subset, folder in (("train", "bounding_box_train"), ("query", "query"), ("gallery", gallery)):
        if subset != "train" or (root / folder).is_dir():
            subsets[subset] = read_folder(root / folder, parse, example, notes)
        else:
            notes.append(f"no {folder} folder: for evaluation only")
    return subsets


def read_market1501(
    data_dir: PathLike, split: str = "", name: str = "market1501", published: Mapping[str, Counts] = PUBLISHED
) -> ReIDDataset:
    """Reads a data set in one of the :data:`LAYOUTS`; :class:`han_tf.data.DatasetEntry` says what a reader takes.

    ``multi_query`` holds the boxes of ``gt_bbox`` whose person and camera have a query image, as in the published
    multi-query protocol. ``gt_query`` (ground truth as .mat files) is not read. ``name`` is the data set's registry
    name; its ``published`` counts are compared with the files, that of ``multi_query`` with the whole of ``gt_bbox``.
    """
    root = find_folder(data_dir, "market1501", *LAYOUTS)
    notes: list[str] = []
    subsets = read_subsets(root, parse_name, "0002_c1s1_000451_03.jpg", notes)
    if (root / "gt_bbox").is_dir():
        subsets["multi_query"] = read_folder(root / "gt_bbox", parse_name, "0001_c1s1_001051_00.jpg", notes)
    elif "multi_query" in published:
        notes.append("no gt_bbox folder: no multi-query evaluation")
        published = {subset: counts for subset, counts in published.items() if subset != "multi_query"}
    dataset = compared(name, split, root, subsets, published, notes)
    probes = {(record.pid, record.camid) for record in dataset.query}
    return replace(dataset, multi_query=tuple(r for r in dataset.multi_query if (r.pid, r.camid) in probes))

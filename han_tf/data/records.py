"""Records of person images, data sets made of them, and checks of both."""

import hashlib
import os
import re
from dataclasses import dataclass
from typing import NamedTuple, Union

from han_tf.common.errors import UserError

JUNK_PID = -1
"""Person id of junk images (bad detections), which are left out of every ranking."""

DISTRACTOR_PID = 0
"""Person id of distractors (people without a query), which are ranked as negatives for every query."""

SUBSETS = ("train", "query", "gallery", "multi_query")
"""Names of the subsets of a data set."""


class Record(NamedTuple):
    """One person bounding-box image."""

    path: str
    pid: int
    camid: int


@dataclass(frozen=True)
class ReIDDataset:
    """A re-id data set: records of (path, pid, camid) per subset.

    Attributes:
      name: registry name, e.g. ``market1501``.
      split: the protocol's variant, e.g. ``detected``; ``""`` if there is only one.
      root: the folder it was read from.
      train: training images, labelled by pid, not by class index; empty if the data set is for evaluation only.
      query: query images.
      gallery: images to rank, distractors included; also junk, with pid :data:`JUNK_PID`, which the metrics leave out.
      multi_query: images of the query people for multi-query evaluation (Market-1501's gt_bbox);
        empty if the data set has none.
      differences: one sentence for each count that differs from the published one.
      notes: other sentences for readers of results, e.g. on ignored files.
      parts: the data sets that this one joins, see :mod:`han_tf.data.joined`; empty if it joins none.
    """

    name: str
    split: str
    root: str
    train: tuple[Record, ...]
    query: tuple[Record, ...]
    gallery: tuple[Record, ...]
    multi_query: tuple[Record, ...] = ()
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple["ReIDDataset", ...] = ()

    def separate(self) -> tuple["ReIDDataset", ...]:
        """Returns the data sets to evaluate one by one: the joined ones, or this one."""
        return self.parts or (self,)

    def subsets(self) -> dict[str, tuple[Record, ...]]:
        """Returns the non-empty subsets by name."""
        return {name: getattr(self, name) for name in SUBSETS if getattr(self, name)}

    def fingerprint(self, *subsets: str) -> str:
        """Returns 64 hexadecimal digits that change with the path, file size, pid or camid of any image of ``subsets``.

        Paths are relative to :attr:`root`, so that moving the data set changes nothing.
        """
        digest = hashlib.sha256()
        if self.parts:
            digest.update("".join(part.fingerprint(*subsets) for part in self.parts).encode())
            return digest.hexdigest()
        for subset in subsets:
            for path, pid, camid in getattr(self, subset):
                size = os.path.getsize(path) if os.path.exists(path) else "missing"
                inner = path.removeprefix(os.path.join(self.root, ""))
                digest.update(os.fsencode(f"{subset}\0{inner}\0{size}\0{pid}\0{camid}\n"))
        return digest.hexdigest()

    def train_pids(self) -> list[int]:
        """Returns the sorted distinct training pids; the index of a pid is its class."""
        return sorted({record.pid for record in self.train})


def parse_label(where: str, name: str, given: Union[str, int]) -> int:
    """Returns a pid or camid (``name``) that was given as text or as a number in a file name.

    Raises:
      UserError: it is no integer, is too small, or has more than 18 digits, so that it may not fit into 64 bits; the
        message names ``where``.
    """
    smallest = JUNK_PID if name == "pid" else 0
    value = int(given) if re.fullmatch(r"-?[0-9]{1,18}", str(given)) else None
    if value is None or value < smallest:
        raise UserError(f"{where}: {name} is {given!r}, expected an integer of at least {smallest}, up to 18 digits")
    return value


def check_training(dataset: ReIDDataset) -> None:
    """Raises UserError if ``dataset`` has no training images."""
    if not dataset.train:
        raise UserError(
            f"{dataset.name} in {dataset.root}: no train images found, expected some to train on; "
            "a set of query and gallery alone is for evaluation"
        )


def check_protocol(dataset: ReIDDataset) -> ReIDDataset:
    """Returns ``dataset`` if its subsets are fit for training and testing.

    Raises:
      UserError: query or gallery is empty, there is only one training identity, a pid is in both train and test, train
        or query holds junk or a distractor, no query has a match from another camera, or a multi-query image has no
        query of the same person and camera.
    """
    where = f"{dataset.name} in {dataset.root}"
    for name in ("query", "gallery"):
        if not getattr(dataset, name):
            raise UserError(f"{where}: no {name} images found, expected at least one")
    for name in ("train", "query"):
        for record in getattr(dataset, name):
            if record.pid in (JUNK_PID, DISTRACTOR_PID):
                raise UserError(
                    f"{where}: {name} image {record.path} has pid {record.pid}, expected pids from 1 "
                    "(-1 stands for junk and 0 for distractors in the gallery)"
                )
    pids = dataset.train_pids()
    if len(pids) == 1:
        raise UserError(f"{where}: one training identity only (pid {pids[0]}), expected at least 2")
    tested = {r.pid for r in dataset.query + dataset.gallery}
    shared = sorted(set(pids) & tested)
    if shared:
        raise UserError(
            f"{where}: pid {shared[0]} is in both train and test ({len(shared)} such pids), "
            "expected disjoint identities"
        )
    cameras: dict[int, set[int]] = {}
    for record in dataset.gallery:
        cameras.setdefault(record.pid, set()).add(record.camid)
    if not any(cameras.get(record.pid, set()) - {record.camid} for record in dataset.query):
        raise UserError(
            f"{where}: no query has a gallery image of the same pid from another camera, "
            "expected at least one (images from the query's own camera are not counted as matches)"
        )
    probes = {(record.pid, record.camid) for record in dataset.query}
    for record in dataset.multi_query:
        if (record.pid, record.camid) not in probes:
            raise UserError(
                f"{where}: multi_query image {record.path} has pid {record.pid} and camid {record.camid}, "
                "expected those of a query (its features are averaged with that query's)"
            )
    return dataset

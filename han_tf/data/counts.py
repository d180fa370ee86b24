"""Comparison of a data set's image counts with the published ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from han_tf.data.records import DISTRACTOR_PID, JUNK_PID, Record, ReIDDataset


class Counts(NamedTuple):
    """Size of one subset; None where nothing was published."""

    images: Optional[int] = None  # junk not counted
    identities: Optional[int] = None  # distinct pids, JUNK_PID and DISTRACTOR_PID not counted
    cameras: Optional[int] = None  # distinct camera ids, junk not counted
    junk: Optional[int] = None  # images with pid JUNK_PID


def count(records: Sequence[Record]) -> Counts:
    """Returns the counts of one subset."""
    kept = [record for record in records if record.pid != JUNK_PID]
    return Counts(
        images=len(kept),
        identities=len({record.pid for record in kept} - {DISTRACTOR_PID}),
        cameras=len({record.camid for record in kept}),
        junk=len(records) - len(kept),
    )


def differences(subsets: Mapping[str, Sequence[Record]], published: Mapping[str, Counts]) -> tuple[str, ...]:
    """Returns a sentence such as ``"train: 12,935 images, published 12,936"`` for each count that differs.

    Both arguments are by the name of the subset; a published subset that is missing counts as empty.
    """
    sentences = []
    for subset, expected in published.items():
        found = count(subsets.get(subset, ()))
        for what in Counts._fields:
            here, there = getattr(found, what), getattr(expected, what)
            if there is not None and here != there:
                noun = "junk images" if what == "junk" else what
                sentences.append(f"{subset}: {here:,} {noun}, published {there:,}")
    return tuple(sentences)


def compared(
    name: str,
    split: str,
    root: Path,
    subsets: Mapping[str, tuple[Record, ...]],
    published: Mapping[str, Counts],
    notes: Sequence[str],
) -> ReIDDataset:
    """Returns the data set of these ``subsets``, with its differences from the published counts."""
    told = {"differences": differences(subsets, published), "notes": tuple(notes)}
    return ReIDDataset(name, split, str(root), **{"train": (), **subsets}, **told)

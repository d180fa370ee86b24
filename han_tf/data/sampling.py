"""Samplers: the images of each batch of an epoch; and images that stand for all.

Samplers depend on (seed, epoch) alone, so that a run can resume at any batch.
"""

from collections.abc import Sequence

import numpy as np

from han_tf.data.records import Record


def spread(records: Sequence[Record], count: int) -> tuple[Record, ...]:
    """Returns ``count`` of ``records``, evenly spaced from the first to the last; all if there are fewer."""
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return tuple(records[index] for index in chosen)


class ShuffledImages:
    """All images once, in random order.

    The last images, which do not fill a batch, are left out. With fewer images than ``batch_size`` there is one batch
    of all of them.

    Args:
      images: number of images.
      batch_size: images per batch.
    """

    def __init__(self, images: int, batch_size: int):
        self.images = images
        self.batch_size = min(batch_size, images)
        self.batches_per_epoch = images // self.batch_size

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Returns the image indices of one epoch, ``[batches, batch_size]`` int64."""
        order = np.random.default_rng([seed, epoch]).permutation(self.images)
        return order[: self.batches_per_epoch * self.batch_size].reshape(-1, self.batch_size)


class PeopleAndImages:
    """P people with K images each per batch, so that a batch has several images of each person (Hermans et al. 2017).

    An epoch is a number of passes over all people, at least one, chosen so that the number of images comes nearest to
    that of the training set. A pass takes the people in random order, P at a time; the last batch is filled up with
    people drawn from the earlier ones. Each turn of a person takes K of its images that have not been taken yet; once
    fewer than K are left, these are skipped and all its images become available again. If a person has fewer than K
    images, all of them are taken, and the rest is drawn from them with replacement.

    Args:
      labels: ``[n]`` int, the person of each image.
      people: P.
      images_per_person: K.

    Raises:
      ValueError: there are fewer than P people.
    """

    def __init__(self, labels: Sequence[int], people: int, images_per_person: int):
        labels = np.asarray(labels)
        order = np.argsort(labels, kind="stable")
        _, firsts = np.unique(labels[order], return_index=True)
        self.images_of = np.split(order, firsts[1:])
        if len(self.images_of) < people:
            raise ValueError(f"{people} people per batch, but only {len(self.images_of)} in all")
        self.people = people
        self.images_per_person = images_per_person
        self.passes = max(1, round(len(labels) / (len(self.images_of) * images_per_person)))
        self.batches_per_epoch = self.passes * -(-len(self.images_of) // people)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Returns the image indices of one epoch, ``[batches, P·K]`` int64; those of a person are adjacent."""
        rng = np.random.default_rng([seed, epoch])
        turns = np.concatenate([self._pass(rng) for _ in range(self.passes)])
        shown = np.empty([len(turns), self.images_per_person], np.int64)
        for person, images in enumerate(self.images_of):
            mine = np.flatnonzero(turns == person)
            shown[mine] = self._draw(rng, images, len(mine))
        return shown.reshape(self.batches_per_epoch, -1)

    def _pass(self, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(len(self.images_of))
        missing = -len(order) % self.people
        # All people but those of the last batch.
        others = order[: len(order) - (self.people - missing)]
        return np.concatenate([order, rng.choice(others, missing, replace=False)]) if missing else order

    def _draw(self, rng: np.random.Generator, images: np.ndarray, turns: int) -> np.ndarray:
        wanted = self.images_per_person
        if len(images) < wanted:
            return np.stack([np.append(images, rng.choice(images, wanted - len(images))) for _ in range(turns)])
        turns_per_round = len(images) // wanted
        rounds = -(-turns // turns_per_round)
        orders = [rng.permutation(images)[: turns_per_round * wanted] for _ in range(rounds)]
        return np.concatenate(orders).reshape(-1, wanted)[:turns]

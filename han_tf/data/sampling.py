"""Which images make up the batches of an epoch, as (seed, epoch) alone decide.

So any epoch can be entered anywhere, as resuming does.
"""

from collections.abc import Sequence

import numpy as np


class ShuffledImages:
    """All images once, in random order.

    The last images of the order that do not fill a batch sit out, unless there is no full batch at all.

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
    """P people with K images each per batch, so that every image meets others of its person (Hermans et al. 2017).

    An epoch is as many passes over all people as bring its number of images nearest to that of the
    training set, at least one. A pass takes the people in random order, P by P; where the last of them
    do not fill a batch, people drawn from the others join them. Each time its turn comes, a person shows
    K images it has not shown yet; once fewer than K of these are left, they sit out and all its images are
    there again. A person with fewer than K images shows all of them, and some of them again, drawn with
    replacement.

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
        """Returns the image indices of one epoch, ``[batches, P·K]`` int64; those of a person side by side."""
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
        # The last batch's own people are the last of the order.
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

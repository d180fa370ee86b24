"""A slow, obvious gallery that the engines are compared with, and features to put into them."""

import math
from pathlib import PurePosixPath
from typing import NamedTuple, Optional

import numpy as np

from han_tf.features.shards import FeatureBatch, Manifest, write_manifest, write_shard
from han_tf.search import Entry, Filters

CHECKSUM = "0123456789abcdef" * 4


class Plain(NamedTuple):
    """One image of the slow gallery."""

    entry: Entry
    feature: np.ndarray


class PlainGallery:
    """A list of images; a search looks at every one."""

    def __init__(self):
        self.images: list[Plain] = []

    def add(self, ids, features, paths, pids, camids, times):
        for row in zip(ids.tolist(), paths, pids, camids, times, features):
            self.images.append(Plain(Entry(*row[:5]), row[5].astype(np.float64)))

    def delete(self, ids):
        self.images = [image for image in self.images if image.entry.id not in set(ids)]

    def search(self, query, k, filters=Filters(), threshold=math.inf):  # noqa: B008
        found = []
        for entry, feature in self.images:
            if passes(entry, filters):
                distance = math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(query, feature)))
                if distance <= threshold:
                    found.append((distance, entry.id))
        return sorted(found)[:k]


def passes(entry: Entry, filters: Filters) -> bool:
    if filters.cameras and entry.camid not in filters.cameras:
        return False
    if filters.not_cameras and entry.camid in filters.not_cameras:
        return False
    if filters.pids and entry.pid not in filters.pids:
        return False
    parents = [str(parent) for parent in PurePosixPath(entry.path).parents]
    if filters.paths and not (entry.path and {entry.path, *parents} & set(filters.paths)):
        return False
    if filters.after is not None and (entry.time is None or entry.time < filters.after):
        return False
    return filters.before is None or (entry.time is not None and entry.time < filters.before)


def clustered(count: int, dimension: int, seed: int = 0, latent: int = 12, people: Optional[int] = None) -> np.ndarray:
    """Returns features as of a trained network: in clusters, of few latent dimensions, of unit length."""
    rng = np.random.default_rng(seed)
    people = people or max(1, count // 20)
    axes = np.random.default_rng(99).standard_normal((latent, dimension))
    latents = np.random.default_rng(98).standard_normal((people, latent))[rng.integers(0, people, count)]
    features = (latents + 0.5 * rng.standard_normal((count, latent))) @ axes
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def labels(count: int, seed: int = 1):
    """Returns paths, pids, camids and times of which some are not known."""
    rng = np.random.default_rng(seed)

    def some(values):
        return [None if rng.random() < 0.2 else value for value in values]

    return {
        "paths": [f"camera/{i}.jpg" for i in range(count)],
        "pids": some(rng.integers(1, 11, count).tolist()),
        "camids": some(rng.integers(0, 5, count).tolist()),
        "times": some(rng.integers(0, 100, count).astype(float).tolist()),
    }


def write_shards(folder, batch: FeatureBatch, size: int):
    """Writes Parquet files of ``size`` rows as han_tf.extract does; returns the folder."""
    manifest = Manifest(CHECKSUM, batch.features.shape[1], ("global", "local"), "f" * 64, len(batch.pids), size)
    write_manifest(folder, manifest)
    for number in range(manifest.shards):
        write_shard(folder, manifest, number, FeatureBatch(*(a[slice(*manifest.bounds(number))] for a in batch)))
    return folder

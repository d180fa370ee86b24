"""Nearest-neighbour lists for re-ranking: exact, or approximate where N² distances take too long."""

from typing import Any, Optional, Protocol

import numpy as np

from han_tf.common.errors import UserError
from han_tf.metrics.checks import check_count
from han_tf.metrics.distances import PAIRS, DistanceSource, FeatureDistances
from han_tf.metrics.nearest import nearest

SAMPLE = 4096
"""Images among which the farthest one is searched if the lists are approximate."""

TRAINING_VECTORS = 64
"""Vectors per inverted list on which an IVF index is trained; FAISS asks for at least 39."""

CHUNK = 65536
"""Vectors passed to FAISS at a time."""


class Neighbours(Protocol):
    """Interface of functions that compute the neighbour lists of all images among each other."""

    def __call__(
        self, distances: FeatureDistances, k: int, memory_mb: int, threads: int, progress: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns each image's nearest images, itself among them, and its largest distance.

        Args:
          distances: among all N images; ``distances.gallery[i:j]`` are their features.
          k: at most N.
          memory_mb: memory to use, in MiB.
          threads: threads to use.
          progress: whether to show a progress bar.

        Returns:
          Indices int64 ``[N, k]``, nearest first, −1 at the end if fewer were found; and squared L2 distances float64
          ``[N]`` to the farthest image.
        """


def exact_neighbours(
    distances: DistanceSource, k: int, memory_mb: int, threads: int, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns exact lists, see :class:`Neighbours`, from N² distances computed block by block; ties in image order."""
    label = "nearest neighbours" if progress else None
    indices, _, farthest = nearest(distances, k, memory_mb=memory_mb, threads=threads, label=label)
    return indices, farthest


class FaissNeighbours:
    """Approximate lists from a FAISS index, see :class:`Neighbours`; needs the extra ``faiss``.

    The lists of the index are sorted by exact distance. The largest distance of an image is estimated as that to the
    farthest of 4,096 images spread over the collection; results depend little on it, since it scales the distances of
    all neighbours of an image alike. The index may depend on the number of threads, and that of HNSW with several
    threads may differ each time.

    Args:
      kind: ``hnsw``, a graph: slow to build, accurate; or ``ivf``, inverted lists: quick to build.
      links: links per vector of the graph (FAISS's M), at least 2.
      effort: per search, number of candidates that HNSW keeps (efSearch) or of lists that IVF reads (nprobe).
        None: 128 candidates, or 16 lists.
      lists: number of inverted lists; None: 4·√N, fewer if there are too few vectors to train them.

    Raises:
      UserError: ``kind`` is unknown, a number is too small, or FAISS is not installed.
    """

    def __init__(self, kind: str = "hnsw", links: int = 32, effort: Optional[int] = None, lists: Optional[int] = None):
        if kind not in ("hnsw", "ivf"):
            raise UserError(f"neighbour index is {kind!r}, expected 'hnsw' or 'ivf'")
        self.kind = kind
        self.links = check_count(links, "links", 2)
        self.effort = check_count({"hnsw": 128, "ivf": 16}[kind] if effort is None else effort, "effort", 1)
        self.lists = lists if lists is None else check_count(lists, "lists", 1)
        self.faiss = _import_faiss()

    def __call__(
        self, distances: FeatureDistances, k: int, memory_mb: int, threads: int, progress: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lists; the index takes memory beside ``memory_mb``."""
        features = distances.gallery
        n = len(features)
        threads_before = self.faiss.omp_get_max_threads()
        self.faiss.omp_set_num_threads(threads)
        try:
            index = self._build(features)
            indices = np.empty((n, k), np.int64)
            for start in range(0, n, CHUNK):
                chunk = np.ascontiguousarray(features[start : start + CHUNK], np.float32)
                indices[start : start + CHUNK] = index.search(chunk, k)[1]
        finally:
            self.faiss.omp_set_num_threads(threads_before)
        return _sorted_exactly(distances, indices), sampled_farthest(distances, memory_mb, threads)

    def _build(self, features: Any) -> Any:
        n, dimension = features.shape
        if self.kind == "hnsw":
            index = self.faiss.IndexHNSWFlat(dimension, self.links)
            index.hnsw.efSearch = self.effort
        else:
            lists = min(self.lists or max(1, min(round(4 * np.sqrt(n)), n // TRAINING_VECTORS)), n)
            self.coarse = self.faiss.IndexFlatL2(dimension)  # FAISS does not keep its Python object alive
            index = self.faiss.IndexIVFFlat(self.coarse, dimension, lists)
            index.nprobe = min(self.effort, lists)
            sample = np.linspace(0, n - 1, min(n, lists * TRAINING_VECTORS)).astype(np.int64)
            index.train(np.ascontiguousarray(features[sample], np.float32))
        for start in range(0, n, CHUNK):
            index.add(np.ascontiguousarray(features[start : start + CHUNK], np.float32))
        return index


def sampled_farthest(distances: FeatureDistances, memory_mb: int, threads: int) -> np.ndarray:
    """Returns the squared L2 distance from each image to the farthest of a fixed sample, float64 ``[N]``."""
    n = len(distances.gallery)
    sample = np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64))
    return nearest(distances.columns(sample), 1, memory_mb=memory_mb, threads=threads)[2]


def _sorted_exactly(distances: FeatureDistances, indices: np.ndarray) -> np.ndarray:
    """Sorts each list in place by (exact distance, index), with −1 (none) at the end, and returns ``indices``."""
    n, k = indices.shape
    rows_at_once = max(1, PAIRS * 16 // k)
    for start in range(0, n, rows_at_once):
        block = indices[start : start + rows_at_once]
        local, place = np.nonzero(block >= 0)
        values = np.full(block.shape, np.inf)
        values[local, place] = distances.exact(local + start, block[local, place])
        order = np.lexsort((np.where(block < 0, n, block), values), axis=1)
        indices[start : start + rows_at_once] = np.take_along_axis(block, order, axis=1)
    return indices


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"approximate neighbours need FAISS ({error}), expected: pip install '.[faiss]' in han-tf's folder"
        ) from error
    return faiss

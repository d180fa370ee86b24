"""k-reciprocal re-ranking without a dense N × N matrix.

The method is that of Zhong, Zheng, Cao and Li, "Re-ranking person re-identification with k-reciprocal encoding",
CVPR 2017. N is the number of queries and gallery images together; neighbours are searched among all N images:

1. R(i): those of i's k1 nearest that have i among their own k1 nearest (k-reciprocal neighbours).
2. R*(i): R(i), together with the k1/2-reciprocal neighbours of each of its members that shares more than
   two thirds of them with R(i).
3. V(i): a vector over the images, exp(−d(i, j)) for j in R*(i) and 0 elsewhere, of sum 1. The distance d is
   *squared* Euclidean, divided by the largest one of i.
4. V(i) becomes the mean of V over the k2 nearest of i (local query expansion).
5. The Jaccard distance of query i and gallery image j is 1 − Σ min(V(i), V(j)) / Σ max(V(i), V(j)), and the
   final distance is λ·d(i, j) + (1 − λ)·Jaccard.

Only d has N × N entries. It is needed for the neighbour lists alone, so that only max(k1 + 1, k2) indices per image are
kept. R* and V have some dozens of entries per image (CSR), and Jaccard distances below 1 are about as sparse; they are
computed query by query, when a block of final distances is requested.
"""

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.progress import progress_bar
from han_tf.metrics.blocks import slices
from han_tf.metrics.checks import check_count, check_memory, default_threads
from han_tf.metrics.distances import UNIT, DistanceSource, FeatureDistances, MatricesAmongAll, MatrixDistances
from han_tf.metrics.neighbours import Neighbours, exact_neighbours

if TYPE_CHECKING:
    from scipy import sparse

SET_COMPARISONS = 2**21
"""Comparisons of neighbours computed at a time, one byte each."""


def rerank(
    query_features: Any,
    gallery_features: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    neighbours: Neighbours = exact_neighbours,
    memory_mb: int = 1024,
    threads: Optional[int] = None,
    progress: bool = True,
) -> "RerankedDistances":
    """Returns re-ranked distances, for :func:`han_tf.metrics.evaluate_distances`.

    The method uses no labels: every gallery image, junk included, may be a neighbour, as in other implementations.
    Remove junk from ``gallery_features`` (and from the labels) to prevent this.

    Args:
      query_features: floats ``[n_query, d]``; may be memory-mapped.
      gallery_features: floats ``[n_gallery, d]``; may be memory-mapped.
      k1: length of the neighbour lists; at least 1, at most n_gallery.
      k2: length of the lists over which local query expansion averages; 1 switches it off; at most n_gallery.
      lambda_value: weight of the original distance, 0 to 1.
      neighbours: computes the neighbour lists; :class:`han_tf.metrics.FaissNeighbours` for approximate ones.
      memory_mb: memory to use beside the features, in MiB. It does not include the neighbour lists, 16 bytes for each
        of N · max(k1 + 1, k2) entries, and the vectors V, some dozens of entries per image.
      threads: threads to use; the number of cores if None. Results of exact lists do not depend on it.
      progress: whether to show progress bars.

    Raises:
      UserError: features do not match, are NaN or infinite; a parameter is out of range; ``memory_mb`` is too small.
    """
    distances = FeatureDistances(query_features, gallery_features)
    everyone = distances.among_all()
    return _reranked(distances, everyone, k1, k2, lambda_value, neighbours, memory_mb, threads, progress)


def rerank_distances(
    query_gallery: Any,
    query_query: Any,
    gallery_gallery: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    memory_mb: int = 1024,
    threads: Optional[int] = None,
    progress: bool = True,
) -> "RerankedDistances":
    """Returns re-ranked distances as :func:`rerank` does, from given distances of any kind.

    The distances are used unchanged; squared L2 distances give the results of :func:`rerank`. ``query_query`` and
    ``gallery_gallery`` must be symmetric, with the smallest value of each row on the diagonal.

    Args:
      query_gallery: real numbers ``[n_query, n_gallery]``; like the others, it may be memory-mapped.
      query_query: ``[n_query, n_query]``.
      gallery_gallery: ``[n_gallery, n_gallery]``.
      k1, k2, lambda_value, memory_mb, threads, progress: as for :func:`rerank`.

    Raises:
      UserError: matrices do not match, are NaN or infinite; a parameter is out of range; ``memory_mb`` is too small.
    """
    distances = MatrixDistances(query_gallery)
    everyone = MatricesAmongAll(distances, MatrixDistances(query_query), MatrixDistances(gallery_gallery))
    return _reranked(distances, everyone, k1, k2, lambda_value, exact_neighbours, memory_mb, threads, progress)


def _reranked(
    distances: DistanceSource,
    everyone: Any,
    k1: int,
    k2: int,
    lambda_value: float,
    neighbours: Neighbours,
    memory_mb: int,
    threads: Optional[int],
    progress: bool,
) -> "RerankedDistances":
    """Returns re-ranked ``distances``; ``everyone`` is the source of those among all images, the queries first."""
    check_count(k1, "k1", 1, distances.shape[1])
    check_count(k2, "k2", 1, distances.shape[1])
    if not 0 <= lambda_value <= 1:
        raise UserError(f"lambda_value is {lambda_value}, expected 0 to 1")
    check_memory(memory_mb, everyone.shape[0])
    length = max(k1 + 1, k2)
    lists, farthest = neighbours(everyone, length, memory_mb, default_threads(threads), progress)
    n = everyone.shape[0]
    if lists.shape != (n, length) or farthest.shape != (n,):
        raise UserError(
            f"the neighbour lists have shape {list(lists.shape)} and the greatest distances {list(farthest.shape)}, "
            f"expected [{n}, {length}] and [{n}]"
        )
    if lists.min() < -1 or lists.max() >= n:
        raise UserError(f"the neighbour lists hold {lists.min()} to {lists.max()}, expected -1 to {n - 1}")
    lists = lists.astype(np.int32)
    vectors = _vectors(everyone, lists[:, : k1 + 1], k1, farthest, progress)
    return RerankedDistances(distances, lists[:, :k2], vectors, farthest, lambda_value, memory_mb)


class RerankedDistances(DistanceSource):
    """Re-ranked distances of queries and gallery, in [0, 1] up to rounding errors; see :func:`rerank`.

    ``dense(slice(0, 100))`` returns those of the first 100 queries to the whole gallery.

    Args:
      distances: the original ones.
      expansion: int32 ``[N, k2]``, the lists over which V is averaged; −1 for none.
      vectors: V, float64 CSR ``[N, N]``.
      farthest: float64 ``[N]``, largest distance of each image.
      lambda_value: weight of the original distance.
      memory_mb: in MiB; up to an eighth of it is a cache of Jaccard distances.
    """

    def __init__(
        self,
        distances: DistanceSource,
        expansion: np.ndarray,
        vectors: "sparse.csr_matrix",
        farthest: np.ndarray,
        lambda_value: float,
        memory_mb: int,
    ):
        self.original = distances
        self.shape = distances.shape
        n_query = self.shape[0]
        self.dtype = distances.dtype
        self.weight = lambda_value
        # If all images are identical, the largest distance is 0 and cannot be divided by.
        self.farthest = np.where(farthest[:n_query] > 0, farthest[:n_query], 1)
        self.queries = _average(expansion, vectors, slice(0, n_query))
        # Only images in the vector of at least one query contribute to intersections.
        used = np.unique(self.queries.indices)
        self.queries = self.queries[:, used]
        self.gallery = _average(expansion, vectors[:, used], slice(n_query, None)).tocsc()
        self.cache: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self.cache_room = memory_mb * 2**17
        self.lock = Lock()

    def raw(self, rows: slice, columns: slice, buffer: np.ndarray) -> np.ndarray:
        """Returns an unfinished block of the original distances."""
        return self.original.raw(rows, columns, buffer)

    def finish(self, raw: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Returns the weighted sums of original and Jaccard distances."""
        block = self.original.finish(raw, rows, columns)
        block /= self.farthest[rows].astype(block.dtype)[:, None]
        block *= block.dtype.type(self.weight)
        block += block.dtype.type(1 - self.weight)
        for row, query in zip(block, range(rows.start, rows.stop)):
            images, similarity = self._similar(query)
            first, last = np.searchsorted(images, (columns.start, columns.stop))
            row[images[first:last] - columns.start] -= ((1 - self.weight) * similarity[first:last]).astype(np.float32)
        return block

    def margins(self, rows: slice, columns: slice, careful: bool = False) -> np.ndarray:
        """Returns the scaled margins of the original distances plus a bound on rounding errors of numbers up to 2."""
        original = self.original.margins(rows, columns, careful)
        return self.weight * original / self.farthest[rows] + 16 * UNIT

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Returns λ·d + (1 − λ)·Jaccard of each pair, float64 ``[n]``."""
        values = self.original.exact(rows, columns) / self.farthest[rows]
        similarity = np.zeros(len(rows))
        for query in np.unique(rows):
            images, known = self._similar(query)
            mine = np.flatnonzero(rows == query)
            if len(images):
                place = np.minimum(np.searchsorted(images, columns[mine]), len(images) - 1)
                similarity[mine] = np.where(images[place] == columns[mine], known[place], 0)
        return self.weight * values + (1 - self.weight) * (1 - similarity)

    def _similar(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the gallery images whose Jaccard distance is below 1, rising, and 1 − that distance."""
        query = int(query)
        with self.lock:
            known = self.cache.get(query)
        if known is not None:
            return known
        own = slice(self.queries.indptr[query], self.queries.indptr[query + 1])
        lists = self.queries.indices[own]
        starts = self.gallery.indptr[lists]
        lengths = self.gallery.indptr[lists + 1] - starts
        places = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        shared = np.minimum(self.gallery.data[places], np.repeat(self.queries.data[own], lengths))
        images, inverse = np.unique(self.gallery.indices[places], return_inverse=True)
        overlap = np.bincount(inverse, shared, minlength=len(images))
        # Each vector sums to 1, so that Σ max = 2 − Σ min.
        result = images, overlap / (2 - overlap)
        with self.lock:
            if query not in self.cache:
                self.cache[query] = result
                self.cache_room -= sum(array.nbytes for array in result)
            while self.cache_room < 0 and len(self.cache) > 1:
                self.cache_room += sum(array.nbytes for array in self.cache.popitem(last=False)[1])
        return result


def _reciprocal(lists: np.ndarray, rows: slice) -> np.ndarray:
    """Returns whether each entry of ``lists[rows]`` has the row's image in its own list, bool ``[rows, k]``."""
    mine = lists[rows]
    images = np.arange(rows.start, rows.stop, dtype=lists.dtype)
    return (lists[mine] == images[:, None, None]).any(axis=2) & (mine >= 0)


def _vectors(
    distances: DistanceSource, lists: np.ndarray, k1: int, farthest: np.ndarray, progress: bool
) -> "sparse.csr_matrix":
    """Returns V of step 3, float64 CSR ``[N, N]``; ``lists``, int32 ``[N, k1 + 1]``, include the image itself."""
    from scipy import sparse

    n = len(lists)
    half = np.ascontiguousarray(lists[:, : round(k1 / 2) + 1])
    blocks = slices(0, n, max(1, SET_COMPARISONS // (lists.shape[1] ** 2 * half.shape[1])))
    half_reciprocal = np.concatenate([_reciprocal(half, rows) for rows in blocks])
    lengths, all_members, all_weights = [], [], []
    for rows in progress_bar(blocks, desc="reciprocal sets", unit="block", disable=not progress):
        # Images that are not reciprocal neighbours become −1.
        own = np.where(_reciprocal(lists, rows), lists[rows], -1)
        others = np.where(half_reciprocal[own] & (own >= 0)[:, :, None], half[own], -1)
        shared = (others[:, :, :, None] == own[:, None, None, :]).any(axis=3) & (others >= 0)
        accepted = 3 * shared.sum(axis=2) > 2 * (others >= 0).sum(axis=2)
        # The image itself is not in its own list if more than k1 others are identical.
        itself = np.arange(rows.start, rows.stop, dtype=own.dtype)[:, None]
        expanded = np.where(accepted[:, :, None], others, -1).reshape(len(own), -1)
        members = np.concatenate([itself, own, expanded], axis=1)
        local, place = np.nonzero(members >= 0)
        keys = np.unique(local * n + members[local, place])
        local, member = np.divmod(keys, n)
        scale = np.where(farthest[rows] > 0, farthest[rows], 1)[local]
        weights = np.exp(-distances.exact(local + rows.start, member) / scale)
        sums = np.bincount(local, weights, minlength=len(own))
        lengths.append(np.bincount(local, minlength=len(own)))
        all_members.append(member.astype(np.int32))
        all_weights.append(weights / sums[local])
    ends = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return sparse.csr_matrix((np.concatenate(all_weights), np.concatenate(all_members), ends), shape=(n, n))


def _average(lists: np.ndarray, vectors: "sparse.csr_matrix", rows: slice) -> "sparse.csr_matrix":
    """Returns the mean of ``vectors`` over each of ``lists[rows]``, CSR ``[rows, columns]``; −1 entries are skipped."""
    if lists.shape[1] == 1:
        return vectors[rows]  # always the image itself, also if a duplicate is first in its list
    from scipy import sparse

    lists = lists[rows]
    found = lists >= 0
    counts = found.sum(axis=1)
    ends = np.concatenate([[0], np.cumsum(counts)])
    weights = np.repeat(1 / np.maximum(counts, 1), counts)
    averaging = sparse.csr_matrix((weights, lists[found], ends), shape=(len(lists), vectors.shape[0]))
    return averaging @ vectors

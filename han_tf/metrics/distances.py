"""Where distances come from: features, or a matrix that somebody else computed.

Both are a :class:`DistanceSource`: blocks of fast values that may be a little off, a bound on how far off
they can be, and the exact value of any single pair. Whoever ranks with them sorts by the fast values and
asks for exact ones only where two lie closer together than the bound. So a matrix product does nearly all of
the work, and yet the ranking depends neither on the order in which a BLAS adds, nor on the number of its
threads, nor on how the work is cut into blocks; and identical images tie exactly.
"""

from abc import ABC, abstractmethod
from copy import copy
from typing import Any, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.metrics.checks import check_features, squared_norms

PAIRS = 64
"""Pairs whose exact distance is computed at a time; small enough for the features to stay in cache."""

TILE_VALUES = 2**20
"""Gallery values per matrix product: enough for its speed, few enough to convert to float32 on the way."""

PLAIN_TILE_VALUES = 2**24
"""The same where nothing is converted."""

COLLAPSED, SAMPLED = 1000, 256
"""Products are float64 where the median distance of 256 pairs is less than 1000 float32 error bounds: exact values of
all the pairs that float32 cannot tell apart would take longer."""

METRICS = ("euclidean", "cosine")
"""What :func:`pairwise_distances` can compute."""

UNIT = 2.0**-24
"""Greatest relative error of one float32 rounding."""

DENORMAL = 2.0**-149
"""Smallest positive float32."""


class DistanceSource(ABC):
    """Distances of ``n_query`` × ``n_gallery`` pairs, by blocks.

    Attributes:
      shape: ``(n_query, n_gallery)``.
      dtype: floating dtype of the fast values.
    """

    shape: tuple[int, int]
    dtype: np.dtype

    def workspace(self, size: int) -> np.ndarray:
        """Returns a flat array of ``size`` values for :meth:`raw` to put its blocks in."""
        return np.empty(size, self.dtype)

    @abstractmethod
    def raw(self, rows: slice, columns: slice, buffer: np.ndarray) -> np.ndarray:
        """Returns the unfinished block ``[rows, columns]``; it may lie in ``buffer``, the workspace."""

    @abstractmethod
    def finish(self, raw: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Turns ``raw``, the rows ``rows`` of a block, into fast values that the caller may overwrite."""

    @abstractmethod
    def margins(self, rows: slice, columns: slice, careful: bool = False) -> np.ndarray:
        """Returns ``[rows]`` bounds on |fast − exact|; 0 where the fast values are exact.

        ``careful`` asks for the worst case instead of what is certain in practice.
        """

    @abstractmethod
    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Returns the exact values of the pairs ``(rows[i], columns[i])``, floats ``[n]``."""

    def report(self, values: np.ndarray) -> np.ndarray:
        """Returns the distances to show for fast or exact ``values``; rising with them."""
        return values

    def dense(self, rows: slice) -> np.ndarray:
        """Returns the distances of some queries to the whole gallery, ``[rows, n_gallery]``.

        They are the fast values, close to the exact ones by some float32 roundings.
        """
        start, stop, _ = rows.indices(self.shape[0])
        rows, columns = slice(start, stop), slice(0, self.shape[1])
        buffer = self.workspace((stop - start) * self.shape[1])
        return self.report(self.finish(self.raw(rows, columns, buffer), rows, columns))


class Stacked:
    """Two feature arrays, one below the other, without a copy of either.

    Args:
      first: ``[n, d]``.
      second: ``[m, d]``.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray):
        self.parts = (first, second)
        self.shape = (len(first) + len(second), first.shape[1])
        self.dtype = np.result_type(first, second)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Union[slice, np.ndarray]) -> np.ndarray:
        """Returns the rows ``index``, a slice of step 1 or integers from 0 up, ``[rows, d]``."""
        first, second = self.parts
        n = len(first)
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            if stop <= n:
                return first[start:stop]
            if start >= n:
                return second[start - n : stop - n]
            return np.concatenate([first[start:], second[: stop - n]])
        rows = np.empty((len(index), self.shape[1]), self.dtype)
        below = index >= n
        rows[~below] = first[index[~below]]
        rows[below] = second[index[below] - n]
        return rows


class FeatureDistances(DistanceSource):
    """L2 distances between the rows of two feature matrices.

    The exact value is the squared distance Σ (q − g)² in float64. The fast one is ‖q‖² + ‖g‖² − 2 q·g in
    float32, from a matrix product; in float64 where features lie so close together that float32 tells few apart.

    Args:
      query: features ``[n_query, d]``; may be memory-mapped; float32 is fastest.
      gallery: features ``[n_gallery, d]``; may be memory-mapped.

    Raises:
      UserError: shapes that do not fit, an empty array, NaN or infinite values.
    """

    def __init__(self, query: Any, gallery: Any, names: tuple[str, str] = ("query_features", "gallery_features")):
        query = check_features(query, names[0])
        gallery = check_features(gallery, names[1], query.shape[1])
        # Plain arrays: a memory map's own class makes every slice of it slower.
        self.query, self.gallery = query.view(np.ndarray), gallery.view(np.ndarray)
        self.query_norms = squared_norms(self.query, names[0])
        self.gallery_norms = squared_norms(self.gallery, names[1])
        self.shape = (len(query), len(gallery))
        self.dtype = np.dtype(np.float32)
        rng = np.random.default_rng(0)
        sample = self.exact(*(rng.integers(0, count, SAMPLED) for count in self.shape))
        if np.median(sample) < COLLAPSED * np.median(self.margins(slice(0, len(query)), slice(0, len(gallery)))):
            self.dtype = np.dtype(np.float64)

    def among_all(self) -> "FeatureDistances":
        """Returns the distances among all images, the queries first and then the gallery."""
        everyone = copy(self)
        everyone.query = everyone.gallery = Stacked(self.query, self.gallery)
        everyone.query_norms = everyone.gallery_norms = np.concatenate([self.query_norms, self.gallery_norms])
        everyone.shape = (sum(self.shape), sum(self.shape))
        return everyone

    def columns(self, chosen: np.ndarray) -> "FeatureDistances":
        """Returns the distances to the gallery images ``chosen`` (integers) only."""
        narrowed = copy(self)
        narrowed.gallery = self.gallery[chosen]
        narrowed.gallery_norms = self.gallery_norms[chosen]
        narrowed.shape = (self.shape[0], len(chosen))
        return narrowed

    def raw(self, rows: slice, columns: slice, buffer: np.ndarray) -> np.ndarray:
        """Returns −2 q·g, ``[rows, columns]``, in ``buffer``."""
        query = self.query[rows].astype(self.dtype)
        query *= -2
        out = buffer[: len(query) * (columns.stop - columns.start)].reshape(len(query), -1)
        as_it_is = isinstance(self.gallery, np.ndarray) and self.gallery.dtype == self.dtype
        tile = max(256, (PLAIN_TILE_VALUES if as_it_is else TILE_VALUES) // query.shape[1])
        for start in range(columns.start, columns.stop, tile):
            stop = min(start + tile, columns.stop)
            gallery = np.ascontiguousarray(self.gallery[start:stop], self.dtype)
            np.matmul(query, gallery.T, out=out[:, start - columns.start : stop - columns.start])
        return out

    def finish(self, raw: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Adds both squared norms in place."""
        raw += self.gallery_norms[columns].astype(self.dtype)
        raw += self.query_norms[rows].astype(self.dtype)[:, None]
        return raw

    def margins(self, rows: slice, columns: slice, careful: bool = False) -> np.ndarray:
        """Returns the error bound of the squared distance, float64 ``[rows]``.

        A float32 sum of d products errs by at most d·u·‖q‖‖g‖. Roundings do not conspire, so that
        8·√d·u·‖q‖‖g‖ is already beyond any plausible error (Higham & Mary 2019, λ = 8); ``careful`` returns
        the former. Rounding the features, the norms and the two sums adds a few roundings more, and values
        so small that their product underflows add up to one float32 denormal each. Beside float64 products the
        error of the exact value's own sum counts, too.
        """
        d = self.query.shape[1]
        terms = d if careful else min(d, 8 * np.sqrt(d))
        if self.dtype == np.float64:
            reach = np.sqrt(self.query_norms[rows]) + np.sqrt(self.gallery_norms[columns].max())
            return 2.0**-53 * (terms / 2 + 6 + d) * reach**2 + 2 * d * np.finfo(np.float64).tiny
        reach = np.sqrt(self.query_norms[rows]) + np.sqrt(self.gallery_norms[columns].max())
        return UNIT * (terms / 2 + 6) * reach**2 + 2 * d * DENORMAL

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Returns Σ (q − g)² of each pair, float64 ``[n]``: the same digits wherever the pair stands."""
        values = np.empty(len(rows), np.float64)
        for start in range(0, len(rows), PAIRS):
            part = slice(start, start + PAIRS)
            difference = self.query[rows[part]].astype(np.float64)
            difference -= self.gallery[columns[part]]
            values[part] = np.einsum("ij,ij->i", difference, difference)
        return values

    def report(self, values: np.ndarray) -> np.ndarray:
        """Returns L2 distances."""
        return np.sqrt(np.maximum(values, 0))


class MatrixDistances(DistanceSource):
    """A given matrix of distances, used as it is.

    Args:
      distances: ``[n_query, n_gallery]``, any real dtype; smaller is more alike; may be memory-mapped.

    Raises:
      UserError: it is no 2-D array of real numbers, or is empty. NaN and infinities are found on reading.
    """

    def __init__(self, distances: Any):
        distances = distances if isinstance(distances, np.ndarray) else np.asarray(distances)
        if distances.ndim != 2:
            raise UserError(f"distances has shape {list(distances.shape)}, expected [queries, gallery images]")
        if distances.dtype.kind not in "fiu":
            raise UserError(f"distances has dtype {distances.dtype}, expected real numbers")
        if not distances.size:
            raise UserError(f"distances has shape {list(distances.shape)}, expected at least 1 × 1")
        self.values = distances.view(np.ndarray)
        self.shape = distances.shape
        self.dtype = distances.dtype if distances.dtype in (np.float32, np.float64) else np.dtype(np.float64)

    def workspace(self, size: int) -> np.ndarray:
        """Returns an empty array: blocks are views."""
        return np.empty(0, self.dtype)

    def raw(self, rows: slice, columns: slice, buffer: np.ndarray) -> np.ndarray:
        """Returns a view of the matrix."""
        return self.values[rows, columns]

    def finish(self, raw: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Returns a copy whose values are known to be finite."""
        block = np.array(raw, self.dtype, order="C")
        finite = np.isfinite(block)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise UserError(
                f"distances[{rows.start + row}, {columns.start + column}] is {block[row, column]}, "
                "expected finite numbers"
            )
        return block

    def margins(self, rows: slice, columns: slice, careful: bool = False) -> np.ndarray:
        """Returns zeros: the values are exact."""
        return np.zeros(rows.stop - rows.start)

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Returns the matrix's own values, in their own dtype."""
        return self.values[rows, columns].astype(self.dtype)


class MatricesAmongAll(MatrixDistances):
    """The distances among all images, the queries first and then the gallery, from three matrices without a copy.

    Args:
      query_gallery: ``[n_query, n_gallery]``.
      query_query: ``[n_query, n_query]``.
      gallery_gallery: ``[n_gallery, n_gallery]``.

    Raises:
      UserError: their shapes do not fit.
    """

    def __init__(self, query_gallery: MatrixDistances, query_query: MatrixDistances, gallery_gallery: MatrixDistances):
        for name, source, n in zip(
            ("query_query", "gallery_gallery"), (query_query, gallery_gallery), query_gallery.shape
        ):
            if source.shape != (n, n):
                raise UserError(f"{name} has shape {list(source.shape)}, expected [{n}, {n}]")
        across = query_gallery.values
        self.blocks = ((query_query.values, across), (across.T, gallery_gallery.values))
        self.n_query = len(across)
        self.shape = (sum(across.shape), sum(across.shape))
        self.dtype = np.result_type(query_gallery.dtype, query_query.dtype, gallery_gallery.dtype)

    def raw(self, rows: slice, columns: slice, buffer: np.ndarray) -> np.ndarray:
        """Returns a copy of the block."""
        parts = [
            [values[row, column] for values, column in zip(blocks, self._split(columns))]
            for blocks, row in zip(self.blocks, self._split(rows))
        ]
        return np.block(parts)

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Returns the matrices' own values."""
        values = np.empty(len(rows), self.dtype)
        for i, blocks in enumerate(self.blocks):
            for j, block in enumerate(blocks):
                mine = ((rows >= self.n_query) == i) & ((columns >= self.n_query) == j)
                values[mine] = block[rows[mine] - i * self.n_query, columns[mine] - j * self.n_query]
        return values

    def _split(self, span: slice) -> tuple[slice, slice]:
        """Returns which queries and which gallery images lie in ``span``."""
        ends = span.start, span.stop
        return slice(*(min(end, self.n_query) for end in ends)), slice(*(max(end - self.n_query, 0) for end in ends))


def pairwise_distances(query: Any, gallery: Any, metric: str = "euclidean") -> np.ndarray:
    """Returns the distance of every pair, float32 ``[n_query, n_gallery]``.

    Args:
      query: features ``[n_query, d]``.
      gallery: features ``[n_gallery, d]``.
      metric: ``euclidean`` for L2 distances, ``cosine`` for 1 − cos, in [0, 2].

    Raises:
      UserError: the metric is unknown; features that do not fit, are not finite, or have no direction (cosine).
    """
    if metric not in METRICS:
        raise UserError(f"metric is {metric!r}, expected one of {', '.join(METRICS)}")
    source = FeatureDistances(query, gallery)
    if metric == "cosine":
        units = []
        for features, norms, name in (
            (source.query, source.query_norms, "query"),
            (source.gallery, source.gallery_norms, "gallery"),
        ):
            if not norms.all():
                raise UserError(f"{name} feature {int(np.argmin(norms))} is all 0, expected a direction")
            units.append(np.asarray(features, np.float64) / np.sqrt(norms)[:, None])
        source = FeatureDistances(*units)
    distances = source.dense(slice(0, source.shape[0])).astype(np.float32)
    return distances**2 / 2 if metric == "cosine" else distances  # of unit vectors

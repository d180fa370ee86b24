"""Sources of distances: features, or a given matrix.

A :class:`DistanceSource` gives blocks of fast, approximate values, a bound on their error, and the exact value of any
single pair. Rankings sort by the fast values and use exact ones only where two fast values are closer than the bound.
So a matrix product does nearly all of the work, but the ranking depends neither on the BLAS's order of summation, nor
on the number of threads, nor on the block sizes; and identical images tie exactly.
"""

from abc import ABC, abstractmethod
from copy import copy
from typing import Any, Union

import numpy as np

from han_tf.common.errors import UserError
from han_tf.metrics.checks import check_features, squared_norms
from han_tf.metrics.products import product

PAIRS = 64
"""Pairs whose exact distance is computed at a time; few enough for the features to stay in cache."""

TILE_VALUES = 2**20
"""Gallery values per matrix product if they are converted: enough for its speed, few enough for a temporary copy."""

PLAIN_TILE_VALUES = 2**24
"""Gallery values per matrix product if they are not converted."""

COLLAPSED, SAMPLED = 1000, 256
"""If the median squared distance of 256 sampled pairs is less than 1000 float32 error bounds, products are computed in
float64: exact values of all pairs that float32 cannot distinguish would take longer."""

METRICS = ("euclidean", "cosine")
"""Metrics of :func:`pairwise_distances`."""

UNIT = 2.0**-24
"""Largest relative error of one float32 rounding."""

WHOLE = 2**53
"""Below this, float64 tells all integers apart."""

DENORMAL = 2.0**-149
"""Smallest positive float32."""


class DistanceSource(ABC):
    """Interface: distances of ``n_query`` × ``n_gallery`` pairs, computed block by block.

    Attributes:
      shape: ``(n_query, n_gallery)``.
      dtype: floating dtype of the fast values.
    """

    shape: tuple[int, int]
    dtype: np.dtype

    def workspace(self, size: int) -> np.ndarray:
        """Returns a flat array of ``size`` values, in which :meth:`raw` may store its blocks."""
        return np.empty(size, self.dtype)

    @abstractmethod
    def raw(self, rows: slice, columns: slice, buffer: np.ndarray) -> np.ndarray:
        """Returns the unfinished block ``[rows, columns]``, which may be a view of ``buffer``, the workspace."""

    @abstractmethod
    def finish(self, raw: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Returns the fast values of ``raw``, the rows ``rows`` of a block; the caller may overwrite them."""

    @abstractmethod
    def margins(self, rows: slice, columns: slice, careful: bool = False) -> np.ndarray:
        """Returns ``[rows]`` bounds on |fast − exact|; 0 where the fast values are exact.

        ``careful`` asks for the worst-case bound instead of a smaller one that practically always holds.
        """

    @abstractmethod
    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Returns the exact values of the pairs ``(rows[i], columns[i])``, floats ``[n]``."""

    def report(self, values: np.ndarray) -> np.ndarray:
        """Returns the distances to report for fast or exact ``values``, a monotonic function of them."""
        return values

    def dense(self, rows: slice) -> np.ndarray:
        """Returns the distances of some queries to the whole gallery, ``[rows, n_gallery]``.

        They are computed from the fast values, so they differ from the exact ones by float32 rounding errors.
        """
        start, stop, _ = rows.indices(self.shape[0])
        rows, columns = slice(start, stop), slice(0, self.shape[1])
        buffer = self.workspace((stop - start) * self.shape[1])
        return self.report(self.finish(self.raw(rows, columns, buffer), rows, columns))


class Stacked:
    """Two feature arrays stacked along the first axis, without a copy of either.

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

    The exact value is the squared distance Σ (q − g)² in float64. The fast one is ‖q‖² + ‖g‖² − 2 q·g in float32, from
    a matrix product; in float64 if the features are so close together that float32 distinguishes few pairs.

    Args:
      query: features ``[n_query, d]``; may be memory-mapped; float32 is fastest.
      gallery: features ``[n_gallery, d]``; may be memory-mapped.
      names: of both arrays in error messages.

    Raises:
      UserError: shapes do not match, an array is empty, or values are NaN, infinite or too large.
    """

    def __init__(self, query: Any, gallery: Any, names: tuple[str, str] = ("query_features", "gallery_features")):
        query = check_features(query, names[0])
        gallery = check_features(gallery, names[1], query.shape[1])
        # Plain arrays: slices of np.memmap objects are slower.
        self.query, self.gallery = query.view(np.ndarray), gallery.view(np.ndarray)
        self.query_norms = squared_norms(self.query, names[0])
        self.gallery_norms = squared_norms(self.gallery, names[1])
        self.shape = (len(query), len(gallery))
        self.dtype = np.dtype(np.float32)
        rng = np.random.default_rng(0)
        sample = self.exact(*(rng.integers(0, count, SAMPLED) for count in self.shape))
        if np.median(sample) < COLLAPSED * np.median(self.margins(slice(None), slice(None))):
            self.dtype = np.dtype(np.float64)

    def among_all(self) -> "FeatureDistances":
        """Returns the distances among all images: the queries, then the gallery."""
        everyone = copy(self)
        everyone.query = everyone.gallery = Stacked(self.query, self.gallery)
        everyone.query_norms = everyone.gallery_norms = np.concatenate([self.query_norms, self.gallery_norms])
        everyone.shape = (sum(self.shape), sum(self.shape))
        return everyone

    def columns(self, chosen: np.ndarray) -> "FeatureDistances":
        """Returns the distances to the gallery images with the indices ``chosen`` only."""
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
            product(query, gallery, out[:, start - columns.start : stop - columns.start])
        return out

    def finish(self, raw: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Adds both squared norms in place."""
        raw += self.gallery_norms[columns].astype(self.dtype)
        raw += self.query_norms[rows].astype(self.dtype)[:, None]
        return raw

    def margins(self, rows: slice, columns: slice, careful: bool = False) -> np.ndarray:
        """Returns the error bound of the squared distance, float64 ``[rows]``.

        The error of a float32 sum of d products is at most d·u·‖q‖‖g‖; with ``careful`` the bound uses this. Since
        rounding errors are nearly independent, 8·√d·u·‖q‖‖g‖ is larger than any plausible error (Higham & Mary 2019,
        λ = 8). Rounding the features, the norms and the two sums adds a few rounding errors, and products that
        underflow add up to one float32 denormal each. For float64 products the bound also includes the error of the
        exact value's sum.
        """
        d = self.query.shape[1]
        terms = d if careful else min(d, 8 * np.sqrt(d))
        reach = np.sqrt(self.query_norms[rows]) + np.sqrt(self.gallery_norms[columns].max())
        if self.dtype == np.float64:
            return 2.0**-53 * (terms / 2 + 6 + d) * reach**2 + 2 * d * np.finfo(np.float64).tiny
        return UNIT * (terms / 2 + 6) * reach**2 + 2 * d * DENORMAL

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Returns Σ (q − g)² of each pair, float64 ``[n]``; the digits do not depend on the other pairs."""
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
      UserError: it is no 2-D array of real numbers, or is empty; later, when a block with NaN, infinities, or integers
        beyond 2⁵³ is read.
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
        """Returns an empty array, since blocks need no workspace."""
        return np.empty(0, self.dtype)

    def raw(self, rows: slice, columns: slice, buffer: np.ndarray) -> np.ndarray:
        """Returns a view of the matrix."""
        return self.values[rows, columns]

    def finish(self, raw: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Returns a copy, after a check that all values are finite, and integers exact in float64."""
        block = np.array(raw, self.dtype, order="C")
        if raw.dtype.kind in "iu" and raw.dtype.itemsize == 8 and (wide := np.abs(block) >= WHOLE).any():
            row, column = np.argwhere(wide)[0]
            raise UserError(
                f"distances[{rows.start + row}, {columns.start + column}] is {raw[row, column]}, expected integers "
                f"between ±{WHOLE}, which float64 tells apart"
            )
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
    """The distances among all images (the queries, then the gallery), from three matrices without copying them.

    Args:
      query_gallery: ``[n_query, n_gallery]``.
      query_query: ``[n_query, n_query]``.
      gallery_gallery: ``[n_gallery, n_gallery]``.

    Raises:
      UserError: their shapes do not match.
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
        """Returns the queries and the gallery images in ``span``, as two slices."""
        ends = span.start, span.stop
        return slice(*(min(end, self.n_query) for end in ends)), slice(*(max(end - self.n_query, 0) for end in ends))


def pairwise_distances(query: Any, gallery: Any, metric: str = "euclidean") -> np.ndarray:
    """Returns the distance of every pair, float32 ``[n_query, n_gallery]``.

    Args:
      query: features ``[n_query, d]``.
      gallery: features ``[n_gallery, d]``.
      metric: ``euclidean`` for L2 distances, ``cosine`` for 1 − cos, in [0, 2].

    Raises:
      UserError: the metric is unknown; features do not match, are not finite, or (cosine) one is all 0.
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
    source.dtype = np.dtype(np.float64)  # float32 products are off where images are nearly identical
    distances = np.empty(source.shape, np.float32)
    step = max(1, PLAIN_TILE_VALUES // source.shape[1])
    for start in range(0, len(distances), step):
        part = slice(start, start + step)
        distances[part] = source.dense(part)
    return distances**2 / 2 if metric == "cosine" else distances  # 1 − cos of unit vectors

"""Approximate indexes of FAISS that propose candidates, which are then compared by their float32 features.

Features may vary in far fewer directions than they have values. Vectors are therefore projected on the principal axes
that hold 99 % of a sample's variance, if these are at most half as many as the values, and quantised.

- ``hnsw``: a graph over vectors of one byte per value (8-bit scalar quantiser), held in memory.
- ``ivfpq``: inverted lists of product-quantised vectors, up to 64 bytes each. The file of the lists is mapped into
  memory, so that a search reads only the lists that it uses. Rows added since it was written are held in memory.
"""

import math
from pathlib import Path
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.search.exact import import_faiss

KINDS = ("hnsw", "ivfpq")

VARIANCE = 0.99
AXES_STEP = 16
PROJECTION_TRAINED = 16_384
"""Share of the variance that the principal axes hold; their number is a multiple of 16; vectors they are trained on."""

LINKS = 32
CONSTRUCTION = 80
SEARCHED = 256
"""HNSW: links per vector and level (M), candidates kept while building (efConstruction) and while searching (ef)."""

LISTS_PER_ROOT = 4
TRAINED_PER_LIST = 40
TRAINING_ROUNDS = 10
CODE_BYTES = 64
"""IVF-PQ: number of lists divided by √n; training vectors per list; rounds of k-means; most bytes per vector."""

LIST_SHARE = 5
LISTS_LEAST = 16
PREFETCHING = 4
"""IVF-PQ: a search reads one list in five, at least 16; threads that prefetch lists from disk. FAISS's default of 32
threads per search costs more time than a search in memory takes."""

SCALAR_TRAINED = 65_536
"""Vectors that the range of the 8-bit values is trained on."""

MOST_EFFORT = 16
"""If few rows pass a filter, a search looks at up to 16 times as many candidates or lists."""


class ApproximateIndex:
    """An index that proposes rows near a query. Several threads may search at once, but not while one adds rows.

    Args:
      kind: one of :data:`KINDS`.
      dimension: of the vectors.
    """

    def __init__(self, kind: str, dimension: int):
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}")
        self.faiss = import_faiss()
        self.kind = kind
        self.dimension = dimension
        self._whole: Any = None  # keeps the objects of FAISS alive that the next two refer to
        self._transform: Any = None
        self._parts: list[Any] = []  # the last takes new rows; of a file of ivfpq, the mapped lists are the first

    @property
    def rows(self) -> int:
        """Number of indexed rows; these are the first ones of the file of vectors."""
        return sum(part.ntotal for part in self._parts)

    @property
    def width(self) -> int:
        """Dimension of the projected vectors."""
        return self._parts[-1].d

    def train(self, vectors: np.ndarray, chosen: np.ndarray) -> None:
        """Trains projection and quantisers on samples of the rows ``chosen`` of ``vectors``, float32 ``[n, d]``."""

        def sample(most: int) -> np.ndarray:
            return np.ascontiguousarray(vectors[chosen[spread(len(chosen), most)]])

        axes = principal_axes(sample(PROJECTION_TRAINED))
        width = axes or self.dimension
        if self.kind == "hnsw":
            description, trained = f"HNSW{LINKS}_SQ8", SCALAR_TRAINED
        else:
            n = len(chosen)
            lists = max(1, min(round(LISTS_PER_ROOT * math.sqrt(n)), n // TRAINED_PER_LIST))
            width = _padded(width)
            description = f"IVF{lists},PQ{_code_bytes(width)}x8np"
            trained = TRAINED_PER_LIST * max(lists, 256)
        reduction = f"PCA{width}," if axes else f"Pad{width}," if width > self.dimension else ""
        self._take(self.faiss.index_factory(self.dimension, reduction + description))
        if axes:
            self._transform.max_points_per_d = max(1, PROJECTION_TRAINED // self.dimension)
        (index,) = self._parts
        if self.kind == "hnsw":
            index.hnsw.efConstruction = CONSTRUCTION
        else:
            # Codes of the vectors, not of their differences from the list's centre: one table of distances per query
            # is enough for all lists. The exact comparison makes up for the lower accuracy.
            index.by_residual = False
            for clustering in (index.cp, index.pq.cp):
                clustering.niter = TRAINING_ROUNDS
                clustering.min_points_per_centroid = 1  # prevents FAISS's warning about few vectors
        self._whole.train(sample(trained))

    def add(self, vectors: np.ndarray) -> None:
        """Adds the next rows, float32 ``[n, d]``."""
        reduced = self._reduced(vectors)
        if self.kind == "hnsw":
            self._parts[-1].add(reduced)
        else:
            self._parts[-1].add_with_ids(reduced, np.arange(self.rows, self.rows + len(vectors)))

    def propose(self, queries: np.ndarray, k: int, mask: Optional[np.ndarray], effort: float) -> np.ndarray:
        """Returns at most ``k`` rows per query and part of the index, int64 ``[q, k or 2 k]``, −1 for none.

        Args:
          queries: float32 ``[q, d]``.
          k: most rows per query and part.
          mask: bool ``[rows]``, the rows that may be proposed; None for all.
          effort: factor on the number of candidates or lists to look at, at least 1.
        """
        faiss, queries, effort = self.faiss, self._reduced(queries), min(effort, MOST_EFFORT)
        selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        found = []
        for part in self._parts:
            if self.kind == "hnsw":
                searched = max(math.ceil(SEARCHED * effort), 2 * k)
                parameters = faiss.SearchParametersHNSW(efSearch=searched, sel=selector)
            else:
                lists = math.ceil(max(LISTS_LEAST, part.nlist / LIST_SHARE) * effort)
                parameters = faiss.SearchParametersIVF(nprobe=min(part.nlist, lists), sel=selector)
            found.append(part.search(queries, k, params=parameters)[1])
        return np.concatenate(found, axis=1)

    def write(self, path: Path) -> None:
        """Writes the index; FAISS raises RuntimeError if it cannot."""
        index = self._parts[-1]
        if len(self._parts) > 1:
            index = self._without_rows(index)
            for part in self._parts:
                by_id = self.faiss.InvertedLists.SUBSET_TYPE_ID_RANGE
                part.invlists.copy_subset_to(index.invlists, by_id, 0, self.rows)
            index.ntotal = self.rows
        whole = index if self._transform is None else self.faiss.IndexPreTransform(self._transform, index)
        self.faiss.write_index(whole, str(path))

    @classmethod
    def read(cls, kind: str, path: Path, dimension: int) -> "ApproximateIndex":
        """Returns the index that :meth:`write` wrote.

        Raises:
          UserError: the file holds no index of that kind and dimension.
        """
        faiss = import_faiss()
        try:
            read = cls(kind, dimension)
            whole = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if kind == "ivfpq" else 0)
            if isinstance(whole, faiss.IndexIVFPQ) and whole.d == _padded(dimension) > dimension:
                # Files of earlier versions lack the transform that pads.
                whole = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(dimension, whole.d, False), whole)
            if whole.d != dimension:
                raise ValueError(f"it is of dimension {whole.d}, not {dimension}")
            read._take(whole)
            (index,) = read._parts
            if not isinstance(index, {"hnsw": faiss.IndexHNSWSQ, "ivfpq": faiss.IndexIVFPQ}[kind]):
                raise ValueError("it is another kind of index")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}, expected an index of kind {kind}") from error
        if kind == "ivfpq":
            faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = PREFETCHING
            read._parts.append(read._without_rows(index))  # rows cannot be added to a mapped file
        return read

    def _take(self, whole: Any) -> None:
        """Uses an index that FAISS has created or read."""
        self._whole = index = whole
        if isinstance(whole, self.faiss.IndexPreTransform):
            self._transform = self.faiss.downcast_VectorTransform(whole.chain.at(0))
            index = self.faiss.downcast_index(whole.index)
        self._parts = [index]

    def _without_rows(self, index: Any) -> Any:
        """Returns an empty IVF-PQ index that shares the quantisers of ``index``, which must outlive it."""
        like = self.faiss.IndexIVFPQ(index.quantizer, index.d, index.nlist, index.pq.M, index.pq.nbits)
        like.pq, like.by_residual, like.is_trained = index.pq, index.by_residual, True
        return like

    def _reduced(self, vectors: np.ndarray) -> np.ndarray:
        return vectors if self._transform is None else self._transform.apply(vectors)


def principal_axes(vectors: np.ndarray) -> int:
    """Returns how many axes hold 99 % of the variance, rounded up to a multiple of 16; 0 if that is more than d/2.

    Args:
      vectors: float32 ``[n, d]``.
    """
    centred = vectors - vectors.mean(axis=0)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    shares = np.cumsum(variances) / max(variances.sum(), np.finfo(np.float32).tiny)
    count = -(-(int(np.searchsorted(shares, VARIANCE)) + 1) // AXES_STEP) * AXES_STEP
    return count if 2 * count <= vectors.shape[1] and count < len(vectors) else 0


def _code_bytes(width: int) -> int:
    """Returns the bytes of a product-quantised vector: one per two values, at most :data:`CODE_BYTES`."""
    return min(CODE_BYTES, -(-width // 2))


def _padded(width: int) -> int:
    """Returns ``width``, rounded up so that each byte encodes the same number of values."""
    return -(-width // _code_bytes(width)) * _code_bytes(width)


def spread(count: int, most: int) -> np.ndarray:
    """Returns ``most`` of the numbers below ``count``, or all, evenly spaced, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))

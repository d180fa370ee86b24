"""Approximate indexes of FAISS that propose candidates; they are derived from the vectors and can be made anew.

Features of trained networks vary in far fewer directions than they have values. So vectors are first projected on the
principal axes that hold 99 % of a sample's variance, where these are half as many as the values or fewer. What is left
is kept in a byte per value or less. Both affect only the choice of candidates, which are then compared
by their float32 features.

- ``hnsw``: a graph over vectors of one byte per value (8-bit scalar quantiser), all of it in memory.
- ``ivfpq``: inverted lists of product-quantised vectors, up to 64 bytes each. The file of the lists is mapped into
  memory, so that only the lists that are searched are read; rows added since it was written are kept in memory.
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
"""Share of the variance that the principal axes hold; they are a multiple of 16; vectors they are learnt from."""

LINKS = 32
CONSTRUCTION = 80
SEARCHED = 256
"""HNSW: links per vector and level (M), candidates kept while building and while searching (ef)."""

LISTS_PER_ROOT = 4
TRAINED_PER_LIST = 40
TRAINING_ROUNDS = 10
CODE_BYTES = 64
"""IVF-PQ: lists per √n; vectors that train each, in how many rounds of k-means; most bytes per vector."""

LIST_SHARE = 5
LISTS_LEAST = 16
PREFETCHING = 4
"""IVF-PQ: one list in so many is read by a search, and at least so many; threads that begin to read them from disk,
of which FAISS starts 32 for every search, at more cost than a search in memory has."""

SCALAR_TRAINED = 65_536
"""Vectors from which the range of each value is learnt for 8 bits."""

MOST_EFFORT = 16
"""Filters that let few pass make a search look at more, up to so many times as much."""


class ApproximateIndex:
    """An index that proposes rows near a query. Several threads may search at once; adding excludes all others.

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
        self._whole: Any = None  # owns the transform and the part that were trained or read
        self._transform: Any = None
        self._parts: list[Any] = []  # an index takes new rows; for ivfpq the lists in the file may stand before it

    @property
    def rows(self) -> int:
        """Rows ``[0, rows)`` of the file of vectors are in the index."""
        return sum(part.ntotal for part in self._parts)

    @property
    def width(self) -> int:
        """Values that are left of a vector."""
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
            # Codes of the vectors themselves, not of what is left after the list's centre: then one table serves a
            # query in all lists. That costs accuracy which the exact comparison gives back.
            index.by_residual = False
            for clustering in (index.cp, index.pq.cp):
                clustering.niter = TRAINING_ROUNDS
                clustering.min_points_per_centroid = 1  # few vectors are no reason for a warning
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
          k: rows.
          mask: bool ``[rows]``, those that may be proposed; None for all.
          effort: at least 1; how many times as much to look at as usual.
        """
        faiss, queries, effort = self.faiss, self._reduced(queries), min(effort, MOST_EFFORT)
        selector = None
        if mask is not None:
            bitmap = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
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
        """Returns what :meth:`write` wrote.

        Raises:
          UserError: it is none of that kind and dimension.
        """
        faiss = import_faiss()
        try:
            read = cls(kind, dimension)
            whole = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if kind == "ivfpq" else 0)
            if isinstance(whole, faiss.IndexIVFPQ) and whole.d == _padded(dimension) > dimension:
                # Older files hold no transform that pads.
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
            read._parts.append(read._without_rows(index))  # a mapped file takes no rows
        return read

    def _take(self, whole: Any) -> None:
        """Uses an index of FAISS that was made or read."""
        self._whole = index = whole
        if isinstance(whole, self.faiss.IndexPreTransform):
            self._transform = self.faiss.downcast_VectorTransform(whole.chain.at(0))
            index = self.faiss.downcast_index(whole.index)
        self._parts = [index]

    def _without_rows(self, index: Any) -> Any:
        """Returns an IVF-PQ index with the quantisers of ``index``, which it needs as long as it lives, and no rows."""
        like = self.faiss.IndexIVFPQ(index.quantizer, index.d, index.nlist, index.pq.M, index.pq.nbits)
        like.pq, like.by_residual, like.is_trained = index.pq, index.by_residual, True
        return like

    def _reduced(self, vectors: np.ndarray) -> np.ndarray:
        return vectors if self._transform is None else self._transform.apply(vectors)


def principal_axes(vectors: np.ndarray) -> int:
    """Returns how many axes hold 99 % of the variance, a multiple of 16; 0 if these are more than d/2.

    Args:
      vectors: float32 ``[n, d]``.
    """
    centred = vectors - vectors.mean(axis=0)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    shares = np.cumsum(variances) / max(variances.sum(), np.finfo(np.float32).tiny)
    count = -(-(int(np.searchsorted(shares, VARIANCE)) + 1) // AXES_STEP) * AXES_STEP
    return count if 2 * count <= vectors.shape[1] and count < len(vectors) else 0


def _code_bytes(width: int) -> int:
    """Returns the bytes of a product-quantised vector: one for two values, or for more."""
    return min(CODE_BYTES, -(-width // 2))


def _padded(width: int) -> int:
    """Returns the next width of which each byte stands for equally many values."""
    return -(-width // _code_bytes(width)) * _code_bytes(width)


def spread(count: int, most: int) -> np.ndarray:
    """Returns ``most`` of the numbers below ``count``, or all, evenly spaced, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))

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
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Optional

import numpy as np

from han_tf.common.errors import UserError
from han_tf.search.exact import import_faiss

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


class ApproximateIndex(ABC):
    """An index that proposes rows near a query. Several threads may search at once; adding excludes all others.

    Args:
      dimension: of the vectors.

    Attributes:
      kind: ``hnsw`` or ``ivfpq``.
      projection: principal axes, float32 ``[d, m]``; None if vectors stay as they are.
    """

    kind: str

    def __init__(self, dimension: int):
        self.faiss = import_faiss()
        self.dimension = dimension
        self.projection: Optional[np.ndarray] = None

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows ``[0, rows)`` of the file of vectors are in the index."""

    @property
    def width(self) -> int:
        """Values that are left of a vector."""
        return self.dimension if self.projection is None else self.projection.shape[1]

    def train(self, vectors: np.ndarray) -> None:
        """Trains the projection and the quantisers on a sample, ``vectors``, float32 ``[n, d]``."""
        self.projection = principal_axes(_sample(vectors, PROJECTION_TRAINED))
        self._train(vectors)

    @abstractmethod
    def _train(self, vectors: np.ndarray) -> None: ...

    @abstractmethod
    def add(self, vectors: np.ndarray) -> None:
        """Adds the next rows, float32 ``[n, d]``."""

    @abstractmethod
    def propose(self, queries: np.ndarray, k: int, mask: Optional[np.ndarray], effort: float) -> np.ndarray:
        """Returns at most ``k`` rows per query and part of the index, int64 ``[q, k or 2 k]``, −1 for none.

        Args:
          queries: float32 ``[q, d]``.
          k: rows.
          mask: bool ``[rows]``, those that may be proposed; None for all.
          effort: at least 1; how many times as much to look at as usual.
        """

    def write(self, path: Path) -> None:
        """Writes the index; FAISS raises RuntimeError if it cannot."""
        index = whole = self._whole()
        if self.projection is not None:
            transform = self.faiss.LinearTransform(self.dimension, self.width, False)
            self.faiss.copy_array_to_vector(self.projection.T.ravel(), transform.A)
            transform.is_trained = True
            whole = self.faiss.IndexPreTransform(transform, index)
        self.faiss.write_index(whole, str(path))

    @abstractmethod
    def _whole(self) -> Any:
        """Returns one index of FAISS with all rows."""

    @classmethod
    def read(cls, path: Path, dimension: int) -> "ApproximateIndex":
        """Returns what :meth:`write` wrote; ValueError if it is something else."""
        faiss, read = import_faiss(), cls(dimension)
        index = faiss.read_index(str(path), cls._flags(faiss))
        if isinstance(index, faiss.IndexPreTransform):
            if index.d != dimension:
                raise ValueError(f"it is of dimension {index.d}, not {dimension}")
            transform = faiss.downcast_VectorTransform(index.chain.at(0))
            read.projection = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in).T.copy()
            read._file = index  # type: ignore[attr-defined]  # owns the part below
            index = faiss.downcast_index(index.index)
        read._set(index)
        return read

    @staticmethod
    @abstractmethod
    def _flags(faiss: Any) -> int:
        """Returns how FAISS is to read the file."""

    @abstractmethod
    def _set(self, index: Any) -> None:
        """Uses an index that was read; ValueError if it is of another kind."""

    def _reduced(self, vectors: np.ndarray) -> np.ndarray:
        return vectors if self.projection is None else vectors @ self.projection


class HnswIndex(ApproximateIndex):
    """A graph of near neighbours (Malkov and Yashunin 2018) over vectors of 8 bits per value."""

    kind = "hnsw"

    def __init__(self, dimension: int):
        super().__init__(dimension)
        self.index: Any = None

    @property
    def rows(self) -> int:  # noqa: D102
        return self.index.ntotal

    def _train(self, vectors: np.ndarray) -> None:
        self.index = self.faiss.IndexHNSWSQ(self.width, self.faiss.ScalarQuantizer.QT_8bit, LINKS)
        self.index.hnsw.efConstruction = CONSTRUCTION
        self.index.train(self._reduced(_sample(vectors, SCALAR_TRAINED)))

    def add(self, vectors: np.ndarray) -> None:  # noqa: D102
        self.index.add(self._reduced(vectors))

    def propose(self, queries: np.ndarray, k: int, mask: Optional[np.ndarray], effort: float) -> np.ndarray:  # noqa: D102
        searched = max(math.ceil(SEARCHED * min(effort, MOST_EFFORT)), 2 * k)
        selector = _selector(self.faiss, mask)
        parameters = self.faiss.SearchParametersHNSW(efSearch=searched, sel=selector)
        return self.index.search(self._reduced(queries), k, params=parameters)[1]

    def _whole(self) -> Any:
        return self.index

    @staticmethod
    def _flags(faiss: Any) -> int:
        return 0

    def _set(self, index: Any) -> None:
        if not isinstance(index, self.faiss.IndexHNSWSQ) or index.d != self.width:
            raise ValueError("it is another kind of index")
        self.index = index


class IvfPqIndex(ApproximateIndex):
    """Inverted lists of product-quantised vectors (Jégou et al. 2011), the written ones in a mapped file."""

    kind = "ivfpq"

    def __init__(self, dimension: int):
        super().__init__(dimension)
        self.written: Any = None  # lists in the file
        self.fresh: Any = None  # the same quantisers, lists in memory: the rows after those

    @property
    def rows(self) -> int:  # noqa: D102
        return sum(index.ntotal for index in (self.written, self.fresh) if index is not None)

    @property
    def bytes(self) -> int:
        """Bytes per vector: one for two values, or for more."""
        return min(CODE_BYTES, -(-self.width // 2))

    def _train(self, vectors: np.ndarray) -> None:
        faiss, n = self.faiss, len(vectors)
        if self.projection is not None:
            self.projection = np.pad(self.projection, ((0, 0), (0, -self.width % self.bytes)))
        lists = max(1, min(round(LISTS_PER_ROOT * math.sqrt(n)), n // TRAINED_PER_LIST))
        padded = -(-self.width // self.bytes) * self.bytes  # each byte stands for equally many values
        quantiser = faiss.IndexFlatL2(padded)
        index = faiss.IndexIVFPQ(quantiser, padded, lists, self.bytes, 8)
        quantiser.this.disown()
        index.own_fields = True
        # Codes of the vectors themselves, not of what is left after the list's centre: then one table serves a
        # query in all lists. That costs accuracy which the exact comparison gives back.
        index.by_residual = False
        for clustering in (index.cp, index.pq.cp):
            clustering.niter = TRAINING_ROUNDS
            clustering.min_points_per_centroid = 1  # few vectors are no reason for a warning
        self.fresh = index
        index.train(self._reduced(_sample(vectors, TRAINED_PER_LIST * max(lists, 256))))

    def add(self, vectors: np.ndarray) -> None:  # noqa: D102
        self.fresh.add_with_ids(self._reduced(vectors), np.arange(self.rows, self.rows + len(vectors)))

    def propose(self, queries: np.ndarray, k: int, mask: Optional[np.ndarray], effort: float) -> np.ndarray:  # noqa: D102
        queries, selector = self._reduced(queries), _selector(self.faiss, mask)
        found = []
        for index in (self.written, self.fresh):
            if index is not None and index.ntotal:
                usual = max(LISTS_LEAST, index.nlist / LIST_SHARE)
                read = min(index.nlist, math.ceil(usual * min(effort, MOST_EFFORT)))
                parameters = self.faiss.SearchParametersIVF(nprobe=read, sel=selector)
                found.append(index.search(queries, k, params=parameters)[1])
        return np.concatenate(found, axis=1)

    def _whole(self) -> Any:
        if self.written is None:
            return self.fresh
        whole = self._like(self.written)
        for part in (self.written, self.fresh):
            by_id = self.faiss.InvertedLists.SUBSET_TYPE_ID_RANGE
            part.invlists.copy_subset_to(whole.invlists, by_id, 0, self.rows)
        whole.ntotal = self.rows
        return whole

    @staticmethod
    def _flags(faiss: Any) -> int:
        return faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY

    def _set(self, index: Any) -> None:
        if not isinstance(index, self.faiss.IndexIVFPQ) or index.d != -(-self.width // self.bytes) * self.bytes:
            raise ValueError("it is another kind of index")
        self.written, self.fresh = index, self._like(index)
        self.faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = PREFETCHING

    def _like(self, index: Any) -> Any:
        """Returns an index with the quantisers of ``index``, which it needs as long as it lives, and no rows."""
        like = self.faiss.IndexIVFPQ(index.quantizer, index.d, index.nlist, self.bytes, 8)
        like.pq, like.by_residual, like.is_trained = index.pq, index.by_residual, True
        return like

    def _reduced(self, vectors: np.ndarray) -> np.ndarray:
        reduced = super()._reduced(vectors)
        padding = -self.width % self.bytes
        return np.pad(reduced, ((0, 0), (0, padding))) if padding else reduced


KINDS: dict[str, type[ApproximateIndex]] = {kind.kind: kind for kind in (HnswIndex, IvfPqIndex)}


def read_index(kind: str, path: Path, dimension: int) -> ApproximateIndex:
    """Returns an index that was written.

    Raises:
      UserError: it is none of that kind.
    """
    try:
        return KINDS[kind].read(path, dimension)
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}, expected an index of kind {kind}") from error


def principal_axes(vectors: np.ndarray) -> Optional[np.ndarray]:
    """Returns the axes that hold 99 % of the variance, float32 ``[d, m]``; None if these are more than d/2."""
    centred = vectors - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    shares = np.cumsum(variances[::-1]) / max(variances.sum(), np.finfo(np.float32).tiny)
    count = -(-(int(np.searchsorted(shares, VARIANCE)) + 1) // AXES_STEP) * AXES_STEP
    if 2 * count > vectors.shape[1]:
        return None
    return np.ascontiguousarray(axes[:, ::-1][:, :count], np.float32)


def _selector(faiss: Any, mask: Optional[np.ndarray]) -> Any:
    if mask is None:
        return None
    bitmap = np.packbits(mask, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
    selector.kept = bitmap  # FAISS itself has no more than a pointer
    return selector


def _sample(vectors: np.ndarray, most: int) -> np.ndarray:
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), most)).astype(np.int64))
    return np.ascontiguousarray(vectors[rows])

"""Approximate indexes of FAISS that propose candidates; they are derived from the vectors and can be made anew.

Both keep vectors in fewer bytes than float32 and so only propose rows, which are then compared exactly.

- ``hnsw``: a graph over vectors of one byte per value (8-bit scalar quantiser), all of it in memory.
- ``ivfpq``: inverted lists of product-quantised vectors, up to 64 bytes each. The file of the lists is mapped into
  memory, so that only the lists that are searched are read; rows added since it was written are kept in memory.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Optional

import numpy as np

from han_tf.errors import UserError
from han_tf.search.exact import import_faiss

LINKS = 32
CONSTRUCTION = 80
SEARCHED = 192
"""HNSW: links per vector and level (M), candidates kept while building and while searching (ef)."""

LISTS_PER_ROOT = 4
TRAINED_PER_LIST = 40
TRAINING_ROUNDS = 10
CODE_BYTES = 64
"""IVF-PQ: lists per √n; vectors that train each, in how many rounds of k-means; most bytes per vector."""

LIST_SHARE = 16
LISTS_LEAST = 16
"""IVF-PQ: one list in so many is read by a search, and at least so many."""

SCALAR_TRAINED = 65536
"""Vectors from which the range of each value is learnt for 8 bits."""

MOST_EFFORT = 16
"""Filters that let few pass make a search look at more, up to so many times as much."""


class ApproximateIndex(ABC):
    """Proposes rows that are near a query. Several threads may search; adding needs it alone.

    Attributes:
      kind: ``hnsw`` or ``ivfpq``.
    """

    kind: str

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows ``[0, rows)`` of the file of vectors are in the index."""

    @abstractmethod
    def train(self, vectors: np.ndarray) -> None:
        """Learns from a sample of ``vectors``, float32 ``[n, d]``, how to keep them."""

    @abstractmethod
    def add(self, vectors: np.ndarray) -> None:
        """Adds the next rows, float32 ``[n, d]``."""

    @abstractmethod
    def propose(self, queries: np.ndarray, k: int, mask: Optional[np.ndarray], effort: float) -> np.ndarray:
        """Returns at most ``k`` rows per query, int64 ``[q, k]``, −1 for none.

        Args:
          queries: float32 ``[q, d]``.
          k: rows.
          mask: bool ``[rows]``, those that may be proposed; None for all.
          effort: at least 1; how many times as much to look at as usual.
        """

    @abstractmethod
    def write(self, path: Path) -> None:
        """Writes the index; FAISS raises RuntimeError if it cannot."""

    @classmethod
    @abstractmethod
    def read(cls, path: Path, dimension: int) -> "ApproximateIndex":
        """Returns what :meth:`write` wrote; ValueError if it is something else."""


class HnswIndex(ApproximateIndex):
    """A graph of near neighbours (Malkov and Yashunin 2018) over vectors of 8 bits per value."""

    kind = "hnsw"

    def __init__(self, dimension: int):
        self.faiss = import_faiss()
        self.index = self.faiss.IndexHNSWSQ(dimension, self.faiss.ScalarQuantizer.QT_8bit, LINKS)
        self.index.hnsw.efConstruction = CONSTRUCTION

    @property
    def rows(self) -> int:  # noqa: D102
        return self.index.ntotal

    def train(self, vectors: np.ndarray) -> None:  # noqa: D102
        self.index.train(_sample(vectors, SCALAR_TRAINED))

    def add(self, vectors: np.ndarray) -> None:  # noqa: D102
        self.index.add(vectors)

    def propose(self, queries: np.ndarray, k: int, mask: Optional[np.ndarray], effort: float) -> np.ndarray:  # noqa: D102
        searched = max(math.ceil(SEARCHED * min(effort, MOST_EFFORT)), 2 * k)
        selector = _selector(self.faiss, mask)
        return self.index.search(queries, k, params=self.faiss.SearchParametersHNSW(efSearch=searched, sel=selector))[1]

    def write(self, path: Path) -> None:  # noqa: D102
        self.faiss.write_index(self.index, str(path))

    @classmethod
    def read(cls, path: Path, dimension: int) -> "HnswIndex":  # noqa: D102
        read = cls(dimension)
        index = read.faiss.read_index(str(path))
        if not isinstance(index, read.faiss.IndexHNSWSQ) or index.d != dimension:
            raise ValueError("another kind of index")
        read.index = index
        return read


class IvfPqIndex(ApproximateIndex):
    """Inverted lists of product-quantised vectors (Jégou et al. 2011), the written ones in a mapped file."""

    kind = "ivfpq"

    def __init__(self, dimension: int):
        self.faiss = import_faiss()
        self.bytes = min(CODE_BYTES, -(-dimension // 8))
        self.padding = -dimension % self.bytes  # each byte stands for equally many values
        self.width = dimension + self.padding
        self.written: Any = None  # lists in the file
        self.fresh: Any = None  # the same quantisers, lists in memory: the rows after those

    @property
    def rows(self) -> int:  # noqa: D102
        return sum(index.ntotal for index in (self.written, self.fresh) if index is not None)

    def train(self, vectors: np.ndarray) -> None:  # noqa: D102
        faiss, n = self.faiss, len(vectors)
        lists = max(1, min(round(LISTS_PER_ROOT * math.sqrt(n)), n // TRAINED_PER_LIST))
        quantiser = faiss.IndexFlatL2(self.width)
        index = faiss.IndexIVFPQ(quantiser, self.width, lists, self.bytes, 8)
        quantiser.this.disown()
        index.own_fields = True
        # Codes of the vectors themselves, not of what is left after the list's centre: then one table serves a
        # query in all lists. That costs accuracy which the exact comparison gives back.
        index.by_residual = False
        for clustering in (index.cp, index.pq.cp):
            clustering.niter = TRAINING_ROUNDS
            clustering.min_points_per_centroid = 1  # few vectors are no reason for a warning
        index.train(self._padded(_sample(vectors, TRAINED_PER_LIST * max(lists, 256))))
        self.fresh = index

    def add(self, vectors: np.ndarray) -> None:  # noqa: D102
        self.fresh.add_with_ids(self._padded(vectors), np.arange(self.rows, self.rows + len(vectors)))

    def propose(self, queries: np.ndarray, k: int, mask: Optional[np.ndarray], effort: float) -> np.ndarray:  # noqa: D102
        queries, selector = self._padded(queries), _selector(self.faiss, mask)
        found = []
        for index in (self.written, self.fresh):
            if index is not None and index.ntotal:
                usual = max(LISTS_LEAST, index.nlist / LIST_SHARE)
                read = min(index.nlist, math.ceil(usual * min(effort, MOST_EFFORT)))
                parameters = self.faiss.SearchParametersIVF(nprobe=read, sel=selector)
                found.append(index.search(queries, k, params=parameters)[1])
        return np.concatenate(found, axis=1)

    def write(self, path: Path) -> None:  # noqa: D102
        whole = self.fresh
        if self.written is not None:
            whole = self._like(self.written)
            for part in (self.written, self.fresh):
                by_id = self.faiss.InvertedLists.SUBSET_TYPE_ID_RANGE
                part.invlists.copy_subset_to(whole.invlists, by_id, 0, self.rows)
            whole.ntotal = self.rows
        self.faiss.write_index(whole, str(path))

    @classmethod
    def read(cls, path: Path, dimension: int) -> "IvfPqIndex":  # noqa: D102
        read, faiss = cls(dimension), import_faiss()
        read.written = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        if not isinstance(read.written, faiss.IndexIVFPQ) or read.written.d != read.width:
            raise ValueError("another kind of index")
        read.fresh = read._like(read.written)
        return read

    def _like(self, index: Any) -> Any:
        """Returns an index with the quantisers of ``index``, which it needs as long as it lives, and no rows."""
        like = self.faiss.IndexIVFPQ(index.quantizer, self.width, index.nlist, self.bytes, 8)
        like.pq, like.by_residual, like.is_trained = index.pq, index.by_residual, True
        return like

    def _padded(self, vectors: np.ndarray) -> np.ndarray:
        return np.pad(vectors, ((0, 0), (0, self.padding))) if self.padding else vectors


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

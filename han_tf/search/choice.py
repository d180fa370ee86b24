"""The choice of an engine in a folder, by the gallery's size and the available memory."""

import os
from typing import NamedTuple, Optional

from han_tf.common.processes import free_memory_mb
from han_tf.metrics.checks import check_count
from han_tf.search.approximate import CODE_BYTES, LINKS

FLAT_BYTES = 2**27
"""Size of the float32 vectors that an exact search compares in about 10 ms."""

ENGINES = ("flat", "hnsw", "ivfpq")


class Choice(NamedTuple):
    """An engine and the reason for its choice, in one sentence."""

    engine: str
    reason: str


def choose_engine(rows: int, dimension: int, memory_mb: Optional[int] = None) -> Choice:
    """Chooses the engine for a gallery.

    Args:
      rows: number of vectors, or expected number.
      dimension: of the features.
      memory_mb: memory that an index may take, MiB; half of the available memory if None, which counts as half of
        the machine's if that is not known.
    """
    check_count(rows, "rows", 0)
    if memory_mb is None:
        free = free_memory_mb() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21
        memory_mb = free // 2
    check_count(memory_mb, "memory_mb", 0)
    size = 4 * rows * dimension
    what = f"{rows:,} vectors of {dimension:,} values are {_mb(size)} MiB"
    if size <= FLAT_BYTES:
        return Choice("flat", f"{what}: few enough ({_mb(FLAT_BYTES)} MiB) to compare all of them exactly")
    # One byte per value; 2·M links of 4 bytes on the lowest level of the graph, and few on those above.
    need = rows * (dimension + 4 * 2 * LINKS + 16)
    if need <= memory_mb * 2**20:
        return Choice("hnsw", f"{what}, more than {_mb(FLAT_BYTES)}; a graph takes {_mb(need)} of {memory_mb:,} MiB")
    return Choice(
        "ivfpq",
        f"{what}, and a graph would take {_mb(need)} MiB where {memory_mb:,} may be used: lists on disk, "
        f"{CODE_BYTES} bytes a vector",
    )


def _mb(size: int) -> str:
    return f"{-(-size // 2**20):,}"

"""Products of feature matrices, by SciPy's BLAS.

NumPy 1.26, the last that TensorFlow 2.15 allows, brings an OpenBLAS that does not know processors from 2023 on and
multiplies on them without AVX, five times slower (an Intel Xeon of the fifth generation: 24 instead of 102 GFLOP/s on
a busy machine). SciPy brings a newer OpenBLAS.
"""

import numpy as np


def product(first: np.ndarray, second: np.ndarray, out: np.ndarray) -> None:
    """Writes ``first`` · ``second``ᵀ to ``out``; fastest if all are C-contiguous.

    Args:
      first: ``[n, d]``, float32 or float64.
      second: ``[m, d]``, of the same dtype.
      out: ``[n, m]``, of the same dtype.
    """
    from scipy.linalg import blas  # takes a tenth of a second, which commands need not wait for

    gemm = blas.sgemm if first.dtype == np.float32 else blas.dgemm
    # BLAS takes columns where NumPy has rows: the transposed product, outᵀ = second · firstᵀ, needs no copies.
    if out.flags.c_contiguous:
        gemm(1, second.T, first.T, trans_a=True, c=out.T, overwrite_c=True)
    else:
        out[...] = gemm(1, second.T, first.T, trans_a=True).T

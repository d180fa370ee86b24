"""The product of feature matrices is that of NumPy in float64, wherever it is written."""

import numpy as np
import pytest

from han_tf.metrics.products import product


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m", "d"), [(5, 7, 3), (1, 4, 2), (6, 1, 1), (40, 30, 100)])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "part"])
def test_it_is_that_of_float64(dtype, n, m, d, whole):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(m, d)).astype(dtype)
    held = np.full((n, m if whole else m + 2), 9, dtype)
    product(first, second, held[:, :m])
    expected = first.astype(np.float64) @ second.astype(np.float64).T
    np.testing.assert_allclose(held[:, :m], expected, rtol=0, atol=2 * d * np.finfo(dtype).eps)
    assert (held[:, m:] == 9).all()


def test_rows_need_not_be_contiguous():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 8))[:, ::2], rng.normal(size=(4, 5)).T
    out = np.empty((3, 5))
    product(first, second, out)
    np.testing.assert_allclose(out, first @ second.T)

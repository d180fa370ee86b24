"""The paper's tables and figures, and the benchmarks."""

import han_tf  # noqa: F401  # it sets what TensorFlow reads when it is imported

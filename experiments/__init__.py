"""The paper's tables and figures, and what measures them."""

import han_tf  # noqa: F401  # it sets what TensorFlow reads when it is imported

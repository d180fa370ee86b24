"""Checks on import that ``tf.keras`` is Keras 2, which this package needs.

From TensorFlow 2.16 on, Keras 2 is tf-keras. :mod:`han_tf` selects it with TF_USE_LEGACY_KERAS, which has no effect if
``tf.keras`` has been used before.
"""

import os

import tensorflow as tf

from han_tf.common.errors import UserError

SWITCH = "TF_USE_LEGACY_KERAS"


def check() -> None:
    """Raises UserError if ``tf.keras`` is Keras 3 or missing."""
    try:
        version = getattr(tf.keras, "__version__", "2")  # tf-keras has no version here
    except ImportError as error:
        raise UserError(f"TensorFlow {tf.__version__} finds no Keras 2, expected: pip install tf-keras") from error
    if version.split(".")[0] != "2":
        raise UserError(
            f"tf.keras is Keras {version} ({SWITCH}={os.environ.get(SWITCH, '')}), expected Keras 2: "
            f"import han_tf before anything that uses tf.keras, or set {SWITCH}=1"
        )


check()

"""Person re-identification with the Harmonious Attention Network (Li, Zhu, Gong, IJCV 2020)."""

import os
import sys
from typing import Any

__version__ = "0.1.0"

# TensorFlow reads these when it is imported; values that the user has set stay.
if sys.version_info >= (3, 12):
    # With these versions TensorFlow's tf.keras is Keras 3; the networks need Keras 2, tf-keras.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
if "tensorflow" not in sys.modules:
    # TensorFlow turns oneDNN on by itself only on processors with AVX-512 VNNI, bfloat16 or AMX.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # By default TensorFlow takes all memory of a GPU, whatever it needs.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def __getattr__(name: str) -> Any:
    # Imported on demand, so that commands that need no features start faster.
    if name == "FeatureExtractor":
        from han_tf.features.extractor import FeatureExtractor

        return FeatureExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

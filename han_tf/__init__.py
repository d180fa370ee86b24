"""Person re-identification with the Harmonious Attention Network (Li, Zhu, Gong, IJCV 2020)."""

import os
import sys
from typing import Any

__version__ = "0.1.0"

# TensorFlow reads these when it is imported; what the user has set stays.
if sys.version_info >= (3, 12):
    # The TensorFlow for these versions takes Keras 3 for tf.keras; the networks are written for Keras 2, tf-keras.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
if "tensorflow" not in sys.modules:
    # It turns oneDNN on by itself only on processors with AVX-512 VNNI, bfloat16 or AMX.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def __getattr__(name: str) -> Any:
    # On demand: a command that needs no features starts without what they need.
    if name == "FeatureExtractor":
        from han_tf.features.extractor import FeatureExtractor

        return FeatureExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

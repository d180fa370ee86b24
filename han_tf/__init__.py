"""Person re-identification with the Harmonious Attention Network (Li, Zhu, Gong, IJCV 2020)."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand: a command that needs no features starts without what they need.
    if name == "FeatureExtractor":
        from han_tf.inference.extractor import FeatureExtractor

        return FeatureExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

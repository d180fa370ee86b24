"""Person re-identification with the Harmonious Attention Network (Li, Zhu, Gong, IJCV 2020)."""

__version__ = "0.1.0"

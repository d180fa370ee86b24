"""Comparison of an exported network's features with the original's."""

from typing import Any, Optional

import numpy as np

from han_tf.deploy.exporters import BFLOAT16, FLOAT16, FLOAT32, INT8
from han_tf.runtimes.probes import cosines

LARGEST_LOSS = {FLOAT32: 0.1, FLOAT16: 0.1, BFLOAT16: 0.1, INT8: 0.5}
"""Precision -> points of mAP that an export may lose."""

LEAST_COSINE = {FLOAT32: 0.9999, FLOAT16: 0.999, BFLOAT16: 0.99, INT8: 0.9}
"""Precision -> least mean cosine between an export's features and the original's."""

LARGEST_NORM_ERROR = 0.01
"""Largest distance of the norm of a branch's part from that of the original, which is 1, or 0 if the part is all 0."""


def compare(expected: np.ndarray, found: np.ndarray, branches: int) -> dict[str, float]:
    """Compares features row by row.

    Args:
      expected, found: ``[n, d]`` float32.
      branches: number of equally wide parts, whose norms are compared.

    Returns:
      ``images`` (n), ``largest_difference`` of any number, ``least_cosine`` and ``mean_cosine`` between rows, and
      ``norm_error``, the largest distance of the norm of a part of ``found`` from that of the part of ``expected``.
    """
    similar = cosines(expected, found)
    norms = [np.linalg.norm(rows.reshape(len(rows), branches, -1), axis=2) for rows in (expected, found)]
    return {
        "images": len(expected),
        "largest_difference": float(np.abs(expected - found).max()),
        "least_cosine": float(similar.min()),
        "mean_cosine": float(similar.mean()),
        "norm_error": float(np.abs(norms[1] - norms[0]).max()),
    }


def shortcomings(check: dict[str, Any], precision: str) -> Optional[str]:
    """Returns why an export is not good enough, in one line; None if it is.

    Args:
      check: the result of :func:`compare`, with ``accuracy`` and ``keras_accuracy`` if they were measured.
      precision: of the export.
    """
    if not np.isfinite(check["largest_difference"]):
        return "its features are not finite"
    if check["norm_error"] > LARGEST_NORM_ERROR:
        off = f"{check['norm_error']:.3f}, expected at most {LARGEST_NORM_ERROR}"
        return f"the norm of a branch is off that of the Keras network by {off}"
    if check["mean_cosine"] < LEAST_COSINE[precision]:
        return f"mean cosine to the Keras features is {check['mean_cosine']:.4f}, expected {LEAST_COSINE[precision]}"
    if "accuracy" in check:
        loss = 100 * (check["keras_accuracy"]["mAP"] - check["accuracy"]["mAP"])
        if loss > LARGEST_LOSS[precision]:
            return f"loses {loss:.2f} points of mAP, expected at most {LARGEST_LOSS[precision]}"
    return None

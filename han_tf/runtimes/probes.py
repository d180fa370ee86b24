"""Probe images with a network's features, by which an export is checked wherever it is opened.

A file may give other features on a processor that lacks an instruction or in a runtime with another kernel.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from han_tf.common.errors import UserError, one_line
from han_tf.data.reading import resize
from han_tf.runs.card import CARD, ModelCard
from han_tf.runs.environment import machine
from han_tf.runtimes import Runtime

PROBES = 4

_BATCH = 16
"""Images per call: the batch size that OpenVINO models are compiled for when they are opened."""

SLACK = 2
"""Factor on the distance of the cosine from 1, measured at the export, that is allowed elsewhere."""

LEAST_DISTANCE = {"float32": 1e-5, "float16": 1e-4, "bfloat16": 1e-3, "int8": 1e-2}
"""Precision -> distance of the cosine from 1 that is always allowed; a tenth of what an export's check allows."""


def draw(size: Sequence[int]) -> np.ndarray:
    """Returns drawn pedestrians, always the same, ``[PROBES, *size, 3]`` uint8."""
    from han_tf.data.synthetic import SyntheticPedestrians  # not needed to open a model

    people = SyntheticPedestrians(train_identities=PROBES, test_identities=2, distractors=0, junk=0)
    first = {frame.pid: frame for frame in reversed(people.frames()) if frame.subset == "train"}
    return np.stack([resize(np.asarray(people.draw(frame).image), size) for frame in first.values()])


def embed(runtime: Runtime, images: np.ndarray) -> np.ndarray:
    """Returns the features of the probe images, float32, one row each."""
    return runtime(np.resize(images, (_BATCH, *images.shape[1:])))[: len(images)]


def entry(images: np.ndarray, expected: np.ndarray, found: np.ndarray, precision: str) -> dict[str, Any]:
    """Returns the card's entry ``probes``.

    Args:
      images: ``[n, height, width, 3]`` uint8.
      expected, found: ``[n, d]`` float32, features of the Keras network and of the export.
      precision: of the export.
    """
    cosine = least_cosine(expected, found)
    return {
        "images": [_encoded(image) for image in images],
        "features": base64.b64encode(expected.astype("<f4").tobytes()).decode(),
        "cosine": cosine,
        "least_cosine": 1 - max(SLACK * (1 - cosine), LEAST_DISTANCE[precision]),
        "processor": processor(),
    }


def prove(folder: Path, card: ModelCard, runtime: Runtime) -> None:
    """Compares a model's features of its probe images on this machine with those in its card.

    Raises:
      UserError: they differ by more than the card allows, the model cannot be run, or the card's entry is damaged.
    """
    try:
        images = np.stack([_decoded(text, card.input_size) for text in card.probes["images"]])
        expected = np.frombuffer(base64.b64decode(card.probes["features"], validate=True), "<f4")
        expected = expected.reshape(len(images), card.feature_dim)
        least, there = float(card.probes["least_cosine"]), str(card.probes["processor"])
    except Exception as error:  # Pillow raises any error of its decoders
        raise UserError(f"{folder / CARD}: probes are damaged ({one_line(error)}); export the run anew") from error
    try:
        found = embed(runtime, images)
    except Exception as error:  # each runtime has exceptions of its own
        reason = one_line(error)[:300]
        raise UserError(f"{folder}: {card.format} cannot run this model ({reason}); export the run anew") from error
    if found.shape != expected.shape:
        raise UserError(
            f"{folder}: this model gives features {list(found.shape)} of {len(images)} images, expected "
            f"{list(expected.shape)} as in {CARD}; export the run anew"
        )
    cosine = least_cosine(expected, found)
    if not cosine >= least:  # also if it is NaN
        raise UserError(
            f"{folder}: on this processor, {processor()}, this {card.format} model in {card.precision} gives wrong "
            f"features: their cosine to those of its card's probe images is {cosine:.6f}, expected at least "
            f"{least:.6f}, as on {there}; export the run anew here"
        )


def processor() -> str:
    """Returns the name of this machine's processor and its instruction sets."""
    here = machine()
    sets = " ".join(here["instruction_sets"])
    return f"{here['processor'] or 'unknown'} ({sets or 'instruction sets unknown'})"


def least_cosine(expected: np.ndarray, found: np.ndarray) -> float:
    """Returns the smallest cosine between rows; NaN if a number is not finite."""
    return float(cosines(expected, found).min()) if np.isfinite(found).all() else float("nan")


def cosines(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Returns the cosine between each pair of rows, float32 ``[n]``; 1 if both are all 0, and 0 if one is."""
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    similar = np.einsum("nd,nd->n", expected, found) / np.maximum(norms, np.finfo(np.float32).tiny)
    return np.where((expected == 0).all(axis=1) & (found == 0).all(axis=1), np.float32(1), similar)


def _encoded(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def _decoded(text: str, size: Sequence[int]) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
        if (image.size, image.mode) != (tuple(size)[::-1], "RGB"):  # from the header, before decoding
            raise ValueError(f"an image is {image.mode} {image.width}x{image.height}")
        return np.asarray(image)

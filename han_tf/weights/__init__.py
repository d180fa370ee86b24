"""Trained networks that come with the package: one folder each, which is read like the folder of a training run.

A folder holds ``config.json`` and ``metrics.json`` of the training; ``about.json``, which describes the weights and
their terms of use; and ``weights.safetensors``, a format that executes no code: matrices in float16, vectors in
float32, without classifiers. ``python -m han_tf.weights`` lists these networks, and makes such a folder from a run.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from han_tf.common.errors import UserError
from han_tf.common.files import atomic_open, exists, read_json, write_json
from han_tf.common.run_files import METRICS

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).parent
ABOUT, ARRAYS = "about.json", "weights.safetensors"

PROBE_IMAGES, PROBE_FEATURES = "probe/images", "probe/features"
"""Arrays beside the weights: drawn images, ``[n, *input_size, 3]`` uint8, and the network's features of them."""


def shipped_names() -> list[str]:
    """Returns the names of the networks that come with the package: ``han_small-market1501``, …"""
    return sorted(path.parent.name for path in HERE.glob(f"*/{ABOUT}"))


def resolve(path: Union[str, os.PathLike]) -> Path:
    """Returns ``path`` if it exists, else the folder of the shipped network of this name, if there is one.

    Raises:
      UserError: the system cannot tell whether it exists.
    """
    path = Path(path)
    return HERE / path if not exists(path) and str(path) in shipped_names() else path


def is_stored(folder: Union[str, os.PathLike]) -> bool:
    """Returns whether a folder holds stored weights instead of a training run's checkpoints.

    Raises:
      UserError: the system cannot tell.
    """
    return exists(Path(folder) / ARRAYS)


def output_folder(folder: Union[str, os.PathLike], runs_dir: Union[str, os.PathLike] = "runs") -> Path:
    """Returns the folder for results on a network: its run's; ``runs_dir/NAME`` for one that comes with the package."""
    folder = Path(folder)
    return Path(runs_dir) / folder.name if folder.parent == HERE else folder


def read_about(folder: Union[str, os.PathLike]) -> dict[str, Any]:
    """Returns the description of stored weights: ``sha256``, ``bytes``, ``licence``, ``recipe``, ``epochs``, …

    Raises:
      UserError: ``about.json`` is missing or damaged.
    """
    path = Path(folder) / ABOUT
    about = read_json(path, "what python -m han_tf.weights writes")
    if not isinstance(about, dict) or not isinstance(about.get("sha256"), str):
        raise UserError(f"{path}: no entry sha256, expected what python -m han_tf.weights writes")
    return about


def read_arrays(folder: Union[str, os.PathLike]) -> dict[str, "np.ndarray"]:
    """Returns stored weights, by their names in checkpoints, and the probes, in the stored dtypes.

    Raises:
      UserError: the file is missing or damaged, or not the one that ``about.json`` describes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(folder) / ARRAYS
    expected = read_about(folder)["sha256"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected the weights that {ABOUT} describes") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise UserError(f"{path}: damaged or changed, SHA-256 is {found}, expected {expected} as in {ABOUT}")
    try:
        return load(data)
    except SafetensorError as error:
        raise UserError(f"{path}: {error}, expected safetensors") from error
    except KeyError as error:  # NumPy has no such type
        raise UserError(f"{path}: an array is of type {error.args[0]}, expected float16, float32 and uint8") from error


def write_arrays(
    folder: Union[str, os.PathLike],
    weights: Mapping[str, "np.ndarray"],
    probes: Mapping[str, "np.ndarray"],
    about: Mapping,
) -> None:
    """Writes weights, probes and ``about.json`` into ``folder``: matrices in float16, vectors in float32.

    Raises:
      UserError: a value is not finite as stored, such as one too large for float16; a file cannot be written.
    """
    import numpy as np
    from safetensors.numpy import save

    folder = Path(folder)
    stored = {name: compact(value) for name, value in weights.items()}
    for name, value in stored.items():
        if not np.isfinite(value).all():
            raise UserError(f"{name} has values that are not finite in {value.dtype}, expected a trained network")
    data = save({**stored, **{name: np.ascontiguousarray(value) for name, value in probes.items()}})
    with atomic_open(folder / ARRAYS) as stream:
        stream.write(data)
    write_json(folder / ABOUT, {**about, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})


def compact(value: "np.ndarray") -> "np.ndarray":
    """Returns a weight as it is stored: float16 with two or more dimensions, else float32 (batch norm, biases)."""
    import numpy as np

    return np.asarray(value, np.float16 if np.ndim(value) >= 2 else np.float32, order="C")  # keeps scalars as such


def accuracy(folder: Union[str, os.PathLike]) -> Optional[dict[str, float]]:
    """Returns rank-1 and mAP (fractions, joint feature, single query) after the training; None if not known."""
    try:
        first = json.loads((Path(folder) / METRICS).read_text(encoding="utf-8"))["results"][0]
        return {name: float(first[name]) for name in ("rank-1", "mAP")}
    except (OSError, ValueError, LookupError, TypeError):
        return None

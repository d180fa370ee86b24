"""Exporters of networks: one module for each format, all with the interface :class:`Exporter`."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional, Protocol

import numpy as np

from han_tf.common.errors import UserError
from han_tf.common.processes import redirected
from han_tf.runtimes import load_module, require

if TYPE_CHECKING:
    import tensorflow as tf

FLOAT32, FLOAT16, BFLOAT16, INT8 = "float32", "float16", "bfloat16", "int8"
PRECISIONS = (FLOAT32, FLOAT16, BFLOAT16, INT8)


class Exporter(Protocol):
    """A module that writes one format.

    Attributes:
      FLAT: the form of the crop that it needs, see :class:`han_tf.deploy.graph.GatheredCrop`.
    """

    FLAT: bool

    def export(
        self,
        function: "tf.types.experimental.ConcreteFunction",
        folder: Path,
        precision: str,
        images: Optional[np.ndarray],
    ) -> None:
        """Writes the model's files.

        Args:
          function: from :func:`han_tf.deploy.graph.deployment_function`.
          folder: an empty folder.
          precision: one of the format's.
          images: training images to calibrate int8 with, ``[n, height, width, 3]`` uint8; None for other precisions.
        """


class Entry(NamedTuple):
    """The precisions and packages of a format.

    Attributes:
      precisions: those that it can be exported in.
      packages: packages to be installed beside TensorFlow.
      int8_packages: further packages for int8.
    """

    precisions: tuple[str, ...]
    packages: tuple[str, ...] = ()
    int8_packages: tuple[str, ...] = ()


FORMATS = {
    # TensorFlow has no kernels for other precisions on CPUs.
    "saved_model": Entry((FLOAT32,)),
    "tflite": Entry((FLOAT32, FLOAT16, INT8)),
    # ONNX Runtime would convert every float16 or bfloat16 map to float32 to compute.
    "onnx": Entry((FLOAT32, INT8), ("tf2onnx", "onnxruntime")),
    "openvino": Entry((FLOAT32, FLOAT16, BFLOAT16, INT8), ("openvino",), ("nncf",)),
}
"""Format -> its precisions and packages."""


def check_supported(format_name: str, precision: str) -> None:
    """Raises UserError if there is no such export, one of its packages is not installed, or it cannot run here."""
    precisions = FORMATS[format_name].precisions
    if precision not in precisions:
        raise UserError(f"{format_name} cannot be exported in {precision}, expected {' or '.join(precisions)}")
    entry = FORMATS[format_name]
    for package in entry.packages + (entry.int8_packages if precision == INT8 else ()):
        require(package, f"export to {format_name} in {precision}")
    if (format_name, precision) == ("openvino", BFLOAT16):
        runtime = load_module("han_tf.runtimes.openvino", f"export to {format_name}")
        if not runtime.has_bfloat16():
            raise UserError(
                f"export to {format_name} in {precision} cannot be checked: this processor has no bfloat16, expected "
                "one with AVX-512 BF16 or AMX"
            )


def exporter(format_name: str) -> Exporter:
    """Returns the exporter of a format.

    Raises:
      UserError: one of its packages cannot be imported.
    """
    return load_module(f"{__name__}.{format_name}", f"export to {format_name}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discards what converters print, C++ code included; their exceptions are raised."""
    with open(os.devnull, "wb") as nowhere, redirected((1, 2), nowhere.fileno()):
        yield

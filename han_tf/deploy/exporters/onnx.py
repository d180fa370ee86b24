"""ONNX, opset 17."""

from pathlib import Path
from typing import Optional

import numpy as np
import tensorflow as tf
import tf2onnx

from han_tf.common.files import temporary_folder
from han_tf.deploy.exporters import INT8, quiet
from han_tf.deploy.graph import INPUT, OUTPUT

FLAT = True
OPSET = 17


def export(
    function: tf.types.experimental.ConcreteFunction, folder: Path, precision: str, images: Optional[np.ndarray]
) -> None:
    """Writes the model, see :class:`han_tf.deploy.exporters.Exporter`."""
    (signature,) = [spec for spec in function.inputs if spec.dtype == tf.uint8]
    signature = [tf.TensorSpec(signature.shape, tf.uint8, name=INPUT)]
    named = tf.function(
        lambda images: tf.identity(function(images=images)[OUTPUT], name=OUTPUT), signature, autograph=False
    )
    with temporary_folder() as temporary, quiet():
        converted = temporary / "float32.onnx"
        path = folder / "model.onnx"
        tf2onnx.convert.from_function(
            named, signature, opset=OPSET, output_path=str(converted if precision == INT8 else path)
        )
        if precision == INT8:
            _quantise(converted, path, images)


def _quantise(source: Path, target: Path, images: np.ndarray) -> None:
    """Quantises convolutions and matrix products; all else, such as the crop, stays float32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._images = iter(images)

        def get_next(self) -> Optional[dict[str, np.ndarray]]:
            image = next(self._images, None)
            return None if image is None else {INPUT: image[None]}

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul"],
        per_channel=True,
        reduce_range=True,  # 7-bit weights: two products, which processors without VNNI add in 16 bits, must fit
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )

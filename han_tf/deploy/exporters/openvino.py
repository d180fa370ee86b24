"""OpenVINO IR: model.xml and model.bin."""

from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from han_tf.common.files import temporary_folder
from han_tf.deploy.exporters import FLOAT32, INT8, quiet
from han_tf.deploy.graph import OUTPUT
from han_tf.runtimes.quiet_openvino import openvino, opset13

FLAT = True


def export(
    function: tf.types.experimental.ConcreteFunction, folder: Path, precision: str, images: Optional[np.ndarray]
) -> None:
    """Writes the model, see :class:`han_tf.deploy.exporters.Exporter`."""
    with temporary_folder() as temporary, quiet():
        # Through a file: OpenVINO up to 2026.4 takes a function in memory only before Python 3.13.
        graph = convert_variables_to_constants_v2(function).graph
        model = openvino.convert_model(tf.io.write_graph(graph, str(temporary), "graph.pb", as_text=False))
        model.output().get_tensor().set_names({OUTPUT})
        if precision == INT8:
            model = quantised(model, images)
            _keep_as_float16(model)
        split_transposes(model)
        openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=precision != FLOAT32)


def split_transposes(model: openvino.Model) -> None:
    """Makes transpositions between channels-last and channels-first free, in place.

    OpenVINO keeps the maps of convolutions channels-last in memory, whatever their shape. It recognises that such a
    transposition moves no data if it is written with three dimensions between two reshapes, but not with four, which
    took a fifth of HAN Small's time.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Transpose" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        order = tuple(int(axis) for axis in node.input_value(1).get_node().get_data().ravel())
        shape = node.input_value(0).get_partial_shape()
        # The input images are channels-last in memory and in shape.
        if node.input_value(0).get_node().get_type_name() == "Parameter":
            continue
        if order not in ((0, 2, 3, 1), (0, 3, 1, 2)) or any(shape[axis].is_dynamic for axis in (1, 2, 3)):
            continue
        sides = [shape[axis].get_length() for axis in (1, 2, 3)]
        if order == (0, 2, 3, 1):
            channels, height, width = sides
            flat, result = [0, channels, height * width], [0, height, width, channels]
        else:
            height, width, channels = sides
            flat, result = [0, height * width, channels], [0, channels, height, width]
        moved = opset13.transpose(_reshaped(node.input_value(0), flat), np.array([0, 2, 1]))
        for target in list(node.output(0).get_target_inputs()):
            target.replace_source_output(_reshaped(moved, result).output(0))
    model.validate_nodes_and_infer_types()


def _reshaped(value: Any, shape: list[int]) -> openvino.Node:
    """Returns the reshaping of ``value``; a side of 0 in ``shape`` keeps the present one."""
    return opset13.reshape(value, np.array(shape, np.int64), special_zero=True)


def quantised(model: openvino.Model, images: np.ndarray) -> openvino.Model:
    """Returns the model with its convolutions in int8.

    Not quantised are the arithmetic between convolutions (crop and soft map, where 8 bits are too coarse for offsets
    and factors) and products of one vector per image (localisation, channel attention, heads), which cost little.

    Args:
      model: with maps channels-last or channels-first.
      images: to calibrate with, ``[n, height, width, 3]`` uint8.
    """
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    left_out = [node.get_friendly_name() for node in model.get_ordered_ops() if not _may_be_quantised(node)]
    result = nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in images]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=left_out, validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # 7-bit weights: processors without VNNI add the products of two channels in 16 bits, too few for 8-bit
            # weights. Depthwise convolutions keep 8 bits: their products are added in 32 bits.
            overflow_fix=OverflowFix.ENABLE,
            # The default range is the mean of the images' largest values, which clips unusual images.
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        ),
    )
    _share_quantised(result)
    return result


_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_MOVING = ("Parameter", "Constant", "Convert", "Result", "Transpose", "Reshape", "Concat", "Gather", "StridedSlice")
_KEEPING_RANGE = ("Relu", "Clamp", "MaxPool", "AvgPool", "Pad")


def _may_be_quantised(node: openvino.Node) -> bool:
    """Returns whether ``node`` is a convolution of several filters, its bias, or an operation without arithmetic."""
    kind = node.get_type_name()
    if kind in _CONVOLUTIONS:
        return node.get_output_partial_shape(0)[1].get_length() > 1
    if kind == "Add":
        return any(value.get_node().get_type_name() in _CONVOLUTIONS for value in node.input_values())
    return kind in _MOVING + _KEEPING_RANGE


def _share_quantised(model: openvino.Model) -> None:
    """Makes transpositions and reshapes of a map that is quantised for a convolution use its 8 bits, in place."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or node.input_value(0).get_node().get_type_name() == "Constant":
            continue
        for target in list(node.input_value(0).get_target_inputs()):
            if target.get_node().get_type_name() in ("Transpose", "Reshape"):
                target.replace_source_output(node.output(0))
    model.validate_nodes_and_infer_types()


def _keep_as_float16(model: openvino.Model) -> None:
    """Stores weights that are not quantised as float16, in place; OpenVINO does not do so in an int8 model."""
    for node in model.get_ordered_ops():
        value = node.input_value(1) if node.get_type_name() == "MatMul" else None
        if value is None or value.get_node().get_type_name() != "Constant":
            continue
        halved = opset13.convert(opset13.constant(value.get_node().get_data().astype(np.float16)), "f32")
        node.input(1).replace_source_output(halved.output(0))
    model.validate_nodes_and_infer_types()

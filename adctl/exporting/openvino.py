"""A detector as an OpenVINO model, in single precision, with weights in half precision, or quantised to eight bits."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files
from adctl.detectors.components.nearest_neighbours import LARGEST_CODE
from adctl.exporting.onnx import quantised
from adctl.runtimes.metadata import INPUT, METADATA, OUTPUTS
from adctl.runtimes.openvino import import_openvino

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adctl.exporting.graph import ExportSource


def write(source: ExportSource, target: Path, precision: str, images: Sequence[NDArray[np.uint8]]) -> None:
    """Export to an OpenVINO model: `target` (.xml) and the weights beside it (.bin).

    Each of the two is whole or not there; the `.xml`, without which nothing opens, comes last.

    Args:
        source: The model.
        target: The `.xml`.
        precision: `fp32`, `fp16` (weights are stored so and computed with in single precision) or `int8`.
        images: Pixels [1,H,W,C] each, from which ranges of activations are found for `int8`.

    Raises:
        MissingExtraError: The packages for it are not installed.
        OutputError: The target cannot be written.
    """
    openvino = import_openvino()
    model = _quantised(openvino, source, images) if precision == "int8" else _converted(openvino, source)
    _multiply_codes_in_eight_bits(model)
    _name(openvino, model, source)
    model.set_rt_info(source.metadata(precision), METADATA)
    files.make_folder(target.parent)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.xml"
        openvino.save_model(model, str(made), compress_to_fp16=precision == "fp16")
        with files.output_errors(target):
            target.unlink(missing_ok=True)  # never an old graph beside new weights
        for one, place in ((made.with_suffix(".bin"), target.with_suffix(".bin")), (made, target)):
            files.write_bytes(place, one.read_bytes())


def _converted(openvino: Any, source: ExportSource) -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the converter warns of its own internals
        return openvino.convert_model(source.program)


def _quantised(openvino: Any, source: ExportSource, images: Sequence[NDArray[np.uint8]]) -> Any:
    """The quantised ONNX graph: both formats round alike, and are as good as one another."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(quantised(source, images).SerializeToString())
        return openvino.Core().read_model(str(path)).clone()


def _multiply_codes_in_eight_bits(model: Any) -> None:
    """Say of convolutions whose inputs are rounded and clamped to -127 to 127 that these are whole numbers.

    OpenVINO then computes them in eight bits, as instructions of their own, with the same results. It is told so by a
    quantisation that changes no value, and by weights that are stored in eight bits.
    """
    for clamp in model.get_ops():
        if not _gives_codes(clamp):
            continue
        products = [
            target
            for target in clamp.output(0).get_target_inputs()
            if target.get_node().get_type_name() == "Convolution"
        ]
        codes = _as_codes(clamp.output(0))
        for target in products:
            target.replace_source_output(codes)
            _store_weights_as_codes(target.get_node())


def _gives_codes(node: Any) -> bool:
    """Whether a node clamps rounded values to those of eight bits."""
    if node.get_type_name() != "Clamp" or node.input_value(0).get_node().get_type_name() != "Round":
        return False
    limits = node.get_attributes()
    return (float(limits["min"]), float(limits["max"])) == (-LARGEST_CODE, LARGEST_CODE)


def _as_codes(output: Any) -> Any:
    from openvino import opset13

    ends = (np.float32(-LARGEST_CODE - 1), np.float32(LARGEST_CODE))
    return opset13.fake_quantize(output, *ends, *ends, levels=256).output(0)


def _store_weights_as_codes(convolution: Any) -> None:
    from openvino import opset13

    weights = convolution.input_value(1).get_node()
    while weights.get_type_name() == "Convert":
        weights = weights.input_value(0).get_node()
    codes = opset13.convert(opset13.constant(weights.data.astype(np.int8)), "f32")
    # Without a factor they are taken for weights that are merely stored in eight bits.
    scaled = opset13.multiply(codes, opset13.constant(np.ones((1, 1, 1, 1), np.float32)))
    convolution.input(1).replace_source_output(scaled.output(0))


def _name(openvino: Any, model: Any, source: ExportSource) -> None:
    """Call input and outputs as all formats do, and fix every size but the number of images."""
    model.inputs[0].set_names({INPUT})
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.set_names({name})
    height, width, channels = source.detector.input.shape
    model.reshape({INPUT: openvino.PartialShape([-1, height, width, channels])})
    model.validate_nodes_and_infer_types()

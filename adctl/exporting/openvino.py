"""Export to OpenVINO: in single precision, with weights in half precision, or quantised to eight bits."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files
from adctl.detectors.components.nearest_neighbours import LARGEST_CODE
from adctl.exporting.onnx import SMALL_WEIGHTS, halved, quantised
from adctl.runtimes.metadata import INPUT, METADATA
from adctl.runtimes.openvino import import_openvino

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adctl.exporting.graph import ExportSource


def write(source: ExportSource, target: Path, precision: str, images: Sequence[NDArray[np.uint8]]) -> None:
    """Export to an OpenVINO model: `target` (.xml) and the weights beside it (.bin).

    Both files are written atomically, the `.xml` last, because nothing can be opened without it.

    Args:
        source: The model.
        target: The `.xml` file.
        precision: `fp32`, `fp16` (weights stored in half precision, computed in single precision) or `int8`.
        images: Images [1,H,W,C], uint8, that calibrate the quantisation; only needed for `int8`.

    Raises:
        MissingExtraError: A required package is not installed.
        OutputError: The target cannot be written.
    """
    openvino = import_openvino()
    model = _quantised(openvino, source, images) if precision == "int8" else _converted(openvino, source)
    _search_in_eight_bits(model)
    if precision == "fp16":
        _halve_weights(model)
    _set_names_and_sizes(openvino, model, source)
    model.set_rt_info(source.metadata(precision), METADATA)
    files.make_folder(target.parent)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.xml"
        openvino.save_model(model, str(saved), compress_to_fp16=False)
        with files.output_errors(target):
            target.unlink(missing_ok=True)  # never an old graph beside new weights
        for suffix in (".bin", target.suffix):
            files.write_bytes(target.with_suffix(suffix), saved.with_suffix(suffix).read_bytes())


def _converted(openvino: Any, source: ExportSource) -> Any:
    return openvino.convert_model(source.convertible)


def _quantised(openvino: Any, source: ExportSource, images: Sequence[NDArray[np.uint8]]) -> Any:
    """Convert the quantised ONNX graph, so that both formats round in the same way."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(quantised(source, images).SerializeToString())
        return openvino.Core().read_model(str(path)).clone()


def _search_in_eight_bits(model: Any) -> None:
    """Let OpenVINO compute the search in a quantised memory bank with eight-bit instructions.

    Such a search is a convolution whose inputs are rounded and clamped to -127 to 127. OpenVINO recognises eight-bit
    inputs by a FakeQuantize node, which changes no value here, and by weights stored in eight bits. The results stay
    the same.
    """
    for clamp in model.get_ops():
        if not _clamps_codes(clamp):
            continue
        convolutions = [
            target
            for target in clamp.output(0).get_target_inputs()
            if target.get_node().get_type_name() == "Convolution"
        ]
        codes = _as_codes(clamp.output(0))
        for target in convolutions:
            target.replace_source_output(codes)
            _store_weights_as_codes(target.get_node())


def _clamps_codes(node: Any) -> bool:
    """Return whether a node clamps rounded values to the eight-bit codes of a memory bank."""
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
    # Without a scale, OpenVINO treats them as compressed weights and computes in single precision.
    scaled = opset13.multiply(codes, opset13.constant(np.ones((1, 1, 1, 1), np.float32)))
    convolution.input(1).replace_source_output(scaled.output(0))


def _halve_weights(model: Any) -> None:
    """Store large weights in half precision; OpenVINO itself leaves a model as it is that has eight-bit inputs.

    The small ones include the squared norms of a memory bank's rows: rounded, they would change distances.
    """
    from openvino import opset13

    weights = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    for node in weights:
        if node.get_element_type().to_string() == "f32" and node.data.size > SMALL_WEIGHTS:
            half = opset13.convert(opset13.constant(halved(node.data)), "f32")
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(half.output(0))


def _set_names_and_sizes(openvino: Any, model: Any, source: ExportSource) -> None:
    """Name the input and the outputs as in all formats, and fix all sizes except the number of images."""
    model.inputs[0].set_names({INPUT})
    for output, name in zip(model.outputs, source.outputs, strict=True):
        output.set_names({name})
    height, width, channels = source.detector.input.shape
    model.reshape({INPUT: openvino.PartialShape([-1, height, width, channels])})
    model.validate_nodes_and_infer_types()

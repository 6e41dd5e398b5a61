"""Export to ONNX: in single precision, with weights in half precision, or quantised to eight bits."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adctl import files
from adctl.errors import MissingExtraError
from adctl.exporting.graph import ExportSource
from adctl.runtimes.metadata import INPUT, METADATA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

SMALL_WEIGHTS = 1024
"""Largest number of elements of a tensor that stays in single precision, because halving it saves little."""

_QUANTISED = ("Conv",)
"""Operations that are quantised. Matrix products are not: distances and whitening need full precision."""


def write_onnx(model: Path, target: Path) -> None:
    """Export a model file to ONNX in single precision, atomically.

    Raises:
        ModelFileError: The model file cannot be read.
        UsageError: The detector's settings cannot be exported.
        MissingExtraError: A required package is not installed.
        OutputError: The target cannot be written.
    """
    write(ExportSource.read(model), target, "fp32", ())


def write(source: ExportSource, target: Path, precision: str, images: Sequence[NDArray[np.uint8]]) -> None:
    """Export to ONNX, atomically.

    Args:
        source: The model.
        target: The `.onnx` file.
        precision: `fp32`, `fp16` (weights stored in half precision, computed in single precision) or `int8`.
        images: Images [1,H,W,C], uint8, that calibrate the quantisation; only needed for `int8`.

    Raises:
        MissingExtraError: A required package is not installed.
        OutputError: The target cannot be written.
    """
    proto = quantised(source, images) if precision == "int8" else to_onnx(source)
    import onnx

    if precision == "fp16":
        _halve_weights(proto.graph)
    _remove_notes(proto.graph)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, source.metadata(precision)
    with files.atomic_path(target) as temporary:
        onnx.save_model(proto, str(temporary), format="protobuf")


def to_onnx(source: ExportSource) -> Any:
    """Convert the graph to an ONNX model; the nodes still name the modules that they came from.

    Raises:
        MissingExtraError: A required package is not installed.
    """
    try:
        import onnx  # noqa: F401 - torch's exporter needs both, and its error is less clear
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        source.convertible, (), input_names=[INPUT], output_names=list(source.outputs), dynamo=True, verbose=False
    )
    assert program is not None
    return program.model_proto


def _remove_notes(graph: Any) -> None:
    """Remove the exporter's notes: they are long, and contain paths of this machine."""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    del graph.metadata_props[:]


def _halve_weights(graph: Any) -> None:
    """Store large weights in half precision, with a cast to single precision; runtimes cast once, when loading."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size <= SMALL_WEIGHTS:
            continue
        name, half = tensor.name, f"{tensor.name}_half"
        tensor.CopyFrom(numpy_helper.from_array(halved(values), half))
        casts.append(helper.make_node("Cast", [half], [name], f"{name}_cast", to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def halved(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return values in half precision; larger ones than it can hold are clipped."""
    limits = np.finfo(np.float16)
    return values.clip(limits.min, limits.max).astype(np.float16)


def quantised(source: ExportSource, images: Sequence[NDArray[np.uint8]]) -> Any:
    """Convert the graph to an ONNX model with the network's convolutions in eight bits.

    Args:
        source: The model.
        images: Images [1,H,W,C], uint8, from which the ranges of the activations are measured.

    Raises:
        MissingExtraError: A required package is not installed.
    """
    proto = to_onnx(source)
    import onnx

    try:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "export") from error
    nodes = [node.name for node in proto.graph.node if node.op_type in _QUANTISED and _is_network(node, source)]
    with tempfile.TemporaryDirectory() as folder:
        original, quantised = Path(folder) / "original.onnx", Path(folder) / "quantised.onnx"
        onnx.save_model(proto, str(original))
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it recommends steps that the exporter has already done
        try:
            quantize_static(
                str(original),
                str(quantised),
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_quantize=nodes,
                per_channel=True,
                # Only inputs of convolutions are quantised, not their outputs, so that the features that the detector
                # compares and the sums of residual blocks are not rounded.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Conv"]},
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        finally:
            logging.disable(before)
        return onnx.load(str(quantised))


def _is_network(node: Any, source: ExportSource) -> bool:
    notes = {entry.key: entry.value for entry in node.metadata_props}
    return source.is_quantisable(_scope(notes.get("pkg.torch.onnx.name_scopes", "")))


def _scope(scopes: str) -> str:
    """Return the innermost module from the exporter's list of scopes, whose last entry is the operation."""
    names = [part.strip(" '\"[]") for part in scopes.split(",")]
    return names[-2] if len(names) > 1 else ""


class _Reader:
    """Calibration images in the form that ONNX Runtime's quantisation reads."""

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self._images: Iterator[NDArray[np.uint8]] = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next image as a dictionary of inputs; None after the last one."""
        image = next(self._images, None)
        return None if image is None else {INPUT: image}

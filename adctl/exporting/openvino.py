"""A detector as an OpenVINO model, in single precision, with weights in half precision, or quantised by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import files
from adctl.errors import MissingExtraError
from adctl.runtimes.exported import INPUT, METADATA, OUTPUTS
from adctl.runtimes.openvino import import_openvino

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from adctl.exporting.graph import Source

_QUANTISED = {"Convolution", "GroupConvolution", "MatMul", "Add", "Multiply", "AvgPool", "MaxPool", "ReduceMean"}
_QUANTISED |= {"Interpolate", "Concat", "Subtract", "Divide", "ConvolutionBackpropData", "MVN", "Pad", "Swish"}
"""Kinds of operation that NNCF gives eight bits where it is not told to leave them."""


def write(source: Source, target: Path, precision: str, images: Sequence[NDArray[np.uint8]]) -> None:
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
    model = _converted(openvino, source)
    if precision == "int8":
        model = _quantised(model, source, images)
    model.set_rt_info(source.metadata(precision), METADATA)
    files.make_folder(target.parent)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.xml"
        openvino.save_model(model, str(made), compress_to_fp16=precision == "fp16")
        with files.output_errors(target):
            target.unlink(missing_ok=True)  # never an old graph beside new weights
        for one, place in ((made.with_suffix(".bin"), target.with_suffix(".bin")), (made, target)):
            files.write_bytes(place, one.read_bytes())


def _converted(openvino: Any, source: Source) -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the converter warns of its own internals
        model = openvino.convert_model(source.program)
    model.inputs[0].set_names({INPUT})
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.set_names({name})
    height, width, channels = source.detector.input.shape
    model.reshape({INPUT: openvino.PartialShape([-1, height, width, channels])})
    model.validate_nodes_and_infer_types()
    return model


def _quantised(model: Any, source: Source, images: Sequence[NDArray[np.uint8]]) -> Any:
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", "int8") from error
    nncf.set_log_level(logging.ERROR)
    scope = nncf.IgnoredScope(names=_left_alone(model, source), validate=False)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model,
            nncf.Dataset([{INPUT: image} for image in images]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            ignored_scope=scope,
        )


def _left_alone(model: Any, source: Source) -> list[str]:
    """Names of the operations that stay in single precision: those that did not come from the network."""
    scopes = {node.name: _scope_of(node) for node in source.program.run_decompositions().graph.nodes}
    names = []
    for operation in model.get_ordered_ops():
        if operation.get_type_name() not in _QUANTISED:
            continue
        name = operation.get_friendly_name()
        if not source.is_quantisable(scopes.get(name.partition("/")[0], "")):
            names.append(name)
    return names


def _scope_of(node: Any) -> str:
    """The innermost module an operation came from."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""

"""Number of operations of a model for one image, counted in convolutions and matrix products, which dominate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def count_flops(path: Path) -> float | None:
    """Count the operations for one image, with a multiply-add as two operations.

    Returns:
        Number of operations; None for other formats than safetensors and ONNX, without `onnx`, or with unknown shapes.
    """
    if path.suffix == ".safetensors":
        return _by_torch(path)
    if path.suffix == ".onnx":
        return _by_onnx(path)
    return None


def _by_torch(path: Path) -> float:
    import torch

    from adctl.classification.header import is_classifier
    from adctl.classification.model_file import load_classifier
    from adctl.engine.model_summary import FlopCounter
    from adctl.model_file import load_model

    detector = load_classifier(path)[0] if is_classifier(path) else load_model(path)[0]
    height, width, channels = detector.input.shape
    with FlopCounter() as counter, torch.no_grad():
        detector(torch.zeros(1, channels, height, width))
    return float(counter.total)


def _by_onnx(path: Path) -> float | None:
    try:
        import onnx
        from onnx import shape_inference
    except ImportError:
        return None
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]  # the stored shapes are for an unknown batch size
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes.setdefault(value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
    counts = [_count_node(node, shapes) for node in graph.node if node.op_type in _PRODUCTS]
    return None if None in counts else float(sum(count for count in counts if count is not None))


_PRODUCTS = ("Conv", "MatMul", "Gemm")


def _count_node(node: Any, shapes: dict[str, list[int]]) -> int | None:
    """Return twice the number of output values times the products summed for each; None if a shape is unknown."""
    left, right, out = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if not out or not left or not right or 0 in (*left, *right, *out):
        return None
    if node.op_type == "Conv":
        return 2 * math.prod(out) * math.prod(right[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(out) * (left[-2] if transposed else left[-1])

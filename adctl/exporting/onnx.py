"""A detector as an ONNX file: images in [0, 1] to score and map, normalisation inside, batch size free.

The header of the model file (calibration, config, training) travels in the file's metadata.
"""

from __future__ import annotations

import json
import logging
import warnings
from typing import TYPE_CHECKING

import torch

from adctl import files
from adctl.errors import MissingExtraError
from adctl.model_file import load_model

if TYPE_CHECKING:
    from pathlib import Path

METADATA = "adctl"
INPUT = "images"
OUTPUTS = ("scores", "maps")


def write_onnx(model: Path, target: Path) -> None:
    """Export a model file to ONNX, atomically.

    Raises:
        ModelFileError: The model file cannot be read.
        UsageError: Its settings cannot be exported.
        MissingExtraError: The packages for it are not installed.
        OutputError: The target cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it and would say so less clearly
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from error
    detector, header = load_model(model)
    detector.check_exportable()
    size = detector.input
    example = torch.rand(2, size.channels, size.height, size.width)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            detector,
            (example,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(header.to_dict(), sort_keys=True)
    with files.atomic_path(target) as temporary:
        onnx.save_model(proto, str(temporary), format="protobuf")

"""What exported files of every format share: their graph's names, and what travels with it.

The graph takes pixels [B,H,W,C] of uint8, brought to the size of the model, and gives scores [B] and maps [B,h,w] of
float32: all but reading and resizing is inside. Beside it lies one JSON text: the header of the model file
(calibration, settings, training) and where the graph came from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from adctl.errors import ModelFileError, UsageError
from adctl.model_file import ModelHeader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

METADATA = "adctl"
"""The name under which the JSON text is kept."""

INPUT = "pixels"
OUTPUTS = ("scores", "maps")

_AGAIN = "Export it again with 'adctl export'."


@dataclass(frozen=True)
class ExportOrigin:
    """Where an exported graph came from.

    Attributes:
        tensors: SHA-256 of the tensors of its model file, as `model_file.tensors_digest` tells it.
        precision: Of its weights: `fp32`, `fp16` or `int8`.
    """

    tensors: str
    precision: str


def metadata_text(header: ModelHeader, origin: ExportOrigin) -> str:
    """What goes into an exported file; the same model gives the same text."""
    return json.dumps({**header.to_dict(), "export": asdict(origin)}, sort_keys=True)


def read_metadata(text: str | None, path: Path) -> tuple[ModelHeader, ExportOrigin]:
    """The header and the origin of an exported file.

    Args:
        text: What was found in it, or None.
        path: The file.

    Raises:
        ModelFileError: It is not one of adctl's, damaged, or of another version.
    """
    if text is None:
        raise ModelFileError(f"{path} was not written by adctl: it has no calibration.", _AGAIN)
    try:
        value = json.loads(text)
        header = ModelHeader.from_dict(value, path)
        return header, ExportOrigin(**value["export"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"What {path} says of its model is damaged or of another adctl.", _AGAIN) from error


def damaged(path: Path, kind: str, error: object) -> ModelFileError:
    """The error for a file that its own library cannot open."""
    first = str(error).strip().partition("\n")[0]
    return ModelFileError(f"{path} is not a whole {kind}: {first}", _AGAIN)


def require_file(path: Path) -> None:
    """Refuse what is not there, before a library says so in its own words.

    Raises:
        ModelFileError: There is no such file.
    """
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path, or write one with 'adctl export'.")


def require_cpu(device: str, gpu: int | None, runtime: str) -> None:
    """Refuse GPUs on behalf of a runtime that is used on the CPU alone.

    Raises:
        UsageError: A GPU was asked for.
    """
    if gpu is not None or device not in ("auto", "cpu"):
        asked = f"--gpu {gpu}" if gpu is not None else f"--device {device}"
        raise UsageError(f"The runtime '{runtime}' computes on the CPU, not with {asked}.", "Leave the device out.")


def split_batch(pixels: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    """Pixels [B,H,W,C] in pieces of at most `size` images."""
    return (pixels[start : start + size] for start in range(0, len(pixels), size))

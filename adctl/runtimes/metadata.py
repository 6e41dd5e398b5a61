"""Names and metadata common to the exported files of all formats.

The graph maps pixels [B,H,W,C] of uint8, already resized, to scores [B] and anomaly maps [B,h,w] of float32; that of a
classifier maps them to distances [B] and logits [B,K], and that of a detector with a classifier to all four. The file
also holds one JSON text: the header of the model file (calibration, settings, training), that of the classifier in the
graph, and the origin of the graph.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from adctl import documents
from adctl.classification.header import ARCH, ClassifierHeader, header_of
from adctl.errors import ModelFileError, UsageError
from adctl.model_file import ModelHeader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from adctl.runtimes.base import Runtime

METADATA = "adctl"
"""Key of the JSON text in the file's metadata."""

INPUT = "pixels"
OUTPUTS = ("scores", "maps")
CLASSIFIER_OUTPUTS = ("distances", "logits")

_CLASSIFIER = "classifier"
"""Key of the header of a classifier in the graph of a detector."""

_REMEDY = "Export it again with 'adctl export'."


@dataclass(frozen=True)
class ExportOrigin:
    """Origin of an exported graph.

    Attributes:
        tensors: SHA-256 of the tensors of the model file; see `model_file.tensors_digest`.
        precision: Precision of the weights: `fp32`, `fp16` or `int8`.
        classifier: Header of the classifier in the graph of a detector, or None.
    """

    tensors: str
    precision: str
    classifier: ClassifierHeader | None = None


def metadata_text(header: ModelHeader | ClassifierHeader, origin: ExportOrigin) -> str:
    """Return the JSON text for an exported file; the same model always gives the same text."""
    values = header.to_dict() if isinstance(header, ModelHeader) else asdict(header)
    if origin.classifier is not None:
        # Without `arch`, by which the file of a classifier alone is known.
        values |= {_CLASSIFIER: {name: value for name, value in asdict(origin.classifier).items() if name != "arch"}}
    return json.dumps({**values, "export": {"tensors": origin.tensors, "precision": origin.precision}}, sort_keys=True)


def read_metadata(text: str | None, path: Path) -> tuple[ModelHeader, ExportOrigin]:
    """Parse the JSON text of an exported file.

    Args:
        text: The text, or None if the file has none.
        path: The file, for error messages.

    Raises:
        ModelFileError: There is no text, or it is damaged or too new.
    """
    if text is None:
        raise ModelFileError(f"{path} was not written by adctl: it has no calibration.", _REMEDY)
    try:
        value = documents.parse(text, dict)
        origin = documents.convert(value.pop("export", None), ExportOrigin)
        classifier = documents.convert(value.pop(_CLASSIFIER, {}), dict[str, Any])
    except ValueError as error:
        raise ModelFileError(f"The metadata of {path} is damaged or from another adctl: {error}.", _REMEDY) from error
    if classifier:
        origin = replace(origin, classifier=header_of({**classifier, "arch": ARCH}, path))
    if value.get("arch") == ARCH:
        # `adctl.runtimes.loading` opens such a file only for a caller that wants a classifier.
        return cast("ModelHeader", header_of(value, path)), origin
    return ModelHeader.from_dict(value, path), origin


def classifier_in(runtime: Runtime) -> ClassifierHeader | None:
    """Return the header of the classifier in the graph of an exported detector; None for any other runtime."""
    origin: ExportOrigin | None = getattr(runtime, "origin", None)  # only exported files have one
    return None if origin is None else origin.classifier


def damaged(path: Path, kind: str, error: object) -> ModelFileError:
    """Return the error for a file that its runtime cannot open."""
    first = str(error).strip().partition("\n")[0]
    return ModelFileError(f"{path} is not a complete {kind}: {first}", _REMEDY)


def require_file(path: Path) -> None:
    """Raise a `ModelFileError` if there is no such file; the error of the runtime's library would be less clear."""
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path, or write one with 'adctl export'.")


def require_intact_archive(archive: zipfile.ZipFile) -> None:
    """Compare every file in an archive with its checksum, since PyTorch ignores them.

    Raises:
        zipfile.BadZipFile: A file is damaged; the message names it.
    """
    wrong = archive.testzip()
    if wrong is not None:
        raise zipfile.BadZipFile(f"{wrong} does not match its checksum")


def require_cpu(device: str, gpu: int | None, runtime: str) -> None:
    """Raise a `UsageError` if a GPU is requested for a runtime that computes only on the CPU."""
    if gpu is not None or device not in ("auto", "cpu"):
        flag = f"--gpu {gpu}" if gpu is not None else f"--device {device}"
        raise UsageError(f"The runtime '{runtime}' computes only on the CPU, not with {flag}.", f"Omit {flag}.")


def split_batch(pixels: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    """Split pixels [B,H,W,C] into parts of at most `size` images."""
    return (pixels[start : start + size] for start in range(0, len(pixels), size))

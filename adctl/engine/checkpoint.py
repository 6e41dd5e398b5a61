"""Tensors and a JSON header in one safetensors file, written atomically. Knows nothing of what they mean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adctl import files
from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_KEY = "adctl"


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header; the same ones give the same bytes.

    Raises:
        OutputError: The file cannot be written; what was there before is untouched.
    """
    # One metadata key with sorted JSON: safetensors keeps no order among several.
    metadata = {_KEY: json.dumps(header, sort_keys=True, ensure_ascii=False)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with files.atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:  # it reports a full disk as text
            raise OSError(f"{error}") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors (on the CPU) and header.

    Raises:
        ModelFileError: The file is absent, truncated, or was not written by adctl.
    """
    header = read_header(path)
    with safe_open(path, framework="pt", device="cpu") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, header  # noqa: SIM118 - no dictionary


def read_header(path: Path) -> dict[str, Any]:
    """Read the header alone.

    Raises:
        ModelFileError: The file is absent, truncated, or was not written by adctl.
    """
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path, or train one with 'adctl train'.")
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            metadata = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a whole model file: {error}.",
            "Copy it again from where it was made, or train again.",
        ) from error
    if _KEY not in metadata:
        raise ModelFileError(
            f"{path} is a safetensors file, but not a model of adctl.",
            "Give a model.safetensors that 'adctl train' wrote; plain backbone weights go to 'train --weights'.",
        )
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
    except ValueError as error:
        raise ModelFileError(f"The header of {path} is damaged: {error}.", "Take an intact copy.") from error
    return header

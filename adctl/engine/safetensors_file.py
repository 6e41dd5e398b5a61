"""Tensors and a JSON header in one safetensors file, written atomically, without knowledge of their meaning.

Reading and replacing the header does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from adctl import files
from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_KEY = "adctl"
_SIZE_BYTES = 8
"""Bytes before the header of a safetensors file: the length of the header, little-endian."""

_CHUNK = 2**20


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header; equal content gives equal bytes.

    Raises:
        OutputError: The file cannot be written; an existing file is kept.
    """
    from safetensors.torch import save_file

    metadata = {_KEY: _text(header)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with files.atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:  # also raised for a full disk
            raise OSError(f"{error}") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors (on the CPU) and header.

    Raises:
        ModelFileError: The file is missing or truncated, or was not written by adctl.
    """
    header = read_header(path)
    with safe_open(path, framework="pt", device="cpu") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, header  # noqa: SIM118 - no dictionary


def read_header(path: Path) -> dict[str, Any]:
    """Read the header only.

    Raises:
        ModelFileError: The file is missing or truncated, or was not written by adctl.
    """
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path, or train one with 'adctl train'.")
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a complete model file: {error}.",
            "Copy it again from its origin, or train again.",
        ) from error
    if _KEY not in metadata:
        raise ModelFileError(
            f"{path} is a safetensors file, but not a model of adctl.",
            "Give a model.safetensors that 'adctl train' wrote; plain backbone weights go to 'train --weights'.",
        )
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
    except ValueError as error:
        raise ModelFileError(f"The header of {path} is damaged: {error}.", "Use an intact copy.") from error
    return header


def replace_header(source: Path, target: Path, header: Mapping[str, Any]) -> None:
    """Copy a file with another header; the tensors are copied byte for byte. `target` may be `source`.

    Raises:
        ModelFileError: The source is missing or truncated, or was not written by adctl.
        OutputError: The target cannot be written.
    """
    read_header(source)  # raises for incomplete files
    with source.open("rb") as original, files.atomic_path(target) as temporary, temporary.open("wb") as copy:
        table = _table(original)
        table["__metadata__"] = {_KEY: _text(header)}
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _SIZE_BYTES)  # tensors start at a multiple of eight
        copy.write(len(text).to_bytes(_SIZE_BYTES, "little") + text)
        shutil.copyfileobj(original, copy, _CHUNK)


def tensors_digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's tensors with names and shapes, independent of its header.

    Raises:
        ModelFileError: The file is missing or truncated, or was not written by adctl.
    """
    read_header(path)
    with path.open("rb") as stored:
        table = _table(stored)
        table.pop("__metadata__", None)
        digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
        while chunk := stored.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _table(stored: BinaryIO) -> dict[str, Any]:
    """Read the table of tensors, and leave the stream at the first tensor."""
    size = int.from_bytes(stored.read(_SIZE_BYTES), "little")
    table: dict[str, Any] = json.loads(stored.read(size))
    return table


def _text(header: Mapping[str, Any]) -> str:
    # One metadata key with sorted JSON: safetensors keeps no order among several.
    return json.dumps(header, sort_keys=True, ensure_ascii=False)

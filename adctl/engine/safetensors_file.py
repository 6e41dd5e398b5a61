"""Tensors and a JSON header in one safetensors file, written atomically, without knowledge of their meaning.

The header stores a SHA-256 of each tensor and of itself, and both are compared when the file is read. Reading and
replacing the header does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from adctl import files, reading
from adctl.documents import parse_json
from adctl.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger(__name__)

_KEY = "adctl"
_TENSORS, _HEADER = "tensor_sha256", "header_sha256"
"""Keys of the digests in the header; files of adctl 0.1 have neither."""

_UNKNOWN = "0" * 64
"""Value of the header's digest while this digest is computed."""

_SIZE_BYTES = 8
"""Bytes before the header of a safetensors file: the length of the header, little-endian."""

_CHUNK = 2**20
_INTACT = "Copy it again from its origin, or train again."


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header with their digests; equal content gives equal bytes.

    Raises:
        OutputError: The file cannot be written; an existing file is kept.
    """
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_KEY: _text({**header, _TENSORS: _digests(plain)})}
    with files.atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:  # also raised for a full disk
            raise OSError(f"{error}") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors (on the CPU) and header, and compare them with their digests.

    Raises:
        ModelFileError: The file is missing, truncated or damaged, or was not written by adctl.
    """
    header, digests = _read_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no dictionary
    except Exception as error:  # safetensors and torch refuse types and shapes in their own ways
        raise ModelFileError(f"{path} is not a complete model file: {error}.", _INTACT) from error
    if digests is None:
        log.info("%s has no checksums, as files of adctl 0.1: damaged weights would go unnoticed.", path)
    else:
        _compare(path, digests, _digests(tensors))
    return tensors, header


def read_header(path: Path) -> dict[str, Any]:
    """Read the header only, without its digests.

    Raises:
        ModelFileError: The file is missing or truncated, its header is damaged, or it was not written by adctl.
    """
    return _read_header(path)[0]


def replace_header(source: Path, target: Path, header: Mapping[str, Any]) -> None:
    """Copy a file with another header; the tensors and their digests are copied. `target` may be `source`.

    Raises:
        ModelFileError: The source is missing or truncated, or was not written by adctl.
        OutputError: The target cannot be written.
    """
    digests = _read_header(source)[1]  # raises for incomplete files
    kept = {} if digests is None else {_TENSORS: digests}
    with reading.open_regular(source) as original, files.atomic_path(target) as temporary, temporary.open("wb") as copy:
        table = _table(original)
        table["__metadata__"] = {_KEY: _text({**header, **kept})}
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _SIZE_BYTES)  # tensors start at a multiple of eight
        copy.write(len(text).to_bytes(_SIZE_BYTES, "little") + text)
        shutil.copyfileobj(original, copy, _CHUNK)


def tensors_digest(path: Path) -> str:
    """Return a hexadecimal SHA-256 of a file's tensors with names and shapes, independent of its header.

    It is computed from the stored digests, without reading the tensors; only files without digests are read whole.

    Raises:
        ModelFileError: The file is missing or truncated, or was not written by adctl.
    """
    digests = _read_header(path)[1]
    if digests is not None:
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    with reading.open_regular(path) as stored:
        table = _table(stored)
        table.pop("__metadata__", None)
        digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
        while chunk := stored.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return the header and the digests of the tensors, None if the file has none."""
    text = _header_text(path)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise ModelFileError(f"The header of {path} is damaged: {error}.", "Use an intact copy.") from error
    if not isinstance(header, dict):
        raise ModelFileError(f"The header of {path} is damaged: it is not a JSON object.", "Use an intact copy.")
    own, digests = header.pop(_HEADER, None), header.pop(_TENSORS, None)
    if own is None and digests is None:
        return header, None
    if not isinstance(own, str) or own != _digest_of_header(text, own):
        raise ModelFileError(f"The header of {path} is damaged: it does not match its checksum.", "Use an intact copy.")
    return header, digests


def _header_text(path: Path) -> str:
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path, or train one with 'adctl train'.")
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a complete model file: {error}.", _INTACT) from error
    if _KEY not in metadata:
        raise ModelFileError(
            f"{path} is a safetensors file, but not a model of adctl.",
            "Give a model.safetensors that 'adctl train' wrote; plain backbone weights go to 'train --weights'.",
        )
    return str(metadata[_KEY])


def _compare(path: Path, stored: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise an error if a tensor does not match its digest, is missing, or was added."""
    wrong = sorted(name for name in {*stored, *found} if stored.get(name) != found.get(name))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelFileError(f"{path} is damaged: '{wrong[0]}'{more} does not match its checksum.", _INTACT)


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of the type, the shape and the values of each tensor on the CPU, computed in threads."""
    with ThreadPoolExecutor(thread_name_prefix="adctl-digest") as pool:
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _digest(tensor: Tensor) -> str:
    from torch import uint8

    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    values: Any = tensor.contiguous().reshape(-1).view(uint8).numpy()
    digest.update(values)
    return digest.hexdigest()


def _digest_of_header(text: str, own: str = _UNKNOWN) -> str:
    """Return the SHA-256 of a header's text, computed as if its own digest were unknown."""
    unknown = text.replace(_entry(own), _entry(_UNKNOWN), 1)
    return hashlib.sha256(unknown.encode("utf-8", "surrogatepass")).hexdigest()


def _entry(digest: str) -> str:
    return f'"{_HEADER}": "{digest}"'


def _table(stored: BinaryIO) -> dict[str, Any]:
    """Read the table of tensors, and leave the stream at the first tensor."""
    size = int.from_bytes(stored.read(_SIZE_BYTES), "little")
    table: dict[str, Any] = parse_json(stored.read(size))
    return table


def _text(header: Mapping[str, Any]) -> str:
    """Return the header as JSON with its own digest; names that are not UTF-8 are escaped."""
    # One metadata key with sorted JSON: safetensors keeps no order among several.
    text = json.dumps({**header, _HEADER: _UNKNOWN}, sort_keys=True)
    return text.replace(_entry(_UNKNOWN), _entry(_digest_of_header(text)), 1)

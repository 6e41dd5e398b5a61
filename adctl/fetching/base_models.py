"""Fetch base models: folders in the layout of diffusers or transformers, of safetensors and settings only."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import files
from adctl.errors import FetchError, UsageError
from adctl.fetching.download import download
from adctl.fetching.store import fetch_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adctl.fetching.catalogue import RemoteFile
    from adctl.fetching.download import Transfer
    from adctl.progress import Reporter

    FindFile = Callable[[str, Transfer], RemoteFile | None]

_KEPT = {".safetensors", ".json", ".txt"}
"""Suffixes of the files of a base model: weights, settings and words. Pickles are left out."""

_DIFFUSION = (
    "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)  # fmt: skip
_CLIP = ("config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class KnownBase:
    """A base model that can be downloaded.

    Attributes:
        repository: Repository on Hugging Face.
        licence: Licence according to its authors.
        files: Files that adctl needs.
    """

    repository: str
    licence: str
    files: tuple[str, ...]


BASES = {
    "sd-2-1-base": KnownBase("stabilityai/stable-diffusion-2-1-base", "CreativeML Open RAIL++-M", _DIFFUSION),
    "sd-1-5": KnownBase("stable-diffusion-v1-5/stable-diffusion-v1-5", "CreativeML Open RAIL-M", _DIFFUSION),
    "clip-vit-large-patch14": KnownBase("openai/clip-vit-large-patch14", "MIT", _CLIP),
    "clip-vit-base-patch16": KnownBase("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "MIT", _CLIP),
}
"""Base models by the name after `adctl fetch weights`."""


def is_base_folder(source: Path | None) -> bool:
    """Return whether a folder holds a base model."""
    if source is None or not source.is_dir():
        return False
    return (source / "config.json").is_file() or (source / "unet" / "config.json").is_file()


def import_base(source: Path, target: Path) -> None:
    """Copy a base model from a folder.

    Raises:
        UsageError: The folder has no safetensors file.
        OutputError: The copy cannot be written.
    """
    wanted = [path for path in sorted(source.rglob("*")) if path.suffix in _KEPT and path.is_file()]
    if not any(path.suffix == ".safetensors" for path in wanted):
        raise UsageError(f"{source} has no safetensors file.", "Copy a base model with .safetensors weights.")
    with files.output_errors(target), files.atomic_folder(target) as temporary:
        for path in wanted:
            copy = temporary / "new" / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        _put(temporary, target)


def download_base(name: str, target: Path, transfer: Transfer, reporter: Reporter, find: FindFile) -> None:
    """Download the files of a known base model.

    Args:
        name: A name from `BASES`.
        target: Folder to write.
        transfer: Download settings.
        reporter: Receiver of progress.
        find: Function from an address to the file there with its digest, None if there is none.

    Raises:
        FetchError: A download failed.
        OutputError: The files cannot be written.
    """
    known = BASES[name]
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    remotes: dict[str, RemoteFile] = {}
    for file in known.files:
        remote = find(f"{host}/{known.repository}/resolve/main/{file}", transfer)
        if remote is None:
            raise FetchError(f"There is no {file} at {known.repository}.", "Copy the base from another machine.")
        remotes[file] = remote
    with fetch_lock(target), files.atomic_folder(target) as temporary:
        for file, remote in remotes.items():
            path = temporary / "new" / file
            files.make_folder(path.parent)
            with reporter.stage(f"{name}: {file}", remote.size, in_bytes=True) as update:
                download(remote.urls, path, sha256=remote.sha256, size=remote.size, progress=update, transfer=transfer)
        _put(temporary, target)


def digest_of(folder: Path) -> tuple[str, int]:
    """Return a SHA-256 of all files of a base model, and their bytes."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [f"{path.relative_to(folder).as_posix()} {files.sha256_file(path)}" for path in found]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), sum(path.stat().st_size for path in found)


def _put(temporary: Path, target: Path) -> None:
    """Move a complete folder to its place, instead of an older one."""
    if target.exists():
        target.rename(temporary / "old")
    (temporary / "new").rename(target)

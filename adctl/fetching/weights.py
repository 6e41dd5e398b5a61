"""Fetch the pretrained weights of timm models, always stored as safetensors."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl import __version__, documents, files, reading
from adctl.errors import FetchError, UsageError
from adctl.fetching import packing
from adctl.fetching.base_models import BASES, digest_of, download_base, import_base, is_base_folder
from adctl.fetching.catalogue import RemoteFile
from adctl.fetching.download import Transfer, add_remedy, download, head
from adctl.fetching.http import without_secrets
from adctl.fetching.store import STAGING, fetch_lock
from adctl.paths import data_dir
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from pathlib import Path

_HUB = "https://huggingface.co"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FetchedWeights:
    """Pretrained weights on this machine.

    Attributes:
        name: Name of the timm model.
        path: The safetensors file, or the folder of a base model.
        sha256: Digest of that file.
        bytes: Size of that file.
        verified: Whether the download was checked against a published digest.
        licence: Licence according to timm, or None.
        already: Whether it was on this machine before.
    """

    name: str
    path: Path
    sha256: str
    bytes: int
    verified: bool
    licence: str | None
    already: bool


def fetch_weights(
    name: str,
    *,
    source: Path | None = None,
    root: Path | None = None,
    transfer: Transfer | None = None,
    reporter: Reporter = SILENT,
) -> FetchedWeights:
    """Fetch the pretrained weights of a timm model and store them as safetensors.

    The environment variable HF_ENDPOINT replaces the address of Hugging Face, as it does for its own library.

    Args:
        name: Name of the timm model, with or without the tag of the weights, or of a base model such as sd-2-1-base.
        source: Safetensors file, PyTorch checkpoint of plain weights, bundle, or folder of a base model to use instead
            of the network.
        root: Folder of all fetched data; `data_dir()` when None.
        transfer: Download settings.
        reporter: Receives progress.

    Raises:
        UsageError: timm has no such model or no weights for it, or the source does not exist.
        FetchError: The download failed, or the file is not the expected one.
        OutputError: The weights cannot be written.
    """
    if not (source is not None and packing.is_bundle(source)) and (name in BASES or is_base_folder(source)):
        return _fetch_base(name, source, root or data_dir(), transfer or Transfer(), reporter)
    config = _pretrained_config(name)
    path = (root or data_dir()) / "weights" / f"{name}.safetensors"
    if (present := _intact_weights(path)) is not None:
        return present
    with fetch_lock(path.with_name(name)):
        if (present := _intact_weights(path)) is not None:
            return present
        staging = files.make_folder(path.parent / STAGING)
        with add_remedy(f"Or copy them from another machine: adctl fetch weights {name} --from FILE."):
            if source is None:
                facts = _download(name, config, staging, transfer or Transfer(), reporter, path)
            else:
                facts = _import_file(name, source, staging, path)
        record = {
            "name": name, "adctl": __version__, "licence": config.license, "sha256": files.sha256_file(path),
            "bytes": path.stat().st_size, **facts,
        }  # fmt: skip
        files.write_json(_record_path(path), record)
        with suppress(OSError):  # the folder may hold the download of another model
            staging.rmdir()
    return FetchedWeights(
        name, path, record["sha256"], record["bytes"], record["verified"], config.license, already=False
    )


def _fetch_base(name: str, source: Path | None, root: Path, transfer: Transfer, reporter: Reporter) -> FetchedWeights:
    """Fetch a base model, or copy it from a folder; one that is here stays unless a folder is given."""
    path = root / "weights" / name
    already = path.is_dir() and source is None
    if source is not None:
        if not source.is_dir():
            raise UsageError(f"There is no folder {source}.", "Give the folder of the base model to --from.")
        import_base(source, path)
    elif not already:
        with add_remedy(f"Or copy its folder from another machine: adctl fetch weights {name} --from FOLDER."):
            download_base(name, path, transfer, reporter, _hub_remote)
    digest, size = digest_of(path)
    licence = BASES[name].licence if name in BASES else None
    return FetchedWeights(name, path, digest, size, source is None, licence, already=already)


def list_weights(root: Path) -> list[Path]:
    """Return the files of all fetched weights."""
    return sorted((root / "weights").glob("*.safetensors"))


def check_weights(path: Path) -> bool | None:
    """Return whether weights match their recorded digest; None if there is no record."""
    try:
        record = documents.parse_json(reading.read_bytes(_record_path(path)))
        return bool(files.sha256_file(path) == record["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.json")


def _download(
    name: str, config: Any, staging: Path, transfer: Transfer, reporter: Reporter, path: Path
) -> dict[str, Any]:
    """Download weights and store them; return facts for their record."""
    remote = _weights_remote(name, config, transfer)
    # Named after the model: the files of different models are all called model.safetensors.
    target = staging / f"{name}-{remote.filename}"
    with reporter.stage(f"weights of {name}", remote.size, in_bytes=True) as update:
        file = download(remote.urls, target, sha256=remote.sha256, size=remote.size, progress=update, transfer=transfer)
    _store_weights(file.path, path)
    file.path.unlink(missing_ok=True)
    return {"url": without_secrets(remote.urls[0]), "verified": file.verified, "download_sha256": file.sha256}


def _import_file(name: str, source: Path, staging: Path, path: Path) -> dict[str, Any]:
    """Store weights from a file or a bundle; return facts for their record."""
    known: dict[str, Any] = {}
    if packing.is_bundle(source):
        record = packing.verified_file(source, f"weights/{name}.json")
        known = documents.read(record, dict, "Make the bundle again.") or {}
        source = packing.verified_file(source, f"weights/{name}.safetensors")
    if not source.is_file():
        raise UsageError(f"There is no file {source}.", "Check the path given to --from.")
    copied = staging / f"{name}-{source.name}"
    with files.output_errors(copied):
        shutil.copyfile(source, copied)
    digest = files.sha256_file(copied)
    _store_weights(copied, path)
    copied.unlink(missing_ok=True)
    return {
        "url": known.get("url"),
        "verified": bool(known.get("verified", False)),
        "download_sha256": known.get("download_sha256", digest),
    }


def _pretrained_config(name: str) -> Any:
    """Return timm's configuration of a model's pretrained weights."""
    import timm

    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # the model has no weights with this tag
        config = None
    if config is not None and (config.hf_hub_id or config.url):
        return config
    tagged = timm.list_pretrained()
    close = difflib.get_close_matches(name, [*tagged, *{entry.partition(".")[0] for entry in tagged}], n=5)
    remedy = f"Similar names: {', '.join(close)}." if close else "timm.list_pretrained() lists the names."
    problem = f"Unknown timm model '{name}'." if config is None else f"timm has no pretrained weights for '{name}'."
    raise UsageError(problem, remedy)


def _intact_weights(path: Path) -> FetchedWeights | None:
    """Return weights fetched before, if they still match their record; otherwise None."""
    if not check_weights(path):
        return None
    record = documents.parse_json(reading.read_bytes(_record_path(path)))
    try:
        facts = (record["sha256"], record["bytes"], record["verified"], record["licence"])
        return FetchedWeights(record["name"], path, *facts, already=True)
    except KeyError:
        return None


def _weights_remote(name: str, config: Any, transfer: Transfer) -> RemoteFile:
    """Return the file with a model's weights, safetensors if it exists."""
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        host = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
        for filename in (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES:
            remote = _hub_remote(f"{host}/{repository}/resolve/{revision or 'main'}/{filename}", transfer)
            if remote is not None:
                return remote
    if config.url:
        return RemoteFile((config.url,))
    raise FetchError(f"There are no weights of '{name}' at {config.hf_hub_id}.", "Choose another model.")


def _hub_remote(url: str, transfer: Transfer) -> RemoteFile | None:
    """Return a file on Hugging Face, or None if it does not exist.

    For large files, the headers of the redirect state digest and size.
    """
    headers = head(url, transfer=transfer)
    if headers is None:
        return None
    tag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").strip('"')
    size = headers.get("X-Linked-Size", "")
    return RemoteFile(
        (url,), sha256=tag if _SHA256.fullmatch(tag) else None, size=int(size) if size.isdecimal() else None
    )


def _store_weights(downloaded: Path, path: Path) -> None:
    """Check that a file contains tensors, and store them as safetensors."""
    from safetensors import SafetensorError, safe_open

    if downloaded.suffix != ".safetensors":
        _convert(downloaded, path)
        return
    try:
        with safe_open(downloaded, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        downloaded.unlink(missing_ok=True)
        raise FetchError(f"The file for {path.stem} is not a safetensors file: {error}.") from error
    with files.output_errors(path):
        downloaded.replace(path)


def _convert(checkpoint: Path, path: Path) -> None:
    """Convert a PyTorch checkpoint to safetensors; `weights_only` loads tensors and plain containers only."""
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(checkpoint, weights_only=True, map_location="cpu")
        for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model"):
            if isinstance(loaded.get(wrapper), dict):
                loaded = loaded[wrapper]
                break
        tensors = {name: value.clone().contiguous() for name, value in loaded.items() if torch.is_tensor(value)}
    except Exception as error:  # torch raises pickle, zip, runtime and end-of-file errors
        checkpoint.unlink(missing_ok=True)
        raise FetchError(
            f"The file for {path.stem} is damaged, or contains more than plain weights, which adctl never unpickles."
        ) from error
    with files.atomic_path(path) as temporary:
        save_file(tensors, temporary)

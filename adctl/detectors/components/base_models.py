"""Frozen base models in the layout of diffusers and transformers: where they are, their digest, and their refusals.

A model file of a detector that reads a base model holds its name and digest. The base is searched in the folder that
`adctl fetch weights` fills, and where a training on this machine read it. Only safetensors files are read.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import documents, files, paths, reading
from adctl.errors import MissingExtraError, ModelFileError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

RANDOM = "random"
"""Prefix of the names of bases with random weights, for tests and measurements."""

EXTRA = "prompt"
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
_CONFIG = "config.json"
_SCHEDULER = "scheduler_config.json"
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine.

    Attributes:
        name: Name, stored in model files: that of its folder.
        folder: Folder in diffusers' or transformers' layout; None for random weights.
        digest: SHA-256 of its files, its name for random weights, or None if unknown.
    """

    name: str
    folder: Path | None
    digest: str | None


def find_base(name: str, digest: str | None, parts: Sequence[str], folder: Path | None = None) -> BaseModel:
    """Find a base model on this machine.

    Args:
        name: Name of the base, as `adctl fetch weights` knows it, or the name of a random one.
        digest: Digest that it must have; None accepts any.
        parts: Folders of its parts that are needed, such as `unet`; an empty name is the folder itself.
        folder: Folder to take it from; None searches.

    Raises:
        UsageError: It is not on this machine, or not in the layout of diffusers.
        ModelFileError: It is another base than the one with this digest, or its weights are pickles.
    """
    if name.startswith(RANDOM):
        found = BaseModel(name, None, name)
    elif folder is not None:
        _check_layout(folder, parts)
        found = BaseModel(folder.resolve().name, folder, _digest(folder, parts))
    else:
        place = _search(name, digest)
        if place is None:
            raise UsageError(
                f"The base model '{name}' is not on this machine.",
                f"Fetch it with 'adctl fetch weights {name}', or copy its folder from another machine: "
                f"adctl fetch weights {name} --from FOLDER.",
            )
        _check_layout(place, parts)
        found = BaseModel(name, place, _digest(place, parts))
    if digest is not None and found.digest != digest:
        raise ModelFileError(
            f"The model was trained on another base '{name}': its digest is {digest[:12]}, that of "
            f"{found.folder or found.name} is {str(found.digest)[:12]}.",
            f"Take the base of the training: adctl fetch weights {name} --from FOLDER.",
        )
    return found


def base_of_training(name: str, digest: str | None, parts: Sequence[str], weights: str | None) -> BaseModel:
    """Find the base model of a training, and note its folder.

    Args:
        name: Name of the base in the settings.
        digest: Digest that it must have, or None.
        parts: Folders of its parts that are needed.
        weights: Value of `--weights`: a folder, the name of a random base, or None.

    Returns:
        The base; without a digest if it is not on this machine, so that plans can be made without it.

    Raises:
        UsageError: The folder does not exist, or is not in the layout of diffusers.
        ModelFileError: It is another base than the one with this digest, or its weights are pickles.
    """
    folder = None if weights is None or weights.startswith(RANDOM) else Path(weights)
    if weights is not None and folder is None:
        name = "random-tiny" if weights == RANDOM else weights
    try:
        base = find_base(name, digest, parts, folder)
    except UsageError:
        if folder is not None:
            raise
        return BaseModel(name, None, digest)
    remember_folder(base)
    return base


def remember_folder(base: BaseModel) -> None:
    """Note where a base lies, so that models trained on it find it again on this machine."""
    if base.folder is None or base.digest is None or base.folder == _fetched(base.name):
        return
    path = _note(base.digest)
    try:
        files.make_folder(path.parent)
        files.write_json(path, {"name": base.name, "folder": str(base.folder.resolve())})
    except OutputError as error:
        log.warning("%s Scoring will ask for the base model.", error)


def _fetched(name: str) -> Path:
    return paths.data_dir() / "weights" / name


def _note(digest: str) -> Path:
    return paths.data_dir() / "weights" / "bases" / f"{digest[:32]}.json"


def _search(name: str, digest: str | None) -> Path | None:
    """Return the fetched folder of a base, or the one that a training noted."""
    fetched = _fetched(name)
    if fetched.is_dir() or digest is None:
        return fetched if fetched.is_dir() else None
    try:
        folder = Path(documents.parse(reading.read_bytes(_note(digest)), dict)["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if folder.is_dir() else None


def _check_layout(folder: Path, parts: Sequence[str]) -> None:
    """Raise if a part is missing or its weights are no safetensors."""
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "Give the folder of a base model in diffusers' layout.")
    for part in parts:
        place = folder / part
        if not (place / _CONFIG).is_file():
            raise UsageError(
                f"{folder} is no base model: it has no {Path(part) / _CONFIG}.",
                f"Give a folder in diffusers' layout with {', '.join(name or _CONFIG for name in parts)}.",
            )
        if any(place.glob("*.safetensors")):
            continue
        pickled = sorted(path.name for path in place.iterdir() if path.suffix in _PICKLES)
        if pickled:
            raise ModelFileError(
                f"{place / pickled[0]} is a pickle, which adctl never loads.",
                "Take the .safetensors file of the same model, or convert it once where you trust it: load the part "
                "with diffusers or transformers and call save_pretrained(FOLDER, safe_serialization=True).",
            )
        raise ModelFileError(f"{place} has no weights (*.safetensors).", "Copy the base model completely.")


def _digest(folder: Path, parts: Sequence[str]) -> str:
    """Return a SHA-256 of the weights, settings and words of a base; large files are read once a process."""
    lines = [f"{path.relative_to(folder).as_posix()} {_file_digest(path)}" for path in _files(folder, parts)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    for part in parts:
        yield folder / part / _CONFIG
        yield from sorted((folder / part).glob("*.safetensors"))
    if (folder / "scheduler" / _SCHEDULER).is_file():
        yield folder / "scheduler" / _SCHEDULER
    for place in (folder / "tokenizer", folder):
        yield from (place / name for name in _TOKENIZER if (place / name).is_file())


_known: dict[tuple[str, int, int], str] = {}


def _file_digest(path: Path) -> str:
    facts = path.stat()
    key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns)
    if key not in _known:
        _known[key] = files.sha256_file(path)
    return _known[key]


def load_part(cls: Any, folder: Path, part: str) -> Any:
    """Load a network with `cls.from_pretrained` from safetensors, in float32 and evaluation mode, frozen.

    Raises:
        ModelFileError: The files are damaged or of another network.
    """
    import torch

    quiet()
    place = folder / part
    names = [path.name for path in place.glob("*.safetensors")]
    variant = {"variant": "fp16"} if all(".fp16" in name for name in names) else {}
    dtype = {"dtype" if cls.__module__.startswith("transformers") else "torch_dtype": torch.float32}
    low = {} if cls.__module__.startswith("transformers") else {"low_cpu_mem_usage": False}
    try:
        network = cls.from_pretrained(place, use_safetensors=True, local_files_only=True, **dtype, **variant, **low)
    except Exception as error:  # both libraries refuse damaged files in their own ways
        text = str(error).strip().splitlines()
        raise ModelFileError(
            f"The base model in {place} cannot be loaded: {text[0] if text else type(error).__name__}",
            "Take an intact copy of the folder.",
        ) from error
    return network.eval().requires_grad_(requires_grad=False)


def load_tokenizer(folder: Path) -> Any:
    """Load CLIP's tokenizer from the folder `tokenizer`, or from the folder itself.

    Raises:
        UsageError: There is none.
    """
    from transformers import CLIPTokenizer

    quiet()
    place = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not any((place / name).is_file() for name in _TOKENIZER[:3]):
        raise UsageError(f"{place} has no tokenizer (vocab.json and merges.txt).", "Copy the base model completely.")
    return CLIPTokenizer.from_pretrained(place, local_files_only=True)


def byte_tokenizer() -> Any:
    """Return a tokenizer of CLIP that knows single bytes only, for bases with random weights."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def quiet() -> None:
    """Silence the progress bars and notes of diffusers and transformers.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", EXTRA) from error
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()

"""Bringing data sets and backbone weights to this machine, and finding them again.

    DATA_DIR/NAME/CATEGORY/         a category in MVTec AD layout, put there whole by a rename
    DATA_DIR/NAME/fetched.json      where each category came from, and its digest
    DATA_DIR/NAME/.fetching/        unfinished downloads; gone once a fetch is done
    DATA_DIR/weights/NAME.safetensors, NAME.json

Prints nothing and asks nothing.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import __version__, files
from adctl.data import archives
from adctl.data.catalogue import Entry, Kind, Remote, catalogue, find_entry
from adctl.data.download import Downloaded, Progress, download, head, without_secrets
from adctl.errors import DataError, FetchError, UsageError, unknown_name
from adctl.paths import data_dir, weights_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import PurePosixPath

__all__ = [
    "Fetched", "FetchedWeights", "Listed", "data_dir", "fetch_dataset", "fetch_weights", "find_dataset", "listing",
]  # fmt: skip

_RECORD = "fetched.json"
_STAGING = ".fetching"
_PATIENCE = 60.0
"""Seconds to wait for another adctl that fetches the same thing."""

_HUB = "https://huggingface.co"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fetched:
    """A data set on this machine.

    Attributes:
        name: As in the catalogue.
        root: Its folder, which holds one folder a category.
        categories: Those asked for, which are there now.
        licence: The short name of its licence.
        bytes: What was downloaded, copied or drawn for these categories.
        verified: Whether all of it was checked against a published digest; true of what adctl draws itself.
        sha256: Of the one archive they came from; None when there were several, or none.
        already: Whether everything was there before.
    """

    name: str
    root: Path
    categories: tuple[str, ...]
    licence: str
    bytes: int
    verified: bool
    sha256: str | None
    already: bool


@dataclass(frozen=True)
class FetchedWeights:
    """Pretrained weights on this machine.

    Attributes:
        name: The timm model.
        path: The safetensors file.
        sha256: Of that file.
        bytes: Its length.
        verified: Whether the download was checked against a published digest.
        licence: As timm knows it, or None.
        already: Whether it was there before.
    """

    name: str
    path: Path
    sha256: str
    bytes: int
    verified: bool
    licence: str | None
    already: bool


@dataclass(frozen=True)
class Listed:
    """One line of what can be fetched.

    Attributes:
        name: As in the catalogue.
        title: What its authors call it.
        licence: The short name of its licence.
        terms: What the licence asks for.
        homepage: Of its authors.
        citation: What to cite.
        categories: All there are.
        size: Of the whole archive, bytes; None when nothing is downloaded.
        fetched: Whether any category is on this machine.
        here: Which ones are.
        root: Where it lies, or would lie.
    """

    name: str
    title: str
    licence: str
    terms: str
    homepage: str
    citation: str
    categories: tuple[str, ...]
    size: int | None
    fetched: bool
    here: tuple[str, ...]
    root: Path


@dataclass(frozen=True)
class _Origin:
    """Where a category came from; one entry of `fetched.json`."""

    urls: tuple[str, ...] = ()
    sha256: str | None = None
    bytes: int = 0
    verified: bool = False


def fetch_dataset(
    name: str,
    *,
    categories: Sequence[str] = (),
    source: Path | None = None,
    accept_license: bool = False,
    root: Path | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Fetched:
    """Bring a data set, or some of its categories, to this machine.

    Args:
        name: As in the catalogue.
        categories: Which ones; all when empty.
        source: An archive or a folder that holds it, for machines without a network.
        accept_license: Needed once where the licence forbids some uses.
        root: The folder of all fetched data; `data_dir()` when None.
        progress: Told (done, total).
        force: Fetch again what is there.

    Raises:
        UsageError: There is no such data set or category, or the licence was not accepted.
        FetchError: The download failed, or what came is damaged or not what was promised.
        DataError: What came does not hold the categories in MVTec AD layout.
        OutputError: It cannot be written, or there is no room.
    """
    entry = find_entry(name)
    for category in categories:
        _check_category(entry, category)
    folder = (root or data_dir()) / name
    if entry.kind is Kind.GENERATED:
        return _draw(entry, folder, progress, force=force)
    wanted = tuple(sorted(set(categories))) or entry.categories
    if not force and not _missing(folder, wanted):
        return _result(entry, folder, wanted, already=True)
    _require_licence(entry, accepted=accept_license)
    with _alone(folder):
        _sweep(folder / _STAGING)
        missing = wanted if force else _missing(folder, wanted)
        if source is not None:
            found = _bring_local(entry, folder, source, missing, exact=bool(categories), progress=progress)
            wanted = wanted if categories else found
        else:
            for remote, held in _plan(entry, missing, by_category=bool(categories)):
                _bring_remote(entry, folder, remote, held, progress)
        shutil.rmtree(folder / _STAGING, ignore_errors=True)
    return _result(entry, folder, wanted, already=not missing)


def find_dataset(category: str | None, dataset: str | None, root: Path | None = None) -> Path:
    """Where a fetched data set lies.

    Args:
        category: One it must hold; None when `dataset` is enough.
        dataset: Its name; None takes the first that holds the category, what adctl drew last.
        root: The folder of all fetched data; `data_dir()` when None.

    Returns:
        The data set's folder, which holds one folder a category.

    Raises:
        UsageError: It is unknown, or not fetched; the remedy is the command that fetches it.
    """
    base = root or data_dir()
    if dataset is not None:
        entry = find_entry(dataset)
        if category is not None:
            _check_category(entry, category)
        if not _here(entry, base / dataset) or (category and _missing(base / dataset, [category])):
            what = f"The category '{category}' of {entry.title}" if category else entry.title
            raise UsageError(f"{what} has not been fetched.", f"Fetch it with: {_command(entry, category)}")
        return base / dataset
    if category is None:
        raise UsageError("Which data set?", "Name it with --dataset, or a category with --category.")
    holders = [entry for entry in _real_first() if category in entry.categories]
    if not holders:
        raise unknown_name("category", category, {name for entry in _real_first() for name in entry.categories})
    for entry in holders:
        if not _missing(base / entry.name, [category]):
            return base / entry.name
    commands = ", or ".join(_command(entry, category) for entry in _real_first())
    raise UsageError(f"No fetched data set has the category '{category}'.", f"Fetch one with: {commands}")


def listing(root: Path | None = None) -> list[Listed]:
    """Everything that can be fetched, and what of it is on this machine."""
    lines = []
    for entry in _real_first():
        folder = (root or data_dir()) / entry.name
        here = _here(entry, folder)
        shared = {key: getattr(entry, key) for key in ("name", "title", "licence", "terms", "homepage", "citation")}
        size = entry.whole.size if entry.whole else None
        lines.append(
            Listed(**shared, categories=entry.categories, size=size, fetched=bool(here), here=here, root=folder)
        )
    return lines


def fetch_weights(name: str, *, root: Path | None = None, progress: Progress | None = None) -> FetchedWeights:
    """Bring the pretrained weights of a timm model to this machine, as safetensors.

    The host of Hugging Face can be replaced with the environment variable HF_ENDPOINT, as for its own library.

    Args:
        name: As timm calls it, with or without the tag of the weights.
        root: The folder of all fetched data; `data_dir()` when None.
        progress: Told (done, total) in bytes.

    Raises:
        UsageError: timm has no such model, or no weights for it.
        FetchError: The download failed, or what came is not what was promised.
        OutputError: It cannot be written.
    """
    config = _pretrained_config(name)
    path = weights_file(name) if root is None else root / "weights" / f"{name}.safetensors"
    if (here := _known_weights(name, path)) is not None:
        return here
    with _alone(path.with_suffix("")):
        if (here := _known_weights(name, path)) is not None:
            return here
        staging = files.make_folder(path.parent / _STAGING)
        with _other_way("Or take the weights from another machine: train with --weights FILE."):
            remote = _weights_remote(name, config)
            # Named for the model: files of different models share the name model.safetensors.
            got = _obtain(remote, staging / f"{name}-{remote.filename}", progress)
            _put_weights(got.path, path)
        sha256 = files.sha256_file(path)
        record = {
            "name": name, "adctl": __version__, "url": without_secrets(remote.urls[0]), "licence": config.license,
            "sha256": sha256, "bytes": path.stat().st_size, "verified": got.verified, "download_sha256": got.sha256,
        }  # fmt: skip
        files.write_json(path.with_name(f"{name}.json"), record)
        got.path.unlink(missing_ok=True)
        with suppress(OSError):  # another model may be on its way there
            staging.rmdir()
    return FetchedWeights(name, path, sha256, record["bytes"], got.verified, config.license, already=False)


# ---- what is on this machine


def _real_first() -> list[Entry]:
    return sorted(catalogue().values(), key=lambda entry: (entry.kind is Kind.GENERATED, entry.name))


def _check_category(entry: Entry, category: str) -> None:
    if category not in entry.categories:
        raise unknown_name(f"category of {entry.title}", category, entry.categories)


def _holds_category(folder: Path) -> bool:
    """Whether it is a category's folder; folders get their final names whole, so a look inside suffices."""
    try:
        with os.scandir(folder / "train" / "good") as good:
            return any(True for _ in good)
    except OSError:
        return False


def _missing(folder: Path, categories: Sequence[str]) -> tuple[str, ...]:
    return tuple(category for category in categories if not _holds_category(folder / category))


def _here(entry: Entry, folder: Path) -> tuple[str, ...]:
    return tuple(category for category in entry.categories if _holds_category(folder / category))


def _command(entry: Entry, category: str | None) -> str:
    """The command that fetches it."""
    one_of_many = category is not None and len(entry.categories) > 1
    return f"adctl fetch {entry.name}" + (f" --category {category}" if one_of_many else "")


def _origins(folder: Path) -> dict[str, _Origin]:
    try:
        stored = json.loads((folder / _RECORD).read_text(encoding="utf-8"))["categories"]
        return {name: _Origin(**{**origin, "urls": tuple(origin["urls"])}) for name, origin in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _remember(entry: Entry, folder: Path, new: Mapping[str, _Origin]) -> None:
    categories = {name: asdict(origin) for name, origin in sorted((_origins(folder) | dict(new)).items())}
    record = {"format": 1, "adctl": __version__, "name": entry.name, "title": entry.title, "licence": entry.licence}
    files.write_json(folder / _RECORD, {**record, "categories": categories})


def _result(entry: Entry, folder: Path, categories: tuple[str, ...], *, already: bool) -> Fetched:
    known = _origins(folder)
    # Categories from one archive share one origin.
    origins = {known.get(category, _Origin()) for category in categories}
    digests = {origin.sha256 for origin in origins}
    return Fetched(
        name=entry.name,
        root=folder,
        categories=categories,
        licence=entry.licence,
        bytes=sum(origin.bytes for origin in origins),
        verified=all(origin.verified for origin in origins),
        sha256=digests.pop() if len(digests) == 1 else None,
        already=already,
    )


# ---- bringing data sets


def _require_licence(entry: Entry, *, accepted: bool) -> None:
    if entry.restricted and not accepted:
        raise UsageError(
            f"{entry.title} is under {entry.licence}: {entry.terms}",
            f"If you accept that (see {entry.homepage}), add --accept-license.",
        )


def _draw(entry: Entry, folder: Path, progress: Progress | None, *, force: bool) -> Fetched:
    from adctl.data import demo

    drawn = False

    def note(done: int, total: int) -> None:
        nonlocal drawn
        drawn = True
        if progress is not None:
            progress(done, total)

    # What is there already may lie where nothing can be written, not even a lock.
    with _alone(folder) if force or _missing(folder, entry.categories) else nullcontext():
        if force:
            staging = folder / _STAGING
            _put(demo.generate(staging, progress=note), folder, staging)
            shutil.rmtree(staging, ignore_errors=True)
        else:
            demo.generate(folder, progress=note)
        if drawn:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            _remember(entry, folder, dict.fromkeys(entry.categories, _Origin(bytes=size, verified=True)))
    return _result(entry, folder, entry.categories, already=not drawn)


def _plan(entry: Entry, missing: tuple[str, ...], *, by_category: bool) -> list[tuple[Remote, tuple[str, ...]]]:
    """Which files to download, and which categories to take from each."""
    in_parts = all(category in entry.parts for category in missing)
    if not missing or (in_parts and (by_category or entry.whole is None)):
        return [(entry.parts[category], (category,)) for category in missing]
    assert entry.whole is not None, f"the catalogue has no address for {entry.name}"
    return [(entry.whole, missing)]


def _bring_remote(
    entry: Entry, folder: Path, remote: Remote, categories: tuple[str, ...], progress: Progress | None
) -> None:
    archive = files.make_folder(folder / _STAGING) / remote.filename
    by_hand = f"Or bring the archive by hand from {entry.homepage}: adctl fetch {entry.name} --from ARCHIVE"
    with _other_way(f"{by_hand} --accept-license." if entry.restricted else f"{by_hand}."):
        got = _obtain(remote, archive, _half(progress, second=False))
        try:
            tree = _unpack(entry, folder, archive, categories, _half(progress, second=True))
        except FetchError:
            archive.unlink(missing_ok=True)  # damaged: keeping it would fail again
            raise
    origin = _Origin(tuple(map(without_secrets, remote.urls)), got.sha256, got.bytes, got.verified)
    found = _find_categories(tree, entry, categories)
    _require_found(archive, categories, found)
    for category in categories:
        _put(found[category], folder, folder / _STAGING, category)
    _remember(entry, folder, dict.fromkeys(categories, origin))
    archive.unlink(missing_ok=True)


def _bring_local(
    entry: Entry, folder: Path, source: Path, missing: tuple[str, ...], *, exact: bool, progress: Progress | None
) -> tuple[str, ...]:
    """Take from a file or folder what is missing of it; returns the categories that it holds."""
    staging = files.make_folder(folder / _STAGING)
    asked = missing if exact else ()
    if source.is_dir():
        found = _find_categories(source, entry, asked)
    elif source.is_file():
        found = _find_categories(_unpack(entry, folder, source, missing, progress), entry, asked)
    else:
        raise UsageError(f"There is no archive or folder {source}.", "Check the path given to --from.")
    _require_found(source, asked, found)
    taken = tuple(category for category in missing if category in found)
    if source.is_dir():
        found, size = _copy({category: found[category] for category in taken}, staging / "copied", progress)
        origin = _Origin(bytes=size)
    else:
        origin = _file_origin(entry, source)
    for category in taken:
        _put(found[category], folder, staging, category)
    _remember(entry, folder, dict.fromkeys(taken, origin))
    return tuple(sorted({*taken, *(name for name in found if not _missing(folder, [name]))}))


def _file_origin(entry: Entry, source: Path) -> _Origin:
    sha256 = files.sha256_file(source)
    published = {remote.sha256 for remote in (entry.whole, *entry.parts.values()) if remote is not None}
    return _Origin(sha256=sha256, bytes=source.stat().st_size, verified=sha256 in published)


def _obtain(remote: Remote, target: Path, progress: Progress | None) -> Downloaded:
    """Download a file, unless an earlier run got that far and its digest tells that it is the one."""
    if remote.sha256 is not None and target.is_file() and files.sha256_file(target) == remote.sha256:
        return Downloaded(target, remote.sha256, target.stat().st_size, verified=True)
    return download(remote.urls, target, sha256=remote.sha256, md5=remote.md5, size=remote.size, progress=progress)


def _unpack(entry: Entry, folder: Path, archive: Path, categories: tuple[str, ...], progress: Progress | None) -> Path:
    """Unpack into a folder of the archive's name, leaving out the categories that are not wanted."""
    unwanted = {*entry.categories} - {*categories}

    def wanted(path: PurePosixPath) -> bool:
        return not unwanted.intersection(path.parts[:2])

    tree = folder / _STAGING / "unpacked" / archive.name.partition(".")[0]
    archives.extract(archive, tree, wanted=wanted, progress=progress)
    return tree


def _find_categories(tree: Path, entry: Entry, asked: Sequence[str]) -> dict[str, Path]:
    """The categories' folders in a tree: the tree itself, or folders in it, or in those."""
    if _holds_category(tree):
        name = tree.resolve().name
        if name not in entry.categories and len(asked) != 1:
            raise UsageError(f"{tree} holds one category of {entry.title}; which?", "Say which with --category.")
        return {name if name in entry.categories else asked[0]: tree}
    children = _folders(tree)
    grandchildren = [below for child in children for below in _folders(child)]
    candidates = {path.name: path for path in (*grandchildren, *children)}
    return {name: candidates[name] for name in entry.categories if _holds_category(candidates.get(name, tree))}


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def _require_found(source: Path, asked: Sequence[str], found: Mapping[str, Path]) -> None:
    lacking = [category for category in asked if category not in found]
    if lacking or not found:
        raise DataError(
            f"{source} does not hold {', '.join(lacking) or 'any category'} in MVTec AD layout.",
            "Expected CATEGORY/train/good/ with good images, and CATEGORY/test/LABEL/ with test images.",
        )


def _copy(categories: Mapping[str, Path], into: Path, progress: Progress | None) -> tuple[dict[str, Path], int]:
    """Copy the files of some folders, contents only; returns the copies and the bytes."""
    plan = [
        (path, into / category / path.relative_to(folder))
        for category, folder in categories.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    total, done = sum(path.stat().st_size for path, _ in plan), 0
    with files.output_errors(into):
        for path, target in plan:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            done += target.stat().st_size
            if progress is not None:
                progress(done, total)
    return {category: into / category for category in categories}, done


def _put(new: Path, folder: Path, staging: Path, category: str | None = None) -> None:
    """Give a finished category its place; what was there before goes last."""
    target = folder / (category or new.name)
    old = staging / "replaced" / target.name
    with files.output_errors(target):
        if target.exists():
            old.parent.mkdir(parents=True, exist_ok=True)
            target.rename(old)
        new.rename(target)


def _sweep(staging: Path) -> None:
    """Remove what a killed run left half unpacked; downloads stay, to be gone on with."""
    for folder in _folders(staging) if staging.is_dir() else ():
        shutil.rmtree(folder, ignore_errors=True)


def _half(progress: Progress | None, *, second: bool) -> Progress | None:
    """Downloading an archive and reading it again are one stage, of twice its size."""
    if progress is None:
        return None

    def share(done: int, total: int | None) -> None:
        progress(done + (total or 0) * second, None if total is None else 2 * total)

    return share


@contextmanager
def _other_way(remedy: str) -> Iterator[None]:
    """Add to what can be done about a failed download."""
    try:
        yield
    except FetchError as error:
        raise FetchError(error.message, f"{error.remedy} {remedy}".strip()) from error


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep other processes from fetching the same thing meanwhile."""
    from filelock import FileLock, Timeout

    files.make_folder(target.parent)
    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path)
    with files.output_errors(path):
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            raise FetchError(
                f"Another adctl is fetching {target.name} into {target.parent}.",
                "Wait until it is done, then run this again.",
            ) from error
    try:
        yield
    finally:
        lock.release()


# ---- bringing weights


def _pretrained_config(name: str) -> Any:
    """What timm knows of a model's pretrained weights."""
    import timm

    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # a tag that the model does not have
        config = None
    if config is not None and (config.hf_hub_id or config.url):
        return config
    tagged = timm.list_pretrained()
    close = difflib.get_close_matches(name, [*tagged, *{entry.partition(".")[0] for entry in tagged}], n=5)
    guess = f"Did you mean one of {', '.join(close)}?" if close else "timm.list_pretrained() lists the names."
    what = f"Unknown timm model '{name}'." if config is None else f"timm has no pretrained weights for '{name}'."
    raise UsageError(what, guess)


def _known_weights(name: str, path: Path) -> FetchedWeights | None:
    """Weights fetched before, if they are still what they were."""
    try:
        record = json.loads(path.with_name(f"{name}.json").read_text(encoding="utf-8"))
        if files.sha256_file(path) != record["sha256"]:
            return None
        return FetchedWeights(
            name, path, record["sha256"], record["bytes"], record["verified"], record["licence"], already=True
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _weights_remote(name: str, config: Any) -> Remote:
    """Where a model's weights are: safetensors if there are any."""
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        host = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
        for filename in (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES:
            remote = _hub_remote(f"{host}/{repository}/resolve/{revision or 'main'}/{filename}")
            if remote is not None:
                return remote
    if config.url:
        return Remote((config.url,))
    raise FetchError(f"There are no weights of '{name}' at {config.hf_hub_id}.", "Choose another model.")


def _hub_remote(url: str) -> Remote | None:
    """A file on Hugging Face; of large files its headers tell the digest and the length before redirecting."""
    headers = head(url)
    if headers is None:
        return None
    tag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").strip('"')
    size = headers.get("X-Linked-Size", "")
    return Remote((url,), sha256=tag if _SHA256.fullmatch(tag) else None, size=int(size) if size.isdecimal() else None)


def _put_weights(downloaded: Path, path: Path) -> None:
    """Check that a download holds tensors, and put them in place as safetensors."""
    from safetensors import SafetensorError, safe_open

    if downloaded.suffix != ".safetensors":
        _convert(downloaded, path)
        return
    try:
        with safe_open(downloaded, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        downloaded.unlink(missing_ok=True)
        raise FetchError(f"What came for {path.stem} is not a safetensors file: {error}.") from error
    with files.output_errors(path):
        downloaded.replace(path)


def _convert(checkpoint: Path, path: Path) -> None:
    """Turn a PyTorch checkpoint into safetensors, without unpickling anything but tensors."""
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(checkpoint, weights_only=True, map_location="cpu")
        for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model"):
            if isinstance(loaded.get(wrapper), dict):
                loaded = loaded[wrapper]
                break
        tensors = {name: value.clone().contiguous() for name, value in loaded.items() if torch.is_tensor(value)}
    except Exception as error:  # torch raises what it finds: pickle, zip, runtime and end-of-file errors
        checkpoint.unlink(missing_ok=True)
        raise FetchError(
            f"What came for {path.stem} is damaged, or holds more than plain weights, which adctl never unpickles."
        ) from error
    with files.atomic_path(path) as temporary:
        save_file(tensors, temporary)

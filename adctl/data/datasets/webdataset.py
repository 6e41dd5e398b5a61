"""WebDataset shards: tar archives in which the files of one sample share a name up to the first dot.

    000017.jpg   000017.json   000017.mask.png        {"label": "scratch", "split": "test"}
    000018.jpg   000018.cls                           good, or a number; 0 means good

(The convention of the library `webdataset`; https://github.com/webdataset/webdataset.) Shards are not unpacked.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from adctl import documents
from adctl.data import storage
from adctl.data.containers import Container, open_container
from adctl.data.datasets.manifests import ManifestRow, make_row
from adctl.data.images import IMAGE_SUFFIXES
from adctl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ENDING = ".tar"
_MASKS = ("mask", "seg")
_METADATA = (".json", ".cls")
_FIELDS = {"label", "split", "category", "group"}
_MAX_METADATA = 1 << 20
"""Maximum size of the metadata of one image, bytes."""


def find_shards(path: Path) -> list[Path]:
    """Return the shards of a path: the file itself, or all files of a folder that contains only shards.

    Returns an empty list if the path is something else.

    Raises:
        DataError: A shard is damaged.
    """
    if path.is_dir():
        names = [name for name in storage.files_in(path) if not name.startswith(".")]
        found = [path / name for name in names if name.lower().endswith(_ENDING)]
        others = {name for name in names if not name.lower().endswith((_ENDING, ".json", ".txt", ".md"))}
        return [] if others or storage.subfolders(path) or not found else found
    if not path.name.lower().endswith(_ENDING) or not path.is_file():
        return []
    return [path] if any(name.lower().endswith(_METADATA) for name in open_container(path).sizes) else []


def read_shards(shards: list[Path]) -> list[ManifestRow]:
    """Read the images and their metadata from shards.

    Raises:
        DataError: The shards contain no image, or the metadata of an image cannot be read.
    """
    rows = [row for shard in shards for row in _rows(shard, open_container(shard))]
    if not rows:
        raise DataError(f"There is no image in {shards[0]}.", "Give the folder of the shards, or one shard.")
    return rows


def _rows(shard: Path, container: Container) -> Iterator[ManifestRow]:
    for key, members in _samples(container).items():
        image = next((name for ending, name in members.items() if f".{ending}" in IMAGE_SUFFIXES), None)
        if image is None:
            continue
        mask = next((name for ending, name in members.items() if ending.split(".")[0] in _MASKS), None)
        fields = _read_fields(shard, container, members)
        fields.setdefault("split", next((split for split in ("train", "test", "val") if split in shard.stem), ""))
        name = f"{shard.name}/{key}{PurePosixPath(image).suffix}"
        yield make_row(f"{shard}/{image}", name, shard / image, shard / mask if mask else None, fields)


def _samples(container: Container) -> dict[str, dict[str, str]]:
    """Return the member names of each sample, by their suffix in lower case."""
    samples: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in container.sizes:
        folder, _, filename = name.rpartition("/")
        stem, _, ending = filename.partition(".")
        if stem:
            samples[f"{folder}/{stem}" if folder else stem][ending.lower()] = name
    return samples


def _read_fields(shard: Path, container: Container, members: dict[str, str]) -> dict[str, str]:
    """Read the label, split and category of a sample from its `.json` and `.cls` files."""
    fields: dict[str, str] = {}
    try:
        if "json" in members:
            table = documents.parse_json(_read_text(container, members["json"]))
            fields |= {name: str(value) for name, value in table.items() if name in _FIELDS}
        if "cls" in members:
            fields.setdefault("label", _read_text(container, members["cls"]).strip())
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        name = members.get("json", members.get("cls"))
        raise DataError(f"Cannot read {shard}/{name}: {error}.", "Create the shard again.") from error
    return fields


def _read_text(container: Container, name: str) -> str:
    if container.sizes[name] > _MAX_METADATA:
        raise OSError(f"it is larger than {_MAX_METADATA >> 20} MiB")
    return container.read(name).decode("utf-8")

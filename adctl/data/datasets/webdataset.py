"""WebDataset shards: tar archives in which an image and what is known of it share a name up to the first dot.

    000017.jpg   000017.json   000017.mask.png        {"label": "scratch", "split": "test"}
    000018.jpg   000018.cls                           good, or a number, of which 0 is good

(The convention of the library `webdataset`; https://github.com/webdataset/webdataset.) Images are read in place.

Knows the names in shards and the small files that say what an image is; decodes no image.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

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
_TRUTH = (".json", ".cls")


def find_shards(path: Path) -> list[Path]:
    """The shards that a path means: itself, or all in a folder of nothing but shards; none where it is no such thing.

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
    return [path] if any(name.lower().endswith(_TRUTH) for name in open_container(path).sizes) else []


def read_shards(shards: list[Path]) -> list[ManifestRow]:
    """What shards hold, shard by shard.

    Raises:
        DataError: There is no image in them, or what is said of one cannot be read; the message names it.
    """
    rows = [row for shard in shards for row in _rows(shard, open_container(shard))]
    if not rows:
        raise DataError(f"There is no image in {shards[0]}.", "Name the folder of the shards, or one shard.")
    return rows


def _rows(shard: Path, container: Container) -> Iterator[ManifestRow]:
    for key, parts in _samples(container).items():
        image = next((name for ending, name in parts.items() if f".{ending}" in IMAGE_SUFFIXES), None)
        if image is None:
            continue
        mask = next((name for ending, name in parts.items() if ending.split(".")[0] in _MASKS), None)
        said = _said(shard, container, parts)
        said.setdefault("split", next((split for split in ("train", "test", "val") if split in shard.stem), ""))
        name = f"{shard.name}/{key}{PurePosixPath(image).suffix}"
        yield make_row(f"{shard}/{image}", name, shard / image, shard / mask if mask else None, said)


def _samples(container: Container) -> dict[str, dict[str, str]]:
    """Of each sample, its files by ending, in lower case."""
    samples: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in container.sizes:
        folder, _, own = name.rpartition("/")
        stem, _, ending = own.partition(".")
        if stem:
            samples[f"{folder}/{stem}" if folder else stem][ending.lower()] = name
    return samples


def _said(shard: Path, container: Container, parts: dict[str, str]) -> dict[str, str]:
    """What the small files beside an image say, by the names of `ManifestRow`."""
    said: dict[str, str] = {}
    try:
        if "json" in parts:
            table = json.loads(container.read(parts["json"]))
            said |= {name: str(value) for name, value in table.items() if name in {"label", "split", "category"}}
        if "cls" in parts:
            said.setdefault("label", container.read(parts["cls"]).decode("utf-8").strip())
    except (ValueError, AttributeError, OSError) as error:
        name = parts.get("json", parts.get("cls"))
        raise DataError(f"Cannot read {shard}/{name}: {error}.", "Write that shard again.") from error
    return said

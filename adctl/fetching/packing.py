"""What a bundle looks like: data sets, weights and wheels for a machine without a network, with one list of digests.

OUT/bundle.json                     what is in it
OUT/INSTALL.txt                     what to type over there
OUT/datasets/NAME/CATEGORY.tar      a category as adctl lays it out
OUT/weights/NAME.safetensors, NAME.json
OUT/wheels/*.whl
OUT/SHA256SUMS                      of every other file, as `sha256sum -c` reads it
"""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any

from adctl import files
from adctl.errors import FetchError
from adctl.fetching.digests import list_files, read_digests
from adctl.fetching.store import Provenance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MANIFEST = "bundle.json"
SUMS = "SHA256SUMS"
FORMAT = 1
_COPY_AGAIN = "Copy the bundle again, or make it again: adctl fetch bundle OUT."


def is_bundle(path: Path) -> bool:
    """Whether a folder is one."""
    return (path / MANIFEST).is_file() and (path / SUMS).is_file()


def read_manifest(bundle: Path) -> dict[str, Any]:
    """What is in it, from a list that was checked.

    Raises:
        FetchError: It is damaged, or of a later adctl.
    """
    told: dict[str, Any] = json.loads(verified_file(bundle, MANIFEST).read_text(encoding="utf-8"))
    if told.get("format") != FORMAT:
        raise FetchError(f"The bundle {bundle} was made by a later adctl ({told.get('adctl')}).", "Update adctl.")
    return told


def read_bundled_provenance(bundle: Path, name: str) -> dict[str, Provenance]:
    """Where the categories of a data set came from, for those in the bundle."""
    packed = read_manifest(bundle)["datasets"].get(name, {}).get("categories", {})
    return {
        category: Provenance(tuple(origin["urls"]), origin["sha256"], origin["bytes"], origin["verified"])
        for category, origin in packed.items()
    }


def archive_path(name: str, category: str) -> str:
    """Where a category lies in a bundle."""
    return f"datasets/{name}/{category}.tar"


def verified_file(bundle: Path, path: str) -> Path:
    """A file of a bundle, held against its list.

    Raises:
        FetchError: It is not listed, not there, or has changed.
    """
    listed = read_digests(bundle / SUMS)
    if path not in listed:
        raise FetchError(f"The bundle {bundle} does not hold {path}.", "Make one that does: adctl fetch bundle OUT.")
    if not (bundle / path).is_file():
        raise FetchError(f"{bundle / path} is missing.", _COPY_AGAIN)
    if files.sha256_file(bundle / path) != listed[path]:
        raise FetchError(f"{bundle / path} is damaged: it is not what {SUMS} lists.", _COPY_AGAIN)
    return bundle / path


def pack_category(folder: Path, target: Path, progress: Callable[[int, int | None], None]) -> None:
    """Write a category's folder as a tar file that names no user and no time.

    Args:
        folder: The category's.
        target: The file to make.
        progress: Told (done, total) in files.
    """
    paths = list_files(folder)
    files.make_folder(target.parent)
    with files.output_errors(target), tarfile.open(target, "w") as tar:
        for done, path in enumerate(paths, 1):
            info = tarfile.TarInfo(f"{folder.name}/{path}")
            info.size = (folder / path).stat().st_size
            with (folder / path).open("rb") as stream:
                tar.addfile(info, stream)
            progress(done, len(paths))

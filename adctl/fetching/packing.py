"""Layout of a bundle: data sets, weights and wheels for a machine without a network, with one list of digests.

    OUT/bundle.json                     manifest: contents, licences and sources
    OUT/INSTALL.txt                     commands to run on the other machine
    OUT/datasets/NAME/CATEGORY.tar      category in the layout of adctl
    OUT/weights/NAME.safetensors, NAME.json
    OUT/wheels/*.whl
    OUT/SHA256SUMS                      digests of all other files, in the format of `sha256sum -c`

Functions that read a bundle verify the digest of every file they read.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Any

from adctl import documents, files, reading
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
    """Return whether a folder is a bundle."""
    return (path / MANIFEST).is_file() and (path / SUMS).is_file()


def read_manifest(bundle: Path) -> dict[str, Any]:
    """Read the manifest of a bundle after verifying its digest.

    Raises:
        FetchError: It is damaged, or was made by a later version of adctl.
    """
    try:
        manifest: dict[str, Any] = documents.parse(reading.read_bytes(verified_file(bundle, MANIFEST)), dict)
    except ValueError as error:
        raise FetchError(f"{bundle / MANIFEST} is damaged: {error}.", "Create the bundle again.") from error
    if manifest.get("format") != FORMAT:
        raise FetchError(
            f"The bundle {bundle} was made by a later version of adctl ({manifest.get('adctl')}).", "Update adctl."
        )
    return manifest


def read_bundled_provenance(bundle: Path, name: str) -> dict[str, Provenance]:
    """Return the provenance of each category of a data set in a bundle."""
    categories = read_manifest(bundle)["datasets"].get(name, {}).get("categories", {})
    return {
        category: Provenance(tuple(origin["urls"]), origin["sha256"], origin["bytes"], origin["verified"])
        for category, origin in categories.items()
    }


def archive_path(name: str, category: str) -> str:
    """Return the path of a category's archive inside a bundle."""
    return f"datasets/{name}/{category}.tar"


def verified_file(bundle: Path, path: str) -> Path:
    """Return the full path of a file in a bundle after verifying its digest.

    Raises:
        FetchError: The file is not listed, does not exist, or has changed.
    """
    listed = read_digests(bundle / SUMS)
    if path not in listed:
        raise FetchError(f"The bundle {bundle} does not contain {path}.", "Make one that does: adctl fetch bundle OUT.")
    if not (bundle / path).is_file():
        raise FetchError(f"{bundle / path} is missing.", _COPY_AGAIN)
    if files.sha256_file(bundle / path) != listed[path]:
        raise FetchError(f"{bundle / path} is damaged: its digest differs from the one in {SUMS}.", _COPY_AGAIN)
    return bundle / path


def pack_category(folder: Path, target: Path, progress: Callable[[int, int | None], None]) -> None:
    """Write a category's folder as a tar file without user names and times.

    Args:
        folder: Folder of the category.
        target: Tar file to write.
        progress: Called with (done, total) in files.
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

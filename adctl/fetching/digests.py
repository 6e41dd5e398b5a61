"""Lists of SHA-256 digests in the format of `sha256sum -c`: write them, read them, compare files with them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import files, reading
from adctl.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

DIGESTS = "digests.sha256"
"""File name of the digest list in a category's folder."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True, slots=True)
class DigestComparison:
    """Differences between a folder and its digest list; paths are relative.

    Attributes:
        changed: Files whose content has changed.
        missing: Listed files that do not exist.
        unlisted: Existing files that are not listed.
    """

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]

    @property
    def intact(self) -> bool:
        """Whether every listed file exists with the listed digest."""
        return not (self.changed or self.missing)


def write_digests(
    folder: Path, name: str = DIGESTS, *, progress: Callable[[int, int | None], None] | None = None
) -> None:
    """Write the digests of all files in a folder to a list in that folder.

    Args:
        folder: Folder whose files are listed, including subfolders.
        name: File name of the list; the list does not contain itself.
        progress: Called with (done, total) in files.
    """
    paths = [path for path in list_files(folder) if path != name]
    lines = []
    for done, path in enumerate(paths, 1):
        lines.append(f"{files.sha256_file(folder / path)}  {path}\n")
        if progress is not None:
            progress(done, len(paths))
    files.write_text(folder / name, "".join(lines))


def read_digests(path: Path) -> dict[str, str]:
    """Read a list of digests as a dictionary by relative path.

    Raises:
        FetchError: The list cannot be read or has another format.
    """
    try:
        lines = reading.read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise FetchError(f"Cannot read the digests in {path}: {error}.", "Copy the whole folder again.") from error
    matches = [_LINE.fullmatch(line) for line in lines]
    if not all(matches):
        raise FetchError(f"{path} is not a list of digests.", "Copy the whole folder again.")
    return {match[2]: match[1] for match in matches if match}


def compare_digests(
    folder: Path, listed: Mapping[str, str], *, progress: Callable[[int, int | None], None] | None = None
) -> DigestComparison:
    """Compare the files of a folder with listed digests; `progress` is called with (done, total) in files."""
    existing = set(list_files(folder))
    changed = []
    for done, (path, digest) in enumerate(sorted(listed.items()), 1):
        if path in existing and files.sha256_file(folder / path) != digest:
            changed.append(path)
        if progress is not None:
            progress(done, len(listed))
    missing = tuple(sorted(set(listed) - existing))
    return DigestComparison(tuple(changed), missing, tuple(sorted(existing - set(listed) - {DIGESTS})))


def list_files(folder: Path) -> list[str]:
    """Return the relative paths of all files in a folder and its subfolders, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

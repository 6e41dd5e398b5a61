"""Lists of digests as `sha256sum -c` reads them: writing them, and holding files against them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import files
from adctl.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

DIGESTS = "digests.sha256"
"""The list of a category's files, in its folder."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True, slots=True)
class DigestComparison:
    """How files differ from their list; paths are relative.

    Attributes:
        changed: Other bytes than at first.
        missing: Listed and not there.
        unlisted: There and not listed.
    """

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]

    @property
    def harmless(self) -> bool:
        """Whether all that is listed is there as it was."""
        return not (self.changed or self.missing)


def write_digests(
    folder: Path, name: str = DIGESTS, *, progress: Callable[[int, int | None], None] | None = None
) -> None:
    """List all files of a folder in a file there.

    Args:
        folder: Searched to the bottom.
        name: Of the list, which does not list itself.
        progress: Told (done, total) in files.
    """
    paths = [path for path in list_files(folder) if path != name]
    lines = []
    for done, path in enumerate(paths, 1):
        lines.append(f"{files.sha256_file(folder / path)}  {path}\n")
        if progress is not None:
            progress(done, len(paths))
    files.write_text(folder / name, "".join(lines))


def read_digests(path: Path) -> dict[str, str]:
    """Digests by relative path.

    Raises:
        FetchError: The list cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise FetchError(f"Cannot read the digests in {path}: {error}.", "Copy the whole folder again.") from error
    found = [_LINE.fullmatch(line) for line in lines]
    if not all(found):
        raise FetchError(f"{path} is not a list of digests.", "Copy the whole folder again.")
    return {match[2]: match[1] for match in found if match}


def compare_digests(
    folder: Path, listed: Mapping[str, str], *, progress: Callable[[int, int | None], None] | None = None
) -> DigestComparison:
    """Hold the files of a folder against a list."""
    here = set(list_files(folder))
    changed = []
    for done, (path, digest) in enumerate(sorted(listed.items()), 1):
        if path in here and files.sha256_file(folder / path) != digest:
            changed.append(path)
        if progress is not None:
            progress(done, len(listed))
    missing = tuple(sorted(set(listed) - here))
    return DigestComparison(tuple(changed), missing, tuple(sorted(here - set(listed) - {DIGESTS})))


def list_files(folder: Path) -> list[str]:
    """All files of a folder, relative to it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

"""Groups of images that resemble each other: items, positions, lots, days.

Images of one group are no independent evidence, so splits and folds hold out whole groups. A group comes from the
column `group` of a manifest, or from `--group`:

    folder, folder:2     first or second folder below the folder that holds all images
    day                  day on which the image was taken (EXIF), or else on which its file was last changed
    lot{group}_          pattern for file names: {group} stands for the group, * for any text; with a slash, for paths

A grouping that is only likely, from names, folders or dates, is suggested and never used by itself: a wrong one holds
out images for nothing, loosens the threshold, and would not be noticed.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from adctl.data import storage
from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from adctl.records import Sample

PLACEHOLDER = "{group}"

_FOLDER = re.compile(r"folder(?::([1-9]\d?))?")
_WORD = r"[^/_\-. ]+"
_HOW = "Give folder, folder:2, day, or a pattern for file names such as 'lot{group}_', where * stands for any text."
_EXIF_IFD, _EXIF_TAKEN, _EXIF_CHANGED = 0x8769, 0x9003, 0x0132
_LONGEST_LIST = 5


@dataclass(frozen=True)
class Suggestion:
    """Grouping that the names, folders or dates of images suggest.

    Attributes:
        group: Value for `--group`.
        counts: Number of images in each group.
        reason: Evidence for it, such as "names".
    """

    group: str
    counts: dict[str, int]
    reason: str

    @property
    def text(self) -> str:
        """The suggestion in words."""
        return (
            f"The {self.reason} of the good images suggest {len(self.counts)} groups ({_listed(self.counts)}). If "
            f"images of one group resemble each other, add --group '{self.group}': whole groups are then held out."
        )


def assign_groups(samples: Sequence[Sample], how: str) -> tuple[Sample, ...]:
    """Return good images with their groups.

    Args:
        samples: The good images.
        how: Value of `--group`; see the module's docstring.

    Raises:
        UsageError: The value is not valid, some images get no group, or all get the same.
    """
    grouped = tuple(try_groups(samples, how))
    missing = [sample.key for sample in grouped if sample.group is None]
    if len(missing) == len(grouped):
        suggestion = suggest_groups(samples)
        hint = f"The {suggestion.reason} suggest --group '{suggestion.group}'." if suggestion else _HOW
        raise UsageError(f"--group '{how}' matches none of the {len(grouped)} good images, such as {missing[0]}.", hint)
    if missing:
        raise UsageError(
            f"--group '{how}' does not match {len(missing)} of the {len(grouped)} good images, such as {missing[0]}.",
            "Write a pattern that all names match, or give groups in a manifest with the columns path and group.",
        )
    if len(grouped) > 1 and len({sample.group for sample in grouped}) == 1:
        raise UsageError(
            f"By --group '{how}' all {len(grouped)} good images are of one group, {grouped[0].group}.",
            "Give a value that tells groups apart, or leave out --group.",
        )
    return grouped


def try_groups(samples: Sequence[Sample], how: str) -> list[Sample]:
    """Return images with their groups; images that `how` does not match keep the group that they have.

    Raises:
        UsageError: `how` is not valid.
    """
    group_of = _grouping(how)
    base = _common_folder(samples)
    return [replace(sample, group=group_of(sample, sample.key[base:]) or sample.group) for sample in samples]


def group_counts(samples: Iterable[Sample]) -> dict[str, int]:
    """Return the number of images in each group, by name; images without a group do not count."""
    return dict(sorted(Counter(sample.group for sample in samples if sample.group is not None).items()))


def suggest_groups(samples: Sequence[Sample]) -> Suggestion | None:
    """Suggest a grouping of images that have none: by folders, by names, or by days; None if there is no clear one.

    Each group of a suggestion has two images on average, and each image has a group.
    """
    if not samples or any(sample.group is not None for sample in samples):
        return None
    likely = [("folder", "folders"), *((pattern, "names") for pattern in _name_patterns(samples))]
    if _taken(samples[0]) is not None:  # dates of files change when they are copied, so they suggest nothing
        likely.append(("day", "dates"))
    for how, reason in likely:
        grouped = try_groups(samples, how)
        counts = group_counts(grouped)
        if 1 < len(counts) <= len(samples) // 2 and sum(counts.values()) == len(samples):
            return Suggestion(how, counts, reason)
    return None


def units_of(samples: Iterable[Sample], digests: Mapping[str, str]) -> list[list[Sample]]:
    """Return the sets of images that stay together: each group, with identical copies of its images.

    Args:
        samples: Images with distinct keys.
        digests: Digest of each image by its key.

    Returns:
        Disjoint lists of images; without groups, one list for each different image.
    """
    units: dict[tuple[str, str], list[Sample]] = {}

    def tags(sample: Sample) -> list[tuple[str, str]]:
        own = [] if sample.group is None else [("group", sample.group)]
        return [("digest", digests[sample.key]), *own]

    for sample in samples:
        found = list({id(units[tag]): units[tag] for tag in tags(sample) if tag in units}.values())
        unit = found[0] if found else []
        for other in found[1:]:  # a copy of an image in another group joins the two groups
            unit.extend(other)
            units.update((tag, unit) for member in other for tag in tags(member))
        unit.append(sample)
        units.update((tag, unit) for tag in tags(sample))
    return list({id(unit): unit for unit in units.values()}.values())


def _grouping(how: str) -> Callable[[Sample, str], str | None]:
    """Return the function from an image, and its path below the common folder, to its group."""
    if how == "day":
        return lambda sample, _: _day(sample)
    if folder := _FOLDER.fullmatch(how):
        level = int(folder[1] or 1)
        return lambda _, path: _folder_at(path, level)
    if how.count(PLACEHOLDER) != 1:
        raise UsageError(f"--group '{how}' is not valid: it has no {PLACEHOLDER}, or several.", _HOW)
    pattern = _expression(how)
    return lambda _, path: _match(pattern, path if "/" in how else path.rpartition("/")[2])


def _expression(how: str) -> re.Pattern[str]:
    before, after = ("[^/]*?".join(map(re.escape, part.split("*"))) for part in how.split(PLACEHOLDER))
    return re.compile(f"{before}({'[^/]+?' if after else _WORD}){after}")


def _match(pattern: re.Pattern[str], name: str) -> str | None:
    found = pattern.search(name)
    return found[1] if found else None


def _folder_at(path: str, level: int) -> str | None:
    folders = path.split("/")[:-1]
    return "/".join(folders[:level]) if len(folders) >= level else None


def _day(sample: Sample) -> str | None:
    return _taken(sample) or _changed(sample)


def _taken(sample: Sample) -> str | None:
    """Return the day on which an image was taken, from its EXIF data, as 2026-11-28."""
    from PIL import Image

    try:
        with storage.open_binary(sample.path) as stream, Image.open(stream) as image:
            exif = image.getexif()
            text = exif.get_ifd(_EXIF_IFD).get(_EXIF_TAKEN) or exif.get(_EXIF_CHANGED)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    found = re.match(r"(\d{4}):(\d\d):(\d\d)", str(text))
    return "-".join(found.groups()) if found else None


def _changed(sample: Sample) -> str | None:
    try:
        changed = sample.path.stat().st_mtime
    except OSError:  # a file in an archive
        return None
    return datetime.fromtimestamp(changed, UTC).astimezone().strftime("%Y-%m-%d")


def _common_folder(samples: Sequence[Sample]) -> int:
    """Return the length of the part that all keys share, up to a slash."""
    shared = posixpath.commonpath([posixpath.dirname(sample.key) for sample in samples])
    return len(shared) + 1 if shared else 0


def _name_patterns(samples: Sequence[Sample]) -> list[str]:
    """Return patterns for one of the parts of the file names that separators divide, except the last part.

    Parts that are equal in all names are written out, so that the pattern says what it means.
    """
    names = [re.split(r"([_\-. ]+)", PurePosixPath(sample.key).stem) for sample in samples]
    shortest = min(map(len, names))
    patterns = []
    for place in range(0, shortest - 2, 2):
        before = ["".join({name[index] for name in names}) if _equal(names, index) else "*" for index in range(place)]
        if _equal(names, place + 1) and not _equal(names, place):
            patterns.append("".join([*before, PLACEHOLDER, names[0][place + 1]]))
    return patterns


def _equal(names: Sequence[Sequence[str]], index: int) -> bool:
    return len({name[index] for name in names}) == 1


def _listed(counts: Mapping[str, int]) -> str:
    names = list(counts)
    more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
    return ", ".join(names[:_LONGEST_LIST]) + more

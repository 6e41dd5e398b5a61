"""What can be wrong with a data set, how bad it is, and what to do about it. Knows nothing of how it is found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Severity(StrEnum):
    """How bad it is: an error makes figures wrong or images unusable, a warning wants a look."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class FindingCase:
    """One instance of a finding.

    Attributes:
        paths: The files concerned, the one to act on first.
        detail: What was seen, in a few words.
    """

    paths: tuple[Path, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """All instances of one kind of fault.

    Attributes:
        kind: Its name, a key of `KINDS`.
        severity: How bad it is.
        title: What it is.
        remedy: What to do about it.
        cases: Where it is; never empty.
    """

    kind: str
    severity: Severity
    title: str
    remedy: str
    cases: tuple[FindingCase, ...]


KINDS: dict[str, tuple[Severity, str, str]] = {
    "empty-file": (Severity.ERROR, "Empty files", "Copy them again, or remove them."),
    "corrupt": (
        Severity.ERROR,
        "Images that cannot be read",
        "Copy or convert them again, or remove them: training stops at such an image.",
    ),
    "left-out": (
        Severity.WARNING,
        "Files and folders that are not used",
        "Nothing to do, unless images were meant: convert those, or mend the links.",
    ),
    "leak": (
        Severity.ERROR,
        "The same picture to learn from and to test on",
        "Remove it from one side: what is learned by heart is not found by skill.",
    ),
    "near-leak": (
        Severity.WARNING,
        "Nearly the same picture to learn from and to test on",
        "Look at them. Pictures of one part belong on one side, or results come out too good.",
    ),
    "contradiction": (
        Severity.ERROR,
        "The same picture under different labels",
        "Find out which label is right, and remove the others.",
    ),
    "duplicate": (
        Severity.WARNING,
        "The same picture several times",
        "Keep one of each: copies weigh more than other pictures.",
    ),
    "near-duplicate": (
        Severity.WARNING,
        "Nearly the same picture several times",
        "Look at them. Saved or photographed twice, they make the data set look larger than it is.",
    ),
    "missing-mask": (
        Severity.WARNING,
        "Defective test images without a mask",
        "Draw the masks, or leave it: these images do not count in pixel metrics.",
    ),
    "orphan-mask": (
        Severity.ERROR,
        "Masks without an image",
        "Give them the names of their images, or remove them.",
    ),
    "corrupt-mask": (Severity.ERROR, "Masks that cannot be read", "Save them again as 8-bit PNG."),
    "mask-size": (
        Severity.ERROR,
        "Masks of another size than their image",
        "Save them in the size of the image as it is displayed.",
    ),
    "empty-mask": (
        Severity.ERROR,
        "Masks that mark nothing",
        "Draw the defect, or remove the mask; if there is no defect, the image belongs under good.",
    ),
    "inverted-mask": (
        Severity.ERROR,
        "Masks that mark nearly everything but a spot",
        "Invert them: the defect is white, everything else black.",
    ),
    "odd-exposure": (
        Severity.WARNING,
        "Good images exposed unlike the others",
        "Look at them: mislabelled defects, or a lamp that failed. Remove what is not good.",
    ),
    "odd-mode": (
        Severity.WARNING,
        "Images stored in another mode than the others",
        "Save all from the same camera in the same way: colour is information, and so is its absence.",
    ),
    "odd-size": (
        Severity.WARNING,
        "Images of another size than the others",
        "Take them from the same source as the others, or remove them.",
    ),
    "few-images": (
        Severity.WARNING,
        "Few good images",
        "Take more, 50 or better 200: a threshold from few images is a guess.",
    ),
}
"""Severity, title and remedy of each kind, worst consequences first."""


def make_finding(kind: str, cases: Sequence[FindingCase]) -> list[Finding]:
    """A finding of a kind, if there are cases of it; none otherwise."""
    return [Finding(kind, *KINDS[kind], cases=tuple(cases))] if cases else []

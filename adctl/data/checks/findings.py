"""Kinds of problems in a dataset, with their severity, title and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Severity(StrEnum):
    """Severity of a finding: an error makes metrics wrong or images unusable; a warning should be checked."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class FindingCase:
    """One case of a finding.

    Attributes:
        paths: Files of the case; the first one is the file to act on.
        detail: Short description of the case.
    """

    paths: tuple[Path, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """All cases of one kind of problem.

    Attributes:
        kind: Name of the kind, a key of `KINDS`.
        severity: Severity of the kind.
        title: Title of the kind.
        remedy: Recommended action.
        cases: The cases, at least one.
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
        "Copy or convert them again, or remove them. Training stops at such an image.",
    ),
    "left-out": (
        Severity.WARNING,
        "Files and folders that are not used",
        "If they should be used, convert them to an image format or repair the links; otherwise ignore this.",
    ),
    "leak": (
        Severity.ERROR,
        "The same image in training and test",
        "Remove it from one of the two; otherwise the test results are too good.",
    ),
    "near-leak": (
        Severity.WARNING,
        "Nearly the same image in training and test",
        "Check them. Images of one part belong either in training or in test; otherwise the test results are too good.",
    ),
    "contradiction": (
        Severity.ERROR,
        "The same image with different labels",
        "Find out which label is right, and remove the other copies.",
    ),
    "duplicate": (
        Severity.WARNING,
        "The same image several times",
        "Keep one of each. Copies count more than other images.",
    ),
    "near-duplicate": (
        Severity.WARNING,
        "Nearly the same image several times",
        "Check them. Remove images that were saved or taken twice, or give images of one part the same group: --group.",
    ),
    "missing-mask": (
        Severity.WARNING,
        "Defective test images without a mask",
        "Draw the masks, or accept that these images do not count in pixel metrics.",
    ),
    "orphan-mask": (
        Severity.ERROR,
        "Masks without an image",
        "Give them the names of their images, or remove them.",
    ),
    "corrupt-mask": (Severity.ERROR, "Masks that cannot be read", "Save them again as 8-bit PNG."),
    "mask-size": (
        Severity.ERROR,
        "Masks that differ in size from their image",
        "Save them in the size of the displayed image (after EXIF rotation).",
    ),
    "empty-mask": (
        Severity.ERROR,
        "Empty masks",
        "Draw the defect, or remove the mask. If there is no defect, move the image to the good images.",
    ),
    "inverted-mask": (
        Severity.ERROR,
        "Masks that seem to be inverted",
        "Invert them: the defect must be white, and everything else black.",
    ),
    "unclear-mask": (
        Severity.WARNING,
        "Masks whose values are not clear",
        "Check that they are read as meant. Save masks as PNG, with 0 for the background and 255 for the defect.",
    ),
    "unused-bits": (
        Severity.WARNING,
        "16-bit images that use only the lower bits",
        "If the camera delivers fewer bits, train with the setting that is named; otherwise the images are too dark.",
    ),
    "colour-profile": (
        Severity.WARNING,
        "Images whose colours do not mean sRGB, or not the same",
        "Convert all images to sRGB, or make sure that all images of training and scoring carry the same profile.",
    ),
    "odd-exposure": (
        Severity.WARNING,
        "Good images with unusual exposure",
        "Check them for wrong labels and for lamp failures. Remove images that are not good.",
    ),
    "odd-mode": (
        Severity.WARNING,
        "Images with unusual channels or number type",
        "Save all images from the camera in the same format. A mix of grey and colour disturbs the detector.",
    ),
    "odd-size": (
        Severity.WARNING,
        "Images of unusual size",
        "Take them from the same source as the other images, or remove them.",
    ),
    "few-images": (
        Severity.WARNING,
        "Few good images",
        "Take more good images, at least 50, better 200. A threshold from few images is unreliable.",
    ),
}
"""Severity, title and remedy of each kind, most serious first."""


def make_finding(kind: str, cases: Sequence[FindingCase]) -> list[Finding]:
    """Return a list with the finding of a kind; empty if there are no cases."""
    return [Finding(kind, *KINDS[kind], cases=tuple(cases))] if cases else []

"""Detection of faulty ground-truth masks."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from adctl.data.checks.findings import Finding, FindingCase, make_finding
from adctl.data.masks import border_share, interpret_mask, seems_inverted
from adctl.errors import ImageError
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from adctl.data.checks.image_stats import ImageStats


def find_faulty_masks(stats: Sequence[ImageStats], unused: Iterable[Path]) -> list[Finding]:
    """Find faulty and missing masks.

    Args:
        stats: Statistics of all images, including unreadable ones.
        unused: Masks that belong to no image.
    """
    cases: defaultdict[str, list[FindingCase]] = defaultdict(list)
    for path in unused:
        cases["orphan-mask"].append(FindingCase((path,), "no test image with that label and name"))
    defective = [image for image in stats if image.part == "test" and image.sample.label not in {GOOD, None}]
    masked = [image for image in defective if image.sample.mask is not None]
    # A dataset without any masks is not reported as incomplete.
    for image in defective if masked or cases else []:
        if image.sample.mask is None:
            cases["missing-mask"].append(FindingCase((image.sample.path,), f"labelled {image.sample.label}"))
    for image in masked:
        fault = _find_fault(image)
        if fault is not None:
            kind, detail = fault
            assert image.sample.mask is not None
            cases[kind].append(FindingCase((image.sample.mask, image.sample.path), detail))
    kinds = ("missing-mask", "orphan-mask", "corrupt-mask", "mask-size", "empty-mask", "inverted-mask", "unclear-mask")
    return [found for kind in kinds for found in make_finding(kind, cases[kind])]


def _find_fault(image: ImageStats) -> tuple[str, str] | None:
    """Return the kind of fault of an image's mask and its detail; None if no fault is found."""
    assert image.sample.mask is not None
    try:
        found = interpret_mask(image.sample.mask)
    except ImageError as error:
        return "corrupt-mask", error.message
    mask = found.defect
    height, width = mask.shape
    if image.error is None and (width, height) != (image.width, image.height):
        return "mask-size", f"{width} x {height}, but the image is {image.width} x {image.height}"
    if not mask.any():
        return "empty-mask", "no pixel is marked"
    if seems_inverted(mask):
        return "inverted-mask", f"{mask.mean():.0%} of the mask and {border_share(mask):.0%} of its border are marked"
    return ("unclear-mask", found.doubt) if found.doubt else None

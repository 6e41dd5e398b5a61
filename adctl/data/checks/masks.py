"""Ground-truth masks that cannot be right. Knows one mask and its image at a time, nothing of how they were paired."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.checks.findings import Finding, FindingCase, make_finding
from adctl.data.images import read_mask
from adctl.errors import ImageError
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from adctl.data.checks.image_stats import ImageStats
    from adctl.data.images import BoolMask

_MOST = 0.5
"""Share of a mask, and of its border, above which it marks the surroundings and not the defect."""


def find_faulty_masks(looks: Sequence[ImageStats], unused: Iterable[Path]) -> list[Finding]:
    """Find faulty masks.

    Args:
        looks: At all images, unreadable ones included.
        unused: Masks that belong to no image.
    """
    cases: defaultdict[str, list[FindingCase]] = defaultdict(list)
    for path in unused:
        cases["orphan-mask"].append(FindingCase((path,), "no test image of that name under that label"))
    defective = [look for look in looks if look.part == "test" and look.sample.label not in {GOOD, None}]
    masked = [look for look in defective if look.sample.mask is not None]
    # Where nobody drew masks, none is missing.
    for look in defective if masked or cases else []:
        if look.sample.mask is None:
            cases["missing-mask"].append(FindingCase((look.sample.path,), f"labelled {look.sample.label}"))
    for look in masked:
        judged = _judge(look)
        if judged is not None:
            kind, detail = judged
            assert look.sample.mask is not None
            cases[kind].append(FindingCase((look.sample.mask, look.sample.path), detail))
    kinds = ("missing-mask", "orphan-mask", "corrupt-mask", "mask-size", "empty-mask", "inverted-mask")
    return [found for kind in kinds for found in make_finding(kind, cases[kind])]


def _judge(look: ImageStats) -> tuple[str, str] | None:
    """The kind of fault of one image's mask, and what was seen; None when it may be right."""
    assert look.sample.mask is not None
    try:
        mask = read_mask(look.sample.mask)
    except ImageError as error:
        return "corrupt-mask", error.message
    height, width = mask.shape
    if look.error is None and (width, height) != (look.width, look.height):
        return "mask-size", f"{width} x {height}, its image {look.width} x {look.height}"
    if not mask.any():
        return "empty-mask", "not one pixel is marked"
    area, border = float(mask.mean()), float(_border(mask).mean())
    if area > _MOST and border > _MOST:
        return "inverted-mask", f"{area:.0%} of it is marked, and {border:.0%} of its border"
    return None


def _border(mask: BoolMask) -> BoolMask:
    return np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])

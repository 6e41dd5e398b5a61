"""Colour profiles and gamma of image files, which say how stored values are to be shown.

Detectors use the stored values, so that no conversion hides a change of the camera. Images whose profile is like sRGB
show the same values as images without one; other profiles are named, because the same colour has other values there.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from adctl.data.images import read_header
from adctl.errors import AdctlError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from adctl.data.images import Header
    from adctl.records import Sample

log = logging.getLogger(__name__)

_MAX_READ = 32
"""Number of images whose headers are looked at."""

_LEVELS = np.linspace(0, 255, 5).astype(np.uint8)
_VISIBLE = 12
"""Grey levels by which a profile may differ from sRGB; a gamma of 2.2 differs by less."""
_SRGB_GAMMA = 1 / 2.2
_GAMMA_RANGE = 0.02


def warn_of_colours(samples: Sequence[Sample]) -> bool:
    """Log a warning if images differ in their colour profiles, or do not mean sRGB, once for the same images.

    Returns:
        Whether there is such an image among those looked at.
    """
    step = max(1, len(samples) // _MAX_READ)
    return _warn_once(tuple(sample.path for sample in samples[::step][:_MAX_READ]))


@lru_cache(maxsize=16)
def _warn_once(paths: tuple[Path, ...]) -> bool:
    problem = describe_colours(map(_colours_of, paths))
    if problem is not None:
        log.warning("%s", problem)
    return problem is not None


def describe_colours(meanings: Iterable[str]) -> str | None:
    """Return a sentence if images differ in the meaning of their colours, or if it is not sRGB; otherwise None.

    Args:
        meanings: Meaning of each image's colours; see `colour_meaning`.
    """
    counts = Counter(meanings)
    if not counts.keys() - {""}:
        return None
    if len(counts) == 1:
        return (
            f"The images carry {next(iter(counts))}, which differs from sRGB. The stored values are used: "
            "training images and scored images must carry the same."
        )
    parts = ", ".join(f"{name or 'sRGB or none'}: {count}" for name, count in counts.most_common())
    return (
        f"The images differ in their colour profiles ({parts}). The stored values are used, in which the same colour "
        "differs: convert all images to sRGB."
    )


def colour_meaning(header: Header) -> str:
    """Return the profile or gamma of an image in words; an empty text for sRGB, similar ones and none."""
    if header.profile:
        return _profile_meaning(header.profile)
    if header.gamma is None or abs(header.gamma - _SRGB_GAMMA) <= _GAMMA_RANGE:
        return ""
    return "linear values" if header.gamma == 1 else f"a gamma of {1 / header.gamma:.2g}"


def _colours_of(path: Path) -> str:
    try:
        return colour_meaning(read_header(path))
    except AdctlError:
        return ""


@lru_cache(maxsize=64)
def _profile_meaning(data: bytes) -> str:
    """Return the name of an ICC profile; empty if it is like sRGB or cannot be read."""
    from PIL import ImageCms

    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(1, -1, 3)
    stored = {"RGB": Image.fromarray(grid), "GRAY": Image.fromarray(_LEVELS[None])}
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space not in stored:
            return ""
        shown = ImageCms.profileToProfile(
            stored[space], profile, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB"
        )
        name = (ImageCms.getProfileDescription(profile) or "").strip()
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged profiles are ignored, as viewers do
        return ""
    difference = np.abs(np.asarray(shown, np.int16) - np.asarray(stored[space].convert("RGB"), np.int16))
    return f"the colour profile '{name or 'without a name'}'" if difference.max() > _VISIBLE else ""

"""A moving picture of what models see: image by image, the maps of each model in turn. GIF, WebP or animated PNG.

Knows comparisons and arrays; where the picture goes is the caller's.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adctl import files
from adctl.errors import DataError, UsageError
from adctl.reporting.side_by_side import views

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.evaluation.compare import Disagreement, SetComparison
    from adctl.evaluation.match_images import SharedScores

_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".gif": ("GIF", {"disposal": 2}),
    ".webp": ("WEBP", {"quality": 85}),
    ".png": ("PNG", {}),
    ".apng": ("PNG", {}),
}
_SIDE = 320
_IMAGES = 8
_MILLISECONDS = 1200
_GAP = 6
_MARGIN = 8
_LINE = 22
_PAPER, _INK, _SOFT = (250, 250, 250), (25, 25, 28), (95, 95, 100)


def check_animation(target: Path) -> None:
    """Refuse a file whose ending names no moving picture.

    Raises:
        UsageError: It does not.
    """
    if target.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--animation {target} does not say which kind of moving picture.", f"End it in {', '.join(_FORMATS)}."
        )


def write_animation(sets: Sequence[SharedScores], comparison: SetComparison, target: Path) -> Path:
    """Write the eight images on which the sets differ most, a frame a set.

    Args:
        sets: The shared scored sets.
        comparison: What was found of them.
        target: A file that ends in .gif, .webp, .png or .apng.

    Raises:
        UsageError: The file's ending names no moving picture.
        DataError: No image that they differ on can be shown.
        OutputError: It cannot be written.
    """
    check_animation(target)
    kind, options = _FORMATS[target.suffix.lower()]
    frames = list(_frames(sets, comparison))
    if not frames:
        raise DataError(
            "There is nothing to animate: no image with a map that the sets differ on can be read.",
            "Score with --maps, and keep the images where they were.",
        )
    size = (max(frame.width for frame in frames), max(frame.height for frame in frames))
    pictures = [_padded(frame, size) for frame in frames]
    with files.atomic_path(target) as temporary:
        pictures[0].save(
            temporary,
            format=kind,
            save_all=True,
            append_images=pictures[1:],
            duration=_MILLISECONDS,
            loop=0,
            **options,
        )
    return target


def _frames(sets: Sequence[SharedScores], comparison: SetComparison) -> Iterator[Image.Image]:
    wanted = {one.index: one for one in comparison.disagreements[:_IMAGES]}
    for seen in views(sets, list(wanted), _SIDE):
        for number, laid_over in enumerate(seen.overlays):
            if laid_over is not None:
                yield _frame(wanted[seen.index], comparison.sets[number].name, number, seen.original, laid_over)


def _frame(
    image: Disagreement, name: str, number: int, original: NDArray[np.uint8], laid_over: NDArray[np.uint8]
) -> Image.Image:
    """The original beside one set's overlay, under what it is and what the set says of it."""
    gap = np.full((len(original), _GAP, 3), _PAPER, np.uint8)
    body = Image.fromarray(np.hstack([original, gap, laid_over]))
    frame = Image.new(
        "RGB", (max(2 * _SIDE + _GAP, body.width) + 2 * _MARGIN, body.height + 2 * _LINE + 2 * _MARGIN), _PAPER
    )
    frame.paste(body, (_MARGIN, 2 * _LINE + _MARGIN))
    draw = ImageDraw.Draw(frame)
    font = ImageFont.load_default(15)
    verdict = f"{name}: {image.verdicts[number]}, above {100 * image.ranks[number]:.0f} % of the images"
    draw.text((_MARGIN, _MARGIN - 3), _plain(verdict), fill=_INK, font=font)
    what = f"{image.label or 'no label'} - {image.key}"
    draw.text((_MARGIN, _MARGIN - 3 + _LINE), _plain(what), fill=_SOFT, font=font)
    return frame


def _padded(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    padded = Image.new("RGB", size, _PAPER)
    padded.paste(frame, (0, 0))
    return padded


def _plain(text: str) -> str:
    """The text in ASCII: Pillow's own font has no other letters."""
    bare = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return bare.encode("ascii", "replace").decode("ascii")

"""Animation (GIF, WebP or animated PNG) that shows, for each image, the heatmap of each model in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from adctl import files
from adctl.errors import DataError, UsageError
from adctl.reporting.side_by_side import views
from adctl.scoring.lettering import to_ascii

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.evaluation.compare import Disagreement, SetComparison
    from adctl.evaluation.match_images import SharedScores

_MARK = b"Made by adctl"
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".gif": ("GIF", {"disposal": 2, "comment": _MARK}),
    ".webp": ("WEBP", {"quality": 85, "xmp": _MARK}),
    ".png": ("PNG", {}),
    ".apng": ("PNG", {}),
}
_SIDE = 320
_IMAGES = 8
_MILLISECONDS = 1200
_GAP = 6
_MARGIN = 8
_LINE_HEIGHT = 22
_BACKGROUND, _INK, _SOFT = (250, 250, 250), (25, 25, 28), (95, 95, 100)


def check_animation(target: Path) -> None:
    """Raise if the suffix of a file is not that of an animation format.

    Raises:
        UsageError: The suffix is unknown.
    """
    if target.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"The suffix of --animation {target} is not an animation format.", f"Use one of {', '.join(_FORMATS)}."
        )


def write_animation(sets: Sequence[SharedScores], comparison: SetComparison, target: Path) -> Path:
    """Write the eight images on which the sets differ most, with one frame for each set.

    Args:
        sets: Scored sets, reduced to the same images.
        comparison: Result of the comparison.
        target: File to write, with the suffix .gif, .webp, .png or .apng.

    Raises:
        UsageError: The suffix is not that of an animation format.
        DataError: None of these images can be read or has an anomaly map.
        OutputError: The file cannot be written.
    """
    check_animation(target)
    kind, options = _FORMATS[target.suffix.lower()]
    frames = list(_frames(sets, comparison))
    if not frames:
        raise DataError(
            "There is nothing to animate: none of the images on which the sets differ can be read and has a map.",
            "Score the images with --maps, and do not move them.",
        )
    size = (max(frame.width for frame in frames), max(frame.height for frame in frames))
    pictures = [_padded(frame, size) for frame in frames]
    information = PngInfo()
    information.add_text("Software", "adctl")
    options = {**options, "pnginfo": information} if kind == "PNG" else options
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
    wanted = {image.index: image for image in comparison.disagreements[:_IMAGES]}
    for shown in views(sets, list(wanted), _SIDE):
        for number, heatmap in enumerate(shown.overlays):
            if heatmap is not None:
                yield _frame(wanted[shown.index], comparison.sets[number].name, number, shown.original, heatmap)


def _frame(
    image: Disagreement, name: str, number: int, original: NDArray[np.uint8], heatmap: NDArray[np.uint8]
) -> Image.Image:
    """Draw the original image beside the heatmap of one set, below two lines with verdict, label and key."""
    gap = np.full((len(original), _GAP, 3), _BACKGROUND, np.uint8)
    body = Image.fromarray(np.hstack([original, gap, heatmap]))
    frame = Image.new(
        "RGB",
        (max(2 * _SIDE + _GAP, body.width) + 2 * _MARGIN, body.height + 2 * _LINE_HEIGHT + 2 * _MARGIN),
        _BACKGROUND,
    )
    frame.paste(body, (_MARGIN, 2 * _LINE_HEIGHT + _MARGIN))
    draw = ImageDraw.Draw(frame)
    font = ImageFont.load_default(15)
    verdict = f"{name}: {image.verdicts[number]}, scores higher than {100 * image.ranks[number]:.0f} % of the images"
    draw.text((_MARGIN, _MARGIN - 3), to_ascii(verdict), fill=_INK, font=font)
    description = f"{image.label or 'no label'} - {image.key}"
    draw.text((_MARGIN, _MARGIN - 3 + _LINE_HEIGHT), to_ascii(description), fill=_SOFT, font=font)
    return frame


def _padded(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    padded = Image.new("RGB", size, _BACKGROUND)
    padded.paste(frame, (0, 0))
    return padded

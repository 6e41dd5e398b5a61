"""From several scored sets to their comparison: one page, and a moving picture where asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.errors import UsageError
from adctl.evaluation.compare import SetComparison, compare_sets
from adctl.evaluation.match_images import match_images
from adctl.metrics.bootstrap import Resampling
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.reporting.animation import check_animation, write_animation
from adctl.reporting.comparison_page import write_comparison
from adctl.scoring.score_set import ScoreSet

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import LoadedSettings, ReportSettings

PAGE = "comparison.html"
_TAKEN = {"scores", "animation", "out", "title", "ci", "ci_level", "ci_samples", "seed", "runs"}
"""Settings of a report that a comparison takes too; intervals it always gives."""


@dataclass(frozen=True)
class CompareResult:
    """What comparing made.

    Attributes:
        page: The HTML file.
        animation: The moving picture, or None.
        comparison: What is in them.
    """

    page: Path
    animation: Path | None
    comparison: SetComparison


def compare(loaded: LoadedSettings[ReportSettings], reporter: Reporter = SILENT) -> CompareResult:
    """Compare scored sets on the images they share and write it as one HTML page.

    Args:
        loaded: The settings, with two folders of scores or more.
        reporter: Told how far it is.

    Raises:
        UsageError: There are no scores, a set is named twice, or the sets share no image.
        DataError: The scores are damaged.
        OutputError: The page cannot be written.
    """
    settings = loaded.settings
    folders = settings.scores
    if len(folders) < 2:  # noqa: PLR2004 - a pair
        raise UsageError("A comparison takes two scored sets or more.", "Name them: adctl report A B.")
    if len({folder.absolute() for folder in folders}) < len(folders):
        raise UsageError("A folder of scores is named twice.", "Name each once.")
    for name in sorted(loaded.given - _TAKEN):
        raise UsageError(f"{flag_name(name)} is for one scored set, not for comparing several.", "Leave it out.")
    if settings.animation is not None:
        check_animation(settings.animation)
    with reporter.stage("matching images"):
        shared = match_images([ScoreSet.load(folder) for folder in folders])
    with reporter.stage("comparing"):
        found = compare_sets(shared, Resampling(settings.ci_samples, settings.ci_level, settings.seed))
    target = settings.out or folders[0] / PAGE
    with reporter.stage("writing the comparison"):
        page = write_comparison(shared.sets, found, target, title=settings.title)
        animation = None
        if settings.animation is not None:
            animation = write_animation(shared.sets, found, settings.animation)
    return CompareResult(page, animation, found)

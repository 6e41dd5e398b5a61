"""Comparison report of several scored sets: an HTML page and, if wanted, an animation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import files
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
_USED = {"scores", "animation", "out", "title", "ci", "ci_level", "ci_samples", "seed", "runs", "overwrite"}
"""Report settings that may be given for a comparison; a comparison always has confidence intervals."""


@dataclass(frozen=True)
class CompareResult:
    """Result of a comparison report.

    Attributes:
        page: HTML file.
        animation: Animation file, or None.
        comparison: Metrics, tests and disagreements shown in the files.
    """

    page: Path
    animation: Path | None
    comparison: SetComparison


def compare(loaded: LoadedSettings[ReportSettings], reporter: Reporter = SILENT) -> CompareResult:
    """Compare scored sets on the images that all of them have, and write an HTML page.

    Args:
        loaded: Settings, with two or more folders of scores.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: A folder holds no scores or is named twice, or the sets have no image in common.
        DataError: The scores are damaged.
        OutputError: A file cannot be written.
    """
    settings = loaded.settings
    folders = settings.scores
    if len(folders) < 2:  # noqa: PLR2004 - a pair
        raise UsageError("A comparison needs at least two scored sets.", "Name two or more folders: adctl report A B.")
    if len({folder.absolute() for folder in folders}) < len(folders):
        raise UsageError("A folder of scores is named twice.", "Name each folder once.")
    for name in sorted(loaded.given - _USED):
        raise UsageError(
            f"{flag_name(name)} is for one scored set, not for a comparison.", f"Leave out {flag_name(name)}."
        )
    if settings.animation is not None:
        check_animation(settings.animation)
    target = settings.out or folders[0] / PAGE
    files.require_replaceable([target, settings.animation], overwrite=settings.overwrite)
    with reporter.stage("matching images"):
        shared = match_images([ScoreSet.load(folder) for folder in folders])
    with reporter.stage("comparing"):
        comparison = compare_sets(shared, Resampling(settings.ci_samples, settings.ci_level, settings.seed))
    with reporter.stage("writing the comparison"):
        page = write_comparison(shared.sets, comparison, target, title=settings.title)
        animation = None
        if settings.animation is not None:
            animation = write_animation(shared.sets, comparison, settings.animation)
    return CompareResult(page, animation, comparison)

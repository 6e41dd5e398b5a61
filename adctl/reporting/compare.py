"""Comparison report of several scored sets: an HTML page, LaTeX tables, figures and an animation."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import files
from adctl.choices import COMPARISON_FORMATS
from adctl.errors import UsageError
from adctl.evaluation.compare import SetComparison, compare_sets
from adctl.evaluation.match_images import match_images
from adctl.metrics.bootstrap import Resampling
from adctl.options import flag_name
from adctl.progress import SILENT, Reporter
from adctl.reporting.animation import check_animation, write_animation
from adctl.reporting.charts import curves_of_models, figure_files, write_figures
from adctl.reporting.comparison_page import model_curves
from adctl.reporting.targets import find_targets
from adctl.scoring.score_set import ScoreSet

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import LoadedSettings, ReportSettings

NAME = "comparison"
_USED = {
    "scores",
    "animation",
    "figures",
    "format",
    "out",
    "title",
    "ci",
    "ci_level",
    "ci_samples",
    "seed",
    "runs",
    "overwrite",
}
"""Report settings that may be given for a comparison; a comparison always has confidence intervals."""


@dataclass(frozen=True)
class CompareResult:
    """Result of a comparison report.

    Attributes:
        page: File of the comparison, in the first of several formats.
        animation: Animation file, or None.
        comparison: Metrics, tests and disagreements shown in the files.
        files: All files of the comparison.
        figures: Curves of all models as SVG and PDF files.
    """

    page: Path
    animation: Path | None
    comparison: SetComparison
    files: tuple[Path, ...] = ()
    figures: tuple[Path, ...] = ()


def compare(loaded: LoadedSettings[ReportSettings], reporter: Reporter = SILENT) -> CompareResult:
    """Compare scored sets on the images that all of them have, and write a page or tables.

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
    targets = find_targets(settings, folders[0] / NAME, COMPARISON_FORMATS)
    figures = figure_files(settings.figures) if settings.figures is not None else []
    outputs = [path for _, path in targets]
    files.require_replaceable([*outputs, *figures, settings.animation], overwrite=settings.overwrite)
    with reporter.stage("matching images"):
        shared = match_images([ScoreSet.load(folder) for folder in folders])
    with reporter.stage("comparing"):
        resampling = Resampling(settings.ci_samples, settings.ci_level, settings.seed)
        comparison = compare_sets(shared, resampling, settings.pixel_size)
    with reporter.stage("writing the comparison"):
        for name, path in targets:
            write = pkgutil.resolve_name(COMPARISON_FORMATS[name])
            write(shared.sets, comparison, path, title=settings.title)
        drawn: list[Path] = []
        if settings.figures is not None:
            names = [result.name for result in comparison.sets]
            curves = dict(zip(names, model_curves(shared.sets, comparison), strict=False))
            drawn = write_figures(settings.figures, curves_of_models(curves))
        animation = None
        if settings.animation is not None:
            animation = write_animation(shared.sets, comparison, settings.animation)
    return CompareResult(outputs[0], animation, comparison, tuple(outputs), tuple(drawn))

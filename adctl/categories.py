"""One training for each category of a data set, in one call: runs side by side in one folder, and one summary.

Knows which categories there are and what became of each; what training is, `adctl.training` knows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import files, runs
from adctl.config import Loaded, TrainSettings
from adctl.datasets import ALL, categories_of
from adctl.errors import AdctlError, UsageError
from adctl.progress import SILENT, Reporter
from adctl.training import train

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.training import TrainResult

log = logging.getLogger(__name__)

SUMMARY = "summary.json"


@dataclass(frozen=True)
class TrainedCategory:
    """What became of one category.

    Attributes:
        category: Its name.
        result: What training made; None where it failed.
        error: Why it failed, or None.
    """

    category: str
    result: TrainResult | None
    error: str | None = None


@dataclass(frozen=True)
class TrainedCategories:
    """What became of all.

    Attributes:
        folder: Where the runs lie, one folder a category, and `summary.json`.
        categories: In order of name.
    """

    folder: Path
    categories: tuple[TrainedCategory, ...]

    @property
    def failed(self) -> int:
        """Categories without a model."""
        return sum(each.result is None for each in self.categories)


def train_all(loaded: Loaded[TrainSettings], reporter: Reporter = SILENT) -> TrainedCategories:
    """Train on every category; one that cannot be trained on is noted, and the others go on.

    Args:
        loaded: The settings, with `all` for the category.
        reporter: Told how far it is.

    Raises:
        UsageError: The data set has no categories, or a run is to be gone on with.
        OutputError: Runs cannot be written.
    """
    settings = loaded.settings
    if settings.resume is not None:
        raise UsageError(f"--resume goes on with one run, not with --category {ALL}.", "Name the run of one category.")
    names = categories_of(settings)
    folder = runs.new_folder(settings.runs, settings.arch, ALL, name=settings.name)
    done: list[TrainedCategory] = []
    for number, name in enumerate(names, 1):
        log.info("Category %s, %d of %d.", name, number, len(names))
        done.append(_train_one(loaded, name, folder, reporter))
        files.write_json(folder / SUMMARY, {"schema": "adctl.categories/1", "categories": list(map(_row, done))})
    last = next((each.result.model for each in reversed(done) if each.result), None)
    if last is not None:
        runs.remember(settings.runs, "model", last)
    return TrainedCategories(folder, tuple(done))


def _train_one(loaded: Loaded[TrainSettings], name: str, folder: Path, reporter: Reporter) -> TrainedCategory:
    own = loaded.settings.model_copy(update={"category": name, "runs": folder, "name": name})
    try:
        return TrainedCategory(name, train(Loaded(own, loaded.origins), reporter))
    except AdctlError as error:
        log.warning("%s: %s %s", name, error.message, error.remedy)
        return TrainedCategory(name, None, error.message)


def _row(each: TrainedCategory) -> dict[str, object]:
    if each.result is None:
        return {"category": each.category, "error": each.error}
    return {
        "category": each.category,
        "run": each.result.run.name,
        "sha256": each.result.sha256,
        "images": each.result.images,
        "threshold": each.result.calibration.threshold,
        "seconds": round(each.result.seconds, 3),
    }

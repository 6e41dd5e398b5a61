"""Fetching of the dataset and weights that a training needs, for `adctl train --fetch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.datasets import ALL_CATEGORIES
from adctl.detectors.components.backbones import find_weights
from adctl.errors import UsageError, unknown_name
from adctl.fetching.catalogue import catalogue, find_entry
from adctl.fetching.datasets import fetch_dataset
from adctl.fetching.finding import find_dataset
from adctl.fetching.weights import fetch_weights
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from adctl.config import TrainSettings
    from adctl.fetching.catalogue import CatalogueEntry


def fetch_missing(settings: TrainSettings, reporter: Reporter = SILENT) -> None:
    """Fetch the dataset and the backbone's weights if `fetch` is set and they are not on this computer.

    Args:
        settings: Settings of the training; nothing happens unless `fetch` is set.
        reporter: Receiver of progress.

    Raises:
        UsageError: The dataset or the model is unknown, or the licence was not accepted.
        FetchError: A download failed.
        DataError: The dataset is not as published.
        OutputError: The files cannot be written.
    """
    if not settings.fetch:
        return
    given_by_path = settings.data is not None or settings.good is not None
    if not given_by_path and (settings.dataset is not None or settings.category is not None):
        _fetch_dataset(settings, reporter)
    if settings.backbone is not None and settings.weights is None:
        _fetch_weights(settings.backbone, reporter)


def _fetch_dataset(settings: TrainSettings, reporter: Reporter) -> None:
    categories = [name.strip() for name in (settings.category or "").split(",") if name.strip()]
    if settings.dataset is not None:
        entry = find_entry(settings.dataset)
    elif categories == [ALL_CATEGORIES] or _is_here(categories):
        return  # opening the dataset raises an error for 'all' without a dataset
    else:
        entry = _holder_of(categories[0])
    if not categories and len(entry.categories) > 1:
        raise UsageError(
            f"{entry.title} has {len(entry.categories)} categories.",
            f"Name one with --category, or --category {ALL_CATEGORIES}.",
        )
    chosen = () if categories == [ALL_CATEGORIES] else tuple(categories)
    fetch_dataset(entry.name, categories=chosen, accept_license=settings.accept_license, reporter=reporter)


def _is_here(categories: list[str]) -> bool:
    try:
        for category in categories:
            find_dataset(category, None)
    except UsageError:
        return False
    return True


def _holder_of(category: str) -> CatalogueEntry:
    entries = catalogue().values()
    holder = next((entry for entry in entries if category in entry.categories), None)
    if holder is None:
        raise unknown_name("category", category, {name for entry in entries for name in entry.categories})
    return holder


def _fetch_weights(backbone: str, reporter: Reporter) -> None:
    try:
        find_weights(backbone, None)
    except UsageError:
        fetch_weights(backbone, reporter=reporter)

"""Which data set a command means: a path, a fetched one, plain folders, or the one a run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl import run_folder
from adctl.data.datasets.layouts import Dataset, categories_in, open_data, open_folders, open_mvtec
from adctl.data.datasets.remote import local_copy
from adctl.errors import UsageError
from adctl.fetching.finding import find_dataset

if TYPE_CHECKING:
    from adctl.config import DataSettings

ALL_CATEGORIES = "all"
"""In place of a category's name: each of them."""


def open_dataset(settings: DataSettings) -> Dataset:
    """Find and read the layout of the data set that the settings name; no image is decoded.

    Raises:
        UsageError: Nothing is named, two things are, or it does not exist; the remedy says what to type.
        DataError: The layout cannot be understood.
    """
    if settings.good is not None:
        if settings.data is not None or settings.dataset is not None:
            raise UsageError("--good stands for a plain folder and cannot go with --data or --dataset.", "Give one.")
        return _open_folders(settings.good, settings.test, settings.masks)
    if settings.test is not None or settings.masks is not None:
        raise UsageError("--test and --masks go with --good.", "Name the folder of good images with --good.")
    if settings.data is not None:
        if settings.dataset is not None:
            raise UsageError("--data and --dataset both name a data set.", "Give one of them.")
        return open_data(local_copy(settings.data), settings.category)
    if settings.dataset is None and settings.category is None:
        raise UsageError(
            "Which images to learn from?",
            "Name a data set with --data DIR, a folder of good images with --good DIR, "
            "or try the built-in one: adctl fetch demo, then --dataset demo.",
        )
    return open_mvtec(find_dataset(settings.category, settings.dataset), settings.category)


def _open_folders(good: Path, *others: Path | None) -> Dataset:
    return open_folders(local_copy(good), *(None if path is None else local_copy(path) for path in others))


def categories_of(settings: DataSettings) -> list[str]:
    """Names of all categories of the data set that the settings name, sorted.

    Raises:
        UsageError: It has none, or none is named.
    """
    path = None if settings.data is None else local_copy(settings.data)
    if path is None and settings.dataset is not None:
        path = find_dataset(None, settings.dataset)
    names = [] if path is None else categories_in(path)
    if not names:
        raise UsageError(
            f"--category {ALL_CATEGORIES} needs a data set of several categories.",
            "Name the folder that holds them with --data DIR, or a fetched one with --dataset NAME.",
        )
    return names


def dataset_of_run(folder: Path) -> Dataset | None:
    """The data set a run was trained on, found again by its manifest; None without a manifest."""
    manifest = run_folder.read_manifest(folder)
    if manifest is None:
        return None
    source: dict[str, Any] = manifest["dataset"]
    if source["layout"] == "folders":
        test, masks = (Path(source[name]) if source[name] else None for name in ("test", "masks"))
        return _open_folders(Path(source["good"]), test, masks)
    # The root of a data set in MVTec AD layout is that of the category itself.
    listed = source["layout"] in {"manifest", "webdataset"}
    return open_data(Path(source["root"]), source["category"] if listed else None)

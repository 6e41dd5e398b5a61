"""Find and open the dataset of a command: a path, a downloaded dataset, plain folders, or the dataset of a run."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from adctl import run_folder
from adctl.data.datasets.ground_truth import sort_by_key
from adctl.data.datasets.grouping import with_groups
from adctl.data.datasets.layouts import Dataset, categories_in, open_data, open_folders, open_mvtec
from adctl.data.datasets.remote import local_copy
from adctl.errors import UsageError, unknown_name
from adctl.fetching.finding import find_dataset

if TYPE_CHECKING:
    from adctl.config import DataSettings
    from adctl.run_folder import RunDataset

ALL_CATEGORIES = "all"
"""Value of `--category` that selects all categories."""


def open_dataset(settings: DataSettings) -> Dataset:
    """Open the dataset that the settings name, with its groups; its layout is read, but no image is decoded.

    Raises:
        UsageError: The settings name no dataset or several, it does not exist, or `group` does not fit its images.
        DataError: The layout is unknown or invalid.
    """
    if settings.one_model:
        joined = _open_joined(settings)
        return joined if settings.group is None else with_groups(joined, settings.group)
    return with_groups(_open(settings), settings.group)


def _open_joined(settings: DataSettings) -> Dataset:
    """Open the categories of --one-model as one dataset."""
    if settings.good is not None or settings.category is None:
        raise UsageError(
            "--one-model needs the categories of a dataset.",
            f"Name them: --data DIR --category {ALL_CATEGORIES} --one-model",
        )
    names = categories_of(settings)
    if settings.category != ALL_CATEGORIES:
        known, names = names, [name for part in settings.category.split(",") if (name := part.strip())]
        for name in names:
            if name not in known:
                raise unknown_name("category", name, known)
    path = local_copy(settings.data) if settings.data is not None else find_dataset(None, settings.dataset)
    return join_categories(path, tuple(dict.fromkeys(names)))


def join_categories(path: Path, names: tuple[str, ...]) -> Dataset:
    """Open several categories as one dataset, whose keys start with the name of the category.

    Args:
        path: Dataset with these categories.
        names: Names of the categories, joined with `+` in the name of the category of the result.

    Raises:
        UsageError: The path cannot be read, or a category is unknown.
        DataError: The dataset is damaged.
    """
    parts = {name: open_data(path, name) for name in names}
    first = next(iter(parts.values()))
    train, test = (
        tuple(replace(sample, key=f"{name}/{sample.key}") for name, part in parts.items() for sample in samples(part))
        for samples in (attrgetter("train"), attrgetter("test"))
    )
    return Dataset(
        name=first.name,
        category="+".join(names),
        root=path,
        layout=first.layout,
        train=sort_by_key(train),
        test=sort_by_key(test),
        ignored=tuple(item for part in parts.values() for item in part.ignored),
        notes=tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes),
        unused_masks=tuple(mask for part in parts.values() for mask in part.unused_masks),
    )


def _open(settings: DataSettings) -> Dataset:
    if settings.good is not None:
        if settings.data is not None or settings.dataset is not None:
            raise UsageError("--good cannot be combined with --data or --dataset.", "Give only one of them.")
        return _open_folders(settings.good, settings.test, settings.masks)
    if settings.test is not None or settings.masks is not None:
        raise UsageError("--test and --masks need --good.", "Give the folder of good images with --good.")
    if settings.data is not None:
        if settings.dataset is not None:
            raise UsageError("--data and --dataset both name a dataset.", "Give only one of them.")
        return open_data(local_copy(settings.data), settings.category)
    if settings.dataset is None and settings.category is None:
        raise UsageError(
            "No training images were given.",
            "Give a dataset with --data DIR or a folder of good images with --good DIR, "
            "or try the demo dataset: adctl fetch demo, then --dataset demo.",
        )
    return open_mvtec(find_dataset(settings.category, settings.dataset), settings.category)


def _open_folders(good: Path, *others: Path | None) -> Dataset:
    return open_folders(local_copy(good), *(None if path is None else local_copy(path) for path in others))


def categories_of(settings: DataSettings) -> list[str]:
    """Return the sorted category names of the dataset that the settings name.

    Raises:
        UsageError: The dataset has no categories, or the settings name no dataset.
    """
    path = None if settings.data is None else local_copy(settings.data)
    if path is None and settings.dataset is not None:
        path = find_dataset(None, settings.dataset)
    names = [] if path is None else categories_in(path)
    if not names:
        raise UsageError(
            f"--category {ALL_CATEGORIES} needs a dataset with several categories.",
            "Give its folder with --data DIR, or a downloaded dataset with --dataset NAME.",
        )
    return names


def dataset_of_run(folder: Path) -> Dataset | None:
    """Open the dataset that a run was trained on, from the run's manifest; return None without a manifest."""
    manifest = run_folder.read_manifest(folder)
    if manifest is None:
        return None
    source = manifest.dataset
    if source.categories:
        joined = join_categories(Path(source.root), source.categories)
        return joined if source.group is None else with_groups(joined, source.group)
    return with_groups(_open_source(source), source.group)


def _open_source(source: RunDataset) -> Dataset:
    if source.layout == "folders" and source.good is not None:
        test, masks = (None if path is None else Path(path) for path in (source.test, source.masks))
        return _open_folders(Path(source.good), test, masks)
    # For the MVTec AD layout, the recorded root is the category's own folder.
    listed = source.layout in {"manifest", "webdataset"}
    return open_data(Path(source.root), source.category if listed else None)

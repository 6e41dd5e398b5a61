"""Check of a dataset: its layout, image counts and sizes, and the findings of all checks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from adctl import files
from adctl.data.checks.duplicates import find_duplicates
from adctl.data.checks.findings import KINDS, Finding, FindingCase, Severity, make_finding
from adctl.data.checks.image_stats import ImageStats, Part, collect_image_stats
from adctl.data.checks.masks import find_faulty_masks
from adctl.data.checks.outliers import (
    find_colour_profiles,
    find_exposure_outliers,
    find_mode_outliers,
    find_size_outliers,
    find_unused_bits,
)
from adctl.data.datasets.folders import find_subfolder, subfolders_of
from adctl.data.datasets.ground_truth import GOOD_NAMES, is_category, test_images
from adctl.data.datasets.grouping import with_groups
from adctl.data.datasets.layouts import Dataset, categories_in, open_data, open_folders
from adctl.data.datasets.manifests import is_manifest
from adctl.data.datasets.remote import local_copy
from adctl.data.datasets.webdataset import find_shards
from adctl.data.groups import group_counts
from adctl.errors import UsageError
from adctl.image_sizes import side_for_images, size_for_aspect, small_defect_advice
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from adctl.config import FetchCheckSettings
    from adctl.records import Sample

FEW_GOOD = 20
"""Number of good images below which a model and its threshold are unreliable."""

_USUAL_SIDE, _LARGEST_SIDE, _USUAL_CELL, _ABOUT_SQUARE, _LONGEST = 256, 384, 12, 1.15, 8.0
"""Input and map cell of the default detector, and the shapes for which the input stays square or becomes no longer."""

_KNOWN_NON_IMAGES = frozenset({".txt", ".md", ".json", ".csv", ".xml", ".html", ".pdf", ".yaml", ".yml"})
"""Suffixes of files that often lie beside images; they are not reported as ignored."""


@dataclass(frozen=True)
class CheckResult:
    """Result of checking one category.

    Attributes:
        path: Root of the category; see `adctl.data.datasets.layouts.Dataset`.
        category: Name of the category.
        layout: Layout of the dataset.
        train_images: Number of good training images.
        test_images: Number of test images by label.
        masks: Number of test images with a mask.
        groups: Number of good images in each group; empty without groups.
        sizes: Number of images by size, such as "640 x 480", most frequent first.
        modes: Number of images by channels and number type, such as "grey uint8", most frequent first.
        notes: Sentences about the interpretation of the layout.
        findings: Findings, most serious first.
    """

    path: Path
    category: str
    layout: str
    train_images: int
    test_images: dict[str, int]
    masks: int
    groups: dict[str, int]
    sizes: dict[str, int]
    modes: dict[str, int]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Return the number of cases with the given severity."""
        return sum(len(found.cases) for found in self.findings if found.severity is severity)


def check_with_sheet(settings: FetchCheckSettings, *, reporter: Reporter = SILENT) -> list[CheckResult]:
    """Check the folder of the settings, and write the contact sheet if they ask for one.

    Returns:
        One result for each category.

    Raises:
        UsageError: No folder is given, there is none, or the sheet would replace a file of the user.
        DataError: No images are found, or the layout is unknown or invalid.
        OutputError: The sheet cannot be written.
    """
    if settings.folder is None:
        raise UsageError("No folder was given.", "Name it: adctl fetch check DIR")
    files.require_replaceable([settings.sheet], overwrite=settings.overwrite)
    checked = check(settings.folder, group=settings.group, reporter=reporter)
    if settings.sheet is not None:
        from adctl.data.checks.contact_sheet import write_contact_sheet

        write_contact_sheet(settings.sheet, checked)
    return checked


def check(path: Path, *, group: str | None = None, workers: int = 2, reporter: Reporter = SILENT) -> list[CheckResult]:
    """Check every image and mask of a dataset.

    Args:
        path: A category in MVTec AD layout, a folder of categories, a plain folder of good images, an archive of any of
            these, WebDataset shards, or a manifest.
        group: Groups of the good images; see `adctl.data.groups`.
        workers: Number of threads that read images.
        reporter: Progress reporter.

    Returns:
        One result for each category.

    Raises:
        UsageError: There is no such folder, or `group` does not fit its images.
        DataError: No images are found, or the layout is unknown or invalid.
    """
    results = []
    for dataset in (with_groups(found, group) for found in _datasets(local_copy(path))):
        with reporter.stage(f"checking {dataset.category}", len(dataset.train) + len(dataset.test)) as update:
            results.append(check_dataset(dataset, workers=workers, update=update))
    return results


def _datasets(path: Path) -> Iterator[Dataset]:
    """Open every category of a dataset; a folder in another layout is opened as a plain folder of good images."""
    names = categories_in(path)
    if names:
        yield from (open_data(path, name) for name in names)
    elif is_manifest(path) or find_shards(path) or is_category(path) or find_subfolder(path, "train"):
        yield open_data(path)
    else:
        good = next((folder for folder in subfolders_of(path) if folder.name.casefold() in GOOD_NAMES), None)
        masks = find_subfolder(path, "ground_truth") or find_subfolder(path, "masks")
        test = find_subfolder(path, "test")
        if good is None and test is not None:
            yield _test_images_only(path, test, masks)
        else:
            yield open_folders(good or path, test, masks if test else None)


def _test_images_only(path: Path, test: Path, masks: Path | None) -> Dataset:
    """Return the dataset of a folder that has test images and masks, but no good training images."""
    found = test_images(test, masks, "test")
    notes = ("There is no folder of good training images, such as train/good or good.", *found.notes)
    return Dataset(path.name, path.name, path, "folders", (), found.samples, found.ignored, notes, found.unused_masks)


def check_dataset(dataset: Dataset, *, workers: int, update: Callable[[int, int | None], None]) -> CheckResult:
    """Check every image and mask of one category."""
    samples: list[tuple[Sample, Part]] = [(sample, "train") for sample in dataset.train]
    samples += [(sample, "test") for sample in dataset.test]
    stats = collect_image_stats(samples, workers, update)
    readable = [image for image in stats if image.error is None]
    found = [
        *_unusable(dataset, stats),
        *find_duplicates(readable),
        *find_faulty_masks(stats, dataset.unused_masks),
        *find_exposure_outliers(readable),
        *find_unused_bits(readable),
        *find_colour_profiles(readable),
        *find_mode_outliers(readable),
        *find_size_outliers(readable),
        *_too_few(dataset),
    ]
    order = list(KINDS)
    return CheckResult(
        path=dataset.root,
        category=dataset.category,
        layout=dataset.layout,
        train_images=len(dataset.train),
        test_images=dataset.test_counts,
        masks=dataset.mask_count,
        groups=group_counts(dataset.train),
        sizes=_count_values(f"{image.width} x {image.height}" for image in readable),
        modes=_count_values(image.mode for image in readable),
        notes=(*dataset.notes, *_small_defects(readable)),
        findings=tuple(sorted(found, key=lambda each: order.index(each.kind))),
    )


def _unusable(dataset: Dataset, stats: Sequence[ImageStats]) -> list[Finding]:
    empty = [item for item in dataset.ignored if item.reason == "empty file"]
    others = [item for item in dataset.ignored if item not in empty]
    left_out = [item for item in others if item.path.suffix.lower() not in _KNOWN_NON_IMAGES]
    corrupt = [FindingCase((image.sample.path,), _error_text(image)) for image in stats if image.error is not None]
    return [
        *make_finding("empty-file", [FindingCase((item.path,), "0 bytes") for item in empty]),
        *make_finding("corrupt", corrupt),
        *make_finding("left-out", [FindingCase((item.path,), item.reason) for item in left_out]),
    ]


def _error_text(image: ImageStats) -> str:
    """Return an image's error and remedy without its path, which the finding shows already."""
    assert image.error is not None
    reason = image.error.message.removeprefix(f"Cannot use the image {image.sample.path}: ")
    return f"{reason} {image.error.remedy}".strip()


def _small_defects(images: Sequence[ImageStats]) -> list[str]:
    """Return advice if the images are much larger than the input of most detectors."""
    if not images:
        return []
    height, width = median(image.height for image in images), median(image.width for image in images)
    longer = max(height / width, width / height)
    aspect = min(longer, _LONGEST) if width > height else 1 / min(longer, _LONGEST)
    side = side_for_images(height, width, _USUAL_SIDE, _LARGEST_SIDE)
    size = size_for_aspect(aspect, side, 32) if longer > _ABOUT_SQUARE else side
    advice = small_defect_advice(height, width, size, _USUAL_CELL)
    return [] if advice is None else [f"With the default detector: {advice[0].lower()}{advice[1:]}"]


def _too_few(dataset: Dataset) -> list[Finding]:
    count = len(dataset.train)
    cases = [FindingCase((dataset.root,), f"{count} good images")] if count < FEW_GOOD else []
    return make_finding("few-images", cases)


def _count_values(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())

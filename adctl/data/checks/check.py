"""A folder, archive or manifest to a report: what was understood of it, and everything that looks wrong.

Knows which checks there are and in which order they are told, nothing of how each works or how it is shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.data.checks.duplicates import find_duplicates
from adctl.data.checks.findings import KINDS, Finding, FindingCase, Severity, make_finding
from adctl.data.checks.image_stats import ImageStats, Part, collect_image_stats
from adctl.data.checks.masks import find_faulty_masks
from adctl.data.checks.outliers import find_exposure_outliers, find_mode_outliers, find_size_outliers
from adctl.data.datasets.folders import find_subfolder, subfolders_of
from adctl.data.datasets.ground_truth import GOOD_NAMES, is_category
from adctl.data.datasets.layouts import categories_in, open_data, open_folders
from adctl.data.datasets.manifests import is_manifest
from adctl.data.datasets.remote import local_copy
from adctl.data.datasets.webdataset import find_shards
from adctl.progress import SILENT, Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from adctl.data.datasets.layouts import Dataset
    from adctl.records import Sample

FEW_GOOD = 20
"""Good images below which a model and its threshold rest on little."""

_NONE_MISSED = frozenset({".txt", ".md", ".json", ".csv", ".xml", ".html", ".pdf", ".yaml", ".yml"})
"""Endings of files that lie beside images and are not taken for one by anybody."""


@dataclass(frozen=True)
class CheckResult:
    """One category and what was found in it.

    Attributes:
        path: What was given, or the category's folder in it.
        category: Its name.
        layout: How it is laid out.
        train_images: Good images to learn from.
        test_images: Test images by label.
        masks: Test images with a mask.
        sizes: Number of images by size as in "640 x 480", the most frequent first.
        modes: Likewise by channels and number type.
        notes: What was understood or assumed, in sentences.
        findings: What looks wrong, worst consequences first.
    """

    path: Path
    category: str
    layout: str
    train_images: int
    test_images: dict[str, int]
    masks: int
    sizes: dict[str, int]
    modes: dict[str, int]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Cases of that severity."""
        return sum(len(found.cases) for found in self.findings if found.severity is severity)


def check(path: Path, *, workers: int = 2, reporter: Reporter = SILENT) -> list[CheckResult]:
    """Look at every image and mask of a data set, and say what is wrong with it.

    Args:
        path: A category in MVTec AD layout or a folder of them, a plain folder of good images, an archive of either,
            or a manifest.
        workers: Threads that read images.
        reporter: Told how far it is.

    Returns:
        One report a category.

    Raises:
        UsageError: There is no such folder.
        DataError: No images are found, or the layout cannot be understood.
    """
    checked = []
    for dataset in _datasets(local_copy(path)):
        with reporter.stage(f"looking at {dataset.category}", len(dataset.train) + len(dataset.test)) as update:
            checked.append(check_dataset(dataset, workers=workers, update=update))
    return checked


def _datasets(path: Path) -> Iterator[Dataset]:
    """Every category of a data set; a folder that is none is one of good images, perhaps with tests beside."""
    names = categories_in(path)
    if names:
        yield from (open_data(path, name) for name in names)
    elif is_manifest(path) or find_shards(path) or is_category(path) or find_subfolder(path, "train"):
        yield open_data(path)
    else:
        good = next((folder for folder in subfolders_of(path) if folder.name.casefold() in GOOD_NAMES), path)
        masks = find_subfolder(path, "ground_truth") or find_subfolder(path, "masks")
        test = None if good is path else find_subfolder(path, "test")
        yield open_folders(good, test, masks if test else None)


def check_dataset(dataset: Dataset, *, workers: int, update: Callable[[int, int | None], None]) -> CheckResult:
    """Look at every image and mask of one category."""
    samples: list[tuple[Sample, Part]] = [(sample, "train") for sample in dataset.train]
    samples += [(sample, "test") for sample in dataset.test]
    looks = collect_image_stats(samples, workers, update)
    readable = [look for look in looks if look.error is None]
    found = [
        *_unusable(dataset, looks),
        *find_duplicates(readable),
        *find_faulty_masks(looks, dataset.unused_masks),
        *find_exposure_outliers(readable),
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
        sizes=_counted(f"{look.width} x {look.height}" for look in readable),
        modes=_counted(look.mode for look in readable),
        notes=dataset.notes,
        findings=tuple(sorted(found, key=lambda each: order.index(each.kind))),
    )


def _unusable(dataset: Dataset, looks: Sequence[ImageStats]) -> list[Finding]:
    empty = [item for item in dataset.ignored if item.reason == "empty file"]
    left_out = [item for item in dataset.ignored if item not in empty and item.path.suffix.lower() not in _NONE_MISSED]
    corrupt = [FindingCase((look.sample.path,), _short(look)) for look in looks if look.error is not None]
    return [
        *make_finding("empty-file", [FindingCase((item.path,), "0 bytes") for item in empty]),
        *make_finding("corrupt", corrupt),
        *make_finding("left-out", [FindingCase((item.path,), item.reason) for item in left_out]),
    ]


def _short(look: ImageStats) -> str:
    """What is wrong with an image and what to do, without its path, which stands beside."""
    assert look.error is not None
    told = look.error.message.removeprefix(f"Cannot use the image {look.sample.path}: ")
    return f"{told} {look.error.remedy}".strip()


def _too_few(dataset: Dataset) -> list[Finding]:
    count = len(dataset.train)
    return make_finding(
        "few-images", [FindingCase((dataset.root,), f"{count} good images")] if count < FEW_GOOD else []
    )


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())

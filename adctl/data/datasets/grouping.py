"""Groups of a dataset's images: from the manifest or from `--group`, with a note for the user."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.data.groups import assign_groups, group_counts, suggest_groups, try_groups

if TYPE_CHECKING:
    from adctl.data.datasets.layouts import Dataset
    from adctl.records import Sample


def with_groups(dataset: Dataset, how: str | None) -> Dataset:
    """Return a dataset whose images have the groups of its manifest, or those that `how` gives them.

    Without either, a note suggests a grouping if one is likely. Test images that `how` does not match get no group.

    Args:
        dataset: The dataset.
        how: Value of `--group`, or None; see `adctl.data.groups`.

    Raises:
        UsageError: `how` is not valid, does not match all good images, or gives them all the same group.
    """
    if how is not None:
        return replace(dataset, train=assign_groups(dataset.train, how), test=_group_tests(dataset.test, how))
    counts = group_counts(dataset.train)
    if len(counts) == 1 and counts.get(dataset.train[0].group or "") == len(dataset.train):
        note = f"All good images are of one group, {next(iter(counts))}: no group can be held out."
        single = tuple(replace(sample, group=None) for sample in dataset.train)
        return replace(dataset, train=single, notes=(*dataset.notes, note))
    suggestion = suggest_groups(dataset.train)
    return replace(dataset, notes=(*dataset.notes, suggestion.text)) if suggestion else dataset


def _group_tests(tests: tuple[Sample, ...], how: str) -> tuple[Sample, ...]:
    """Return test images with groups; the folders of each label are compared for themselves."""
    labels = dict.fromkeys(sample.label for sample in tests)
    parts = {label: [sample for sample in tests if sample.label == label] for label in labels}
    grouped = {sample.key: sample for part in parts.values() for sample in try_groups(part, how)}
    return tuple(grouped[sample.key] for sample in tests)

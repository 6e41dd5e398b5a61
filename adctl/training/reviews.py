"""Reviewed images from which a model learns: readable, new, and in only one of the two folders."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path  # noqa: TC003 - the types of results are read at run time
from typing import TYPE_CHECKING, Literal

from adctl.data.checks.duplicates import similar_pairs
from adctl.data.checks.image_stats import collect_image_stats
from adctl.data.datasets.layouts import list_images
from adctl.data.groups import try_groups
from adctl.errors import DataError
from adctl.evaluation.candidate import CandidateComparison, kind_of
from adctl.model_file import DIGEST_LENGTH
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from adctl.data.checks.image_stats import ImageStats
    from adctl.progress import Reporter
    from adctl.records import Sample

log = logging.getLogger(__name__)

_CROWD = 3
"""Number of good near duplicates from which all parts look alike, so that likeness to a defect says nothing."""

Reason = Literal["known", "copy", "also a defect", "unreadable", "unlike the others"]

Way = Literal["new images alone", "old and new images", "threshold alone"]


@dataclass(frozen=True)
class SetAside:
    """Reviewed image from which the candidate does not learn.

    Attributes:
        path: The image file.
        key: Name of the image in its folder.
        reason: `known` to the model already, a `copy` of another reviewed image, `also a defect` in the folder of
            defects, `unreadable`, or `unlike the others`.
        detail: What was found, in words.
        score: Score by a model that did not learn from it; None unless it is unlike the others.
        limit: Highest score of images that are not unlike the others; None unless it is.
    """

    path: str
    key: str
    reason: Reason
    detail: str
    score: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Reviews:
    """Reviewed images.

    Attributes:
        good: New good images that can be learned from, with their keys in the folder.
        defects: Defects with their kinds as labels.
        digests: SHA-256 of each good image by its key.
        set_aside: Images that were left out.
    """

    good: tuple[Sample, ...]
    defects: tuple[Sample, ...]
    digests: dict[str, str]
    set_aside: tuple[SetAside, ...]


@dataclass(frozen=True)
class UpdateResult:
    """Result of an update.

    Attributes:
        present: Model file that was updated; it stays as it is.
        way: Whether the candidate learned from the new images alone, from the old and the new ones, or whether the new
            images only set its threshold.
        learned: Number of new good images that it learned from.
        held_out: Number of new good images that set its threshold and were not learned from; 0 if their scores are out
            of fold.
        set_aside: Reviewed images that it did not learn from, with reasons.
        comparison: Comparison with the present model.
        notes: Remarks on threshold and images.
    """

    present: Path
    way: Way
    learned: int
    held_out: int
    set_aside: tuple[SetAside, ...]
    comparison: CandidateComparison
    notes: tuple[str, ...]


def read_reviews(
    good: Path, defects: Path | None, known: Collection[str], *, group: str | None, workers: int, reporter: Reporter
) -> Reviews:
    """Read two folders of reviewed images, and leave out those that a model must not or cannot learn from.

    Args:
        good: Folder of images that are called good.
        defects: Folder of defects, with one folder for each kind; None if there are none.
        known: Beginnings, of `DIGEST_LENGTH` digits, of the digests of images that the model knows.
        group: Groups of the good images; see `adctl.data.groups`.
        workers: Threads that read images.
        reporter: Receiver of progress.

    Raises:
        UsageError: A folder does not exist, or `group` is not valid.
        DataError: A folder holds no image.
    """
    called_good = [replace(one, label=GOOD) for one in list_images((good,))[0]]
    if group is not None:
        called_good = try_groups(called_good, group)  # a few images may be of one group
    bad = [replace(one, label=kind_of(one)) for one in list_images((defects,))[0]] if defects is not None else []
    total = len(called_good) + len(bad)
    with reporter.stage("reading the reviewed images", total) as update:
        stats = collect_image_stats([(one, "train") for one in (*called_good, *bad)], workers, update)
    readable = [one for one in stats if one.error is None]
    of_good = [one for one in readable if one.sample.label == GOOD]
    of_bad = [one for one in readable if one.sample.label != GOOD]
    set_aside = [
        SetAside(str(one.sample.path), one.sample.key, "unreadable", one.error.message)
        for one in stats
        if one.error is not None
    ]
    contradictory = _contradictions(of_good, of_bad)
    seen: dict[str, str] = {}
    kept = []
    for one in of_good:
        sample = one.sample
        found = _why_not(one, contradictory, known, seen)
        if found is None:
            seen[one.digest] = sample.key
            kept.append(one)
        else:
            set_aside.append(SetAside(str(sample.path), sample.key, *found))
    _warn(set_aside)
    return Reviews(
        tuple(one.sample for one in kept),
        tuple(one.sample for one in of_bad),
        {one.sample.key: one.digest for one in kept},
        tuple(set_aside),
    )


def require_some(reviews: Reviews, folder: Path) -> None:
    """Raise if no image is left to learn from.

    Raises:
        DataError: There is none; the message says why.
    """
    if reviews.good:
        return
    counts = Counter(one.reason for one in reviews.set_aside)
    why = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    raise DataError(
        f"{folder} has no new good image to learn from: {why or 'it holds none'}.",
        "Review more images, or correct the labels that contradict each other.",
    )


def _why_not(
    one: ImageStats, contradictory: dict[str, str], known: Collection[str], seen: dict[str, str]
) -> tuple[Reason, str] | None:
    """Return the reason against learning from a good image, with details; None if there is none."""
    key = one.sample.key
    if key in contradictory:
        return "also a defect", f"The same picture is among the defects: {contradictory[key]}."
    if one.digest[:DIGEST_LENGTH] in known:
        return "known", "The model knows this image already."
    if one.digest in seen:
        return "copy", f"It is a copy of {seen[one.digest]}."
    return None


def _contradictions(good: list[ImageStats], defects: list[ImageStats]) -> dict[str, str]:
    """Return the path of the defect that shows the same picture, by the key of the good image."""
    by_digest = {one.digest: str(one.sample.path) for one in defects}
    found = {one.sample.key: by_digest[one.digest] for one in good if one.digest in by_digest}
    if not defects:
        return found
    pairs = similar_pairs([*good, *defects])
    crowd: Counter[int] = Counter()
    across: list[tuple[int, int]] = []
    for pair in pairs:
        first, second = sorted(pair[:2])
        if second < len(good):
            crowd.update((first, second))
        elif first < len(good):
            across.append((first, second))
    for first, second in across:
        if crowd[first] < _CROWD:
            found.setdefault(good[first].sample.key, str(defects[second - len(good)].sample.path))
    return found


def _warn(set_aside: Iterable[SetAside]) -> None:
    for one in set_aside:
        if one.reason in ("also a defect", "unreadable"):
            log.warning("%s is not learned from. %s", one.path, one.detail)

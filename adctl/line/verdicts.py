"""One verdict for a part, from the rows of its images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from adctl.records import ScoredImage, Verdict
from adctl.run_folder import new_id
from adctl.scoring.watch_log import file_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.sources.base import Part

T = TypeVar("T")
Combination = Literal["worst", "median"]


def deciding(scored: Sequence[T], row_of: Callable[[T], ScoredImage], how: Combination) -> T:
    """Return the image of a part that decides: that with the highest score, or the upper median.

    An image that could not be judged decides, because it may hide a defect.

    Args:
        scored: Results of the images of one part.
        row_of: Function that returns the row of a result.
        how: Choice.
    """
    for one in scored:
        if row_of(one).score is None:
            return one
    ranked = sorted(scored, key=lambda one: row_of(one).score or 0.0)
    return ranked[-1] if how == "worst" else ranked[len(ranked) // 2]


def fault_row(part: Part) -> ScoredImage:
    """Return the row of a part that cannot be judged."""
    return ScoredImage(part.key, part.key, None, None, None, None, Verdict.ERROR, error=part.fault)


def part_id(part: Part, model: str) -> str:
    """Return the identifier of the verdict on a part.

    Args:
        part: The part.
        model: SHA-256 of the model file.
    """
    return new_id() if part.live or not part.stamp.size else file_id(model, part.key, part.stamp)

"""Thresholds for images of a new group, such as the next lot, from good scores of several groups. Arrays only.

Images of one group resemble each other, so n images of K groups are less evidence than n independent images: about a
new group they say as much as K images. If the K groups and a new one are exchangeable, and so are the images within a
group, hierarchical conformal prediction gives each group the same weight, whatever its size: the score of an image from
group k with n_k images weighs 1 / ((K + 1) n_k), and an infinite score 1 / (K + 1). A new good image of a new group is
then above the threshold with probability at most the weight above the threshold (Lee, Barber & Willett 2023,
"Distribution-free inference with hierarchical data", theorem 1; Dunn, Wasserman & Ramdas 2022, "Distribution-free
prediction sets for two-layer hierarchical models"). The smallest rate that K groups can promise is 1 / (K + 1).

If each group was scored by a model that was fitted without it, the bound is that of the hierarchical jackknife+ of the
same paper, twice the rate.

The promise is an average over groups: some new groups give more false alarms, others fewer. The spread over groups is
estimated by leaving out each group in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import DataError
from adctl.thresholds.conformal import images_needed
from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

METHOD = "new-groups"
"""Name of the method; see `adctl.thresholds.methods`."""

_SIGNIFICANT = 0.01
_FEWEST_GROUPS = 2


@dataclass(frozen=True)
class GroupScores:
    """Good scores of one group, and the false alarms when the other groups set the threshold.

    Attributes:
        group: Name of the group.
        images: Number of its scores.
        median: Median score.
        false_alarm: Share of its scores above the threshold that the scores of the other groups give, 0 to 1.
    """

    group: str
    images: int
    median: float
    false_alarm: float


def by_new_group(good: Scores, groups: Sequence[str], rate: float) -> Threshold:
    """Return the smallest threshold that a good image of a new group exceeds with probability at most `rate`.

    With too few groups no threshold promises the rate. The threshold is then the highest score, its level is the rate
    that this promises, and its note gives the number of groups needed.

    Args:
        good: Good scores [n].
        groups: Group of each score.
        rate: False-alarm rate, 0 to 1.

    Raises:
        DataError: There are no scores, some are not finite, or they are all of one group.
    """
    good = check_scores(good)
    count = _require_groups(groups)
    candidates = np.unique(good)
    allowed = candidates[exceedance(good, groups, candidates) <= rate * (1 + 1e-9)]
    if len(allowed):
        return Threshold(float(allowed[0]), rate)
    note = (
        f"{count} groups cannot promise a false-alarm rate of {rate:g} on a new group: that needs "
        f"{images_needed(rate)}, and 5 % needs {images_needed(0.05)}. The threshold is the highest score of the most "
        f"unusual group, which promises {1 / (count + 1):.3g} and may let most defects pass: take more groups, or the "
        "first parts of each new group (calibrate --line)."
    )
    return Threshold(float(good.max()), 1 / (count + 1), note)


def exceedance(good: Scores, groups: Sequence[str], thresholds: Scores, *, or_equal: bool = False) -> Scores:
    """Return the probability bound [m] that a good image of a new group scores above thresholds [m].

    Args:
        good: Good scores [n].
        groups: Group of each score.
        thresholds: Thresholds [m].
        or_equal: Count scores equal to the threshold too; the bound is then the p-value of a score.
    """
    names, index = np.unique(np.array(groups), return_inverse=True)
    weights = 1 / np.bincount(index)[index]
    order = np.argsort(good)
    below = np.searchsorted(good[order], thresholds, side="left" if or_equal else "right")
    above = np.concatenate([np.cumsum(weights[order][::-1])[::-1], [0.0]])[below]
    return np.asarray((above + 1) / (len(names) + 1))


def promised_rate(groups: Sequence[str], rate: float) -> float:
    """Return the rate that `by_new_group` promises: above `rate` if there are too few groups."""
    return max(rate, 1 / (len(set(groups)) + 1))


def leave_group_out(
    good: Scores, groups: Sequence[str], choose: Callable[[Scores, Sequence[str]], float]
) -> list[GroupScores]:
    """Return the scores of each group, most false alarms first; each group is judged by a threshold from the others.

    Args:
        good: Good scores [n].
        groups: Group of each score.
        choose: Function from scores and their groups to a threshold.

    Returns:
        One entry for each group; empty if there are fewer than two groups.
    """
    names = np.array(groups)
    if len(set(groups)) < _FEWEST_GROUPS:
        return []
    found = []
    for name in sorted(set(groups)):
        own, others = good[names == name], good[names != name]
        threshold = choose(others, names[names != name].tolist())
        found.append(GroupScores(name, len(own), float(np.median(own)), float(np.mean(own > threshold))))
    return sorted(found, key=lambda group: -group.false_alarm)


def groups_differ(good: Scores, groups: Sequence[str]) -> bool:
    """Return whether scores differ between groups by more than chance: Kruskal-Wallis test, p below 0.01."""
    from scipy.stats import kruskal

    names = np.array(groups)
    parts = [good[names == name] for name in sorted(set(groups))]
    if len(parts) < _FEWEST_GROUPS or len(parts) == len(good) or np.ptp(good) == 0:
        return False
    return bool(kruskal(*parts).pvalue < _SIGNIFICANT)


def difference_text(left_out: Sequence[GroupScores]) -> str:
    """Return what scores that differ between groups mean for a new group, in words.

    Args:
        left_out: The result of `leave_group_out`, not empty.
    """
    average = float(np.mean([group.false_alarm for group in left_out]))
    return (
        f"Scores differ between groups: expect up to {100 * left_out[0].false_alarm:.0f} % false alarms on a new one "
        f"(group {left_out[0].group}; {100 * average:.0f} % on average, each of the {len(left_out)} groups left out in "
        "turn). --new-groups sets the threshold for a new group, calibrate --line by its first parts."
    )


def _require_groups(groups: Sequence[str]) -> int:
    count = len(set(groups))
    if count < _FEWEST_GROUPS:
        held = f"all {len(groups)} calibration scores are of one group" if count else "the images have no groups"
        raise DataError(
            f"There is no threshold for a new group: {held}.",
            "Train with --group and images of more groups, or calibrate with good images of several groups: "
            "--good DIR --group folder --new-groups.",
        )
    return count

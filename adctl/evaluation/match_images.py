"""Matching of the images that several scored sets have in common, for a paired comparison.

Images match if their files have the same bytes, whatever their names; if files are missing, by name and size.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl.data import storage
from adctl.errors import UsageError
from adctl.scoring.score_set import ScoreSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from adctl.records import ScoredImage

Identity = tuple[Any, ...]


@dataclass(frozen=True)
class SharedScores(ScoreSet):
    """Rows of a scored set for the images that all compared sets have, in the same order in each set.

    Attributes:
        file_rows: Row number of each image in the files of the scored set.
    """

    file_rows: tuple[int, ...] = ()

    def maps(self, rows: Sequence[int] | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield row numbers and anomaly maps as `ScoreSet.maps` does; the row numbers count the shared images."""
        wanted = range(len(self.file_rows)) if rows is None else rows
        index_of = {self.file_rows[index]: index for index in wanted}
        for file_row, anomaly_map in super().maps(list(index_of)):
            yield index_of[file_row], anomaly_map


@dataclass(frozen=True)
class MatchedSets:
    """Scored sets reduced to the same images in the same order, with the same labels and masks.

    Attributes:
        sets: One reduced set for each set given, in the same order.
        notes: Full sentences that say which images or labels were left out and why.
    """

    sets: tuple[SharedScores, ...]
    notes: tuple[str, ...]


def match_images(sets: Sequence[ScoreSet]) -> MatchedSets:
    """Reduce the sets to the images that all of them have a score for.

    Args:
        sets: Two or more scored sets.

    Raises:
        UsageError: The sets have no image in common.
    """
    identities, notes = _identities(sets)
    rows = [
        {name: index for index, name in enumerate(names) if scores.rows[index].score is not None}
        for scores, names in zip(sets, identities, strict=True)
    ]
    common = [name for name in rows[0] if all(name in other for other in rows[1:])]
    if not common:
        raise UsageError(
            "These scored sets have no image in common, so they cannot be compared.",
            "Score the same images with each model: adctl score FOLDER --model A, then adctl score FOLDER --model B.",
        )
    if any(len(common) < len(scores.rows) for scores in sets):
        sizes = ", ".join(str(len(scores.rows)) for scores in sets)
        notes.append(f"Compared on the {len(common)} images with a score in every set; the sets have {sizes} images.")
    truth, conflicts = _merge_truth(
        [[scores.rows[row_of[name]] for name in common] for scores, row_of in zip(sets, rows, strict=True)]
    )
    if conflicts:
        notes.append(f"Images with different labels in different sets: {conflicts}. They are treated as unlabelled.")
    shared = [
        SharedScores(
            scores.folder,
            scores.manifest,
            tuple(
                replace(scores.rows[row_of[name]], label=label, mask=mask)
                for name, (label, mask) in zip(common, truth, strict=True)
            ),
            scores.calibration,
            tuple(row_of[name] for name in common),
        )
        for scores, row_of in zip(sets, rows, strict=True)
    ]
    return MatchedSets(tuple(shared), tuple(notes))


def _identities(sets: Sequence[ScoreSet]) -> tuple[list[list[Identity]], list[str]]:
    """Return the identity of each row of each set, and notes about the matching."""
    digests: dict[str, str | None] = {}
    for scores in sets:
        for row in scores.rows:
            if row.score is not None and row.path not in digests:
                digests[row.path] = _digest(Path(row.path))
    if None not in digests.values():
        return [_number_copies([(digests.get(row.path),) for row in scores.rows]) for scores in sets], []
    note = "Some image files no longer exist, so images were matched by name and size."
    return [_number_copies([(row.key, row.width, row.height) for row in scores.rows]) for scores in sets], [note]


def _digest(path: Path) -> str | None:
    try:
        return storage.digest(path)
    except OSError:
        return None


def _number_copies(names: Sequence[Identity]) -> list[Identity]:
    """Append a running number to each identity, so that identical copies of an image differ."""
    copies: Counter[Identity] = Counter()
    numbered = []
    for name in names:
        numbered.append((*name, copies[name]))
        copies[name] += 1
    return numbered


def _merge_truth(columns: Sequence[Sequence[ScoredImage]]) -> tuple[list[tuple[str | None, str | None]], int]:
    """Return label and mask of each image from any set that has them, None if labels differ, and how many differ."""
    truth, conflicts = [], 0
    for rows in zip(*columns, strict=True):
        labels = {row.label for row in rows if row.label is not None}
        conflicts += len(labels) > 1
        mask = next((row.mask for row in rows if row.mask is not None), None)
        truth.append((labels.pop(), mask) if len(labels) == 1 else (None, None))
    return truth, conflicts

"""Which images several scored sets have in common, so that they can be compared pair by pair.

An image is known by its bytes, whatever it is called; where files have gone, by name and size. Knows scored sets,
no metric.
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
    """The part of a scored set that others have too, in the order that all of them share.

    Attributes:
        places: The row of each image in the files of the folder.
    """

    places: tuple[int, ...] = ()

    def maps(self, rows: Sequence[int] | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """As for the whole set; rows are counted among the shared ones."""
        wanted = range(len(self.places)) if rows is None else rows
        index_of = {self.places[index]: index for index in wanted}
        for place, anomaly_map in super().maps(list(index_of)):
            yield index_of[place], anomaly_map


@dataclass(frozen=True)
class Shared:
    """Scored sets brought to the same images in the same order, with the same labels and masks.

    Attributes:
        sets: As many as were given, in the same order.
        notes: What was left out and why, in sentences.
    """

    sets: tuple[SharedScores, ...]
    notes: tuple[str, ...]


def shared_images(sets: Sequence[ScoreSet]) -> Shared:
    """Find the images that all sets have a score for.

    Args:
        sets: Two or more.

    Raises:
        UsageError: They have none in common.
    """
    identities, notes = _identities(sets)
    rows = [
        {name: index for index, name in enumerate(names) if one.rows[index].score is not None}
        for one, names in zip(sets, identities, strict=True)
    ]
    common = [name for name in rows[0] if all(name in other for other in rows[1:])]
    if not common:
        raise UsageError(
            "These scored sets have no image in common, so nothing can be compared.",
            "Score the same images with each model: adctl score FOLDER --model A, and so for B.",
        )
    if any(len(common) < len(one.rows) for one in sets):
        sizes = ", ".join(str(len(one.rows)) for one in sets)
        notes.append(f"Compared on the {len(common)} images that all have a score for; the sets hold {sizes}.")
    agreed, conflicts = _agreed(
        [[one.rows[found[name]] for name in common] for one, found in zip(sets, rows, strict=True)]
    )
    if conflicts:
        notes.append(f"{conflicts} images have different labels in different sets and count as unlabelled.")
    shared = [
        SharedScores(
            one.folder,
            one.manifest,
            tuple(
                replace(one.rows[found[name]], label=label, mask=mask)
                for name, (label, mask) in zip(common, agreed, strict=True)
            ),
            one.calibration,
            tuple(found[name] for name in common),
        )
        for one, found in zip(sets, rows, strict=True)
    ]
    return Shared(tuple(shared), tuple(notes))


def _identities(sets: Sequence[ScoreSet]) -> tuple[list[list[Identity]], list[str]]:
    """What each row of each set is known by, and what to know of that."""
    digests: dict[str, str | None] = {}
    for one in sets:
        for row in one.rows:
            if row.score is not None and row.path not in digests:
                digests[row.path] = _digest(Path(row.path))
    if None not in digests.values():
        return [_numbered([(digests.get(row.path),) for row in one.rows]) for one in sets], []
    note = "Some image files are no longer where they were scored: images were matched by name and size."
    return [_numbered([(row.key, row.width, row.height) for row in one.rows]) for one in sets], [note]


def _digest(path: Path) -> str | None:
    try:
        return storage.digest(path)
    except OSError:
        return None


def _numbered(names: Sequence[Identity]) -> list[Identity]:
    """Identical copies told apart by which of them comes first."""
    seen: Counter[Identity] = Counter()
    numbered = []
    for name in names:
        numbered.append((*name, seen[name]))
        seen[name] += 1
    return numbered


def _agreed(columns: Sequence[Sequence[ScoredImage]]) -> tuple[list[tuple[str | None, str | None]], int]:
    """Label and mask of each image, from whichever set knows them; and how many labels contradict each other."""
    found, conflicts = [], 0
    for rows in zip(*columns, strict=True):
        labels = {row.label for row in rows if row.label is not None}
        conflicts += len(labels) > 1
        mask = next((row.mask for row in rows if row.mask is not None), None)
        found.append((labels.pop(), mask) if len(labels) == 1 else (None, None))
    return found, conflicts

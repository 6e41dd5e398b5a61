"""Writing of generated categories in MVTec AD layout, with a record of the settings that they were made with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import documents, files, reading
from adctl.data.images import write_png
from adctl.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Draw = Callable[[Sequence[int], str | None], tuple[NDArray[np.uint8], NDArray[np.bool_]]]

_RECORD = "demo.json"


def write_category(
    target: Path,
    record: dict[str, int],
    defects: Sequence[str],
    draw: Draw,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a category, unless it exists already with the same record.

    Args:
        target: Folder of the category.
        record: Settings, among them `seed`, and the numbers of images `train`, `good` and `per_defect`.
        defects: Defect types.
        draw: Function from a seed and a defect type, or None, to an RGB image and its mask [H,W].
        progress: Called with (done, total) in images.

    Returns:
        The folder.

    Raises:
        OutputError: It cannot be written, or the folder exists but was not made by adctl.
    """
    if target.exists():
        found = _read_record(target)
        if found == record:
            return target
        if found is None:
            raise OutputError(
                f"{target} exists already and was not made by adctl.", "Move it, or choose another folder."
            )
    files.make_folder(target.parent)
    with files.output_errors(target), files.atomic_folder(target) as temporary:
        _write_all(temporary / "new", record, defects, draw, progress)
        if target.exists():
            # Moved aside first: an interruption never leaves an incomplete data set under this name.
            target.rename(temporary / "replaced")
        (temporary / "new").rename(target)
    return target


def _write_all(
    folder: Path,
    record: dict[str, int],
    defects: Sequence[str],
    draw: Draw,
    progress: Callable[[int, int], None] | None,
) -> None:
    plan: list[tuple[str, str, int]] = [("train", "good", record["train"]), ("test", "good", record["good"])]
    plan += [("test", defect, record["per_defect"]) for defect in defects]
    total, done = sum(count for _, _, count in plan), 0
    for group, (part, label, count) in enumerate(plan):
        for index in range(count):
            defect = None if label == "good" else label
            image, mask = draw((record["seed"], group, index), defect)
            write_png(folder / part / label / f"{index:03}.png", image)
            if defect is not None:
                grey = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
                write_png(folder / "ground_truth" / label / f"{index:03}_mask.png", grey)
            done += 1
            if progress is not None:
                progress(done, total)
    # Written last: a folder with a record is complete.
    files.write_json(folder / _RECORD, record)


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = documents.parse(reading.read_bytes(folder / _RECORD), dict)
    except (OSError, ValueError):
        return None
    return record

"""Lineage of a model: from the digests of its images to everything that was made from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl import documents, run_folder
from adctl.tracking import folders

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class LineageNode:
    """One step of a lineage.

    Attributes:
        kind: `images`, `split`, `model`, `updated model`, or the kind of an artifact.
        path: File or folder; empty for images.
        facts: What identifies it, in words: digests, counts, metrics.
        children: Steps made from it.
    """

    kind: str
    path: str
    facts: tuple[str, ...]
    children: tuple[LineageNode, ...] = ()


@dataclass(frozen=True)
class _Split:
    """Keys of the images in each part of a split."""

    train: tuple[Any, ...] = ()
    validation: tuple[Any, ...] = ()
    calibration: tuple[Any, ...] = ()


_REMEDY = "Delete the file; the lineage then lacks the numbers of images."


def lineage_of(folder: Path) -> LineageNode:
    """Return the lineage of a run, with its images at the root, or the model that it updates.

    Raises:
        DataError: A file in the folder is damaged.
    """
    run = folders.read_run(folder)
    split = documents.read(folder / run_folder.SPLIT, _Split, _REMEDY, others="ignore") or _Split()
    parts = [f"{len(images)} {part}" for part, images in vars(split).items() if images]
    model = LineageNode(
        "model",
        str(folder / run.model) if run.model else "",
        tuple(filter(None, (run.arch, run.state, _short(run.model_sha256), run.version and f"adctl {run.version}"))),
        _children(run, run.model or run_folder.MODEL, ()),
    )
    of_split = LineageNode("split", str(folder / run_folder.SPLIT), tuple(parts), (model,))
    images = tuple(filter(None, (run.dataset, run.category, run.images and f"{run.images} images")))
    root = LineageNode("images", "", (*map(str, images), *filter(None, [_short(run.images_sha256)])), (of_split,))
    parent = folders.read_parent(folder)
    if parent is None:
        return root
    return LineageNode("updated model", parent.model, (parent.run, _short(parent.sha256)), (root,))


def _children(run: folders.Run, source: str, above: tuple[str, ...]) -> tuple[LineageNode, ...]:
    """Return what was made from a file or folder of a run; `above` are those that it was made from itself."""
    return tuple(
        LineageNode(
            one.kind,
            os.path.normpath(run.folder / one.path),
            (one.time, *filter(None, [_short(one.sha256)]), *(f"{name} {value:.4g}" for name, value in _shown(one))),
            _children(run, one.path, (*above, source)),
        )
        for one in run.artifacts
        if one.source == source and one.path not in (*above, source)
    )


def _shown(one: folders.Artifact) -> list[tuple[str, float]]:
    return list(one.metrics.items())[:_SHOWN_METRICS]


_SHOWN_METRICS = 3


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}" if digest else ""

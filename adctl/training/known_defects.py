"""Known defects of `--defects`, from which a detector learns beside the good images."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from adctl.data.datasets.folders import find_subfolder
from adctl.data.datasets.ground_truth import test_images
from adctl.data.labelled import LabelledSource
from adctl.data.preprocess import InputSpec
from adctl.data.split import file_digest
from adctl.detectors.components.known_defects import KnownDefects
from adctl.errors import DataError, UsageError
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.config import TrainSettings
    from adctl.data.datasets.layouts import Dataset
    from adctl.detectors.base import Detector, DetectorConfig
    from adctl.records import Sample

log = logging.getLogger(__name__)

_MOST = 400
"""Largest number of images that are learned from; of more, as many are taken evenly."""


def open_known_defects(
    settings: TrainSettings, cls: type[Detector], config: DetectorConfig, dataset: Dataset
) -> tuple[Sample, ...]:
    """Find the images of `--defects`; empty without the flag, and for an update, which is only compared on them.

    Raises:
        UsageError: The detector cannot learn from them, or there is no such folder.
        DataError: The folder has no images, or good ones, or those of another part of the data, or masks without one.
    """
    folder = settings.defects
    if folder is None or settings.update is not None:
        return ()
    if not cls.takes_defects:
        raise UsageError(
            f"{settings.arch} learns from good images alone, without --defects.",
            "Use --arch patchcore, simplenet or padim, or leave it out.",
        )
    if config.tile is not None or config.scales != (1.0,):
        raise UsageError("--defects cannot be combined with tiles.", "Leave one of them out.")
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} of defects.", "Check the path given to --defects.")
    samples = _find(folder)
    _check_parts(samples, dataset, folder)
    if len(samples) > _MOST:
        log.info("Learning from %d of %d known defects.", _MOST, len(samples))
        samples = tuple(samples[place] for place in np.linspace(0, len(samples) - 1, _MOST).round().astype(int))
    return samples


def _find(folder: Path) -> tuple[Sample, ...]:
    masks = find_subfolder(folder, "ground_truth") or find_subfolder(folder, "masks")
    found = test_images(find_subfolder(folder, "test") or folder, masks, "known")
    if not found.samples:
        raise DataError(f"{folder} has no images of defects.", "Put them there, in a folder for each kind if you like.")
    if good := [sample for sample in found.samples if sample.label == GOOD]:
        raise DataError(
            f"{folder} has {len(good)} good images among the defects, such as {good[0].path}.",
            "Move them to the good images of the training.",
        )
    if found.unused_masks:
        raise DataError(
            f"{folder} has {len(found.unused_masks)} masks without an image, such as {found.unused_masks[0]}.",
            "Name each mask like its image, with or without _mask, in a subfolder of the same name.",
        )
    return found.samples


def _check_parts(samples: Sequence[Sample], dataset: Dataset, folder: Path) -> None:
    """Raise if a defect is an image of the training or of the test, whose results would be worthless."""
    own = {file_digest(sample): sample for sample in samples}
    for part, name, remedy in (
        (dataset.train, "good training images", "Remove it from one of the two: it is good or defective."),
        (dataset.test, "test images", "Learn from other images than those that measure the result."),
    ):
        shared = [(own[digest], sample) for sample in part if (digest := file_digest(sample)) in own]
        if shared:
            defect, other = shared[0]
            raise DataError(
                f"{len(shared)} images of --defects {folder} are {name} too, such as {defect.path} = {other.path}.",
                remedy,
            )


def load_known_defects(samples: Sequence[Sample], config: DetectorConfig, workers: int) -> KnownDefects | None:
    """Read known defects and their masks; return None if there are none.

    Raises:
        ImageError: An image or mask cannot be read.
        DataError: A mask and its image differ in size.
    """
    if not samples:
        return None
    source = LabelledSource(samples, InputSpec.from_config(config.model_dump()), workers=workers, reuse=False)
    pixels = np.concatenate(list(source.batches(16)))
    return KnownDefects(torch.from_numpy(pixels), torch.from_numpy(source.defects(range(len(samples)))))

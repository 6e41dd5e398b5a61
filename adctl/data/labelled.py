"""Training images with labels and masks, in the order of an `ImageSource`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.data.images import image_size
from adctl.data.loader import ImageSource
from adctl.data.masks import mask_for
from adctl.data.preprocess import to_network_input

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.records import Sample


class LabelledSource(ImageSource):
    """Images whose defective ones have masks, brought to the network's input as the images are."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._masks: dict[Path, NDArray[np.uint8]] = {}  # packed bits

    def defects(self, indices: Sequence[int]) -> NDArray[np.bool_]:
        """Return the masks [B,H,W] of images by index; good images have empty ones.

        Raises:
            ImageError: A mask cannot be read.
            DataError: A mask and its image differ in size.
        """
        return np.stack([self._defect(self.samples[index]) for index in indices])

    def _defect(self, sample: Sample) -> NDArray[np.bool_]:
        shape = self.spec.height, self.spec.width
        if sample.mask is None:
            return np.zeros(shape, np.bool_)
        if sample.mask not in self._masks:
            width, height = image_size(sample.path)
            mask = mask_for(sample, width, height)
            assert mask is not None
            grey = mask[..., None].astype(np.uint8) * 255
            spec = replace(self.spec, channels=1, masked=self.spec.resize == "pad")
            planes = to_network_input(grey, spec) > 0
            self._masks[sample.mask] = np.packbits(planes.all(2) if spec.masked else planes[..., 0])
        bits = np.unpackbits(self._masks[sample.mask], count=shape[0] * shape[1])
        return bits.reshape(shape).astype(np.bool_)

"""Cache of a frozen network's features for images that return unchanged in each epoch.

Images are identified by keys; features of images without a key are computed each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_SHARE = 0.25
"""Maximum fraction of the memory that is free when the first feature is added; other features are recomputed."""


class FeatureCache:
    """Cache in main memory, in half precision; features are rounded to it even if they are not cached.

    Args:
        room: Maximum bytes; None takes a fraction of the free memory.
    """

    def __init__(self, room: int | None = None) -> None:
        self._room = room
        self._kept: dict[str, Tensor] = {}

    def __call__(self, keys: Sequence[str | None], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Return the features of B images, from the cache if possible.

        Args:
            keys: Key of each image; equal keys mean equal images. None for images that do not return.
            compute: Function from indices of n of the B images to their features [n,...].

        Returns:
            Tensor [B,...] of float32, in main memory.
        """
        new = [place for place, key in enumerate(keys) if key is None or key not in self._kept]
        fresh = dict(zip(new, compute(new).half().cpu(), strict=True)) if new else {}
        rows = [fresh[place] if place in fresh else self._kept[str(key)] for place, key in enumerate(keys)]
        for place, feature in fresh.items():
            self._keep(keys[place], feature)
        return torch.stack([row.float() for row in rows])  # autocast on CPUs mixes no two half precisions

    def _keep(self, key: str | None, feature: Tensor) -> None:
        if self._room is None:
            self._room = int(_SHARE * psutil.virtual_memory().available)
        size = feature.numel() * feature.element_size()
        if key is not None and size <= self._room:
            self._kept[key] = feature.clone()
            self._room -= size

"""Features of a frozen network kept for images that come back unchanged, so that epochs cost no forward pass of it.

Knows nothing of which network, nor of how images are varied: images without a key are computed every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_SHARE = 0.25
"""Of the memory that is free when the first feature comes; what does not fit is computed again."""


class FeatureCache:
    """Keeps in half precision, in main memory; what is returned is rounded alike whether it was kept or not.

    Args:
        room: Bytes it may take; None takes a share of what is free.
    """

    def __init__(self, room: int | None = None) -> None:
        self._room = room
        self._kept: dict[str, Tensor] = {}

    def __call__(self, keys: Sequence[str | None], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Features of B images.

        Args:
            keys: Of each image, the same for the same one; None where it will not come back.
            compute: Numbers of n of the B images to their features [n,...].

        Returns:
            Tensor [B,...] of float32, in main memory.
        """
        new = [place for place, key in enumerate(keys) if key is None or key not in self._kept]
        fresh = dict(zip(new, compute(new).half().cpu(), strict=True)) if new else {}
        rows = [fresh[place] if place in fresh else self._kept[str(key)] for place, key in enumerate(keys)]
        for place, feature in fresh.items():
            self._keep(keys[place], feature)
        return torch.stack(rows).float()

    def _keep(self, key: str | None, feature: Tensor) -> None:
        if self._room is None:
            self._room = int(_SHARE * psutil.virtual_memory().available)
        size = feature.numel() * feature.element_size()
        if key is not None and size <= self._room:
            self._kept[key] = feature.clone()
            self._room -= size

"""Cache of frozen backbones' features that several models share while they are fitted or score the same images.

Folds, seeds and detectors that read the same levels of the same backbone compute them once. Images are identified by
the pixels of the network's input, backbones by their weights. Features are cached unchanged, in main memory; if it is
too small, they are recomputed. The cache exists only within `shared_features`. torch is imported on demand, because
scoring uses this module, and exported models are scored without torch.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from adctl.detectors.components.backbones import Backbone

_SHARE = 0.25
"""Maximum fraction of the memory that is free when sharing begins."""


class SharedFeatureCache:
    """Feature levels of each image, by backbone and pixels.

    Args:
        room: Maximum bytes.

    Attributes:
        hits: Number of images whose features were found in the cache.
    """

    def __init__(self, room: int) -> None:
        self.hits = 0
        self._room = room
        self._kept: dict[bytes, list[Tensor]] = {}
        self._known: WeakKeyDictionary[Backbone, bytes] = WeakKeyDictionary()

    def __call__(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """Return the levels [B,C,h,w] of images [B,C,H,W]; only new images pass through the backbone."""
        import torch

        keys = [self._key(backbone, image) for image in images]
        new = [place for place, key in enumerate(keys) if key not in self._kept]
        if len(new) == len(keys):
            levels: list[Tensor] = backbone(images)
            for place, key in enumerate(keys):
                self._keep(key, [level[place] for level in levels])
            return levels
        self.hits += len(keys) - len(new)
        fresh = backbone(images[new]) if new else []
        of_new = {place: [level[rank] for level in fresh] for rank, place in enumerate(new)}
        rows = [of_new[place] if place in of_new else self._kept[key] for place, key in enumerate(keys)]
        for place in new:
            self._keep(keys[place], of_new[place])
        return [torch.stack([level.to(images.device) for level in column]) for column in zip(*rows, strict=True)]

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count no hits inside the block: a model that uses its own features again shares none."""
        hits = self.hits
        try:
            yield
        finally:
            self.hits = hits

    def clear(self) -> None:
        """Remove all features."""
        self._room += sum(level.nbytes for levels in self._kept.values() for level in levels)
        self._kept.clear()

    def _keep(self, key: bytes, levels: list[Tensor]) -> None:
        size = sum(level.nbytes for level in levels)
        if key not in self._kept and size <= self._room:
            self._kept[key] = [level.detach().cpu().clone() for level in levels]
            self._room -= size

    def _key(self, backbone: Backbone, image: Tensor) -> bytes:
        if backbone not in self._known:
            self._known[backbone] = _identity(backbone)
        return hashlib.sha256(self._known[backbone] + _bytes(image)).digest()


_STORE: ContextVar[SharedFeatureCache | None] = ContextVar("adctl_shared_features", default=None)


@contextmanager
def shared_features(room: int | None = None) -> Iterator[SharedFeatureCache]:
    """Share features inside the block; nested blocks use the cache of the outer block.

    Args:
        room: Maximum bytes; None takes a quarter of the free memory.
    """
    store = _STORE.get()
    if store is not None:
        yield store
        return
    store = SharedFeatureCache(int(_SHARE * psutil.virtual_memory().available) if room is None else room)
    token = _STORE.set(store)
    try:
        yield store
    finally:
        _STORE.reset(token)


@contextmanager
def unshared() -> Iterator[None]:
    """Compute all features inside the block, as required for counting operations."""
    token = _STORE.set(None)
    try:
        yield
    finally:
        _STORE.reset(token)


def sharing() -> bool:
    """Return whether features are shared now; measured times are then shorter than those of a model alone."""
    return _STORE.get() is not None


def backbone_levels(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return the levels [B,C,h,w] of images [B,C,H,W], from the cache if features are shared and gradients are off."""
    import torch

    store = _STORE.get()
    if store is None or torch.is_grad_enabled():
        return list(backbone(images))
    return store(backbone, images)


def _identity(backbone: Backbone) -> bytes:
    """Return a digest of everything that the features depend on: the weights and the levels."""
    digest = hashlib.sha256(repr((backbone.name, backbone.levels, backbone.image_size, backbone.margin)).encode())
    for value in backbone.state_dict().values():
        digest.update(_bytes(value))
    return digest.digest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().numpy().tobytes() + repr(tuple(value.shape)).encode()

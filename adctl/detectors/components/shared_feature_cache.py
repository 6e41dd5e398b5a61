"""Features of frozen backbones kept while several models are fitted on, or score, the same images.

Folds, seeds and detectors that read the same levels of the same backbone compute them once. An image is known by its
pixels as the network sees them, a backbone by its weights. Features are kept as they are, in single precision and in
main memory; what does not fit is computed again. Outside `shared_features` nothing is kept. torch is imported only once
features are computed: scoring asks here, and exported models are scored without it.
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
"""Of the memory that is free when sharing begins."""


class SharedFeatureCache:
    """Levels of each image by backbone and pixels.

    Args:
        room: Bytes it may take.
    """

    def __init__(self, room: int) -> None:
        self.hits = 0
        self._room = room
        self._kept: dict[bytes, list[Tensor]] = {}
        self._known: WeakKeyDictionary[Backbone, bytes] = WeakKeyDictionary()

    def __call__(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """Levels [B,C,h,w] of images [B,C,H,W]; only images not met before go through the backbone."""
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

    def clear(self) -> None:
        """Let go of all features."""
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
    """Keep features while the block runs; within another such block its store is used.

    Args:
        room: Bytes they may take; None takes a quarter of what is free.
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
    """Compute every feature while the block runs, as where operations are counted."""
    token = _STORE.set(None)
    try:
        yield
    finally:
        _STORE.reset(token)


def sharing() -> bool:
    """Whether features are shared now, so that times say nothing of what a model alone would take."""
    return _STORE.get() is not None


def backbone_levels(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Levels [B,C,h,w] of images [B,C,H,W], from memory where they are shared and no gradient is wanted."""
    import torch

    store = _STORE.get()
    if store is None or torch.is_grad_enabled():
        return list(backbone(images))
    return store(backbone, images)


def _identity(backbone: Backbone) -> bytes:
    """What its features depend on: its weights and which levels are read."""
    digest = hashlib.sha256(repr((backbone.name, backbone.levels, backbone.image_size)).encode())
    for value in backbone.state_dict().values():
        digest.update(_bytes(value))
    return digest.digest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().numpy().tobytes() + repr(tuple(value.shape)).encode()

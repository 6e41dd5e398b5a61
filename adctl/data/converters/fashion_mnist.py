"""Fashion-MNIST (Xiao et al., 2017): the files of MNIST with garments for digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.data.converters.mnist import find, read_as

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from adctl.data.converters.items import Item

__all__ = ["find", "read"]


def read(place: Path, category: str) -> Iterator[Item]:
    """One garment against the others."""
    yield from read_as("fashion_mnist", place, category)

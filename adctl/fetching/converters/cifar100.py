"""CIFAR-100 in its binary version (Krizhevsky, 2009), as a one-class benchmark over its 20 superclasses.

cifar-100-binary/train.bin, test.bin
record: 1 byte superclass, 1 byte class, 3072 bytes red, green and blue planes of 32 x 32
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.cifar10 import read_records
from adctl.fetching.converters.items import find_root
from adctl.fetching.converters.one_class import one_class_items

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from adctl.fetching.converters.items import Item

_LABEL_BYTES = 2


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the folder of the files, which contain all classes, for each class."""
    root = find_root(tree, lambda folder: all((folder / name).is_file() for name in ("train.bin", "test.bin")))
    return {} if root is None else dict.fromkeys(known, root)


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield one superclass as good and the others as defective."""
    train, test = (read_records([place / name], _LABEL_BYTES) for name in ("train.bin", "test.bin"))
    yield from one_class_items(known, category, train, test)

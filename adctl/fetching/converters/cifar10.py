"""CIFAR-10 in its binary version (Krizhevsky, 2009), as a one-class benchmark.

    cifar-10-batches-bin/data_batch_{1..5}.bin, test_batch.bin
    record: 1 byte class, 3072 bytes red, green and blue planes of 32 x 32

torchvision reads only the Python version, which is pickled; adctl never unpickles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import DataError
from adctl.fetching.converters.items import find_root
from adctl.fetching.converters.one_class import one_class_items

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.fetching.converters.items import Item

_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the folder of the files, which contain all classes, for each class."""
    root = find_root(tree, lambda folder: all((folder / name).is_file() for name in (*_TRAIN, _TEST)))
    return {} if root is None else dict.fromkeys(known, root)


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield one class as good and the others as defective."""
    yield from one_class_items(
        known, category, read_records([place / name for name in _TRAIN]), read_records([place / _TEST])
    )


def read_records(paths: Sequence[Path], label_bytes: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images [N,32,32,3] and class numbers [N] of some files; the first of `label_bytes` labels is used.

    Raises:
        DataError: A file does not consist of complete records.
    """
    length = label_bytes + _PIXELS
    data = [np.fromfile(path, np.uint8) for path in paths]
    for path, values in zip(paths, data, strict=True):
        if not len(values) or len(values) % length:
            raise DataError(f"{path} does not consist of complete records of {length} bytes.", "Fetch it again.")
    table = np.concatenate(data).reshape(-1, length)
    planes = table[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), table[:, 0]

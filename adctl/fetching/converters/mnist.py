"""MNIST (LeCun et al., 1998) and data sets in its format, as one-class benchmarks.

    train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz

torchvision reads the files and downloads nothing.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adctl.errors import DataError
from adctl.fetching.converters.items import find_root
from adctl.fetching.converters.one_class import one_class_items

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adctl.fetching.converters.items import Item

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_LARGEST = 50_000_000
"""Limit for the unpacked size of a file in bytes; the largest published file is slightly smaller."""


def find(tree: Path, known: Sequence[str]) -> dict[str, Path]:
    """Return the folder of the four files, which contain all classes, for each class."""
    root = find_root(tree, lambda folder: all((folder / f"{name}.gz").is_file() for name in _FILES))
    return {} if root is None else dict.fromkeys(known, root)


def read(place: Path, category: str, known: Sequence[str]) -> Iterator[Item]:
    """Yield one class as good and the others as defective."""
    yield from one_class_items(known, category, *_arrays(place))


def _arrays(place: Path) -> tuple[Any, Any]:
    """Return images [N,28,28] and class numbers [N] for training and for testing."""
    import torchvision

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in _FILES:
            (raw / name).write_bytes(_unpacked(place / f"{name}.gz"))
        try:
            parts = [torchvision.datasets.MNIST(folder, train=train) for train in (True, False)]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise DataError(
                f"The files in {place} are not in the format of MNIST: {error}.", "Fetch them again."
            ) from error
        train, test = [(part.data.numpy(), part.targets.numpy()) for part in parts]
    return train, test


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            data = stream.read(_LARGEST + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}.", "Fetch it again.") from error
    if len(data) > _LARGEST:
        raise DataError(f"{path} unpacks to more bytes than any file of this data set.", "Fetch it again.")
    return data

"""Classification data as an anomaly benchmark (Ruff et al., "Deep One-Class Classification", ICML 2018).

One class is good: its training images are learned from. The test images of all classes are tested, those of the
others under their class's name. There are no masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.data.catalogue import find_entry
from adctl.data.converters.items import TRAIN, Draw
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from adctl.data.converters.items import Item


def draw(
    dataset: str,
    category: str,
    train: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    test: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> Iterator[Item]:
    """One class against the others.

    Args:
        dataset: Of the catalogue; the order of its categories numbers the classes.
        category: The good class.
        train: Images [N,H,W] or [N,H,W,3], uint8, and the numbers of their classes [N].
        test: Likewise.
    """
    names = find_entry(dataset).categories
    for index, (pixels, number) in enumerate(zip(*train, strict=True)):
        if names[number] == category:
            yield Draw(pixels, f"{TRAIN}/{index:05}.png")
    for index, (pixels, number) in enumerate(zip(*test, strict=True)):
        label = GOOD if names[number] == category else names[number]
        yield Draw(pixels, f"test/{label}/{index:05}.png")

"""Classification data sets as one-class benchmarks (Ruff et al., "Deep One-Class Classification", ICML 2018).

The training images of one class are the good training images. The test images of all classes are test images; those of
other classes are defective and labelled with their class. There are no masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.fetching.converters.items import TRAIN, WriteImage
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from adctl.fetching.converters.items import Item


def one_class_items(
    classes: Sequence[str],
    category: str,
    train: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    test: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> Iterator[Item]:
    """Yield one class as good training images and every class as test images.

    Args:
        classes: Class names in the order of the class numbers.
        category: The good class.
        train: Training images [N,H,W] or [N,H,W,3], uint8, and their class numbers [N].
        test: Test images and their class numbers, in the same form.
    """
    for index, (pixels, number) in enumerate(zip(*train, strict=True)):
        if classes[number] == category:
            yield WriteImage(pixels, f"{TRAIN}/{index:05}.png")
    for index, (pixels, number) in enumerate(zip(*test, strict=True)):
        label = GOOD if classes[number] == category else classes[number]
        yield WriteImage(pixels, f"test/{label}/{index:05}.png")

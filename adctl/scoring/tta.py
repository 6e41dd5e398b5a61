"""Test-time augmentation: the detector predicts several views of an image, and the results are averaged.

| view        | change to the image                 | images   |
|-------------|-------------------------------------|----------|
| `hflip`     | left and right swapped              | any      |
| `vflip`     | top and bottom swapped              | any      |
| `rot90`     | rotated 90 degrees counter-clockwise| square   |
| `transpose` | rows and columns swapped            | square   |

The unchanged image is always one of the views. Anomaly maps are transformed back before they are averaged. Averaging
changes the scores, so a threshold is valid only for the views of its calibration. Augmentation helps if parts appear
in any orientation; if a part always has the same orientation, its mirror image looks anomalous to the detector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adctl.errors import UsageError, unknown_name
from adctl.runtimes.base import RuntimeOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.data.preprocess import InputSpec
    from adctl.model_file import ModelHeader
    from adctl.runtimes.base import Runtime

Predict = Callable[[NDArray[Any]], RuntimeOutput]
"""Function from pixels [B,H,W,C] to scores [B] and anomaly maps [B,h,w]."""


@dataclass(frozen=True)
class View:
    """Transformation of an image and its inverse for anomaly maps.

    Attributes:
        apply: Function that transforms pixels [B,H,W,...].
        undo: Function that transforms anomaly maps [B,h,w] back.
        square: Whether height and width are swapped, which needs square images.
    """

    apply: Callable[[NDArray[Any]], NDArray[Any]]
    undo: Callable[[NDArray[Any]], NDArray[Any]]
    square: bool = False


def _left_right(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, :, ::-1]


def _up_down(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, ::-1]


def _swap_axes(values: NDArray[Any]) -> NDArray[Any]:
    return values.swapaxes(1, 2)


VIEWS = {
    "hflip": View(_left_right, _left_right),
    "vflip": View(_up_down, _up_down),
    "rot90": View(lambda pixels: np.rot90(pixels, 1, (1, 2)), lambda maps: np.rot90(maps, -1, (1, 2)), square=True),
    "transpose": View(_swap_axes, _swap_axes, square=True),
}
"""All views by name."""


def parse_views(text: str) -> tuple[str, ...]:
    """Parse a list of views such as `hflip,vflip`, and remove duplicates.

    Raises:
        UsageError: A view is unknown.
    """
    return _check_names(tuple(dict.fromkeys(part.strip() for part in text.split(","))))


class TestTimeAugmentation:
    """Prediction of the unchanged image and of each view, with averaged scores and maps.

    Args:
        predict: Function from contiguous pixels [B,H,W,C] to scores and anomaly maps.
        views: Names from `VIEWS`.

    Raises:
        UsageError: A view is unknown.
    """

    __test__ = False  # keeps pytest from collecting this class as a test

    def __init__(self, predict: Predict, views: Sequence[str]) -> None:
        self.predict = predict
        self.views = _check_names(tuple(views))

    def __call__(self, pixels: NDArray[Any]) -> RuntimeOutput:
        """Predict pixels [B,H,W,C]; return mean scores [B] and mean anomaly maps [B,h,w].

        The output of a classifier in the same graph is that of the unchanged image.

        Raises:
            UsageError: A view needs square images, and these images are not square.
        """
        require_square(self.views, *pixels.shape[1:3])
        unchanged = self.predict(pixels)
        scores, maps = unchanged.scores, unchanged.maps
        for name in self.views:
            view = VIEWS[name]
            output = self.predict(np.ascontiguousarray(view.apply(pixels)))
            scores, maps = scores + output.scores, maps + view.undo(output.maps)
        count = len(self.views) + 1
        maps = np.ascontiguousarray(maps / count)
        return RuntimeOutput(scores / count, maps, unchanged.distances, unchanged.logits)


class AugmentedRuntime:
    """Runtime that applies test-time augmentation to another runtime.

    Args:
        runtime: Runtime to augment.
        views: Names from `VIEWS`.

    Raises:
        UsageError: A view is unknown, or needs square images while the model's input is not square.
    """

    def __init__(self, runtime: Runtime, views: Sequence[str]) -> None:
        self.runtime = runtime
        self.name: str = runtime.name
        self.header: ModelHeader = runtime.header
        self.input: InputSpec = runtime.input
        self.device: str = runtime.device
        self.callers: int = runtime.callers
        self._predict = TestTimeAugmentation(runtime.predict, views)
        require_square(self._predict.views, self.input.height, self.input.width)

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C] of uint8 that already have the format of `input`."""
        return self._predict(pixels)


def with_views(runtime: Runtime, views: Sequence[str]) -> Runtime:
    """Return the runtime with test-time augmentation, or the runtime itself if there are no views."""
    return AugmentedRuntime(runtime, views) if views else runtime


def _check_names(views: tuple[str, ...]) -> tuple[str, ...]:
    for name in views:
        if name not in VIEWS:
            raise unknown_name("view", name, VIEWS)
    return views


def require_square(views: Sequence[str], height: int, width: int) -> None:
    """Raise a `UsageError` if a view needs square images and these are not square."""
    for name in views:
        if VIEWS[name].square and height != width:
            raise UsageError(
                f"The view '{name}' needs square images, and these are {height} x {width} pixels.",
                "Use only hflip and vflip.",
            )

"""Test-time augmentation: a detector sees an image in several views, and what it says is averaged.

| view        | what the detector sees              | images   |
|-------------|-------------------------------------|----------|
| `hflip`     | left and right exchanged            | any      |
| `vflip`     | top and bottom exchanged            | any      |
| `rot90`     | a quarter turn counter-clockwise    | square   |
| `transpose` | rows and columns exchanged          | square   |

The image as it is always counts as one view. Maps are turned back before they are averaged. An averaged score
is lower than the highest of its views: a threshold holds only for the views it was calibrated with. Helps where
parts lie in any orientation; a part that is always shown the same way looks strange to the detector when it is
mirrored. Knows nothing of thresholds.
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
"""Pixels [B,H,W,C] to scores [B] and maps [B,h,w]."""


@dataclass(frozen=True)
class View:
    """One way to look at an image.

    Attributes:
        turn: Pixels [B,H,W,...] as the detector sees them.
        undo: Maps [B,h,w] turned back.
        square: Whether it exchanges height and width.
    """

    turn: Callable[[NDArray[Any]], NDArray[Any]]
    undo: Callable[[NDArray[Any]], NDArray[Any]]
    square: bool = False


def _left_right(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, :, ::-1]


def _up_down(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, ::-1]


def _exchange(values: NDArray[Any]) -> NDArray[Any]:
    return values.swapaxes(1, 2)


VIEWS = {
    "hflip": View(_left_right, _left_right),
    "vflip": View(_up_down, _up_down),
    "rot90": View(lambda pixels: np.rot90(pixels, 1, (1, 2)), lambda maps: np.rot90(maps, -1, (1, 2)), square=True),
    "transpose": View(_exchange, _exchange, square=True),
}
"""By name."""


def parse_views(text: str) -> tuple[str, ...]:
    """Read `hflip,vflip`; a name counts once.

    Raises:
        UsageError: A view is unknown.
    """
    return _known(tuple(dict.fromkeys(part.strip() for part in text.split(","))))


class TestTimeAugmentation:
    """Predicts with the image as it is and with each view, one after the other, and averages.

    Args:
        predict: Pixels [B,H,W,C] to scores and maps; is given whole, contiguous arrays.
        views: Names from `VIEWS`.

    Raises:
        UsageError: A view is unknown.
    """

    __test__ = False  # pytest takes classes whose names begin with Test for tests

    def __init__(self, predict: Predict, views: Sequence[str]) -> None:
        self.predict = predict
        self.views = _known(tuple(views))

    def __call__(self, pixels: NDArray[Any]) -> RuntimeOutput:
        """Pixels [B,H,W,C] to mean scores [B] and mean maps [B,h,w].

        Raises:
            UsageError: A view needs square images and these are not.
        """
        _require_square(self.views, *pixels.shape[1:3])
        plain = self.predict(pixels)
        scores, maps = plain.scores, plain.maps
        for name in self.views:
            view = VIEWS[name]
            seen = self.predict(np.ascontiguousarray(view.turn(pixels)))
            scores, maps = scores + seen.scores, maps + view.undo(seen.maps)
        count = len(self.views) + 1
        return RuntimeOutput(scores / count, np.ascontiguousarray(maps / count))


class AugmentedRuntime:
    """A runtime that looks at each image in several views; stands wherever a runtime does.

    Args:
        runtime: Any.
        views: Names from `VIEWS`.

    Raises:
        UsageError: A view is unknown, or needs square images where the model takes others.
    """

    def __init__(self, runtime: Runtime, views: Sequence[str]) -> None:
        self.runtime = runtime
        self.name: str = runtime.name
        self.header: ModelHeader = runtime.header
        self.input: InputSpec = runtime.input
        self.device: str = runtime.device
        self.callers: int = runtime.callers
        self._predict = TestTimeAugmentation(runtime.predict, views)
        _require_square(self._predict.views, self.input.height, self.input.width)

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C] of uint8, brought to `input` already."""
        return self._predict(pixels)


def with_views(runtime: Runtime, views: Sequence[str]) -> Runtime:
    """The runtime itself where there are no views, one that averages over them otherwise."""
    return AugmentedRuntime(runtime, views) if views else runtime


def _known(views: tuple[str, ...]) -> tuple[str, ...]:
    for name in views:
        if name not in VIEWS:
            raise unknown_name("view", name, VIEWS)
    return views


def _require_square(views: Sequence[str], height: int, width: int) -> None:
    for name in views:
        if VIEWS[name].square and height != width:
            raise UsageError(
                f"The view '{name}' needs square images, and these are {height} x {width} pixels.",
                "Use hflip and vflip only.",
            )

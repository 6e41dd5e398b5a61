"""Model for prediction from Python: image files or arrays give scores, anomaly maps, boxes and verdicts.

Scores and verdicts are the same as those of `adctl score` with the same runtime.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from adctl.data.loader import ArraySample
from adctl.errors import ImageError, UsageError
from adctl.paths import StrPath
from adctl.records import Sample, Verdict
from adctl.scoring.heatmaps import upsample
from adctl.scoring.naming import with_names
from adctl.scoring.predict import predict
from adctl.scoring.score import open_model, to_row
from adctl.thresholds.decision import DecisionRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.records import Box, Calibration, ScoredImage
    from adctl.runtimes.base import Runtime
    from adctl.scoring.predict import PredictedImage

ImageLike: TypeAlias = StrPath | NDArray[Any]
"""An image file, or an array: height x width x 3 (RGB) or height x width (grey), of uint8."""


@dataclass(frozen=True, eq=False)
class ImagePrediction:
    """Prediction for one image.

    Attributes:
        path: Image file; None for an array.
        score: Raw anomaly score; higher is more anomalous.
        verdict: Verdict of the model's calibration; `uncalibrated` without calibration.
        p_value: Conformal p-value; None without calibration.
        probability: Probability that the image is anomalous, 0 to 1; None without calibration.
        boxes: Anomalous regions in pixels of the image, highest peak first; empty if the verdict is good.
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        cells: Anomaly map [h,w] of float32 in the detector's own resolution; it covers the whole image.
        kind: Kind of defect by the classifier, or `unknown`; None if the image was not named.
        kind_probability: Probability of the most probable kind, 0 to 1, or None.
    """

    path: Path | None
    score: float
    verdict: Verdict
    p_value: float | None
    probability: float | None
    boxes: tuple[Box, ...]
    width: int
    height: int
    cells: NDArray[np.float32]
    kind: str | None = None
    kind_probability: float | None = None

    @cached_property
    def map(self) -> NDArray[np.float32]:
        """Raw anomaly map at the size of the image: array [height,width] of float32."""
        return upsample(self.cells, self.height, self.width)


class Model:
    """Model file opened for prediction; use `adctl.load` to create it.

    It uses the tiling and region of interest of the model, and the test-time augmentation of its calibration.

    Args:
        path: Model file: `model.safetensors`, or an exported model, which needs no PyTorch.
        device: Device to compute on: `auto`, `cpu`, `cuda` or `mps`.
        gpu: Number of a CUDA GPU; implies `cuda`.
        runtime: Name of the runtime; `auto` chooses the fastest runtime that was verified against PyTorch.
        batch_size: Number of images in a batch; `auto` chooses it for the device.
        workers: Number of threads that read images.
        classifier: Model file of a classifier that names the defects; None takes that of an export of both, if any.
        classify: Images that it names: `rejected`, `flagged` (also those to inspect) or `all`.

    Raises:
        UsageError: The device or the runtime does not exist here, or the classifier does not go with the model.
        ModelFileError: The file cannot be used.
        MissingExtraError: The runtime is not installed.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        device: str = "auto",
        gpu: int | None = None,
        runtime: str = "auto",
        batch_size: int | str = "auto",
        workers: int = 2,
        classifier: StrPath | None = None,
        classify: str = "rejected",
    ) -> None:
        self.path = Path(path)
        opened = open_model(self.path, device, gpu, runtime)
        given = None if classifier is None else Path(classifier)
        self._runtime: Runtime = with_names(opened, self.path, given, classify)
        self._rule = DecisionRule(self.calibration) if self.calibration else None
        self._batch_size = batch_size
        self._workers = workers

    def __repr__(self) -> str:
        return f"<adctl.Model {self.arch} from {self.path}, {self.runtime} on {self.device}>"

    @property
    def arch(self) -> str:
        """Name of the detector."""
        return self._runtime.header.arch

    @property
    def calibration(self) -> Calibration | None:
        """Thresholds with their calibration scores; None for a model without calibration."""
        return self._runtime.header.calibration

    @property
    def runtime(self) -> str:
        """Name of the runtime."""
        return self._runtime.name

    @property
    def device(self) -> str:
        """Name of the device."""
        return self._runtime.device

    @overload
    def predict(self, images: ImageLike) -> ImagePrediction: ...  # type: ignore[overload-overlap]  # a str is one image
    @overload
    def predict(self, images: Sequence[ImageLike]) -> list[ImagePrediction]: ...
    def predict(self, images: ImageLike | Sequence[ImageLike]) -> ImagePrediction | list[ImagePrediction]:
        """Predict one image, or several in batches.

        Args:
            images: An image file, an array, or a list of files and arrays. Arrays are height x width x 3 in RGB order
                (OpenCV reads BGR) or height x width for grey, of uint8; uint16 and floating point from 0 to 1 are
                converted to 8 bits as in image files. Models with other channels take height x width x channels.

        Returns:
            One prediction for a single image; for a list, a list of predictions in the same order.

        Raises:
            ImageError: An image cannot be read or used. (`adctl.score` gives such an image an error row instead.)
            UsageError: `images` is not a path, an array or a list of them.
        """
        if isinstance(images, Iterable) and not isinstance(images, str | os.PathLike | np.ndarray):
            return self._predict(list(images))
        return self._predict([images])[0]

    def _predict(self, images: list[ImageLike]) -> list[ImagePrediction]:
        samples = [_sample(image, number) for number, image in enumerate(images)]
        # A single image is read in this thread, because starting other threads would take longer.
        workers = 0 if len(samples) == 1 else self._workers
        predictions = predict(self._runtime, samples, batch_size=self._batch_size, workers=workers)
        with closing(predictions):
            return [self._to_prediction(predicted) for predicted in predictions]

    def _to_prediction(self, predicted: PredictedImage) -> ImagePrediction:
        if predicted.item.error is not None:
            raise predicted.item.error
        sample = predicted.item.sample
        row: ScoredImage = to_row(predicted, self._rule)
        if row.score is None or predicted.anomaly_map is None:
            raise ImageError(str(row.error), "Train the model again, or score with another runtime.")
        return ImagePrediction(
            path=None if isinstance(sample, ArraySample) else sample.path,
            score=row.score,
            verdict=row.verdict,
            p_value=row.p_value,
            probability=row.probability,
            boxes=row.boxes,
            width=predicted.item.width,
            height=predicted.item.height,
            cells=predicted.anomaly_map,
            kind=row.kind,
            kind_probability=row.kind_probability,
        )


def _sample(image: ImageLike, number: int) -> Sample:
    if isinstance(image, np.ndarray):
        name = f"array {number}"
        return ArraySample(Path(name), name, array=image)
    if isinstance(image, str | os.PathLike):
        return Sample(Path(image), Path(image).name)
    raise UsageError(
        f"Image {number} is of type {type(image).__name__}, not a path or an array.",
        "Give the path of an image file, a NumPy array, or a list of them.",
    )

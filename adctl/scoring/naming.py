"""Names of defects beside verdicts: a classifier names the rejected images, in the pass of the detector if it can.

| detector and classifier                              | pixels               | backbone                    |
|------------------------------------------------------|----------------------|-----------------------------|
| one exported graph of both                           | those of the detector | that of the detector goes on |
| same input, backbone and weights, PyTorch on the CPU | those of the detector | that of the detector goes on |
| same input                                           | those of the detector | second pass                 |
| anything else, such as tiles or another size         | read again           | second pass                 |

Only the images to name pay for more than the detector.
"""

from __future__ import annotations

import copy
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.data.loader import load_image, stack_pixels
from adctl.errors import UsageError
from adctl.files import sha256_file
from adctl.records import Verdict
from adctl.runtimes.metadata import classifier_in
from adctl.scoring.tta import AugmentedRuntime
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from adctl.classification.header import ClassifierHeader
    from adctl.classification.shared_pass import SharedPass
    from adctl.config import ScoreSettings
    from adctl.data.loader import LoadedImage
    from adctl.data.preprocess import InputSpec
    from adctl.model_file import ModelHeader
    from adctl.records import Calibration
    from adctl.runtimes.base import Runtime, RuntimeOutput

log = logging.getLogger(__name__)

NAMED = {
    "rejected": frozenset({Verdict.REJECT}),
    "flagged": frozenset({Verdict.REJECT, Verdict.WARN}),
    "all": frozenset({Verdict.GOOD, Verdict.WARN, Verdict.REJECT, Verdict.UNCALIBRATED}),
}
"""Verdicts of the images that get a name, by the value of `--classify`."""

_COLOURS = 3


@dataclass(frozen=True)
class DefectName:
    """Name of an image's defect.

    Attributes:
        kind: Name of the kind, or `unknown`.
        probability: Probability of the most probable kind, 0 to 1.
    """

    kind: str
    probability: float


class NamingRuntime:
    """Runtime of a detector, with a classifier that names images by their verdict.

    Args:
        runtime: Runtime of the detector, with its views.
        path: Model file of the classifier.
        which: A key of `NAMED`.

    Raises:
        ModelFileError: The file is no classifier, or is damaged.
        UsageError: The model has no thresholds by which images are rejected, or the images of detector and classifier
            differ in their channels.
    """

    def __init__(self, runtime: Runtime, path: Path, which: str) -> None:
        from adctl.classification.model_file import load_classifier

        self.path, self.which = path, which
        self.classifier, self.classes_header = load_classifier(path)
        self.runtime = runtime
        self.name: str = runtime.name
        self.input: InputSpec = runtime.input
        self.device: str = runtime.device
        self.callers: int = runtime.callers
        _check(self, which)
        self._calibration: Calibration | None = None
        self._same_pixels = not self.input.tiled and self.input == self.classifier.input
        self._place()
        self._shared = self._share()

    def _place(self) -> None:
        import torch

        device = self.device if self.device.startswith(("cuda", "mps")) else "cpu"
        self._device = torch.device(device)
        self.classifier.to(self._device).to(memory_format=torch.channels_last)

    def _share(self) -> SharedPass | None:
        """Return the shared pass if the runtime is PyTorch on the CPU, and the backbone is the same."""
        if not self._same_pixels or self.name != "torch" or self.device != "cpu":
            return None
        from adctl.classification.shared_pass import shared_pass
        from adctl.runtimes.torch import TorchRuntime

        if not isinstance(self.runtime, TorchRuntime):
            return None
        return shared_pass(self.runtime.detector, self.classifier)

    @property
    def shares(self) -> bool:
        """Whether detector and classifier share one backbone pass."""
        return self._shared is not None

    @property
    def header(self) -> ModelHeader:
        """Header of the detector."""
        return self.runtime.header

    @header.setter
    def header(self, value: ModelHeader) -> None:
        self.runtime.header = value

    def judged_by(self, calibration: Calibration | None) -> NamingRuntime:
        """Return a copy that names images by the verdicts of another calibration; networks are shared."""
        other = copy.copy(self)
        other._calibration = calibration  # noqa: SLF001 - of the same class
        return other

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8, that already have the format of `input`."""
        if self._shared is not None:
            self._shared.start()
        return self.runtime.predict(pixels)

    def names(
        self, items: Sequence[LoadedImage], scores: Sequence[float] | NDArray[np.float64]
    ) -> list[DefectName | None]:
        """Name the images whose verdict asks for it, directly after `predict` and in the same thread.

        Args:
            items: Readable images, in the order of `predict`.
            scores: Their raw scores.
        """
        found: list[DefectName | None] = [None] * len(items)
        wanted, calibration = NAMED[self.which], self._calibration or self.header.calibration
        chosen = [place for place, score in enumerate(scores) if _verdict(score, calibration) in wanted]
        if not chosen:
            return found
        output = self._same_pass(items, chosen)
        for place, name in zip(*(output or self._second_pass(items, chosen)), strict=True):
            found[place] = name
        return found

    def _same_pass(self, items: Sequence[LoadedImage], chosen: list[int]) -> tuple[list[int], list[DefectName]] | None:
        """Return the names of the chosen images by the shared pass; None if there is none."""
        output = self._shared.classify(len(items), chosen) if self._shared is not None else None
        if output is None:
            return None
        return chosen, self._decide(output.logits.double().numpy(), output.distance.double().numpy())

    def _second_pass(self, items: Sequence[LoadedImage], chosen: list[int]) -> tuple[list[int], list[DefectName]]:
        """Return the positions of the chosen images that can be read, and their names."""
        from adctl.classification.predict import classify_pixels

        images = [items[place] for place in chosen]
        if not self._same_pixels:
            images = [load_image(item.sample, self.classifier.input) for item in images]
        read = [place for place, image in zip(chosen, images, strict=True) if image.pixels is not None]
        for image in images:
            if image.error is not None:
                log.warning("The classifier cannot read an image: %s", image.error)
        if not read:
            return [], []
        return read, self._decide(*classify_pixels(self.classifier, stack_pixels(images), self._device))

    def _decide(self, logits: NDArray[np.float64], distances: NDArray[np.float64]) -> list[DefectName]:
        from adctl.classification.decision import decide

        named = decide(self.classes_header.decision, logits, distances)
        names = named.names(self.classes_header.classes)
        return [DefectName(name, float(row.max())) for name, row in zip(names, named.probabilities, strict=True)]


class OneGraphRuntime(NamingRuntime):
    """Runtime of an exported graph of detector and classifier, which names images by their verdict.

    With views, the name is that of the unchanged image.

    Args:
        runtime: Runtime of the graph, with its views.
        header: Header of the classifier in the graph.
        path: The exported file.
        which: A key of `NAMED`.
    """

    def __init__(self, runtime: Runtime, header: ClassifierHeader, path: Path, which: str) -> None:
        self.path, self.which = path, which
        self.classes_header = header
        self.runtime = runtime
        self.name = runtime.name
        self.input = runtime.input
        self.device = runtime.device
        self.callers = runtime.callers
        self._calibration = None
        self._kept = threading.local()

    @property
    def shares(self) -> bool:
        """True: there is one graph."""
        return True

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Score pixels [B,H,W,C], uint8, that already have the format of `input`."""
        self._kept.output = output = self.runtime.predict(pixels)
        return output

    def _same_pass(self, items: Sequence[LoadedImage], chosen: list[int]) -> tuple[list[int], list[DefectName]]:
        output: RuntimeOutput = self._kept.output
        assert output.logits is not None
        assert output.distances is not None
        assert len(output.logits) == len(items)
        return chosen, self._decide(output.logits[chosen].astype(float), output.distances[chosen].astype(float))


def with_names(runtime: Runtime, model: Path, classifier: Path | None, which: str) -> Runtime:
    """Return the runtime with a classifier: the given one, else that in its own graph; itself if there is none.

    Args:
        runtime: Runtime of the model, with its views.
        model: File of the model.
        classifier: Model file of the classifier, or None.
        which: A key of `NAMED`.

    Raises:
        ModelFileError: The file is no classifier, or is damaged.
        UsageError: It does not go with the detector.
    """
    if classifier is not None:
        return NamingRuntime(runtime, classifier, which)
    header = classifier_in(runtime.runtime if isinstance(runtime, AugmentedRuntime) else runtime)
    return runtime if header is None else OneGraphRuntime(runtime, header, model, which)


def with_classifier(runtime: Runtime, model: Path, settings: ScoreSettings) -> Runtime:
    """Return the runtime with the classifier of the settings, else that of its graph; see `with_names`.

    Raises:
        UsageError: There is no such model, or it does not go with the detector.
        ModelFileError: It is no classifier, or is damaged.
    """
    given = None if settings.classifier is None else find_model(settings.runs, settings.classifier)
    named = with_names(runtime, model, given, settings.classify)
    if settings.classify != "rejected" and not isinstance(named, NamingRuntime):
        raise UsageError("--classify needs a classifier.", "Add --classifier MODEL.")
    return named


def classifier_facts(runtime: Runtime) -> dict[str, Any]:
    """Return the entries of `scores.json` about the classifier; empty without one."""
    if not isinstance(runtime, NamingRuntime):
        return {}
    facts = {"path": str(runtime.path), "sha256": sha256_file(runtime.path), "named": runtime.which}
    return {"classifier": {**facts, "classes": [*runtime.classes_header.classes]}}


def _check(naming: NamingRuntime, which: str) -> None:
    if naming.runtime.header.calibration is None and which != "all":
        raise UsageError(
            "The model is not calibrated, so it rejects no image that the classifier could name.",
            "Run 'adctl calibrate', or name every image with --classify all.",
        )
    ours, theirs = naming.input.channels, naming.classifier.input.channels
    if ours != theirs and max(ours, theirs) > _COLOURS:
        raise UsageError(
            f"The detector takes images of {ours} channels, and the classifier {naming.path} of {theirs}.",
            "Train the classifier on images of the same kind, with the same --channels.",
        )


def _verdict(score: float, calibration: Calibration | None) -> Verdict:
    return Verdict.UNCALIBRATED if calibration is None else calibration.verdict(score)

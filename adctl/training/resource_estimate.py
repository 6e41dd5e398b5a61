"""Estimated memory and time of a training, from a trial with a few of its images."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil
import torch

from adctl.data.images import image_size
from adctl.data.loader import ImageSource, keep_images, load_image
from adctl.data.preprocess import InputSpec
from adctl.data.tiling import Tiling
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.detectors.registry import detector_class
from adctl.engine.batch_plan import training_length
from adctl.engine.batch_size import starting_batch_size
from adctl.engine.batching import to_input
from adctl.engine.phases import Batch, Observe, total
from adctl.errors import UsageError
from adctl.model_file import ModelHeader
from adctl.progress import SILENT
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import collect
from adctl.training.fitting import augmentation_of, new_detector, training_record
from adctl.training.out_of_fold import HeldOutRuntime, count_refits, scores_without_refitting
from adctl.training.plan import fit_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from adctl.config import TrainSettings
    from adctl.detectors.base import Detector
    from adctl.engine.phases import Optimize
    from adctl.records import Sample
    from adctl.training.plan import TrainingPlan

_BASE_MEMORY = 600 * 2**20
"""Bytes of Python, torch and the other libraries, measured on Linux."""

_ACTIVATIONS = 400
"""Measured bytes of activations for each input pixel of a batch; three times as many with gradients."""

_KEPT = 8
"""Bytes kept for each pixel of the inputs, for scores out of fold."""

_TRIED = 8
"""Images that a trial learns from."""

_MOST_MEMORY, _SMALLEST_SIDE = 2**30, 64
"""Bytes of a fit beyond which a trial has a smaller input, and its smallest side, pixels."""

_WRITING, _WRITTEN_PER_SECOND = 0.3, 150e6
"""Seconds to write a run, and bytes of a model file that are written and hashed in a second."""


@dataclass(frozen=True)
class ResourceEstimate:
    """Estimated resources of a training.

    Attributes:
        memory: Peak of memory, bytes.
        disk: Temporary files, bytes.
        available: Free memory now, bytes.
        seconds: Time until the model file is written; `adctl train --dry-run` adds start and export.
        width: Width of the first image, pixels.
        height: Height of the first image, pixels.
    """

    memory: int
    disk: int
    available: int
    seconds: float
    width: int
    height: int


def estimate_resources(plan: TrainingPlan, settings: TrainSettings) -> ResourceEstimate:
    """Estimate the resources from a trial: a fit to a few of the images.

    Args:
        plan: Plan of the training.
        settings: Settings of the training.
    """
    return estimate_with_trial(plan, settings)[0]


def estimate_with_trial(plan: TrainingPlan, settings: TrainSettings) -> tuple[ResourceEstimate, Detector]:
    """Estimate the resources; return also the detector of the trial, which may be smaller than the real one."""
    detector = detector_class(settings.arch)(plan.config)
    size = detector.input
    trial = Trial(_affordable(detector, plan), settings)
    logging.disable(logging.WARNING)  # they are about the few images of the trial
    try:
        trial.run()
    finally:
        logging.disable(logging.NOTSET)
    cost = detector.estimate_cost(_inputs(plan, plan.split.train))
    kept = _KEPT * _inputs(plan, plan.split.train) * size.height * size.width
    weights = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    activations = trial.batch * size.height * size.width * _ACTIVATIONS * (3 if trial.steps else 1)
    needs = ResourceEstimate(
        memory=_BASE_MEMORY
        + weights * (5 if trial.steps else 2)
        + activations
        + cost.memory
        + (0 if plan.split.calibration else min(kept, psutil.virtual_memory().available // 2)),
        disk=cost.disk,
        available=psutil.virtual_memory().available,
        seconds=trial.seconds_of(plan, detector),
        width=trial.width,
        height=trial.height,
    )
    return needs, trial.detector


def _affordable(detector: Detector, plan: TrainingPlan) -> TrainingPlan:
    """Return the plan with a smaller input if a fit takes so much memory that a trial should not."""
    config = plan.config
    while detector.estimate_cost(_TRIED).memory > _MOST_MEMORY and min(config.sides) >= 2 * _SMALLEST_SIDE:
        height, width = config.sides
        config = type(config)(**{**config.model_dump(), "image_size": (height // 2, width // 2)})
        detector = type(detector)(config)
    return replace(plan, config=config)


def _inputs(plan: TrainingPlan, samples: Sequence[Sample]) -> int:
    """Return the number of network inputs of images that are as large as the first."""
    spec = InputSpec.from_config(plan.config.model_dump())
    width, height = image_size(plan.split.train[0].path)
    return len(Tiling.for_image(spec, height, width)) * len(samples)


@dataclass
class Trial:
    """Seconds of the parts of a training, measured with a few of its images.

    Attributes:
        plan: Plan of the training.
        settings: Settings of the training.
        building: Seconds to create the detector.
        finishing: Seconds after the last image.
        observing: Seconds for each input of the passes without gradients.
        again: The same, if the features of the backbone are known.
        validating: Seconds for each input of the passes over held-out images.
        first: Seconds for each input of the first epoch.
        later: Seconds for each input of a later epoch.
        scoring: Seconds to score an image for the threshold.
        reading: Seconds to read an input.
        steps: Whether there are gradient steps.
    """

    plan: TrainingPlan
    settings: TrainSettings
    building: float = 0.0
    finishing: float = 0.0
    observing: float = 0.0
    again: float = 0.0
    validating: float = 0.0
    first: float = 0.0
    later: float = 0.0
    scoring: float = 0.0
    reading: float = 0.0
    steps: bool = False

    def run(self) -> None:
        """Fit a detector to a few images, and score them."""
        settings, self.device = self.settings, self.plan.device.device
        start = time.perf_counter()
        try:
            self.detector, weights = new_detector(settings, self.plan.config)
        except UsageError:  # weights that are not here yet do not change the time
            self.detector, weights = detector_class(settings.arch)(self.plan.config), None
        self.detector.to(self.device)
        self.detector.to(memory_format=torch.channels_last)
        self.building = time.perf_counter() - start
        self.header = ModelHeader(settings.arch, self.plan.config.model_dump(), training_record(self.plan, weights))
        self.fit = fit_settings(settings, type(self.detector), self.plan.config)
        self.batch = starting_batch_size(self.fit.batch_size, str(self.device))
        train = self.plan.split.train
        self.width, self.height = image_size(train[0].path)
        self.samples = train[:: max(1, len(train) // _TRIED)][:_TRIED]
        images = self._read()
        with self._kept(), keep_images():
            for phase in self.detector.phases():
                if isinstance(phase, Observe):
                    self._observe(phase, images)
                elif self.fit.epochs:
                    self._optimize(phase, images[: self.batch])
            self.detector.eval()
            self.scoring = self._scoring()

    def seconds_of(self, plan: TrainingPlan, detector: Detector) -> float:
        """Return the seconds of a training by a plan whose inputs may be larger than those of the trial."""
        split, sides, own = plan.split, detector.input, self.detector.input
        area = sides.height * sides.width / (own.height * own.width)
        count, validation = _inputs(plan, split.train), _inputs(plan, split.validation)
        cost, tried = detector.estimate_cost(count), self.detector.estimate_cost(self.tried)
        finishing = self.finishing * (cost.flops / tried.flops if tried.flops else area)
        refits = count_refits(detector, split)
        epochs = training_length(self.fit, math.ceil(count / self.batch))[0] if self.steps else 0
        scored = len(split.calibration) or len(split.train)
        search = (cost.per_image - tried.per_image) / _flops_per_second(self.device)
        per_input = (
            self.observing * count
            + self.reading * (count + validation + _inputs(plan, split.calibration))
            + self.validating * (validation or count)
            + self.first * (count + validation / 3)
            + self.later * (count + validation / 3) * (epochs - 1) * self.steps
            + max(0, refits - 1) * self.again * count
        )
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.detector.state_dict().values())
        seconds: float = (
            area * (per_input + self.scoring * scored)
            + max(0.0, search) * scored
            + finishing * (1 + max(0, refits - 1))  # `refits` times with all folds but one
            + self.building * (1 + refits)
            + _WRITING
            + area * weights / _WRITTEN_PER_SECOND
        )
        return seconds

    def _read(self) -> Tensor:
        """Read the images; return inputs [B,C,H,W]."""
        source = ImageSource(self.samples, self.detector.input, workers=self.settings.workers, reuse=False)
        load_image(self.samples[0], self.detector.input)  # initialises the decoder
        start = time.perf_counter()
        pixels = next(iter(source.batches(max(self.batch, _TRIED))))
        self.reading = (time.perf_counter() - start) / len(pixels)
        self.tried = len(pixels)
        return to_input(pixels, self.device)

    def _observe(self, phase: Observe, images: Tensor) -> None:
        """Run a pass without gradients, on the images."""
        self.detector.eval()
        with torch.inference_mode():
            phase.embed(images[:2].flip(3))  # initialises the network
            start = time.perf_counter()
            embedded = phase.embed(images)
            embedding = time.perf_counter() - start
            phase.absorb(embedded)
            absorbing = time.perf_counter() - start - embedding
            start = time.perf_counter()
            phase.embed(images)
            self.again += (time.perf_counter() - start + absorbing) / len(images)
            one = (embedding + absorbing) / len(images)
            self.validating += one * phase.held_out
            self.observing += one * (not phase.held_out)
            start = time.perf_counter()
            phase.finish(lambda *_: None)
            self.finishing += time.perf_counter() - start

    def _optimize(self, phase: Optimize, images: Tensor) -> None:
        """Run three gradient steps: one to initialise, one that computes all, and one on the same images."""
        self.steps = True
        augment = augmentation_of(self.settings, self.plan.config)
        for module in phase.modules(self.detector):
            module.to(self.device).train()
        optimizer = torch.optim.AdamW(phase.parameters, lr=self.fit.learning_rate, fused=self.device.type != "mps")
        keys = tuple(f"train {number}" for number in range(len(images)))

        def step(keys: tuple[str, ...] | None) -> float:
            start = time.perf_counter()
            batch = augment(images) if augment else Batch(images, images, keys=keys)
            total(phase.loss(batch)).backward()
            torch.nn.utils.clip_grad_norm_(phase.parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return (time.perf_counter() - start) / len(images)

        step(None)
        self.first += step(keys)
        self.later += step(keys)

    def _scoring(self) -> float:
        """Return the seconds to score an image: a new one, or a training image out of fold."""
        whole = self.plan.split
        split = replace(whole, train=self.samples)

        def score() -> None:
            if whole.calibration or count_refits(self.detector, whole):
                runtime = TorchRuntime.of(self.detector, self.header, self.device)
                collect(runtime, self.samples, batch_size=self.batch, workers=self.settings.workers)
            else:
                held_out = HeldOutRuntime.of(self.detector, self.header, self.device)
                folds = [[sample] for sample in self.samples]
                scores_without_refitting(held_out, split, folds, SILENT, self.settings.workers)

        return _timed(score) / len(self.samples)

    def _kept(self) -> AbstractContextManager[Any]:
        """Keep features if training does: for scores out of fold."""
        return nullcontext() if self.plan.split.calibration else shared_features()


def _timed(function: Callable[[], object]) -> float:
    """Return the seconds of the second call; the first call includes one-time initialisation."""
    function()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _flops_per_second(device: torch.device) -> float:
    """Return half the speed of a matrix product on this device, which searches reach."""
    square = torch.rand(1024, 1024, device=device)
    return 0.5 * 2 * 1024**3 / _timed(lambda: (square @ square).sum().item())

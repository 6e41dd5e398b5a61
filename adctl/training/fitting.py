"""Fit of a detector to images, with the settings of a training; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from adctl.data.labelled import LabelledSource
from adctl.data.loader import ImageSource
from adctl.data.preprocess import InputSpec
from adctl.data.split import training_digest
from adctl.detectors.components import backbones
from adctl.detectors.registry import detector_class, package_of
from adctl.engine import distributed
from adctl.engine.context import FitContext
from adctl.engine.trainer import FitJob, fit, seed_everything
from adctl.errors import UsageError
from adctl.model_file import DIGEST_LENGTH, ModelHeader, Training
from adctl.progress import SILENT, Reporter
from adctl.runtimes.torch import TorchRuntime
from adctl.training.known_defects import load_known_defects
from adctl.training.plan import fit_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from adctl.config import TrainSettings
    from adctl.detectors.base import Detector, DetectorConfig
    from adctl.detectors.components.backbones import PretrainedWeights
    from adctl.engine.history import FitReport
    from adctl.records import Sample
    from adctl.training.augmentation import Augmentation
    from adctl.training.plan import TrainingPlan

    AfterEpoch = Callable[[TorchRuntime, int, int], None]


def refit(
    settings: TrainSettings,
    plan: TrainingPlan,
    samples: tuple[Sample, ...],
    reporter: Reporter = SILENT,
    after_epoch: AfterEpoch | None = None,
) -> tuple[Detector, ModelHeader]:
    """Fit a new detector with the settings of a run on other good images; nothing is written.

    Args:
        settings: Settings of the run.
        plan: The plan of these settings; its validation images choose the best epoch.
        samples: Good images for training, all from the plan's split.
        reporter: Receiver of progress.
        after_epoch: Function called after each epoch with the detector as a runtime, the number of the epoch and the
            number of epochs; it may raise to end the fit. None for none.

    Returns:
        The detector, and its header without a calibration.

    Raises:
        TrainingError: The loss is not finite, or memory is too small.
    """
    context = FitContext(reporter, augment=augmentation_of(settings, plan.config))
    part = replace(plan, split=replace(plan.split, train=samples))
    detector, header, _ = fit_new(settings, part, context, image_sources(settings, part), after_epoch)
    return detector, header


def fit_new(
    settings: TrainSettings,
    plan: TrainingPlan,
    context: FitContext,
    images: tuple[ImageSource, ImageSource | None],
    after_epoch: AfterEpoch | None = None,
) -> tuple[Detector, ModelHeader, FitReport]:
    """Fit a new detector; return it with its header, which has no calibration, and the report."""
    with context.reporter.stage("building the network"):
        detector, weights = new_detector(settings, plan.config)
    header = ModelHeader(
        settings.arch,
        plan.config.model_dump(mode="json"),
        training_record(plan, weights),
        package=package_of(settings.arch),
    )
    if after_epoch is not None:
        context = replace(context, after_epoch=_with_runtime(after_epoch, header, plan))
    return detector, header, fit_detector(detector, settings, plan, context, images)


def _with_runtime(
    after_epoch: AfterEpoch, header: ModelHeader, plan: TrainingPlan
) -> Callable[[Detector, int, int], None]:
    def call(detector: Detector, epoch: int, epochs: int) -> None:
        after_epoch(TorchRuntime.of(detector, header, plan.device.device), epoch, epochs)

    return call


def new_detector(settings: TrainSettings, config: DetectorConfig) -> tuple[Detector, PretrainedWeights | None]:
    """Create a detector with the pretrained weights of its backbone; return it with these weights, if any.

    Raises:
        UsageError: Weights are given for a detector without a backbone.
    """
    seed_everything(settings.seed)
    detector = detector_class(settings.arch)(config)
    name = detector.backbone_name
    if name is None:
        if settings.weights is not None and not detector.takes_base:
            raise UsageError(f"{settings.arch} has no pretrained backbone for --weights.", "Leave the flag out.")
        return detector, None
    weights = backbones.find_weights(name, settings.weights)
    if weights is not None:
        detector.load_pretrained(weights.tensors)
    return detector, weights


def image_sources(settings: TrainSettings, plan: TrainingPlan) -> tuple[ImageSource, ImageSource | None]:
    """Start to read the training images; return them and the validation images, None if there are none."""
    spec = InputSpec.from_config(plan.config.model_dump())

    kind = ImageSource if plan.auxiliary is None else LabelledSource

    def source(samples: Any, *, reuse: bool) -> ImageSource:
        return kind(samples, spec, workers=settings.workers, reuse=reuse, cache=settings.cache)

    repeated = detector_class(settings.arch).needs_validation
    train = source(plan.learned, reuse=repeated)
    if settings.devices is None:  # other processes read for themselves
        train.read_ahead()
    return train, source(plan.held_out, reuse=True) if plan.held_out else None


def fit_detector(
    detector: Detector,
    settings: TrainSettings,
    plan: TrainingPlan,
    context: FitContext,
    images: tuple[ImageSource, ImageSource | None],
) -> FitReport:
    """Fit a detector to images, and to known defects if there are any."""
    detector.known_defects = load_known_defects(plan.defects, plan.config, settings.workers)
    job = FitJob(
        detector,
        *images,
        fit_settings(settings, type(detector), plan.config),
        plan.device.device,
        context,
        resume=settings.resume is not None,
    )
    return fit(job, _devices(settings, plan))


def _devices(settings: TrainSettings, plan: TrainingPlan) -> distributed.Devices | None:
    if settings.devices is None:
        return None
    return distributed.parse_devices(settings.devices, plan.device.device.type)


def torch_devices(settings: TrainSettings, plan: TrainingPlan) -> list[torch.device]:
    """Return the devices that compute."""
    several = _devices(settings, plan)
    if several is None:
        return [plan.device.device]
    return [torch.device(several.kind, number) for number in several.numbers]


def augmentation_of(settings: TrainSettings, config: DetectorConfig) -> Augmentation | None:
    """Return the augmentation of training images, or None.

    Raises:
        UsageError: A custom transform is unknown or does not fit the images.
    """
    if settings.augment == "none" and settings.synthetic is None:
        return None
    from adctl.data.synthetic import parse_kinds
    from adctl.training.augmentation import Augmentation

    augmentation = Augmentation(
        settings.augment,
        library=settings.augmentation_library,
        custom=settings.augmentations,
        synthetic=parse_kinds(settings.synthetic) if settings.synthetic else None,
    )
    size = InputSpec.from_config(config.model_dump())
    augmentation(torch.zeros(2, size.channels, size.height, size.width))  # raises errors before training starts
    return augmentation


def training_record(plan: TrainingPlan, weights: PretrainedWeights | None) -> Training:
    """Return the description of the training data and the pretrained weights that a model file stores."""
    known = plan.split.digests | (plan.auxiliary.digests if plan.auxiliary else {})
    digests = sorted(known[sample.key][:DIGEST_LENGTH] for sample in plan.learned)
    return Training(
        dataset=plan.dataset.name,
        category=plan.dataset.category,
        images=len(plan.learned),
        digest=training_digest(plan.learned, known),
        image_digests=tuple(digests),
        backbone_weights=None if weights is None else f"{weights.source} sha256:{weights.sha256}",
    )

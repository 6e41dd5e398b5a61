"""Fitting of one classifier: features, head, fine-tuning and decision."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from adctl.classification.balance import balanced_indices, class_weights
from adctl.classification.classifier import Classifier
from adctl.classification.dataset import label_of
from adctl.classification.decision import Decision, decide, fit_decision
from adctl.classification.header import ClassifierHeader
from adctl.classification.heads import HeadTargets
from adctl.classification.objective import KindImages, Mixing, freeze, optimize_phase
from adctl.classification.predict import predict_images
from adctl.classification.split import stratified_folds
from adctl.config import TrainSettings, names_of
from adctl.data.loader import ImageSource
from adctl.data.split import training_digest
from adctl.detectors.components import backbones
from adctl.engine import distributed
from adctl.engine.context import FitContext
from adctl.engine.history import FitReport, FitSettings
from adctl.engine.trainer import FitJob, fit, seed_everything

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from adctl.classification.config import ClassifierConfig
    from adctl.classification.decision import Named
    from adctl.classification.split import LabelledSplit
    from adctl.records import Sample

    Floats = NDArray[np.float64]

log = logging.getLogger(__name__)

_FOLDS = 5
"""Folds by which a frozen classifier is calibrated."""

_TUNED = {"epochs": 20, "learning_rate": 1e-3, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 0.05}
"""Defaults of fine-tuning."""


@dataclass(frozen=True)
class ClassifierPlan:
    """Input of a training, resolved from its settings.

    Attributes:
        config: Settings of the classifier.
        classes: Names of the kinds.
        split: The images.
        device: Device that computes.
        dataset: Name of the dataset.
    """

    config: ClassifierConfig
    classes: tuple[str, ...]
    split: LabelledSplit
    device: torch.device
    dataset: str

    def numbers(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """Return the number of each image's kind [N]."""
        return np.array([self.classes.index(label_of(sample)) for sample in samples], np.int64)


@dataclass(frozen=True)
class HeldOutOutput:
    """Output for images that the classifier, or that of a fold, has not learned from.

    Attributes:
        samples: The images.
        labels: Number of each image's kind [N].
        logits: Logits [N,K].
        distances: Distances [N].
    """

    samples: tuple[Sample, ...]
    labels: NDArray[np.int64]
    logits: Floats
    distances: Floats

    def named(self, decision: Decision) -> Named:
        """Return the names by a decision."""
        return decide(decision, self.logits, self.distances)


@dataclass(frozen=True)
class FittedClassifier:
    """Fitted classifier.

    Attributes:
        classifier: The network, on the device, in evaluation mode.
        header: Its header.
        calibration: Output that calibrated the decision.
        report: Report of the fit.
    """

    classifier: Classifier
    header: ClassifierHeader
    calibration: HeldOutOutput
    report: FitReport


def fit_classifier(settings: TrainSettings, plan: ClassifierPlan, context: FitContext) -> FittedClassifier:
    """Fit a classifier and calibrate its decision.

    A frozen backbone learns from all training images, and is calibrated out of fold. A tuned one is calibrated on the
    calibration part of the split.

    Raises:
        TrainingError: The loss is not finite, or memory is too small.
        ImageError: An image cannot be read.
    """
    seed_everything(settings.seed)
    classifier = Classifier(plan.config, len(plan.classes))
    weights = backbones.find_weights(plan.config.backbone, settings.weights)
    if weights is not None:
        classifier.load_pretrained(weights.tensors)
    source = _source(settings, classifier, plan.split.train)
    report, features = _collect(settings, plan, classifier, source, context)
    labels = plan.numbers(plan.split.train)
    if plan.config.fine_tune == "none":
        calibration = out_of_fold(settings, plan, classifier, features)
        fit_on(settings, classifier, features, labels)
    else:
        fit_on(settings, classifier, features, labels)
        report = _tune(settings, plan, classifier, source, context)
        _, features = _collect(settings, plan, classifier, source, context)
        classifier.fit_decision(features, head_targets(settings, plan.config, labels, len(plan.classes)))
        held = plan.split.calibration
        options = {"batch_size": settings.batch_size, "workers": settings.workers}
        output = predict_images(classifier.eval(), held, plan.device, context.reporter, **options)  # type: ignore[arg-type]
        calibration = HeldOutOutput(held, plan.numbers(held), *output)
    decision = fit_decision(calibration.logits, calibration.distances, calibration.labels, plan.config.known_share)
    header = ClassifierHeader(
        config=plan.config.model_dump(mode="json"),
        classes=plan.classes,
        counts=tuple(np.bincount(labels, minlength=len(plan.classes)).tolist()),
        decision=decision,
        dataset=plan.dataset,
        digest=training_digest(plan.split.train, plan.split.digests),
        backbone_weights=None if weights is None else f"{weights.source} sha256:{weights.sha256}",
    )
    return FittedClassifier(classifier.eval(), header, calibration, report)


def out_of_fold(
    settings: TrainSettings, plan: ClassifierPlan, classifier: Classifier, features: NDArray[np.float32]
) -> HeldOutOutput:
    """Return the output for each training image of a head that was fitted without its fold; the head stays changed."""
    samples, labels = plan.split.train, plan.numbers(plan.split.train)
    fold_of = stratified_folds(samples, plan.split.digests, _fold_count(labels), settings.seed)
    logits, distances = np.zeros((len(labels), len(plan.classes))), np.zeros(len(labels))
    for fold in np.unique(fold_of):
        held = fold_of == fold
        fit_on(settings, classifier, features[~held], labels[~held])
        logits[held], distances[held] = classify_features(classifier, features[held])
    return HeldOutOutput(samples, labels, logits, distances)


def fit_on(
    settings: TrainSettings, classifier: Classifier, features: NDArray[np.float32], labels: NDArray[np.int64]
) -> None:
    """Fit head and distances to features [N,D]; every kind must be there."""
    chosen = balanced_indices(labels, settings.balance, settings.seed)
    targets = head_targets(settings, classifier.config, labels[chosen], classifier.kinds)
    device = next(classifier.backbone.buffers()).device
    classifier.head.cpu()
    classifier.head.fit(features[chosen], targets)
    classifier.fit_decision(features, replace(targets, labels=labels))
    classifier.to(device)


def classify_features(classifier: Classifier, features: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Return logits [N,K] and distances [N] of features [N,D]."""
    import torch

    with torch.inference_mode():
        output = classifier.classify(torch.from_numpy(features).to(classifier.head.mean.device))
    return output.logits.double().cpu().numpy(), output.distance.double().cpu().numpy()


def head_targets(
    settings: TrainSettings, config: ClassifierConfig, labels: NDArray[np.int64], kinds: int
) -> HeadTargets:
    """Return labels, weights and parameters of the loss."""
    counts = np.bincount(labels, minlength=kinds)
    return HeadTargets(
        labels=labels,
        weights=class_weights(counts.clip(1), settings.balance, config.beta),
        kinds=kinds,
        gamma=settings.focal_gamma if settings.balance == "focal" else 0.0,
        smoothing=settings.label_smoothing,
        adjustment=config.logit_adjustment,
    )


def tuning_settings(settings: TrainSettings) -> FitSettings:
    """Return the settings of fine-tuning: given values, else its defaults."""
    shared = {field.name for field in fields(FitSettings)} & set(names_of(TrainSettings))
    values = {name: getattr(settings, name) for name in shared}
    for name, default in _TUNED.items():
        if values[name] is None:
            values[name] = default
    return FitSettings(**values)


def _fold_count(labels: NDArray[np.int64]) -> int:
    """Return the number of folds: every kind must stay in the rest."""
    return int(max(2, min(_FOLDS, np.bincount(labels).min())))


def _source(settings: TrainSettings, classifier: Classifier, samples: tuple[Sample, ...]) -> ImageSource:
    reuse = classifier.config.fine_tune != "none"
    return ImageSource(samples, classifier.input, workers=settings.workers, reuse=reuse, cache=settings.cache)


def _collect(
    settings: TrainSettings, plan: ClassifierPlan, classifier: Classifier, source: ImageSource, context: FitContext
) -> tuple[FitReport, NDArray[np.float32]]:
    """Return the features [N,D] of the training images, with the report."""
    classifier.train_by(None)
    own = FitContext(context.reporter)
    report = fit(FitJob(classifier, source, None, tuning_settings(settings), plan.device, own))
    return report, classifier.collected()


def _tune(
    settings: TrainSettings, plan: ClassifierPlan, classifier: Classifier, source: ImageSource, context: FitContext
) -> FitReport:
    """Train head and backbone together."""
    images = KindImages(source, plan.numbers(plan.split.train), settings.balance, settings.seed)
    held = plan.split.validation
    validation = KindImages(_source(settings, classifier, held), plan.numbers(held)) if held else None
    targets = head_targets(settings, plan.config, images.labels, len(plan.classes))
    mixing = Mixing(settings.mixup_alpha, settings.cutmix_alpha)
    classifier.train_by(
        partial(optimize_phase, targets=targets, mixing=mixing, images=images, validated=validation is not None)
    )
    job = FitJob(
        classifier,
        images,
        validation,
        tuning_settings(settings),
        plan.device,
        context,
        resume=settings.resume is not None,
    )
    devices = None
    if settings.devices is not None:
        devices = distributed.parse_devices(settings.devices, plan.device.type)
    report = fit(job, devices)
    classifier.train_by(None)
    freeze(classifier)
    return report

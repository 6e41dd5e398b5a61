"""Plan of a training: dataset, split, settings of the detector and device, resolved from the settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from adctl.config import LoadedSettings, TrainSettings, names_of
from adctl.data.colours import warn_of_colours
from adctl.data.depth import warn_of_depth
from adctl.data.folds import split_fold
from adctl.data.groups import group_counts
from adctl.data.preprocess import InputSpec
from adctl.data.roi import encode_region
from adctl.data.split import MIN_GOOD, Split, split_good
from adctl.datasets import open_dataset
from adctl.detectors.registry import detector_class
from adctl.engine.device import DeviceChoice, choose_device
from adctl.engine.history import FitSettings
from adctl.errors import DataError, UsageError, unknown_name
from adctl.options import flag_name
from adctl.training.auxiliary import open_auxiliary
from adctl.training.image_shape import advise_on_small_defects, choose_size
from adctl.training.known_defects import open_known_defects
from adctl.training.leave_out import can_leave_out

if TYPE_CHECKING:
    from adctl.data.datasets.layouts import Dataset
    from adctl.detectors.base import Detector, DetectorConfig
    from adctl.records import Sample
    from adctl.training.auxiliary import AuxiliaryImages
    from adctl.training.image_shape import ChosenSize
    from adctl.training.reviews import SetAside

log = logging.getLogger(__name__)


_DETECTOR_FLAGS = ("backbone", "image_size", "roi", "loss", "error", "noise_level")
"""Settings of training that are options of some detectors."""

CALIBRATION_SHARE = 0.2
"""Share of good images held out for the threshold where fitting again is slow: gradient training, and many tiles."""

_UNLEARNED_SHARE = 0.8
"""Share of good images for the threshold if none of them is learned from."""

_MIN_STEPS = 1000
"""Minimum optimizer steps when epochs are unset; with fewer, autoencoders underfit on small datasets."""

_DETECTOR_DEFAULTS = ("epochs", "learning_rate", "weight_decay", "schedule", "warmup", "batch_size")
"""Settings whose defaults depend on the detector."""


@dataclass(frozen=True)
class TrainingPlan:
    """Input of a training, resolved from its settings.

    Attributes:
        dataset: The images and their layout.
        split: Good images for training, validation and calibration.
        config: Settings of the detector.
        device: The device, with the reason of its choice.
        size: Size of the network's input that was chosen by the images; None if it was given.
        advice: Advice on the size if small defects may be missed, a sentence or two; None if there is none.
        auxiliary: Labelled images of other categories, or None.
        set_aside: Images that are in no part of the split since they are unlike all others.
        defects: Known defects that the detector learns from beside the good images.
    """

    dataset: Dataset
    split: Split
    config: DetectorConfig
    device: DeviceChoice
    size: ChosenSize | None = None
    advice: str | None = None
    auxiliary: AuxiliaryImages | None = None
    set_aside: tuple[SetAside, ...] = ()
    defects: tuple[Sample, ...] = ()

    @property
    def left_out(self) -> tuple[Sample, ...]:
        """Images of `set_aside`."""
        keys = {one.key for one in self.set_aside}
        return tuple(sample for sample in self.dataset.train if sample.key in keys)

    @property
    def learned(self) -> tuple[Sample, ...]:
        """Images of the training: good ones of the category, labelled ones of others, or both."""
        if self.auxiliary is None:
            return self.split.train
        return (*(self.split.train if self.auxiliary.with_good else ()), *self.auxiliary.train)

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """Images that choose the epoch, of the same kinds."""
        if self.auxiliary is None:
            return self.split.validation
        return (*(self.split.validation if self.auxiliary.with_good else ()), *self.auxiliary.validation)


def plan_training(settings: TrainSettings) -> TrainingPlan:
    """Resolve dataset, split, detector settings and device; image files are read for their digests only.

    Raises:
        UsageError: A name is unknown, a path does not exist, or settings contradict each other.
        DataError: The images cannot be used.
    """
    cls = detector_class(settings.arch)
    config = detector_config(settings)
    _check_contaminated(settings)
    device = choose_device(settings.device, settings.gpu)
    dataset = open_dataset(settings)
    warn_of_depth(dataset.train, config.bit_depth)
    warn_of_colours(dataset.train)
    size = choose_size(cls, config, dataset.train) if _sized_by_images(settings) else None
    validation = settings.validation_share if cls.needs_validation else 0.0
    split = _split(settings, dataset, validation, hold_out=cls.needs_validation, with_good=cls.learns_good(config))
    spec = InputSpec.from_config(config.model_dump())
    if config.tile is not None and not split.calibration and not (cls.holds_out(config) and can_leave_out(spec, split)):
        split = _split(settings, dataset, validation, hold_out=True, with_good=cls.learns_good(config))
    if settings.new_groups:
        _require_groups(settings, dataset, split)
    config = config if size is None else size.config
    auxiliary = _open_auxiliary(settings, cls, config, dataset)
    defects = open_known_defects(settings, cls, config, dataset)
    advice = advise_on_small_defects(config, dataset.train)
    return TrainingPlan(dataset, split, config, device, size, advice, auxiliary, defects=defects)


def _check_contaminated(settings: TrainSettings) -> None:
    """Raise if --contaminated is given with a setting that needs all good images."""
    if settings.contaminated is None:
        return
    for name in ("folds", "new_groups", "auxiliary"):
        if getattr(settings, name):
            raise UsageError(
                f"--contaminated cannot be combined with {flag_name(name)}.",
                "Train once with --contaminated, look at the images it leaves out, and remove the defective ones.",
            )


def _open_auxiliary(
    settings: TrainSettings, cls: type[Detector], config: DetectorConfig, dataset: Dataset
) -> AuxiliaryImages | None:
    """Open the labelled images of other categories, if there are any.

    Raises:
        UsageError: The detector learns from good images alone, or a setting does not go together with labels.
        DataError: The images cannot be used.
    """
    if settings.auxiliary is None:
        return None
    if not cls.takes_labels:
        raise UsageError(
            f"{settings.arch} learns from good images alone, without --auxiliary.",
            "Use --arch prompt, or leave it out.",
        )
    if settings.augment != "none" or settings.synthetic is not None or config.tile is not None:
        raise UsageError(
            "--auxiliary cannot be combined with --augment, --synthetic or tiles.",
            "Leave them out; --set learn_from=both adds painted defects.",
        )
    return open_auxiliary(
        settings.auxiliary,
        dataset,
        validation=settings.validation_share,
        seed=settings.seed,
        with_good=cls.learns_good(config),
    )


def _require_groups(settings: TrainSettings, dataset: Dataset, split: Split) -> None:
    """Raise if there are too few groups for a threshold for new groups."""
    if not group_counts(dataset.train):
        raise UsageError(
            "--new-groups needs groups, and the images have none.",
            "Say how to tell them with --group: folder, day, or a name pattern such as 'lot{group}_'.",
        )
    if settings.folds is None and len(group_counts(split.calibration)) == 1:
        raise UsageError(
            "--new-groups needs at least 2 groups for the threshold, and --calibration-share holds out only 1.",
            "Raise --calibration-share, or let each group be held out in turn with --folds.",
        )


def with_chosen_size(loaded: LoadedSettings[TrainSettings], plan: TrainingPlan) -> LoadedSettings[TrainSettings]:
    """Return the settings with the size that was chosen by the images, so that a stored run keeps it."""
    if plan.advice is not None:
        log.info("%s", plan.advice)
    if plan.size is None:
        return loaded
    log.info("Image size %s", plan.size)
    settings = replace(loaded.settings, image_size=plan.config.image_size)
    return LoadedSettings(settings, loaded.origins | {"image_size": "auto"})


def _sized_by_images(settings: TrainSettings) -> bool:
    return settings.image_size == "auto" and "image_size" not in settings.options


def _split(
    settings: TrainSettings, dataset: Dataset, validation: float, *, hold_out: bool, with_good: bool = True
) -> Split:
    if settings.folds is None:
        if settings.fold is not None:
            raise UsageError("--fold needs --folds, the number of folds.", "Give --folds too.")
        share = settings.calibration_share
        if share is None and settings.auxiliary is not None and not with_good:
            share = _UNLEARNED_SHARE
        if share is None:  # without one, images, or whole groups, are scored out of fold
            share = CALIBRATION_SHARE if hold_out else 0.0
        fewest = MIN_GOOD
        if share == validation == 0 and not settings.new_groups:
            fewest = detector_class(settings.arch).fewest_images
            if len(dataset.train) < fewest:
                raise _too_few(settings.arch, fewest)
        split = split_good(dataset.train, calibration=share, validation=validation, seed=settings.seed, fewest=fewest)
        _warn_of_few(len(set(split.digests.values())))
        return split
    return split_fold(
        dataset.train,
        dataset.test,
        folds=settings.folds,
        fold=settings.fold,
        validation=validation,
        seed=settings.seed,
    )


def _too_few(arch: str, fewest: int) -> DataError:
    """Return the error for fewer images than a detector that learns from all of them needs."""
    return DataError(
        f"{arch} learns how features vary between good images, and there is only one: it needs at least {fewest}.",
        "Give more images, or use --arch patchcore --set rotations=8, which learns from a single one.",
    )


def _warn_of_few(images: int) -> None:
    """Warn if the threshold rests on few different images."""
    if images >= MIN_GOOD:
        return
    few = (
        "1 good image tells nothing about how good parts vary: the threshold comes from altered copies of it, and "
        "promises nothing."
        if images == 1
        else f"{images} good images are few: the threshold is a first guess."
    )
    log.warning("%s 'adctl calibrate --good DIR' with %d or more other images replaces the threshold.", few, MIN_GOOD)


def effective_settings(loaded: LoadedSettings[TrainSettings]) -> dict[str, dict[str, Any]]:
    """Return all settings, those of the detector included, with values and origins; JSON-safe.

    Raises:
        UsageError: The detector or one of its options is unknown.
    """
    settings = loaded.settings
    config = detector_config(settings)
    fitting = fit_settings(settings, detector_class(settings.arch), config)
    table = {name: entry for name, entry in loaded.table().items() if name != "options"}
    for name in _DETECTOR_DEFAULTS:
        if getattr(fitting, name) != getattr(settings, name):
            table[name] = {"value": getattr(fitting, name), "from": f"default of {settings.arch}"}
    for name, value in config.model_dump(mode="json").items():
        if name == "image_size" and _sized_by_images(settings):
            continue  # the images decide
        if name in settings.options:
            origin = loaded.origins["options"].replace("--options", f"--set {name}")
        elif table.get(name, {}).get("value") is not None:
            origin = table[name]["from"]
        else:
            origin = f"default of {settings.arch}"
        table[name] = {"value": value, "from": origin}
    return table


def detector_config(settings: TrainSettings) -> DetectorConfig:
    """Return the settings of the detector, from the flags with the same names and from --set.

    Raises:
        UsageError: The detector does not have an option, or a value is not valid.
    """
    cls = detector_class(settings.arch).Config
    flags = {name: getattr(settings, name) for name in _DETECTOR_FLAGS}
    given = {**{name: value for name, value in flags.items() if value not in (None, "auto")}, **settings.options}
    for name in given:
        if name not in cls.model_fields:
            raise unknown_name(f"option of {settings.arch}", name, cls.model_fields)
    if "roi" in given:
        given["roi"] = encode_region(str(given["roi"]))
    if "seed" in cls.model_fields:
        given.setdefault("seed", settings.seed)
    try:
        detector = detector_class(settings.arch)
        return detector.completed(
            _with_masked_margin(detector, cls(**given)),
            weights=settings.weights if detector.takes_base else None,
            epochs=settings.epochs,
            labelled=settings.auxiliary is not None,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        flag = flag_name(name) if name in flags else f"--set {name}"
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"The setting {flag} of {settings.arch} is not valid: {reason}. Got {first['input']!r} instead.",
            f"Its default is {cls.model_fields[name].default!r}." if name in cls.model_fields else "",
        ) from error


def _with_masked_margin(cls: type[Detector], config: DetectorConfig) -> DetectorConfig:
    """Return the settings, with masked margins if there are margins that the detector can mask."""
    if config.resize != "pad" or "margin" in config.model_fields_set or not cls.masks_margin(config):
        return config
    return type(config)(**{**config.model_dump(exclude_unset=True), "margin": "masked"})


def fit_settings(settings: TrainSettings, cls: type[Detector], config: DetectorConfig) -> FitSettings:
    """Return the settings of the fit: given values, else defaults of the detector, else general defaults."""
    shared = {field.name for field in fields(FitSettings)} & set(names_of(TrainSettings))
    defaults = cls.training_defaults(config)
    if settings.epochs == 0 and not cls.scores_untrained:
        raise UsageError(f"{settings.arch} cannot score untrained: --epochs must be at least 1.", "Leave it out.")
    values = {name: getattr(settings, name) for name in shared}
    for name in _DETECTOR_DEFAULTS:
        if values[name] in (None, "auto"):
            values[name] = defaults.get(name, getattr(FitSettings, name))
    if settings.epochs is None:
        values["min_steps"] = defaults.get("min_steps", _MIN_STEPS)
    return FitSettings(**values)

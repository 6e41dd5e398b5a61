"""Export a model, and verify each exported file: PyTorch and the other runtime score the same image files.

The result is stored beside the model, so that `--runtime auto` can select a file that is verified and faster.
"""

from __future__ import annotations

import logging
import pkgutil
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from adctl import files
from adctl.calibration.calibration_scores import read_split
from adctl.choices import EXPORT_FORMATS, PRECISIONS, RUNTIMES, formats_with
from adctl.classification.header import is_classifier
from adctl.classification.predictions import PREDICTIONS
from adctl.data.datasets.layouts import list_images
from adctl.data.loader import load_image
from adctl.datasets import dataset_of_run
from adctl.errors import AdctlError, DataError, OutputError, UsageError
from adctl.exporting.captured_output import captured_output
from adctl.exporting.graph import ExportSource, read_source
from adctl.exporting.parity import ParityCheck, check_kinds, check_parity
from adctl.model_file import run_of
from adctl.progress import SILENT, Reporter
from adctl.runtimes.auto_select import (
    EXPORTS,
    ParityRecord,
    digest_of,
    files_of,
    save_parity_record,
    this_machine,
    version_of,
)
from adctl.runtimes.classifier import ClassifierRuntime, classifier_of, open_classifier
from adctl.runtimes.loading import open_runtime
from adctl.scoring.classify import images_of_run
from adctl.scoring.tta import with_views
from adctl.tracking import record
from adctl.tracking.models import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.config import ExportSettings, LoadedSettings
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime

log = logging.getLogger(__name__)

TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.25}
"""Largest allowed difference of a score by precision, as a share of the largest score."""

_LEAST_SIZES = {"fp32": 0.75, "fp16": 0.35, "int8": 0.15}
"""Least size of an exported file by precision, as a share of the model's; without that much space, none is made."""

_MAX_AUROC_LOSS = 0.01
"""Largest allowed loss of image AUROC by quantisation to int8, measured if there are labelled images."""

_MAX_VERIFICATION_IMAGES = 256
_MAX_CALIBRATION_IMAGES = 128
_ROUNDS, _MIN_ROUNDS = 6, 3
_LONGEST = 5.0
"""Seconds after which the measurement of the speed ends, if it has the fewest rounds."""

_BATCH = 8


@dataclass(frozen=True)
class Exported:
    """One exported file.

    Attributes:
        format: Name of the format.
        file: The file; the weights of an OpenVINO model are beside it in a `.bin` file.
        bytes: Size, weights file included.
        precision: `fp32`, `fp16` or `int8`.
        runtime: Name of the runtime that opens it.
        check: Comparison with PyTorch on image files.
        tolerance: Largest allowed difference of a score, as a share of the largest score.
        images_per_second: Speed on batches in memory.
        torch_images_per_second: Speed of PyTorch on the same batches, measured alternately.
        kinds: Comparison of the classifier in the graph with PyTorch; None without one.
    """

    format: str
    file: Path
    bytes: int
    precision: str
    runtime: str
    check: ParityCheck
    tolerance: float
    images_per_second: float
    torch_images_per_second: float
    kinds: ParityCheck | None = None


@dataclass(frozen=True)
class _Reference:
    """Model that exports are compared with, in PyTorch.

    Attributes:
        model: The detector, or a classifier exported alone.
        samples: Images for it.
        classifier: Classifier for the same graph, or None.
        named: Images for the classifier.
    """

    model: Runtime | ClassifierRuntime
    samples: Sequence[Sample]
    classifier: ClassifierRuntime | None = None
    named: Sequence[Sample] = ()

    def predict(self, pixels: NDArray[np.uint8]) -> None:
        """Compute everything that the exported graph computes."""
        self.model.predict(pixels)
        if self.classifier is not None:
            self.classifier.predict(pixels)


@dataclass(frozen=True)
class ExportResult:
    """Result of `export`.

    Attributes:
        model: The exported model file.
        exports: One exported file for each format.
    """

    model: Path
    exports: tuple[Exported, ...]


def export(
    loaded: LoadedSettings[ExportSettings],
    reporter: Reporter = SILENT,
    *,
    max_images: int = _MAX_VERIFICATION_IMAGES,
) -> ExportResult:
    """Export a model to one or several formats, and verify each file against PyTorch.

    Args:
        loaded: The settings and their origins.
        reporter: Receiver of progress.
        max_images: Largest number of images of the verification.

    Raises:
        UsageError: There is no such model, or the settings contradict each other.
        DataError: There are no readable images for the verification or the quantisation.
        MissingExtraError: A required package is not installed.
        AdctlError: An exported file fails the verification; it is removed.
        OutputError: A file cannot be written.
    """
    settings = loaded.settings
    precision = precision_of(settings)
    model = find_model(settings.runs, settings.model)
    if model.suffix != ".safetensors":
        raise UsageError(f"{model} is already an exported file.", "Give the model.safetensors instead.")
    kinds = _classifier(model, settings)
    targets = _targets(model, settings, precision)
    least = int(model.stat().st_size * _LEAST_SIZES[precision])
    _require_replaceable(targets.values(), overwrite=settings.overwrite, size=least)
    samples = _verification_images(model, settings, max_images)
    with reporter.stage("reading the model"):
        source = read_source(model, kinds)
    images = _calibration_images(model, settings, source) if precision == "int8" else []
    reference = _Reference(_open(model), samples)
    if kinds is not None:
        tested = not settings.images and (kinds.parent / PREDICTIONS).is_file()
        named = _every(images_of_run(kinds), max_images) if tested else samples
        reference = replace(reference, classifier=open_classifier(kinds, "cpu"), named=named)
    exports = []
    for name, target in targets.items():
        with reporter.stage(f"exporting to {name}"):
            write_format(name, source, target, precision, images)
        try:
            exports.append(_verify(name, target, precision, reference, settings, reporter))
        except BaseException:
            for file in files_of(target):
                file.unlink(missing_ok=True)
            raise
        try:
            save_parity_record(target.parent, _parity_record(exports[-1], source))
        except OutputError as error:  # the export itself is complete
            log.warning("%s 'adctl score' does not take %s by itself; give it by --model.", error.message, target)
        speed = {"precision": precision, "images_per_second": exports[-1].images_per_second}
        record.made(model, "export", target, facts=speed)
    return ExportResult(model, tuple(exports))


def write_format(
    name: str, source: ExportSource, target: Path, precision: str = "fp32", images: Sequence[NDArray[np.uint8]] = ()
) -> None:
    """Write a model in one format.

    Args:
        name: A name from `adctl.choices.EXPORT_FORMATS`.
        source: The model.
        target: The file.
        precision: A name from `adctl.choices.PRECISIONS`.
        images: Images [1,H,W,C], uint8, that calibrate the quantisation; only needed for `int8`.

    Nothing that the libraries of the format print is shown; if they fail, it is part of the error.

    Raises:
        UsageError: The format does not support the precision.
        MissingExtraError: A required package is not installed.
        OutputError: The target cannot be written.
        AdctlError: The libraries of the format cannot convert the model.
    """
    _require_precision(name, precision)
    try:
        with captured_output():
            pkgutil.resolve_name(EXPORT_FORMATS[name].writer)(source, target, precision, images)
    except (AdctlError, MemoryError):
        raise
    except Exception as error:  # the libraries raise errors of many kinds
        log.debug("The export to %s failed.", name, exc_info=True)
        printed = "\n".join(getattr(error, "__notes__", ()))
        raise AdctlError(
            f"The model cannot be exported to {name}: {type(error).__name__}: {error}" + (printed and f"\n{printed}"),
            "Use another --format, or score with the model itself.",
        ) from error


def _require_precision(name: str, precision: str) -> None:
    if precision not in EXPORT_FORMATS[name].precisions:
        raise UsageError(
            f"{PRECISIONS[precision]} cannot be combined with --format {name}.",
            f"Use it with --format {' or '.join(formats_with(precision))}.",
        )


def _classifier(model: Path, settings: ExportSettings) -> Path | None:
    """Return the model file of the classifier for the same graph, or None.

    Raises:
        UsageError: There is no such model, it is exported already, or the model is a classifier itself.
    """
    if settings.classifier is None:
        return None
    if is_classifier(model):
        raise UsageError(f"{model} is a classifier itself.", "Give the detector by --model, and this by --classifier.")
    kinds = find_model(settings.runs, settings.classifier)
    if kinds.suffix != ".safetensors":
        raise UsageError(f"{kinds} is already an exported file.", "Give the model.safetensors of the classifier.")
    return kinds


def precision_of(settings: ExportSettings) -> str:
    """Return the precision that `half` and `int8` select.

    Raises:
        UsageError: Both are set.
    """
    if settings.half and settings.int8:
        raise UsageError("--half and --int8 cannot be combined.", "Give only one of them.")
    return "fp16" if settings.half else "int8" if settings.int8 else "fp32"


def _targets(model: Path, settings: ExportSettings, precision: str) -> dict[str, Path]:
    """Return the file for each format: beside the model, or in the folder `out`, or `out` itself."""
    suffixes = {name: EXPORT_FORMATS[name].suffix for name in settings.format}
    for name in suffixes:
        _require_precision(name, precision)
    parts = [model.stem, "classifier" if settings.classifier else "", "" if precision == "fp32" else precision]
    stem = "-".join(filter(None, parts))
    out = settings.out
    if out is not None and out.suffix in {spec.suffix for spec in RUNTIMES.values()}:
        if list(suffixes.values()) != [out.suffix]:
            raise UsageError(
                f"--out {out} does not match --format {','.join(suffixes)}.",
                f"Give a folder, or a file that ends in {' or '.join(suffixes.values())}.",
            )
        return dict.fromkeys(suffixes, out)
    return {name: (out or model.parent) / f"{stem}{suffix}" for name, suffix in suffixes.items()}


def _require_replaceable(targets: Iterable[Path], *, overwrite: bool, size: int) -> None:
    """Raise if a file cannot be written, or would replace one that is neither an export nor the weights beside one."""
    for target in targets:
        own = list(files_of(target))
        claimed = own if files.is_ours(target) else []
        files.require_replaceable([*own, target.parent / EXPORTS], overwrite=overwrite, claimed=claimed, size=size)


def _verification_images(model: Path, settings: ExportSettings, most: int) -> list[Sample]:
    """Select images at regular intervals: from `images`, or from the good and test images of the model's run."""
    if settings.images:
        samples = list_images(settings.images)[0]
    elif is_classifier(model):
        samples = images_of_run(model)
    else:
        dataset = dataset_of_run(run_of(model, settings.runs))
        split = read_split(model, settings.runs, "Name images to verify the export on: adctl export DIR --model FILE")
        samples = [*(split.calibration or split.train), *(dataset.test if dataset else ())]
    return _every(samples, most)


def _every(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most so many images, at regular intervals."""
    return list(samples[:: max(1, -(-len(samples) // most))])


def _calibration_images(model: Path, settings: ExportSettings, source: ExportSource) -> list[NDArray[np.uint8]]:
    """Load images [1,H,W,C] that calibrate the quantisation: from `calibration`, or from the training images."""
    if settings.calibration:
        samples = list_images(settings.calibration)[0]
    else:
        remedy = "Name good images with --calibration DIR."
        samples = images_of_run(model) if is_classifier(model) else list(read_split(model, settings.runs, remedy).train)
    loaded = (load_image(sample, source.detector.input) for sample in _every(samples, _MAX_CALIBRATION_IMAGES))
    pixels = [item.pixels[None] for item in loaded if item.pixels is not None]
    if not pixels:
        raise DataError(
            "There are no readable images to calibrate the quantisation with.",
            "Give good images with --calibration; for a model that uses tiles, images of the size of one tile.",
        )
    return pixels


def _verify(
    name: str,
    target: Path,
    precision: str,
    reference: _Reference,
    settings: ExportSettings,
    reporter: Reporter,
) -> Exported:
    """Compare the scores, the names and the speed of an exported file with PyTorch."""
    with captured_output():
        runtime = _open(target)
    check = _compare(reference.model, runtime, reference.samples, reporter)
    tolerance = settings.tolerance or TOLERANCES[precision]
    _require_parity(check, tolerance, target, precision, named=isinstance(runtime, ClassifierRuntime))
    kinds = None
    if reference.classifier is not None and not isinstance(runtime, ClassifierRuntime):
        kinds = check_kinds(reference.classifier, classifier_of(runtime), reference.named, reporter)
        _require_parity(kinds, tolerance, target, precision, named=True)
    pixels = np.random.default_rng(0).integers(0, 256, (_BATCH, *runtime.input.shape), np.uint8)
    seconds = seconds_per_batch([partial(each.predict, pixels) for each in (reference, runtime)])
    return Exported(
        format=name,
        file=target,
        bytes=sum(file.stat().st_size for file in files_of(target)),
        precision=precision,
        runtime=runtime.name,
        check=check,
        tolerance=tolerance,
        images_per_second=_BATCH / seconds[1],
        torch_images_per_second=_BATCH / seconds[0],
        kinds=kinds,
    )


def _open(path: Path) -> Runtime | ClassifierRuntime:
    return open_classifier(path, "cpu") if is_classifier(path) else open_runtime(path, "cpu")


def _compare(
    first: Runtime | ClassifierRuntime,
    second: Runtime | ClassifierRuntime,
    samples: Sequence[Sample],
    reporter: Reporter,
) -> ParityCheck:
    if isinstance(first, ClassifierRuntime) or isinstance(second, ClassifierRuntime):
        assert isinstance(first, ClassifierRuntime)
        assert isinstance(second, ClassifierRuntime)
        return check_kinds(first, second, samples, reporter)
    calibration = first.header.calibration
    views = calibration.views if calibration else ()
    return check_parity(with_views(first, views), with_views(second, views), samples, reporter)


def _require_parity(check: ParityCheck, tolerance: float, target: Path, precision: str, *, named: bool) -> None:
    """Raise if an exported file scores, or names kinds, too differently."""
    # A few names of images between two kinds change by rounding to eight bits; the accuracy decides.
    by_mean = precision == "int8" and named
    difference = check.mean_score_difference if by_mean else check.max_score_difference
    if precision == "int8" and check.auroc_change is not None and check.auroc_change < -_MAX_AUROC_LOSS:
        does, metric = "separates good from defective images less well", "AUROC"
        if named:
            does, metric = "names kinds less well", "accuracy"
        raise AdctlError(
            f"{target.name} {does} than the model: its {metric} is {-check.auroc_change:.4f} lower, "
            f"and {_MAX_AUROC_LOSS:g} is allowed.",
            "The file was removed. Give more good images with --calibration, or use --half.",
        )
    if difference > tolerance:
        value, decisions = ("probability", "names") if named else ("score", "verdicts")
        raise AdctlError(
            f"{target.name} differs from the model: by {difference:.2e} of the largest {value}, and {tolerance:g} is "
            f"allowed; {check.changed_verdicts} of {check.images} {decisions} changed.",
            "The file was removed. Use another format or precision, or allow a larger difference with --tolerance.",
        )


def seconds_per_batch(predictions: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each call; they take turns, so that other load affects all equally."""
    rounds: list[list[float]] = []
    started = time.perf_counter()
    # The first round is a warm-up.
    while len(rounds) < _MIN_ROUNDS or (len(rounds) < _ROUNDS and time.perf_counter() - started < _LONGEST):
        rounds.append([])
        for predict in predictions:
            start = time.perf_counter()
            predict()
            rounds[-1].append(time.perf_counter() - start)
    return [float(value) for value in np.median(rounds[1:], axis=0)]


def _parity_record(exported: Exported, source: ExportSource) -> ParityRecord:
    return ParityRecord(
        file=exported.file.name,
        sha256=digest_of(exported.file),
        tensors=source.tensors,
        runtime=exported.runtime,
        version=version_of(exported.runtime),
        precision=exported.precision,
        machine=this_machine(),
        equal=all(
            check is None or (check.max_score_difference <= TOLERANCES["fp32"] and not check.changed_verdicts)
            for check in (exported.check, exported.kinds)
        ),
        images_per_second=exported.images_per_second,
        torch_images_per_second=exported.torch_images_per_second,
    )

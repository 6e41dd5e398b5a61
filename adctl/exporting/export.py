"""Exporting and proving it: the same image files through both runtimes, compared end to end.

What was measured is kept beside the model, so that `--runtime auto` may take a file that is proved equal and faster.
"""

from __future__ import annotations

import pkgutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl import run_folder
from adctl.calibration.calibration_scores import held_out_images, training_images
from adctl.choices import EXPORT_FORMATS, PRECISIONS, RUNTIMES, formats_with
from adctl.data.datasets.layouts import list_images
from adctl.data.loader import load_image
from adctl.datasets import dataset_of_run
from adctl.errors import AdctlError, DataError, UsageError
from adctl.exporting.graph import ExportSource
from adctl.exporting.parity import ParityCheck, check_parity
from adctl.progress import SILENT, Reporter
from adctl.runtimes.auto_select import ParityRecord, digest_of, files_of, record, this_machine, version_of
from adctl.runtimes.loading import open_runtime
from adctl.scoring.tta import with_views

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.config import ExportSettings, LoadedSettings
    from adctl.records import Sample
    from adctl.runtimes.base import Runtime


TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.25}
"""Largest difference of a score allowed, as a share of the largest score."""

_AUROC_LOSS = 0.01
"""The most that quantisation may cost, where labelled images tell."""

_MOST_COMPARED = 256
_MOST_CALIBRATED = 128
_ROUNDS = 5
_BATCH = 8


@dataclass(frozen=True)
class Exported:
    """One file that was made.

    Attributes:
        format: Of it.
        file: The file; the weights of an OpenVINO model lie beside it in a `.bin`.
        bytes: Of all of it.
        precision: `fp32`, `fp16` or `int8`.
        runtime: That opens it.
        check: How it compares with torch on image files.
        tolerance: What its largest difference of scores was held against.
        images_per_second: Of batches in memory.
        torch_images_per_second: Of torch, in turn with it.
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


@dataclass(frozen=True)
class ExportResult:
    """What exporting made.

    Attributes:
        model: The model file it came from.
        exports: One for each format.
    """

    model: Path
    exports: tuple[Exported, ...]


def export(loaded: LoadedSettings[ExportSettings], reporter: Reporter = SILENT) -> ExportResult:
    """Write a model for other runtimes and compare each with torch on image files.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: There is no such model, no images to verify on, or the settings contradict each other.
        MissingExtraError: The packages for it are not installed.
        AdctlError: An exported file scores differently past the tolerance; it is removed.
        OutputError: A file cannot be written.
    """
    settings = loaded.settings
    precision = precision_of(settings)
    model = run_folder.find_model(settings.runs, settings.model)
    if model.suffix != ".safetensors":
        raise UsageError(f"{model} is exported already.", "Give the model.safetensors it came from.")
    targets = _targets(model, settings, precision)
    samples = _to_compare(model, settings)
    source = ExportSource.read(model)
    images = _to_calibrate(model, settings, source) if precision == "int8" else []
    reference = open_runtime(model, "cpu")
    exports = []
    for name, target in targets.items():
        with reporter.stage(f"exporting to {name}"):
            write_format(name, source, target, precision, images)
        try:
            exports.append(_proved(name, target, precision, reference, samples, settings, reporter))
        except BaseException:
            for one in files_of(target):
                one.unlink(missing_ok=True)
            raise
        record(target.parent, _proof(exports[-1], source))
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
        images: Pixels [1,H,W,C] each, from which ranges of activations are found for `int8`.

    Raises:
        UsageError: The format does not have the precision.
        MissingExtraError: The packages for it are not installed.
        OutputError: The target cannot be written.
    """
    _require_precision(name, precision)
    pkgutil.resolve_name(EXPORT_FORMATS[name].writer)(source, target, precision, images)


def _require_precision(name: str, precision: str) -> None:
    if precision not in EXPORT_FORMATS[name].precisions:
        raise UsageError(
            f"{PRECISIONS[precision]} does not go with --format {name}.",
            f"Choose --format {' or '.join(formats_with(precision))} for it.",
        )


def precision_of(settings: ExportSettings) -> str:
    """What the flags mean.

    Raises:
        UsageError: They contradict each other.
    """
    if settings.half and settings.int8:
        raise UsageError("--half and --int8 contradict each other.", "Give one of them.")
    return "fp16" if settings.half else "int8" if settings.int8 else "fp32"


def _targets(model: Path, settings: ExportSettings, precision: str) -> dict[str, Path]:
    """Where each format goes: beside the model, into the folder named, or to the file named."""
    wanted = {name: EXPORT_FORMATS[name].suffix for name in settings.format}
    for name in wanted:
        _require_precision(name, precision)
    stem = model.stem if precision == "fp32" else f"{model.stem}-{precision}"
    out = settings.out
    if out is not None and out.suffix in {spec.suffix for spec in RUNTIMES.values()}:
        if list(wanted.values()) != [out.suffix]:
            endings = " and ".join(wanted.values())
            raise UsageError(
                f"--out {out} does not go with --format {','.join(wanted)}.", f"Give a folder, or end in {endings}."
            )
        return dict.fromkeys(wanted, out)
    return {name: (out or model.parent) / f"{stem}{suffix}" for name, suffix in wanted.items()}


def _to_compare(model: Path, settings: ExportSettings) -> list[Sample]:
    """Images named, or those held out at training and the test images of the same data set, from all over it."""
    if settings.images:
        found = list_images(settings.images)[0]
    else:
        dataset = dataset_of_run(model.parent)
        found = [*held_out_images(model), *(dataset.test if dataset else ())]
    step = max(1, -(-len(found) // _MOST_COMPARED))
    return list(found[::step])


def _to_calibrate(model: Path, settings: ExportSettings, source: ExportSource) -> list[NDArray[np.uint8]]:
    """Pixels [1,H,W,C] each: of images named, or of those the model learned from; never of those it is proved on."""
    found = list_images(settings.calibration)[0] if settings.calibration else training_images(model)
    step = max(1, -(-len(found) // _MOST_CALIBRATED))
    loaded = (load_image(sample, source.detector.input) for sample in found[::step])
    pixels = [item.pixels[None] for item in loaded if item.pixels is not None]
    if not pixels:
        raise DataError(
            "There is no image to find the ranges of activations on.",
            "Name readable ones with --calibration; models that cut images into tiles need images of one tile.",
        )
    return pixels


def _proved(
    name: str,
    target: Path,
    precision: str,
    reference: Runtime,
    samples: Sequence[Sample],
    settings: ExportSettings,
    reporter: Reporter,
) -> Exported:
    """Compare an exported file with torch, on what is in it and on how fast it is."""
    runtime = open_runtime(target, "cpu")
    calibration = reference.header.calibration
    views = calibration.views if calibration else ()
    check = check_parity(with_views(reference, views), with_views(runtime, views), samples, reporter)
    tolerance = settings.tolerance or TOLERANCES[precision]
    _require(check, tolerance, target, precision)
    seconds = _seconds([reference, runtime])
    return Exported(
        format=name,
        file=target,
        bytes=sum(one.stat().st_size for one in files_of(target)),
        precision=precision,
        runtime=runtime.name,
        check=check,
        tolerance=tolerance,
        images_per_second=_BATCH / seconds[1],
        torch_images_per_second=_BATCH / seconds[0],
    )


def _require(check: ParityCheck, tolerance: float, target: Path, precision: str) -> None:
    if precision == "int8" and check.auroc_change is not None and check.auroc_change < -_AUROC_LOSS:
        raise AdctlError(
            f"{target.name} tells good from defective images less well: its AUROC is {-check.auroc_change:.4f} lower, "
            f"where {_AUROC_LOSS:g} is allowed.",
            "It was removed. Give more good images with --calibration, or use --half.",
        )
    if check.max_score_difference > tolerance:
        raise AdctlError(
            f"{target.name} scores differently from the model: by {check.max_score_difference:.2e} of the largest "
            f"score, where {tolerance:g} is allowed; {check.changed_verdicts} of {check.images} verdicts changed.",
            "It was removed. Take another format or precision, or allow more with --tolerance, knowing what it means.",
        )


def _seconds(runtimes: Sequence[Runtime]) -> list[float]:
    """Median seconds of a batch with each, in turn, so that what else the machine does meets all alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (_BATCH, *runtimes[0].input.shape), np.uint8)
    taken = np.zeros((_ROUNDS + 1, len(runtimes)))
    for turn in range(_ROUNDS + 1):  # the first warms up
        for column, runtime in enumerate(runtimes):
            start = time.perf_counter()
            runtime.predict(pixels)
            taken[turn, column] = time.perf_counter() - start
    return [float(value) for value in np.median(taken[1:], axis=0)]


def _proof(made: Exported, source: ExportSource) -> ParityRecord:
    return ParityRecord(
        file=made.file.name,
        sha256=digest_of(made.file),
        tensors=source.tensors,
        runtime=made.runtime,
        version=version_of(made.runtime),
        precision=made.precision,
        machine=this_machine(),
        equal=made.check.max_score_difference <= TOLERANCES["fp32"] and not made.check.changed_verdicts,
        images_per_second=made.images_per_second,
        torch_images_per_second=made.torch_images_per_second,
    )

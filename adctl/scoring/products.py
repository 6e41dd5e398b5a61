"""Scoring with a registry: each image by the model of its product, one scored set for each product.

    OUT/
      PRODUCT/ ...       scored set of each product; `adctl report OUT/PRODUCT` reads it
      products.json      model, folder and verdicts of each product, and the images that belong to none

An image that no rule of the registry names goes to the nearest product if the registry says `nearest = true`: the
product whose model finds it least unusual. The distance to a product is the score by its model, divided by the median
score of the good images of its calibration; a good image has a distance of about 1 to its own product.
"""

from __future__ import annotations

import logging
import math
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adctl import files, run_folder
from adctl.config import LoadedSettings, ScoreSettings
from adctl.data.datasets.layouts import list_images
from adctl.errors import DataError, UsageError
from adctl.model_file import read_header
from adctl.progress import SILENT, Reporter
from adctl.records import Verdict
from adctl.scoring.predict import predict
from adctl.scoring.registry import Registry, read_registry
from adctl.scoring.score import ScoreResult, check_targets, open_model, require_no_sink, score_samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.records import Calibration, Sample

log = logging.getLogger(__name__)

SCHEMA = "adctl.products/1"
SUMMARY = "products.json"


@dataclass(frozen=True)
class UnassignedImage:
    """Image that belongs to no product.

    Attributes:
        path: Image file.
        reason: Reason why no product fits.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class ProductsResult:
    """Result of scoring with a registry.

    Attributes:
        registry: The registry.
        folder: Folder of the results, with a scored set for each product.
        products: Result of each product that had images.
        unassigned: Images that belong to no product; they have no scores.
        counts: Number of images with each verdict; unassigned ones count as errors.
    """

    registry: Path
    folder: Path
    products: dict[str, ScoreResult]
    unassigned: tuple[UnassignedImage, ...]
    counts: dict[str, int]

    def __len__(self) -> int:
        return sum(self.counts.values())


def score_products(loaded: LoadedSettings[ScoreSettings], reporter: Reporter = SILENT) -> ProductsResult:
    """Score each image with the model of its product.

    Args:
        loaded: Settings, whose `model` is a registry, and their origins.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: The registry, a model or an image does not exist, or an image fits two products.
        DataError: The registry is damaged, no image belongs to a product, or none of a product's could be scored.
        OutputError: The results cannot be written; what was written before the error is kept.
    """
    settings = loaded.settings
    require_no_sink(settings)
    assert settings.model is not None
    registry = read_registry(settings.model)
    models = {name: registry.model_of(name, settings.runs) for name in registry.products}
    if not settings.images:
        raise UsageError("No images to score were given.", "Name folders, files or globs: adctl score FOLDER")
    samples, ignored = list_images(settings.images)
    assigned, unassigned = assign(registry, models, samples, settings, reporter)
    if not assigned:
        raise DataError(
            f"None of the {len(samples)} images belongs to a product of {registry.path}; the first: "
            f"{unassigned[0].path}, {unassigned[0].reason}.",
            "Give the products folders or patterns that fit, or nearest = true.",
        )
    if settings.out is not None:
        files.require_replaceable([settings.out / SUMMARY], overwrite=settings.overwrite)
        for name, own in assigned.items():
            check_targets(replace(settings, out=settings.out / name), settings.out / name, own)
    folder = settings.out or run_folder.new_folder(settings.runs, "products")
    results: dict[str, ScoreResult] = {}
    for name, own in assigned.items():
        log.info("Product %s: %d images.", name, len(own))
        one = replace(settings, model=models[name], out=folder / name)
        results[name] = score_samples(LoadedSettings(one, loaded.origins), models[name], own, [], reporter)
    if unassigned:
        log.warning("Images that belong to no product: %d. %s gives the reasons.", len(unassigned), folder / SUMMARY)
    result = ProductsResult(registry.path, folder, results, tuple(unassigned), _counts(results, unassigned))
    _write(result, [str(item.path) for item in ignored])
    return result


def _counts(results: dict[str, ScoreResult], unassigned: Sequence[UnassignedImage]) -> dict[str, int]:
    counts = {str(verdict): sum(one.counts[verdict] for one in results.values()) for verdict in Verdict}
    counts[Verdict.ERROR] += len(unassigned)
    return counts


def _write(result: ProductsResult, ignored: list[str]) -> None:
    products = {
        name: {"model": str(one.model), "folder": name, "counts": one.counts} for name, one in result.products.items()
    }
    unassigned = [{"path": one.path, "reason": one.reason} for one in result.unassigned]
    summary = {"schema": SCHEMA, "registry": str(result.registry), "products": products}
    files.write_json(result.folder / SUMMARY, summary | {"unassigned": unassigned, "ignored": ignored})


def assign(
    registry: Registry,
    models: dict[str, Path],
    samples: Sequence[Sample],
    settings: ScoreSettings,
    reporter: Reporter = SILENT,
) -> tuple[dict[str, list[Sample]], list[UnassignedImage]]:
    """Return the images of each product that has some, in order, and the images of none.

    Args:
        registry: The registry.
        models: Model file of each product.
        samples: The images.
        settings: Device, runtime, batch size and threads.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: Patterns of two products fit an image.
        DataError: The nearest product is wanted, and a model has no calibration.
    """
    found = [registry.product_of(sample.path) for sample in samples]
    unknown = [number for number, name in enumerate(found) if name is None]
    reasons: dict[int, str] = dict.fromkeys(unknown, "no folder and no pattern of the registry fits")
    if registry.nearest and unknown:
        lost = [samples[number] for number in unknown]
        nearest = nearest_products(models, lost, settings, reporter)
        for number, (product, distance) in zip(unknown, nearest, strict=True):
            if (reason := too_far(registry, product, distance)) is not None:
                reasons[number] = reason
            else:
                found[number] = product
    assigned: dict[str, list[Sample]] = {}
    for name, sample in zip(found, samples, strict=True):
        if name is not None:
            assigned.setdefault(name, []).append(sample)
    left = [number for number, name in enumerate(found) if name is None]
    return (
        {name: assigned[name] for name in models if name in assigned},
        [UnassignedImage(str(samples[number].path), reasons[number]) for number in left],
    )


def usual_score(name: str, path: Path, calibration: Calibration | None) -> float:
    """Return the median score of the good images of a product: the unit of the distance to it.

    Args:
        name: Name of the product.
        path: Its model file.
        calibration: Calibration of the model.

    Raises:
        DataError: The model has no calibration, so that its scores cannot be compared.
    """
    if calibration is None or not calibration.evidence.good:
        raise DataError(
            f"The model of {name}, {path}, is not calibrated, so it cannot tell how near an image is.",
            "Run 'adctl calibrate', or tell products by folders or patterns.",
        )
    return max(float(np.median(calibration.evidence.good)), 1e-12)


def too_far(registry: Registry, product: str, distance: float) -> str | None:
    """Return the reason why even the nearest product does not fit an image, or None."""
    if not math.isfinite(distance):
        return "it cannot be read, so that no product is nearest"
    if registry.farthest is not None and distance > registry.farthest:
        return f"the nearest product, {product}, is {distance:.3g} away"
    return None


def nearest_products(
    models: dict[str, Path], samples: Sequence[Sample], settings: ScoreSettings, reporter: Reporter = SILENT
) -> list[tuple[str, float]]:
    """Return the nearest product of each image, and its distance; inf if the image cannot be read.

    One model at a time is in memory; each scores all the images.

    Raises:
        DataError: A model has no calibration, so that its scores cannot be compared.
    """
    names, columns = list(models), []
    for name, path in models.items():
        usual = usual_score(name, path, read_header(path).calibration)
        runtime = open_model(path, settings.device, settings.gpu, settings.runtime, precision=settings.precision)
        with reporter.stage(f"comparing with {name}", len(samples)) as update:
            predictions = predict(runtime, samples, batch_size=settings.batch_size, workers=settings.workers)
            column = []
            with closing(predictions):
                for predicted in predictions:
                    column.append(math.inf if predicted.score is None else predicted.score / usual)
                    update(len(column), len(samples))
        columns.append(column)
    distances = np.nan_to_num(np.array(columns), nan=math.inf, posinf=math.inf)  # [products, images]
    best = distances.argmin(axis=0)
    return [(names[row], float(distances[row, number])) for number, row in enumerate(best)]

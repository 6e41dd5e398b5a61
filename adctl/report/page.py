"""One self-contained HTML page of a scored set: nothing is loaded from anywhere, so it opens from any disk.

The rows travel as data; the page judges them again when its threshold is moved. Knows evaluations and pictures,
computes no metric of its own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import jinja2
import numpy as np

from adctl import __version__, files
from adctl.data.images import read_image, read_mask, resize
from adctl.errors import ImageError
from adctl.heatmaps import ColourScale, colourise, overlay, upsample
from adctl.report.evaluate import Evaluation, outcome
from adctl.records import GOOD, Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.records import ScoredImage
    from adctl.scores import ScoreSet

_TILE = 200
_QUALITY = 78
_GALLERY = 1000
_HERE = Path(__file__).parent


def write_report(
    scores: ScoreSet, evaluation: Evaluation, target: Path, *, title: str | None = None, gallery: int = _GALLERY
) -> Path:
    """Write the page.

    Args:
        scores: The scored set.
        evaluation: Its metrics.
        target: The HTML file.
        title: Its heading; the data set and detector unless given.
        gallery: The most images that get a picture; the worst mistakes go first.

    Returns:
        The HTML file.

    Raises:
        OutputError: It cannot be written.
    """
    model = scores.manifest["model"]
    dataset = scores.manifest["dataset"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("template.html").render(
        title=title or f"{dataset['category']} – {model['arch']}",
        evaluation=evaluation,
        summary=_summary(evaluation, scores),
        cards=_cards(evaluation),
        manifest=_manifest_lines(scores),
        reproduce=_commands(scores),
        data=_embedded(_page_data(scores, evaluation, gallery)),
        plotly=_plotly(),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        version=__version__,
    )
    files.write_text(target, page)
    return target


def _page_data(scores: ScoreSet, evaluation: Evaluation, gallery: int) -> dict[str, Any]:
    pictures = dict(_pictures(scores, _worst_first(scores)[:gallery]))
    rows = [
        {
            "key": row.key,
            "label": row.label,
            "score": row.score,
            "error": row.error,
            "boxes": len(row.boxes),
            "picture": pictures.get(index),
        }
        for index, row in enumerate(scores.rows)
    ]
    calibration = scores.calibration
    return {
        "rows": rows,
        "good": GOOD,
        "threshold": calibration.threshold if calibration else None,
        "curves": {name: curve.to_dict() for name, curve in evaluation.curves.items()},
    }


def _worst_first(scores: ScoreSet) -> list[int]:
    """Rows by what deserves a look: mistakes by how wrong they are, then the rest, strangest first."""
    threshold = scores.calibration.threshold if scores.calibration else 0.0
    ranks = {"missed": 0, "false alarm": 0}

    def order(index: int) -> tuple[float, float]:
        row = scores.rows[index]
        score = row.score if row.score is not None else threshold
        mistaken = outcome(row) in ranks
        return (0, -abs(score - threshold)) if mistaken else (1, -score)

    return sorted((i for i, row in enumerate(scores.rows) if row.score is not None), key=order)


def _pictures(scores: ScoreSet, wanted: list[int]) -> Iterator[tuple[int, str]]:
    """Row index and picture as a data URI, one image in memory at a time."""
    chosen = set(wanted)
    scale = ColourScale.from_calibration(scores.calibration) if scores.calibration else None
    seen = set()
    for index, anomaly_map in scores.maps():
        if index in chosen:
            seen.add(index)
            picture = _strip(scores, scores.rows[index], anomaly_map, scale or ColourScale.from_values(anomaly_map))
            if picture is not None:
                yield index, picture
    for index in wanted:
        if index not in seen:
            picture = _strip(scores, scores.rows[index], None, None)
            if picture is not None:
                yield index, picture


def _strip(
    scores: ScoreSet, row: ScoredImage, anomaly_map: NDArray[np.float32] | None, scale: ColourScale | None
) -> str | None:
    """Original, map and overlay side by side as a JPEG; None where the image has gone."""
    try:
        image = read_image(Path(row.path))
    except ImageError:
        return None
    factor = _TILE / max(image.shape[:2])
    height, width = max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor))
    small = resize(image, height, width)
    tiles = [small]
    if anomaly_map is not None and scale is not None:
        calibration = scores.calibration
        boxes = [_shrunk(box, factor) for box in row.boxes]
        contour = calibration.pixel_threshold if calibration else None
        truth = _truth(row, image.shape[:2], height, width)
        tiles.append(colourise(scale(upsample(anomaly_map, height, width))))
        tiles.append(overlay(small, anomaly_map, scale, boxes=boxes, contour_at=contour, truth=truth))
    written, data = cv2.imencode(".jpg", np.hstack(tiles)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert written
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _truth(row: ScoredImage, shape: tuple[int, ...], height: int, width: int) -> NDArray[np.bool_] | None:
    if row.mask is None:
        return None
    try:
        mask = read_mask(Path(row.mask))
    except ImageError:
        return None
    if mask.shape != shape:
        return None
    return np.asarray(cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA) > 0)


def _shrunk(box: Box, factor: float) -> Box:
    width, height = max(2, round(box.width * factor)), max(2, round(box.height * factor))
    return Box(round(box.x * factor), round(box.y * factor), width, height, box.peak)


def _summary(evaluation: Evaluation, scores: ScoreSet) -> str:
    """The outcome in one sentence."""
    verdicts = evaluation.verdicts
    parts = [f"{count} {verdict}" for verdict, count in sorted(verdicts.items())]
    text = f"{evaluation.images} images: {', '.join(parts)}."
    image = evaluation.image
    if image.fn is not None and image.defective:
        text += f" {image.fn} of {image.defective} defects missed"
        text += f", {image.fp} false alarms among {image.good} good images." if image.good else "."
    if scores.calibration:
        basis = f"{scores.calibration.good_images} good images the model had not learned from"
        text += f" Threshold {scores.calibration.threshold:.4g}, from {basis}."
    return text


def _cards(evaluation: Evaluation) -> dict[str, list[tuple[str, str, str]]]:
    """For each group name, value and meaning of the metrics that exist."""
    image, pixel = evaluation.image, evaluation.pixel
    wanted = [
        ("image", "AUROC", image.auroc, "chance that a defective image scores above a good one"),
        ("image", "average precision", image.average_precision, "precision averaged over recall"),
        ("image", "best F1", image.f1_max, "at the threshold that suits these images best"),
        ("at the threshold", "F1", image.f1, "of precision and recall"),
        ("at the threshold", "precision", image.precision, "share of alarms that are defects"),
        ("at the threshold", "recall", image.recall, "share of defects that are found"),
        ("at the threshold", "false alarms", image.false_alarm_rate, "share of good images called anomalous"),
    ]
    if pixel is not None:
        wanted += [
            ("pixel", "AUROC", pixel.auroc, "as for images, over all pixels"),
            ("pixel", "average precision", pixel.average_precision, "over all pixels"),
            ("pixel", "AUPRO", pixel.aupro, "overlap with each defect, up to 30 % false positives"),
            ("pixel", "IoU", pixel.iou, "at the pixel threshold"),
            ("pixel", "Dice", pixel.dice, "at the pixel threshold"),
        ]
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for group, name, value, meaning in wanted:
        if value is not None:
            groups.setdefault(group, []).append((name, f"{value:.3f}", meaning))
    return groups


def _manifest_lines(scores: ScoreSet) -> list[tuple[str, str]]:
    manifest = scores.manifest
    model = manifest["model"]
    lines = [
        ("model", f"{model['path']} (sha256 {model['sha256'][:16]}…)"),
        ("detector", f"{model['arch']}: " + ", ".join(f"{name} {value}" for name, value in model["config"].items())),
        ("scored", manifest["started"]),
        ("computed", f"{manifest['runtime']['name']} on {manifest['runtime']['device']}"),
    ]
    if scores.calibration:
        chosen = scores.calibration
        basis = f"{chosen.good_images} good" + (f" and {chosen.defect_images} defective" * bool(chosen.defect_images))
        lines.append(("threshold", f"{chosen.method} {chosen.level:g}, from {basis} images"))
    lines.append(("versions", ", ".join(f"{name} {value}" for name, value in manifest["environment"].items() if value)))
    return lines


def _commands(scores: ScoreSet) -> list[str]:
    """What to type for the same numbers again."""
    given = scores.manifest["settings"]["images"]["value"]
    images = " ".join(given) if given else ""
    return [
        f"adctl score {images} --model {scores.manifest['model']['path']} --out {scores.folder}".replace("  ", " "),
        f"adctl report {scores.folder}",
    ]


def _embedded(value: Any) -> str:
    """JSON that may stand inside a script element, whatever file names hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plotly() -> str:
    import importlib.resources

    return (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")

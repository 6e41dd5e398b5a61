"""Benchmark of false alarms on new lots and on a new line: promised and measured, for three ways to set the threshold.

    python examples/benchmarks/groups.py [ARCH] [SEEDS]

Draws zippers in lots that differ in brightness, position and sharpness, trains on some lots, and scores good and
defective zippers of other lots. A line differs from all lots by more. The ways:

    default        images of the lots as if they were independent
    --new-groups   threshold for a new lot
    --line         threshold from 120 unlabelled parts of the lot or line itself, 6 of them defective

Each way says what it promises ("at most"). Measured are false alarms and recall on new lots, and on the line. Two seeds
take about a minute and a half of a core.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

import adctl
from adctl.fetching.demo_dataset import DEFECTS, render

SIZE = 96
LOTS, IMAGES = 8, 12
NEW_LOTS, GOOD, DEFECTIVE = 4, 40, 20
PARTS, BAD_PARTS = 120, 6


def write(folder: Path, name: str, lot: int, count: int, *, first: int = 0, defective: bool = False) -> None:
    """Draw zippers of one lot; lots differ in brightness, position and sharpness."""
    random = np.random.default_rng(lot)
    light, shift, blur = random.normal(1, 0.12), random.normal(0, 3, 2), 0.05 + abs(random.normal(0, 0.4))
    if name == "line":
        light, shift, blur = 0.7, np.array([8.0, -5.0]), 0.8
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        defect = DEFECTS[number % len(DEFECTS)] if defective else None
        image, _ = render((lot, number, defective), defect, SIZE)
        move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
        image = cv2.warpAffine(image, move, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
        image = cv2.GaussianBlur(image, (0, 0), blur)
        name_of = f"{name}{lot}_{number}{'b' * defective}.png"
        cv2.imwrite(str(folder / name_of), np.clip(image[..., ::-1] * light, 0, 255).astype(np.uint8))


def draw(root: Path, seed: int) -> dict[str, list[tuple[Path, Path, Path]]]:
    """Draw all sets; return good images, defective images and first parts of each new lot, and of the line."""
    for lot in range(LOTS):
        write(root / "train", "lot", 100 * seed + lot, IMAGES)
    places = {}
    for kind, lots in (("new lots", range(50, 50 + NEW_LOTS)), ("line", (90,))):
        places[kind] = [(root / f"{lot}-good", root / f"{lot}-bad", root / f"{lot}-parts") for lot in lots]
        for lot, (good, bad, parts) in zip(lots, places[kind], strict=True):
            name, number = "line" if kind == "line" else "lot", 100 * seed + lot
            write(good, name, number, GOOD)
            write(bad, name, number, DEFECTIVE, defective=True)
            write(parts, name, number, PARTS - BAD_PARTS, first=1000)
            write(parts, name, number, BAD_PARTS, first=1000, defective=True)
    return places


def scores(model: adctl.Model, folder: Path) -> np.ndarray:
    """Return the scores of the images of a folder."""
    return np.array([one.score for one in model.predict(sorted(folder.iterdir()))])


def measure(root: Path, arch: str, seed: int) -> list[tuple[str, str, float | None, float, float]]:
    """Return way, place, promise, false alarms and recall of each way on each place."""
    places, runs, rows = draw(root, seed), root / "runs", []
    shared = {"good": root / "train", "arch": arch, "image_size": SIZE, "seed": seed, "runs": runs, "device": "cpu"}
    trained = {
        "default": adctl.train(name="default", **shared),
        "--new-groups": adctl.train(name="groups", group="lot{group}_", new_groups=True, **shared),
    }
    for kind, lots in places.items():
        for good, bad, parts in lots:
            ways = {way: (result.model, result.calibration) for way, result in trained.items()}
            line = {"line": parts, "contaminated": BAD_PARTS / PARTS, "out": root / f"{parts.name}.safetensors"}
            made = adctl.calibrate(model=ways["default"][0], runs=runs, device="cpu", **line)
            ways["--line"] = made.model, made.calibration
            for way, (file, calibration) in ways.items():
                model = adctl.load(file, runs=runs, device="cpu")
                alarms = np.mean(scores(model, good) > calibration.threshold)
                recall = np.mean(scores(model, bad) > calibration.threshold)
                rows.append((way, kind, calibration.promised_false_alarm, float(alarms), float(recall)))
    return rows


def main(arch: str = "padim", seeds: int = 2) -> None:
    """Measure, and print a Markdown table with means over lots and seeds."""
    logging.disable(logging.WARNING)
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(Path(folder), arch, seed)
    print("| place | threshold | promised, at most | false alarms | most of a lot | recall |")
    print("|---|---|---|---|---|---|")
    for kind in ("new lots", "line"):
        for way in ("default", "--new-groups", "--line"):
            of = [row for row in rows if row[:2] == (way, kind)]
            promises = [row[2] for row in of if row[2] is not None]
            promised = f"{statistics.fmean(promises):.1%}" if promises else "nothing"
            alarms, recall = ([row[column] for row in of] for column in (3, 4))
            print(
                f"| {kind} | {way} | {promised} | {statistics.fmean(alarms):.1%} | {max(alarms):.1%} "
                f"| {statistics.fmean(recall):.1%} |"
            )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))

"""Benchmark of `train --contaminated`: defects that lie among the good images, found and left out.

    python examples/benchmarks/contaminated.py [--sets tiles,zippers] [--defects 0,2,5] [--data DATA]

For each set of `development.py`, 100 images are trained on, of which some have a painted defect, with `--contaminated
0.05` and without it. 60 other good images and 60 with painted defects are scored. The table gives the defects and the
good images that were left out, the image AUROC, and false alarms and recall at the default threshold. No real defect
is read. Kinds, strengths and places of the defects are those of `adctl.data.generated_defects`, with fixed seeds.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
from development import DATA, SETS
from sklearn.metrics import roc_auc_score

import adctl
from adctl.data.generated_defects import KINDS, paint

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

LEARNED, TESTED = 100, 60
SHARE = 0.05


def write(folder: Path, images: Sequence[NDArray[np.uint8]], defective: int, seed: int) -> None:
    """Write images, the first of them with a painted defect each."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        bad = number < defective
        pixels = paint(image, tuple(KINDS)[number % len(KINDS)], (seed, number)).image if bad else image
        cv2.imwrite(
            str(folder / f"{'bad' if bad else 'good'}{number:03d}.png"),
            pixels if pixels.ndim == 2 else pixels[..., ::-1],  # noqa: PLR2004
        )


def measure(folder: Path, test: Path, arch: str, runs: Path, contaminated: float | None) -> dict[str, Any]:
    """Train on a folder, and score the test images."""
    trained = adctl.train(good=folder, arch=arch, runs=runs, contaminated=contaminated, export="none")
    scored = adctl.score([test], model=trained.model, maps=False)
    truth = [Path(row.path).name.startswith("bad") for row in scored]
    rejected = [row.score > trained.calibration.threshold for row in scored]
    left_out = [Path(one.path).name.startswith("bad") for one in trained.set_aside]
    return {
        "found": sum(left_out),
        "lost": len(left_out) - sum(left_out),
        "auroc": roc_auc_score(truth, [row.score for row in scored]),
        "false_alarms": sum(no and not bad for no, bad in zip(rejected, truth, strict=True)) / truth.count(False),
        "recall": sum(no and bad for no, bad in zip(rejected, truth, strict=True)) / truth.count(True),
    }


def main() -> None:
    """Measure all sets, and print a row of the table after each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="tiles,zippers")
    parser.add_argument("--detectors", default="padim,patchcore")
    parser.add_argument("--defects", default="0,2,5")
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args()
    print("| set | detector | defects among 100 | left out: defects, good | AUROC | false alarms | recall |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name in arguments.sets.split(","):
            images = SETS[name](LEARNED + 2 * TESTED, arguments.data)
            random.Random(0).shuffle(images)  # noqa: S311 - neighbours may resemble each other
            test = Path(place, name, "test")
            write(test, images[LEARNED:], TESTED, 1)
            for defects in map(int, arguments.defects.split(",")):
                folder = Path(place, name, str(defects))
                write(folder, images[:LEARNED], defects, 2)
                for arch in arguments.detectors.split(","):
                    found = [
                        measure(folder, test, arch, Path(place, "runs"), contaminated) for contaminated in (None, SHARE)
                    ]
                    pairs = [f"{found[0][key]:.3f}, {found[1][key]:.3f}" for key in ("auroc", "false_alarms", "recall")]
                    left = f"{found[1]['found']}, {found[1]['lost']}"
                    print(f"| {name} | {arch} | {defects} | {left} | {' | '.join(pairs)} |", flush=True)


if __name__ == "__main__":
    main()

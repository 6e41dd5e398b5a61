"""Example of the Python API: train two detectors on the demo dataset, score the test images, print the metrics.

Run as: python examples/first_steps.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import adctl


def main() -> None:
    """Train, score and evaluate PatchCore and PaDiM."""
    adctl.fetch("demo")
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        for arch in ("patchcore", "padim"):
            trained = adctl.train(dataset="demo", category="zipper", arch=arch, runs=runs)
            scored = adctl.score(model=trained.model, runs=runs)
            reported = adctl.report(scored.folder, runs=runs)
            image, pixel = reported.evaluation.image, reported.evaluation.pixel
            print(
                f"{arch:10} trained in {trained.seconds:5.1f} s, scored {scored.images_per_second:5.1f} images/s, "
                f"image AUROC {image.auroc:.3f}, AUPRO {pixel.aupro:.3f}"
            )


if __name__ == "__main__":
    main()

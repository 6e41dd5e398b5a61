"""Time of a detector alone, and with a classifier that names the rejected images.

    python examples/benchmarks/one_pass.py line3/model.safetensors kinds/model.safetensors IMAGES

The two take turns; the table gives medians of the time for an image, and of the ratio of each pair. The threshold is
moved so that a given share of the images is rejected.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from adctl.data.datasets.layouts import list_images
from adctl.data.loader import load_image
from adctl.scoring.naming import NamingRuntime
from adctl.scoring.predict import predict_loaded
from adctl.scoring.score import open_model

SHARES = (0.05, 0.2, 1.0)
BATCH = 8


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("images")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--runtime", default="torch")
    chosen = parser.parse_args()
    alone = open_model(chosen.model, "cpu", None, chosen.runtime)
    naming = NamingRuntime(open_model(chosen.model, "cpu", None, chosen.runtime), chosen.classifier, "rejected")
    calibration = alone.header.calibration
    assert calibration is not None
    samples = list_images([chosen.images])[0]
    items = [load_image(sample, alone.input) for sample in samples[:: max(1, len(samples) // chosen.most)]]
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    scores = [one.score for batch in batches for one in predict_loaded(alone, batch, BATCH) if one.score is not None]
    print(f"{len(items)} images, one pass: {naming.shares}")
    print("| rejected | detector, ms | with classifier, ms | ratio |\n|---|---|---|---|")
    for share in SHARES:
        threshold = float(np.quantile(scores, 1 - share)) - 1e-9
        both = naming.judged_by(replace(calibration, threshold=threshold, warn_threshold=None))
        times: list[tuple[float, float]] = []
        for _ in range(chosen.rounds):
            pair = []
            for runtime in (alone, both):
                start = time.perf_counter()
                for batch in batches:
                    predict_loaded(runtime, batch, BATCH)
                pair.append(1000 * (time.perf_counter() - start) / len(items))
            times.append((pair[0], pair[1]))
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        ratio = statistics.median(second / first for first, second in times)
        print(f"| {share:.0%} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()

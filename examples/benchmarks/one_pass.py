"""Time of a detector alone, and with a classifier that names the rejected images.

    python examples/benchmarks/one_pass.py line3/model.safetensors kinds/model.safetensors IMAGES
    python examples/benchmarks/one_pass.py line3/model.xml line3/model-classifier.xml IMAGES

The second form compares the export of a detector alone (`adctl export --model line3 --format openvino`) with that of
detector and classifier in one graph (the same with `--classifier kinds`). The two take turns, and begin in turn; the
table gives medians of the time for an image, and of the ratio of each pair. The threshold is moved so that a given
share of the images is rejected. `--batch 1` measures single images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.datasets.layouts import list_images
from adctl.data.loader import load_image
from adctl.scoring.naming import NamingRuntime, OneGraphRuntime, with_names
from adctl.scoring.predict import predict_loaded
from adctl.scoring.score import open_model

if TYPE_CHECKING:
    from adctl.data.loader import LoadedImage
    from adctl.runtimes.base import Runtime

SHARES = (0.05, 0.2, 1.0)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the detector, or its export")
    parser.add_argument("classifier", type=Path, help="the classifier, or the export of both")
    parser.add_argument("images")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runtime", help="runtime of a model.safetensors; torch if left out")
    chosen = parser.parse_args()
    alone, naming = open_pair(chosen.model, chosen.classifier, chosen.runtime or "torch")
    calibration = alone.header.calibration
    assert calibration is not None
    samples = list_images([chosen.images])[0]
    items = [load_image(sample, alone.input) for sample in samples[:: max(1, len(samples) // chosen.most)]]
    batches = [items[start : start + chosen.batch] for start in range(0, len(items), chosen.batch)]
    found = [one for batch in batches for one in predict_loaded(alone, batch, chosen.batch)]
    scores = [one.score for one in found if one.score is not None]
    print(f"{len(items)} images, batches of {chosen.batch}, {alone.name}, one pass: {naming.shares}")
    print("| rejected | detector, ms | with classifier, ms | ratio |\n|---|---|---|---|")
    for share in SHARES:
        threshold = float(np.quantile(scores, 1 - share)) - 1e-9
        both = naming.judged_by(replace(calibration, threshold=threshold, warn_threshold=None))
        times: list[tuple[float, float]] = []
        for number in range(1 + chosen.rounds):
            order: list[Runtime] = [alone, both]
            spent = {runtime: milliseconds(runtime, batches) for runtime in (order if number % 2 else order[::-1])}
            if number:  # the first round is a warm-up
                times.append((spent[alone], spent[both]))
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        ratio = statistics.median(second / first for first, second in times)
        print(f"| {share:.0%} | {medians[0]:.1f} | {medians[1]:.1f} | {ratio:.3f} |")


def open_pair(model: Path, classifier: Path, runtime: str) -> tuple[Runtime, NamingRuntime]:
    """Open a detector alone, and with the classifier: that of a model file, or that in the graph of an export."""
    if classifier.suffix == ".safetensors":
        opened = [open_model(model, "cpu", None, runtime) for _ in range(2)]
        return opened[0], NamingRuntime(opened[1], classifier, "rejected")
    alone, both = (open_model(path, "cpu", None, "auto") for path in (model, classifier))
    naming = with_names(both, classifier, None, "rejected")
    assert isinstance(naming, OneGraphRuntime), f"{classifier} holds no classifier"
    return alone, naming


def milliseconds(runtime: Runtime, batches: list[list[LoadedImage]]) -> float:
    """Return the time of one image."""
    start = time.perf_counter()
    for batch in batches:
        predict_loaded(runtime, batch, len(batch))
    return 1000 * (time.perf_counter() - start) / sum(map(len, batches))


if __name__ == "__main__":
    main()

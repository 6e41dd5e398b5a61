"""Benchmark of decoding and resizing images, against a plain OpenCV loop, with 0 to 2 reading threads.

usage: python examples/benchmarks/decoding.py FOLDER [SIDE]

The plain loop calls cv2.imread, cvtColor and resize with area interpolation. All cases read all images of the folder
in turn, so that other load on the machine affects them equally; the shortest time of the rounds counts. Processor time
shows the cost of an image. Elapsed time shows whether threads help; on a busy machine, compare it with the plain loop
in two threads.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import cv2

from adctl.data.datasets.layouts import list_images
from adctl.data.loader import stream_images
from adctl.data.preprocess import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adctl.records import Sample

_ROUNDS = 5
_LARGEST_RATIO = 1.1


def plain(sample: Sample, side: int) -> None:
    """Read and resize one image with plain OpenCV."""
    image = cv2.imread(str(sample.path), cv2.IMREAD_COLOR)
    assert image is not None
    cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (side, side), interpolation=cv2.INTER_AREA)


def plain_in_threads(samples: Sequence[Sample], side: int, workers: int) -> None:
    """Run the plain loop in several threads."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda sample: plain(sample, side), samples))


def ours(samples: Sequence[Sample], side: int, workers: int) -> None:
    """Read the images as training and scoring do."""
    for item in stream_images(samples, InputSpec(side, side), workers=workers):
        assert item.error is None, item.error


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Return the processor seconds and the elapsed seconds of a call."""
    start, processors = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - processors, time.perf_counter() - start


def main() -> int:
    """Print the table; return 1 if an image costs more than 1.1 times the processor time of the plain loop."""
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 256  # noqa: PLR2004 - the second argument
    samples, _ = list_images([sys.argv[1]])
    cv2.setNumThreads(1)
    runs: dict[str, Callable[[], object]] = {
        "plain OpenCV loop": lambda: [plain(sample, side) for sample in samples],
        "adctl, 0 workers": lambda: ours(samples, side, 0),
        "plain, 2 threads": lambda: plain_in_threads(samples, side, 2),
        "adctl, 1 worker": lambda: ours(samples, side, 1),
        "adctl, 2 workers": lambda: ours(samples, side, 2),
    }
    best = dict.fromkeys(runs, (float("inf"), float("inf")))
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            best[name] = tuple(map(min, best[name], _seconds(run)))  # type: ignore[assignment] - two of two
    loop = best["plain OpenCV loop"]
    print(f"{len(samples)} images to {side} x {side}, ms an image (times the plain loop)")
    print(f"{'':<20}{'processor':>18}{'elapsed':>18}")
    for name, times in best.items():
        shown = (f"{t / len(samples) * 1000:8.2f} ({t / of:4.2f} x)" for t, of in zip(times, loop, strict=True))
        print(f"{name:<20}" + "".join(f"{text:>18}" for text in shown))
    return int(best["adctl, 0 workers"][0] > _LARGEST_RATIO * loop[0])


if __name__ == "__main__":
    sys.exit(main())

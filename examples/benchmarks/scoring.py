"""Benchmark of the scoring pipeline: its speed compared with the network alone, and its memory over many images.

    python examples/benchmarks/scoring.py [MODEL IMAGES [ROUNDS]]        MODEL.safetensors, .onnx, .xml, ...
    python examples/benchmarks/scoring.py memory [COUNT [PLOT.png]]

The first form measures a model file (default: a model trained on magnetic_tile) in turns: on pixels in memory, in one
large batch, and on the same images from disk, with and without heatmaps. For an OpenVINO model beside its
model.safetensors, the backbone alone is measured too: with OpenVINO's own queue of requests on prepared float32
tensors, and with adctl's runtime on pixels. Prints the median images per second, and the median share of the backbone's
or the bare runtime's speed in the same round.

The second form scores COUNT small generated images (default: 100,000) with a stand-in for the network that costs
almost nothing, and prints the memory of the process as it runs.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil

from adctl.config import LoadedSettings, ScoreSettings, TrainSettings, load
from adctl.data.datasets.layouts import list_images
from adctl.data.loader import load_image
from adctl.data.preprocess import InputSpec
from adctl.model_file import ModelHeader, Training
from adctl.records import CalibrationScores, Sample
from adctl.runtimes.base import Runtime, RuntimeOutput
from adctl.runtimes.loading import open_runtime
from adctl.scoring.heatmap_names import HeatmapNames
from adctl.scoring.score import HeatmapWriter, scored_rows
from adctl.scoring.score_set import ScoreWriter
from adctl.thresholds.methods import ThresholdRule, calibrate

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from adctl.exporting.graph import ExportSource

DATA = Path(__file__).parents[3] / "shared" / "data" / "magnetic_tile"
BATCH = 8
MOST_IMAGES = 256
QUEUE, OWN = "backbone, OpenVINO's queue", "backbone, adctl's runtime"
"""Names of the two cases that run the backbone alone."""

EXPECTED = tuple(np.linspace(0.5, 0.8, 40).tolist())
"""Scores of good images that calibrate the stand-in."""


def settings(**given: object) -> LoadedSettings[ScoreSettings]:
    """Load settings as the command line does."""
    return load(ScoreSettings, given)


def shares(model: Path, images: list[Sample], rounds: int) -> None:
    """Print images per second of the bare runtime and from disk."""
    runtime = open_runtime(model, "cpu")
    loaded = [load_image(sample, runtime.input) for sample in images]
    pixels = np.stack([item.pixels for item in loaded if item.pixels is not None])
    with tempfile.TemporaryDirectory() as out:
        cases: dict[str, Callable[[], object]] = {
            "bare runtime": lambda: runtime.predict(pixels),
            "from disk": lambda: from_disk(runtime, images, Path(out), heatmaps=False),
            "from disk, no maps.h5": lambda: from_disk(runtime, images, Path(out), heatmaps=False, maps=False),
            "from disk, heatmaps": lambda: from_disk(runtime, images, Path(out), heatmaps=True),
        }
        beside = model.with_name("model.safetensors")
        if runtime.name == "openvino" and beside.is_file():
            cases |= backbone_alone(beside, pixels, Path(out))
        seconds = interleaved(cases, rounds)
    bare = [name for name in (QUEUE, OWN) if name in seconds] or ["bare runtime"]
    print(f"{len(images)} images, {runtime.name} on {runtime.device}, batch {BATCH}, {rounds} rounds")
    print(f"{'':30} images/s  " + "  ".join(f"share of {name}" for name in bare))
    for name, taken in seconds.items():
        shares = (statistics.median(one / other for one, other in zip(seconds[of], taken, strict=True)) for of in bare)
        columns = "  ".join(f"{share:{len('share of ' + of)}.1%}" for share, of in zip(shares, bare, strict=True))
        print(f"{name:30} {len(images) / statistics.median(taken):8.1f}  {columns}")


def backbone_alone(model: Path, pixels: NDArray[np.uint8], folder: Path) -> dict[str, Callable[[], object]]:
    """Return the cases that run the backbone of a model in OpenVINO; none for a detector without a backbone."""
    from adctl.exporting.graph import ExportSource

    source = ExportSource.read(model)
    backbone = getattr(source.detector, "backbone", None)
    if backbone is None:
        return {}
    runtime = in_own_runtime(source, backbone, folder)
    prepared = [np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / 255 for image in pixels]
    queue = in_own_queue(backbone.network, prepared[0])

    def through_queue() -> None:
        for image in prepared:
            queue.start_async([image])
        queue.wait_all()

    return {QUEUE: through_queue, OWN: lambda: runtime.predict(pixels)}


def in_own_queue(network: torch.nn.Module, image: NDArray[np.float32]) -> Any:
    """Convert and compile a network with a queue of requests, as OpenVINO's documentation recommends for throughput."""
    import openvino
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter warns about its own internals
        converted = openvino.convert_model(network, example_input=torch.from_numpy(image))
    converted.reshape({converted.inputs[0]: list(image.shape)})
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.AsyncInferQueue(openvino.Core().compile_model(converted, "CPU", hints))


def in_own_runtime(source: ExportSource, backbone: torch.nn.Module, folder: Path) -> Runtime:
    """Export and open the backbone as adctl does with detectors, from pixels.

    Scores and maps are means of its features, whose cost is small compared with the backbone.
    """
    import torch

    from adctl.exporting import openvino
    from adctl.exporting.graph import ExportSource

    class Alone(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            levels = backbone(images)
            maps = levels[0].mean(1)
            return sum(level.mean((1, 2, 3)) for level in levels), maps

    alone = Alone()
    alone.backbone, alone.input, alone.backbone_name = backbone, source.detector.input, "backbone"
    openvino.write(ExportSource(alone, source.header, source.tensors), folder / "backbone.xml", "fp32", ())  # type: ignore[arg-type]
    return open_runtime(folder / "backbone.xml", "cpu")


def from_disk(runtime: Runtime, images: list[Sample], out: Path, *, heatmaps: bool, maps: bool = True) -> None:
    """Score as the command does, with a model that is already open."""
    calibration = runtime.header.calibration
    # A new folder each time: some file systems flush a file to disk when it replaces another one.
    folder = Path(tempfile.mkdtemp(dir=out))
    pictures = HeatmapWriter(HeatmapNames(folder), calibration, "none") if heatmaps else None
    given = settings(batch_size=BATCH).settings
    with (
        ScoreWriter(folder, {}, calibration, keep_maps=maps) as writer,
        closing(scored_rows(runtime, images, given, pictures, lambda row, cells, _: writer.add(row, cells))) as rows,
    ):
        for _ in rows:
            pass


def interleaved(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each case in each round, after a first round as warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class StandIn:
    """Runtime whose anomaly map is the mean brightness of 8 x 8 blocks."""

    name = "stand-in"
    device = "cpu"
    callers = 1
    input = InputSpec(64, 64)
    header = ModelHeader(
        "none",
        {},
        Training("none", "none", 0, "", (), None),
        calibrate(ThresholdRule(), CalibrationScores(good=EXPECTED, peaks=EXPECTED))[0],
    )

    def predict(self, pixels: NDArray[np.uint8]) -> RuntimeOutput:
        """Return scores [B] and maps [B,8,8] of pixels [B,64,64,3]."""
        maps = pixels.reshape(-1, 8, 8, 8, 24).mean((2, 4), dtype=np.float32) / 255
        return RuntimeOutput(maps.max((1, 2)).astype(np.float64), maps)


def memory(count: int, plot: Path | None) -> None:
    """Print the memory after each twentieth of the images."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        paths = small_images(Path(folder), 256)
        images = [Sample(paths[number % len(paths)], f"{number:06}.png") for number in range(count)]
        curve: list[tuple[int, float]] = []
        start = time.perf_counter()
        with (
            ScoreWriter(Path(folder) / "out", {}, StandIn.header.calibration, keep_maps=True) as writer,
            closing(
                scored_rows(StandIn(), images, settings().settings, None, lambda row, cells, _: writer.add(row, cells))
            ) as rows,
        ):
            step = max(1, count // 20)
            while (done := sum(1 for _ in islice(rows, step))) > 0:
                curve.append(((curve[-1][0] if curve else 0) + done, process.memory_info().rss / 2**20))
                print(f"{curve[-1][0]:8} images   {curve[-1][1]:7.1f} MiB", flush=True)
        print(f"{count / (time.perf_counter() - start):.0f} images/s")
    if plot is not None:
        draw(curve, plot)


def small_images(folder: Path, count: int) -> list[Path]:
    """Write images of noise, 64 x 64 pixels."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:03}.jpg" for number in range(count)]
    for path in paths:
        cv2.imwrite(str(path), generator.integers(0, 256, (64, 64, 3), np.uint8))
    return paths


def draw(curve: list[tuple[int, float]], path: Path) -> None:
    """Plot the memory over the number of images."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(*zip(*curve, strict=True), marker=".")
    axes.set(xlabel="images scored", ylabel="resident memory, MiB", ylim=(0, None), title="Memory of adctl score")
    figure.savefig(path, dpi=120)


def trained(folder: Path) -> Path:
    """Train the default detector on magnetic_tile, and return its model file."""
    from adctl.training.single_run import train_once

    result = train_once(load(TrainSettings, {"data": DATA, "runs": folder, "device": "cpu"}))
    assert result is not None
    return result.model


def main(*arguments: str) -> None:
    """Run one of the two benchmarks."""
    if arguments[:1] == ("memory",):
        plot = Path(arguments[2]) if len(arguments) > 2 else None  # noqa: PLR2004 - the third argument
        memory(int(arguments[1]) if len(arguments) > 1 else 100_000, plot)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(arguments[0]) if arguments else trained(Path(folder))
        images = list_images([arguments[1] if len(arguments) > 1 else DATA / "test"])[0]
        rounds = int(arguments[2]) if len(arguments) > 2 else 5  # noqa: PLR2004 - the third argument
        shares(model, images[:: max(1, len(images) // MOST_IMAGES)][:MOST_IMAGES], rounds)


if __name__ == "__main__":
    logging.getLogger("adctl").setLevel(logging.ERROR)
    main(*sys.argv[1:])

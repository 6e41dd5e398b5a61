"""Benchmark of the training engine: its overhead, and the memory that gradient checkpointing saves.

    python examples/benchmarks/training.py [ROUNDS]

Prints the time of a training step of `resnet` with the engine and with a bare PyTorch loop on the same model and
batches, measured in turns, and the median ratio; then the peak memory of a training with and without gradient
checkpointing, each in its own process.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from adctl.detectors.resnet import ResNetAutoencoder, ResNetConfig
from adctl.engine.batching import to_input
from adctl.engine.context import FitContext
from adctl.engine.history import FitSettings
from adctl.engine.phases import Batch, Optimize, total
from adctl.engine.trainer import FitJob, fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

SIZE, BATCH, STEPS = 128, 8, 8
CPU = torch.device("cpu")


class Noise:
    """Training set of random images in memory."""

    def __init__(self, count: int, size: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return the number of an image as its name."""
        return str(index)

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Yield batches of pixels [B,H,W,3]."""
        chosen = list(range(len(self)) if order is None else order)
        yield from (self.pixels[chosen[start : start + size]] for start in range(0, len(chosen), size))


def engine_step(model: ResNetAutoencoder, images: Noise) -> float:
    """Return the seconds per step of the engine."""
    report = fit(FitJob(model, images, None, FitSettings(epochs=1, batch_size=BATCH), CPU, FitContext()))
    return BATCH / report.history[0].images_per_second


def bare_step(model: ResNetAutoencoder, images: Noise) -> float:
    """Return the seconds per step of the same computation without the engine."""
    phase, *_ = model.phases()
    assert isinstance(phase, Optimize)
    parameters = list(phase.parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    model.train()
    start = time.perf_counter()
    for pixels in images.batches(BATCH):
        batch = to_input(pixels, CPU)
        optimizer.zero_grad(set_to_none=True)
        total(phase.loss(Batch(batch, batch))).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return (time.perf_counter() - start) / STEPS


def overhead(rounds: int) -> None:
    """Print the times of a step, and their ratio."""
    model = ResNetAutoencoder(ResNetConfig(image_size=SIZE)).to(memory_format=torch.channels_last)
    images = Noise(BATCH * STEPS, SIZE)
    pairs = []
    for turn in range(rounds + 1):
        pair = engine_step(model, images), bare_step(model, images)
        if turn:  # the first round includes work that is done once
            pairs.append(pair)
    engine, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"step of {BATCH} images: engine {1000 * engine:.0f} ms, bare loop {1000 * bare:.0f} ms, ratio {ratio:.3f}")


def peak(*, recompute: bool) -> float:
    """Return the peak memory of a training in a new process, GiB."""
    command = [sys.executable, __file__, "--peak", str(int(recompute))]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def train_and_print_peak(*, recompute: bool) -> None:
    """Train, and print the peak memory of this process, GiB."""
    model = ResNetAutoencoder(ResNetConfig(image_size=256))
    plan = FitSettings(epochs=1, batch_size=16, gradient_checkpointing=recompute)
    fit(FitJob(model, Noise(32, 256), None, plan, CPU, FitContext()))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main(rounds: int = 7) -> None:
    """Print the overhead and the peak memory."""
    overhead(rounds)
    without, with_ = peak(recompute=False), peak(recompute=True)
    print(f"peak memory, 256 pixels, batch 16: {without:.2f} GiB; with gradient checkpointing {with_:.2f} GiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        train_and_print_peak(recompute=sys.argv[2] == "1")
    else:
        main(*map(int, sys.argv[1:]))

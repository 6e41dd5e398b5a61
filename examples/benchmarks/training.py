"""What the training engine costs, and what gradient checkpointing saves.

    python examples/benchmarks/training.py [ROUNDS]

Prints the time of a training step of `resnet` by the engine and by a bare PyTorch loop on the same model and
batches, interleaved, with the median of the ratios; then the peak memory of a training with and without
gradient checkpointing, each in a process of its own.
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
    """Random images in memory."""

    def __init__(self, count: int, size: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Its number."""
        return str(index)

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Pixels [B,H,W,3]."""
        chosen = list(range(len(self)) if order is None else order)
        yield from (self.pixels[chosen[start : start + size]] for start in range(0, len(chosen), size))


def by_engine(model: ResNetAutoencoder, images: Noise) -> float:
    """Seconds a step."""
    report = fit(FitJob(model, images, None, FitSettings(epochs=1, batch_size=BATCH), CPU, FitContext()))
    return BATCH / report.history[0].images_per_second


def by_hand(model: ResNetAutoencoder, images: Noise) -> float:
    """Seconds a step of the same arithmetic without the engine."""
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
    """Print the times and the ratio."""
    model = ResNetAutoencoder(ResNetConfig(image_size=SIZE)).to(memory_format=torch.channels_last)
    images = Noise(BATCH * STEPS, SIZE)
    pairs = []
    for turn in range(rounds + 1):
        pair = by_engine(model, images), by_hand(model, images)
        if turn:  # the first round also pays for what is set up once
            pairs.append(pair)
    engine, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"step of {BATCH} images: engine {1000 * engine:.0f} ms, bare loop {1000 * bare:.0f} ms, ratio {ratio:.3f}")


def peak(*, recompute: bool) -> float:
    """GiB at the peak of a training of its own."""
    command = [sys.executable, __file__, "--peak", str(int(recompute))]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def train_and_print_peak(*, recompute: bool) -> None:
    """In a process of its own."""
    model = ResNetAutoencoder(ResNetConfig(image_size=256))
    plan = FitSettings(epochs=1, batch_size=16, gradient_checkpointing=recompute)
    fit(FitJob(model, Noise(32, 256), None, plan, CPU, FitContext()))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main(rounds: int = 7) -> None:
    """Print both."""
    overhead(rounds)
    without, with_ = peak(recompute=False), peak(recompute=True)
    print(f"peak memory, 256 pixels, batch 16: {without:.2f} GiB; with gradient checkpointing {with_:.2f} GiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        train_and_print_peak(recompute=sys.argv[2] == "1")
    else:
        main(*map(int, sys.argv[1:]))

"""Benchmarks of the prompt hybrid.

    python examples/benchmarks/prompt.py gpu               # one fp16 step and a throughput, on a CUDA GPU

`gpu` needs no weights: the networks have the shapes of Stable Diffusion 2.1 and random values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.prompt import PromptConfig, PromptDetector
from adctl.engine.gradient_checkpointing import checkpoint_activations
from adctl.engine.phases import Batch, total

_GIB = 2**30


def step_on_gpu(base: str = "random-sd-2-1", side: int = 512, batch: int = 4, steps: int = 5) -> dict[str, Any]:
    """Take real float16 training steps of the prompts, and score images, on a CUDA GPU; return the numbers.

    Args:
        base: Base with random weights; `random-tiny` tries the function.
        side: Side of the images, pixels.
        batch: Images of a step.
        steps: Measured steps with and without gradient checkpointing, after one that is not measured.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    torch.manual_seed(0)
    detector = PromptDetector(PromptConfig(base=base, image_size=side)).to(device)
    images = torch.rand(batch, 3, side, side, device=device)
    keys = tuple(f"train {number}" for number in range(batch))
    (phase,) = detector.phases()
    trained = list(phase.parameters)
    optimizer, scaler = torch.optim.AdamW(trained, lr=1e-3), torch.amp.GradScaler(device.type, enabled=gpu)
    cache = FeatureCache()

    def step() -> float:
        torch.manual_seed(1)  # the same painted copies: their latents are kept
        start = _now(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.float16 if gpu else torch.bfloat16):
            loss = total(detector.loss(Batch(images, images, keys=keys), cache))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss))
        return _now(device) - start

    losses: list[float] = []
    before = trained[0].detach().clone()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "base": base,
        "image_size": side,
        "batch": batch,
        "trained_parameters": sum(one.numel() for one in trained),
        "all_parameters": sum(one.numel() for one in detector.parameters()),
    }
    detector.train()
    for name, recompute in (("plain", False), ("checkpointing", True)):
        _reset(device)
        kinds = detector.recomputed if recompute else ()
        with checkpoint_activations(detector, kinds):
            found[f"first_step_seconds_{name}"] = step()
            found[f"step_seconds_{name}"] = statistics.median(step() for _ in range(steps))
        found[f"peak_gib_{name}"] = torch.cuda.max_memory_allocated() / _GIB if gpu else None
    found["losses"] = losses
    found["prompts_changed"] = not torch.equal(before, trained[0])
    found["images_per_second_scored"] = _throughput(detector.eval(), images, steps)
    return found


@torch.inference_mode()
def _throughput(detector: PromptDetector, images: torch.Tensor, rounds: int) -> float:
    """Return scored images a second, in half precision where there is a GPU."""
    device = images.device
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    took = []
    with torch.autocast(device.type, dtype):
        for _ in range(rounds + 1):
            start = _now(device)
            prediction = detector(images)
            took.append(_now(device) - start)
    assert torch.isfinite(prediction.scores).all()
    return len(images) / statistics.median(took[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Run the benchmark that the command line names, and print its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gpu",))
    parser.add_argument("--base", default="random-sd-2-1")
    parser.add_argument("--side", type=int, default=512)
    given = parser.parse_args()
    print(json.dumps(step_on_gpu(given.base, given.side), indent=2))


if __name__ == "__main__":
    main()

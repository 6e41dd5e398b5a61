"""Benchmarks of the prompt hybrid.

    python examples/benchmarks/prompt.py gpu               # one fp16 step and a throughput, on a CUDA GPU
    python examples/benchmarks/prompt.py zero-shot BASE    # generated categories, leave-one-out, as lines of JSON

`zero-shot` takes the folder that `examples/tiny_text_to_image.py` wrote. Prompts learn from the test parts of all other
categories; `untrained` are the words alone, `clip` the CLIP beside the base, and `patchcore` has 8 good images, the
fewest that a split takes.

`gpu` needs no weights: the networks have the shapes of Stable Diffusion 2.1 and random values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import adctl
from adctl.data.masks import read_mask
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


def zero_shot(base: Path, categories: list[str], seeds: int, epochs: int, images: int) -> None:
    """Train and measure each way on each category with each seed, and print a line for each."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from generated_textures import write_category

    ways: dict[str, dict[str, Any]] = {
        "trained": {"arch": "prompt", "weights": str(base), "epochs": epochs},
        "untrained": {"arch": "prompt", "weights": str(base), "epochs": 0},
        "clip": {"arch": "clip", "weights": str(base / "clip")},
        "patchcore": {"arch": "patchcore"},
    }
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in categories:
                write_category(root / "all", name, train=12, good=images, per_defect=images, size=64, seed=1000 + seed)
            for name in categories:
                for way, values in ways.items():
                    given = dict(values) | ({"auxiliary": root / "all"} if way == "trained" else {})
                    if way == "patchcore":
                        given["good"] = _few(root / "all" / name / "train" / "good", root / "few" / name)
                    else:
                        given |= {"data": root / "all", "category": name}
                    model = adctl.train(
                        **given, image_size=64, runs=root / "runs", seed=seed, device="cpu", export="none"
                    ).model
                    row = {"seed": seed, "category": name, "way": way, **_measured(model, root / "all" / name)}
                    print(json.dumps(row), flush=True)


def _few(source: Path, target: Path) -> Path:
    """Copy the first eight images, the fewest that a split takes."""
    target.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(source.iterdir())[:8]):
        (target / f"{number}.png").write_bytes(path.read_bytes())
    return target


def _measured(model: Path, category: Path) -> dict[str, float]:
    """Return image and pixel AUROC and image AP of a model on the test part of a category."""
    files = sorted((category / "test").glob("*/*.png"))
    found = adctl.load(model).predict(files)
    labels, pixels, values = [], [], []
    for path, one in zip(files, found, strict=True):
        mask = category / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        labels.append(mask.is_file())
        pixels.append(read_mask(mask) if mask.is_file() else np.zeros(one.map.shape, np.bool_))
        values.append(one.map)
    scores = [one.score for one in found]
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "pixel_auroc": float(roc_auc_score(np.concatenate(pixels, None), np.concatenate(values, None))),
    }


def main() -> None:
    """Run the benchmark that the command line names, and print its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gpu", "zero-shot"))
    parser.add_argument("folder", type=Path, nargs="?", help="base model for zero-shot")
    parser.add_argument("--categories", nargs="+", default=["fabric", "wood", "bricks", "leather"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=10, help="test images, good and of each defect")
    parser.add_argument("--base", default="random-sd-2-1")
    parser.add_argument("--side", type=int, default=512)
    given = parser.parse_args()
    if given.what == "zero-shot":
        zero_shot(given.folder, given.categories, given.seeds, given.epochs, given.images)
        return
    print(json.dumps(step_on_gpu(given.base, given.side), indent=2))


if __name__ == "__main__":
    main()

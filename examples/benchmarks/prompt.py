"""Benchmarks of the prompt hybrid.

    python examples/benchmarks/prompt.py gpu                        # one fp16 step and a throughput, on a CUDA GPU
    python examples/benchmarks/prompt.py steps --base BASE          # time and memory of training steps, on this CPU
    python examples/benchmarks/prompt.py zero-shot OUT --base BASE  # generated categories, leave-one-out
    python examples/benchmarks/prompt.py photographs OUT --base BASE --visa DIR --mvtec DIR

`zero-shot` takes the folder that `examples/tiny_text_to_image.py` wrote. Prompts learn from defects of all other
categories; `untrained` are the words "object" and "damaged object" alone, `words` name category and defects, `clip` is
the CLIP beside the base, and `patchcore` has 4 good images. OUT/rows.jsonl gets a line for each model, and
OUT/table.md their means and spreads. A repeated call measures what is missing; `--minutes` ends it early.

`photographs` trains prompts on all categories of VisA and tests them on MVTec AD, and the reverse; further folders in
MVTec AD layout with `--test NAME=DIR`, such as BTAD and MPDD.

`gpu` needs no weights: the networks have the shapes of Stable Diffusion 2.1 and random values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import adctl
from adctl.data.masks import read_mask
from adctl.detectors.components.feature_cache import FeatureCache
from adctl.detectors.prompt import PromptConfig, PromptDetector
from adctl.engine.gradient_checkpointing import checkpoint_activations
from adctl.engine.phases import Batch, total
from adctl.metrics.exact import ExactMeter
from adctl.training.step_forecast import step_costs

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


def steps_on_cpu(base: Path, side: int = 64, batch: int = 4, rounds: int = 15) -> dict[str, Any]:
    """Time steps in turn: with encoding, on kept latents, and with gradient checkpointing; and count their memory."""
    config = PromptDetector.completed(
        PromptConfig(image_size=side, learn_from="auxiliary"), weights=str(base), epochs=None, labelled=True
    )
    detector = PromptDetector(config).train()
    optimizer = torch.optim.AdamW(detector.prompts.parameters(), lr=1e-3)

    def step(*, encode: bool, kinds: tuple[type, ...] = ()) -> float:
        start = time.perf_counter()
        if encode:
            detector.encode_trial(batch)
        with checkpoint_activations(detector, kinds):
            detector.trial_loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    ways: dict[str, dict[str, Any]] = {
        "encoding": {"encode": True},
        "kept": {"encode": False},
        "recomputed": {"encode": False, "kinds": detector.recomputed},
    }
    seconds = [{name: step(**way) for name, way in ways.items()} for _ in range(rounds)][1:]
    counted = step_costs(detector, batch)
    cost = {name: getattr(counted, name) for name in ways}
    return {
        "trained": counted.trained,
        "parameters": counted.parameters,
        "seconds": {name: statistics.median(one[name] for one in seconds) for name in ways},
        "mib": {name: one.memory / 2**20 for name, one in cost.items()},
        "gflop": {name: one.flops / 1e9 for name, one in cost.items()},
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


Row = dict[str, Any]


def zero_shot(
    out: Path, base: Path, categories: list[str], seeds: int, deadline: float, wanted: list[str] | None = None
) -> None:
    """Train and measure each way on each generated category with each seed."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from generated_textures import CATEGORIES, defects_of, write_category

    for seed in range(seeds):
        others, tested = out / f"others-{seed}", out / f"tested-{seed}"
        for name in CATEGORIES:
            if not (others / name).exists():
                write_category(others, name, train=1, good=8, per_defect=4, size=64, seed=2000 + seed)
                write_category(tested, name, train=12, good=20, per_defect=10, size=64, seed=1000 + seed)
        for name in categories:
            defects = ", a ".join(one.replace("_", " ") for one in defects_of(name))
            words = {"normal": f"a good {name}", "abnormal": f"a damaged {name} with a {defects}"}
            common = {"data": tested, "category": name, "image_size": 64, "seed": seed}
            prompt = {**common, "arch": "prompt", "weights": str(base)}
            few = {"data": None, "category": None, "image_size": 256}
            ways: dict[str, Row] = {
                "trained": {**prompt, "auxiliary": others},
                "untrained": {**prompt, "epochs": 0},
                "words": {**prompt, "epochs": 0, "options": words},
                "patchcore": {**common, **few, "arch": "patchcore", "good": _few(tested / name, out / f"few-{seed}")},
                "clip": {**common, "arch": "clip", "weights": str(base / "clip"), "options": {"object": name}},
            }
            for way, values in ways.items():
                if (wanted is None or way in wanted) and time.monotonic() < deadline:
                    _measure_once(out, {"seed": seed, "category": name, "way": way}, values, tested / name)
    _write_table(out)


def photographs(out: Path, base: Path, folders: dict[str, Path], deadline: float) -> None:
    """Train prompts on VisA and test them on every category of the other sets, and train on MVTec AD to test on VisA.

    The good images of the tested category set the threshold alone, which these numbers do not use.
    """
    for source, names in (("visa", [name for name in folders if name != "visa"]), ("mvtec", ["visa"])):
        for name in names:
            for category in sorted(path.name for path in folders[name].iterdir() if (path / "test").is_dir()):
                values = {
                    "arch": "prompt", "weights": str(base), "auxiliary": folders[source],
                    "data": folders[name], "category": category,
                }  # fmt: skip
                if time.monotonic() < deadline:
                    key = {"seed": 0, "category": f"{name}/{category}", "way": f"trained on {source}"}
                    _measure_once(out, key, values, folders[name] / category)
    _write_table(out)


def _measure_once(out: Path, key: Row, values: Row, category: Path) -> None:
    """Train and measure a model unless its row exists, and add the row."""
    rows = _rows(out)
    if any(key.items() <= row.items() for row in rows):
        return
    start = time.perf_counter()
    given = {name: value for name, value in values.items() if value is not None}
    options = {"device": "auto", "runs": out / "runs", "export": "none", "log": (), **given}
    model = adctl.train(**options).model
    row = {**key, **_measured(model, category), "seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps(row), flush=True)
    with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _rows(out: Path) -> list[Row]:
    path = out / "rows.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _write_table(out: Path) -> None:
    """Write and print mean and standard deviation over the seeds, by category and over the categories."""
    rows = _rows(out)
    lines = ["| category | way | image AUROC | image AP | pixel AUROC | AUPRO |", "|---|---|---|---|---|---|"]
    for category in [*dict.fromkeys(row["category"] for row in rows), "mean"]:
        for way in dict.fromkeys(row["way"] for row in rows):
            chosen = [row for row in rows if row["way"] == way and category in ("mean", row["category"])]
            seeds = {row["seed"]: [one for one in chosen if one["seed"] == row["seed"]] for row in chosen}
            cells = []
            for name in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
                means = [statistics.fmean(one[name] for one in found) for found in seeds.values()]
                spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
                cells.append(f"{statistics.fmean(means):.3f}{spread}" if means else "")
            lines.append(f"| {category} | {way} | {' | '.join(cells)} |")
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)


def _few(category: Path, target: Path) -> Path:
    """Copy the first four good images."""
    folder = target / category.name
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted((category / "train" / "good").iterdir())[:4]):
        (folder / f"{number}.png").write_bytes(path.read_bytes())
    return folder


def _measured(model: Path, category: Path) -> dict[str, float]:
    """Return the metrics of a model on the test part of a category."""
    files = sorted((category / "test").glob("*/*.*"))
    found = adctl.load(model).predict(files)
    labels, pixels = [], ExactMeter()
    for path, one in zip(files, found, strict=True):
        (mask, *_) = [*(category / "ground_truth" / path.parent.name).glob(f"{path.stem}*"), None]
        labels.append(path.parent.name != "good")
        pixels.add(one.map, None if mask is None else read_mask(mask))
    scores, measured = [one.score for one in found], pixels.result()
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "pixel_auroc": float(measured.auroc or 0),
        "aupro": float(measured.aupro or 0),
    }


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gpu", "steps", "zero-shot", "photographs"))
    parser.add_argument("out", type=Path, nargs="?", default=Path("prompt-benchmark"), help="folder for rows and table")
    parser.add_argument("--base", help="folder of the base model, or a base with random weights for gpu")
    parser.add_argument("--categories", nargs="+", default=["zipper", "fabric", "wood", "leather"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="ways to measure; all if left out")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no further model after this time")
    parser.add_argument("--side", type=int, default=512, help="side of the images of gpu, pixels")
    parser.add_argument("--visa", type=Path, help="VisA in MVTec AD layout")
    parser.add_argument("--mvtec", type=Path, help="MVTec AD")
    parser.add_argument("--test", nargs="*", default=[], metavar="NAME=DIR", help="further sets in MVTec AD layout")
    given = parser.parse_args()
    deadline = time.monotonic() + 60 * given.minutes
    if given.what in {"zero-shot", "photographs"}:
        given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "zero-shot":
        zero_shot(given.out, Path(given.base), given.categories, given.seeds, deadline, given.ways)
    elif given.what == "steps":
        print(json.dumps(steps_on_cpu(Path(given.base)), indent=2))
    elif given.what == "photographs":
        more = dict(one.split("=", 1) for one in given.test)
        folders = {"visa": given.visa, "mvtec": given.mvtec, **{name: Path(path) for name, path in more.items()}}
        photographs(given.out, Path(given.base), folders, deadline)
    else:
        print(json.dumps(step_on_gpu(given.base or "random-sd-2-1", given.side), indent=2))


if __name__ == "__main__":
    main()

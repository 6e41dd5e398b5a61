"""Benchmark of few good images: image AUROC with 1, 2, 4 and 8 of them, over several draws.

    python examples/benchmarks/few_shot.py [DATA ...] [--options "--set rotations=8"] [--draws 5] [--every 4]

For each dataset in MVTec AD layout and each draw, with seeds 0, 1, ..., good training images are drawn; the first 1, 2,
4 and 8 of them are learned from. `--every` scores every n-th test image. The table gives mean and standard deviation
over the draws, for the default settings and for each of `--options`. `--list DIR` links the drawn images of each draw
to DIR/DATA/DRAW and the test images to DIR/DATA/test, for other tools to learn from and score the same images:
`examples/peer_anomalib/few_shot.py DIR`. `--generate DIR` writes the generated categories of
`examples/generated_textures.py` to DIR and measures them too.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import roc_auc_score

from adctl.config import TrainSettings, validated
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import collect
from adctl.training.fitting import refit
from adctl.training.plan import plan_training

if TYPE_CHECKING:
    from adctl.records import Sample

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SHOTS = (1, 2, 4, 8)


def settings_of(data: Path, options: str) -> TrainSettings:
    """Return the settings of a training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="patchcore")
    parser.add_argument("--backbone")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", default="auto")
    parser.add_argument("--set", action="append", default=[])
    given = vars(parser.parse_args(shlex.split(options)))
    chosen = dict(option.split("=", 1) for option in given.pop("set"))
    return validated(TrainSettings, {"data": data, **given, "options": chosen})


def measure(data: Path, options: str, draws: int, every: int, listed: Path | None) -> dict[int, list[float]]:
    """Return the image AUROC of each draw by the number of images."""
    settings = settings_of(data, options)
    plan = plan_training(settings)
    good = plan.split.train
    images = plan.dataset.test[::every]
    truth = np.array([sample.label != "good" for sample in images])
    if listed is not None:
        for number, sample in enumerate(images):
            link(sample, listed / data.name / "test" / str(sample.label) / f"{number}{sample.path.suffix}")
    found: dict[int, list[float]] = {shots: [] for shots in SHOTS}
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(good))[: max(SHOTS)]
        chosen = [good[place] for place in order]
        if listed is not None:
            for number, sample in enumerate(chosen):
                link(sample, listed / data.name / str(draw) / f"{number}{sample.path.suffix}")
        for shots in SHOTS:
            detector, header = refit(settings, plan, tuple(chosen[:shots]))
            runtime = TorchRuntime.of(detector, header, plan.device.device)
            scores = collect(runtime, images, batch_size="auto", workers=2).scores
            found[shots].append(float(roc_auc_score(truth, scores)))
    return found


def link(sample: Sample, path: Path) -> None:
    """Make a link to the file of an image, unless there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(sample.path.absolute())


def generated(folder: Path) -> list[Path]:
    """Write the generated categories, each with 40 good images to draw from, and return their folders."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from generated_textures import CATEGORIES, write_category

    counts = {"train": 40, "good": 20, "per_defect": 7, "size": 256, "seed": 0}
    return [write_category(folder, category, **counts) for category in CATEGORIES]


def main() -> None:
    """Measure, and print a row of the table after each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path, default=[SHARED / "magnetic_tile", SHARED / "hazelnut_toy"])
    parser.add_argument("--options", action="append", default=[])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--list", type=Path)
    parser.add_argument("--generate", type=Path)
    arguments = parser.parse_args()
    datasets = [*arguments.data, *(generated(arguments.generate) if arguments.generate else [])]
    print(f"| data | options | {' | '.join(f'{shots} images' for shots in SHOTS)} |")
    print("|---|---|" + "---|" * len(SHOTS))
    for data in datasets:
        with shared_features():
            for number, options in enumerate(["", *arguments.options]):
                found = measure(data, options, arguments.draws, arguments.every, None if number else arguments.list)
                cells = [f"{statistics.mean(one):.3f} ± {statistics.pstdev(one):.3f}" for one in found.values()]
                print(f"| {data.name} | `{options or 'defaults'}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

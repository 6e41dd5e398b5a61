"""Benchmark of tuning: whether settings chosen by generated defects are better on real ones.

    python examples/benchmarks/tuning.py [--data DATA] [--detectors padim,patchcore] [--trials 40] [--out OUT.json]

For each detector, `adctl tune` searches with its defaults and seed 0 and never reads a test image. Afterwards the
settings of each completed trial are trained on all good images and scored on the test part once, at fixed settings. The
table gives the objective and the test metrics of the default and of the best trial, the rank correlation between
objective and test metric over all trials, and the trials per minute, with shared features and with none, on the same
trials. A repeated call continues; calls for different detectors can share OUT.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

import adctl
from adctl import files
from adctl.config import TrainSettings, validated
from adctl.detectors.components.shared_feature_cache import shared_features, unshared
from adctl.detectors.registry import detector_class
from adctl.progress import SILENT
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import collect
from adctl.tracking import database
from adctl.training.fitting import refit
from adctl.training.plan import plan_training
from adctl.tuning.objective import development_benchmark, evaluate, with_values
from adctl.tuning.search_space import search_space

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "magnetic_tile"
DETECTORS = "padim,patchcore,simplenet"
SPLITS = 2
_TIMED = 3


def settings_of(arch: str, data: Path, options: list[str]) -> TrainSettings:
    """Return the settings of training."""
    given: dict[str, Any] = {"arch": arch, "data": data}
    for option in options:
        name, value = option.split("=")
        given[name] = json.loads(value)
    return validated(TrainSettings, given)


def search(settings: TrainSettings, trials: int, runs: Path) -> tuple[list[optuna.trial.FrozenTrial], float]:
    """Tune; return the completed trials and the seconds that this call took."""
    start = time.perf_counter()
    given: dict[str, Any] = {"epochs": settings.epochs} if settings.epochs else {}
    adctl.tune(
        arch=settings.arch, data=settings.data, trials=trials, runs=runs, name=f"tune-{settings.arch}", splits=SPLITS,
        final_model=False, pruner="none", **given,
    )  # fmt: skip
    study = optuna.load_study(study_name=f"tune-{settings.arch}", storage=database.address(runs))
    done = [trial for trial in study.get_trials() if trial.state == optuna.trial.TrialState.COMPLETE]
    return done, time.perf_counter() - start


def test_metrics(settings: TrainSettings, values: dict[str, Any]) -> dict[str, float]:
    """Train with some values on all good images, and return the metrics of the test part."""
    changed = with_values(settings, values)
    plan = plan_training(changed)
    good = (*plan.split.train, *plan.split.validation, *plan.split.calibration)
    learned = plan.split.train if detector_class(settings.arch).needs_validation else good
    detector, header = refit(changed, plan, learned, SILENT)
    runtime = TorchRuntime.of(detector, header, plan.device.device)
    images = plan.dataset.test
    scores = collect(runtime, images, batch_size="auto", workers=2).scores
    truth = np.array([sample.label != "good" for sample in images])
    return {"auroc": float(roc_auc_score(truth, scores)), "ap": float(average_precision_score(truth, scores))}


def seconds_per_trial(settings: TrainSettings, trials: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the median seconds of a trial with shared features and with none, measured in turn."""
    took: dict[bool, list[float]] = {True: [], False: []}
    with development_benchmark(settings, folds=SPLITS, defects=None, seed=settings.seed) as benchmark:
        evaluate(benchmark, settings, trials[0], ("ap",))  # fills the cache, as the first trial does
        for values in trials[:_TIMED]:
            for shared in (True, False):
                start = time.perf_counter()
                with nullcontext() if shared else unshared():
                    evaluate(benchmark, settings, values, ("ap",))
                took[shared].append(time.perf_counter() - start)
    return statistics.median(took[True]), statistics.median(took[False])


def measure(arch: str, arguments: argparse.Namespace) -> None:
    """Tune one detector, and look at the test part with the settings of each trial."""
    kept = read(arguments.out).get(arch, {})
    settings = settings_of(arch, arguments.data, arguments.set)
    space = search_space(detector_class(arch), {}, {})
    done, seconds = search(settings, arguments.trials, arguments.runs)
    rows = kept.setdefault("trials", {})
    for trial in done:
        if str(trial.number) not in rows:
            values = space.settings_of(trial.params)
            rows[str(trial.number)] = {
                "objective": trial.values[0],
                **test_metrics(settings, values),
                "values": trial.params,
            }
            save(arguments.out, arch, kept)
            print(arch, trial.number, rows[str(trial.number)], flush=True)
    kept.setdefault("search_seconds", seconds)
    if "seconds" not in kept:
        kept["seconds"] = seconds_per_trial(settings, [space.settings_of(trial.params) for trial in done[:_TIMED]])
    save(arguments.out, arch, kept)


def read(file: Path) -> dict[str, Any]:
    """Return the results of earlier calls by detector."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def save(file: Path, arch: str, kept: dict[str, Any]) -> None:
    """Write the results of one detector beside those of others, which another call may be writing."""
    files.write_json(file, read(file) | {arch: kept})


def table(found: dict[str, Any]) -> str:
    """Format the results as a Markdown table."""
    names = ["detector", "trials", "objective: default, best", "test AUROC", "test AP", "Spearman AUROC, AP"]
    lines = [
        f"| {' | '.join([*names, 'trials a minute: shared features, none'])} |",
        "|---|---|---|---|---|---|---|",
    ]
    for arch, kept in found.items():
        if "seconds" not in kept:  # another call is measuring it
            continue
        rows = list(kept["trials"].values())
        default, best = kept["trials"]["0"], max(rows, key=lambda row: row["objective"])
        objective = [row["objective"] for row in rows]
        agreement = [spearmanr(objective, [row[name] for row in rows]).statistic for name in ("auroc", "ap")]
        pairs = [f"{default[name]:.4f}, {best[name]:.4f}" for name in ("objective", "auroc", "ap")]
        speeds = [60 / seconds for seconds in kept["seconds"]]
        lines.append(
            f"| {arch} | {len(rows)} | {' | '.join(pairs)} | {agreement[0]:.2f}, {agreement[1]:.2f} "
            f"| {speeds[0]:.1f}, {speeds[1]:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all detectors, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--detectors", default=DETECTORS)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--set", nargs="*", default=[], help="settings of training, such as epochs=2")
    parser.add_argument("--runs", type=Path, default=Path(os.environ.get("ADCTL_RUNS", "runs")))
    parser.add_argument("--out", type=Path, default=Path("tuning.json"))
    arguments = parser.parse_args()
    with shared_features():
        for arch in arguments.detectors.split(","):
            measure(arch, arguments)
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()

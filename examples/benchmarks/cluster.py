"""Benchmark of several machines and many products: scoring and grids on a Ray cluster, and one model of all categories.

    python examples/benchmarks/cluster.py cost FOLDER
    python examples/benchmarks/cluster.py overhead FOLDER [IMAGES] [ROUNDS]
    python examples/benchmarks/cluster.py nodes FOLDER [IMAGES]
    python examples/benchmarks/cluster.py grid FOLDER
    python examples/benchmarks/cluster.py trials FOLDER
    python examples/benchmarks/cluster.py products FOLDER [ARCH,ARCH]

FOLDER keeps the generated images and the results; everything has seed 0. `cost` measures the
processor time of an image on a node and in the command, and its memory in the command, for examples/cluster/plan.py.
`overhead` scores images (2,000) on the cores
of this machine with `adctl score` and with a cluster of one node, in turns. `nodes` scores images (20,000 of 64 pixels)
on three nodes in this machine, ends one in the middle, and compares the rows with those of a single process. `grid`
trains 3 detectors x 4 categories x 2 seeds in this process and on three nodes, and compares the digests of the models;
run it with OMP_NUM_THREADS=1, because a node has one thread. `trials` tunes on two nodes and kills the process of a
trial. `products` trains one model of all eight generated categories and one for each, and compares AUROC, wrong
verdicts, size and time; it also counts how often the nearest product is the right one.
"""

from __future__ import annotations

import importlib
import os
import pickle
import shutil
import signal
import statistics
import sys
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from sklearn.metrics import roc_auc_score

import adctl
from adctl.config import ScoreSettings, TrainSettings, TuneSettings, load
from adctl.data.datasets.layouts import open_data
from adctl.fetching import demo_trays
from adctl.progress import SILENT, Reporter
from adctl.ray_cluster import Caller
from adctl.records import Sample
from adctl.scoring.products import nearest_products
from adctl.scoring.ray_score import Scorer
from adctl.scoring.ray_score import score as score_on_cluster
from adctl.scoring.score import ScoreSummary
from adctl.tracking import database
from adctl.training.train import train
from adctl.tuning import tune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

sys.path.insert(0, str(Path(__file__).parents[1]))
from generated_textures import CATEGORIES, write_category

GRID = {"arch": "padim,patchcore,cnn", "category": "zipper,fabric,wood,bricks", "seed": "0,1"}
_HEAD = "| category | AUROC, own | one for all | false alarms + misses, own | one for all |"
PRODUCTS = (*CATEGORIES, "tray", "pills")


def data(folder: Path, names: Sequence[str], size: int) -> Path:
    """Return a folder with generated categories: 60 good training images, 20 good and some defective test images."""
    root = folder / f"data-{size}"
    for name in names:
        if not (root / name).is_dir():
            given: dict[str, Any] = {"train": 60, "good": 20, "per_defect": 4, "size": size, "seed": 0}
            if name in CATEGORIES:
                write_category(root, name, **given)
            else:
                demo_trays.generate(root, name, **given)
    return root


def padim(folder: Path, size: int) -> Path:
    """Return a PaDiM of zippers."""
    name = f"padim-{size}"
    if not (folder / name / "model.safetensors").is_file():
        adctl.train(
            data=data(folder, ["zipper"], 96) / "zipper", runs=folder, name=name, arch="padim", image_size=size,
            device="cpu", export="none",
        )  # fmt: skip
    return folder / name


def images(folder: Path, count: int, size: int) -> Path:
    """Return a folder of zippers, each a little lighter or darker than any other."""
    found = folder / f"images-{count}-{size}"
    if not found.is_dir():
        sources = sorted((data(folder, ["zipper"], 96) / "zipper" / "test").glob("*/*.png"))
        pixels = [cv2.resize(cv2.imread(str(path)), (size, size), interpolation=cv2.INTER_AREA) for path in sources]
        partial = found.with_name(found.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        for number in range(count):
            gain, noise = random.uniform(0.95, 1.05), random.integers(-2, 3, (size, size, 3))
            changed = np.clip(pixels[number % len(pixels)] * gain + noise, 0, 255).astype(np.uint8)
            cv2.imwrite(str(partial / f"{number:06}.png"), changed, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        partial.rename(found)
    return found


@contextmanager
def nodes(count: int, cpus: int) -> Iterator[Any]:
    """Run a cluster of several nodes in this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = importlib.import_module("ray")
    made = importlib.import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False}
    )
    made.others = [made.add_node(num_cpus=cpus) for _ in range(count - 1)]
    ray.init(address=made.address, log_to_driver=False)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


class Watcher(Reporter):
    """Calls a function once, when a stage has come so far."""

    def __init__(self, title: str, at: int, act: Callable[[], None]) -> None:
        self._title, self._at, self._act = title, at, act

    @contextmanager
    def stage(self, title: str, *_: Any, **__: Any) -> Iterator[Callable[..., None]]:
        """Report a stage."""

        def update(done: int, _: int | None = None) -> None:
            if title == self._title and done >= self._at:
                act, self._act = self._act, lambda: None
                act()

        yield update


def scored(source: Path, model: Path, out: Path, ray: str | None, reporter: Reporter = SILENT) -> Any:
    """Score images into an empty folder; return the result and the seconds."""
    shutil.rmtree(out, ignore_errors=True)
    given: dict[str, Any] = {
        "model": model,
        "runs": out.parent,
        "out": out,
        "device": "cpu",
        "heatmaps": False,
        "maps": False,
    }
    start = time.perf_counter()
    if ray is None:
        result = adctl.score(str(source), **given)
    else:
        result = score_on_cluster(load(ScoreSettings, {"images": (str(source),), "ray": ray, **given}), reporter)
    return result, time.perf_counter() - start


def difference(rows: Sequence[Any], others: Sequence[Any]) -> str:
    """Describe how the rows of two scored sets differ."""
    same = sum(row.score == other.score for row, other in zip(rows, others, strict=True))
    verdicts = sum(row.verdict != other.verdict for row, other in zip(rows, others, strict=True))
    most = max(abs(row.score / other.score - 1) for row, other in zip(rows, others, strict=True))
    keys = [row.key for row in rows] == [row.key for row in others]
    twice = len(rows) - len({row.key for row in rows})
    return (
        f"{len(rows)} rows, {'the same images in the same order' if keys else 'OTHER IMAGES'}, {twice} twice; "
        f"{same} scores identical to the last bit, largest relative difference {most:.2g}; {verdicts} other verdicts"
    )


def cost(folder: Path, count: int = 1024) -> None:
    """Print what an image costs on a node and in the command; PatchCore in OpenVINO, images of 256 pixels."""
    if not (folder / "patchcore" / "model.safetensors").is_file():
        root = data(folder, ["zipper"], 256) / "zipper"
        adctl.train(data=root, runs=folder, name="patchcore", image_size=256, device="cpu", export="always")
    settings = load(ScoreSettings, {"device": "cpu"}).settings
    model = folder / "patchcore" / "model.safetensors"
    bundle = {path.name: path.read_bytes() for path in model.parent.iterdir() if path.is_file()}
    scorer = Scorer(Caller.here(1), bundle, model.name, settings)
    samples = [Sample(path, path.name) for path in sorted(images(folder, count, 256).iterdir())]
    scorer.score(samples[:64], None)
    start, elapsed = time.process_time(), time.perf_counter()
    rows = scorer.score(samples, None)
    node, elapsed = time.process_time() - start, time.perf_counter() - elapsed
    parts = [pickle.dumps(rows[first : first + 256]) for first in range(0, count, 256)]
    tracemalloc.start()
    kept = [[(row, ()) for row, _ in pickle.loads(part)] for part in parts]  # noqa: S301 - our own
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    start = time.process_time()
    summary = ScoreSummary(None)
    for part in parts:
        for row, inputs in pickle.loads(part):  # noqa: S301 - our own
            summary.add(row, inputs)
    command = time.process_time() - start
    size = sum(sample.path.stat().st_size for sample in samples) / count
    print(f"{count} images of {size / 1e3:.0f} kB: {1000 * node / count:.2f} ms of a core, {elapsed:.1f} s elapsed")
    print(f"in the command: {1000 * command / count:.3f} ms and {held / sum(map(len, kept)):.0f} bytes an image")


def overhead(folder: Path, count: int = 2000, rounds: int = 3) -> None:
    """Print the time of scoring on the same cores without and with a cluster."""
    source, model = images(folder, count, 96), padim(folder, 128)
    with nodes(1, os.cpu_count() or 1):
        seconds: dict[str | None, list[float]] = {None: [], "auto": []}
        for _ in range(rounds):
            rows = {}
            for ray, found in seconds.items():
                result, taken = scored(source, model, folder / "out", ray)
                rows[ray] = result.rows
                found.append(taken)
    ratios = [with_ray / plain for plain, with_ray in zip(seconds[None], seconds["auto"], strict=True)]
    print(difference(rows["auto"], rows[None]))
    for ray, found in seconds.items():
        print(f"{'score --ray' if ray else 'score':12} {', '.join(f'{one:.1f}' for one in found)} s")
    print(f"ratios {', '.join(f'{one:.2f}' for one in ratios)}; median {statistics.median(ratios):.2f}")


def lost_node(folder: Path, count: int = 20_000) -> None:
    """Compare the rows of three nodes, of which one ends in the middle, with those of one process."""
    source, model = images(folder, count, 64), padim(folder, 64)
    plain, seconds = scored(source, model, folder / "alone", None)
    print(f"one process: {seconds:.0f} s")
    with nodes(3, 1) as made:
        spare = made.others[0]
        watcher = Watcher("scoring", count // 2, lambda: made.remove_node(spare, allow_graceful=False))
        result, seconds = scored(source, model, folder / "cluster", "auto", watcher)
        print(f"three nodes, one lost after {count // 2} images: {seconds:.0f} s; {len(made.list_all_nodes())} left")
    print(difference(result.rows, plain.rows))


def grid(folder: Path) -> None:
    """Compare the digests of a grid on three nodes with those of the same grid in this process."""
    root = data(folder, GRID["category"].split(","), 96)
    given = {**GRID, "data": root, "runs": folder, "image_size": 64, "epochs": 2, "device": "cpu", "export": "none"}
    results: dict[str, Any] = {}
    for name in ("alone", "cluster"):
        shutil.rmtree(folder / f"grid-{name}", ignore_errors=True)
        start = time.perf_counter()
        if name == "alone":
            results[name] = train(load(TrainSettings, {**given, "name": "grid-alone"}))
        else:
            with nodes(3, 1):
                results[name] = train(load(TrainSettings, {**given, "name": "grid-cluster", "ray": "auto"}))
        print(f"{name}: {len(results[name].rows)} models in {time.perf_counter() - start:.0f} s")
    pairs = list(zip(results["alone"].rows, results["cluster"].rows, strict=True))
    for one, other in pairs:
        mark = "same" if one.sha256 == other.sha256 else "OTHER"
        print(f"{one.category:8} {one.arch:10} seed {one.seed}: {str(one.sha256)[:16]} {str(other.sha256)[:16]} {mark}")
    print(f"{sum(one.sha256 == other.sha256 is not None for one, other in pairs)} of {len(pairs)} digests are the same")


def trials(folder: Path) -> None:
    """Kill the process of a trial in the middle of a study."""
    shutil.rmtree(folder / "study", ignore_errors=True)
    given = {"data": data(folder, ["zipper"], 96) / "zipper", "runs": folder / "study", "arch": "padim", "splits": 1}
    given |= {"image_size": 64, "trials": 8, "device": "cpu", "final_model": False, "ray": "auto", "name": "study"}
    optuna = importlib.import_module("optuna")

    def study() -> Any:
        return optuna.load_study(study_name="study", storage=database.address(folder / "study"))

    def kill() -> None:
        running = [trial for trial in study().get_trials() if trial.state.name == "RUNNING"]
        os.kill(int(running[0].user_attrs["process"].split()[1]), signal.SIGKILL)

    with nodes(2, 1):
        result = tune(load(TuneSettings, given), Watcher("tuning", 3, kill))
    print(f"{result.trials} trials, {result.failed} failed, {result.pruned} stopped early")
    print(dict(Counter(trial.state.name for trial in study().get_trials())))


def auroc(rows: Sequence[Any]) -> float:
    """Return the image AUROC of scored rows."""
    return float(roc_auc_score([row.label != "good" for row in rows], [row.score for row in rows]))


def wrong(rows: Sequence[Any]) -> tuple[int, int]:
    """Return the number of false alarms and of missed defects."""
    alarms = sum(row.label == "good" and row.verdict == "reject" for row in rows)
    return alarms, sum(row.label != "good" and row.verdict != "reject" for row in rows)


def products(folder: Path, archs: str = "padim,patchcore") -> None:
    """Compare one model of all categories with one for each."""
    root = data(folder, PRODUCTS, 128)
    for arch in archs.split(","):
        runs = folder / f"products-{arch}"
        shutil.rmtree(runs, ignore_errors=True)
        given: dict[str, Any] = {
            "data": root,
            "runs": runs,
            "arch": arch,
            "image_size": 128,
            "device": "cpu",
            "export": "none",
        }
        seconds, sizes, each = 0.0, 0, {}
        for name in PRODUCTS:
            start = time.perf_counter()
            made = adctl.train(category=name, name=name, **given)
            seconds += time.perf_counter() - start
            sizes += made.model.stat().st_size
            each[name] = adctl.score(model=made.model, runs=runs, device="cpu", heatmaps=False, maps=False).rows
        start = time.perf_counter()
        made = adctl.train(category=",".join(PRODUCTS), one_model=True, name="one", **given)
        own = time.perf_counter() - start
        joined = adctl.score(model=made.model, runs=runs, device="cpu", heatmaps=False, maps=False).rows
        print(f"\n{arch}: one each {seconds:.0f} s, {sizes / 1e6:.1f} MB; one for all {own:.0f} s, "
              f"{made.model.stat().st_size / 1e6:.1f} MB", flush=True)  # fmt: skip
        print(f"{_HEAD}\n|---|---|---|---|---|")
        one = {name: [row for row in joined if row.key.startswith(f"{name}/")] for name in PRODUCTS}
        for name, rows in each.items():
            cells = [
                f"{auroc(rows):.3f}",
                f"{auroc(one[name]):.3f}",
                *("{} + {}".format(*wrong(x[name])) for x in (each, one)),
            ]
            print(f"| {name} | {' | '.join(cells)} |")
        means = [statistics.mean(auroc(rows) for rows in found.values()) for found in (each, one)]
        sums = ["{} + {}".format(*np.sum([wrong(rows) for rows in found.values()], axis=0)) for found in (each, one)]
        print(f"| all | {means[0]:.3f} | {means[1]:.3f} | {sums[0]} | {sums[1]} |", flush=True)
        tests = [(name, sample) for name in PRODUCTS for sample in open_data(root, name).test]
        models = {name: runs / name / "model.safetensors" for name in PRODUCTS}
        nearest = nearest_products(models, [sample for _, sample in tests], ScoreSettings(device="cpu"))
        right = sum(name == found for (name, _), (found, _) in zip(tests, nearest, strict=True))
        print(f"nearest product: right for {right} of {len(tests)} images", flush=True)


if __name__ == "__main__":
    os.environ["ADCTL_EXPORT"] = "none"
    kinds: dict[str, Callable[..., None]] = {
        "cost": cost, "overhead": overhead, "nodes": lost_node, "grid": grid, "trials": trials, "products": products
    }  # fmt: skip
    place = Path(sys.argv[2]).resolve()
    place.mkdir(parents=True, exist_ok=True)
    kinds[sys.argv[1]](place, *(int(one) if one.isdecimal() else one for one in sys.argv[3:]))

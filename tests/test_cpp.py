"""The C++ example, built and run: its scores equal those of `adctl score`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from adctl.config import LoadedSettings, ScoreSettings, names_of, validated
from adctl.data.images import to_png
from adctl.fetching.demo_dataset import DEFECTS, render
from adctl.scoring.score import score

CPP = ROOT / "examples" / "cpp"
NUMBER = 50


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    import onnxruntime

    folder = tmp_path_factory.mktemp("cpp")
    if "CI" not in os.environ and (shutil.which("c++") is None or not Path("/usr/include/png.h").exists()):
        pytest.skip("a C++ compiler or libpng is not installed")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    (folder / "libonnxruntime.so.1").symlink_to(library)
    made = folder / "score"
    command = ["c++", "-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", made, CPP / "score.cpp"]
    subprocess.run([*command, folder / "libonnxruntime.so.1", "-lpng", f"-Wl,-rpath,{folder}"], check=True)
    return made


def test_scores_equal_those_of_adctl(program, exported, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(NUMBER):
        # Sizes of whole and broken proportions to the input.
        image, _ = render(
            [5, number], DEFECTS[number % 7] if number % 3 == 0 else None, (64, 96, 128, 101, 200)[number % 5]
        )
        (images / f"{number:02}.png").write_bytes(to_png(image))
    model, out = exported / "model.onnx", tmp_path / "out"
    given = {"model": model, "images": (str(images),), "out": out, "runs": tmp_path, "device": "cpu", "heatmaps": False}
    score(LoadedSettings(validated(ScoreSettings, given), dict.fromkeys(names_of(ScoreSettings), "default")))
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]
    threshold = rows[0]["threshold"]
    done = subprocess.run(
        [program, model, repr(threshold), *(row["path"] for row in rows)], capture_output=True, text=True, check=True
    )
    lines = [line.rsplit(" ", 3) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [row["path"] for row in rows]
    assert [float(line[1]) for line in lines] == pytest.approx([row["score"] for row in rows], rel=1e-4)
    assert len({line[2] for line in lines}) == 2


def test_faults_are_said(program, exported, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for arguments, reason in (
        ([exported / "model.onnx", "1", tmp_path / "broken.png"], "broken.png"),
        ([tmp_path / "none.onnx", "1", "x.png"], "none.onnx"),
    ):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert reason in done.stderr

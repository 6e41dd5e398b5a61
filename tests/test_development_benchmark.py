"""The development benchmark: splits, tables, continuing, correlation with real defects."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "benchmarks" / "development.py"


@pytest.fixture(scope="module")
def development():
    spec = importlib.util.spec_from_file_location("development", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["development"] = module
    spec.loader.exec_module(module)
    return module


def benchmark(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADCTL_")}
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    done = subprocess.run(
        command,
        env={**environment, "PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_it_ranks_configurations_and_continues(tmp_path):
    out = tmp_path / "results.json"
    small = "--arch padim --set dimensions=4 --image-size"
    settings = ("--sets", "zippers", "--images", 24, "--defects", 17, "--check-real", 10, "--out", out)
    first = benchmark(*settings, "--configs", f"{small} 32; {small} 64")
    assert first.stderr.count("AUROC") == 2
    second = benchmark(*settings, "--configs", f"{small} 32; {small} 64; --arch padim --image-size 7; {small} 96")
    assert second.stderr.count("AUROC") == 1
    document = json.loads(out.read_text())
    assert "image_size" in next(row["error"] for row in document["rows"] if "error" in row).replace("-", "_")
    measured = [row for row in document["rows"] if "error" not in row]
    assert [row["config"][-2:] for row in measured] == ["32", "64", "96"]
    for row in measured:
        assert 0 <= row["image_auroc"] <= 1
        assert 0 <= row["aupro"] <= 1
        assert len(row["kinds"]) == 17
        assert 0 <= row["real"]["image_auroc"] <= 1
    assert [line["mean_rank"] for line in document["summary"]] == sorted(
        line["mean_rank"] for line in document["summary"]
    )
    assert {line["configurations"] for line in document["correlations"]} <= {3}
    assert f"| `{small} 96` |" in second.stdout
    assert "other settings" in benchmark("--out", out, code=1).stderr


def test_pictures_of_the_defects(tmp_path):
    benchmark("--sets", "brushed,long_zippers", "--images", 4, "--defects", 17, "--show", tmp_path)
    for name in ("brushed", "long_zippers"):
        assert cv2.imread(str(tmp_path / f"{name}_0.png")).shape[1] == 6 * 320


def test_an_unknown_set_is_refused():
    assert "there are tiles" in benchmark("--sets", "tyles", code=2).stderr


@pytest.mark.parametrize("name", ["zippers", "long_zippers", "weave", "brushed", "wood", "grid"])
def test_generated_sets_vary_and_are_the_same_each_time(development, name):
    images, again = (development.SETS[name](2, Path()) for _ in range(2))
    assert np.array_equal(images[0], again[0])
    assert not np.array_equal(images[0], images[1])
    long, short = max(images[0].shape[:2]), min(images[0].shape[:2])
    assert long / short == pytest.approx({"zippers": 1, "weave": 1, "grid": 1, "wood": 4 / 3}.get(name, 2.5))


def test_the_summary_ranks_by_set_and_names_the_worst_loss(development):
    values = {("a", "x"): 0.9, ("a", "y"): 0.8, ("b", "x"): 0.7, ("b", "y"): 0.95}
    rows = [
        {"set": name, "config": config, "image_auroc": value, "border": value, "faint": value, "recall_at_5": value}
        for (name, config), value in values.items()
    ]
    best, other = development.summary(rows, ["x", "y"], "image_auroc")
    assert (best["mean_rank"], other["mean_rank"]) == (1.5, 1.5)
    worst = {line["config"]: (line["worst_set"], round(line["worst_loss"], 3)) for line in (best, other)}
    assert worst == {"x": ("b", 0.25), "y": ("a", 0.1)}


def test_the_correlation_is_that_of_the_ranks(development):
    ours, theirs = [0.5, 0.6, 0.9], [0.7, 0.71, 0.72]
    rows = [
        {"set": "a", "config": str(number), "image_auroc": one, "real": {"image_auroc": other}}
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True))
    ]
    (line,) = development.correlations(rows)
    assert line["spearman"] == pytest.approx(1)
    assert (line["chosen"], line["real_of_chosen"], line["real_best"]) == ("2", 0.72, 0.72)

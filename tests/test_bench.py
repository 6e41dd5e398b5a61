"""Benchmarks: noise, comparison with earlier results, operation counts, and the command with its files."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.benchmarking.bench import Benchmark, bench
from adctl.benchmarking.regression import compare, read_baseline
from adctl.benchmarking.results import BenchResult, Latency, Machine, ModelBenchmark
from adctl.benchmarking.rounds import estimate_noise, run_interleaved
from adctl.config import BenchSettings, load
from adctl.errors import DataError, UsageError

MODEL = ModelBenchmark(
    path=Path("runs/one/model.safetensors"), runtime="torch", size_bytes=1000, load_seconds=1.0,
    latency_ms=Latency(10.0, 12.0, 14.0), throughput={1: 100.0, 8: 200.0}, cold_start_seconds=2.0,
    host_memory=2**30, device_memory=None, flops=1e9, arithmetic_share=0.5, memory_share=0.01,
    from_disk=150.0, from_disk_share=0.8, noise={"p50_ms": 0.05, "images_per_second_8": 0.03},
)  # fmt: skip
RESULT = BenchResult("cpu", 20, Machine(1e11, 1e10, 0.01, 0.1), (MODEL,))


def stored(result: BenchResult) -> dict:
    return json.loads(json.dumps(result.to_dict()))


# ---- rounds


def test_rounds_call_each_case_and_slow_ones_now_and_then():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in ("a", "b", "slow")}
    seconds = run_interleaved(cases, 6, lambda *_: None, {"slow": 3})
    assert calls.count("a") == calls.count("b") == 7
    assert calls.count("slow") == 3
    assert np.isfinite(seconds["slow"]).tolist() == [True, False, False, True, False, False]
    assert calls[:3] == ["a", "b", "slow"]
    assert calls[3:6] == ["slow", "b", "a"]


def test_noise_covers_what_chance_does():
    """Two runs of the same case differ by more than their noise about once in a hundred times."""
    generator = np.random.default_rng(0)
    beyond = 0
    for _ in range(60):
        runs = generator.lognormal(0, 0.2, (2, 2, 40))
        ratios = [np.median(case) / np.median(reference) for case, reference in runs]
        limit = np.hypot(*(estimate_noise(case, reference) for case, reference in runs))
        beyond += abs(ratios[0] / ratios[1] - 1) > limit
    assert beyond <= 5


def test_what_slows_everything_is_no_noise():
    mood = np.linspace(1, 3, 40)
    assert estimate_noise(mood[:, None] * np.ones(5), mood) < 1e-9 + estimate_noise(mood, np.ones(40)) / 10


# ---- against before


def test_the_same_figures_pass_and_slower_ones_fail():
    assert all(one.passed for one in compare(RESULT, stored(RESULT)))
    slower = replace(MODEL, latency_ms=Latency(13.0, 13.0, 13.0), throughput={1: 77.0, 8: 200 / 1.3})
    failed = compare(replace(RESULT, models=(slower,)), stored(RESULT))
    assert [one.passed for one in failed] == [False, False]
    assert "30 % slower" in failed[0].message
    faster = compare(RESULT, stored(replace(RESULT, models=(slower,))))
    assert all(one.passed for one in faster)


@given(st.floats(0.2, 5))
def test_a_slower_machine_is_no_regression(mood):
    throughput = {size: rate / mood for size, rate in MODEL.throughput.items()}
    slow = replace(MODEL, latency_ms=Latency(10 * mood, 0, 0), throughput=throughput)
    result = BenchResult("cpu", 20, Machine(1e11 / mood, 1e10, 0.01 * mood, 0.1), (slow,))
    assert all(one.passed for one in compare(result, stored(RESULT)))


def test_more_noise_lets_more_pass():
    slower = replace(MODEL, latency_ms=Latency(12.0, 0, 0))
    assert not compare(replace(RESULT, models=(slower,)), stored(RESULT))[0].passed
    noisy = replace(slower, noise={"p50_ms": 0.3, "images_per_second_8": 0.03})
    assert compare(replace(RESULT, models=(noisy,)), stored(RESULT))[0].passed


def test_what_others_took_of_the_cores_is_allowed_for():
    slower = replace(RESULT, models=(replace(MODEL, latency_ms=Latency(14.0, 0, 0)),))
    assert not compare(slower, stored(RESULT))[0].passed
    assert compare(replace(slower, machine=replace(RESULT.machine, others=0.5)), stored(RESULT))[0].passed


def test_models_are_paired_by_name_and_runtime():
    other = replace(MODEL, runtime="onnxruntime", path=Path("runs/one/model.onnx"), throughput={8: 50.0})
    both = replace(RESULT, models=(MODEL, other))
    before = stored(replace(RESULT, models=(other, replace(MODEL, path=Path("/else/runs/one/model.safetensors")))))
    assert all(one.passed for one in compare(both, before))
    with pytest.raises(UsageError, match="None of these"):
        compare(both, stored(replace(RESULT, models=(replace(MODEL, runtime="x"), replace(MODEL, runtime="y")))))
    with pytest.raises(UsageError, match="cuda"):
        compare(RESULT, stored(replace(RESULT, device="cuda:0")))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"models": 3}', '{"schema": "other/1"}', '{"models": [{}]}'])
def test_other_files_are_no_figures(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        read_baseline(tmp_path / "a.json")
    with pytest.raises(UsageError, match="no file"):
        read_baseline(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("machine", "gemm_seconds"), 0), (("models", 0, "latency_ms", "p50"), "x"), (("models", 0, "throughput"), {}),
        (("models", 0, "throughput", "8"), -1), (("models", 0, "noise", "p50_ms"), None), (("device",), 3),
    ],
)  # fmt: skip
def test_figures_that_cannot_be_compared_are_told(tmp_path, place, value):
    document = inside = json.loads(json.dumps(stored(RESULT)))
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert all(one.passed for one in compare(RESULT, read_baseline(tmp_path / "a.json")))
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = value
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="holds no results"):
        read_baseline(tmp_path / "a.json")


# ---- operations


def test_operations_are_counted_alike_in_both_formats(patchcore, tmp_path):
    pytest.importorskip("onnx")
    from adctl.benchmarking.flops import count_flops
    from adctl.exporting.onnx import write_onnx

    write_onnx(patchcore.model, tmp_path / "model.onnx")
    by_torch, by_onnx = count_flops(patchcore.model), count_flops(tmp_path / "model.onnx")
    assert by_torch > 3e7
    assert by_onnx == pytest.approx(by_torch, rel=0.01)
    assert count_flops(tmp_path / "model.xml") is None


# ---- the command


def test_the_command_measures_writes_and_holds_against_gates(adctl, patchcore, zippers):
    quick = ("--repeats", "5", "--batch-sizes", "1,4", "--device", "cpu", "--workers", "1")
    document = adctl.json(
        "bench", patchcore.model, *quick, "--images", zippers / "test", "--cold-starts", "1", "--out", "a.json",
        "--junit", "a.xml", "--markdown", "a.md", "--plot", "a.png", "--fail-if", "p95_ms>1e6",
    )["result"]  # fmt: skip
    (model,) = document["models"]
    assert model["latency_ms"]["p50"] <= model["latency_ms"]["p95"] <= model["latency_ms"]["p99"]
    assert set(model["throughput"]) == {"1", "4"}
    assert model["cold_start_seconds"] > model["latency_ms"]["p50"] / 1000
    assert model["host_memory"] > 100 * 2**20
    assert 0 < model["arithmetic_share"] < 2
    assert 0 < model["from_disk_share"] < 2
    assert document["gates"] == [
        {"gate": "p95_ms>1e+06", "subject": f"{patchcore.model.parent.name}/model.safetensors torch", "passed": True,
         "message": document["gates"][0]["message"]}
    ]  # fmt: skip
    assert ET.parse(adctl.folder / "a.xml").getroot()[0].get("failures") == "0"
    assert "| p95_ms>1e+06 |" in (adctl.folder / "a.md").read_text("utf-8")
    assert cv2.imread(str(adctl.folder / "a.png")).shape[1] > 800
    before = json.loads((adctl.folder / "a.json").read_text("utf-8"))
    better = copy.deepcopy(before)
    better["models"][0]["latency_ms"]["p50"] /= 20
    better["models"][0]["noise"]["images_per_second_4"] = 3.0  # machines are shared: only latency is to fail
    (adctl.folder / "better.json").write_text(json.dumps(better))
    skip = (*quick, "--cold-starts", "0")
    done = adctl("bench", patchcore.model, *skip, "--against", "better.json", "--junit", "b.xml", code=3)
    assert "FAILED  p50_ms against baseline" in done.stdout
    assert ET.parse(adctl.folder / "b.xml").getroot().get("failures") == "1"
    lenient = copy.deepcopy(before)
    lenient["models"][0]["noise"] = dict.fromkeys(before["models"][0]["noise"], 3.0)  # machines are shared
    (adctl.folder / "lenient.json").write_text(json.dumps(lenient))
    again = measured(patchcore, against=adctl.folder / "lenient.json")
    assert [one.gate for one in again.gates] == ["p50_ms against baseline", "images_per_second_4 against baseline"]
    assert all(one.passed for one in again.gates)


def measured(patchcore, **changes) -> Benchmark:
    quick = {"models": (patchcore.model,), "repeats": 5, "batch_sizes": (4,), "cold_starts": 0, "device": "cpu"}
    return bench(load(BenchSettings, quick | changes))


@pytest.mark.parametrize(
    ("changes", "says"), [({"fail_if": ("p95>50",)}, "Unknown metric"), ({"against": Path("none.json")}, "no file")]
)
def test_mistakes_are_told_before_measuring(patchcore, changes, says):
    with pytest.raises(UsageError, match=says):
        measured(patchcore, repeats=10**9, **changes)

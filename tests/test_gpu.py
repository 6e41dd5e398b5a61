"""What can be tested without a GPU of the code for GPUs: host transfers, reading by processes, messages, the script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from adctl.data import reading_processes
from adctl.data.loader import batch_images, stack_pixels, stream_images
from adctl.data.preprocess import InputSpec
from adctl.detectors.components import nearest_neighbours
from adctl.detectors.padim import PaDiM, PaDiMConfig
from adctl.engine import batching
from adctl.engine.precision import reduced_type, single_precision
from adctl.errors import UsageError
from adctl.records import Sample
from adctl.runtimes.loading import open_runtime
from adctl.testing import host_transfers

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "gpu.py"
SPEC = InputSpec(32, 48)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(9)]
    for path in paths:
        cv2.imwrite(str(path), generator.integers(0, 256, (20, 30, 3), np.uint8))
    (folder / "broken.png").write_bytes(b"no image")
    return [Sample(path, path.name) for path in (*paths[:5], folder / "broken.png", *paths[5:])]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
class TestReadingProcesses:
    def read(self, samples):
        return list(reading_processes.read_in_processes(samples, SPEC, workers=2, batch_size=3))

    def test_they_read_what_threads_read(self, photographs):
        for ours, expected in zip(self.read(photographs), stream_images(photographs, SPEC, workers=1), strict=True):
            assert (ours.sample, ours.width, ours.height) == (expected.sample, expected.width, expected.height)
            if expected.error is None:
                np.testing.assert_array_equal(ours.pixels, expected.pixels)
                assert ours.inputs == reading_processes.measure_input(expected)
            else:
                assert (str(ours.error), ours.error.remedy) == (str(expected.error), expected.error.remedy)

    def test_a_batch_is_not_copied_again(self, photographs):
        first, *_, last = (stack_pixels(group) for group in batch_images(self.read(photographs[:5]), 3))
        assert first.base is None
        assert first.flags["C_CONTIGUOUS"]
        assert last.shape == (2, *SPEC.shape)

    def test_images_of_a_process_that_was_killed_are_read_here(self, photographs, monkeypatch):
        give = reading_processes._Process.give

        def killed(process, slot, batch):
            process._process.send_signal(signal.SIGKILL)
            process._process.wait()
            give(process, slot, batch)

        monkeypatch.setattr(reading_processes._Process, "give", killed)
        assert [item.sample for item in self.read(photographs)] == photographs

    def test_few_images_tiles_and_arrays_are_read_by_threads(self, photographs):
        many = photographs * 300
        assert reading_processes.are_worthwhile(many, SPEC, 8)
        assert not reading_processes.are_worthwhile(many, SPEC, 2)
        assert not reading_processes.are_worthwhile(photographs, SPEC, 8)
        assert not reading_processes.are_worthwhile(many, InputSpec(32, 32, tile=16), 8)


def test_pixels_of_other_batches_are_stacked(photographs):
    items = [item for item in stream_images(photographs, SPEC, workers=1) if item.error is None]
    np.testing.assert_array_equal(stack_pixels(items[2:4]), np.stack([items[2].pixels, items[3].pixels]))


def test_a_tensor_from_python_numbers_is_a_host_transfer():
    class Waits(PaDiM):
        def forward(self, images):
            scores, maps = super().forward(images)
            return type(super().forward(images))(scores * torch.tensor([2.0], device=scores.device), maps)

    detector = Waits(PaDiMConfig(image_size=32, dimensions=4)).eval()
    places, dimensions = detector.places, detector.dimensions
    detector.projection = torch.rand(detector.channels, dimensions)
    detector.mean, detector.whitening = torch.rand(places, dimensions), torch.rand(places, dimensions, dimensions)
    assert any("_to_copy" in name for name in host_transfers(detector))


def test_the_product_for_gpus_is_exact(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randint(-63, 64, (70, 80), generator=generator).to(torch.int8)
    bank[0] = 63
    codes = torch.randint(-127, 128, (50, 80), generator=generator).float()

    def mm(left, right, *, out_dtype):
        return left.to(out_dtype) @ right.to(out_dtype)

    monkeypatch.setattr(torch, "mm", mm)  # the CPU has no product of halves into single precision
    monkeypatch.setattr(nearest_neighbours, "_GPU_BLOCK", 70 * 16)
    found = nearest_neighbours._minimum_on_gpu(codes, bank)
    assert torch.equal(found, nearest_neighbours._minimum(codes, bank.float()))


@pytest.mark.parametrize(("each", "room"), [(1000, 100_000), (2000, 10_000), (300_000, 1_000_000)])
def test_a_gpu_is_filled_but_not_overfilled(monkeypatch, each, room):
    peak = 0

    def step(size):
        nonlocal peak
        if 500 + size * each > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        peak = 500 + size * each

    monkeypatch.setattr(batching, "_peak", lambda step, size, _device: (step(size), peak)[1])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (room, room))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    size = batching.filling_batch_size(step, 10_000, torch.device("cuda"))
    step(size)
    assert size in (2, 4) or 0.85 * room < peak <= 0.9 * room + each


@pytest.mark.parametrize("precision", ["tf32", "bf16", "16"])
def test_half_precision_needs_a_gpu(precision, patchcore):
    with pytest.raises(UsageError, match=f"Precision {precision} is for CUDA GPUs"):
        open_runtime(patchcore.model, "cpu", precision=precision)
    assert reduced_type("32", torch.device("cpu")) is None


def test_single_precision_is_set_and_set_back():
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [kind.fp32_precision for kind in kinds]
    with single_precision(tf32=False):
        assert [kind.fp32_precision for kind in kinds] == ["ieee", "ieee"]
    assert [kind.fp32_precision for kind in kinds] == before


def test_half_precision_of_the_backbone_changes_scores_little():
    detector = PaDiM(PaDiMConfig(image_size=64)).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = detector.patches(images)
    detector.in_half_precision(torch.bfloat16)
    found = detector.patches(images)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def run_script(*arguments):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_script_says_that_there_is_no_gpu(tmp_path):
    done = run_script(tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no CUDA GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_script_runs_each_check_apart_and_keeps_failures(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    gpu.run_child("coreset", tmp_path / "coreset.json")  # fails without a GPU, which is a result
    result = json.loads((tmp_path / "coreset.json").read_text())
    assert result["passed"] is False
    assert result["error"]
    assert gpu._verdict({"passed": None}) == "not measured"


def test_the_script_ends_in_time_and_goes_on_with_what_is_left(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    started = []

    def child(name, out, seconds):
        started.append((name, round(seconds)))
        if name == "disk":
            monkeypatch.setattr(gpu, "_partial", [(out / "disk.json").with_suffix(gpu.PARTIAL)])
            gpu.keep_partly({"shares": [0.9]})
            return gpu.TIMEOUT  # the run ends
        (out / f"{name}.json").write_text('{"passed": true, "seconds": 1}')
        return ""

    monkeypatch.setattr(gpu, "_run_child", child)
    gpu.run_all(["fit_speed", "disk"], tmp_path, time.monotonic() + 60)
    gpu.run_all(["parity"], tmp_path, time.monotonic() + 1)

    assert started == [("fit_speed", 60), ("disk", 60)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk.partial.json", "fit_speed.json"]
    monkeypatch.setattr(gpu, "card", lambda: {"card": "none"})
    summary = gpu.write_summary(tmp_path)
    assert summary["fit_speed"]["passed"] is True
    assert (summary["disk"]["passed"], summary["disk"]["shares"]) == (None, [0.9])
    assert "the same command goes on" in summary["parity"]["reason"]

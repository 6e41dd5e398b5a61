"""Resuming a training after kill -9, on the command line."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = [
    "--arch", "cnn", "--image-size", "32", "--set", "width=4", "--set", "latent=16", "--epochs", "12",
    "--batch-size", "4",
    "--device", "cpu", "--workers", "0", "--checkpoint-minutes", "0.001", "--checkpoint-epochs", "3",
    "--no-tensorboard",
]  # fmt: skip


def losses(run: Path) -> list[list[str]]:
    with (run / "history.csv").open(encoding="utf-8") as file:
        return [[row["epoch"], row["loss"], row["validation"], row["learning_rate"]] for row in csv.DictReader(file)]


def killed_at_random(folder: Path, *arguments: object, draw: random.Random) -> None:
    """Start a training and kill it -9 at a random moment after its first checkpoint."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "adctl", "train", *map(str, arguments)],
        cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = folder / "runs" / "cut" / "checkpoints"
    before = {path.name for path in checkpoints.glob("step-*")}
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if {path.name for path in checkpoints.glob("step-*")} - before:
            time.sleep(draw.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()


@pytest.fixture(scope="module")
def whole(zippers, tmp_path_factory):
    """The training that nothing happened to."""
    from conftest import CommandLine

    folder = tmp_path_factory.mktemp("whole")
    result = CommandLine(folder).json("train", "--data", zippers, "--name", "whole", *SMALL)["result"]
    return folder / "runs" / "whole", result


@pytest.mark.parametrize("seed", [0, 1])
def test_after_kill_9_the_losses_and_the_model_are_those_of_the_uninterrupted_training(adctl, zippers, whole, seed):
    draw = random.Random(seed)
    killed_at_random(adctl.folder, "--data", zippers, "--name", "cut", *SMALL, draw=draw)
    run = adctl.folder / "runs" / "cut"
    if not (run / "model.safetensors").exists():
        killed_at_random(adctl.folder, "--resume", "cut", draw=draw)
    if not (run / "model.safetensors").exists():
        done = adctl.json("train", "--resume", "cut")
        assert done["result"]["fit"]["resumed_at"]
    assert losses(run) == losses(whole[0])
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["model"]["sha256"] == whole[1]["sha256"]
    assert not (run / "checkpoints").exists()
    assert not list(run.rglob("*.tmp*"))


@pytest.fixture
def cut(adctl, zippers):
    """A run that was killed."""
    killed_at_random(adctl.folder, "--data", zippers, "--name", "cut", *SMALL, draw=random.Random(5))
    model = adctl.folder / "runs" / "cut" / "model.safetensors"
    model.unlink(missing_ok=True)
    return adctl


def test_what_does_not_fit_the_run_is_named(cut, zippers, tmp_path):
    done = cut("train", "--resume", "cut", "--epochs", "9", "--arch", "padim", code=2)
    assert "arch (the run has 'cnn', now 'padim')" in done.stderr
    assert "epochs (the run has 12, now 9)" in done.stderr
    assert "There is no run nowhere to resume" in cut("train", "--resume", "nowhere", code=2).stderr


def test_other_images_are_refused(cut, zippers, tmp_path):
    import shutil

    settings = cut.folder / "runs" / "cut" / "settings.json"
    copy = tmp_path / "copy"
    shutil.copytree(zippers, copy / "zipper")
    next((copy / "zipper" / "train" / "good").iterdir()).unlink()
    kept = json.loads(settings.read_text(encoding="utf-8"))
    kept["settings"]["data"]["value"] = str(copy / "zipper")
    settings.write_text(json.dumps(kept), encoding="utf-8")
    assert "are not those" in cut("train", "--resume", "cut", code=1).stderr


def test_a_finished_run_is_not_resumed(adctl, whole):
    assert "has finished" in adctl("train", "--resume", whole[0], code=2).stderr


def test_a_failed_training_leaves_nothing_behind(adctl, zippers):
    adctl("train", "--data", zippers, "--name", "bad", *SMALL, "--learning-rate", "1e30", "--epochs", "1", code=1)
    left = adctl.folder / "runs" / "bad"
    assert not left.exists() or list((left / "checkpoints").iterdir())


def test_torchrun_trains_one_model_together(adctl, zippers):
    """Each process is started by torchrun; the first alone writes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    done = subprocess.run(
        [*command, "-m", "adctl", "train", "--data", str(zippers), "--name", "together", *SMALL[:8], "--epochs", "2",
         "--devices", "2", "--device", "cpu", "--json"],
        cwd=adctl.folder, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["fit"]["devices"] == 2
    assert [path.parent.name for path in (adctl.folder / "runs").glob("*/run.json")] == ["together"]

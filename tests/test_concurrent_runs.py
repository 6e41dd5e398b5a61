"""Several processes at once: two trainings of one name, two scorings into one folder, and locks of killed owners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_resume import SMALL

from adctl import files, run_folder
from adctl.errors import UsageError
from adctl.training.grid import train_grid
from adctl.training.resume import run_lock


def test_a_training_that_runs_is_not_resumed_and_one_that_was_killed_is(adctl, zippers):
    run = adctl.folder / "runs" / "line3"
    words = ["train", "--data", zippers, "--name", "line3", *SMALL, "--epochs", "2000"]
    with subprocess.Popen(
        [sys.executable, "-m", "adctl", *map(str, words)],
        cwd=adctl.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    ) as first:  # fmt: skip
        deadline = time.monotonic() + 120
        while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        same_name = adctl("train", "--data", zippers, "--name", "line3", *SMALL, code=2)
        resumed = adctl("train", "--resume", "line3", code=2)
        first.send_signal(signal.SIGKILL)
    assert "Another 'adctl train' is writing it" in same_name.stderr
    assert "--resume" not in same_name.stderr
    assert "Another 'adctl train' writes into" in resumed.stderr
    assert not files.is_locked(run)
    with pytest.raises(UsageError) as told:
        run_folder.new_folder(run.parent, name="line3")
    assert "--resume line3" in told.value.remedy


def test_two_grids_of_one_name_do_not_remove_each_others_runs(zippers, tmp_path):
    from conftest import settings

    wanted = settings(arch="padim,patchcore", data=zippers, runs=tmp_path, name="grid")
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "summary.json").write_text('{"schema": "adctl.grid/1", "settings": {}, "combinations": []}')
    (tmp_path / "grid" / "padim-seed0").mkdir()
    with run_lock(tmp_path / "grid"), pytest.raises(UsageError, match="Another 'adctl train'"):
        train_grid(wanted)
    assert (tmp_path / "grid" / "padim-seed0").is_dir()


def test_scores_into_a_folder_in_use_are_refused_before_any_work(adctl, zippers, patchcore):
    from adctl.scoring.score_set import folder_lock

    out = adctl.folder / "out"
    out.mkdir()
    with folder_lock(out):
        for words in ([zippers / "test"], ["--watch", zippers / "test"]):
            done = adctl("score", *words, "--model", patchcore.model, "--out", out, code=2)
            assert "Another 'adctl score' writes into" in done.stderr
    assert list(out.iterdir()) == []

"""A scoring that was killed, interrupted or ran out of space keeps its rows and continues behind them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_scoring import settings_for

from adctl.errors import OutputError, UsageError
from adctl.scoring import score as scoring
from adctl.scoring.score import score
from adctl.scoring.score_set import ScoreSet

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")


def many(zippers: Path, folder: Path, count: int) -> Path:
    images = sorted((zippers / "test").rglob("*.png"))
    folder.mkdir()
    for index in range(count):
        shutil.copy(images[index % len(images)], folder / f"{index:04}.png")
    return folder


def start(model: Path, images: Path, out: Path, *more: object) -> subprocess.Popen[bytes]:
    words = ["score", images, "--model", model, "--out", out, "--runs", out.parent / "r", "--batch-size", 4, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "adctl", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=out.parent,
    )  # fmt: skip


def lines_of(out: Path) -> list[bytes]:
    path = out / "results.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def stop_after(process: subprocess.Popen[bytes], out: Path, rows: int, sent: int) -> bytes:
    deadline = time.monotonic() + 120
    while process.poll() is None and len(lines_of(out)) < rows and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(sent)
    return process.communicate(timeout=60)[1]


@posix
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_score_goes_on_where_it_stopped(patchcore, zippers, tmp_path, sent):
    images, out = many(zippers, tmp_path / "images", 300), tmp_path / "out"
    process = start(patchcore.model, images, out)
    stop_after(process, out, 20, sent)
    assert process.returncode != 0
    before = lines_of(out)
    assert 20 <= len(before) < 300
    assert json.loads((out / "scores.json").read_text("utf-8"))["complete"] is False
    assert len(ScoreSet.load(out).rows) == len(before)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    process = start(patchcore.model, images, out)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert f"{len(before)} of 300 images were scored before".encode() in told
    assert lines_of(out)[: len(before)] == before
    done = {out / f"{index:04}.png" for index in range(len(before))}
    assert all(path.stat().st_mtime_ns == times[path] for path in done)
    found = ScoreSet.load(out)
    assert found.manifest["complete"] is True
    assert [row.key for row in found.rows] == [f"{index:04}.png" for index in range(300)]
    with (out / "results.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["key"] for row in csv.DictReader(stream)] == [row.key for row in found.rows]
    whole = score(settings_for(patchcore, images, tmp_path / "whole", batch_size=4))
    expected = dict(ScoreSet.load(whole.folder).maps())
    maps = dict(found.maps())
    assert maps.keys() == expected.keys() == set(range(300))
    for number, values in expected.items():
        np.testing.assert_allclose(maps[number], values, rtol=1e-4, atol=1e-5)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.folder.iterdir()}


def interrupted(patchcore, images, out, rows, **changes):
    """Score until a number of rows, then stop as Ctrl-C does."""
    seen = []

    def stop(*arguments):
        for row in scored(*arguments):
            seen.append(row)
            yield row
            if len(seen) == rows:
                raise KeyboardInterrupt

    scored = scoring.scored_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "scored_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            score(settings_for(patchcore, images, out, **changes))


def scored_now(patchcore, images, out, **changes) -> int:
    """Score, and return how many images went through the model."""
    samples = []

    def count(runtime, chosen, *more):
        samples.extend(chosen)
        return scored(runtime, chosen, *more)

    scored = scoring.scored_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "scored_rows", count)
        score(settings_for(patchcore, images, out, **changes))
    return len(samples)


def test_what_is_missing_is_scored_and_maps_of_both_runs_are_kept(patchcore, zippers, tmp_path):
    images, out = many(zippers, tmp_path / "images", 8), tmp_path / "out"
    interrupted(patchcore, images, out, 3)
    assert len(dict(ScoreSet.load(out).maps())) == 3
    interrupted(patchcore, images, out, 2)
    assert len(dict(ScoreSet.load(out).maps())) == 5
    (out / "0003.png").unlink()
    assert scored_now(patchcore, images, out) == 5
    assert list(dict(ScoreSet.load(out).maps())) == list(range(8))
    assert len(list(out.glob("*.png"))) == 8
    assert scored_now(patchcore, images, out) == 8  # a complete set is scored anew


@pytest.mark.parametrize("change", ["image", "more images", "draw", "maps"])
def test_another_call_starts_anew(patchcore, zippers, tmp_path, change):
    images, out = many(zippers, tmp_path / "images", 6), tmp_path / "out"
    interrupted(patchcore, images, out, 3)
    changes = {"draw": {"draw": "boxes"}, "maps": {"maps": False}}.get(change, {})
    if change == "image":
        shutil.copy(images / "0005.png", images / "0001.png")
    if change == "more images":
        shutil.copy(images / "0005.png", images / "0006.png")
    assert scored_now(patchcore, images, out, **changes) == (7 if change == "more images" else 6)
    assert ScoreSet.load(out).manifest["complete"] is True


def test_two_scores_do_not_write_into_one_folder(patchcore, zippers, tmp_path):
    from adctl.scoring.score_set import folder_lock

    (tmp_path / "out").mkdir()
    with folder_lock(tmp_path / "out"), pytest.raises(UsageError, match="Another"):
        score(settings_for(patchcore, many(zippers, tmp_path / "images", 2), tmp_path / "out"))


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of the size that the test names."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", folder], capture_output=True, check=False
    ) if shutil.which("mount") else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("heatmaps", "small_disk"), [("--heatmaps", "3m"), ("--no-heatmaps", "200k")], indirect=["small_disk"]
)
def test_a_full_disk_keeps_the_rows_and_ends_with_code_1(patchcore, zippers, tmp_path, small_disk, heatmaps):
    images, out = many(zippers, tmp_path / "images", 200), small_disk / "out"
    process = start(patchcore.model, images, out, heatmaps)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert b"No space left" in told
    assert b"Internal error" not in told
    rows = ScoreSet.load(out).rows
    assert len(rows) > 2
    assert len(lines_of(out)) == len(rows)


@pytest.mark.parametrize("limit", [4_000, 40_000, 100_000])
def test_a_map_file_that_cannot_be_written_is_an_error_and_no_crash(tmp_path, limit):
    program = (
        "import resource, signal, sys; import numpy as np; from pathlib import Path\n"
        "from adctl.records import ScoredImage, Verdict; from adctl.scoring.score_set import ScoreWriter\n"
        "from adctl.scoring.map_file import _MapWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        "    with _MapWriter(Path(sys.argv[1])) as writer:\n"
        "        for row in range(200): writer.add(row, np.ones((64, 64), np.float32))\n"
        "except OSError as error: print('told', error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "maps.h5")], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "told 27\n"), done.stderr


def test_an_error_of_the_maps_keeps_them_for_the_next_call(patchcore, zippers, tmp_path, monkeypatch):
    images, out = many(zippers, tmp_path / "images", 4), tmp_path / "out"

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adctl.scoring.map_file._MapWriter.add", full)
        with pytest.raises(OutputError, match="No space left"):
            score(settings_for(patchcore, images, out))
    found = ScoreSet.load(out)
    assert (len(found.rows), found.manifest["complete"], found.has_maps) == (4, False, False)
    assert scored_now(patchcore, images, out) == 0
    assert len(dict(ScoreSet.load(out).maps())) == 4

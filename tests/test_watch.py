"""Watching a folder: each file once, despite kills and restarts, and never a partly written file."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT

from adctl import documents
from adctl.config import LoadedSettings, ScoreSettings, names_of, validated
from adctl.errors import DataError, UsageError
from adctl.records import ScoredImage, Verdict
from adctl.scoring.score_set import ScoreSet
from adctl.scoring.watch import Inbox, watch
from adctl.scoring.watch_log import LOG, Owner, Stamp, WatchLog

OWNER = Owner("model", "folder")


@pytest.fixture
def good(zippers) -> list[Path]:
    return sorted((zippers / "test" / "good").iterdir())


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def settings_for(model: Path, folder: Path, **changes) -> LoadedSettings[ScoreSettings]:
    given = {"model": model, "runs": folder.parent / "runs", "watch": folder, "out": folder.parent / "out",
             "watch_idle": 0.3, "settle": 0.2, "device": "cpu", "heatmaps": False, **changes}  # fmt: skip
    return LoadedSettings(validated(ScoreSettings, given), dict.fromkeys(names_of(ScoreSettings), "default"))


def keys_in(out: Path) -> list[str]:
    path = out / "results.jsonl"
    return [json.loads(line)["key"] for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def row(key: str) -> ScoredImage:
    return ScoredImage(key, key, None, None, 1.5, 1.0, Verdict.REJECT, width=9, height=9)


def inbox_of(folder: Path, settle: float = 60.0) -> Inbox:
    return Inbox(folder, {}, settle=settle, without=folder / "out")


def taken(inbox: Inbox) -> list[str]:
    return [file.key for file in inbox.new_files()]


# ---- commissioning


@pytest.fixture
def parts(zippers, folder) -> Path:
    """The first parts of a line: 24 darker copies of zippers with noise, one of them with a hole."""
    generator = np.random.default_rng(0)
    pictures = [cv2.imread(str(path)) for path in sorted((zippers / "train" / "good").iterdir())]
    for number in range(24):
        picture = pictures[number % len(pictures)]
        pixels = 0.6 * picture + generator.normal(0, 3, picture.shape)
        if number == 5:
            pixels[30:60, 30:60] = 255
        cv2.imwrite(str(folder / f"{number:02}.png"), np.clip(pixels, 0, 255).astype(np.uint8))
    return folder


def test_the_first_parts_set_the_threshold_once(patchcore, parts, tmp_path, caplog):
    caplog.set_level("INFO", "adctl")
    wanted = {"commission": 20, "contaminated": 0.05}
    watch(settings_for(patchcore.model, parts, **wanted))
    scores = ScoreSet.load(tmp_path / "out")
    assert [row.verdict == Verdict.UNCALIBRATED for row in scores.rows] == [True] * 20 + [False] * 4
    assert scores.calibration.evidence.contaminated == 0.05
    assert scores.calibration.good_images == 20
    assert all(row.threshold == scores.calibration.threshold for row in scores.rows[20:])
    assert caplog.text.count("The first 20 parts set the threshold") == 1
    assert scores.rows[5].score > scores.calibration.threshold
    assert "05.png" in caplog.text
    caplog.clear()
    shutil.copy(parts / "05.png", parts / "30.png")
    for changes in ({}, wanted):  # a later start keeps the threshold, asked for or not
        watch(settings_for(patchcore.model, parts, **changes))
        assert ScoreSet.load(tmp_path / "out").calibration == scores.calibration
    assert ScoreSet.load(tmp_path / "out").rows[24].verdict == Verdict.REJECT
    assert "set the threshold" not in caplog.text


def test_commissioning_continues_after_a_restart(patchcore, parts, tmp_path):
    late = [path.rename(tmp_path / path.name) for path in sorted(parts.iterdir())[12:]]
    first = watch(settings_for(patchcore.model, parts, commission=20))
    assert first.counts["uncalibrated"] == 12
    assert first.threshold is None
    for path in late:
        path.rename(parts / path.name)
    second = watch(settings_for(patchcore.model, parts, commission=20))
    assert second.counts["uncalibrated"] == 8
    assert second.threshold is not None
    (tmp_path / "out" / "commissioning.json").write_text("{}")
    with pytest.raises(DataError, match=r"commissioning\.json is damaged"):
        watch(settings_for(patchcore.model, parts, commission=20))


def test_contaminated_belongs_to_commissioning(patchcore, folder):
    with pytest.raises(UsageError, match="--contaminated belongs to --commission"):
        watch(settings_for(patchcore.model, folder, contaminated=0.1))


# ---- drift


def test_drift_is_said_once_and_so_is_its_end(patchcore, zippers, folder, tmp_path, caplog, monkeypatch):
    from adctl.calibration.calibrate import calibrate
    from adctl.config import CalibrateSettings

    generator = np.random.default_rng(0)
    pictures = [cv2.imread(str(path)) for path in sorted((zippers / "train" / "good").iterdir())[:12]]

    def write(where: Path, names: str, dark: int) -> None:
        where.mkdir(exist_ok=True)
        for number, picture in enumerate(pictures):
            pixels = picture.astype(np.float32) - dark + generator.normal(0, 2, (*picture.shape[:2], 1))
            cv2.imwrite(str(where / f"{names}{number:02}.png"), np.clip(pixels, 0, 255).astype(np.uint8))

    write(tmp_path / "held", "x", 0)
    given = CalibrateSettings(model=patchcore.model, good=tmp_path / "held", out=tmp_path / "m.safetensors")
    calibrate(LoadedSettings(given, dict.fromkeys(names_of(CalibrateSettings), "test")))
    write(folder, "a", 70)
    write(folder, "b", 0)
    write(folder, "c", 0)
    monkeypatch.setattr("adctl.scoring.watch.DRIFT_WINDOW", 12)
    monkeypatch.setattr("adctl.scoring.watch.DRIFT_EVERY", 6)
    caplog.set_level("INFO", logger="adctl")
    result = watch(settings_for(tmp_path / "m.safetensors", folder))
    said = [text for text in caplog.messages if "calibration:" in text or "calibration again" in text]
    assert [text.split(":")[0] for text in said] == [
        "These images differ from the images used for the calibration",
        "The images are like those of the calibration again.",
    ]
    assert "brightness" in said[0]
    assert not result.drift.drifted
    assert json.loads((folder.parent / "out" / "scores.json").read_text())["drift"]["drifted"] is False


# ---- which files are taken


def test_a_whole_new_png_is_taken_at_once_and_once(folder, good):
    shutil.copy(good[0], folder / "a.png")
    inbox = inbox_of(folder)
    assert taken(inbox) == ["a.png"]
    assert taken(inbox) == []


def test_half_a_file_is_taken_only_once_it_is_whole_or_stands_still(folder, good):
    data = good[0].read_bytes()
    path = folder / "a.png"
    path.write_bytes(data[: len(data) // 2])
    inbox = inbox_of(folder, settle=0.2)
    assert taken(inbox) == []
    path.write_bytes(data)
    assert taken(inbox) == []  # it has changed before our eyes, so its end mark says nothing
    time.sleep(0.25)
    assert taken(inbox) == ["a.png"]


def test_a_renamed_file_is_taken_at_once(folder, good):
    whole = cv2.imread(str(good[0]))
    cv2.imwrite(str(folder / "upload.bmp"), whole)
    (folder / "upload.bmp").rename(folder / ".upload")
    inbox = inbox_of(folder, settle=0.2)
    assert taken(inbox) == []
    time.sleep(0.25)
    assert taken(inbox) == []
    (folder / ".upload").rename(folder / "part.bmp")
    assert taken(inbox) == ["part.bmp"]  # it stood still under its other name


@pytest.mark.parametrize(
    "name", [".a.png", "~a.png", "a.png.tmp", "a.tmp.png", "a.png.part", "tmp123.png", "notes.txt"]
)
def test_names_of_unfinished_files_are_passed_over(folder, good, name):
    shutil.copy(good[0], folder / name)
    inbox = inbox_of(folder, settle=0.0)
    assert taken(inbox) == taken(inbox) == []
    assert inbox.waiting() == 0


def test_what_is_done_is_not_taken_unless_it_changes(folder, good):
    path = folder / "sub" / "a.png"
    path.parent.mkdir()
    shutil.copy(good[0], path)
    done = {"sub/a.png": Stamp.of(path.stat())}
    inbox = Inbox(folder, done, settle=0.0, without=folder / "out")
    assert taken(inbox) == []
    shutil.copy(good[1], path)
    assert taken(inbox) == []
    assert taken(inbox) == ["sub/a.png"]


def test_the_folder_of_results_is_left_out_and_a_lost_folder_is_waited_for(folder, good, caplog):
    (folder / "out").mkdir()
    shutil.copy(good[0], folder / "out" / "a.png")
    inbox = inbox_of(folder)
    assert taken(inbox) == []
    folder.rename(folder.parent / "gone")
    assert taken(inbox) == taken(inbox) == []
    assert caplog.text.count("cannot be read (") == 1
    (folder.parent / "gone").rename(folder)
    shutil.copy(good[0], folder / "b.png")
    assert taken(inbox) == ["b.png"]


def test_another_file_system_is_told_and_its_files_are_found(folder, good, caplog):
    inbox = inbox_of(folder)
    shutil.copy(good[0], folder / "a.png")
    assert taken(inbox) == ["a.png"]
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        shutil.copy(good[1], folder / "b.png")
        assert taken(inbox) == ["b.png"]
        assert caplog.text.count("was mounted or unmounted") == 1
    finally:
        subprocess.run(["umount", folder], check=True)
    assert taken(inbox) == ["a.png"]  # the caller never marked it as done
    assert caplog.text.count("was mounted or unmounted") == 2


@pytest.mark.parametrize("year", [1902, 2300])
def test_times_of_a_wrong_clock_do_not_matter(folder, good, patchcore, year):
    path = folder / "a.png"
    shutil.copy(good[0], path)
    seconds = (year - 1970) * 31_556_952
    os.utime(path, (seconds, seconds))
    for rows in (1, 1):
        assert len(keys_in(watch(settings_for(patchcore.model, folder)).folder)) == rows


def test_images_of_a_lower_depth_are_told_once(folder, patchcore, caplog):
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 4096, (64, 64, 3), np.uint16)
        cv2.imwrite(str(folder / f"{index}.png"), pixels)
    watch(settings_for(patchcore.model, folder))
    assert caplog.text.count("bit_depth=12") == 1


def test_results_in_the_watched_folder_are_not_scored(folder, good, patchcore):
    shutil.copy(good[0], folder / "a.png")
    for out in ("first", "second"):
        result = watch(settings_for(patchcore.model, folder, out=folder / out, heatmaps=True))
        assert keys_in(result.folder) == ["a.png"]
    assert (folder / "first" / "a.png").exists()


# ---- the journal


def test_a_torn_line_is_cut_off_and_the_results_follow_the_journal(tmp_path):
    with WatchLog(tmp_path, OWNER) as journal:
        journal.add(row("a.png"), Stamp(1, 2))
        journal.add(row("b, \u2028.png"), Stamp(3, 4))
    with (tmp_path / LOG).open("a") as stream:
        stream.write('{"key": "c.png", "si')
    (tmp_path / "results.jsonl").write_text('{"torn')
    (tmp_path / "results.csv").unlink()
    with WatchLog(tmp_path, OWNER) as journal:
        assert journal.done == {"a.png": (1, 2), "b, \u2028.png": (3, 4)}
        journal.add(row("c.png"), Stamp(5, 6))
        assert journal.rows == 3
    lines = (tmp_path / "results.jsonl").read_text("utf-8").strip("\n").split("\n")
    assert [documents.parse(line, ScoredImage) for line in lines] == [
        row(key) for key in ("a.png", "b, \u2028.png", "c.png")
    ]
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as stream:
        assert [line["key"] for line in csv.DictReader(stream)] == ["a.png", "b, \u2028.png", "c.png"]


def test_a_journal_is_for_one_writer_and_one_model(tmp_path):
    with WatchLog(tmp_path, OWNER), pytest.raises(UsageError, match="Another"), WatchLog(tmp_path, OWNER):
        pass
    with pytest.raises(UsageError, match="another model"), WatchLog(tmp_path, Owner("other", "folder")):
        pass
    (tmp_path / LOG).write_text("{\n")
    with pytest.raises(DataError, match="damaged"), WatchLog(tmp_path, OWNER):
        pass


# ---- watching


def test_files_that_grow_are_scored_when_whole(folder, good, patchcore):
    data = good[1].read_bytes()
    shutil.copy(good[0], folder / "first.png")

    def camera() -> None:
        with (folder / "slow.png").open("wb") as stream:
            for start in range(0, len(data), len(data) // 5 + 1):
                stream.write(data[start : start + len(data) // 5 + 1])
                stream.flush()
                time.sleep(0.3)  # longer than it takes to settle
        (folder / ".hidden.png").write_bytes(good[2].read_bytes())
        (folder / ".hidden.png").rename(folder / "renamed.png")

    writer = threading.Thread(target=camera)
    writer.start()
    result = watch(settings_for(patchcore.model, folder, watch_idle=1.0))
    writer.join()
    assert sorted(keys_in(result.folder)) == ["first.png", "renamed.png", "slow.png"]
    assert result.counts["error"] == 0
    scores = ScoreSet.load(result.folder)
    assert scores.manifest["complete"] is True
    assert scores.manifest["rows"] == 3
    again = watch(settings_for(patchcore.model, folder))
    assert sum(again.counts.values()) == 0
    assert len(keys_in(result.folder)) == 3


def test_a_file_that_stays_broken_becomes_an_error_row_and_is_scored_once_mended(folder, good, patchcore):
    path = folder / "a.png"
    path.write_bytes(good[0].read_bytes()[:500])
    result = watch(settings_for(patchcore.model, folder, settle=0.02))
    assert result.counts["error"] == 1
    shutil.copy(good[0], path)
    assert watch(settings_for(patchcore.model, folder)).counts["error"] == 0
    assert keys_in(result.folder) == ["a.png", "a.png"]


def test_heatmaps_are_drawn_and_not_scored_themselves(folder, good, patchcore):
    for number, image in enumerate(good[:3]):
        shutil.copy(image, folder / f"{number}.png")
    inside = folder / "out"
    for _ in range(2):
        watch(settings_for(patchcore.model, folder, out=inside, heatmaps=True, watch_for=1.5))
    assert sorted(keys_in(inside)) == ["0.png", "1.png", "2.png"]
    assert sorted(path.name for path in inside.glob("*.png")) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": ("x",)}, "together with named images"),
        ({"watch": Path("nowhere")}, "no folder"),
        ({"out": Path()}, "must not contain the watched folder"),
    ],
)
def test_contradictions_are_refused(folder, patchcore, changes, says):
    changes = {name: folder if value == Path() else value for name, value in changes.items()}
    with pytest.raises(UsageError, match=says):
        watch(settings_for(patchcore.model, folder, **changes))


class Watcher:
    """`adctl score --watch` in a process of its own."""

    def __init__(self, folder: Path, model: Path, *more: str) -> None:
        self.out = folder.parent / "out"
        command = ["score", "--watch", folder, "--model", model, "--out", self.out, "--device", "cpu", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "adctl", *map(str, command)], cwd=folder.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for(self, rows: int) -> None:
        until = time.monotonic() + 120
        while len(keys_in_flight(self.out)) < rows and time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.01)

    def end(self, sent: signal.Signals) -> tuple[int, bytes, bytes]:
        self.process.send_signal(sent)
        out, errors = self.process.communicate(timeout=120)
        return self.process.returncode, out, errors


def keys_in_flight(out: Path) -> list[str]:
    path = out / "results.jsonl"
    return path.read_text("utf-8").split("\n")[:-1] if path.exists() else []


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_killed_twice_every_file_still_has_one_row(folder, good, patchcore):
    for number in range(120):
        shutil.copy(good[number % len(good)], folder / f"{number:03}.png")
    for rows in (10, 40):
        watcher = Watcher(folder, patchcore.model, "--heatmaps")
        watcher.wait_for(rows)
        code, _, errors = watcher.end(signal.SIGKILL)
        assert code == -signal.SIGKILL, errors
    survived = len(keys_in_flight(watcher.out))
    assert 40 <= survived < 120
    watcher = Watcher(folder, patchcore.model, "--json")
    watcher.wait_for(120)
    shutil.copy(good[0], folder / "late.png")
    watcher.wait_for(121)
    code, out, errors = watcher.end(signal.SIGTERM)
    assert code == 0, errors
    assert b"Traceback" not in errors
    assert 121 - survived - 2 <= sum(json.loads(out)["result"]["counts"].values()) <= 121 - survived + 1
    keys = keys_in(watcher.out)
    assert sorted(keys) == [*(f"{number:03}.png" for number in range(120)), "late.png"]
    scores = ScoreSet.load(watcher.out)
    assert scores.manifest["complete"] is True
    by_image: dict[int, set[float | None]] = {}
    for one in scores.rows[:-1]:
        by_image.setdefault(int(one.key[:3]) % len(good), set()).add(one.score)
    assert all(np.ptp([score for score in found if score is not None]) < 1e-5 for found in by_image.values())

"""One odd thing ends no run: odd names, images without variation, folders that may not be written."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, settings
from test_scoring import settings_for

import adctl as adctl_api
from adctl import run_folder
from adctl.config import LoadedSettings, ReportSettings, TrainSettings, load, names_of, validated
from adctl.data.datasets.layouts import list_images
from adctl.errors import AdctlError, OutputError, TrainingError, UsageError
from adctl.names import escaped_name, restored
from adctl.reporting.html_assets import plotly
from adctl.reporting.report import report
from adctl.scoring import score as scoring
from adctl.scoring.heatmap_names import HeatmapNames
from adctl.scoring.parquet import from_parquet, to_parquet
from adctl.scoring.score import score
from adctl.scoring.score_set import ScoreSet
from adctl.training.single_run import train_once

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of files differ there")
ODD = (
    b"M\xfcnchen.png",
    b"=1+1.png",
    b"-x.png",
    b"@a.png",
    b"esc\x1b[31m.png",
    b"line\nend.png",
    b"tab\t.png",
    b"backslash\\xfc.png",
    b"backslash\\x5cx5c.png",
    b"ok.png",
)


@pytest.fixture(scope="module")
def odd(zippers, tmp_path_factory):
    """Images with odd names, two of them in a folder with an odd name."""
    folder = tmp_path_factory.mktemp("odd") / "in"
    images = sorted((zippers / "train" / "good").iterdir())
    (folder / "=cmd").mkdir(parents=True)
    for image, name in zip(images, ODD, strict=False):
        shutil.copy(image, os.fsencode(folder) + b"/" + name)
    shutil.copy(images[-1], os.fsencode(folder) + b"/=cmd/\xe4.png")
    return folder


# ---- names


@linux
def test_odd_names_are_rows_like_others(patchcore, odd, tmp_path):
    result = score(settings_for(patchcore, odd, tmp_path / "out"))
    assert (len(result), result.counts["error"]) == (11, 0)
    keys = {row.key for row in ScoreSet.load(result.folder).rows}
    assert keys == {os.fsdecode(name) for name in ODD} | {os.fsdecode(b"=cmd/\xe4.png")}
    assert all(Path(row.path).exists() for row in result)
    with (result.folder / "results.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    shown = {row["key"] for row in rows}
    assert {"M\\xfcnchen.png", "'=1+1.png", "'-x.png", "'@a.png", "esc\\x1b[31m.png", "ok.png"} <= shown
    assert all(row["key"].isprintable() for row in rows)
    assert len(list(result.folder.rglob("*.png"))) == 11
    stored = ScoreSet.load(result.folder).rows
    for row, cells in zip(stored, rows, strict=True):  # one way of writing names in all tables
        if not re.match("[-=+@]", row.key) and not re.search(r"[\x00-\x1f]", row.key):
            assert restored(cells["key"]) == row.key
            assert cells["key"] == escaped_name(row.key)
    pytest.importorskip("pyarrow", reason="needs the extra ray")
    assert from_parquet(to_parquet(stored), "part") == list(stored)


@linux
def test_an_odd_name_that_cannot_be_read_is_an_error_row(patchcore, odd, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(odd, folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcnchen.png")).write_bytes(b"damaged")
    result = score(settings_for(patchcore, folder, tmp_path / "out"))
    assert (len(result), result.counts["error"]) == (11, 1)
    assert "M\\xfcnchen" in (tmp_path / "out" / "results.csv").read_text("utf-8")


@linux
@pytest.mark.parametrize("format_name", ["html", "md", "csv", "json", "pdf", "pptx"])
def test_odd_names_stand_in_every_report(patchcore, odd, tmp_path, format_name):
    pytest.importorskip("pptx")
    pytest.importorskip("reportlab")
    score(settings_for(patchcore, odd, tmp_path / "out"))
    given = {"scores": (tmp_path / "out",), "format": (format_name,), "contact_sheet": tmp_path / "sheet.png"}
    written = report(
        LoadedSettings(validated(ReportSettings, given), dict.fromkeys(names_of(ReportSettings), "default"))
    )
    content = written.page.read_bytes()
    if format_name not in ("pdf", "pptx"):
        assert b"\x1b" not in content.replace(plotly().encode(), b"")
    if format_name == "pptx":
        assert zipfile.ZipFile(written.page).testzip() is None


@linux
def test_odd_names_can_be_learned_from(odd, tmp_path):
    trained = train_once(settings(arch="padim", good=odd, runs=tmp_path / "runs"))
    names = json.loads((trained.run / "split.json").read_text("utf-8"))["digests"]
    assert any("\udcfc" in name for name in names)
    result = score(settings_for(trained, odd, tmp_path / "out"))
    assert result.counts["error"] == 0


# ---- images without variation


@pytest.mark.parametrize("arch", ["padim", "patchcore", "simplenet", "efficientad", "dinomaly", "cnn"])
@pytest.mark.parametrize("colours", ["white", "greys"])
def test_images_of_one_colour_are_refused(tmp_path, arch, colours):
    for number in range(12):
        value = 255 if colours == "white" else 10 * number
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((64 + number, 64, 3), value, np.uint8))
    given = {"weights": "random"} if arch in ("dinomaly", "efficientad") else {}
    with pytest.raises(TrainingError, match="do not vary"):
        train_once(settings(arch=arch, good=tmp_path, runs=tmp_path / "runs", epochs=1, **given))


def test_features_without_variation_are_told():
    from adctl.engine import trainer

    class Job:
        train = property(lambda self: self)

        def batches(self, size):
            yield np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), np.uint8)

    def fails(*_):
        torch.linalg.cholesky(torch.zeros(3, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_fit_on", fails)
        with pytest.raises(TrainingError, match="vary enough"):
            trainer.fit(Job())


@pytest.mark.parametrize("arch", ["padim", "patchcore", "simplenet"])
def test_equal_images_with_content_end_in_no_internal_error(zippers, tmp_path, arch):
    image = cv2.imread(str(zippers / "train/good/000.png"))
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, number % 10])
        with (tmp_path / f"{number}.png").open("ab") as stream:
            stream.write(bytes(number))
    try:
        train_once(settings(arch=arch, good=tmp_path, runs=tmp_path / "runs", epochs=1))
    except TrainingError as error:
        assert "vary" in error.message  # noqa: PT017 - either is right


# ---- folders one may not write


@pytest.fixture
def unprivileged():
    """Function that runs adctl without root's right to ignore permissions."""
    command = []
    if os.name != "posix":
        pytest.skip("permissions differ there")
    if os.geteuid() == 0:
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", "--inh-caps", rights, "--bounding-set", rights]
        if shutil.which("setpriv") is None or subprocess.run([*command, "true"], check=False).returncode:
            pytest.skip("root ignores permissions, and setpriv cannot change that here")

    def run(*words, cwd, program=("-m", "adctl")):
        return subprocess.run(
            [*command, sys.executable, *program, *map(str, words)], cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_a_read_only_working_folder_changes_no_exit_code(patchcore, zippers, tmp_path, unprivileged):
    readonly, out = tmp_path / "readonly", tmp_path / "out"
    readonly.mkdir()
    shutil.copytree(zippers / "test", readonly / "images")
    shutil.copy(patchcore.model, readonly / "model.safetensors")
    out.mkdir()
    readonly.chmod(0o555)
    words = ("score", "images", "--model", "model.safetensors", "--out", out / "o", "--fail-on-anomaly")
    expected = score(settings_for(patchcore, readonly / "images", tmp_path / "mine"))
    done = unprivileged(*words, cwd=readonly)
    assert done.returncode == (3 if expected.counts["reject"] else 0), done.stderr
    assert "warning: Cannot write" in done.stderr
    assert ScoreSet.load(out / "o").manifest["complete"] is True


def test_a_target_that_cannot_be_written_is_told_before_any_work(patchcore, tmp_path, unprivileged):
    readonly = tmp_path / "readonly"
    readonly.mkdir()
    shutil.copy(patchcore.model, tmp_path / "model.safetensors")
    shutil.copy(patchcore.model, readonly / "model.safetensors")
    readonly.chmod(0o555)
    calls = [  # the first long step of each would fail: nothing that is named exists
        "train --data nowhere --arch padim --name x --runs readonly/runs",
        "tune --data nowhere --arch padim --runs readonly",
        "calibrate --model model.safetensors --good nowhere --out readonly/m.safetensors",
        "calibrate --model readonly/model.safetensors --good nowhere",
        "calibrate --model readonly/model.safetensors --good nowhere --in-place",
        "export --model model.safetensors nowhere --out readonly",
        "export --model readonly/model.safetensors nowhere --format openvino",
        "report nowhere --out readonly/r.html",
        "report nowhere --contact-sheet readonly/sheet.png --out r.html",
        "report nowhere --figures readonly/figures --out r.html",
        "report nowhere elsewhere --out readonly/compared.html",
        "bench nowhere --out readonly/bench.json",
        "bench nowhere --plot readonly/bench.png",
        "fetch check nowhere --sheet readonly/sheet.png",
        "runs export --out readonly/runs.csv",
    ]
    program = "import sys; from adctl.cli.app import run; [print(run(call.split())) for call in sys.argv[1:]]"
    done = unprivileged(*calls, cwd=tmp_path, program=("-c", program))
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    for call, line in zip(calls, told, strict=True):
        assert re.match(r"error: Cannot write readonly\S+: Permission denied\.", line), call
    assert done.stdout.split() == ["1"] * len(calls)


@linux
def test_too_little_space_is_told_before_any_work(patchcore, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        with pytest.raises(OutputError, match="No space left"):
            adctl_api.export(model=patchcore.model, images=("nowhere",), out=small)
        (small / "taken").write_bytes(bytes(65536))
        with pytest.raises(OutputError, match="No space left"):
            adctl_api.fetch_check("nowhere", sheet=small / "sheet.png")
        assert [path.name for path in small.iterdir()] == ["taken"]
    finally:
        subprocess.run(["umount", small], check=True)


@linux
def test_another_user_scores_with_the_model_that_root_trained(patchcore, zippers):
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "COLUMNS": "120"}
    program = [*other, sys.executable, "-m", "adctl"]
    try:
        subprocess.run([*program, "--version"], env=environment, capture_output=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("another user cannot run Python here")
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        shutil.copytree(zippers / "test", shared / "images")
        (shared / "run").mkdir()
        for file in ("model.safetensors", "run.json"):
            shutil.copyfile(patchcore.run / file, shared / "run" / file)
        shared.chmod(0o755)
        (shared / "own").mkdir()
        (shared / "own").chmod(0o777)
        words = ["score", "images", "--model", "run/model.safetensors", "--out"]
        options = {"env": environment, "cwd": shared, "capture_output": True}
        done = subprocess.run([*program, *words, "own/o"], check=False, **options)
        assert done.returncode == 0, done.stderr
        assert len(ScoreSet.load(shared / "own" / "o").rows) > 3
        done = subprocess.run([*program, *words, "o"], check=False, **options)
        assert done.returncode == 1
        assert b"error: Cannot write o/scores.json: Permission denied." in done.stderr


@linux
def test_a_full_folder_of_temporary_files_stops_nothing(adctl, patchcore, zippers, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", full], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        (full / "taken").write_bytes(bytes(4096))
        with pytest.raises(OSError, match="No space left"):
            (full / "more").write_bytes(b"x")
        out = adctl.folder / "o"
        adctl("score", zippers / "test", "--model", patchcore.model, "--out", out, TMPDIR=str(full))
        adctl("report", out, TMPDIR=str(full))
        shutil.make_archive(str(adctl.folder / "zip"), "zip", zippers.parent)
        adctl("train", "--data", "zip.zip", "--arch", "padim", "--image-size", 64, TMPDIR=str(full))
    finally:
        subprocess.run(["umount", full], check=True)


def test_a_damaged_pointer_is_written_anew(tmp_path):
    (tmp_path / "last.json").write_text("{")
    run_folder.set_last(tmp_path, "scores", tmp_path)
    assert run_folder.get_last(tmp_path, "scores") == tmp_path


# ---- what is no regular file


@linux
def test_a_watched_folder_ignores_pipes_sockets_and_files_without_end(patchcore, zippers, tmp_path, caplog):
    import socket
    import threading

    from adctl.config import ScoreSettings
    from adctl.scoring import watch

    inbox = tmp_path / "inbox"
    inbox.mkdir()
    os.mkfifo(inbox / "f.png")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(inbox / "s.png"))
    (inbox / "d.png").symlink_to("/dev/zero")
    shutil.copy(zippers / "train/good/000.png", inbox / "a.png")
    stop = threading.Event()

    def grow() -> None:
        while not stop.wait(0.02):
            with (inbox / "g.png").open("ab") as stream:
                stream.write(b"x")

    writer = threading.Thread(target=grow)
    writer.start()
    given = {"model": patchcore.model, "watch": inbox, "watch_idle": 0.5, "settle": 0.2, "out": tmp_path / "out"}
    values = validated(ScoreSettings, {**given, "runs": tmp_path, "watch_for": 60.0})
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch, "_LONGEST_WAIT", 0.5)
            result = watch.watch(LoadedSettings(values, dict.fromkeys(names_of(ScoreSettings), "default")))
    finally:
        stop.set()
        writer.join()
        listener.close()
    assert [row.key for row in result] == ["a.png"]
    assert result.seconds < 30


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize(
    "place", ["bench --against", "--config", "results.jsonl", "scores.json", "run.json", "manifest"]
)
def test_a_pipe_in_the_place_of_a_document_is_told(patchcore, zippers, tmp_path, place):
    shutil.copytree(patchcore.run, tmp_path / "run")
    score(settings_for(patchcore, zippers / "test" / "good" / "000.png", tmp_path / "out", heatmaps=False))
    places = {
        "bench --against": (tmp_path / "a.json", lambda path: adctl_api.bench(models=[patchcore.model], against=path)),
        "--config": (tmp_path / "a.toml", lambda path: load(ReportSettings, {}, path)),
        "results.jsonl": (tmp_path / "out/results.jsonl", lambda path: adctl_api.report(scores=[path.parent])),
        "scores.json": (tmp_path / "out/scores.json", lambda path: adctl_api.report(scores=[path.parent])),
        "run.json": (tmp_path / "run/run.json", lambda path: adctl_api.score(model=path.parent, out=tmp_path / "o")),
        "manifest": (tmp_path / "m.csv", lambda path: adctl_api.train(data=path, arch="padim")),
    }
    path, call = places[place]
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(AdctlError):
        call(path)


@pytest.mark.parametrize("name", ["x" * 300, "d/" * 3000, "a\0b"])
def test_a_path_that_no_file_can_have_is_told_with_its_setting(tmp_path, name):
    for call, flag in (
        (lambda: adctl_api.score(model=name, images=["."]), "--model"),
        (lambda: adctl_api.train(data=name, arch="padim"), "--data"),
        (lambda: adctl_api.report(scores=[name]), "SCORES"),
        (lambda: adctl_api.bench(models=[tmp_path], against=name), "--against"),
    ):
        with pytest.raises(UsageError, match="cannot be used") as told:
            call()
        assert flag.lower() in told.value.message.lower()
    with pytest.raises(UsageError):
        adctl_api.train(data=tmp_path, arch="padim", roi=name)
    assert validated(TrainSettings, {"data": f"https://example.com/{'x' * 300}.zip"}).data is not None


@linux
def test_a_pipe_is_an_error_and_never_waited_for(tmp_path):
    from adctl.data.images import read_image
    from adctl.errors import ImageError

    os.mkfifo(tmp_path / "f.png")
    with pytest.raises(ImageError, match="regular file"):
        read_image(tmp_path / "f.png")
    with pytest.raises(ImageError, match="regular file"):
        read_image(Path("/dev/zero"))


# ---- many images


def test_a_listed_image_takes_little_memory(tmp_path):
    for index in range(3000):
        (tmp_path / f"{index:05}.png").write_bytes(b"x")
    tracemalloc.start()
    try:
        samples, _ = list_images([tmp_path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(samples) == 3000
    assert peak < 3000 * 1500


# ---- results among the images


def test_results_inside_the_dataset_are_no_images(patchcore, zippers, tmp_path):
    images = tmp_path / "in"
    (images / "sub").mkdir(parents=True)
    for index, image in enumerate(sorted((zippers / "train" / "good").iterdir())[:9]):
        cv2.imwrite(str(images / ("sub" if index % 2 else "") / f"{index}.jpg"), cv2.imread(str(image)))
    for out in (images / "out", images / "out", images, images, tmp_path / "other"):
        assert len(score(settings_for(patchcore, images, out, heatmaps=True))) == 9
        assert list(out.rglob("*.png"))
    result = score(settings_for(patchcore, f"{images}/**/*", tmp_path / "glob"))
    assert len(result) == 9
    assert any("out" in path for path, _ in result.ignored)
    train_once(settings(arch="padim", data=None, good=images, runs=images / "runs", name="k"))
    trained = train_once(settings(arch="padim", data=None, good=images, runs=tmp_path / "runs"))
    assert len(trained.calibration.evidence.good) == 9


def test_heatmap_names_fit_any_file_system(tmp_path):
    names = HeatmapNames(tmp_path)
    composed, decomposed = (unicodedata.normalize(form, "\u00e9.png") for form in ("NFC", "NFD"))
    keys = ["a.png", "A.png", "a.jpg", composed, decomposed, *(f"{'n' * 251}.{end}" for end in ("png", "jpg", "bmp"))]
    keys += ["\u00fc" * 200 + ".png", "x" * 999, "d/" + "y" * 254 + ".npy"]
    paths = [names.path(key) for key in keys]
    assert len({unicodedata.normalize("NFC", str(path)).casefold() for path in paths}) == len(keys)
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.suffix for path in paths] == [".png"] * len(keys)
    assert paths[0].name == "a.png"


def test_images_that_are_removed_or_replaced_while_they_are_scored_are_rows(patchcore, zippers, tmp_path):
    """The files change after they were listed, before they are read."""
    first, second, *_ = sorted((zippers / "train" / "good").iterdir())
    images = tmp_path / "in"
    images.mkdir()
    for index in range(6):
        shutil.copy(first, images / f"{index}.png")

    def change(*arguments):
        (images / "0.png").unlink()
        (images / "1.png").unlink()
        (images / "1.png").mkdir()
        (images / "2.png").write_bytes(b"x")
        (images / "3.png").write_bytes(first.read_bytes()[:3000])
        shutil.copy(second, images / "4.png")
        return rows(*arguments)

    rows = scoring.scored_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "scored_rows", change)
        result = score(settings_for(patchcore, images, tmp_path / "out", heatmaps=True))
    assert [row.verdict == "error" for row in result] == [True] * 4 + [False] * 2
    assert result.rows[4].score == pytest.approx(score(settings_for(patchcore, second, tmp_path / "b")).rows[0].score)
    for row, reason in zip(result, ("does not exist", "directory", "not a PNG", "truncated"), strict=False):
        assert reason in row.error
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["4.png", "5.png"]

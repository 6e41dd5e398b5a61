"""Files of the user stay: nothing is replaced unasked, nothing leaves the output folder, modes follow the umask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
from conftest import ROOT, CommandLine
from test_scoring import settings_for

import adctl
from adctl import files
from adctl.config import LoadedSettings, ScoreSettings, names_of, validated
from adctl.errors import OutputError, UsageError
from adctl.names import safe_name
from adctl.scoring.heatmap_names import HeatmapNames
from adctl.scoring.score import score
from adctl.tracking.export import export_runs


@pytest.fixture
def parts(zippers, tmp_path):
    """Three images as JPEG files."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in "abc":
        cv2.imwrite(str(folder / f"{name}.jpg"), cv2.imread(str(zippers / "test/good/000.png")))
    return folder


def content_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- scoring


@pytest.mark.parametrize("theirs", ["a.png", "results.csv", "results.jsonl", "maps.h5", "scores.json"])
def test_a_file_of_the_user_is_refused_before_any_work(patchcore, parts, theirs, monkeypatch):
    (parts / theirs).write_text('{"mine": 1}\n')
    before = content_of(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adctl.scoring.score.open_model", lambda *_: pytest.fail("work was done"))
        with pytest.raises(UsageError, match=theirs) as told:
            score(settings_for(patchcore, parts / "*.jpg", parts))
    assert "--overwrite" in told.value.remedy
    assert content_of(parts) == before
    score(settings_for(patchcore, parts / "*.jpg", parts, overwrite=True))
    assert (parts / theirs).read_bytes() != before[Path(theirs)]


def test_the_same_call_replaces_its_own_results_without_a_flag(patchcore, parts, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        result = score(settings_for(patchcore, parts, out))
        assert len(result) == 3
    assert {path.name for path in out.iterdir()} == {
        *("a.png", "b.png", "c.png", "scores.json", "results.csv", "results.jsonl", "maps.h5")
    }


def test_a_folder_holds_what_the_last_run_says_and_the_files_of_the_user(patchcore, parts, tmp_path):
    out = tmp_path / "out"
    score(settings_for(patchcore, parts, out))
    (out / "notes.png").write_bytes(b"mine")
    (parts / "b.jpg").unlink()
    (parts / "c.jpg").write_bytes(b"damaged")
    score(settings_for(patchcore, parts, out))
    assert {path.name for path in out.glob("*.png")} == {"a.png", "notes.png"}
    score(settings_for(patchcore, parts, out, heatmaps=False, maps=False))
    assert {path.name for path in out.iterdir()} == {"notes.png", "scores.json", "results.csv", "results.jsonl"}


def test_a_set_without_heatmaps_claims_no_pictures(patchcore, parts):
    score(settings_for(patchcore, parts / "*.jpg", parts, heatmaps=False))
    (parts / "a.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"a\.png"):
        score(settings_for(patchcore, parts / "*.jpg", parts))
    assert (parts / "a.png").read_bytes() == b"mine"


def test_a_watched_folder_spares_the_users_pictures(patchcore, parts, tmp_path):
    from adctl.scoring.watch import watch

    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    given = {"model": patchcore.model, "watch": parts, "watch_idle": 0.1, "settle": 0, "out": out, "runs": tmp_path}
    settings = LoadedSettings(validated(ScoreSettings, given), {})
    settings.origins.update(dict.fromkeys(names_of(ScoreSettings), "default"))
    watch(settings)
    assert (out / "a.png").read_bytes() == b"mine"
    assert (out / "b.png").read_bytes() != b"mine"
    (out / "watch.jsonl").unlink()
    (out / "scores.json").unlink()
    with pytest.raises(UsageError, match="results"):
        watch(settings)


# ---- names


@pytest.mark.parametrize(
    "key",
    ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "C:\\x.jpg", "..\\..\\x.jpg", "./.", "..", "", "a\0b.jpg", "//x"],
)
def test_no_name_leaves_the_folder(key):
    name = safe_name(key)
    assert not name.is_absolute()
    assert ".." not in name.parts
    assert name.name
    assert "\0" not in str(name)
    assert not set(":\\") & set(str(name))


def test_every_image_gets_a_file_of_its_own(tmp_path):
    names = HeatmapNames(tmp_path)
    keys = ["a.jpg", "a.png", "a.png.jpg", "../a.jpg", "__/a.jpg", "x/../a.jpg", "b/a.jpg"]
    assert len({names.path(key) for key in keys}) == len(keys)
    assert names.path("b/a.jpg") == tmp_path / "b/a.png"
    assert PurePosixPath("__/a.png") == names.path("../a.jpg").relative_to(tmp_path)


def test_a_manifest_with_dots_writes_inside_the_output_folder(patchcore, parts, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "m.csv").write_text("path\n../parts/a.jpg\n")
    before = content_of(parts)
    score(settings_for(patchcore, folder / "m.csv", folder / "out"))
    assert content_of(parts) == before
    assert len(list((folder / "out").rglob("a.png"))) == 1


def test_a_link_in_the_output_folder_leads_nowhere(patchcore, parts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    (parts / "sub").mkdir()
    shutil.move(parts / "a.jpg", parts / "sub" / "a.jpg")
    with pytest.raises(UsageError, match="outside"):
        score(settings_for(patchcore, parts, tmp_path / "out"))
    assert not list((tmp_path / "elsewhere").iterdir())


# ---- other commands


def test_outputs_of_the_other_commands_spare_the_users_files(patchcore, parts, tmp_path):
    from adctl.benchmarking.bench import bench
    from adctl.calibration.calibrate import calibrate
    from adctl.calibration.learning_curve import learning_curve
    from adctl.config import BenchSettings, CalibrateSettings, ExportSettings, ReportSettings
    from adctl.exporting.export import export
    from adctl.reporting.compare import compare
    from adctl.reporting.report import report

    for name in "ab":
        score(settings_for(patchcore, parts, tmp_path / name))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    calls = {
        report: (ReportSettings, {"scores": (tmp_path / "a",)}, ("out", "contact_sheet", "junit", "sarif")),
        compare: (ReportSettings, {"scores": (tmp_path / "a", tmp_path / "b")}, ("out", "animation")),
        calibrate: (CalibrateSettings, {"model": patchcore.model}, ("out",)),
        bench: (BenchSettings, {"models": (patchcore.model,)}, ("out", "junit", "sarif", "markdown", "plot")),
        export: (ExportSettings, {"model": patchcore.model}, ("out",)),
    }
    suffixes = {
        "contact_sheet": ".png",
        "animation": ".gif",
        "junit": ".xml",
        "sarif": ".sarif",
        "plot": ".png",
        "markdown": ".md",
    }
    usual = {report: ".html", compare: ".html", calibrate: ".safetensors", bench: ".json", export: ".onnx"}
    for function, (cls, given, outputs) in calls.items():
        for output in outputs:
            target = theirs / f"x{suffixes.get(output, usual[function])}"
            target.write_text("<html>mine: adctl</html>" if target.suffix not in (".onnx", ".png", ".gif") else "mine")
            before = target.read_bytes()
            more = {"fail_if": ("image_auroc<0.1",)} if output in ("junit", "sarif") and function is report else {}
            settings = LoadedSettings(validated(cls, {**given, **more, output: target}), {})
            if target.suffix == ".safetensors":
                target.write_bytes(before := b"mine")
            with pytest.raises(UsageError, match="did not write it"):
                function(settings)
            assert target.read_bytes() == before
            target.unlink()
    (theirs / "learning_curve.json").write_text("{}")
    curve = LoadedSettings(validated(CalibrateSettings, {"model": patchcore.model, "out": theirs}), {})
    with pytest.raises(UsageError, match="did not write it"):
        learning_curve(curve)
    (theirs / "sheet.png").write_text("mine")
    with pytest.raises(UsageError, match="did not write it"):
        adctl.fetch_check(parts, sheet=theirs / "sheet.png")
    assert (theirs / "sheet.png").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix", reason="there are no pipes there")
def test_only_regular_files_of_their_own_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "folder.html").mkdir()
    for target in (tmp_path / "pipe.html", tmp_path / "folder.html"):
        with pytest.raises(UsageError, match="no regular file"):
            files.require_replaceable([target], overwrite=True)
        with pytest.raises(OutputError, match="no regular file"):
            files.write_text(target, "x")
    assert (tmp_path / "pipe.html").is_fifo()
    with pytest.raises(UsageError, match="Two outputs"):
        files.require_replaceable([tmp_path / "a.xml", None, tmp_path / "a.xml"], overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        files.require_replaceable([tmp_path / "file" / "a" / "b.html"], overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.html", "pipe.html"]


def test_sources_of_results_are_not_replaced_by_them(patchcore, parts, tmp_path):
    score(settings_for(patchcore, parts, tmp_path / "out"))
    shutil.copytree(patchcore.run, tmp_path / "run")
    shutil.copytree(patchcore.run, tmp_path / "other")
    before = content_of(tmp_path)
    for call in (
        lambda: adctl.report(scores=[tmp_path / "out"], format=["json"], out=tmp_path / "out" / "scores.json"),
        lambda: adctl.report(scores=[tmp_path / "out"], format=["json"], out=tmp_path / "run" / "run.json"),
        lambda: adctl.bench(models=[patchcore.model], out=tmp_path / "run" / "settings.json"),
        lambda: export_runs(tmp_path, tmp_path / "run" / "run.json"),
        lambda: adctl.calibrate(model=tmp_path / "run", out=tmp_path / "other" / "model.safetensors"),
    ):
        with pytest.raises(UsageError, match=r"did not write it|trained model"):
            call()
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".", "..", "-x", ".x", "a\nb", "C:x", "a\\b"])
def test_a_name_of_a_run_leads_to_no_other_folder(tmp_path, name):
    for train in (adctl.train, adctl.tune):
        with pytest.raises(UsageError, match="no name for a run"):
            train(data=tmp_path, arch="padim", name=name, runs=tmp_path / "runs")
    with pytest.raises(UsageError, match="no name for a run"):
        adctl.train(data=tmp_path, arch="padim,patchcore", name=name, runs=tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_a_taken_name_is_told_before_the_images_are_read(patchcore):
    for train, message in ((adctl.train, "exists already"), (adctl.tune, "run of a training")):
        with pytest.raises(UsageError, match=message):
            train(data="nowhere", arch="padim", name=patchcore.run.name, runs=patchcore.run.parent)


def test_a_report_of_the_user_is_refused_before_scoring(patchcore, parts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("mine")
    done = CommandLine(tmp_path)("score", parts, "--model", patchcore.model, "--out", out, "--report", code=2)
    assert "report.html exists already" in done.stderr
    assert [path.name for path in out.iterdir()] == ["report.html"]


@pytest.mark.parametrize("format_name", ["html", "md", "csv", "json", "tex", "pdf", "pptx"])
def test_a_report_is_written_again_without_a_flag(patchcore, parts, tmp_path, format_name):
    pytest.importorskip("pptx")
    pytest.importorskip("reportlab")
    from adctl.config import ReportSettings
    from adctl.reporting.report import report

    score(settings_for(patchcore, parts, tmp_path / "out"))
    given = {"scores": (tmp_path / "out",), "format": (format_name,), "contact_sheet": tmp_path / "sheet.png"}
    for _ in range(2):
        written = report(LoadedSettings(validated(ReportSettings, given), {}))
        assert all(map(files.is_ours, (*written.files, tmp_path / "sheet.png")))


def test_what_adctl_writes_bears_its_mark(patchcore, tmp_path):
    from adctl.gate_files import write_junit
    from adctl.gates import Gate, check

    write_junit(
        tmp_path / "gates.xml", "adctl.report", check([Gate.parse("image_auroc<0.5")], {"image_auroc": 1.0}, "x")
    )
    assert files.is_ours(tmp_path / "gates.xml")
    assert files.is_ours(patchcore.model)
    for name, text in {"x.html": "about adctl", "x.md": "adctl notes", "x.csv": "adctl,1", "x.png": "\x89PNG"}.items():
        (tmp_path / name).write_text(text)
        assert not files.is_ours(tmp_path / name)
    marked = files.mark_png(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    (tmp_path / "y.png").write_bytes(marked)
    assert files.is_ours(tmp_path / "y.png")
    assert cv2.imread(str(tmp_path / "y.png")).shape == (8, 8, 3)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_a_model_outside_of_a_run_asks_for_images(patchcore, tmp_path, name):
    shutil.copy(patchcore.model, tmp_path / name)
    with pytest.raises(UsageError, match="lies in no run"):
        adctl.score(model=tmp_path / name, runs=tmp_path / "runs")


# ---- permissions and leftovers


@pytest.mark.skipif(os.name != "posix", reason="permissions differ there")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_and_folders_follow_the_umask(tmp_path, umask):
    import torch

    from adctl.engine import safetensors_file
    from adctl.fetching.demo_dataset import generate

    before = os.umask(umask)
    try:
        safetensors_file.write(tmp_path / "m.safetensors", {"a": torch.zeros(2)}, {"x": 1})
        folder = generate(tmp_path / "data", train=1, good=1, per_defect=1, size=64)
    finally:
        os.umask(before)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask


@pytest.mark.skipif(os.name != "posix", reason="processes are found otherwise there")
def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_stay(tmp_path):
    program = (
        "import os, sys, pathlib; from adctl import files\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "files.partial_path(folder / 'a.csv').touch()\n"
        "files.partial_path(folder / 'zipper').mkdir()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert len(list(tmp_path.iterdir())) == 2
    ours, theirs = files.partial_path(tmp_path / "b.csv"), tmp_path / ".mine.partial"
    assert not list(tmp_path.iterdir())
    ours.touch()
    theirs.touch()
    old = tmp_path / ".c.csv.0123456789abcdef.partial"
    new = tmp_path / ".d.csv.0123456789abcdef.partial"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    files.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {ours, theirs, new}


def test_a_long_name_has_a_temporary_file_too(tmp_path):
    files.write_text(tmp_path / ("é" * 120 + ".csv"), "x")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_bears_the_mark(tmp_path, suffix, monkeypatch):
    from PIL import Image

    from adctl.reporting import animation

    monkeypatch.setattr(animation, "_frames", lambda *_: [Image.new("RGB", (64, 64), name) for name in ("red", "blue")])
    assert files.is_ours(animation.write_animation([], None, tmp_path / f"x{suffix}"))


def test_a_cache_that_cannot_be_written_is_an_error_and_no_crash(tmp_path):
    program = (
        "import resource, signal, sys; import numpy as np; from pathlib import Path; from adctl import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try:\n"
        "    with files.new_hdf5(Path(sys.argv[1])) as stored: stored['x'] = np.ones(100000)\n"
        "except OSError as error: print('told', error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.h5")], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "told 27\n"), done.stderr

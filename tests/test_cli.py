"""The command line in its own processes: a complete run, and errors for users' mistakes."""

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

import cv2
import numpy as np
import pytest
from conftest import ROOT, CommandLine

from adctl import __version__

FEW = ("--image-size", "64", "--device", "cpu")
HELD_OUT = ("--calibration-share", "0.2")


@pytest.fixture(scope="module")
def world(tmp_path_factory, zippers):
    """A folder in which a model was trained by the command line."""
    folder = tmp_path_factory.mktemp("world")
    run = CommandLine(folder)
    run.trained = run.json("train", "--data", zippers, "--name", "first", *HELD_OUT, *FEW)
    return run


def rows_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def scores_in(folder: Path) -> list[float]:
    return [row["score"] for row in rows_in(folder)]


def test_version_and_help(adctl):
    assert adctl("--version").stdout.strip() == f"adctl {__version__}"
    for command in ("fetch", "train", "calibrate", "score", "report", "export", "bench", "demo"):
        assert command in adctl("--help").stdout
        assert "--json" in adctl(command, "--help").stdout


def test_train_writes_a_run_and_remembers_it(world):
    assert world.trained["schema"] == "adctl.train/1"
    assert world.trained["ok"] is True
    run = world.folder / "runs" / "first"
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["image_size"] == {"value": 64, "from": "--image-size"}
    assert manifest["settings"]["seed"] == {"value": 0, "from": "default"}
    assert manifest["model"]["sha256"] == world.trained["result"]["sha256"]
    assert manifest["environment"]["torch"]
    assert (run / "split.json").is_file()
    assert json.loads((world.folder / "runs" / "last.json").read_text(encoding="utf-8")) == {
        "model": "first/model.safetensors"
    }


def test_the_same_seed_gives_the_same_model_file(world, zippers):
    again = world.json("train", "--data", zippers, "--runs", "others", *HELD_OUT, *FEW)
    assert again["result"]["sha256"] == world.trained["result"]["sha256"]
    other = world.json("train", "--data", zippers, "--runs", "others", "--seed", "1", *HELD_OUT, *FEW)
    assert other["result"]["sha256"] != world.trained["result"]["sha256"]


def test_score_writes_results_heatmaps_and_maps(world, zippers):
    document = world.json("score", zippers, "--model", "first", "--out", "heatmaps")
    out = world.folder / "heatmaps"
    counts = document["result"]["counts"]
    rows = rows_in(out)
    assert sum(counts.values()) == len(rows) == 13
    assert counts["error"] == 0
    assert {row["label"] for row in rows} > {"good", "rough"}
    with (out / "results.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [float(line["score"]) for line in table] == [row["score"] for row in rows]
    for row in rows:
        assert row["verdict"] == ("reject" if row["score"] > row["threshold"] else "good")
        picture = cv2.imread(str(out / Path(row["key"]).with_suffix(".png")))
        assert picture is not None
    assert json.loads((out / "scores.json").read_text(encoding="utf-8"))["complete"] is True
    assert (out / "maps.h5").is_file()
    assert not list(out.rglob("*.partial"))


def test_score_without_images_takes_the_test_part(world):
    document = world.json("score", "--model", "first", "--no-maps")
    assert sum(document["result"]["counts"].values()) == 13
    folder = world.folder / document["result"]["folder"]
    assert not (folder / "maps.h5").exists()
    assert not list(folder.rglob("*.png"))


def test_score_says_which_model_it_took(world, zippers):
    done = world("score", zippers / "test" / "good", "--out", "which")
    assert "first/model.safetensors" in done.stdout


def test_a_moved_model_file_scores_the_same(world, zippers, adctl):
    moved = adctl.folder / "elsewhere.safetensors"
    shutil.copy(world.folder / "runs" / "first" / "model.safetensors", moved)
    here = world.json("score", zippers / "test", "--model", "first", "--out", "stay")
    there = adctl.json("score", zippers / "test", "--model", moved, "--out", "moved")
    assert scores_in(world.folder / "stay") == scores_in(adctl.folder / "moved")
    assert here["result"]["counts"] == there["result"]["counts"]


def test_fail_on_anomaly(world, zippers):
    assert world(
        "score", zippers / "test" / "broken_teeth", "--model", "first", "--fail-on-anomaly", code=None
    ).returncode in (0, 3)
    blatant = world.folder / "blatant"
    blatant.mkdir()
    cv2.imwrite(str(blatant / "noise.png"), np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    world("score", blatant, "--model", "first", "--fail-on-anomaly", code=3)
    assert world.json("score", blatant, "--model", "first", "--fail-on-anomaly", code=3)["ok"] is True


def test_one_bad_image_is_an_error_row_and_the_rest_go_on(world, zippers):
    folder = world.folder / "mixed"
    shutil.copytree(zippers / "test" / "good", folder)
    (folder / "text.png").write_text("no image")
    whole = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(folder / "pixel.png"), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(folder / "wide.png"), np.zeros((40, 20000, 3), np.uint8))
    document = world.json("score", folder, "--model", "first", "--out", "mixed-out")
    assert document["result"]["counts"]["error"] == 3
    rows = {row["key"]: row for row in rows_in(world.folder / "mixed-out")}
    assert len(rows) == 10
    for name in ("text.png", "cut.png", "pixel.png"):
        assert rows[name]["verdict"] == "error"
        assert name in rows[name]["error"]
    assert rows["wide.png"]["width"] == 20000
    assert any("could not be scored" in warning for warning in document["warnings"])
    world("score", folder / "text.png", "--model", "first", code=1)


def test_calibrate_writes_a_new_file_and_leaves_the_old(world):
    before = world.trained["result"]["sha256"]
    document = world.json("calibrate", "--model", "first", "--max-false-alarm", "0.25")
    result = document["result"]
    assert Path(result["model"]).name == "model-conformal-0.25.safetensors"
    assert result["calibration"]["good_images"] == 4
    from adctl.files import sha256_file

    assert sha256_file(world.folder / "runs" / "first" / "model.safetensors") == before
    warned = world.json("calibrate", "--model", "first", "--method", "conformal", "--out", "x.safetensors")
    assert "needs 99" in warned["warnings"][0]


def test_calibrate_refuses_training_images(world, zippers):
    done = world.json("calibrate", "--model", "first", "--good", zippers / "train" / "good")
    assert done["result"]["calibration"]["good_images"] == 4
    assert "was trained on them" in done["warnings"][0]


def test_calibrate_with_labelled_defects(world, zippers):
    done = world.json("calibrate", "--model", "first", "--method", "f1", "--defects", zippers / "test" / "rough")
    assert done["result"]["calibration"]["defect_images"] == 1
    # The name of the run now means that calibration; the file of the training has no defects.
    world("calibrate", "--model", "runs/first/model.safetensors", "--method", "f1", code=2)


def test_report_and_its_numbers(world, zippers):
    world("score", zippers, "--model", "first", "--out", "reported")
    document = world.json("report", "reported", "--out", "page.html")
    image = document["result"]["evaluation"]["image"]
    assert 0 <= image["auroc"] <= 1
    page = (world.folder / "page.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")


def test_report_gives_intervals_when_asked(world, zippers):
    world("score", zippers, "--model", "first", "--out", "intervals")
    asked = ["report", "intervals", "--ci", "--ci-level", "0.9", "--ci-samples", "100"]
    found = world.json(*asked)["result"]["evaluation"]
    assert found["resampling"] == {"samples": 100, "level": 0.9, "seed": 0}
    image, pixel = found["image"], found["pixel"]
    assert image["intervals"]["auroc"]["low"] <= image["auroc"] <= image["intervals"]["auroc"]["high"]
    assert {"aupro", "aupro_05", "f1_max", "region_overlap"} <= set(pixel)
    assert set(pixel["by_size"]) <= {"small", "medium", "large"}
    text = world(*asked).stdout
    assert "90 % interval" in text
    for said in ("FPR at 95 % TPR", "balanced accuracy", "AUPRO to FPR 0.05", "region IoU"):
        assert said in text
    refused = world("report", "intervals", "--ci", "--ci-level", "95", code=2)
    assert "--ci-level" in refused.stderr


def test_bench_prints_figures(world):
    document = world.json("bench", "first", "--repeats", "3", "--batch-sizes", "1,2", "--out", "b.json")
    model = document["result"]["models"][0]
    assert set(model["throughput"]) == {"1", "2"}
    assert model["latency_ms"]["p50"] > 0
    assert json.loads((world.folder / "b.json").read_text(encoding="utf-8"))["schema"] == "adctl.bench/1"


def test_print_config_tells_origins(world):
    document = world.json("train", "--print-config", "--set", "coreset_ratio=0.5", ADCTL_SEED="9")
    table = document["result"]
    assert table["coreset_ratio"] == {"value": 0.5, "from": "--set coreset_ratio"}
    assert table["seed"] == {"value": 9, "from": "ADCTL_SEED"}
    assert table["arch"]["from"] == "default"
    assert "ADCTL_SEED" in world("train", "--print-config", ADCTL_SEED="9").stdout


def test_dry_run_tells_what_was_understood_and_does_nothing(adctl, zippers):
    document = adctl.json("train", "--data", zippers, "--dry-run", *FEW)["result"]
    assert document["train_images"] == 20
    assert document["split"] == {"train": 20, "validation": 0, "calibration": 0}
    assert document["masks"] == 7
    assert document["forecast"]["memory"] > 0
    assert not (adctl.folder / "runs").exists()
    text = adctl("train", "--data", zippers, "--dry-run", *FEW).stdout
    assert "7 for 7 defective" in text


def test_plain_folder_of_good_images(adctl, zippers):
    adctl("train", "--good", zippers / "train" / "good", "--name", "plain", *FEW)
    document = adctl.json("score", zippers / "test" / "good" / "*.png", "--out", "out")
    assert sum(document["result"]["counts"].values()) == 6


def test_a_fetched_data_set_is_found_by_its_category(adctl):
    missing = adctl("train", "--arch", "padim", "--category", "zipper", code=2)
    assert "adctl fetch" in missing.stderr


MISTAKES = {
    "unknown arch": (["train", "--arch", "patchcor", "--data", "{zippers}"], 2, "Did you mean 'patchcore'?"),
    "missing folder": (["train", "--data", "nowhere"], 2, "nowhere"),
    "no data named": (["train"], 2, "--data DIR"),
    "too few images": (["train", "--arch", "simplenet", "--good", "{few}"], 1, "few"),
    "empty folder": (["train", "--good", "{empty}"], 1, "empty"),
    "unknown option": (["train", "--data", "{zippers}", "--set", "coreset=1"], 2, "coreset_ratio"),
    "bad option value": (["train", "--data", "{zippers}", "--set", "coreset_ratio=7"], 2, "less than or equal to 1"),
    "option without value": (["train", "--data", "{zippers}", "--set", "coreset_ratio"], 2, "NAME=VALUE"),
    "bad size": (["train", "--data", "{zippers}", "--arch", "resnet", "--image-size", "50"], 2, "multiple of 32"),
    "no such gpu": (["train", "--data", "{zippers}", "--gpu", "7"], 2, "--device cpu"),
    "unknown backbone": (["train", "--data", "{zippers}", "--backbone", "resnet8"], 2, "resnet18"),
    "no weights": (["train", "--data", "{zippers}", "--backbone", "resnet18"], 2, "adctl fetch weights resnet18"),
    "weights missing": (["train", "--data", "{zippers}", "--weights", "none.pth"], 2, "none.pth"),
    "unknown flag": (["train", "--archh", "padim"], 2, "--archh"),
    "unknown command": (["trian"], 2, "trian"),
    "no model": (["score", "{zippers}"], 2, "adctl train"),
    "missing model": (["score", "{zippers}", "--model", "none.safetensors"], 2, "none.safetensors"),
    "foreign model": (["score", "{zippers}", "--model", "{foreign}"], 1, "not a complete model file"),
    "no scores": (["report"], 2, "adctl score"),
    "not scores": (["report", "{empty}"], 2, "scores.json"),
    "bad config": (["train", "--config", "none.toml"], 2, "--config"),
    "bad number": (["train", "--epochs", "many"], 2, "many"),
    "output is a file": (
        ["train", "--data", "{zippers}", "--runs", "{foreign}", "--image-size", "64"],
        1,
        "Cannot write",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_clear_message_and_the_right_code(name, adctl, zippers, tmp_path):
    arguments, code, says = MISTAKES[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    for image in sorted((zippers / "train" / "good").iterdir())[:1]:
        shutil.copy(image, tmp_path / "few")
    (tmp_path / "foreign.safetensors").write_bytes(b"not a model" * 10)
    places = {
        "zippers": zippers,
        "empty": tmp_path / "empty",
        "few": tmp_path / "few",
        "foreign": tmp_path / "foreign.safetensors",
    }
    filled = [argument.format(**places) for argument in arguments]
    done = adctl(*filled, "--json", code=code)
    assert done.stderr.count("error: ") == 1
    assert says in done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is False
    assert document["schema"] == "adctl.error/1"
    assert document["error"]["exit_code"] == code
    assert document["error"]["remedy"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_and_loses_nothing(world, zippers, tmp_path):
    import resource

    world("score", zippers / "test", "--model", "first", "--out", "kept")
    before = (world.folder / "kept" / "results.jsonl").read_bytes()
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY));"
        "from adctl.cli.app import run; sys.exit(run(sys.argv[1:]))"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", program, "score", str(zippers / "test"), "--model", "first", "--out", "kept"],
        cwd=world.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert (world.folder / "kept" / "results.jsonl").read_bytes() == before
    assert not list((world.folder / "kept").rglob("*.partial"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_score_leaves_only_whole_files(world, zippers, sent):
    folder = world.folder / f"many-{sent}"
    folder.mkdir()
    for index in range(400):
        shutil.copy(zippers / "test" / "good" / "000.png", folder / f"{index:04}.png")
    out = world.folder / f"interrupted-{sent}"
    process = subprocess.Popen(
        [sys.executable, "-m", "adctl", "score", folder, "--model", "first", "--out", out],
        cwd=world.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while process.poll() is None and len(list(out.glob("*.png"))) < 20:
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + sent, errors
    assert b"Traceback" not in errors
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < len(lines) < 400
    assert all(json.loads(line)["score"] is not None for line in lines)
    manifest = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert manifest["complete"] is False
    assert manifest["rows"] == len(lines)
    assert not list(out.rglob("*.partial"))
    assert all(cv2.imread(str(picture)) is not None for picture in out.glob("*.png"))


def test_quiet_and_colourless(world, zippers):
    done = world("score", zippers / "test" / "good", "--model", "first", "--quiet")
    assert (done.stdout, done.stderr) == ("", "")
    assert world.json("score", zippers / "test" / "good", "--model", "first", "-q")["ok"] is True
    failed = world("score", zippers / "test" / "good", "--model", "none", "--quiet", code=2)
    assert failed.stderr.startswith("error: ")


def test_routine_lines_come_only_with_verbose(world, zippers):
    arguments = ("score", zippers / "test" / "good", "--model", "first")
    usual, verbose = world(*arguments), world(*arguments, "-v")
    assert not [line for line in usual.stderr.splitlines() if not line.startswith("warning: ")]
    assert all(word in verbose.stderr for word in ("Device ", "Runtime ", "Model "))
    assert "\x1b[" not in usual.stdout


def test_memory_stays_flat_in_the_number_of_images(world, zippers):
    """A dozen or hundreds of images: the peak may differ by a few megabytes, not by the images."""
    folder = world.folder / "flat"
    folder.mkdir()
    for index in range(600):
        shutil.copy(zippers / "test" / "good" / f"{index % 6:03}.png", folder / f"{index:04}.png")
    peaks = [peak_of(world, folder / pattern) for pattern in ("000*.png", "*.png")]
    assert peaks[1] < peaks[0] + 40


def peak_of(world: CommandLine, pattern: Path) -> float:
    """Peak memory of a scoring process, MiB."""
    program = (
        "import resource, sys; from adctl.cli.app import run; code = run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); sys.exit(code)"
    )
    arguments = ["score", str(pattern), "--model", "first", "--quiet", "--no-heatmaps", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=world.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def test_the_demo_goes_from_nothing_to_a_report(adctl):
    document = adctl.json("demo", NO_COLOR="1")
    result = document["result"]
    assert result["evaluation"]["image"]["auroc"] > 0.95
    assert (adctl.folder / result["page"]).is_file()
    assert (adctl.folder / result["heatmaps"] / "results.csv").is_file()
    assert document["warnings"] == []


def test_help_before_a_command_is_the_help_of_it(adctl):
    assert adctl("help", "train").stdout == adctl("train", "--help").stdout
    assert adctl("help", "fetch", "check").stdout == adctl("fetch", "check", "--help").stdout
    assert adctl("help").stdout == adctl("--help").stdout
    assert "Did you mean 'train'?" in adctl("help", "trian", code=2).stderr


def test_help_has_groups_and_examples_and_uses_the_width_of_the_terminal(adctl):
    text = adctl("train", "--help", COLUMNS="150").stdout
    for title in ("Data:", "Detector:", "Training:", "Output:", "Compute:", "General:", "Examples:"):
        assert f"\n{title}\n" in text
    assert text.partition("Examples:")[2].count("\n  adctl train ") == 5
    assert 120 < max(map(len, text.splitlines())) <= 150
    narrow = adctl("train", "--help", COLUMNS="60").stdout.partition("Examples:")[0]  # examples stay as they are typed
    assert max(map(len, narrow.splitlines())) <= 60


def test_every_example_of_a_help_is_understood(monkeypatch):
    import shlex

    from adctl.cli.command import Command, split_subcommand
    from adctl.config import COMMANDS

    for path, cls in COMMANDS.items():
        assert cls.examples
        for example in cls.examples:
            _, name, *arguments = shlex.split(example)
            called, own = split_subcommand(name, arguments)
            assert called == path
            Command(path).make_context(path, own)


@pytest.mark.parametrize(
    ("line", "path", "own"),
    [
        ("demo", "fetch", ["demo"]),
        ("--list mvtec", "fetch", ["--list", "mvtec"]),
        ("mvtec --category check", "fetch", ["mvtec", "--category", "check"]),
        ("--from check", "fetch", ["--from", "check"]),
        ("--from usb --accept-license", "fetch", ["--from", "usb", "--accept-license"]),
        ("check parts --sheet x.png", "fetch check", ["parts", "--sheet", "x.png"]),
        ("--sheet x.png check parts", "fetch check", ["--sheet", "x.png", "parts"]),
        ("--json bundle usb", "fetch bundle", ["--json", "usb"]),
        ("weights resnet18 --from f.pth", "fetch weights", ["resnet18", "--from", "f.pth"]),
        ("verify", "fetch verify", []),
    ],
)
def test_subcommands_of_fetch_are_found_among_the_flags(line, path, own):
    from adctl.cli.command import split_subcommand

    assert split_subcommand("fetch", line.split()) == (path, own)


def test_another_word_for_a_flag_is_understood(adctl):
    refused = adctl("train", "--lr", "0.1", code=2)
    assert "Unknown option --lr." in refused.stderr
    assert "Did you mean --learning-rate?" in refused.stderr


def test_a_typo_in_a_variable_is_told(adctl):
    refused = adctl("train", code=2, ADCTL_EPOCS="3")
    assert "Did you mean 'ADCTL_EPOCHS'?" in refused.stderr


def test_every_command_prints_its_settings(adctl):
    table = adctl.json("score", "parts", "--print-config", "--no-maps", ADCTL_WORKERS="3")["result"]
    assert table["images"] == {"value": ["parts"], "from": "--images"}
    assert table["maps"] == {"value": False, "from": "--maps"}
    assert table["workers"] == {"value": 3, "from": "ADCTL_WORKERS"}


def test_train_fetches_a_data_set_that_is_missing(adctl):
    missing = adctl("train", "--dataset", "demo", "--category", "zipper", "--dry-run", *FEW, code=2)
    assert "adctl fetch demo" in missing.stderr
    plan = adctl.json("train", "--dataset", "demo", "--category", "zipper", "--fetch", "--dry-run", *FEW)["result"]
    assert plan["train_images"] > 0
    refused = adctl("train", "--category", "bottle", "--fetch", code=2)
    assert "--accept-license" in refused.stderr
    several = adctl("train", "--dataset", "mvtec", "--fetch", "--accept-license", code=2)
    assert "--category all" in several.stderr


def test_train_fetches_weights_that_are_missing(monkeypatch, tmp_path):
    from adctl.config import TrainSettings
    from adctl.training import fetch_missing

    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path))
    fetched = []
    monkeypatch.setattr(fetch_missing, "fetch_weights", lambda name, **_: fetched.append(name))
    for fetch, backbone in ((False, "resnet18"), (True, None), (True, "tf_efficientnet_lite0"), (True, "resnet18")):
        fetch_missing.fetch_missing(TrainSettings(fetch=fetch, backbone=backbone))
    assert fetched == ["resnet18"]

"""Export at the end of `train`, and the silence of the libraries that export."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from adctl.cli.train import _runtime as describe_runtime
from adctl.config import TrainSettings
from adctl.errors import AdctlError
from adctl.exporting import after_training, export
from adctl.exporting.captured_output import captured_output
from adctl.exporting.graph import ExportSource
from adctl.model_file import load_model
from adctl.runtimes.auto_select import choose_runtime
from adctl.training.single_run import TrainedExport


@pytest.fixture
def trained(patchcore, tmp_path):
    """A finished training, in a folder of its own."""
    run = tmp_path / "run"
    shutil.copytree(patchcore.run, run)
    return replace(patchcore, run=run, model=run / patchcore.model.name)


def test_scoring_after_training_uses_a_verified_faster_runtime(adctl, zippers):
    words = ["train", "--data", zippers, "--arch", "padim", "--image-size", "64", "--device", "cpu", "--name", "quick"]
    exported = adctl.json(*words, ADCTL_EXPORT="auto")["result"]["export"]
    assert (exported["runtime"], exported["reason"], exported["command"]) == ("openvino", "", "")
    assert exported["seconds"] > 0
    records = json.loads((adctl.folder / "runs" / "quick" / "exports.json").read_text())["exports"]
    assert [(record["file"], record["equal"]) for record in records] == [(Path(exported["file"]).name, True)]
    if exported["speedup"] > 1.2:
        adctl("score", "--model", "quick", "--out", "out")
        assert json.loads((adctl.folder / "out" / "scores.json").read_text())["runtime"]["name"] == "openvino"


def test_a_long_export_is_left_to_the_user_with_its_gain(trained, monkeypatch):
    monkeypatch.setattr(after_training, "estimated_seconds", lambda _: 1000.0)
    told = after_training.export_trained(replace(trained, seconds=30.0), TrainSettings())
    assert told.file is None
    assert told.command == f"adctl export --model {trained.run} --format openvino"
    assert told.seconds == 1000
    assert told.speedup is not None
    assert told.speedup > 0
    assert not list(trained.run.glob("*.xml"))


def test_a_long_training_may_export_for_a_fifth_of_its_time(trained, monkeypatch):
    monkeypatch.setattr(after_training, "estimated_seconds", lambda _: 1000.0)
    made = after_training.export_trained(replace(trained, seconds=6000.0), TrainSettings())
    assert made.file == trained.run / "model.xml"
    assert choose_runtime(trained.model, "cpu").runtime == ("openvino" if (made.speedup or 0) > 1 else "torch")


def test_the_estimate_is_finite(trained):
    assert 0 < after_training.estimated_seconds(load_model(trained.model)[0].eval()) < 600


def test_without_another_runtime_the_package_is_named(trained, monkeypatch):
    monkeypatch.setattr(after_training.importlib.util, "find_spec", lambda _: None)
    told = after_training.export_trained(trained, TrainSettings())
    assert (told.file, told.speedup, told.command) == (None, None, "pip install 'adctl[openvino]'")


def test_a_failed_export_leaves_a_complete_model(trained, monkeypatch, caplog):
    def fail(*_, **__):
        raise AdctlError("The export went wrong.", "")

    monkeypatch.setattr(after_training, "estimated_seconds", lambda _: 1.0)
    monkeypatch.setattr(export, "write_format", fail)
    with caplog.at_level("WARNING", "adctl"):
        told = after_training.export_trained(trained, TrainSettings())
    assert told.file is None
    assert told.reason == "The export went wrong."
    assert "The model is complete" in caplog.text
    assert load_model(trained.model)


def test_none_exports_nothing(trained, monkeypatch):
    monkeypatch.setattr(after_training, "train", lambda *_: trained)
    monkeypatch.setattr(after_training, "export_trained", lambda *_: pytest.fail("nothing was to be exported"))
    settings = TrainSettings(export="none", device="cpu")
    assert after_training.train_and_export(after_training.LoadedSettings(settings, {})) is trained


# ---- output of other libraries


def chatter():
    sys.stdout.write("python\n")
    sys.stderr.write("errors\n")
    os.write(1, b"native\n")
    os.write(2, b"native errors\n")
    warnings.warn("old", stacklevel=1)


def test_libraries_print_nothing(capfd):
    with captured_output():
        chatter()
    sys.stdout.write("after\n")
    assert capfd.readouterr() == ("after\n", "")


def test_what_a_failing_library_prints_is_in_the_error(trained, monkeypatch, capfd):
    def writer(*_):
        chatter()
        raise RuntimeError("no such operation")

    source = ExportSource.read(trained.model)
    monkeypatch.setattr(export.pkgutil, "resolve_name", lambda _: writer)
    with pytest.raises(AdctlError, match="cannot be exported to onnx: RuntimeError: no such operation") as caught:
        export.write_format("onnx", source, trained.run / "model.onnx")
    assert {"python", "errors", "native", "native errors"} <= set(caught.value.message.splitlines())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("export", "text"),
    [
        (None, []),
        (TrainedExport(Path("r/model.xml"), "openvino", 2.04, 8.2, "", ""),
         ["openvino, verified, 2.0 times as fast as PyTorch here: model.xml (8.2 s)"]),
        (TrainedExport(None, "openvino", 2.5, 40.0, "it takes long", "adctl export --model r"),
         [("adctl export --model r, takes about 40 seconds, then about 2.5 times as fast as PyTorch here "
          "(estimated on a small network)")]),
        (TrainedExport(None, None, None, 0.0, "no other runtime is installed", "pip install 'adctl[openvino]'"),
         ["pip install 'adctl[openvino]': no other runtime is installed"]),
    ],
)  # fmt: skip
def test_the_text_of_train_tells_the_runtime(export, text):
    assert [line for _, line in describe_runtime(export)] == text

"""Start of commands: modules that are imported late or in part, and images that are read meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adctl.data import loader
from adctl.data.preprocess import InputSpec
from adctl.detectors.components import timm_models
from adctl.detectors.registry import detector_class
from adctl.engine.model_summary import FlopCounter
from adctl.records import Sample

SLOW = {"torchvision", "torch._dynamo", "sympy", "lightning_fabric", "sklearn", "scipy.stats", "triton", "openvino"}


def in_new_process(program: str):
    """Run a program and parse its output as JSON."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_default_backbone_is_created_without_the_rest_of_timm():
    imported = in_new_process(
        "import json, sys; from adctl.detectors.components.backbones import DEFAULT, Backbone; "
        "network = Backbone(DEFAULT, None, 64); import torch; assert len(network(torch.zeros(1, 3, 64, 64))) == 2; "
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert not set(imported) & {*SLOW, "timm.models.resnet"}
    assert "timm.models.efficientnet" in imported


def test_timm_and_torchvision_are_complete_for_others():
    models, channels, early = in_new_process(
        "import json, sys; from adctl.detectors.components import timm_models; "
        "timm_models.create_model('resnet18'); early = 'torchvision' in sys.modules; "
        "import timm, torchvision; assert torchvision.ops.nms; "
        "graph = timm.create_model('resnet18', features_only=True, feature_cls='fx'); "
        "print(json.dumps([len(timm.list_models()), graph.feature_info.channels(), early]))"
    )
    assert models > 1000
    assert channels == [64, 64, 128, 256, 512]
    assert not early


def test_unknown_and_tagged_models():
    assert timm_models.is_model("resnet18.a1_in1k")
    assert not timm_models.is_model("../resnet18")
    assert timm_models.module_of("wide_resnet50_2") == "timm.models.resnet"


def test_another_structure_of_timm_is_imported_as_usual():
    assert in_new_process(
        "import json; from adctl.detectors.components import timm_models; "
        "timm_models._PACKAGES += ('timm.no_such_package',); "
        "timm_models.create_model('resnet18'); import timm; print(json.dumps(timm.is_model('vgg11')))"
    )


def test_training_reads_its_first_image_before_slow_modules_are_imported(zippers, tmp_path):
    arguments = ["train", "--data", str(zippers), "--arch", "padim", "--workers", "1", "--runs", str(tmp_path)]
    imported = in_new_process(
        "import json, os, sys; from adctl.data import loader; "
        "loader.load_image = lambda *_: (print(json.dumps(sorted(sys.modules)), flush=True), os._exit(0)); "
        f"from adctl.cli.app import run; run({arguments!r})"
    )
    assert not set(imported) & SLOW


def test_images_read_ahead_are_read_once(zippers, monkeypatch):
    samples = [Sample(path, path.name) for path in sorted((zippers / "train" / "good").iterdir())]
    read: list[str] = []
    original = loader.load_image

    def load_image(sample, *rest):
        read.append(sample.key)
        return original(sample, *rest)

    plain = loader.ImageSource(samples, InputSpec(32, 32), workers=2, reuse=False)
    expected = [batch.tolist() for batch in plain.batches(8)]
    monkeypatch.setattr(loader, "load_image", load_image)
    source = loader.ImageSource(samples, InputSpec(32, 32), workers=2, reuse=False)
    source.read_ahead(5)
    assert [batch.tolist() for batch in source.batches(8)] == expected
    assert sorted(read) == sorted(sample.key for sample in samples)


def test_an_unreadable_image_read_ahead_is_an_error_when_it_is_needed(tmp_path):
    source = loader.ImageSource([Sample(tmp_path / "no.png", "no")], InputSpec(32, 32), workers=1, reuse=False)
    source.read_ahead()
    with pytest.raises(loader.ImageError):
        list(source.batches(1))


@pytest.mark.parametrize("arch", ["cnn", "vit"])
def test_operations_are_counted_as_by_torch(arch):
    cls = detector_class(arch)
    detector = cls(cls.Config(image_size=64)).eval()
    image = torch.zeros(1, 3, 64, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        detector(image)
    with torch.no_grad(), FlopCounter() as ours:
        detector(image)
    assert ours.total == theirs.get_total_flops() > 0


# ---- progress


@pytest.mark.skipif(sys.platform == "win32", reason="terminals differ there")
@pytest.mark.parametrize("flags", [(), ("--quiet",)])
def test_a_terminal_shows_what_is_going_on_from_the_start(flags, zippers, tmp_path):
    words = ["train", "--data", zippers, "--arch", "padim", "--image-size", "64", "--runs", tmp_path, *flags]
    shown = on_terminal([sys.executable, "-m", "adctl", *map(str, words)])
    opening = shown.partition("model ")[0]
    stages = ["Loading PyTorch ...", "reading the list of images ...", "building the network ...", "calibrating ..."]
    assert [stage for stage in stages if stage in opening] == ([] if flags else stages)
    assert opening.startswith("" if flags else stages[0])
    assert not opening.rpartition("\r")[2].strip(), "the status is removed before the result"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_terminal(columns, zippers, patchcore, tmp_path):
    program = [sys.executable, "-m", "adctl"]
    helped = on_terminal([*program, "score", "--help"], columns)
    words = ["score", zippers / "test", "--model", patchcore.model, "--out", tmp_path / "o", "--runs", tmp_path]
    scored = on_terminal([*program, *map(str, words)], columns)
    lines = helped.splitlines()
    assert columns - 20 < max(map(len, lines)) <= columns
    progress = re.findall(r"([^\r\n]*)\r(?!\n)", scored)  # is overwritten, so it must not wrap; sentences may
    assert max(map(len, progress)) < columns
    assert "images" in scored


def on_terminal(command: list[str], columns: int = 80) -> str:
    """Run a command on a terminal, check that it succeeds, and return its output."""
    import pty
    import termios

    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (24, columns))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        command, stdin=writing, stdout=writing, stderr=writing, env={**inherited, "NO_COLOR": "1"}
    ) as process:
        os.close(writing)
        shown = bytearray()
        with contextlib.suppress(OSError):  # the terminal is closed
            while part := os.read(reading, 4096):
                shown += part
        os.close(reading)
    assert process.returncode == 0, shown
    return shown.decode()

"""Fixtures: real images, a small zipper dataset, models trained once per test session, and the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from command_server import CommandServer
from hypothesis import settings as hypothesis_settings

from adctl.config import LoadedSettings, TrainSettings, names_of, validated

pytest.register_assert_rewrite("adctl.testing")

ROOT = Path(__file__).parent.parent

# Most tests that train need no exported file; test_after_training.py tests the default.
os.environ.setdefault("ADCTL_EXPORT", "none")

# Machines are shared: how long one example takes says nothing.
hypothesis_settings.register_profile("adctl", deadline=None)
hypothesis_settings.load_profile("adctl")


def pytest_terminal_summary(terminalreporter):
    """Show what came of each published layout, whichever worker tried it."""
    passed = terminalreporter.stats.get("passed", [])
    rows = [value for report in passed for name, value in report.user_properties if name == "published layout"]
    if rows:
        terminalreporter.section("published layouts, laid out as adctl's own")
        line = "{:<14} {:>5} {:>5}  {:<13}  {}"
        terminalreporter.write_line(line.format("data set", "train", "test", "masks aligned", "test images by label"))
        for row in rows:
            terminalreporter.write_line(line.format(*row))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images."""
    folder = Path(os.environ.get("ADCTL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "magnetic_tile").is_dir():
        pytest.skip(f"no real images at {folder}; set ADCTL_TEST_DATA")
    return folder


class Pixels:
    """Random images of 8 x 8 pixels in memory, as the trainer wants them."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.values = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)

    def __len__(self):
        return len(self.values)

    def name(self, index):
        return f"image {index}"

    def batches(self, size, order=None):
        order = list(range(len(self))) if order is None else list(order)
        for start in range(0, len(order), size):
            yield self.values[order[start : start + size]]


@pytest.fixture(scope="session")
def zippers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo data set: the zipper category's folder."""
    from adctl.fetching.demo_dataset import generate

    root = tmp_path_factory.mktemp("data")
    generate(root, train=20, good=6, per_defect=1, size=96)
    return root / "zipper"


def settings(**values: Any) -> LoadedSettings[TrainSettings]:
    """Training settings as the command line would load them, small enough for tests."""
    small = {"image_size": 64, "epochs": 2, "device": "cpu", "export": "none", **values}
    return LoadedSettings(validated(TrainSettings, small), dict.fromkeys(names_of(TrainSettings), "test"))


@pytest.fixture(scope="session")
def patchcore(zippers: Path, tmp_path_factory: pytest.TempPathFactory):
    """A trained PatchCore, for tests that need any one model."""
    from adctl.training.single_run import train_once

    return train_once(settings(arch="patchcore", data=zippers, runs=tmp_path_factory.mktemp("runs")))


class Exports:
    """Exported files of a model by format; each is written when it is first asked for."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.folder = folder

    @cached_property
    def source(self) -> Any:
        from adctl.exporting.graph import ExportSource

        return ExportSource.read(self.model)

    def __getitem__(self, name: str) -> Path:
        from adctl.choices import EXPORT_FORMATS
        from adctl.exporting.export import write_format

        path = (self.folder / "model").with_suffix(EXPORT_FORMATS[name].suffix)
        if not path.exists():
            write_format(name, self.source, path)
        return path


@pytest.fixture(scope="session")
def exports(patchcore, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The trained PatchCore in every format."""
    return Exports(patchcore.model, tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="session")
def exported(patchcore, exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with models that need no PyTorch: model.onnx and model.xml."""
    folder = tmp_path_factory.mktemp("exported") / "line3"
    shutil.copytree(patchcore.model.parent, folder, ignore=shutil.ignore_patterns("*.onnx", "*.xml", "*.bin", "scores"))
    for file in (exports["onnx"], exports["openvino"], exports["openvino"].with_suffix(".bin")):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def serve(exported: Path, tmp_path: Path):
    """Make servers in this process, asked without a network; they have the model line3 unless `start` is False."""
    from starlette.testclient import TestClient

    from adctl.config import ServeSettings
    from adctl.serve.app import create_app
    from adctl.serve.state import Server

    running = []

    def make(start: bool = True, **values: Any) -> TestClient:
        wanted = {"runs": tmp_path / "runs", "model": (f"line3={exported / 'model.onnx'}",), "device": "cpu", **values}
        server = Server(validated(ServeSettings, wanted))
        if start:
            server.start()
        running.append(server)
        return TestClient(create_app(server), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)

    yield make
    for server in running:
        server.stop()


class CommandLine:
    """Runs the real command line in a process of its own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, *arguments: object, code: int | None = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADCTL_")}
        variables = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "ADCTL_DATA_DIR": str(self.folder / "data"),
            "ADCTL_EXPORT": "none",
            **environment,
        }
        done = run_adctl([*map(str, arguments)], self.folder, variables)
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: object, code: int = 0, **environment: str) -> dict[str, Any]:
        """Run with --json; stdout must be that document and nothing else, and be as its published schema says."""
        from adctl.cli.command import split_subcommand

        document = json.loads(self(*arguments, "--json", code=code, **environment).stdout)
        words = [str(word) for word in arguments]
        check_document(document, split_subcommand(words[0], words[1:])[0])
        return document


def run_adctl(arguments: list[str], folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, which where possible has the large libraries at its start."""
    if hasattr(os, "fork") and sys.platform == "linux":
        server = command_server()
        if server.suits(variables):
            return server.run(arguments, folder, variables, timeout=600)
    return subprocess.run(
        [sys.executable, "-m", "adctl", *arguments],
        cwd=folder, env=variables, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False,
    )  # fmt: skip


@cache
def command_server() -> CommandServer:
    """The process from which those of the command line are forked."""
    return CommandServer({**os.environ, "PYTHONPATH": str(ROOT)})


def check_document(document: Any, name: str) -> None:
    """Assert that a document is as its published schema says, and has no other fields."""
    error = jsonschema.exceptions.best_match(validator_of(name, document.get("ok")).iter_errors(document))
    assert error is None, f"{name}: {error.json_path}: {error.message}"


@cache
def validator_of(name: str, ok: bool | None) -> Any:
    """The validator of a file, or of a printed document that tells of success or of a failure."""
    from adctl.schemas import schema

    found = without_others(schema(name))
    if ok is not None:
        found |= found.pop("oneOf")[0 if ok else 1]
    return jsonschema.Draft202012Validator(found)


def without_others(value: Any) -> Any:
    """A schema that allows only the fields that it names."""
    if isinstance(value, list):
        return [without_others(one) for one in value]
    if not isinstance(value, dict):
        return value
    closed = {name: without_others(one) for name, one in value.items()}
    return {"additionalProperties": False, **closed} if isinstance(value.get("properties"), dict) else closed


@pytest.fixture
def adctl(tmp_path: Path) -> CommandLine:
    """The command line, in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    return CommandLine(folder)


def pictures_of(folder: Path, side: int) -> Any:
    """The images of a folder, [N,3,side,side] in [0, 1]."""
    import cv2
    import torch

    files = sorted(folder.iterdir())
    pixels = np.stack([cv2.resize(cv2.imread(str(file)), (side, side), interpolation=cv2.INTER_AREA) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def descend(detector: Any, images: Any, rate: float, *, batch: int, epochs: int) -> None:
    """Bare gradient steps on a detector's one phase."""
    import torch

    from adctl.engine.phases import Batch, total

    phase, *_ = detector.phases()
    optimizer = torch.optim.AdamW(phase.parameters, lr=rate)
    detector.train()
    for _ in range(epochs):
        for part in images.split(batch):
            optimizer.zero_grad()
            total(phase.loss(Batch(part, part))).backward()
            optimizer.step()
    detector.eval()


def rebuilding_error(detector: Any, images: Any) -> float:
    """Mean squared difference of images and their reconstructions."""
    import torch

    with torch.inference_mode():
        return float((detector.reconstruct(images) - images).square().mean())


# ---- a real browser

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def absent(reason: str) -> None:
    """Skip a test without its program; where everything must be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        absent("there is no Chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=CHROMIUM)
        yield started
        started.close()

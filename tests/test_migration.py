"""Files written by version 0.1.0 still open and give the same results.

`files_0_1_0/` holds a tiny model of each detector with its scores of three images, and a scored folder. To keep it
small, the tensors of the packaged backbone were left out, and large trained tensors were replaced, before calibrating
and scoring, by numbers generated from the tensor's name. The tests add both again.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adctl.config import ReportSettings, ScoreSettings, load
from adctl.detectors.components.backbones import find_weights
from adctl.model_file import build_detector, load_model, read_header
from adctl.reporting.report import report
from adctl.scoring.score import score
from adctl.scoring.score_set import ScoreSet

FILES = Path(__file__).parent / "files_0_1_0"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))


def drawn(name, shape, mean, deviation):
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy((mean + deviation * values).astype(np.float32))


def backbone_tensors(model):
    """The tensors of the frozen backbone, from the package that brings them."""
    detector = build_detector(read_header(model), model)
    if detector.backbone_name is None:
        return {}
    weights = find_weights(detector.backbone_name, None)
    detector.load_pretrained(weights.tensors)
    return {name: value for name, value in detector.state_dict().items() if name.startswith("backbone.")}


def whole_model(arch, path):
    """Write the model as 0.1.0 wrote it."""
    stored = FILES / f"{arch}.safetensors"
    with safe_open(stored, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(stored) | backbone_tensors(stored)
    tensors |= {name: drawn(name, *how) for name, how in EXPECTED[arch]["seeded"].items()}
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("arch", sorted(EXPECTED))
def test_a_model_of_0_1_0_scores_as_it_did(arch, tmp_path):
    model = whole_model(arch, tmp_path / "model.safetensors")
    settings = {"images": (str(FILES / "zipper"),), "model": model, "out": tmp_path / "out", "device": "cpu"}
    score(load(ScoreSettings, settings))
    rows = {row.key: row for row in ScoreSet.load(tmp_path / "out").rows}
    assert set(rows) == set(EXPECTED[arch]["rows"])
    for key, expected in EXPECTED[arch]["rows"].items():
        assert rows[key].score == pytest.approx(expected["score"], rel=1e-4)
        assert rows[key].verdict == expected["verdict"]


@torch.inference_mode()
def test_a_model_of_0_1_0_learns_from_new_images(tmp_path):
    detector, header = load_model(whole_model("patchcore", tmp_path / "model.safetensors"))
    size = detector.input
    images = torch.rand(4, size.channels, size.height, size.width, generator=torch.Generator().manual_seed(0))
    before = detector(images).scores
    for phase in detector.update_phases(header.training.images):
        phase.absorb(phase.embed(images))
        phase.finish(lambda _done, _total: None)
    assert (detector(images).scores < before).all()


def test_a_scored_folder_of_0_1_0_is_read_and_reported(tmp_path, monkeypatch):
    shutil.copytree(FILES, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")  # its rows name images relative to where it was scored
    scored = ScoreSet.load(Path("scored"))
    assert [row.verdict for row in scored.rows] == ["good", "reject", "reject"]
    assert scored.rows[2].boxes
    result = report(load(ReportSettings, {"scores": ("scored",), "out": tmp_path / "report.html"}))
    assert result.evaluation.image.auroc == 0.5
    assert result.evaluation.pixel is not None

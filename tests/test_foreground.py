"""PatchCore that leaves out the background: only where the good images show an object, and also in exports."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import settings

from adctl.detectors.components.foreground import find_foreground, foreground_mask
from adctl.detectors.patchcore import PatchCore, PatchCoreConfig
from adctl.errors import UsageError
from adctl.exporting.export import write_format
from adctl.exporting.graph import ExportSource
from adctl.model_file import load_model
from adctl.runtimes.loading import open_runtime
from adctl.training.plan import plan_training
from adctl.training.single_run import train_once

SIDE = 96
OPTIONS = {"foreground": True, "cell": 8, "coreset_ratio": 0.3}


def part(seed, *, clutter=False, scratch=False):
    """Return a grey disc with some grain on a dark background, [H,W,3]."""
    random = np.random.default_rng(seed)
    image = random.normal(40, 4, (SIDE, SIDE)).astype(np.float32)
    if clutter:
        cv2.rectangle(image, (2, 2), (14, 22), 60, 2)
    centre = tuple(int(value) for value in random.integers(45, 52, 2))
    disc = cv2.circle(np.zeros_like(image), centre, 20, 1, -1)
    image = np.where(disc > 0, random.normal(170, 12, image.shape), image).astype(np.float32)
    if scratch:
        cv2.line(image, (40, 44), (56, 52), 60, 4)
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def tensor(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for number in range(4):
        cv2.imwrite(str(folder / f"{number}.png"), part(number))
    return folder


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return train_once(settings(arch="patchcore", good=few, image_size=SIDE, runs=runs, name="f", options=OPTIONS))


def two_kinds(masks):
    noise = 0.1 * torch.randn(len(masks), 6, *masks.shape[1:], generator=torch.Generator().manual_seed(0))
    noise[:, 2] += 3 * masks.float()
    return noise


def test_an_object_in_the_middle_is_found_whichever_side_of_the_component_it_is_on():
    masks = torch.zeros(4, 12, 12, dtype=torch.bool)
    masks[:, 3:9, 3:9] = True
    for features in (two_kinds(masks), -two_kinds(masks)):
        found, text = find_foreground(lambda features=features: features.split(2))
        assert text == "25% of the cells"
        mask = foreground_mask(features, found)
        assert mask[:, 2:10, 2:10].all()  # enlarged by a cell
        assert not mask[:, 0].any()


def test_textures_and_objects_at_the_border_have_no_foreground():
    noise = torch.randn(4, 6, 12, 12, generator=torch.Generator().manual_seed(1))
    assert find_foreground(lambda: [noise])[0] is None
    halves = torch.zeros(4, 12, 12, dtype=torch.bool)
    halves[..., 6:] = True
    found, reason = find_foreground(lambda: [two_kinds(halves)])
    assert found is None
    assert "border" in reason


def test_gaps_are_closed_and_an_image_without_object_counts_everywhere():
    found = torch.tensor([0.0, 0, 1, 0, 0, 0, 1.5])
    masks = torch.zeros(2, 12, 12, dtype=torch.bool)
    masks[0, 3:9, 3:9] = True
    masks[0, 5:7, 5:9] = False
    mask = foreground_mask(two_kinds(masks), found)
    assert mask[0, 2:10, 2:10].all()
    assert mask[0].sum() == 64
    assert mask[1].all()


def test_changes_of_the_background_count_no_more_and_those_of_the_object_do(trained):
    detector = load_model(trained.model)[0]
    assert detector.foreground.numel() == detector.channels + 1
    whole = PatchCore(detector.config)
    whole.load_state({name: value for name, value in detector.state_dict().items() if name != "foreground"})
    scores = {
        (name, clutter, scratch): one(tensor(part(9, clutter=clutter, scratch=scratch))).scores.item()
        for name, one in (("foreground", detector), ("whole", whole))
        for clutter, scratch in ((False, False), (True, False), (False, True))
    }
    assert scores["foreground", True, False] < 1.5 * scores["foreground", False, False]
    assert scores["whole", True, False] > 2 * scores["whole", False, False]
    assert scores["foreground", False, True] > 1.3 * scores["foreground", False, False]


def test_scores_out_of_fold_are_those_of_the_object(trained):
    assert len(trained.calibration.evidence.good) == 4
    detector = load_model(trained.model)[0]
    assert trained.calibration.threshold > detector(tensor(part(9))).scores.item()


def test_the_exported_graph_holds_the_foreground(trained, tmp_path):
    write_format("onnx", ExportSource.read(trained.model), tmp_path / "model.onnx", "fp32")
    pixels = np.stack([part(9), part(9, clutter=True), part(9, scratch=True)])
    ours, theirs = (open_runtime(path, "cpu").predict(pixels) for path in (trained.model, tmp_path / "model.onnx"))
    np.testing.assert_allclose(theirs.scores, ours.scores, rtol=1e-3)
    np.testing.assert_allclose(theirs.maps, ours.maps, rtol=1e-2)


def test_a_vision_transformer_has_a_foreground_too(few, tmp_path):
    options = {"foreground": True, "rotations": 2, "coreset_ratio": 0.2, "dimensions": 16}
    common = {"backbone": "vit_tiny_patch16_224", "weights": "random", "image_size": 64, "runs": tmp_path}
    result = train_once(settings(arch="patchcore", good=few, options=options, **common))
    scores = load_model(result.model)[0](torch.rand(2, 3, 64, 64)).scores
    assert scores.isfinite().all()


def test_textures_are_learned_whole_and_other_detectors_refuse_the_setting(few, caplog):
    detector = PatchCore(PatchCoreConfig(image_size=64, foreground=True, coreset_ratio=0.1))
    (phase,) = detector.phases()
    with torch.inference_mode():
        phase.absorb(phase.embed(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))))
        phase.finish(lambda *_: None)
    assert not detector.foreground.numel()
    assert "The background is not left out" in caplog.text
    members = {"padim": {}, "patchcore": {"foreground": True}}
    for arch, options in (("composition", {"foreground": True}), ("ensemble", {"members": members})):
        with pytest.raises(UsageError, match="foreground"):
            plan_training(settings(arch=arch, good=few, options=options).settings)

"""Known defects beside good images: weights of directions, the discriminator, and the images that are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import settings
from test_classifier import FORMATS, draw, write_kinds

from adctl.choices import EXPORT_FORMATS
from adctl.detectors.components.known_defects import (
    LARGEST_RAISE,
    KnownDefects,
    closeness,
    defect_cells,
    defect_memory,
    direction_weights,
    harmless_raise,
    raised,
)
from adctl.detectors.padim import PaDiM, PaDiMConfig
from adctl.detectors.simplenet import SimpleNet, SimpleNetConfig
from adctl.errors import DataError, UsageError
from adctl.exporting.export import write_format
from adctl.exporting.graph import ExportSource
from adctl.model_file import load_model
from adctl.runtimes.loading import open_runtime
from adctl.training.plan import plan_training
from adctl.training.single_run import train_once

SIDE = 64


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Good images to train on, and a folder of dots with a mask each and of stripes without."""
    folder = tmp_path_factory.mktemp("parts")
    write_kinds(folder / "parts" / "train", {"good": 12}, seed=100)
    write_kinds(folder / "parts" / "test", {"dot": 2, "good": 2}, seed=7000)
    write_kinds(folder / "defects", {"dot": 4, "stripe": 3}, seed=300)
    (folder / "defects" / "ground_truth" / "dot").mkdir(parents=True)
    for path in (folder / "defects" / "dot").iterdir():
        mask = (cv2.imread(str(path), 0) == 255).astype(np.uint8) * 255
        cv2.imwrite(str(folder / "defects" / "ground_truth" / "dot" / f"{path.stem}_mask.png"), mask)
    return folder


def plan(parts: Path, **values):
    return plan_training(settings(**{"arch": "padim", "data": parts / "parts", **values}).settings)


def test_weights_are_bounded_have_mean_one_and_need_defects_to_differ():
    spreads = torch.tensor([[1.0, 2.0, 50.0], [1.0, 3.0, 60.0], [0.5, 2.5, 1e6]])
    few, many = direction_weights(spreads), direction_weights(spreads.repeat(50, 1))
    assert torch.allclose(few.mean(), torch.ones(()))
    assert (few >= 0.5).all()
    assert (many >= 0.5).all()
    assert (many[1:] > many[:-1]).all()
    assert ((many - 1).abs() > (few - 1).abs()).all()  # few defects are trusted less
    assert torch.equal(direction_weights(torch.ones(4, 3)), torch.ones(3))


def test_cells_come_from_the_mask_or_from_the_largest_distances():
    distances = torch.rand(3, 8, 8)
    distances[1, 5, 6] = 9
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 8:24, 16:32] = True
    masks[2, 3, 3] = True  # smaller than a cell
    cells = defect_cells(masks, distances)
    assert cells[0].nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert cells[1].nonzero().tolist() == [[5, 6]]
    assert cells[2].nonzero().tolist() == [[0, 0]]


def test_padim_weighs_directions_by_defects_and_keeps_the_weights_in_the_file(parts, tmp_path):
    common = {"arch": "padim", "data": parts / "parts", "runs": tmp_path}
    before, _ = load_model(train_once(settings(**common)).model)
    result = train_once(settings(**common, defects=parts / "defects"))
    after, header = load_model(result.model)
    assert header.calibration is not None
    images = torch.from_numpy(np.stack([cv2.resize(draw("dot", seed), (SIDE, SIDE)) for seed in range(4)]))
    images = (images.float() / 255)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        ratio = after(images).scores / before(images).scores
    assert not torch.allclose(ratio, torch.ones(4), atol=1e-3)
    assert after.weights.min() >= 0.5
    assert torch.equal(before.whitening, after.whitening)


def test_no_defects_leave_the_file_as_it_was(parts, tmp_path):
    tensors = PaDiM(PaDiMConfig(image_size=SIDE)).state_dict()
    assert "weights" not in tensors
    assert plan(parts).defects == ()


def test_the_discriminator_learns_from_known_cells():
    torch.manual_seed(0)
    detector = SimpleNet(SimpleNetConfig(image_size=SIDE))
    places, width = detector.places, detector.dimensions
    detector._fit_buffer("projection", torch.eye(detector.channels)[:, :width])
    detector._fit_buffer("mean", torch.zeros(places, width))
    detector._fit_buffer("whitening", torch.eye(width).expand(places, -1, -1).contiguous())
    assert len(detector._known_cells(10)) == 0
    pixels = torch.randint(0, 255, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    detector.known_defects = KnownDefects(pixels, torch.zeros(3, SIDE, SIDE, dtype=torch.bool))
    assert detector._known_cells(30).shape == (30, width)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write_kinds(folder, {"good": 1}), "good images among the defects"),
        (lambda folder: shutil.copy(folder.parent / "parts/train/good/003.png", folder / "dot/x.png"), "training"),
        (lambda folder: shutil.copy(folder.parent / "parts/test/dot/001.png", folder / "dot/x.png"), "test images"),
        (lambda folder: (folder / "dot" / "001.png").unlink(), "without an image"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.png")], "no images of defects"),
    ],
)
def test_folders_that_are_refused(parts, tmp_path, change, message):
    copy = tmp_path / "all"
    shutil.copytree(parts, copy)
    change(copy / "defects")
    with pytest.raises(DataError, match=message):
        plan(copy, defects=copy / "defects")


def test_a_mask_of_another_size_is_refused(parts, tmp_path):
    copy = tmp_path / "all"
    shutil.copytree(parts, copy)
    cv2.imwrite(str(copy / "defects/ground_truth/dot/002_mask.png"), np.full((9, 9), 255, np.uint8))
    with pytest.raises(DataError, match="002"):
        train_once(settings(arch="padim", data=copy / "parts", defects=copy / "defects", runs=tmp_path))


def test_settings_that_are_refused(parts):
    with pytest.raises(UsageError, match="good images alone"):
        plan(parts, arch="cnn", defects=parts / "defects")
    with pytest.raises(UsageError, match="no folder"):
        plan(parts, defects=parts / "nowhere")
    with pytest.raises(UsageError, match="tiles"):
        plan(parts, defects=parts / "defects", options={"tile": 32})


# ---- the memory of defects of patchcore


def test_closeness_raises_distances_near_defects_and_lowers_none():
    good = torch.tensor([0.0, 1.0, 2.0, 4.0])
    assert torch.equal(raised(good, torch.full((4,), 9.0), 1.5), good)
    assert raised(good, torch.zeros(4), 1.5).tolist() == pytest.approx([0, 1.5, 3, 6])
    assert (raised(good, torch.rand(4), 1.5) >= good).all()
    assert closeness(torch.tensor(1.0), torch.tensor(4.0)) == 0.75


def test_features_of_defects_that_resemble_good_ones_are_left_out():
    good = torch.zeros(100, 2)
    good[90:, 1] = 5.0  # unusual, but good
    distances = good[:, 1] + 0.5
    defects = torch.tensor([[0.1, 0.0], [0.0, 4.9], [9.0, 0.0]])
    memory = defect_memory(defects, torch.tensor([0.1, 4.9, 9.0]), good, distances)
    assert memory.tolist() == [[9.0, 0.0]]
    assert not len(defect_memory(defects[:1], torch.tensor([0.0]), good, distances))


def test_the_factor_is_the_largest_that_leaves_high_good_scores_where_they_are():
    to_good = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(0)) + 1

    def factor(to_defects: torch.Tensor) -> float:
        return harmless_raise(to_good, to_defects, lambda distances: distances.flatten(1).amax(1))

    far = torch.full_like(to_good, 9.0)
    assert factor(far) == LARGEST_RAISE
    ordinary, resembling = far.clone(), far.clone()
    ordinary[to_good.flatten(1).amax(1).argsort()[:10]] = 0.9  # of images with low scores
    assert factor(ordinary) == LARGEST_RAISE
    resembling[to_good.flatten(1).amax(1).argmax()] = 1.8  # of the image with the highest score
    assert 1 < factor(resembling) < LARGEST_RAISE
    assert factor(torch.zeros_like(to_good)) == 1


def test_defects_that_good_images_resemble_change_nothing(parts, tmp_path, caplog):
    """Defects are copies of good images, except for a pixel."""
    for number in range(3):
        image = draw("good", 100 + number)
        image[0, 0] ^= 1
        (tmp_path / "defects" / "none").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "defects" / "none" / f"{number}.png"), image)
    common = {"arch": "patchcore", "data": parts / "parts", "runs": tmp_path / "runs"}
    detector, _ = load_model(train_once(settings(**common, defects=tmp_path / "defects")).model)
    assert not len(detector.defects) or detector.largest_raise < LARGEST_RAISE


def test_files_of_earlier_versions_keep_their_factor(memories):
    detector, _ = load_model(memories[1].model)
    tensors = {name: value for name, value in detector.state_dict().items() if name != "largest_raise"}
    detector.load_state(tensors)
    assert float(detector.largest_raise) == LARGEST_RAISE
    assert len(detector.defects)


@pytest.fixture(scope="module")
def memories(parts, tmp_path_factory):
    """Runs of patchcore without and with known defects."""
    common = {"arch": "patchcore", "data": parts / "parts", "runs": tmp_path_factory.mktemp("runs")}
    return train_once(settings(**common)), train_once(settings(**common, defects=parts / "defects"))


def test_patchcore_raises_known_defects_and_keeps_them_in_the_file(memories):
    (before, _), (after, header) = (load_model(run.model) for run in memories)
    assert header.calibration is not None
    assert before.defects.numel() == 0
    assert "defects" not in before.state_dict()
    assert len(after.defects)
    assert torch.equal(before.bank, after.bank)

    def ratios(kind: str) -> torch.Tensor:
        images = np.stack([cv2.resize(draw(kind, seed), (SIDE, SIDE)) for seed in range(4)])
        pixels = (torch.from_numpy(images).float() / 255)[:, None].expand(-1, 3, -1, -1)
        with torch.no_grad():
            return after(pixels).scores / before(pixels).scores

    assert (ratios("dot") > 1.02).all()
    assert (ratios("dot") <= LARGEST_RAISE + 1e-4).all()
    assert torch.allclose(ratios("good"), torch.ones(4), atol=0.02)


@pytest.fixture(scope="module", params=["patchcore", "padim"])
def with_defects(request, memories, parts, tmp_path_factory):
    """Model file of each detector with known defects, its source, and pixels of a defect and of a good part."""
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    model = memories[1].model
    if request.param == "padim":
        common = {"arch": "padim", "data": parts / "parts", "runs": tmp_path_factory.mktemp("runs")}
        model = train_once(settings(**common, defects=parts / "defects")).model
    images = [cv2.cvtColor(cv2.resize(draw(kind, 9), (SIDE, SIDE)), cv2.COLOR_GRAY2RGB) for kind in ("dot", "good")]
    return model, ExportSource.read(model), np.stack(images)


@pytest.mark.parametrize(("name", "precision"), FORMATS, ids=map("-".join, FORMATS))
def test_detectors_with_known_defects_are_exported_in_every_format(with_defects, tmp_path, name, precision):
    model, source, pixels = with_defects
    target = (tmp_path / "model").with_suffix(EXPORT_FORMATS[name].suffix)
    write_format(name, source, target, precision, list(pixels[:, None]))
    found, wanted = (open_runtime(path, "cpu").predict(pixels) for path in (target, model))
    limit = 1e-3 if precision == "fp32" else 0.1
    assert found.scores == pytest.approx(wanted.scores, rel=limit)
    assert np.allclose(found.maps, wanted.maps, rtol=1e-2, atol=limit * wanted.maps.max())

"""Tiling of large images: complete cover, no double counting, and no seams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adctl.data.images import write_png
from adctl.data.loader import ImageSource, load_image, network_inputs
from adctl.data.preprocess import InputSpec
from adctl.data.tiling import Stitcher, Tiling
from adctl.detectors.base import Prediction
from adctl.model_file import ModelHeader, Training
from adctl.records import Sample
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.heatmaps import upsample
from adctl.scoring.predict import collect, predict

sides = st.integers(16, 700)
overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75])


def smooth(height: int, width: int) -> np.ndarray:
    """A picture of slow waves, [H,W] in 0 to 1."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return ((2 + np.sin(rows / 37) + np.cos(columns / 53)) / 4).astype(np.float32)


@given(sides, sides, st.integers(32, 300), overlaps)
@settings(max_examples=60, deadline=None)
def test_tiles_cover_the_image_and_repeat_what_was_asked_for(height, width, side, overlap):
    tiling = Tiling.for_image(InputSpec(32, 32, tile=side, tile_overlap=overlap), height, width)
    covered = np.zeros((height, width), int)
    for tile in tiling:
        part = tile.cut(covered)
        assert part.shape == (min(side, height), min(side, width))
        part += 1
    assert covered.min() >= 1
    assert len(tiling) == len(list(tiling))
    assert [tiling[index] for index in range(len(tiling))] == list(tiling)
    (grid,) = tiling.grids
    for starts, tile_side in ((grid.tops, grid.height), (grid.lefts, grid.width)):
        steps = np.diff(starts)
        assert (steps <= np.ceil(tile_side * (1 - overlap))).all()
        assert not len(steps) or steps.max() - steps.min() <= 1  # evenly spread


def test_no_tile_is_there_in_vain():
    assert len(Tiling.for_image(InputSpec(32, 32, tile=100, tile_overlap=0), 200, 300)) == 6
    assert len(Tiling.for_image(InputSpec(32, 32, tile=100, tile_overlap=0), 201, 300)) == 9
    assert len(Tiling.for_image(InputSpec(32, 32, tile=100), 100, 60)) == 1


def test_without_a_tile_there_is_the_whole_image():
    assert list(Tiling.for_image(InputSpec(32, 32), 70, 90)) == [(0, 0, 70, 90)]


def test_scales_are_tiles_of_other_sizes():
    tiling = Tiling.for_image(InputSpec(32, 32, tile=64, scales=(1.0, 0.5, 2.0)), 256, 256)
    assert [grid.height for grid in tiling.grids] == [64, 128, 32]
    whole = Tiling.for_image(InputSpec(32, 32, scales=(1.0, 2.0)), 100, 61)
    assert [(grid.height, grid.width) for grid in whole.grids] == [(100, 61), (50, 31)]


def stitched(spec: InputSpec, picture: np.ndarray, cells: int) -> np.ndarray:
    """What tiles give whose maps are the picture itself, in so many cells a side."""
    tiling = Tiling.for_image(spec, *picture.shape)
    stitcher = Stitcher(spec, tiling)
    for tile in tiling:
        rows = tile.top + (np.arange(cells) + 0.5) / cells * tile.height - 0.5
        columns = tile.left + (np.arange(cells) + 0.5) / cells * tile.width - 0.5
        grid = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
        import cv2

        stitcher.add(1.0, cv2.remap(picture, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    return stitcher.result()[1]


@given(st.integers(100, 500), st.integers(100, 500), st.integers(48, 160), overlaps, st.sampled_from([16, 32]))
@settings(max_examples=40, deadline=None)
def test_a_smooth_map_comes_out_as_if_never_cut(height, width, side, overlap, cells):
    picture = smooth(height, width)
    found = stitched(InputSpec(32, 32, tile=side, tile_overlap=overlap), picture, cells)
    # Half a cell at a tile's edge is out of its map's reach; without overlap nothing else covers it.
    allowed = 0.02 + side / cells / 37 / 4
    assert np.abs(upsample(found, height, width) - picture).max() < allowed


def test_scales_do_not_change_a_smooth_map_either():
    picture = smooth(400, 300)
    found = stitched(InputSpec(32, 32, tile=100, scales=(1.0, 0.5)), picture, 32)
    assert found.shape == (128, 96)
    assert np.abs(upsample(found, 400, 300) - picture).max() < 0.03


@given(sides, sides, st.integers(32, 300), overlaps)
@settings(max_examples=40, deadline=None)
def test_a_flat_map_stays_flat(height, width, side, overlap):
    found = stitched(
        InputSpec(32, 32, tile=side, tile_overlap=overlap, scales=(1.0, 0.5)),
        np.full((height, width), 3, np.float32),
        8,
    )
    np.testing.assert_allclose(found, 3, rtol=1e-5)


def test_tiles_that_disagree_are_blended_without_a_step():
    spec = InputSpec(32, 32, tile=100, tile_overlap=0.5)
    tiling = Tiling.for_image(spec, 100, 300)
    stitcher = Stitcher(spec, tiling)
    for number in range(len(tiling)):
        stitcher.add(float(number), np.full((50, 50), number, np.float32))
    _, found = stitcher.result()
    assert found.min() == pytest.approx(0, abs=1e-3)
    assert found.max() == pytest.approx(len(tiling) - 1, abs=1e-3)
    assert np.abs(np.diff(found[0])).max() < 0.1  # a seam would be a step of 1


def test_the_score_is_that_of_the_strangest_tile_averaged_over_scales():
    spec = InputSpec(32, 32, tile=50, tile_overlap=0, scales=(1.0, 0.5))
    tiling = Tiling.for_image(spec, 100, 100)
    stitcher = Stitcher(spec, tiling)
    for score in (1, 7, 2, 3, 5):
        stitcher.add(score, np.zeros((4, 4), np.float32))
    assert stitcher.result()[0] == 6


def test_a_huge_image_has_a_map_of_bounded_size():
    spec = InputSpec(256, 256, tile=1024, tile_overlap=0)
    tiling = Tiling.for_image(spec, 10_000, 20_000)
    stitcher = Stitcher(spec, tiling)
    peak = np.zeros((256, 256), np.float32)
    peak[100:108, 100:108] = 1
    for _ in tiling:
        stitcher.add(0, peak)
    _, found = stitcher.result()
    assert found.shape == (2048, 4096)
    assert np.count_nonzero(found > 0.9) >= len(tiling)


class Brightness(torch.nn.Module):
    """A detector whose map is the brightness of each 4 x 4 cell."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.input = spec
        self.largest = 0

    def forward(self, images: torch.Tensor) -> Prediction:
        self.largest = max(self.largest, len(images))
        maps = torch.nn.functional.avg_pool2d(images.mean(1), 4)
        return Prediction(maps.flatten(1).amax(1), maps)


def runtime_of(spec: InputSpec) -> TorchRuntime:
    header = ModelHeader("none", {}, Training("a", "b", 1, "", (), None))
    return TorchRuntime.of(Brightness(spec), header, torch.device("cpu"))


@pytest.fixture
def samples(tmp_path):
    """Two images of slow waves, the second wider and with a bright spot."""
    for name, (height, width) in {"a": (150, 200), "b": (150, 330)}.items():
        picture = np.rint(200 * smooth(height, width))[..., None].repeat(3, axis=2).astype(np.uint8)
        if name == "b":
            picture[100:116, 300:316] = 255
        write_png(tmp_path / f"{name}.png", picture)
    return [Sample(tmp_path / f"{name}.png", f"{name}.png", "good") for name in "ab"]


def test_scoring_stitches(samples):
    spec = InputSpec(64, 64, tile=64)
    runtime = runtime_of(spec)
    broken = Sample(samples[0].path.with_name("none.png"), "none.png")
    first, missing, second = predict(runtime, [samples[0], broken, samples[1]], batch_size=3, workers=1, display=50)
    assert missing.score is None
    assert missing.item.error is not None
    assert first.anomaly_map.shape == (38, 50)
    assert second.anomaly_map.shape == (38, 82)
    np.testing.assert_allclose(upsample(first.anomaly_map, 150, 200), smooth(150, 200) * 200 / 255, atol=0.02)
    row, column = np.unravel_index(upsample(second.anomaly_map, 150, 330).argmax(), (150, 330))
    assert 100 <= row < 116
    assert 300 <= column < 316
    assert second.score == pytest.approx(1, abs=0.01)
    assert max(first.item.display.shape) == 50
    assert first.item.whole is None  # let go
    assert runtime._detector.largest == 3


def test_calibration_takes_maps_of_different_sizes(samples):
    found = collect(runtime_of(InputSpec(64, 64, tile=64)), samples, batch_size=4, workers=0)
    assert len(found.scores) == len(found.peaks) == 2


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_tiles_as_images(samples, reuse, workers):
    spec = InputSpec(32, 32, 1, tile=64, scales=(1.0, 0.5))
    source = ImageSource(samples, spec, workers=workers, reuse=reuse)
    expected = np.stack([tile for item in samples for tile in network_inputs(load_image(item, spec), spec)])
    count = len(Tiling.for_image(spec, 150, 200))
    assert len(source) == len(expected) > count
    np.testing.assert_array_equal(np.concatenate(list(source.batches(5))), expected)
    order = [len(expected) - 1, 0, count, 3, count - 1]
    np.testing.assert_array_equal(np.concatenate(list(source.batches(2, order))), expected[order])
    assert source.name(count - 1).endswith("a.png")
    assert source.name(count).endswith("b.png")


@pytest.fixture
def spotted(tmp_path):
    """Data of images of three sizes, three of them with a spot that a mask marks."""
    generator = np.random.default_rng(0)
    for number in range(10):
        noise = generator.normal(0, 4, (200, 240 + 16 * (number % 3), 1))
        image = np.clip(200 * smooth(*noise.shape[:2])[..., None] + noise, 0, 255).astype(np.uint8).repeat(3, axis=2)
        write_png(tmp_path / "d/train/good" / f"{number}.png", image)
        write_png(tmp_path / "d/test/good" / f"{number}.png", image)
        image[60:90, 150:180], mask = (255, 0, 255), np.zeros_like(image)
        mask[60:90, 150:180] = 255
        if number < 3:
            write_png(tmp_path / "d/test/spot" / f"{number}.png", image)
            write_png(tmp_path / "d/ground_truth/spot" / f"{number}_mask.png", mask)
    return tmp_path / "d"


def test_training_scoring_and_measuring_with_tiles(spotted, tmp_path):
    from conftest import settings as train_settings

    from adctl.config import LoadedSettings, ScoreSettings, names_of
    from adctl.evaluation.evaluate import evaluate
    from adctl.reporting.pictures import colour_scale, pictures
    from adctl.scoring.score import score
    from adctl.scoring.score_set import ScoreSet
    from adctl.training.single_run import train_once

    runs = tmp_path / "runs"
    train_once(train_settings(arch="patchcore", data=spotted, runs=runs, cache=tmp_path / "c", options={"tile": 96}))
    score_settings = ScoreSettings(runs=runs, out=tmp_path / "s", device="cpu")
    score(LoadedSettings(score_settings, dict.fromkeys(names_of(ScoreSettings), "test")))
    scores = ScoreSet.load(tmp_path / "s")
    assert {values.shape for _, values in scores.maps()} == {(10, 12), (10, 13), (10, 14)}
    found = evaluate(scores)
    assert found.image.auroc == 1
    assert found.pixel.auroc > 0.97
    box = next(row for row in scores.rows if row.label == "spot").boxes[0]
    assert abs(box.x + box.width / 2 - 165) < 20
    assert abs(box.y + box.height / 2 - 75) < 20
    assert len(list(pictures(scores, range(13), colour_scale(scores)))) == 13
    assert len(list((tmp_path / "s").rglob("*.png"))) == 13

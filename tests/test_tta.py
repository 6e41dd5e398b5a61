"""Test-time augmentation: maps are transformed back correctly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.data.preprocess import InputSpec
from adctl.errors import UsageError
from adctl.runtimes.base import RuntimeOutput
from adctl.scoring.tta import VIEWS, AugmentedRuntime, TestTimeAugmentation, parse_views

SQUARE_ONLY = sorted(name for name, view in VIEWS.items() if view.square)


def pooled(pixels):
    """A detector that is the same in all directions: a map cell is the mean of 4 x 4 pixels."""
    count, height, width, channels = pixels.shape
    maps = pixels.reshape(count, height // 4, 4, width // 4, 4, channels).mean((2, 4, 5))
    return RuntimeOutput(maps.max((1, 2)), maps)


def sloped(pixels):
    """A detector that is not: brighter pixels are stranger the further to the right they are."""
    maps = pixels.mean(3) * np.arange(pixels.shape[2])
    return RuntimeOutput(maps.max((1, 2)), maps)


@given(st.lists(st.sampled_from(sorted(VIEWS)), unique=True, max_size=4), st.integers(1, 3), st.integers(1, 4))
def test_maps_align_exactly(views, count, cells):
    images = np.random.default_rng(0).integers(0, 16, (count, 4 * cells, 4 * cells, 1)) / 16  # sums are exact
    plain, averaged = pooled(images), TestTimeAugmentation(pooled, views)(images)
    np.testing.assert_allclose(averaged.maps, plain.maps, rtol=0, atol=1e-6)
    np.testing.assert_allclose(averaged.scores, plain.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_each_view_is_undone_and_is_another_view(name):
    images = np.random.default_rng(0).random((2, 5, 5, 3))
    view = VIEWS[name]
    assert np.array_equal(view.undo(view.apply(images)), images)
    assert not np.array_equal(view.apply(images), images)


def test_one_spot_stays_one_spot():
    images = np.zeros((1, 8, 8, 1))
    images[0, 1, 6] = 1
    maps = TestTimeAugmentation(sloped, sorted(VIEWS))(images).maps[0]
    assert np.argwhere(maps).tolist() == [[1, 6]]


def test_scores_are_the_mean_of_the_views():
    images = np.zeros((1, 4, 8, 1))
    images[0, 0, 6] = 1
    prediction = TestTimeAugmentation(sloped, ["hflip", "vflip"])(images)
    assert prediction.scores.tolist() == pytest.approx([(6 + 1 + 6) / 3])


@pytest.mark.parametrize("name", SQUARE_ONLY)
def test_turned_views_need_square_images(name):
    with pytest.raises(UsageError, match="square images, and these are 4 x 8"):
        TestTimeAugmentation(pooled, [name])(np.zeros((1, 4, 8, 1)))


def test_flips_take_any_shape():
    assert TestTimeAugmentation(pooled, ["hflip", "vflip"])(np.ones((2, 8, 12, 3))).maps.shape == (2, 2, 3)


def test_views_are_read_and_wrong_ones_explained():
    assert parse_views("hflip, vflip,hflip") == ("hflip", "vflip")
    with pytest.raises(UsageError, match="'hflop'") as caught:
        parse_views("hflop")
    assert "Did you mean 'hflip'?" in caught.value.remedy
    with pytest.raises(UsageError, match="''"):
        parse_views("hflip,")
    with pytest.raises(UsageError, match="'spin'"):
        TestTimeAugmentation(pooled, ["spin"])


@dataclass
class Toy:
    """A runtime of numpy only, as the exported ones are."""

    input: InputSpec
    name: str = "toy"
    header: Any = None
    device: str = "cpu"
    callers: int = 1

    def predict(self, pixels):
        assert pixels.flags.c_contiguous
        assert pixels.shape[1:] == (self.input.height, self.input.width, self.input.channels)
        maps = pixels.mean(axis=3, dtype=np.float32) * np.arange(pixels.shape[2], dtype=np.float32)
        return RuntimeOutput(maps.max(axis=(1, 2)).astype(np.float64), maps)


@pytest.mark.parametrize("channels", [1, 3])
def test_any_runtime_can_look_in_several_views(channels):
    toy = Toy(InputSpec(8, 8, channels))
    runtime = AugmentedRuntime(toy, ["hflip", "transpose"])
    pixels = np.zeros((2, 8, 8, channels), np.uint8)
    pixels[:, 2, 6] = 100
    scored = runtime.predict(pixels)
    assert (runtime.name, runtime.input, runtime.device) == (toy.name, toy.input, toy.device)
    assert scored.scores.dtype == np.float64
    assert scored.maps.dtype == np.float32
    # 6 columns in as it is, 1 flipped, 2 with rows and columns exchanged
    np.testing.assert_allclose(scored.scores, 100 * (6 + 1 + 2) / 3)
    np.testing.assert_allclose(scored.maps[:, 2, 6], 300)
    assert np.count_nonzero(scored.maps) == 2


def test_a_runtime_refuses_turned_views_of_what_is_not_square():
    with pytest.raises(UsageError, match="4 x 8"):
        AugmentedRuntime(Toy(InputSpec(4, 8)), ["rot90"])

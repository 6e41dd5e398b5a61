"""Generated defects: exact masks, any image, seeds, places; and the area of the part."""

from __future__ import annotations

import numpy as np
import pytest

from adctl.data import generated_defects
from adctl.data.generated_defects import BORDER, KINDS, paint
from adctl.data.object_area import object_area
from adctl.errors import UsageError
from adctl.fetching.demo_dataset import render


def texture(*shape: int, dtype: object = np.uint8, top: float = 255) -> np.ndarray:
    values = np.random.default_rng(0).uniform(0.2, 0.7, shape) * top
    return values.astype(dtype)


def part_on_a_table() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:120, 0:200]
    part = np.hypot((y - 60) / 35, (x - 110) / 60) < 1
    image = np.where(part[..., None], (90, 60, 40), (200, 190, 90)) + np.random.default_rng(0).normal(
        0, 2, (120, 200, 3)
    )
    return (image + x[..., None] / 20).astype(np.uint8), part


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "image",
    [
        render(0)[0][:, 60:160],
        texture(64, 160),
        texture(40, 48, 6, dtype=np.uint16, top=4095),
        texture(48, 48, 1, dtype=np.float32, top=1),
        texture(48, 40, 3, dtype=np.float64, top=-3),
        np.zeros((32, 32, 3), np.uint8),
        np.full((32, 32), 255, np.uint8),
        texture(16, 320),
    ],
    ids=["zipper", "grey", "12 bits", "float", "negative", "black", "white", "20:1"],
)
def test_the_mask_is_exactly_where_the_image_changed(image, kind):
    given = image.copy()
    found = paint(image, kind, 3)
    assert np.array_equal(image, given)
    assert found.image.shape == image.shape
    assert found.image.dtype == image.dtype
    assert found.kind == kind
    assert np.isfinite(found.image).all()
    changed = (found.image != image).reshape(*image.shape[:2], -1).any(axis=2)
    assert np.array_equal(found.mask, changed)
    assert found.mask.any()


def test_a_seed_gives_the_same_defect_and_another_seed_another():
    image = texture(64, 64, 3)
    first, again, other = (paint(image, "stain", seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.mask, other.mask)


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_defects_change_more(kind):
    image = render(1, size=96)[0]

    def change(strength: float) -> float:
        found = [paint(image, kind, seed, strength=strength) for seed in range(4)]
        return float(np.mean([np.abs(one.image.astype(int) - image)[one.mask].mean() for one in found]))

    assert change(1.0) > change(0.2)


def test_sizes_and_strengths_reach_from_faint_to_strong():
    image = render(2, size=128)[0]
    found = [paint(image, kind, seed) for kind in ("stain", "pit", "misplaced") for seed in range(20)]
    shares = [one.mask.mean() for one in found]
    assert min(shares) < 0.002
    assert max(shares) > 0.04
    assert min(one.strength for one in found) < 0.3
    assert max(one.strength for one in found) > 0.7


def test_a_share_of_the_defects_is_at_the_border(monkeypatch):
    image = texture(200, 200)
    monkeypatch.setattr(generated_defects, "BORDER_SHARE", 0.0)
    inside = sum(paint(image, "pit", seed).at_border for seed in range(30))
    monkeypatch.setattr(generated_defects, "BORDER_SHARE", 1.0)
    painted = [paint(image, "pit", seed) for seed in range(30)]
    assert inside < 15
    assert all(one.at_border for one in painted)
    for one in painted:
        rows, columns = np.nonzero(one.mask)
        assert min(rows.min(), columns.min(), 199 - rows.max(), 199 - columns.max()) < BORDER


def test_defects_lie_on_the_part_where_the_background_is_plain():
    image, part = part_on_a_table()
    area = object_area(image)
    assert (area & part).sum() / (area | part).sum() > 0.9
    for kind in ("scratch", "stain", "misplaced"):
        mask = paint(image, kind, 0).mask
        assert (mask & area).sum() == mask.sum()


@pytest.mark.parametrize("image", [texture(64, 160), np.zeros((32, 40, 3), np.uint8), render(0)[0]])
def test_the_whole_image_is_the_part_without_a_plain_background(image):
    assert object_area(image).all()


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (texture(64, 64), "scrach", "Unknown kind"),
        (texture(8, 64), "scratch", "at least 16 pixels"),
        (texture(64), "scratch", "shape"),
        (texture(64, 64) > 100, "scratch", "type bool"),
        (texture(64, 64, dtype=np.int64), "scratch", "type int64"),
    ],
)
def test_what_cannot_be_painted_is_refused(image, kind, message):
    with pytest.raises(UsageError, match=message):
        paint(image, kind, 0)

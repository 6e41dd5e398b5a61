"""The generated zipper dataset."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from adctl.data.datasets.layouts import open_mvtec
from adctl.errors import OutputError
from adctl.fetching import demo_dataset

FEW = {"train": 3, "good": 2, "per_defect": 1, "size": 64}


@pytest.mark.parametrize("defect", demo_dataset.DEFECTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_mask_is_exactly_where_the_defect_shows(defect, seed):
    bad, mask = demo_dataset.render(seed, defect, 128)
    good, nothing = demo_dataset.render(seed, None, 128)
    assert not nothing.any()
    assert 0.001 < mask.mean() < 0.30
    assert np.array_equal(bad[~mask], good[~mask])
    inside = np.abs(bad[mask].astype(int) - good[mask].astype(int)).max(axis=1)
    assert (inside > 7).mean() > 0.6


def test_the_same_arguments_give_the_same_pixels_and_others_do_not():
    assert np.array_equal(demo_dataset.render((1, 2), "rough", 64)[0], demo_dataset.render((1, 2), "rough", 64)[0])
    assert not np.array_equal(demo_dataset.render(1, None, 64)[0], demo_dataset.render(2, None, 64)[0])


def test_layout_and_counts(tmp_path):
    demo_dataset.generate(tmp_path, **FEW)
    dataset = open_mvtec(tmp_path)
    assert len(dataset.train) == 3
    assert dataset.test_counts == {"good": 2, **dict.fromkeys(sorted(demo_dataset.DEFECTS), 1)}
    assert dataset.mask_count == 7
    mask = cv2.imread(str(tmp_path / "zipper" / "ground_truth" / "rough" / "000_mask.png"), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) == {0, 255}


def test_no_image_is_drawn_twice(tmp_path):
    from adctl.files import sha256_file

    demo_dataset.generate(tmp_path, **FEW)
    digests = [sha256_file(path) for part in ("train", "test") for path in (tmp_path / "zipper" / part).rglob("*.png")]
    assert len(set(digests)) == len(digests) == 12


def test_a_whole_set_is_left_alone_and_another_one_replaced(tmp_path):
    first = demo_dataset.generate(tmp_path, **FEW) / "train" / "good" / "000.png"
    before = first.stat().st_mtime_ns
    demo_dataset.generate(tmp_path, **FEW)
    assert first.stat().st_mtime_ns == before
    demo_dataset.generate(tmp_path, **{**FEW, "train": 2})
    assert len(list((tmp_path / "zipper" / "train" / "good").iterdir())) == 2


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo_dataset.generate(tmp_path, **FEW, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_something_else_in_the_way_is_kept(tmp_path):
    (tmp_path / "zipper").mkdir()
    (tmp_path / "zipper" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="was not made by adctl"):
        demo_dataset.generate(tmp_path, **FEW)
    assert (tmp_path / "zipper" / "mine.txt").read_text() == "precious"


def test_progress_reaches_the_total(tmp_path):
    seen = []
    demo_dataset.generate(tmp_path, **FEW, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    assert json.loads((tmp_path / "zipper" / "demo.json").read_text())["train"] == 3

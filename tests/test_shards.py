"""WebDataset shards: the meaning of the file names in them."""

from __future__ import annotations

import io
import json
import tarfile

import cv2
import numpy as np
import pytest

from adctl.data.checks.check import check
from adctl.data.datasets.layouts import list_images, open_data
from adctl.data.images import read_image
from adctl.data.masks import mask_for
from adctl.errors import DataError

RANDOM = np.random.default_rng(0)


def png(pixels=None):
    return cv2.imencode(".png", RANDOM.integers(0, 256, (24, 32, 3), np.uint8) if pixels is None else pixels)[
        1
    ].tobytes()


def shard(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def said(**values):
    return json.dumps(values).encode()


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "parts"
    for number in range(2):
        good = {}
        for n in range(6):
            good[f"{n:06}.png"], good[f"{n:06}.json"] = png(), said(label="good")
        shard(folder / f"parts-train-{number:06}.tar", good)
    tests = {
        "a.png": png(),
        "a.cls": b"0\n",
        "b.jpg": png(),
        "b.json": said(label="scratch", other=[1]),
        "b.mask.png": png(np.eye(24, 32, dtype=np.uint8) * 255),
        "c.txt": b"no image",
    }
    shard(folder / "parts-test-000000.tar", tests)
    return folder


def test_a_folder_of_shards_is_a_data_set(shards):
    dataset = open_data(shards)
    assert (dataset.layout, dataset.category, len(dataset.train)) == ("webdataset", "parts", 12)
    assert dataset.train[0].key == "parts-train-000000.tar/000000.png"
    assert dataset.test_counts == {"good": 1, "scratch": 1}
    scratch = dataset.test[1]
    assert read_image(scratch.path).shape == (24, 32, 3)
    assert mask_for(scratch, 32, 24).sum() == 24


def test_shards_are_scored_and_checked(shards):
    assert [(s.key, s.label) for s in list_images([shards])[0]] == [
        ("parts-test-000000.tar/a.png", "good"),
        ("parts-test-000000.tar/b.jpg", "scratch"),
    ]
    assert len(list_images([shards / "parts-train-000000.tar"])[0]) == 6
    assert check(shards)[0].train_images == 12


def test_categories_in_shards(tmp_path):
    files = {}
    for n, category in enumerate(("nut", "bolt", "nut")):
        files[f"{n}.png"], files[f"{n}.json"] = png(), said(category=category, split="train")
    assert len(open_data(shard(tmp_path / "x.tar", files), "nut").train) == 2


@pytest.mark.parametrize(("name", "data"), [("a.json", b"{"), ("a.json", b"[1]"), ("a.cls", b"\xff")])
def test_damage_is_told_with_its_place(tmp_path, name, data):
    path = shard(tmp_path / "x.tar", {"a.png": png(), name: data})
    with pytest.raises(DataError, match=name):
        open_data(path)


def test_shards_without_images(tmp_path):
    with pytest.raises(DataError, match="no image"):
        open_data(shard(tmp_path / "x.tar", {"a.cls": b"0"}))


def test_a_folder_of_other_things_is_no_folder_of_shards(tmp_path):
    shard(tmp_path / "x/x.tar", {"a.png": png(), "a.cls": b"0"})
    (tmp_path / "x/loose.png").write_bytes(png())
    assert [s.key for s in list_images([tmp_path / "x"])[0]] == ["loose.png"]

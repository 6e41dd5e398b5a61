"""Images in archives and HDF5 files are read in place, like images in folders."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile

import cv2
import h5py
import numpy as np
import pytest

from adctl.data import containers, storage
from adctl.data.checks.check import check
from adctl.data.datasets.layouts import list_images, open_folders, open_mvtec
from adctl.data.images import image_size, read_image
from adctl.data.masks import mask_for
from adctl.data.split import split_good
from adctl.errors import AdctlError, DataError, ImageError, UsageError

RANDOM = np.random.default_rng(0)


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def picture():
    return RANDOM.integers(0, 256, (24, 32, 3), np.uint8)


FILES = {
    **{f"train/good/{n}.png": png(picture()) for n in range(10)},
    "test/good/0.png": png(picture()),
    "test/hole/0.png": png(picture()),
    "test/Größe 検査/1.png": png(picture()),
    "ground_truth/hole/0_mask.png": png(np.eye(24, 32, dtype=np.uint8) * 255),
    "readme.txt": b"about",
    "__MACOSX/train/good/._0.png": b"junk",
}


def folder(root, files=FILES):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path, files=FILES, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return path


def tarred(path, files=FILES, prefix="", mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


PACK = {"zip": zipped, "tar": tarred}


@pytest.fixture(params=["zip", "tar"])
def packed(request, tmp_path):
    """A category in an archive, and the same in a folder."""
    return PACK[request.param](tmp_path / f"part.{request.param}"), folder(tmp_path / "part")


def known(samples, root):
    return [(s.key, s.label, s.mask and s.mask.relative_to(root).as_posix()) for s in samples]


def test_an_archive_is_a_category(packed):
    archive, plain = packed
    inside, outside = open_mvtec(archive), open_mvtec(plain)
    assert (inside.name, inside.category, inside.notes) == (outside.name, outside.category, outside.notes)
    assert known(inside.train, archive) == known(outside.train, plain)
    assert known(inside.test, archive) == known(outside.test, plain)
    assert inside.mask_count == 1


def test_its_images_are_those_of_the_folder(packed):
    archive, plain = packed
    for inside, outside in zip(open_mvtec(archive).test, open_mvtec(plain).test, strict=True):
        np.testing.assert_array_equal(read_image(inside.path), read_image(outside.path))
        assert image_size(inside.path) == image_size(outside.path) == (32, 24)
        assert storage.digest(inside.path) == storage.digest(outside.path)
        if outside.mask:
            np.testing.assert_array_equal(mask_for(inside, 32, 24), mask_for(outside, 32, 24))


def test_its_split_is_that_of_the_folder(packed):
    parts = [split_good(open_mvtec(p).train, calibration=0.2, validation=0.1, seed=0).to_dict() for p in packed]
    assert parts[0] == parts[1]


def test_it_can_be_scored(packed):
    archive, plain = packed
    inside, _ = list_images([archive])
    outside, _ = list_images([plain])
    assert known(inside, archive) == known(outside, plain)
    part, _ = list_images([archive / "test" / "hole"])
    assert [(s.key, s.label) for s in part] == [("0.png", "hole")]
    (one,), _ = list_images([archive / "test" / "hole" / "0.png"])
    assert one.mask == archive / "ground_truth/hole/0_mask.png"


def test_a_plain_folder_in_an_archive(packed):
    archive, _ = packed
    dataset = open_folders(archive / "train" / "good", archive / "test", archive / "ground_truth")
    assert (len(dataset.train), dataset.test_counts) == (10, {"good": 1, "Größe 検査": 1, "hole": 1})


@pytest.mark.parametrize("kind", PACK)
def test_a_wrapped_data_set_and_categories(kind, tmp_path):
    one = PACK[kind](tmp_path / f"one.{kind}", prefix="download/bottle/")
    assert open_mvtec(one).category == "bottle"
    two = {f"{name}/{key}": data for name in ("nut", "bolt") for key, data in FILES.items()}
    both = PACK[kind](tmp_path / f"two.{kind}", two, "all/")
    assert open_mvtec(both, "nut").category == "nut"
    with pytest.raises(UsageError, match="2 categories"):
        open_mvtec(both)
    assert [each.category for each in check(both)] == ["bolt", "nut"]


@pytest.mark.parametrize("kind", PACK)
def test_names_that_lead_out_are_passed_over(kind, tmp_path):
    evil = {
        "../out.png": FILES["test/good/0.png"],
        "/abs.png": FILES["test/good/0.png"],
        "in.png": FILES["test/good/0.png"],
    }
    samples, _ = list_images([PACK[kind](tmp_path / f"evil.{kind}", evil)])
    assert [s.key for s in samples] == ["in.png"]


def test_links_in_a_tar_are_not_followed(tmp_path):
    path = tarred(tmp_path / "links.tar", {"a.png": FILES["test/good/0.png"]})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert [s.key for s in list_images([path])[0]] == ["a.png"]


def test_damage_is_told_for_the_image(tmp_path):
    path = tmp_path / "parts.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", FILES["test/good/0.png"])
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    (sample,), _ = list_images([path])
    with pytest.raises(ImageError, match="the archive is damaged"):
        read_image(sample.path)


def test_an_encrypted_member_is_told(tmp_path):
    path = zipped(tmp_path / "parts.zip", {"a.png": FILES["test/good/0.png"]})
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="encrypted"):
        read_image(path / "a.png")


def test_too_large_a_member_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "LARGEST_MEMBER", 100)
    with pytest.raises(ImageError, match="unpacked"):
        read_image(zipped(tmp_path / "bomb.zip") / "test/hole/0.png")


def test_what_is_no_archive_is_refused(tmp_path):
    for name in ("no.zip", "no.tar", "no.h5"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 100)
        with pytest.raises(DataError, match="Cannot open"):
            open_mvtec(tmp_path / name)


def test_a_compressed_tar_is_refused_with_advice(tmp_path):
    with pytest.raises(DataError) as error:
        list_images([tarred(tmp_path / "parts.tar.gz", mode="w:gz")])
    assert "uncompressed .tar" in error.value.remedy


def test_what_is_not_there(packed):
    archive, _ = packed
    for call in (
        lambda: read_image(archive / "test/hole/9.png"),
        lambda: list_images([archive / "nowhere"]),
        lambda: open_folders(archive / "nowhere"),
        lambda: open_folders(archive / "test/hole/0.png"),
    ):
        with pytest.raises(AdctlError) as error:
            call()
        assert error.value.remedy


def test_an_archive_in_a_folder_is_named(tmp_path):
    folder(tmp_path / "mixed", {"a.png": FILES["test/good/0.png"]})
    zipped(tmp_path / "mixed/more.zip")
    samples, ignored = list_images([tmp_path / "mixed"])
    assert [s.key for s in samples] == ["a.png"]
    assert [item.reason for item in ignored] == ["not an image file; to read its images, give its path"]


def test_a_pattern_of_archives(tmp_path):
    for number in range(3):
        zipped(tmp_path / f"{number}.zip", {f"{number}.png": FILES["test/good/0.png"]})
    assert [s.key for s in list_images([str(tmp_path / "*.zip")])[0]] == [f"{n}.zip/{n}.png" for n in range(3)]


def test_a_changed_archive_is_read_anew(tmp_path):
    path = zipped(tmp_path / "parts.zip", {"a.png": FILES["test/good/0.png"]})
    assert len(list_images([path])[0]) == 1
    zipped(path, {"a.png": FILES["test/good/0.png"], "b.png": FILES["test/hole/0.png"]})
    assert len(list_images([path])[0]) == 2


# ---- HDF5


def test_hdf5_in_mvtec_layout(tmp_path):
    good = RANDOM.integers(0, 256, (10, 24, 32, 3), np.uint8)
    deep = RANDOM.integers(0, 65536, (2, 24, 32), np.uint16)
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["train/good"] = good
        file["test/hole"] = deep
        file["ground_truth/hole"] = np.eye(24, 32, dtype=np.uint8)[None].repeat(2, 0) * 255
        file["test/good"] = (good[:3] / np.float32(255)).astype(np.float32)
        file["labels"] = np.arange(10)
    dataset = open_mvtec(tmp_path / "part.h5")
    assert (len(dataset.train), dataset.test_counts, dataset.mask_count) == (10, {"good": 3, "hole": 2}, 2)
    assert dataset.train[3].key == "train/good/000003.tiff"
    np.testing.assert_array_equal(read_image(dataset.train[3].path), good[3])
    np.testing.assert_array_equal(read_image(dataset.test[0].path), good[0])
    np.testing.assert_array_equal(read_image(dataset.test[-1].path)[..., 0], deep[1] >> 8)
    assert mask_for(dataset.test[-1], 32, 24).sum() == 24


def test_hdf5_as_a_plain_folder(tmp_path):
    with h5py.File(tmp_path / "part.hdf5", "w") as file:
        file["images"] = RANDOM.integers(0, 256, (9, 24, 32), np.uint8)
        file["one"] = RANDOM.integers(0, 256, (24, 32, 4), np.uint8)
    assert [s.key for s in list_images([tmp_path / "part.hdf5"])[0]] == [
        *(f"images/{n:06}.tiff" for n in range(9)),
        "one.tiff",
    ]
    assert read_image(tmp_path / "part.hdf5" / "one.tiff").shape == (24, 32, 3)


# ---- the command line


def test_train_and_score_an_archive(adctl, tmp_path, zippers):
    shutil.make_archive(str(tmp_path / "zipper"), "zip", zippers)
    archive = tmp_path / "zipper.zip"
    adctl("train", "--data", archive, "--image-size", "64")
    document = adctl.json("score")
    assert document["result"]["counts"]["error"] == 0
    rows = (adctl.folder / document["result"]["folder"] / "results.csv").read_text(encoding="utf-8")
    assert "zipper.zip/test/" in rows.replace("\\", "/")
    adctl("report")

"""Archives made to harm: members that fill the memory, names that are no names, arrays that point elsewhere."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile

import cv2
import h5py
import numpy as np
import pytest

from adctl.data import containers
from adctl.data.datasets.layouts import list_images
from adctl.data.images import read_image
from adctl.errors import AdctlError, DataError, ImageError

PNG = cv2.imencode(".png", np.arange(32 * 32, dtype=np.uint8).reshape(32, 32))[1].tobytes()


def zipped(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED  # the constructor would cut names at NUL
            with archive.open(info, "w") as stream:
                stream.write(data)
    return path


def tarred(path, entries):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name", [".", "./", "", "a\0b.png", "a\x1b[2Jb.png", "../out.png", "/abs.png", "..", "c:/x.png"]
)
def test_a_bad_name_is_an_ignored_entry_with_its_reason(tmp_path, kind, name):
    write = {"zip": zipped, "tar": tarred}[kind]
    path = write(tmp_path / f"parts.{kind}", {"in.png": PNG, name: PNG})
    samples, ignored = list_images([path])
    assert [sample.key for sample in samples] == ["in.png"]
    if name != "./" or kind == "tar":
        assert len(ignored) <= 1
    assert all(item.reason for item in ignored)
    assert not any("\0" in str(item.path) or "\x1b" in str(item.path) for item in ignored)
    if name not in {".", "./", ""}:
        assert len(ignored) == 1


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", [".", "./", "", "a\0.png"])
def test_an_archive_of_nothing_else_is_a_clean_error(tmp_path, kind, name):
    path = {"zip": zipped, "tar": tarred}[kind](tmp_path / f"parts.{kind}", {name: PNG})
    with pytest.raises(AdctlError, match="No images found"):
        list_images([path])


def test_links_in_a_tar_are_named(tmp_path):
    path = tarred(tmp_path / "links.tar", {"a.png": PNG})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert [item.reason for item in list_images([path])[1]] == ["a link"]


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(containers, "SMALL_MEMBER", 1 << 20)


def test_a_member_that_grows_like_no_image_is_refused(tmp_path, small_limits):
    path = zipped(tmp_path / "bomb.zip", {"a.png": bytes(4 << 20), "b.png": PNG})
    with pytest.raises(ImageError, match="more than 200 times"):
        read_image(path / "a.png")
    assert read_image(path / "b.png").shape == (32, 32, 3)


def test_hdf5_is_guarded_by_the_same_rule(tmp_path, small_limits):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        whole, many = np.zeros((1, 2000, 2000), np.uint8), np.zeros((99, 200, 200), np.uint8)
        file.create_dataset("whole", data=whole, chunks=whole.shape, compression="gzip")
        file.create_dataset("chunk", data=many, chunks=many.shape, compression="gzip")
        file.create_dataset("fine", data=np.random.default_rng(0).integers(0, 256, (1, 1200, 1200), np.uint8))
    for name in ("whole", "chunk"):
        with pytest.raises(ImageError, match="more than 200 times"):
            read_image(tmp_path / "bomb.h5" / f"{name}/000000.tiff")
    assert read_image(tmp_path / "bomb.h5" / "fine/000000.tiff").shape == (1200, 1200, 3)


def test_hdf5_arrays_do_not_read_other_files(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(32 * 32))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("images", (1, 32, 32), "u1", external=[(str(tmp_path / "secret"), 0, 32 * 32)])
    with pytest.raises(DataError, match="pixels lie in other files"):
        list_images([tmp_path / "x.h5"])


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<u2"])
def test_hdf5_in_either_byte_order(tmp_path, dtype):
    grey = np.arange(32 * 32).reshape(1, 32, 32) * 60
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = (grey / (65535 if "f" in dtype else 1)).astype(dtype)
    expected = np.rint(grey[0] / 65535 * 255) if "f" in dtype else grey[0] >> 8
    np.testing.assert_array_equal(read_image(tmp_path / "x.h5" / "images/000000.tiff")[..., 0], expected)


def test_endless_arrays_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("images", (10**12, 16, 16), "u1", chunks=(1, 16, 16))
    with pytest.raises(DataError, match="more than 1,000,000 entries"):
        list_images([tmp_path / "x.h5"])


def test_a_method_that_cannot_be_read_is_not_called_encryption(tmp_path):
    path = zipped(tmp_path / "parts.zip", {"a.png": PNG})
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(signature) + place] = 97
    path.write_bytes(data)
    with pytest.raises(ImageError, match="method that cannot be read"):
        read_image(path / "a.png")


def test_metadata_of_a_shard_is_small(tmp_path):
    deep = b'{"label": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    for data in (json.dumps({"label": "x" * (2 << 20)}).encode(), deep):
        path = tarred(tmp_path / "shard.tar", {"a.png": PNG, "a.json": data})
        with pytest.raises(DataError, match="Cannot read"):
            list_images([path])


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits are those of Linux")
def test_three_gibibytes_of_zeros_take_no_memory(tmp_path):
    """The member is never unpacked: the process stays within the memory that it needs anyway."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("a.png", "w") as stream:
            block = bytes(1 << 20)
            for _ in range(300):
                stream.write(block)
        archive.writestr("b.png", PNG)
    code = (
        "import resource, sys, pathlib\n"
        "from adctl.data.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_image(pathlib.Path(sys.argv[1]))\n"
        "except Exception as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.zip" / "a.png")], capture_output=True, text=True, check=True
    )
    message, grown = done.stdout.strip().rsplit("\n", 1)
    assert "300 MiB when unpacked" in message
    assert int(grown) < 50_000


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files are those of Linux")
def test_a_huge_file_that_is_no_image_is_refused_by_its_first_bytes(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    for start, reason in ((b"", "not a PNG"), (PNG, "larger than its")):
        with path.open("wb") as stream:
            stream.write(start)
            stream.truncate(3 << 30)
        monkeypatch.setattr("adctl.data.storage.read_bytes", lambda _: pytest.fail("read whole"))
        with pytest.raises(ImageError, match=reason):
            read_image(path)

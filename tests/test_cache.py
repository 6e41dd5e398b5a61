"""The cache of preprocessed images: the same pixels, reused only while nothing has changed."""

from __future__ import annotations

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from adctl.data import loader
from adctl.data.images import write_png
from adctl.data.loader import ImageSource
from adctl.data.preprocess import InputSpec
from adctl.errors import ImageError, OutputError
from adctl.records import Sample

SPEC = InputSpec(32, 32)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture
def samples(tmp_path):
    for number in range(6):
        write_png(tmp_path / "images" / f"{number}.png", picture(number))
    return [Sample(tmp_path / "images" / f"{number}.png", f"{number}.png") for number in range(6)]


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files decoded so far."""
    names = []

    def read(path, channels, **options):
        names.append(path.name)
        return read_pixels(path, channels, **options)

    read_pixels = loader.read_pixels
    monkeypatch.setattr(loader, "read_pixels", read)
    return names


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def pixels_of(samples, spec=SPEC, *, order=None, reuse=False, cache=None):
    source = ImageSource(samples, spec, workers=0, reuse=reuse, cache=cache)
    return np.concatenate(list(source.batches(4, order)))


def only_file(folder):
    (path,) = folder.glob("*.h5")
    return path


@pytest.mark.parametrize("spec", [SPEC, InputSpec(32, 32, 1, "pad"), InputSpec(32, 32, tile=32)], ids=str)
@pytest.mark.parametrize("reuse", [False, True])
def test_the_pixels_are_those_without_a_cache(samples, folder, decoded, spec, reuse):
    expected = pixels_of(samples, spec)
    order = [3, 0, len(expected) - 1, 3]
    for _ in range(2):
        np.testing.assert_array_equal(pixels_of(samples, spec, reuse=reuse, cache=folder), expected)
        np.testing.assert_array_equal(pixels_of(samples, spec, order=order, reuse=reuse, cache=folder), expected[order])
    assert len(decoded) == 2 * len(samples)  # once without, once to fill it


def test_order_may_change_names_may_change(samples, folder, decoded):
    pixels_of(samples, cache=folder)
    decoded.clear()
    moved = [
        dataclasses.replace(samples[n], path=samples[n].path.rename(samples[n].path.with_stem(f"n{n}"))) for n in (2, 0)
    ]
    np.testing.assert_array_equal(pixels_of(moved, cache=folder), pixels_of(moved))
    assert len(decoded) == 2  # by the comparison


def test_a_changed_image_is_read_again(samples, folder, decoded):
    pixels_of(samples, cache=folder)
    write_png(samples[3].path, picture(99))
    decoded.clear()
    found = pixels_of(samples, cache=folder)
    assert decoded == ["3.png"]
    np.testing.assert_array_equal(found, pixels_of(samples))


@pytest.mark.parametrize(
    "change",
    [{"height": 48, "width": 48}, {"channels": 1}, {"resize": "pad"}, {"bit_depth": 12}, {"tile": 32},
     {"scales": (2.0,)}],
    ids=str,
)  # fmt: skip
def test_changed_settings_are_another_cache(samples, folder, decoded, change):
    pixels_of(samples, cache=folder)
    decoded.clear()
    spec = dataclasses.replace(SPEC, **change)
    found = pixels_of(samples, spec, cache=folder)
    assert len(decoded) == 6
    np.testing.assert_array_equal(found, pixels_of(samples, spec))


def test_images_are_added_to_what_is_there(samples, folder, decoded):
    pixels_of(samples[:3], cache=folder)
    decoded.clear()
    pixels_of(samples[2:], cache=folder)
    assert decoded == ["3.png", "4.png", "5.png"]
    decoded.clear()
    pixels_of(samples, cache=folder)
    assert not decoded
    assert only_file(folder)


def test_copies_of_an_image_share_a_row(samples, folder, decoded):
    samples[4].path.write_bytes(samples[1].path.read_bytes())
    found = pixels_of(samples, cache=folder)
    np.testing.assert_array_equal(found[1], found[4])
    with h5py.File(only_file(folder)) as stored:
        assert len(stored["pixels"]) == 5


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_text("this is no HDF5 file")


def flip(path):
    """Change one byte of the pixels: only a checksum tells."""
    data = bytearray(path.read_bytes())
    with h5py.File(path) as stored:
        chunk = stored["pixels"].id.get_chunk_info(2)
    data[chunk.byte_offset + 7] ^= 0xFF
    path.write_bytes(bytes(data))


def without_index(path):
    with h5py.File(path, "r+") as stored:
        del stored["digests"]


def short(path):
    with h5py.File(path, "r+") as stored:
        stored["pixels"].resize(3, axis=0)


@pytest.mark.parametrize("damage", [truncate, empty, foreign, flip, without_index, short])
@pytest.mark.parametrize("more", [False, True])
def test_a_damaged_cache_is_made_again(samples, folder, caplog, damage, more):
    """Also where it is damaged and to be added to."""
    pixels_of(samples[:-1] if more else samples, cache=folder)
    damage(only_file(folder))
    np.testing.assert_array_equal(pixels_of(samples, cache=folder), pixels_of(samples))
    assert "damaged" in caplog.text
    caplog.clear()
    pixels_of(samples, cache=folder)
    assert "damaged" not in caplog.text


def test_an_interrupted_fill_leaves_what_was_there(samples, folder):
    pixels_of(samples[:3], cache=folder)
    before = only_file(folder).read_bytes()
    samples[5].path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"5\.png"):
        pixels_of(samples, cache=folder)
    assert only_file(folder).read_bytes() == before
    assert not list(folder.glob(".*.partial"))


def test_an_unreadable_file_is_an_image_error(samples, folder):
    samples[2].path.unlink()
    with pytest.raises(ImageError, match=r"2\.png"):
        pixels_of(samples, cache=folder)


def test_a_folder_that_cannot_be_made_is_an_output_error(samples, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        pixels_of(samples, cache=tmp_path / "file" / "cache")


def test_several_at_once_lose_nothing(samples, folder, decoded):
    sources = [ImageSource(samples[n : n + 3], SPEC, workers=0, reuse=False, cache=folder) for n in (0, 1, 2, 3) * 2]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda source: np.concatenate(list(source.batches(2))), sources))
    for source, pixels in zip(sources, found, strict=True):
        np.testing.assert_array_equal(pixels, pixels_of(source.samples))
    with h5py.File(only_file(folder), locking=False) as stored:
        assert len(stored["pixels"]) == 6


def test_a_source_with_an_open_cache_goes_to_another_process(samples, folder):
    source = ImageSource(samples, SPEC, workers=0, reuse=False, cache=folder)
    expected = np.concatenate(list(source.batches(4)))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(np.concatenate(list(copy.batches(4))), expected)

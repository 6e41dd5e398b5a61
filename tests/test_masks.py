"""A mask means the same however it was saved, and what was not clear is said."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from adctl.data.checks.check import check
from adctl.data.datasets.ground_truth import doubtful_label_notes
from adctl.data.datasets.layouts import open_mvtec
from adctl.data.masks import interpret_mask, read_mask
from adctl.errors import ImageError

SIZE = (96, 128)
RANDOM = np.random.default_rng(0)


def blobs():
    """Eleven regions apart from each other, the smallest four pixels wide."""
    mask = np.zeros(SIZE, np.uint8)
    for number in range(11):
        row, column = divmod(number, 4)
        cv2.circle(mask, (16 + 32 * column, 16 + 32 * row), 2 + number, 1, -1)
    return mask.astype(bool)


TRUTH = blobs()
GREY = TRUTH.astype(np.uint8) * 255


@pytest.fixture
def saved(tmp_path):
    def save(image, name="mask.png", **options):
        path = tmp_path / name
        if path.suffix == ".npy":
            np.save(path, image)
        else:
            (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        return path

    return save


def regions(mask):
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


def painted(background, defect):
    return np.where(TRUTH[..., None], np.uint8(defect), np.uint8(background)).astype(np.uint8)


def palette(colours, indices=None):
    image = Image.fromarray(TRUTH.astype(np.uint8) if indices is None else indices, "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


CLEAR = {
    "0 and 1": lambda: TRUTH.astype(np.uint8),
    "0 and 255": lambda: GREY,
    "one bit": lambda: Image.fromarray(TRUTH),
    "16 bits": lambda: TRUTH.astype(np.uint16) * 700,
    "labels": lambda: np.where(TRUTH, RANDOM.integers(1, 5, SIZE), 0).astype(np.uint8),
    "spaced labels": lambda: np.where(TRUTH, RANDOM.integers(1, 4, SIZE) * 85, 0).astype(np.uint8),
    "forty numbered defects": lambda: np.where(TRUTH, RANDOM.integers(1, 41, SIZE), 0).astype(np.uint8),
    "red on black": lambda: painted((0, 0, 0), (255, 0, 0)),
    "two colours": lambda: np.where(np.arange(128)[None, :, None] < 64, 1, 2) * painted((0, 0, 0), (0, 100, 0)),
    "transparency alone": lambda: np.dstack([np.zeros((*SIZE, 3), np.uint8), GREY]),
    "white transparency": lambda: np.dstack([np.full((*SIZE, 3), 255, np.uint8), GREY]),
    "red on nothing": lambda: np.dstack([painted((255, 255, 255), (255, 0, 0)), GREY]),
    "weak red overlay": lambda: np.dstack([painted((255, 0, 0), (255, 0, 0)), TRUTH * np.uint8(100)]),
    "opaque": lambda: np.dstack([GREY, GREY, GREY, np.full(SIZE, 255, np.uint8)]),
    "grey and transparency": lambda: Image.fromarray(np.dstack([GREY, np.full(SIZE, 255, np.uint8)]), "LA"),
    "palette": lambda: palette([(0, 0, 0), (128, 0, 0)]),
    "palette, black second": lambda: palette([(128, 0, 0), (0, 0, 0)], 1 - TRUTH.astype(np.uint8)),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_clear_masks_are_read_without_doubt(saved, kind):
    image = CLEAR[kind]()
    image = image if isinstance(image, Image.Image) else np.asarray(image, image.dtype if image.ndim < 3 else np.uint8)
    found = interpret_mask(saved(image))
    np.testing.assert_array_equal(found.defect, TRUTH)
    assert found.doubt is None


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32, ">u2"])
def test_arrays(saved, dtype):
    found = interpret_mask(saved(TRUTH.astype(dtype), "mask.npy"))
    np.testing.assert_array_equal(found.defect, TRUTH)
    assert found.doubt is None


def test_values_that_are_no_numbers(saved):
    found = interpret_mask(saved(np.where(TRUTH, 1, np.nan), "mask.npy"))
    np.testing.assert_array_equal(found.defect, TRUTH)
    assert "no numbers" in found.doubt
    with pytest.raises(ImageError, match="does not hold numbers"):
        interpret_mask(saved(TRUTH.astype("U1"), "mask.npy"))


UNCLEAR = {
    "no black": (lambda: np.where(TRUTH, 255, 128).astype(np.uint8), "no black"),
    "labels 1 and 2": (lambda: TRUTH.astype(np.uint8) + 1, "no black"),
    "red on white": (lambda: painted((255, 255, 255), (255, 0, 0)), "no black"),
    "palette of one colour": (lambda: palette([(0, 0, 0), (0, 0, 0)]), "palette"),
    "palette without black": (lambda: palette([(255, 255, 255), (200, 0, 0)]), "palette"),
    "black and clear red": (
        lambda: np.dstack([painted((255, 0, 0), (0, 0, 0)), GREY]),
        "visible parts, which are black",
    ),
    "transparent and black": (
        lambda: np.dstack([GREY, GREY, GREY, np.where(np.arange(128) < 8, 0, 255) + np.zeros(SIZE)]).astype(np.uint8),
        "transparent and its black",
    ),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_unclear_masks_are_decided_and_said(saved, kind):
    make, doubt = UNCLEAR[kind]
    found = interpret_mask(saved(make()))
    expected = TRUTH & (np.arange(128) >= 8) if "transparent" in kind else TRUTH
    np.testing.assert_array_equal(found.defect, expected)
    assert doubt in found.doubt


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("again_as", ["mask.jpg", "mask.png", "mask.bmp"])
def test_jpeg_masks_have_the_regions_of_their_originals(saved, quality, again_as):
    """Eleven regions stay eleven, and nearly all pixels keep their meaning, in a JPEG and in a PNG made from it."""
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "JPEG", quality=quality)
    path = saved(GREY, "plain.png").with_name(again_as)
    path.write_bytes(stream.getvalue()) if again_as == "mask.jpg" else Image.open(stream).save(path)
    found = interpret_mask(path)
    assert regions(found.defect) == 11
    assert (found.defect == TRUTH).mean() > 0.995
    assert "smeared" in found.doubt


@pytest.mark.parametrize("colours", [((0, 0, 0), (255, 0, 0)), ((255, 255, 255), (0, 0, 160))])
def test_colours_in_a_jpeg(saved, colours):
    found = interpret_mask(saved(painted(*colours), "mask.jpg", quality=90, subsampling=0))
    assert regions(found.defect) == 11
    assert (found.defect == TRUTH).mean() > 0.99
    assert found.doubt


def test_labels_in_a_jpeg(saved):
    """The lowest label counts as a defect too."""
    labels = np.zeros(SIZE, np.uint8)
    labels[10:40, 10:40], labels[10:40, 60:100], labels[60:90, 10:40] = 85, 170, 255
    found = interpret_mask(saved(labels, "mask.jpg", quality=90))
    assert regions(found.defect) == 3
    assert (found.defect == (labels > 0)).mean() > 0.99


def test_few_smeared_values_are_no_labels(saved):
    mask = GREY.copy()
    mask[0, :9], mask[1, :9] = 2, 253
    mask[2, :9] = 254
    found = interpret_mask(saved(mask))
    assert not found.defect[0, :9].any()
    assert found.defect[1:3, :9].all()
    assert "smeared" in found.doubt


def test_smooth_edges_end_at_the_middle(saved):
    smooth = cv2.GaussianBlur(cv2.circle(np.zeros((100, 100), np.uint8), (50, 50), 30, 255, -1), (0, 0), 1)
    found = interpret_mask(saved(smooth))
    assert found.defect.sum() == pytest.approx(np.pi * 30**2, rel=0.03)


def test_all_levels_are_said(saved):
    ramp = np.tile(np.arange(128, dtype=np.uint8) * 2, (96, 1))
    assert "all levels" in interpret_mask(saved(ramp)).doubt
    np.testing.assert_array_equal(read_mask(saved(ramp)), ramp > 0)
    assert interpret_mask(saved(ramp, "mask.jpg")).doubt


def test_many_channels_are_no_mask(saved):
    with pytest.raises(ImageError, match="5 channels"):
        read_mask(saved(np.zeros((*SIZE, 5), np.uint8), "mask.npy"))


def test_turned_masks_of_transparency(saved):
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(np.dstack([np.zeros((*SIZE, 3), np.uint8), GREY]))
    np.testing.assert_array_equal(read_mask(saved(image, exif=exif)), np.rot90(TRUTH, -1))


# ---- what is said about a dataset


@pytest.fixture
def category(tmp_path):
    root = tmp_path / "part"
    for place, count in (("train/good", 20), ("test/good", 2), ("test/hole", 3), ("test/good_2", 2)):
        for number in range(count):
            path = root / place / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), RANDOM.integers(0, 256, (*SIZE, 3), np.uint8))
    (root / "ground_truth/hole").mkdir(parents=True)
    for number in range(3):
        path = root / f"ground_truth/hole/{number}_mask.{'jpg' if number else 'png'}"
        Image.fromarray(GREY).save(path, **({"quality": 75} if number else {}))
    return root


def test_check_names_unclear_masks_and_folders(category):
    (result,) = check(category)
    (finding,) = [found for found in result.findings if found.kind == "unclear-mask"]
    assert [case.paths[0].name for case in finding.cases] == ["1_mask.jpg", "2_mask.jpg"]
    assert "smeared" in finding.cases[0].detail
    assert "PNG" in finding.remedy
    assert any("'good_2' count as defective: 2" in note for note in result.notes)
    assert open_mvtec(category).test_counts["good_2"] == 2


def test_report_names_them_too(adctl, category, tmp_path):
    adctl("train", "--data", category, "--arch", "padim", "--image-size", "64", "--name", "m", "--runs", tmp_path / "r")
    adctl("score", category / "test", "--runs", tmp_path / "r", "--out", tmp_path / "out")
    notes = json.loads(adctl("report", tmp_path / "out", "--json").stdout)["result"]["evaluation"]["notes"]
    assert any("Masks that were not clear: 2" in note and "smeared" in note for note in notes)
    assert any("good_2" in note for note in notes)
    for number, mask in enumerate((~TRUTH, np.zeros(SIZE, bool))):
        Image.fromarray(mask).save(category / f"ground_truth/hole/{number}_mask.{'jpg' if number else 'png'}")
    notes = json.loads(adctl("report", tmp_path / "out", "--json").stdout)["result"]["evaluation"]["notes"]
    assert any("Masks that were not clear: 3" in note and "seems to be inverted" in note for note in notes)


@pytest.mark.parametrize(
    "label",
    [
        "good_2",
        "no_defect",
        "Good Parts",
        "ok2",
        "OK_images",
        "defect-free",
        "nondefective",
        "without defects",
        "passed",
    ],
)
def test_labels_that_say_good(label):
    assert "rename" in doubtful_label_notes([label])[0]


@pytest.mark.parametrize("label", ["good", None, "not_good", "nok", "scratch", "abnormal", "ng", "good_with_scratch"])
def test_labels_that_do_not(label):
    assert doubtful_label_notes([label]) == []


# ---- depth of images


@pytest.fixture
def dark(tmp_path):
    """Pictures of 12 bits in files of 16."""
    for number in range(12):
        (tmp_path / "dark").mkdir(exist_ok=True)
        pixels = RANDOM.integers(0, 4000, (64, 64), np.uint16)
        cv2.imwrite(str(tmp_path / f"dark/{number}.png"), pixels)
    return tmp_path / "dark"


def test_twelve_bits_in_sixteen_are_said_once(adctl, dark, tmp_path):
    options = ("--arch", "padim", "--image-size", "64", "--runs", tmp_path / "runs")
    done = adctl("train", "--good", dark, *options, "--name", "a")
    assert (done.stderr + done.stdout).count("bit_depth=12") == 1
    done = adctl("score", dark, "--model", "a", "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert (done.stderr + done.stdout).count("bit_depth=12") <= 1  # said already for these images
    (result,) = check(dark)
    assert any("bit_depth=12" in case.detail for found in result.findings for case in found.cases)
    done = adctl("train", "--good", dark, *options, "--name", "b", "--set", "bit_depth=12")
    assert "nearly black" not in done.stderr + done.stdout
    done = adctl("train", "--good", dark, *options, "--name", "c", "--set", "bit_depth=10")
    assert "become white" in done.stderr + done.stdout

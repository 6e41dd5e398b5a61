"""`adctl fetch check`: problems that it finds, datasets that it accepts, and its messages."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.data.checks.check import check
from adctl.data.checks.contact_sheet import write_contact_sheet
from adctl.data.checks.findings import KINDS, Severity
from adctl.data.checks.image_stats import fine_structure, perceptual_hash

EXAMPLE = Path(__file__).parent.parent / "examples" / "planted_problems.py"


@pytest.fixture(scope="module")
def planting():
    """The example that plants problems."""
    spec = importlib.util.spec_from_file_location("planted_problems", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiles(shared_data, tmp_path_factory):
    """A part of the magnetic tiles small enough to be looked at again and again."""
    source, root = shared_data / "magnetic_tile", tmp_path_factory.mktemp("checked") / "tiles"
    for folder, count in (("train/good", 40), ("test/good", 10), ("test/blowhole", 8), ("test/fray", 8)):
        (root / folder).mkdir(parents=True)
        for image in sorted((source / folder).iterdir())[:: 5 if count > 10 else 3][:count]:
            shutil.copyfile(image, root / folder / image.name)
            mask = Path("ground_truth") / image.parent.name / f"{image.stem}_mask.png"
            if (source / mask).exists():
                (root / mask).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / mask, root / mask)
    return root


@pytest.fixture
def category(tmp_path):
    """A category of grey noise, one picture unlike the other, with one masked defect."""
    root = tmp_path / "cat"
    random = np.random.default_rng(0)
    for folder, count in (("train/good", 24), ("test/good", 4), ("test/hole", 2)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(root / folder / f"{number}.png"), noise(random))
    (root / "ground_truth/hole").mkdir(parents=True)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:30, 20:30] = 255
    for number in range(2):
        cv2.imwrite(str(root / f"ground_truth/hole/{number}_mask.png"), mask)
    return root


def noise(random, side=(60, 80)):
    return cv2.GaussianBlur(random.integers(0, 256, side, np.uint8), (0, 0), 2)


def found(root):
    (checked,) = check(root)
    return {each.kind: [[path.name for path in case.paths] for case in each.cases] for each in checked.findings}


# ---- planted problems


def test_a_clean_set_is_clean(category):
    (checked,) = check(category)
    assert checked.findings == ()
    assert (checked.train_images, checked.test_images, checked.masks) == (24, {"good": 4, "hole": 2}, 2)
    assert (checked.sizes, checked.modes) == ({"80 x 60": 30}, {"grey uint8": 30})


def test_twelve_planted_problems_are_found_and_nothing_else(tiles, tmp_path, planting):
    (before,) = check(tiles)
    root = tmp_path / "tiles"
    shutil.copytree(tiles, root)
    spare = {path for each in before.findings for case in each.cases for path in case.paths}
    planted = planting.plant(root, {root / path.relative_to(tiles) for path in spare})
    (after,) = check(root)
    assert len(planted) == 12
    for kind, path in planted.items():
        assert any(path in case.paths for each in after.findings if each.kind == kind for case in each.cases), kind
    known = {(e.kind, tuple(p.relative_to(tiles) for p in c.paths)) for e in before.findings for c in e.cases}
    for each in after.findings:
        for case in each.cases:
            names = tuple(path.relative_to(root) for path in case.paths)
            assert set(case.paths) & set(planted.values()) or (each.kind, names) in known, (each.kind, names)


def test_tiles_photographed_again_under_other_light_are_found(shared_data):
    """The tiles have six exposures each: what is found must be the same tile, whose pictures follow each other."""
    (checked,) = check(shared_data / "magnetic_tile")
    kinds = {each.kind: each.cases for each in checked.findings}
    assert set(kinds) == {"near-leak", "near-duplicate", "empty-mask"}
    pictures = sorted((shared_data / "magnetic_tile").glob("t*/*/*.jpg"))
    numbers = np.array([int(path.stem.rpartition("_")[2]) for path in pictures])
    typical = np.median(np.abs(numbers[:, None] - numbers))
    for case in (*kinds["near-leak"], *kinds["near-duplicate"]):
        own = [int(path.stem.rpartition("_")[2]) for path in case.paths]
        assert max(own) - min(own) < 3000 < typical / 10
    for case in kinds["empty-mask"]:
        assert not cv2.imread(str(case.paths[0]), cv2.IMREAD_GRAYSCALE).any()


# ---- one kind at a time


def test_contradicting_labels(category):
    shutil.copy(category / "test/hole/1.png", category / "test/good/ok.png")
    assert found(category) == {"contradiction": [["ok.png", "1.png"]]}


def test_another_mode_and_another_size(category):
    random = np.random.default_rng(9)
    cv2.imwrite(str(category / "train/good/colour.png"), np.dstack([noise(random)] * 3) // [[[1, 2, 3]]])
    cv2.imwrite(str(category / "train/good/large.png"), noise(random, (90, 90)))
    seen = found(category)
    assert seen["odd-mode"] == [["colour.png"]]
    assert seen["odd-size"] == [["large.png"]]


def test_a_dark_and_a_flat_picture(category):
    random = np.random.default_rng(9)
    cv2.imwrite(str(category / "train/good/dark.png"), noise(random) // 20)
    cv2.imwrite(str(category / "test/good/flat.png"), np.full((60, 80), 128, np.uint8))
    assert sorted(found(category)["odd-exposure"]) == [["dark.png"], ["flat.png"]]


def test_files_that_are_not_used(category):
    (category / "train/good/raw.cr2").write_bytes(b"x")
    (category / "train/good/notes.txt").write_bytes(b"x")
    (category / "train/good/gone.png").symlink_to("nowhere.png")
    assert sorted(found(category)["left-out"]) == [["gone.png"], ["raw.cr2"]]


def test_a_link_in_a_circle_is_told(category):
    (category / "train/good/again").symlink_to(category / "train", target_is_directory=True)
    (checked,) = check(category)
    assert checked.train_images == 24
    assert [case.detail for each in checked.findings for case in each.cases] == ["a link to one of its parent folders"]


def test_several_pages_come_with_advice(category):
    pages = [np.zeros((40, 40), np.uint8)] * 2
    cv2.imwritemulti(str(category / "train/good/pages.tif"), pages)
    (checked,) = check(category)
    (case,) = next(each.cases for each in checked.findings if each.kind == "corrupt")
    assert "several pages" in case.detail
    assert "Save the page to use" in case.detail


def test_a_mask_that_is_no_picture(category):
    (category / "ground_truth/hole/1_mask.png").write_bytes(b"not a picture")
    assert found(category) == {"corrupt-mask": [["1_mask.png", "1.png"]]}


def test_without_any_masks_none_is_missed(category):
    shutil.rmtree(category / "ground_truth")
    assert found(category) == {}


def test_large_defects_are_no_inverted_masks(category):
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :39] = 255  # half of the image and of its border
    cv2.imwrite(str(category / "ground_truth/hole/0_mask.png"), mask)
    assert found(category) == {}


def test_rigid_parts_that_share_their_outlines_are_no_copies(tmp_path):
    """Boards that differ in little but noise and one component: a copy saved again is still told from them."""
    random = np.random.default_rng(1)
    board = random.integers(0, 2, (32, 32)).astype(np.uint8).repeat(5, 0).repeat(5, 1) * 80 + 60
    folder = tmp_path / "boards"
    folder.mkdir()
    for number in range(30):
        part = board + random.normal(0, 25, board.shape)
        cv2.imwrite(str(folder / f"{number:02}.png"), np.clip(part, 0, 255).astype(np.uint8))
    cv2.imwrite(str(folder / "again.jpg"), cv2.imread(str(folder / "07.png"), 0), [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert found(folder) == {"near-duplicate": [["07.png", "again.jpg"]]}


# ---- folders of other shapes


def test_plain_folders_and_several_categories(category, tmp_path):
    (plain,) = check(category / "test/good")
    assert (plain.layout, plain.train_images) == ("folders", 4)
    assert [each.kind for each in plain.findings] == ["few-images"]
    shutil.copytree(category, tmp_path / "all/first")
    shutil.copytree(category, tmp_path / "all/second")
    assert [each.category for each in check(tmp_path / "all")] == ["first", "second"]


def test_good_beside_test(category, tmp_path):
    shutil.copytree(category / "train/good", tmp_path / "mine/OK")
    shutil.copytree(category / "test", tmp_path / "mine/test")
    shutil.copytree(category / "ground_truth", tmp_path / "mine/masks")
    (checked,) = check(tmp_path / "mine")
    assert (checked.train_images, checked.test_images, checked.masks) == (24, {"good": 4, "hole": 2}, 2)


def test_masks_do_not_count_as_good_images_where_there_are_no_good_ones(category, tmp_path):
    shutil.copytree(category / "test", tmp_path / "mine/test")
    shutil.copytree(category / "ground_truth", tmp_path / "mine/ground_truth")
    (checked,) = check(tmp_path / "mine")
    assert (checked.train_images, checked.test_images, checked.masks) == (0, {"good": 4, "hole": 2}, 2)
    assert any("no folder of good training images" in note for note in checked.notes)
    assert [each.kind for each in checked.findings] == ["few-images"]


# ---- signatures


@given(st.integers(0, 99), st.floats(0.5, 1.5), st.floats(-20, 20))
def test_exposure_does_not_change_the_signatures(seed, gain, offset):
    picture = 80 + 0.3 * noise(np.random.default_rng(seed), (128, 128)).astype(np.float64)
    again = np.rint(gain * picture + offset)
    first, second = (fine_structure(np.clip(p, 0, 255).astype(np.uint8)).astype(float) for p in (picture, again))
    assert np.corrcoef(first, second)[0, 1] > 0.9
    hashes = [perceptual_hash(np.clip(p, 0, 255).astype(np.uint8)) for p in (picture, again)]
    assert (hashes[0] ^ hashes[1]).bit_count() <= 10


def test_an_empty_picture_has_no_structure():
    assert not fine_structure(np.full((50, 50), 9, np.uint8)).any()


# ---- what is shown


def test_contact_sheet(category, tmp_path):
    shutil.copy(category / "train/good/1.png", category / "test/good/überprüft 検査.png")
    (category / "train/good/half.png").write_bytes((category / "train/good/1.png").read_bytes()[:300])
    path = tmp_path / "sheet.png"
    write_contact_sheet(path, check(category))
    sheet = cv2.imread(str(path))
    assert sheet.shape[1] == 1240
    assert sheet.std() > 5


def test_command_line(adctl, category):
    done = adctl("fetch", "check", category)
    assert "24" in done.stdout
    assert "no problems" in done.stdout
    shutil.copy(category / "train/good/1.png", category / "test/good/leak.png")
    done = adctl("fetch", "check", category, "--sheet", "sheet.png", code=1)
    assert "error: The same image in training and test: 1" in done.stdout
    assert "train/good/1.png, test/good/leak.png" in done.stdout
    assert "remedy: " in done.stdout
    assert (adctl.folder / "sheet.png").exists()


def test_json_and_strictness(adctl, category):
    shutil.copy(category / "train/good/1.png", category / "train/good/copy.png")
    (result,) = adctl.json("fetch", "check", category)["result"]
    assert result["findings"][0]["kind"] == "duplicate"
    assert result["findings"][0]["severity"] == Severity.WARNING
    assert len(result["findings"][0]["cases"][0]["paths"]) == 2
    adctl("fetch", "check", category, "--strict", code=1)


def test_refusals(adctl):
    assert "adctl fetch check DIR" in adctl("fetch", "check", code=2).stderr
    assert "no such file" in adctl("fetch", "check", "nowhere", code=2).stderr


def test_every_kind_says_what_to_do():
    assert all(title and remedy.endswith(".") for _, title, remedy in KINDS.values())


def test_images_too_large_for_small_defects_are_told(tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), noise(np.random.default_rng(number), (768, 1920)))
    (checked,) = check(tmp_path)
    assert any("defects below about 74 pixels" in note and "--image-size 512x1216" in note for note in checked.notes)

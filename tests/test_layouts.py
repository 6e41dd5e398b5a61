"""Dataset folders: images found, labels, ignored files and refused layouts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from adctl.data.datasets.layouts import list_images, open_folders, open_mvtec
from adctl.errors import AdctlError, DataError, UsageError

DATA = Path(os.environ.get("ADCTL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


@pytest.fixture
def tree(tmp_path):
    """Make files that look like images from the outside; layouts never look inside."""

    def make(*names, root=tmp_path):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return root

    return make


@pytest.fixture
def category(tree):
    """A small category with every part, returned as its folder."""
    return (
        tree(
            "bottle/train/good/000.png",
            "bottle/train/good/001.png",
            "bottle/test/good/000.png",
            "bottle/test/crack/000.png",
            "bottle/test/crack/001.png",
            "bottle/test/hole/000.png",
            "bottle/ground_truth/crack/000_mask.png",
            "bottle/ground_truth/crack/001_mask.png",
            "bottle/ground_truth/hole/000_mask.png",
        )
        / "bottle"
    )


def table(samples, root):
    """Key, label and mask of each sample, as plain text."""
    return [(s.key, s.label, s.mask.relative_to(root).as_posix() if s.mask is not None else None) for s in samples]


def refusal(kind, call, *arguments):
    with pytest.raises(AdctlError) as error:
        call(*arguments)
    assert type(error.value) is kind
    assert error.value.remedy
    return f"{error.value.message} {error.value.remedy}"


CATEGORY_TEST = [
    ("test/crack/000.png", "crack", "ground_truth/crack/000_mask.png"),
    ("test/crack/001.png", "crack", "ground_truth/crack/001_mask.png"),
    ("test/good/000.png", "good", None),
    ("test/hole/000.png", "hole", "ground_truth/hole/000_mask.png"),
]


# ---- MVTec AD layout


def test_category(category):
    dataset = open_mvtec(category)
    assert (dataset.name, dataset.category, dataset.layout, dataset.root) == (
        "bottle",
        "bottle",
        "mvtec",
        category,
    )
    assert table(dataset.train, category) == [
        ("train/good/000.png", "good", None),
        ("train/good/001.png", "good", None),
    ]
    assert table(dataset.test, category) == CATEGORY_TEST
    assert list(dataset.test_counts.items()) == [("good", 1), ("crack", 2), ("hole", 1)]
    assert dataset.mask_count == 3
    assert dataset.ignored == ()
    assert dataset.notes == ()


def test_only_category_is_taken_with_a_note(category):
    dataset = open_mvtec(category.parent)
    assert (dataset.name, dataset.category, dataset.root) == (category.parent.name, "bottle", category)
    assert any("only category" in note for note in dataset.notes)
    assert open_mvtec(category.parent, "bottle").notes == ()
    assert open_mvtec(category, "bottle").category == "bottle"


def test_several_categories_must_be_chosen_from(category, tree):
    root = tree("cable/train/good/000.png")
    assert "bottle, cable" in refusal(UsageError, open_mvtec, root)
    assert "Did you mean 'bottle'" in refusal(UsageError, open_mvtec, root, "botle")
    assert "Known: bottle." in refusal(UsageError, open_mvtec, category, "cable")
    assert open_mvtec(root, "cable").category == "cable"


def test_here_is_called_by_its_name(category, monkeypatch):
    monkeypatch.chdir(category)
    dataset = open_mvtec(Path())
    assert dataset.category == "bottle"
    assert dataset.test[0].key == "test/crack/000.png"


@pytest.mark.parametrize(
    "mask",
    [
        "crack/007_mask.png",
        "crack/007.png",
        "crack/007.bmp",
        "crack/007_MASK.PNG",
        "Crack/007.tif",
        "crack/007_mask.JPG",
    ],
)
def test_masks_are_matched_by_stem(tree, mask):
    root = tree("train/good/0.png", "test/crack/007.jpg", f"ground_truth/{mask}")
    dataset = open_mvtec(root)
    assert table(dataset.test, root) == [("test/crack/007.jpg", "crack", f"ground_truth/{mask}")]


def test_folders_in_another_case(tree):
    root = tree("Train/Good/0.png", "Test/OK/1.png", "Test/Scratch/2.png", "Ground_Truth/scratch/2_mask.png")
    dataset = open_mvtec(root)
    assert table(dataset.test, root) == [
        ("Test/OK/1.png", "good", None),
        ("Test/Scratch/2.png", "Scratch", "Ground_Truth/scratch/2_mask.png"),
    ]


def test_without_test_or_ground_truth(tree):
    root = tree("train/good/0.png")
    dataset = open_mvtec(root)
    assert dataset.test == ()
    assert any("no test folder" in note for note in dataset.notes)
    tree("test/crack/1.png")
    dataset = open_mvtec(root)
    assert table(dataset.test, root) == [("test/crack/1.png", "crack", None)]
    assert any("no ground_truth folder" in note for note in dataset.notes)


def test_missing_and_foreign_masks_are_noted(category):
    (category / "ground_truth/hole/000_mask.png").rename(category / "ground_truth/hole/999_mask.png")
    dataset = open_mvtec(category)
    assert dataset.mask_count == 2
    assert any("without a mask: 1 of 3" in note for note in dataset.notes)
    assert any("without a test image: 1" in note and "999_mask" in note for note in dataset.notes)


def test_masks_of_good_images_are_not_wanted(category, tree):
    tree("bottle/ground_truth/good/000_mask.png")
    dataset = open_mvtec(category)
    assert table(dataset.test, category) == CATEGORY_TEST
    assert dataset.notes == ()


def test_two_masks_for_one_image_match_nothing(category, tree):
    tree("bottle/ground_truth/hole/000.png")
    dataset = open_mvtec(category)
    assert dataset.mask_count == 2
    assert any("several masks" in note for note in dataset.notes)


def test_a_mask_of_another_label_is_never_borrowed(tree):
    root = tree("train/good/0.png", "test/crack/005.png", "ground_truth/hole/005_mask.png")
    assert open_mvtec(root).mask_count == 0


def test_what_is_left_out_and_what_is_passed_over(category, tree):
    tree("bottle/train/good/notes.txt", "bottle/train/good/.hidden.png", "bottle/train/good/Thumbs.db")
    tree("bottle/test/crack/.DS_Store", "bottle/test/.ipynb_checkpoints/000.png", "bottle/test/crack/x.csv")
    (category / "train/good/empty.png").write_bytes(b"")
    dataset = open_mvtec(category)
    assert {entry.path.name: entry.reason for entry in dataset.ignored} == {
        "notes.txt": "not an image file",
        "empty.png": "empty file",
        "x.csv": "not an image file",
    }
    assert len(dataset.train) == 2
    assert table(dataset.test, category) == CATEGORY_TEST


def test_neighbours_of_train_good_are_noted(category, tree):
    tree("bottle/train/bad/0.png")
    dataset = open_mvtec(category)
    assert len(dataset.train) == 2
    assert any("bad" in note for note in dataset.notes)


def test_near_misses_name_the_way_out(tree, tmp_path):
    assert "no such file" in refusal(UsageError, open_mvtec, tmp_path / "none")
    loose = tree("loose/1.png") / "loose"
    assert f"--good {loose}" in refusal(DataError, open_mvtec, loose)
    parts = tree("parts/OK/1.png") / "parts"
    assert f"--good {parts / 'OK'}" in refusal(DataError, open_mvtec, parts)
    train = tree("flat/train/1.png") / "flat"
    assert str(train / "train" / "good") in refusal(DataError, open_mvtec, train)
    other = tree("other/deep/1.png") / "other"
    assert "CATEGORY/train/good" in refusal(DataError, open_mvtec, other)
    assert "not a directory" in refusal(UsageError, open_mvtec, loose / "1.png")


def test_empty_train_good(tree):
    root = tree("train/good/readme.txt")
    assert "readme.txt (not an image file)" in refusal(DataError, open_mvtec, root)


@links
def test_training_image_among_the_test_images(category):
    (category / "test/good/copy.png").symlink_to(category / "train/good/000.png")
    assert "copy.png" in refusal(DataError, open_mvtec, category)


# ---- plain folders


def test_good_folder_alone(tree, tmp_path):
    tree("screws/good/b.png", "screws/good/a.JPG", "screws/good/day2/c.webp")
    dataset = open_folders(tmp_path / "screws/good")
    assert (dataset.name, dataset.category, dataset.layout) == ("screws", "screws", "folders")
    assert [s.key for s in dataset.train] == ["good/a.JPG", "good/b.png", "good/day2/c.webp"]
    assert {s.label for s in dataset.train} == {"good"}
    assert dataset.test == ()
    assert any("day2" in note for note in dataset.notes)


def test_masks_below_the_good_folder_are_no_good_images(tree, tmp_path):
    tree("parts/day1/a.png", "parts/ground_truth/scratch/b.png")
    dataset = open_folders(tmp_path / "parts")
    assert [s.key for s in dataset.train] == ["good/day1/a.png"]
    assert [(one.path.name, one.reason) for one in dataset.ignored] == [
        ("b.png", "in ground_truth, the folder of masks")
    ]
    tree("masks_alone/ground_truth/c.png")
    with pytest.raises(DataError, match=r"No images found .*the folder of masks"):
        open_folders(tmp_path / "masks_alone")


@pytest.fixture
def good(tree):
    return tree("g/0.png", "g/1.png") / "g"


@pytest.mark.parametrize("name", ["good", "OK", "Normal"])
def test_labels_by_subfolder(tree, good, tmp_path, name):
    tree(f"t/{name}/a.png", "t/scratch/b.png", "t/scratch/deep/c.png")
    dataset = open_folders(good, tmp_path / "t")
    assert sorted((s.key, s.label) for s in dataset.test) == sorted(
        [
            (f"test/{name}/a.png", "good"),
            ("test/scratch/b.png", "scratch"),
            ("test/scratch/deep/c.png", "scratch"),
        ]
    )


def test_loose_test_images_have_no_label_unless_they_have_a_mask(tree, good, tmp_path):
    tree("t/a.png", "t/b.png", "m/b_mask.png")
    dataset = open_folders(good, tmp_path / "t", tmp_path / "m")
    assert table(dataset.test, tmp_path) == [("test/a.png", None, None), ("test/b.png", "defect", "m/b_mask.png")]
    assert dataset.test_counts == {"defect": 1, "unlabelled": 1}
    assert any("without a label" in note for note in dataset.notes)


def test_masks_mirror_the_test_images_or_lie_flat(tree, good, tmp_path):
    tree("t/scratch/a.png", "t/dent/b.png", "mirror/scratch/a.png", "mirror/dent/b_mask.png")
    tree("flat/a_mask.png", "flat/b.tif")
    for folder in ("mirror", "flat"):
        dataset = open_folders(good, tmp_path / "t", tmp_path / folder)
        assert dataset.mask_count == 2
        assert dataset.notes == ()


def test_flat_masks_whose_name_two_images_share_match_nothing(tree, good, tmp_path):
    tree("t/scratch/1.png", "t/dent/1.png", "t/dent/2.png", "t/good/3.png", "t/dent/3.png", "m/1.png", "m/2.png")
    tree("m/3.png")
    dataset = open_folders(good, tmp_path / "t", tmp_path / "m")
    assert [s.key for s in dataset.test if s.mask] == ["test/dent/2.png"]
    assert any("or images: 3" in note for note in dataset.notes)


def test_masks_inside_the_test_folder_are_not_test_images(tree, good, tmp_path):
    tree("t/scratch/1.png", "t/masks/scratch/1.png")
    dataset = open_folders(good, tmp_path / "t", tmp_path / "t/masks")
    assert table(dataset.test, tmp_path) == [("test/scratch/1.png", "scratch", "t/masks/scratch/1.png")]


def test_test_images_among_the_good_ones(tree, tmp_path):
    tree("p/0.png", "p/test/1.png")
    assert "separate folder" in refusal(DataError, open_folders, tmp_path / "p", tmp_path / "p/test")
    assert "separate folder" in refusal(DataError, open_folders, tmp_path / "p/test", tmp_path / "p")


def test_plain_folder_mistakes(tree, good, category, tmp_path):
    (tmp_path / "void").mkdir()
    assert "test images" in refusal(UsageError, open_folders, good, tmp_path / "none")
    assert "good images" in refusal(UsageError, open_folders, tmp_path / "none")
    assert "masks" in refusal(UsageError, open_folders, good, category / "test", tmp_path / "none")
    assert "--test DIR" in refusal(UsageError, open_folders, good, None, good)
    assert "two folders" in refusal(UsageError, open_folders, good, category / "test", category / "test")
    assert f"--data {category}" in refusal(UsageError, open_folders, category)
    assert f"--test {category}/test" in refusal(UsageError, open_folders, good, category)
    assert ".png" in refusal(DataError, open_folders, tmp_path / "void")
    assert ".png" in refusal(DataError, open_folders, good, tmp_path / "void")


# ---- images to score


def keys(*inputs):
    return [sample.key for sample in list_images(inputs)[0]]


def test_folder_file_and_pattern(tree, tmp_path):
    tree("in/b.png", "in/a.jpg", "in/sub/c.PNG", "in/sub/notes.txt", "in/.hidden/d.png")
    everything = ["a.jpg", "b.png", "sub/c.PNG"]
    assert keys(tmp_path / "in") == everything
    assert keys(str(tmp_path / "in")) == everything
    assert keys(tmp_path / "in/sub/c.PNG") == ["c.PNG"]
    assert keys(f"{tmp_path}/in/*") == everything
    assert keys(f"{tmp_path}/in/**") == everything
    assert keys(f"{tmp_path}/in/*.png") == ["b.png"]
    assert keys(f"{tmp_path}/*/*.[pj][np]g") == ["in/a.jpg", "in/b.png"]
    assert keys(f"{tmp_path}/**/?.jpg") == ["in/a.jpg"]
    samples, ignored = list_images([tmp_path / "in"])
    assert {(s.label, s.mask) for s in samples} == {(None, None)}
    assert [(entry.path.name, entry.reason) for entry in ignored] == [("notes.txt", "not an image file")]


def test_relative_inputs(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tree("in/a.png", "b.png"))
    assert keys(".") == ["b.png", "in/a.png"]
    assert keys("*.png") == ["b.png"]
    assert keys("**/*.png") == ["b.png", "in/a.png"]
    assert keys("b.png", "in/../b.png", tmp_path / "b.png") == ["b.png"]


def test_names_with_brackets_are_names_first(tree, tmp_path):
    tree("in/part[1].png", "in/part1.png")
    assert keys(tmp_path / "in/part[1].png") == ["part[1].png"]
    assert keys(f"{tmp_path}/in/part[0-9].png") == ["part1.png"]


def test_each_file_once_and_keys_unique(tree, tmp_path):
    tree("a/x/1.png", "b/x/1.png", "b/x/2.png", "c/1.png")
    inputs = [tmp_path / "a/x", tmp_path / "b/x", tmp_path / "b", f"{tmp_path}/*/1.png", tmp_path / "a/x/1.png"]
    assert keys(*inputs) == ["2.png", "a/x/1.png", "b/x/1.png", "c/1.png"]
    assert keys(*reversed(inputs)) != []
    files = [tmp_path / "a/x/1.png", tmp_path / "b/x/1.png"]
    assert keys(*files) == keys(*reversed(files)) == ["a/x/1.png", "b/x/1.png"]


@pytest.mark.parametrize("base", ["bottle", "bottle/test", "bottle/test/*/*.png", "bottle/*/*", "."])
def test_test_images_bring_labels_and_masks_however_they_are_given(category, base, tmp_path):
    given = str(tmp_path / base)
    samples = [s for s in list_images([given])[0] if "train" not in s.key and "ground_truth" not in s.key]
    assert [(s.label, s.mask and s.mask.relative_to(category).as_posix()) for s in samples] == [
        row[1:] for row in CATEGORY_TEST
    ]


def test_category_gives_its_test_part_only(category, tree, tmp_path):
    assert keys(category) == [row[0] for row in CATEGORY_TEST]
    assert keys(tmp_path) == ["bottle/" + row[0] for row in CATEGORY_TEST]
    tree("deep/down/cup/train/good/0.png", "deep/down/cup/test/good/1.png", "deep/down/2.png")
    assert keys(tmp_path / "deep") == ["down/2.png", "down/cup/test/good/1.png"]
    assert [s.label for s in list_images([category / "train/good"])[0]] == [None, None]


def test_one_label_and_one_file_of_a_test_folder(category):
    (sample,) = list_images([category / "test/hole"])[0]
    assert (sample.key, sample.label, sample.mask) == (
        "000.png",
        "hole",
        category / "ground_truth/hole/000_mask.png",
    )
    (sample,) = list_images([category / "test/crack/001.png"])[0]
    assert (sample.key, sample.label) == ("001.png", "crack")


def test_a_test_folder_by_another_name(tree, tmp_path):
    tree("p/images/good/1.png", "p/images/dent/2.png", "p/images/2024-05/3.png", "p/ground_truth/dent/2.png")
    samples, _ = list_images([tmp_path / "p/images"])
    assert table(samples, tmp_path) == [
        ("2024-05/3.png", None, None),
        ("dent/2.png", "dent", "p/ground_truth/dent/2.png"),
        ("good/1.png", "good", None),
    ]


def test_subfolders_alone_are_no_labels(tree, tmp_path):
    tree("in/monday/1.png", "in/test/2.png")
    assert {s.label for s in list_images([tmp_path / "in"])[0]} == {None}


def test_nothing_to_score(tree, tmp_path):
    tree("in/notes.txt")
    (tmp_path / "void").mkdir()
    assert "none.png" in refusal(UsageError, list_images, [tmp_path / "none.png"])
    assert "Nothing matches" in refusal(UsageError, list_images, [f"{tmp_path}/*.png"])
    assert "Nothing matches" in refusal(UsageError, list_images, [f"{tmp_path}/none/*.png"])
    assert "No images" in refusal(UsageError, list_images, [])
    assert "void" in refusal(DataError, list_images, [tmp_path / "void"])
    assert "not an image file" in refusal(DataError, list_images, [tmp_path / "in/notes.txt"])


@links
def test_links_that_run_in_circles_end(tree, tmp_path):
    tree("in/a/1.png", "in/b/2.png")
    for name, target in (("in/a/up", "in"), ("in/b/up", "in"), ("in/b/over", "in/a"), ("in/a/over", "in/b")):
        (tmp_path / name).symlink_to(tmp_path / target)
    assert len(keys(tmp_path / "in")) == 2
    assert len(keys(f"{tmp_path}/in/**/*.png")) == 2
    assert len(open_folders(tmp_path / "in").train) == 2


@links
def test_links_are_followed_and_broken_ones_left_out(tree, tmp_path):
    tree("store/1.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "store")
    (tmp_path / "in/broken.png").symlink_to(tmp_path / "none.png")
    samples, ignored = list_images([tmp_path / "in"])
    assert [s.key for s in samples] == ["linked/1.png"]
    assert [(entry.path.name, entry.reason) for entry in ignored] == [("broken.png", "no such file or directory")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(tree, tmp_path):
    tree("in/1.png")
    os.mkfifo(tmp_path / "in/pipe.png")
    assert [entry.reason for entry in list_images([tmp_path / "in"])[1]] == ["not a regular file"]


def test_unreadable_folder_is_reported(tree, tmp_path, monkeypatch):
    tree("in/1.png", "in/locked/2.png")
    scandir = os.scandir

    def guarded(path="."):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    samples, ignored = list_images([tmp_path / "in"])
    assert [s.key for s in samples] == ["1.png"]
    assert [entry.path.name for entry in ignored] == ["locked"]


# ---- real data


@pytest.mark.parametrize(
    ("name", "train", "good", "defects"), [("magnetic_tile", 400, 150, 392), ("hazelnut_toy", 28, 6, 17)]
)
def test_real_data_is_found_whole(name, train, good, defects):
    root = DATA / name
    if not root.is_dir():
        pytest.skip(f"{name} is not in {DATA}; set ADCTL_TEST_DATA")
    dataset = open_mvtec(root)
    assert len(dataset.train) == train
    assert dataset.test_counts["good"] == good
    assert len(dataset.test) == good + defects
    assert dataset.mask_count == defects
    assert dataset.ignored == ()
    assert dataset.notes == ()
    assert [(s.key, s.label, s.mask) for s in list_images([root])[0]] == [
        (s.key, s.label, s.mask) for s in dataset.test
    ]

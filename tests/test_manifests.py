"""Lists of images in files written by spreadsheets and other programs."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from adctl.data.datasets.layouts import categories_in, list_images, open_data
from adctl.data.datasets.manifests import read_manifest
from adctl.errors import DataError, UsageError

NAMES = [*(f"a/{n}.png" for n in range(4)), "b/crack.png", "b/ok.png", "masks/crack.png"]


@pytest.fixture
def here(tmp_path):
    random = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), random.integers(0, 256, (20, 20), np.uint8))
    return tmp_path


def manifest(folder, text, name="list.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def table(samples, root):
    return [(s.key, s.label, s.mask and s.mask.relative_to(root).as_posix()) for s in samples]


FULL = """path,split,label,mask
a/0.png,train,good,
a/1.png,train,good,
b/crack.png,test,crack,masks/crack.png
b/ok.png,test,good,
"""


def test_splits_labels_and_masks(here):
    dataset = open_data(manifest(here, FULL))
    assert (dataset.name, dataset.layout, dataset.root) == ("list", "manifest", here / "list.csv")
    assert table(dataset.train, here) == [("a/0.png", "good", None), ("a/1.png", "good", None)]
    assert table(dataset.test, here) == [("b/crack.png", "crack", "masks/crack.png"), ("b/ok.png", "good", None)]
    assert dataset.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        FULL.replace(",", ";"),
        FULL.replace(",", "\t"),
        "\ufeff" + FULL,
        FULL.replace("\n", "\r\n"),
        FULL.replace("path,split,label,mask", "Image, Set ,CLASS,mask_path"),
        FULL.replace("/", "\\"),
        FULL.replace("good", "OK").replace("train", "Training"),
    ],
    ids=["semicolons", "tabs", "bom", "crlf", "other names", "backslashes", "other words"],
)
def test_ways_to_write_the_same(here, text):
    plain = open_data(manifest(here, FULL))
    other = open_data(manifest(here, text, "other.csv"))
    assert (other.train, other.test) == (plain.train, plain.test)


def test_json_lines(here):
    lines = [
        {"path": "a/0.png", "split": "train"},
        {"path": "b/crack.png", "split": "test", "label": "crack", "mask": "masks/crack.png"},
        {"path": "b/ok.png", "split": "test", "label": None},
    ]
    path = manifest(here, "\n\n".join(map(json.dumps, lines)), "list.jsonl")
    dataset = open_data(path)
    assert table(dataset.train, here) == [("a/0.png", "good", None)]
    assert table(dataset.test, here) == [("b/crack.png", "crack", "masks/crack.png"), ("b/ok.png", None, None)]


def test_without_splits_good_ones_are_learned_from(here):
    dataset = open_data(manifest(here, "path,anomaly\na/0.png,0\na/1.png,0\nb/crack.png,1\n"))
    assert [s.key for s in dataset.train] == ["a/0.png", "a/1.png"]
    assert table(dataset.test, here) == [("b/crack.png", "defect", None)]
    assert "without a split" in dataset.notes[0]


def test_only_paths(here):
    assert len(open_data(manifest(here, "path\na/0.png\na/1.png\n")).train) == 2


def test_defects_to_learn_from_are_left_out_and_told(here):
    dataset = open_data(manifest(here, "path,split,label\na/0.png,train,good\na/1.png,train,crack\n"))
    assert [s.key for s in dataset.train] == ["a/0.png"]
    assert [item.reason for item in dataset.ignored] == ["a training image, but labelled crack"]


def test_categories(here):
    path = manifest(here, "path,category\na/0.png,nut\na/1.png,bolt\n")
    assert categories_in(path) == ["bolt", "nut"]
    assert [s.key for s in open_data(path, "nut").train] == ["a/0.png"]
    with pytest.raises(UsageError, match="2 categories"):
        open_data(path)
    with pytest.raises(UsageError, match="Unknown category"):
        open_data(path, "screw")


def test_absolute_paths_and_archives(here):
    import zipfile

    with zipfile.ZipFile(here / "more.zip", "w") as archive:
        archive.write(here / "a/2.png", "x/2.png")
    dataset = open_data(manifest(here, f"path\n{here / 'a/0.png'}\nmore.zip/x/2.png\n"))
    assert {s.path for s in dataset.train} == {here / "a/0.png", here / "more.zip/x/2.png"}


def test_images_to_score(here):
    samples, _ = list_images([manifest(here, FULL)])
    assert table(samples, here) == [("b/crack.png", "crack", "masks/crack.png"), ("b/ok.png", "good", None)]
    samples, _ = list_images([manifest(here, "path\na/0.png\na/1.png\n", "new.csv")])
    assert [s.key for s in samples] == ["a/0.png", "a/1.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,split\na/9.png,train\n", "Line 2 .* a/9.png does not exist"),
        ("path,split\na/0.png,learn\n", "Line 2 .* split 'learn' is unknown"),
        ("name,split\na/0.png,train\n", "Line 2 .* no path in name, split"),
        ("path\na/0.png\na/0.png\n", "Line 3 .* listed already"),
        ("path\n", "lists no image"),
        ("", "lists no image"),
        ("path,label\na/0.png,crack\n", "no good training image"),
        (b"path\n\xff\xfe\n", "not UTF-8"),
        ("path,mask\nb/crack.png,masks/9.png\n", "Line 2 .* masks/9.png does not exist"),
    ],
)
def test_faults_name_the_line(here, text, said):
    with pytest.raises(DataError, match=said) as error:
        open_data(manifest(here, text))
    assert error.value.remedy


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("[]", "not a JSON object")])
def test_faults_in_json_lines(here, text, said):
    with pytest.raises(DataError, match=f"Line 1 .*{said}"):
        read_manifest(manifest(here, text, "list.jsonl"))


def test_the_same_file_to_learn_from_and_to_test_on(here):
    with pytest.raises(DataError, match="both good images and test images"):
        open_data(manifest(here, "path,split\na/0.png,train\na/../a/0.png,test\n"))


def test_train_and_score_a_manifest(adctl, zippers):
    lines = ["path,split,label"]
    lines += [f"{path},train,good" for path in sorted((zippers / "train/good").iterdir())]
    lines += [f"{path},test,{path.parent.name}" for path in sorted((zippers / "test").glob("*/*"))]
    (adctl.folder / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    assert adctl.json("train", "--data", "list.csv", "--dry-run")["result"]["dataset"]["layout"] == "manifest"
    adctl("train", "--data", "list.csv", "--image-size", "64")
    counts = adctl.json("score")["result"]["counts"]
    assert counts["error"] == 0
    assert counts == adctl.json("score", "list.csv")["result"]["counts"]
    assert adctl.json("fetch", "check", "list.csv", code=0)["result"][0]["layout"] == "manifest"

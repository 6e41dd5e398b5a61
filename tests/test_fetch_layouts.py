"""Conversion of each published layout, generated in a small size: number of images, and masks."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from PIL import Image

from adctl.data.datasets.layouts import open_mvtec
from adctl.data.images import read_image
from adctl.data.masks import read_mask
from adctl.errors import DataError, UsageError
from adctl.fetching.catalogue import catalogue, find_entry
from adctl.fetching.converters import LAYOUTS, load_converter
from adctl.fetching.datasets import fetch_dataset
from adctl.fetching.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES = (40, 56)
"""Height and width of all images: unequal, so that a turned mask would not fit."""


class Drawer:
    """Writes images with a bright defect, and masks that mark it; remembers where."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.random = np.random.default_rng(0)

    def image(self, path: str, box: tuple[int, int, int, int] | None = None) -> None:
        """A dark image, bright inside the box (top, left, bottom, right); every one of them different."""
        pixels = self.random.integers(0, 60, (*SIDES, 3), np.uint8)
        if box is not None:
            pixels[box[0] : box[2], box[1] : box[3]] = 255
        self._write(path, Image.fromarray(pixels), quality=100)

    def mask(self, path: str, *boxes: tuple[int, int, int, int], value: int = 255) -> None:
        pixels = np.zeros(SIDES, np.uint8)
        for top, left, bottom, right in boxes:
            pixels[top:bottom, left:right] = value
        self._write(path, Image.fromarray(pixels))

    def _write(self, path: str, image: Image.Image, **options: int) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, **options)

    def text(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


BOX = (8, 10, 24, 30)
OTHER = (26, 34, 36, 50)


def mvtec(draw: Drawer, category: str = "zipper") -> None:
    for n in range(4):
        draw.image(f"{category}/train/good/{n:03}.png")
    for n in range(2):
        draw.image(f"{category}/test/good/{n:03}.png")
    for n in range(3):
        draw.image(f"{category}/test/broken_teeth/{n:03}.png", BOX)
        draw.mask(f"{category}/ground_truth/broken_teeth/{n:03}_mask.png", BOX)
    draw.text(f"{category}/license.txt", "CC BY-NC-SA 4.0")


def mpdd(draw: Drawer) -> None:
    inner = Drawer(draw.root / "MPDD")
    mvtec(inner, "metal_plate")


def mvtec_loco(draw: Drawer) -> None:
    for part, count in (("train", 4), ("validation", 2), ("test", 2)):
        for n in range(count):
            draw.image(f"pushpins/{part}/good/{n:03}.png")
    draw.image("pushpins/test/logical_anomalies/000.png", BOX)
    draw.mask("pushpins/ground_truth/logical_anomalies/000/000.png", BOX, value=253)
    draw.image("pushpins/test/structural_anomalies/000.png", BOX)
    draw.mask("pushpins/ground_truth/structural_anomalies/000/000.png", (8, 10, 16, 30), value=248)
    draw.mask("pushpins/ground_truth/structural_anomalies/000/001.png", (16, 10, 24, 30), value=1)
    draw.text("pushpins/defects_config.json", "[]")


def mvtec_ad_2(draw: Drawer) -> None:
    for n in range(4):
        draw.image(f"mvtec_ad_2/can/train/good/{n:03}_regular.png")
    draw.image("mvtec_ad_2/can/validation/good/000_regular.png")
    draw.image("mvtec_ad_2/can/test_public/good/000_overexposed.png")
    for n in range(2):
        draw.image(f"mvtec_ad_2/can/test_public/bad/{n:03}_regular.png", BOX)
        draw.mask(f"mvtec_ad_2/can/test_public/ground_truth/bad/{n:03}_regular_mask.png", BOX)
    draw.image("mvtec_ad_2/can/test_private/000.png")
    draw.image("mvtec_ad_2/can/test_private_mixed/000_mixed.png")


def visa(draw: Drawer) -> None:
    rows = []
    for n in range(5):
        path = f"candle/Data/Images/Normal/{n:04}.JPG"
        draw.image(path)
        rows.append(("candle", "train" if n % 2 else "test", "normal", path, ""))
    for n in range(2):
        path, mask = f"candle/Data/Images/Anomaly/{n:03}.JPG", f"candle/Data/Masks/Anomaly/{n:03}.png"
        draw.image(path, BOX)
        draw.mask(mask, BOX, value=1 + n)
        rows.append(("candle", "test", "anomaly", path, mask))
    rows.append(("pcb1", "train", "normal", "pcb1/Data/Images/Normal/0000.JPG", ""))
    draw.text("split_csv/1cls.csv", "object,split,label,image,mask\n" + "".join(",".join(row) + "\n" for row in rows))


def btad(draw: Drawer) -> None:
    root = "BTech_Dataset_transformed/03"
    for n in range(4):
        draw.image(f"{root}/train/ok/{n:04}.bmp")
    draw.image(f"{root}/test/ok/0000.bmp")
    for n, ending in enumerate(("bmp", "png")):
        draw.image(f"{root}/test/ko/{n:04}.bmp", BOX)
        draw.mask(f"{root}/ground_truth/ko/{n:04}.{ending}", BOX)


def kolektor_sdd(draw: Drawer) -> None:
    for item in range(1, 6):
        for part in range(2):
            bad = (item, part) in {(1, 0), (5, 1)}
            draw.image(f"kos{item:02}/Part{part}.jpg", BOX if bad else None)
            draw.mask(f"kos{item:02}/Part{part}_label.bmp", *([BOX] if bad else []))


def kolektor_sdd2(draw: Drawer) -> None:
    for part, start in (("train", 10000), ("test", 20000)):
        for n in range(start, start + 4):
            bad = n == start
            draw.image(f"{part}/{n}.png", BOX if bad else None)
            draw.mask(f"{part}/{n}_GT.png", *([BOX] if bad else []))
    draw.image("train/10301 (copy).png")
    draw.mask("train/10301_GT (copy).png")


def real_iad(draw: Drawer) -> None:
    good = [f"OK/S{n:04}/usb_{n:04}_OK_C1_2023.jpg" for n in range(4)]
    for path in good:
        draw.image(f"realiad_256/usb/{path}")
        draw.image(f"realiad_1024/usb/{path}")
    bad = "NG/HS/S0009/usb_0009_NG_HS_C1_2023"
    draw.image(f"realiad_1024/usb/{bad}.jpg", BOX)
    draw.mask(f"realiad_1024/usb/{bad}.png", BOX)
    sample = {"category": "usb", "anomaly_class": "OK", "mask_path": None}
    split = {
        "meta": {"normal_class": "OK", "prefix": "usb/"},
        "train": [sample | {"image_path": path} for path in good[:3]],
        "test": [
            sample | {"image_path": good[3]},
            sample | {"anomaly_class": "HS", "image_path": f"{bad}.jpg", "mask_path": f"{bad}.png"},
        ],
    }
    draw.text("realiad_jsons/usb.json", json.dumps(split))


def magnetic_tile(draw: Drawer) -> None:
    root = "Magnetic-tile-defect-datasets.-cc4eb53"
    for tile in range(10):
        for exposure in (1, 2):
            draw.image(f"{root}/MT_Free/Imgs/exp{exposure}_num_{tile}.jpg")
            draw.mask(f"{root}/MT_Free/Imgs/exp{exposure}_num_{tile}.png")
    for defect in ("Blowhole", "Crack"):
        draw.image(f"{root}/MT_{defect}/Imgs/exp1_num_99.jpg", BOX)
        draw.mask(f"{root}/MT_{defect}/Imgs/exp1_num_99.png", BOX)
    draw.image(f"{root}/dataset.jpg")


def dagm(draw: Drawer) -> None:
    for part, start in (("Train", 1), ("Test", 7)):
        for n in range(start, start + 4):
            bad = n == start
            draw.image(f"Class3/{part}/{n:04}.PNG", BOX if bad else None)
        draw.mask(f"Class3/{part}/Label/{start:04}_label.PNG", BOX)
        draw.text(f"Class3/{part}/Label/Labels.txt", "1\n")


def _idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(head + values.tobytes())


def mnist(draw: Drawer) -> None:
    labels = np.tile(np.arange(10, dtype=np.uint8), 2)
    for part, kept in (("train", labels), ("t10k", labels[:10])):
        pixels = np.arange(len(kept), dtype=np.uint8)[:, None, None] + np.zeros((1, 28, 28), np.uint8)
        for name, values in (("images-idx3", pixels), ("labels-idx1", kept)):
            (draw.root / f"{part}-{name}-ubyte.gz").write_bytes(_idx(values))


def _records(labels: list[tuple[int, ...]]) -> bytes:
    planes = np.repeat(np.array([10, 20, 30], np.uint8), 1024).tobytes()
    return b"".join(bytes(label) + planes for label in labels)


def cifar10(draw: Drawer) -> None:
    folder = draw.root / "cifar-10-batches-bin"
    folder.mkdir()
    for n in range(1, 6):
        (folder / f"data_batch_{n}.bin").write_bytes(_records([(label,) for label in range(10)]))
    (folder / "test_batch.bin").write_bytes(_records([(label,) for label in range(10)]))


def cifar100(draw: Drawer) -> None:
    folder = draw.root / "cifar-100-binary"
    folder.mkdir()
    for name, count in (("train", 2), ("test", 1)):
        (folder / f"{name}.bin").write_bytes(_records([(label, 99) for label in range(20)] * count))


def imagenet(draw: Drawer) -> None:
    for name in ("n01440764", "n01443537"):
        for n in range(3):
            draw.image(f"train/{name}/{name}_{n}.JPEG")
        draw.image(f"val/{name}/ILSVRC2012_val_{name[-1]}.JPEG")


OTHERS_OF_TEN = {"good": 1, "others": 9}
# data set: (generator, category, train, test by label, masks, further folders)
PUBLISHED: dict[str, tuple[Callable, str, int, dict[str, int], int, dict[str, int]]] = {
    "mvtec": (mvtec, "zipper", 4, {"good": 2, "broken_teeth": 3}, 3, {}),
    "mvtec_loco": (
        mvtec_loco, "pushpins", 4, {"good": 2, "logical_anomalies": 1, "structural_anomalies": 1}, 2,
        {"validation/good": 2},
    ),
    "mvtec_ad_2": (
        mvtec_ad_2, "can", 4, {"good": 1, "bad": 2}, 2,
        {"validation/good": 1, "test_private": 1, "test_private_mixed": 1},
    ),
    "visa": (visa, "candle", 2, {"good": 3, "bad": 2}, 2, {}),
    "btad": (btad, "03", 4, {"good": 1, "ko": 2}, 2, {}),
    "mpdd": (mpdd, "metal_plate", 4, {"good": 2, "broken_teeth": 3}, 3, {}),
    "kolektor_sdd": (kolektor_sdd, "commutator", 7, {"good": 1, "defect": 2}, 2, {}),
    "kolektor_sdd2": (kolektor_sdd2, "surface", 3, {"good": 3, "defect": 1}, 1, {}),
    "real_iad": (real_iad, "usb", 3, {"good": 1, "HS": 1}, 1, {}),
    "magnetic_tile": (magnetic_tile, "magnetic_tile", 16, {"good": 4, "blowhole": 1, "crack": 1}, 2, {}),
    "dagm": (dagm, "Class3", 3, {"good": 3, "defect": 1}, 1, {}),
    "mnist": (mnist, "7", 2, OTHERS_OF_TEN, 0, {}),
    "fashion_mnist": (mnist, "sandal", 2, OTHERS_OF_TEN, 0, {}),
    "cifar10": (cifar10, "frog", 5, OTHERS_OF_TEN, 0, {}),
    "cifar100": (cifar100, "trees", 2, {"good": 1, "others": 19}, 0, {}),
    "imagenet": (imagenet, "n01440764", 3, {"good": 1, "n01443537": 1}, 0, {}),
}  # fmt: skip


def without_digests(path: Path) -> Path:
    """A catalogue in which small files may go under the names of the real ones."""
    tables = []
    for name in ("mnist", "fashion_mnist"):
        entry = find_entry(name)
        tables.append(f'[datasets.{name}]\ntitle = "{name}"\nkind = "archive"\nlayout = "{name}"\nlicence = "x"')
        tables.append(f"categories = {json.dumps(entry.categories)}")
        tables += [
            f"[[datasets.{name}.whole]]\nurls = {json.dumps(file.urls)}\narchive = false" for file in entry.whole
        ]
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Generate a data set as its authors publish it."""
    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("ADCTL_CATALOGUE", str(without_digests(tmp_path / "catalogue.toml")))

    def generate(name: str) -> Path:
        root = tmp_path / "published"
        root.mkdir()
        PUBLISHED[name][0](Drawer(root))
        return root

    return generate


def aligned(sample) -> bool:
    """Whether a mask marks just the bright part of its image."""
    mask, image = read_mask(sample.mask), read_image(sample.path)
    raw = cv2.imread(str(sample.mask), cv2.IMREAD_UNCHANGED)
    return (
        raw.ndim == 2
        and set(np.unique(raw)) == {0, 255}
        and mask.shape == image.shape[:2]
        and bool(np.array_equal(mask, image.min(axis=2) > 150))
    )


def test_every_data_set_of_the_catalogue_is_generated_here():
    assert set(PUBLISHED) == set(catalogue()) - {"demo", "trays"}
    assert {find_entry(name).layout for name in PUBLISHED} == set(LAYOUTS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_becomes_ours(published, record_property, name):
    _, category, train, test, masks, further = PUBLISHED[name]
    source = published(name)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    got = fetch_dataset(name, categories=[category], source=source, accept_license=True)
    assert (got.categories, got.notes) == ((category,), ())
    dataset = open_mvtec(got.root, category)
    counts = dict(dataset.test_counts)
    if "others" in test:
        counts = {"good": counts.pop("good"), "others": sum(counts.values())}
    with_masks = [sample for sample in dataset.test if sample.mask is not None]
    fit = [aligned(sample) for sample in with_masks]
    labels = ", ".join(f"{label} {count}" for label, count in counts.items())
    told = f"{sum(fit)} of {masks}" if masks else "has none"
    record_property("published layout", (name, len(dataset.train), len(dataset.test), told, labels))
    assert (len(dataset.train), counts, len(with_masks)) == (train, test, masks)
    assert all(fit)
    for folder, count in further.items():
        assert len(list((got.root / category / folder).iterdir())) == count
    assert [result.intact for result in verify(name)] == [True]
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_adctl_laid_out_is_taken_over_as_it_is(published, name, tmp_path):
    category = PUBLISHED[name][1]
    first = fetch_dataset(name, categories=[category], source=published(name), accept_license=True)
    again = fetch_dataset(
        name, categories=[category], source=first.root, accept_license=True, root=tmp_path / "other machine"
    )
    digests = [(root.root / category / "digests.sha256").read_text() for root in (first, again)]
    assert digests[0] == digests[1]
    spoilt = next((first.root / category / "train" / "good").iterdir())
    spoilt.write_bytes(b"spoilt")
    with pytest.raises(Exception, match=r"Files that differ: 1, such as train/good"):
        fetch_dataset(name, categories=[category], source=first.root, accept_license=True, root=tmp_path / "third")
    assert not (tmp_path / "third" / name / category).exists()


def test_good_tiles_under_several_exposures_stay_together(published):
    got = fetch_dataset("magnetic_tile", source=published("magnetic_tile"), accept_license=True)
    tiles = [
        {path.stem.partition("_num_")[2] for path in (got.root / "magnetic_tile" / part / "good").iterdir()}
        for part in ("train", "test")
    ]
    assert not tiles[0] & tiles[1]


def test_the_parts_of_one_item_stay_together(published):
    got = fetch_dataset("kolektor_sdd", source=published("kolektor_sdd"), accept_license=True)
    items = [
        {path.name[:5] for path in (got.root / "commutator" / part / "good").iterdir()} for part in ("train", "test")
    ]
    assert not items[0] & items[1]


def test_colours_come_in_the_right_order(published):
    got = fetch_dataset("cifar10", categories=["frog"], source=published("cifar10"), accept_license=True)
    image = read_image(next((got.root / "frog" / "train" / "good").iterdir()))
    assert image[0, 0].tolist() == [10, 20, 30]


def test_classes_are_numbered_in_the_order_of_the_catalogue(published):
    got = fetch_dataset("mnist", categories=["7"], source=published("mnist"), accept_license=True)
    values = {read_image(path).max() for path in (got.root / "7" / "train" / "good").iterdir()}
    assert values == {7, 17}


def test_what_torchvision_calls_the_garments_is_what_we_call_them():
    import torchvision

    named = [
        name.lower().replace("-", "_").partition("/")[0].replace(" ", "_")
        for name in torchvision.datasets.FashionMNIST.classes
    ]
    assert list(find_entry("fashion_mnist").categories) == named


def test_the_sharpest_images_are_taken(published):
    source = published("real_iad")
    for path in (source / "realiad_256").rglob("*.jpg"):
        path.write_bytes(b"not these")
    got = fetch_dataset("real_iad", categories=["usb"], source=source, accept_license=True)
    assert all(read_image(sample.path).size for sample in open_mvtec(got.root, "usb").train)


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no mask": ("btad", lambda root: next(root.rglob("ground_truth/ko/*.png")).unlink(), "no mask"),
    "no part of a mask": ("mvtec_loco", lambda root: next(root.rglob("logical_anomalies/000/*.png")).unlink(), "masks"),
    "image of the table gone": ("visa", lambda root: next(root.rglob("Anomaly/000.JPG")).unlink(), "000.JPG"),
    "no split": ("visa", lambda root: (root / "split_csv" / "1cls.csv").write_text("a,b\n"), "columns"),
    "path that leads out": (
        "visa",
        lambda root: (root / "split_csv" / "1cls.csv").write_text(
            "object,split,label,image,mask\ncandle,train,normal,../../secret.JPG,\n"
        ),
        "secret",
    ),
    "split that leads out": (
        "real_iad",
        lambda root: (root / "realiad_jsons" / "usb.json").write_text(
            '{"meta": {"normal_class": "OK"}, "train": [{"image_path": "../../x.jpg"}], "test": []}'
        ),
        "outside",
    ),
    "no json": ("real_iad", lambda root: (root / "realiad_jsons" / "usb.json").write_text("{"), "published format"),
    "half a record": ("cifar10", lambda root: next(root.rglob("test_batch.bin")).write_bytes(b"x" * 5000), "records"),
    "damaged gzip": ("mnist", lambda root: (root / "train-images-idx3-ubyte.gz").write_bytes(b"x"), "damaged"),
    "another file": (
        "mnist", lambda root: (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 99)), "MNIST",
    ),
    "no good images": (
        "kolektor_sdd2",
        lambda root: [cv2.imwrite(str(path), np.full(SIDES, 255, np.uint8)) for path in root.glob("train/*_GT.png")],
        "no good training images",
    ),
    "another layout": ("dagm", lambda root: (root / "Class3" / "Train").rename(root / "x"), "does not contain"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_not_as_published_is_refused_with_the_place(published, tmp_path, fault):
    name, spoil, says = BROKEN[fault]
    source = published(name)
    spoil(source)
    with pytest.raises(DataError, match=says) as error:
        fetch_dataset(name, categories=[PUBLISHED[name][1]], source=source, accept_license=True)
    assert error.value.remedy
    assert not (tmp_path / "home" / name / PUBLISHED[name][1]).exists()


def test_masks_of_another_size_are_told_of(published):
    source = published("visa")
    cv2.imwrite(str(next(source.rglob("Masks/Anomaly/000.png"))), np.full((20, 20), 1, np.uint8))
    got = fetch_dataset("visa", categories=["candle"], source=source)
    assert got.notes == (
        "Masks of candle that differ in size from their images: 1, such as ground_truth/bad/000_mask.png.",
    )


def test_the_split_file_decides(published):
    source = published("visa")
    with (source / "split_csv" / "1cls.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    got = fetch_dataset("visa", categories=["candle"], source=source)
    learned = {Path(row["image"]).name for row in rows if row["object"] == "candle" and row["split"] == "train"}
    assert {path.name for path in (got.root / "candle" / "train" / "good").iterdir()} == learned


def test_unknown_layouts_are_named():
    with pytest.raises(UsageError, match="Unknown layout 'mvtek'"):
        load_converter("mvtek")

"""Registries of products: rules, nearest products, bad files, and one model of several categories."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest
from conftest import settings

import adctl
from adctl.config import LoadedSettings, TrainSettings
from adctl.datasets import dataset_of_run, open_dataset
from adctl.errors import DataError, UsageError
from adctl.scoring.registry import read_registry
from adctl.training.grid import train_grid
from adctl.training.single_run import train_once


@pytest.fixture(scope="module")
def two(zippers, tmp_path_factory) -> Path:
    """A data set of two categories: zippers, and zippers turned by a quarter in inverted colours."""
    root = tmp_path_factory.mktemp("two")
    shutil.copytree(zippers, root / "zipper")
    shutil.copytree(zippers, root / "belt")
    for path in root.glob("belt/*/*/*.png"):
        turned = cv2.rotate(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.ROTATE_90_CLOCKWISE)
        cv2.imwrite(str(path), turned if "ground_truth" in path.parts else 255 - turned)
    return root


@pytest.fixture(scope="module")
def models(two, tmp_path_factory) -> Path:
    """A folder of runs with a model of each category."""
    runs = tmp_path_factory.mktemp("runs")
    for name in ("zipper", "belt"):
        train_once(settings(arch="padim", data=two, category=name, name=name, runs=runs))
    return runs


def registry_in(runs: Path, text: str) -> Path:
    path = runs / "registry.toml"
    path.write_text(text)
    return path


TWO = '[products.zipper]\nmodel = "zipper"\n[products.belt]\nmodel = "belt"\n'


def scored(runs: Path, images: Path, registry: Path, out: Path) -> adctl.ProductsResult:
    return adctl.score_products(str(images), model=registry, runs=runs, out=out, device="cpu", heatmaps=False)


def test_images_go_to_the_product_of_their_folder_with_the_scores_of_its_model(two, models, tmp_path):
    result = scored(models, two, registry_in(models, TWO), tmp_path / "out")
    alone = adctl.score(str(two / "belt"), model=models / "belt", runs=models, device="cpu", out=tmp_path / "alone")
    assert [row.score for row in result.products["belt"].rows] == [row.score for row in alone.rows]
    assert {Path(row.path).relative_to(two).parts[0] for row in result.products["zipper"].rows} == {"zipper"}
    assert not result.unassigned
    assert len(result) == len(result.products["zipper"]) + len(result.products["belt"])


def test_an_image_of_no_product_is_named_and_the_others_are_scored(two, models, tmp_path):
    images = tmp_path / "images"
    (images / "zipper").mkdir(parents=True)
    source = next(two.glob("zipper/test/good/*.png"))
    shutil.copy(source, images / "zipper" / "a.png")
    shutil.copy(source, images / "stray.png")
    result = scored(models, images, registry_in(models, TWO), tmp_path / "out")
    assert [Path(one.path).name for one in result.unassigned] == ["stray.png"]
    assert result.counts["error"] == 1
    stored = json.loads((tmp_path / "out" / "products.json").read_text())
    assert stored["unassigned"] == [
        {"path": str(images / "stray.png"), "reason": "no folder and no pattern of the registry fits"}
    ]
    with pytest.raises(DataError, match=r"None of the 1 images belongs to a product"):
        scored(models, images / "stray.png", registry_in(models, TWO), tmp_path / "none")


def test_the_nearest_product_is_that_of_the_image(two, models, tmp_path):
    images = tmp_path / "loose"
    images.mkdir()
    for name in ("zipper", "belt"):
        for path in two.glob(f"{name}/test/good/*.png"):
            shutil.copy(path, images / f"{name}-{path.name}")
    (images / "broken.png").write_bytes(b"\x89PNG broken")
    result = scored(models, images, registry_in(models, f"nearest = true\n{TWO}"), tmp_path / "out")
    for name, one in result.products.items():
        assert {Path(row.path).name.split("-")[0] for row in one.rows} == {name}
    assert [Path(one.path).name for one in result.unassigned] == ["broken.png"]
    with pytest.raises(DataError, match=r"is .* away"):
        scored(models, images, registry_in(models, f"nearest = true\nfarthest = 1e-6\n{TWO}"), tmp_path / "far")


def test_patterns_go_before_folders_and_the_innermost_folder_before_others(models):
    text = '[products.zipper]\nmodel = "z"\npatterns = ["z_*"]\n[products.belt]\nmodel = "b"\nfolders = ["line2"]\n'
    registry = read_registry(registry_in(models, text))
    assert registry.product_of(PurePath("line2/z_1.png")) == "zipper"
    assert registry.product_of(PurePath("zipper/line2/1.png")) == "belt"
    assert registry.product_of(PurePath("other/1.png")) is None
    text = '[products.a]\nmodel = "z"\npatterns = ["z*"]\n[products.b]\nmodel = "b"\npatterns = ["*1.png"]\n'
    with pytest.raises(UsageError, match=r"z1.png fits the patterns of a and b"):
        read_registry(registry_in(models, text)).product_of(PurePath("z1.png"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TWO + '[products.zipper]\nmodel = "other"\n', "A product has one table and one model"),
        ('[products.zip]\nmodel = "a"\n[products.ZIP]\nmodel = "b"\n', "two models for one product: zip and ZIP"),
        (TWO + 'folders = ["zipper"]\n', "the folder zipper belongs to zipper and to belt"),
        ('[products.zipper]\nmodel = ["a", "b"]\n', "products.zipper.model"),
        ("[products.zipper]\n", "products.zipper.model"),
        ("nearest = true\n", "names no product"),
        ('[products."a/b"]\nmodel = "a"\n', "is no name for a run"),
        ("= 1", "cannot be read"),
        ("x = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_a_bad_registry_names_its_fault(tmp_path, text, reason):
    with pytest.raises((DataError, UsageError), match=reason):
        read_registry(registry_in(tmp_path, text))


def test_a_registry_that_does_not_fit_is_refused_before_anything_is_scored(two, models, tmp_path):
    lost = registry_in(models, TWO + '[products.third]\nmodel = "third"\n')
    with pytest.raises(UsageError, match=r"product third: Cannot find a model third"):
        scored(models, two, lost, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="takes one model"):
        adctl.score(str(two), model=lost, runs=models)


@pytest.mark.parametrize("name", ["products.json", "belt/results.csv"])
def test_files_of_the_user_are_not_replaced_by_results_of_products(two, models, tmp_path, name):
    registry = registry_in(models, TWO)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="adctl did not write it"):
        scored(models, two, registry, tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [name]


def test_the_command_scores_with_a_registry(two, models, adctl):
    registry_in(models, TWO)
    given = ("score", two / "zipper" / "test", "--model", models / "registry.toml", "--runs", models, "--device", "cpu")
    result = adctl.json(*given, "--no-heatmaps", "--out", "out")["result"]
    assert list(result["products"]) == ["zipper"]
    assert adctl("report", "out/zipper", "--out", "page.html").returncode == 0
    assert "--watch and --source take one model" in adctl(*given, "--watch", two, code=2).stderr


def test_the_server_finds_the_product_of_an_image(two, models, serve):
    registry_in(models, TWO)
    client = serve(model=(str(models / "registry.toml"),), runs=models)
    image = next(two.glob("belt/test/good/*.png")).read_bytes()
    headers = {"Content-Type": "image/png"}
    answer = client.post("/v1/products/score?file=line/belt/7.png", content=image, headers=headers)
    assert (answer.status_code, answer.json()["model"]) == (200, "belt")
    answer = client.post("/v1/products/score?file=7.png", content=image, headers=headers)
    assert answer.status_code == 422
    assert "No product" in answer.text
    assert serve().post("/v1/products/score?file=a", content=image, headers=headers).status_code == 404


def test_the_server_finds_the_nearest_product(two, models, serve):
    def answer(client, content):
        return client.post("/v1/products/score?file=7.png", content=content, headers={"Content-Type": "image/png"})

    registry = registry_in(models, f"nearest = true\n{TWO}")
    client = serve(model=(str(registry),), runs=models)
    images = {name: next(two.glob(f"{name}/test/good/*.png")).read_bytes() for name in ("zipper", "belt")}
    for name, image in images.items():
        found = answer(client, image)
        assert (found.status_code, found.json()["model"]) == (200, name)
    assert "cannot be read" in answer(client, b"\x89PNG broken").text
    files = [("images", (name, image)) for name, image in images.items()]
    several = client.post("/v1/products/score", files=files)
    assert (several.status_code, "The product of 2 images" in several.text) == (422, True)
    registry_in(models, f"nearest = true\nfarthest = 1e-6\n{TWO}")
    far = answer(serve(model=(str(registry),), runs=models), images["belt"])
    assert far.status_code == 422
    assert "belongs to no product: the nearest product, belt, is" in far.text


def test_one_model_learns_from_all_categories(two, tmp_path):
    loaded = settings(arch="padim", data=two, category="all", one_model=True, runs=tmp_path, name="both")
    trained = adctl.train(
        **{name: getattr(loaded.settings, name) for name in ("arch", "data", "category", "runs")},
        one_model=True,
        name="both",
        image_size=64,
        device="cpu",
        export="none",
    )
    assert isinstance(trained, adctl.TrainResult)
    dataset = open_dataset(loaded.settings)
    assert dataset.category == "belt+zipper"
    assert {sample.key.split("/")[0] for sample in dataset.train} == {"belt", "zipper"}
    assert trained.images == len(dataset.train) == 40
    assert dataset_of_run(trained.run) == dataset
    result = adctl.score(model=trained.model, runs=tmp_path, device="cpu", heatmaps=False, maps=False)
    assert len(result) == len(dataset.test)
    assert np.isfinite([row.score for row in result.rows]).all()


def test_one_model_judges_each_category_by_its_own_threshold(two, tmp_path):
    trained = train_once(settings(arch="padim", data=two, category="all", one_model=True, runs=tmp_path, name="both"))
    calibration = trained.calibration
    assert calibration.categories.keys() == {"belt", "zipper"}
    own = {name: one.threshold for name, one in calibration.categories.items()}
    assert len({*own.values(), calibration.threshold}) == 3
    assert sum(one.good_images for one in calibration.categories.values()) == calibration.good_images
    result = adctl.score(model=trained.model, runs=tmp_path, device="cpu", heatmaps=False, maps=False)
    for row in result.rows:
        name = row.key.split("/")[0]
        assert row.threshold == own[name]
        assert row.verdict == calibration.categories[name].verdict(row.score)
        assert row.p_value >= 1 / (1 + calibration.categories[name].good_images)
    page = adctl.report(scores=result.folder, runs=tmp_path, out=tmp_path / "page.html").page.read_text()
    assert f"{len(result)} images were judged by the threshold of their category" in page
    stray = tmp_path / "stray.png"
    shutil.copy(next(two.glob("belt/test/good/*.png")), stray)
    (row,) = adctl.score(str(stray), model=trained.model, runs=tmp_path, device="cpu", heatmaps=False).rows
    assert row.threshold == calibration.threshold
    # Another level changes all thresholds, and one that is given by hand takes their place.
    changed = adctl.calibrate(model=trained.model, runs=tmp_path, max_false_alarm=0.2, method="smooth", in_place=True)
    for name, one in changed.calibration.categories.items():
        assert one.threshold < own[name]
    hand = adctl.calibrate(model=trained.model, runs=tmp_path, threshold=7.0, in_place=True).calibration
    assert {one.threshold for one in hand.categories.values()} == {7.0}


def test_a_grid_of_categories_writes_a_registry(two, tmp_path):
    made = train_grid(settings(arch="padim", data=two, category="all", runs=tmp_path, name="grid"))
    registry = read_registry(made.folder / "registry.toml")
    assert registry.nearest
    models = {name: registry.model_of(name, tmp_path).parent.name for name in registry.products}
    assert models == {"belt": "belt-padim-seed0", "zipper": "zipper-padim-seed0"}


def test_one_model_needs_categories(two):
    loaded = settings(data=two, category="zipper,nothing", one_model=True)
    with pytest.raises(UsageError, match="Unknown category 'nothing'"):
        open_dataset(loaded.settings)
    with pytest.raises(UsageError, match="--one-model needs the categories"):
        open_dataset(replace_of(loaded, category=None))


def replace_of(loaded: LoadedSettings[TrainSettings], **changed: object) -> TrainSettings:
    return replace(loaded.settings, **changed)

"""The Python API: public names, types, and the same scores as the command line."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, CommandLine
from stub import STUB, public_stub

import adctl
from adctl.data.images import read_image
from adctl.errors import DataError, ImageError, UsageError
from adctl.scoring.score_set import MAPS, ScoreSet

FUNCTIONS = adctl._PUBLIC["adctl.api"]


@pytest.fixture(scope="module")
def images(zippers, tmp_path_factory):
    """Images of several sizes, grey ones among them, in the order in which they are scored."""
    folder = tmp_path_factory.mktemp("images")
    for number, path in enumerate(sorted((zippers / "test").rglob("*.png"))[:7]):
        image = cv2.resize(cv2.imread(str(path)), (60 + 17 * number, 90 + 11 * number))
        cv2.imwrite(str(folder / f"{number}.png"), image if number % 3 else image[..., 0])
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def scored(patchcore, images, tmp_path_factory):
    """Those images scored from Python."""
    out = tmp_path_factory.mktemp("scored") / "out"
    return adctl.score(images[0].parent, model=patchcore.model, out=out, runtime="torch", heatmaps=False)


def same(prediction, row):
    assert prediction.score == row.score
    assert prediction.boxes == row.boxes
    found = (prediction.verdict, prediction.p_value, prediction.probability, prediction.width, prediction.height)
    assert found == (row.verdict, row.p_value, row.probability, row.width, row.height)


# ---- names


def test_dir_shows_the_api_alone():
    assert dir(adctl) == sorted(adctl.__all__)
    for name in adctl.__all__:
        assert getattr(adctl, name) is not None
    modules = {path.stem for path in (ROOT / "adctl").iterdir()}
    assert not modules & set(adctl.__all__), "importing such a module would hide the function"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = adctl.trian


def test_import_loads_nothing():
    program = "import sys; old = set(sys.modules); import adctl; print(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert [name for name in done.stdout.split() if name.startswith("adctl")] == ["adctl"]
    assert loaded - {"adctl"} <= set(sys.stdlib_module_names)


def test_the_stub_is_the_one_that_the_settings_make():
    assert STUB.read_text(encoding="utf-8") == public_stub(), "run python tests/stub.py"
    assert STUB.with_name("py.typed").is_file()


def test_the_documentation_lists_every_name():
    listed = re.findall(r"^        - (\w+)$", (ROOT / "docs/pages/python.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(set(adctl.__all__) - {"__version__"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_tell_their_parameters(name):
    function = getattr(adctl, name)
    doc = inspect.getdoc(function)
    assert "\nReturns:" in doc
    assert "\nRaises:" in doc
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in doc
    assert "--" not in doc


def test_signatures_hold_the_true_defaults():
    parameters = inspect.signature(adctl.train).parameters
    assert parameters["arch"].default == "patchcore"
    assert parameters["epochs"].default is None
    assert inspect.signature(adctl.fetch_weights).parameters["model_name"].default is inspect.Parameter.empty
    assert next(iter(inspect.signature(adctl.score).parameters)) == "images"


# ---- wrong calls


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: adctl.train(good="parts", epoch=3), "Did you mean 'epochs'?"),
        (lambda: adctl.train(good="parts", lr=3), "Did you mean 'learning_rate'?"),
        (lambda: adctl.train(good="parts", epochs="many"), "Got 'many' instead"),
        (lambda: adctl.train(good="parts", epochs=-1), "greater than or equal to 0"),
        (lambda: adctl.train("parts"), "takes nothing by position"),
        (lambda: adctl.score("a", images="b"), "was given 'images' twice"),
        (lambda: adctl.score("a", fail_on_anomaly=True), "Unknown setting of adctl.score"),
        (lambda: adctl.load("model", devise="cpu"), "Did you mean 'device'?"),
        (lambda: adctl.load("model", images="a"), "Unknown setting of adctl.load"),
        (lambda: adctl.export(format="onyx"), "Got 'onyx' instead"),
        (adctl.compare, "adctl.compare needs 'scores'"),
        (adctl.fetch_weights, "adctl.fetch_weights needs 'model_name'"),
        (adctl.fetch, "needs the name of a dataset"),
        (lambda: adctl.load("nowhere"), "Cannot find a model nowhere"),
        (lambda: adctl.open_maps("nowhere"), "holds no scores"),
    ],
)
def test_wrong_calls_are_refused_with_a_remedy(call, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        call()
    assert says in f"{caught.value.message} {caught.value.remedy}"


RIGHT = '''
"""A user's script that calls every public function."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import adctl
from adctl import AdctlError, ScoreResult, Verdict


def learn(folder: Path) -> adctl.TrainResult:
    trained = adctl.train(good=folder, arch="padim", epochs=3, loss={"mse": 1.0}, options={"dimensions": 50})
    crossed = adctl.train(data="parts", folds=5)
    best: int = crossed.best
    fold: adctl.TrainResult = adctl.train(data="parts", folds=5, fold=best)
    grid = adctl.train(data="parts", arch=["padim", "patchcore"], seed=[0, 1])
    print(grid.failed, fold.model, adctl.train(data="parts", category="all").table)
    print(adctl.train(data="parts", category=["zipper", "tile"]).rows, adctl.train(data="parts", seed=(0, 1)).folder)
    return trained


def judge(model: adctl.StrPath) -> ScoreResult:
    calibrated = adctl.calibrate(model=model, max_false_alarm=0.1)
    scored = adctl.score("parts/new", model=calibrated.model, out="heatmaps", tta=["hflip", "vflip"])
    adctl.score([Path("a.png"), "b.png"])
    for row in scored:
        values: NDArray[np.float32] = row.map()
        if row.verdict is Verdict.REJECT and row.score is not None:
            print(row.path, row.score + values.max(), row.boxes[0].width)
    with adctl.open_maps(scored.folder) as maps:
        first: NDArray[np.float32] = maps[0]
        print(len(maps), first.shape, [maps[path].max() for path in maps])
    print(len(scored), scored.threshold)
    return scored


def look(path: str | Path, array: NDArray[np.uint8]) -> None:
    model = adctl.load(path, device="cpu", runtime="onnxruntime")
    one = model.predict(array)
    several = model.predict([array, "a.png", Path("b.png")])
    print(one.score, one.verdict, one.p_value, one.probability, one.boxes, one.map.shape, several[0].score)


def rest(scores: Path) -> None:
    reported = adctl.report(scores, format=["html", "json"], fail_if="image_auroc<0.9")
    print(reported.page, reported.evaluation.image, adctl.compare([scores, "other"]).page)
    print(adctl.export(format="onnx").exports[0].file, adctl.bench(["a.onnx"], batch_sizes=[1, 4]).results)
    fetched: adctl.FetchResult = adctl.fetch("demo")
    print(fetched.root, adctl.fetch(source="usb").datasets, adctl.fetch_weights("resnet18").path)
    print(adctl.fetch_bundle("usb", include=["demo"]).install, adctl.fetch_check("parts"), adctl.fetch_verify())
    tuned: adctl.TuneResult = adctl.tune(good="parts", arch="padim", space={"blur": "0..2"}, trials=4)
    print(tuned.chosen.mean, tuned.params_file.name)
    best: Path = adctl.best_run(category="zipper", max="p95_ms<30")
    print(best.name, [run.get("image_auroc") for run in adctl.list_runs(where="arch=padim")])
    print(adctl.demo(arch="padim").seconds, adctl.__version__.upper())


if __name__ == "__main__":
    try:
        judge(learn(Path("parts/good")).model)
    except AdctlError as error:
        print(error.message, error.remedy)
'''

WRONG = """
adctl.train(good="parts", epoch=3)
adctl.train(good="parts", epochs="many")
adctl.train(good=3)
adctl.train(good="parts", arch=1)
adctl.train("parts")
adctl.train(good="parts", device="gpu")
adctl.train(good="parts").failed
adctl.train(good="parts", folds=5).calibration
adctl.train(good="parts", seed=[0, 1]).model
adctl.calibrate(max_false_alarm="0.1")
adctl.calibrate(method="magic")
adctl.score(3)
adctl.score("parts", heatmaps="yes")
adctl.score("parts", fail_on_anomaly=True)
adctl.score("parts").score
adctl.report(["a", "b"])
adctl.report("a", format="docx")
adctl.compare()
adctl.compare(["a", "b"], ci_level="high")
adctl.export(format=["onyx"])
adctl.bench(batch_sizes="1,4")
adctl.demo(data="parts")
adctl.fetch()
adctl.fetch("demo", "zipper")
adctl.fetch(source="usb").root
adctl.fetch_weights()
adctl.fetch_bundle("usb", wheels="no")
adctl.fetch_check(["parts"])
adctl.fetch_verify(force=True)
adctl.list_runs(limit="ten")
adctl.best_run(3)
adctl.tune(trials="many")
adctl.load("model", image="a.png")
adctl.load("model").predict(3)
adctl.load("model").predict("a.png")[0]
adctl.load("model").predict(["a.png"]).score
adctl.open_maps(3)
adctl.open_maps("a")[0.5]
adctl.trian(good="parts")
"""


def test_a_users_script_passes_mypy_and_wrong_calls_do_not(tmp_path):
    wrong = ["import adctl", *WRONG.strip().splitlines()]
    (tmp_path / "right.py").write_text(RIGHT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("\n".join(wrong), encoding="utf-8")
    # Results are of adctl, pathlib and numpy; reading the types of PyTorch and others would take half a minute.
    others = ",".join(f"{name}.*" for name in ("torch", "timm", "sklearn", "scipy", "pydantic", "optuna", "sqlalchemy"))
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{others}]\nfollow_imports = skip\n", encoding="utf-8")
    options = ["--strict", "--config-file=mypy.ini", "--cache-dir=cache", "--follow-imports=silent", "--no-pretty"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "right.py", "wrong.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    refused = re.findall(r"^(\w+\.py):(\d+): error: ", done.stdout, re.MULTILINE)
    accepted = set(range(2, len(wrong) + 1)) - {int(line) for file, line in refused if file == "wrong.py"}
    assert not accepted, [wrong[line - 1] for line in sorted(accepted)]
    assert {file for file, _ in refused} == {"wrong.py"}, done.stdout + done.stderr


# ---- predicting


def test_predictions_are_those_of_the_command_line(patchcore, images, tmp_path):
    options = ("--model", patchcore.model, "--out", "out", "--runtime", "torch", "--device", "cpu")
    threads = str(torch.get_num_threads())  # another number of threads rounds sums in another way
    CommandLine(tmp_path)("score", images[0].parent, *options, OMP_NUM_THREADS=threads)
    rows = ScoreSet.load(tmp_path / "out").rows
    model = adctl.load(patchcore.model, runtime="torch", device="cpu")
    predictions = model.predict(images)
    assert [prediction.path for prediction in predictions] == images
    for prediction, row in zip(predictions, rows, strict=True):
        same(prediction, row)
        assert prediction.map.shape == (row.height, row.width)
        assert prediction.map.dtype == np.float32
        assert prediction.cells.max() == row.peak
    assert model.predict(str(images[2])).score == pytest.approx(rows[2].score, rel=1e-6)


def test_arrays_are_scored_as_files(patchcore, images):
    model = adctl.load(patchcore.model, device="cpu")
    assert (model.arch, model.runtime, model.device) == ("patchcore", "torch", "cpu")
    files = model.predict(images)
    arrays = model.predict([read_image(path) for path in images])
    for file, array in zip(files, arrays, strict=True):
        assert array.path is None
        assert array.score == pytest.approx(file.score, rel=1e-6)
    grey = read_image(images[0])[..., 0]
    white = grey.astype(np.float32) / 255
    expected = [pytest.approx(files[0].score, rel=1e-6)] * 3
    assert [model.predict(one).score for one in (grey, grey[..., None], white)] == expected
    assert model.predict([]) == []


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((64, 64, 4), np.uint8), r"its shape is \[64, 64, 4\]"),
        (np.zeros((2, 64, 64, 3), np.uint8), r"its shape is \[2, 64, 64, 3\]"),
        (np.zeros((8, 64, 3), np.uint8), "each side must have at least 16"),
        (np.full((64, 64, 3), 9.0), "not within 0 to 1"),
        (np.zeros((64, 64, 3), np.int64), "no defined white level"),
        ("nowhere.png", "does not exist"),
        (3.5, "not a path or an array"),
        (None, "not a path or an array"),
    ],
)
def test_images_that_cannot_be_used_are_refused(patchcore, images, image, says):
    model = adctl.load(patchcore.model, device="cpu")
    for given in (image, [images[0], image]):
        with pytest.raises((ImageError, UsageError), match=says):
            model.predict(given)


def test_a_model_predicts_with_the_views_of_its_calibration(patchcore, images, tmp_path):
    out = tmp_path / "tta.safetensors"
    calibrated = adctl.calibrate(model=patchcore.model, folds=2, tta=["hflip", "vflip"], out=out)
    rows = adctl.score(images[0].parent, model=calibrated.model, out=tmp_path / "out", heatmaps=False)
    for prediction, row in zip(adctl.load(calibrated.model).predict(images), rows, strict=True):
        same(prediction, row)
    plain = adctl.load(patchcore.model).predict(images)
    assert [row.score for row in rows] != [prediction.score for prediction in plain]


def test_a_model_of_tiles_predicts_tile_by_tile(zippers, images, tmp_path):
    trained = adctl.train(
        data=zippers, image_size=64, options={"tile": 64}, runs=tmp_path / "runs", name="tiles", device="cpu"
    )
    rows = adctl.score(images, model="tiles", runs=tmp_path / "runs", heatmaps=False)
    model = adctl.load("tiles", runs=tmp_path / "runs")
    assert model.path == trained.model
    for prediction, row in zip(model.predict(images), rows, strict=True):
        same(prediction, row)
        np.testing.assert_array_equal(prediction.map, row.map())


def test_an_exported_file_predicts_without_torch(patchcore, images, tmp_path):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    adctl.export(images, model=patchcore.model, out=out)
    rows = list(adctl.score(images, model=out, out=tmp_path / "out", heatmaps=False))
    program = (
        "import json, sys, adctl; predictions = adctl.load(sys.argv[1]).predict(sys.argv[2:]); "
        "print(json.dumps([one.score for one in predictions])); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(out), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [row.score for row in rows]


# ---- rows and maps


def test_a_score_result_gives_rows_and_maps(scored, images):
    assert len(scored) == len(images)
    assert [Path(row.path) for row in scored] == images
    stored = dict(ScoreSet.load(scored.folder).maps())
    for number, row in enumerate(scored):
        anomaly_map = row.map()
        assert anomaly_map.shape == (row.height, row.width)
        assert anomaly_map.max() <= row.peak == stored[number].max()
        assert len(repr(row)) < 1000


def test_maps_are_found_by_path_key_and_number(scored, images):
    stored = dict(ScoreSet.load(scored.folder).maps())
    with adctl.open_maps(scored.folder) as maps:
        assert list(maps) == [str(path) for path in images]
        for number, path in enumerate(images):
            for image in (number, path, str(path), path.name):
                np.testing.assert_array_equal(maps[image], stored[number])
        assert str(images[0]) in maps
        for absent in ("nowhere.png", 99, -1):
            with pytest.raises(KeyError):
                maps[absent]
    np.testing.assert_array_equal(adctl.open_maps(scored.folder / MAPS)[0], stored[0])


def test_maps_of_one_size_from_before_tiles_open(scored, tmp_path):
    for name in ("scores.json", "results.jsonl"):
        (tmp_path / name).write_bytes((scored.folder / name).read_bytes())
    values = np.random.default_rng(0).random((len(scored), 4, 5), np.float32)
    with h5py.File(tmp_path / MAPS, "w") as file:
        file["maps"], file["rows"] = values, np.arange(len(scored))
    with adctl.open_maps(tmp_path) as maps:
        np.testing.assert_array_equal(maps[2], values[2])


def test_rows_without_a_map_say_why(patchcore, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(images[0].read_bytes())
    (folder / "b.png").write_bytes(b"no image")
    good, bad = adctl.score(folder, model=patchcore.model, out=tmp_path / "out", heatmaps=False)
    assert good.map().shape == (good.height, good.width)
    with pytest.raises(DataError, match=r"b\.png has no anomaly map"):
        bad.map()
    with adctl.open_maps(tmp_path / "out") as maps:
        assert (len(maps), list(maps)) == (1, [good.path])
    (row, _) = adctl.score(folder, model=patchcore.model, out=tmp_path / "none", maps=False, heatmaps=False)
    with pytest.raises(UsageError, match="holds no anomaly maps"):
        row.map()
    with pytest.raises(UsageError, match="holds no anomaly maps"):
        adctl.open_maps(tmp_path / "none")


def test_a_watched_folder_gives_the_rows_of_each_call(patchcore, images, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    watch = {"model": patchcore.model, "watch": inbox, "out": tmp_path / "out", "settle": 0, "heatmaps": False}
    for number in (0, 1):
        (inbox / f"{number}.png").write_bytes(images[number].read_bytes())
        result = adctl.score(**watch, watch_idle=0.5)
        assert [Path(row.path).name for row in result] == [f"{number}.png"]
    assert list(adctl.score(**watch, watch_for=0.1)) == []


# ---- other functions


def test_fetching_from_python(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path / "data"))
    fetched = adctl.fetch("demo", category="zipper")
    assert fetched.root.is_dir()
    assert all(result.intact for result in adctl.fetch_verify("demo"))
    (checked,) = adctl.fetch_check(fetched.root / "zipper")
    assert checked.train_images > 0


def test_lists_stand_for_texts_with_commas(zippers, tmp_path):
    grid = adctl.train(
        data=zippers, arch=["padim"], seed=[0, 1], image_size=64, runs=tmp_path, name="grid", device="cpu"
    )
    assert isinstance(grid, adctl.GridResult)
    assert [row.seed for row in grid.rows] == [0, 1]
    report = adctl.report(tmp_path / "grid" / grid.rows[0].run / "test-scores", format=["md", "json"])
    assert {path.suffix for path in report.files} == {".md", ".json"}

"""Runtimes: the same contract for all, invalid files, and automatic selection."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, Exports, settings
from safetensors.numpy import load_file

from adctl.choices import EXPORT_FORMATS, RUNTIMES
from adctl.config import ExportSettings, load
from adctl.data.loader import load_image
from adctl.errors import AdctlError, MissingExtraError, ModelFileError, UsageError
from adctl.exporting.export import export, write_format
from adctl.exporting.graph import ExportSource
from adctl.fetching.demo_dataset import DEFECTS, render
from adctl.records import Sample
from adctl.runtimes import auto_select
from adctl.runtimes.auto_select import choose_runtime, read_parity_records, save_parity_record
from adctl.runtimes.loading import open_runtime
from adctl.training.single_run import train_once

torch = pytest.importorskip("torch")
for package in ("onnxruntime", "onnxscript", "openvino"):
    pytest.importorskip(package)

EXPORTED = sorted(one.runtime for one in EXPORT_FORMATS.values())
SUFFIXES = {name: RUNTIMES[name].suffix for name in EXPORTED}


@pytest.fixture(scope="module", params=["padim", "patchcore"])
def models(request, zippers, exports, tmp_path_factory):
    """A model and its exported file for each runtime."""
    if request.param != "patchcore":
        trained = train_once(settings(arch=request.param, data=zippers, runs=tmp_path_factory.mktemp("runs")))
        exports = Exports(trained.model, trained.run)
    return {"torch": exports.model, **{one.runtime: exports[name] for name, one in EXPORT_FORMATS.items()}}


def pixels_for(runtime, count=5):
    return np.random.default_rng(0).integers(0, 256, (count, *runtime.input.shape), np.uint8)


# ---- the contract


@pytest.mark.parametrize("name", EXPORTED)
def test_a_runtime_scores_as_torch_does(models, name):
    reference, runtime = open_runtime(models["torch"], "cpu"), open_runtime(models[name], "cpu")
    assert (runtime.name, runtime.device) == (name, "cpu")
    assert runtime.header == reference.header
    assert runtime.input == reference.input
    pixels = pixels_for(runtime)
    expected, found = reference.predict(pixels), runtime.predict(pixels)
    assert found.scores.shape == (5,)
    assert found.scores.dtype == np.float64
    assert found.maps.dtype == np.float32
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-3 * expected.maps.max())


@pytest.mark.parametrize("name", EXPORTED)
def test_a_runtime_says_the_same_whatever_the_batch(models, name):
    runtime = open_runtime(models[name], "cpu")
    pixels = pixels_for(runtime)
    together, again = runtime.predict(pixels), runtime.predict(pixels)
    np.testing.assert_array_equal(together.scores, again.scores)
    np.testing.assert_array_equal(together.maps, again.maps)
    for index in range(5):
        alone = runtime.predict(pixels[index : index + 1])
        np.testing.assert_allclose(alone.scores, together.scores[index : index + 1], rtol=1e-5)
        np.testing.assert_allclose(alone.maps[0], together.maps[index], rtol=1e-4, atol=1e-4 * together.maps.max())
    backwards = runtime.predict(pixels[::-1].copy())
    np.testing.assert_allclose(backwards.scores[::-1], together.scores, rtol=1e-5)


@pytest.mark.parametrize("name", ["torch", *EXPORTED])
def test_as_many_callers_as_a_runtime_names_do_not_disturb_each_other(models, name):
    runtime = open_runtime(models[name], "cpu")
    counts = [5, 1, 3, 8, 2, 7, 4, 6] * (20 if name == "openvino" else 1)  # callers share its requests
    batches = [pixels_for(runtime, count)[::-1].copy() for count in counts]
    with ThreadPoolExecutor(runtime.callers) as pool:  # also the first calls, which prepare the network
        together = list(pool.map(runtime.predict, batches))
    for batch, found in list(zip(batches, together, strict=True))[:8]:
        np.testing.assert_allclose(found.scores, runtime.predict(batch).scores, rtol=1e-5)


SHAPES = [
    ("patchcore", {"image_size": (96, 224)}),  # a replicated border
    ("padim", {"image_size": (96, 64), "options": {"resize": "pad"}}),  # and masked margins
]


@pytest.fixture(scope="module", params=SHAPES, ids=["wide", "masked"])
def shaped(request, tmp_path_factory):
    """A model of images that are not square, to export and to score, with the inputs [N,H,W,C] of some images."""
    folder = tmp_path_factory.mktemp("images")
    shapes = [(40, 96), (60, 96), (96, 50), (96, 96)]
    for number in range(24):
        height, width = shapes[number % 4]
        image = render((3, number), DEFECTS[number % len(DEFECTS)] if number >= 16 else None, size=96)[0]
        cv2.imwrite(str(folder / f"{number:02}.png"), image[:height, :width])
    arch, changes = request.param
    (folder / "good").mkdir()
    for number in range(16):
        (folder / f"{number:02}.png").rename(folder / "good" / f"{number:02}.png")
    trained = train_once(settings(arch=arch, good=folder / "good", runs=folder / "runs", **changes))
    spec = open_runtime(trained.model, "cpu").input
    files = [*sorted((folder / "good").glob("*.png")), *sorted(folder.glob("*.png"))]
    return (
        ExportSource.read(trained.model),
        trained.model,
        np.stack([load_image(Sample(file, file.name), spec).pixels for file in files]),
    )


@pytest.mark.parametrize("name", sorted(set(EXPORT_FORMATS) - {"onnx"}))  # other tests export it
def test_borders_and_masks_are_exported(shaped, name, tmp_path):
    source, model, pixels = shaped
    target = (tmp_path / "model").with_suffix(EXPORT_FORMATS[name].suffix)
    write_format(name, source, target)
    found, expected = (open_runtime(file, "cpu").predict(pixels[8:]) for file in (target, model))
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-3 * expected.maps.max())


def test_borders_and_masks_are_exported_in_eight_bits(shaped, tmp_path):
    source, model, pixels = shaped
    target = tmp_path / "model.xml"
    write_format("openvino", source, target, "int8", list(pixels[:16, None]))
    found, expected = (open_runtime(file, "cpu").predict(pixels[16:]).scores for file in (target, model))
    np.testing.assert_allclose(found, expected, rtol=0.15)  # of images that it did not learn


def test_openvino_reads_large_weights_once_for_several_images(models, monkeypatch):
    alone = open_runtime(models["openvino"], "cpu")
    monkeypatch.setattr("adctl.runtimes.openvino._LARGE", 0)
    together = open_runtime(models["openvino"], "cpu")
    for count in (2, 3, 4, 7, 9, 1):  # whole and part pieces, one after another in the same memory
        pixels = pixels_for(alone, count)[::-1].copy()
        expected, found = alone.predict(pixels), together.predict(pixels)
        assert found.maps.shape == expected.maps.shape
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-4, atol=1e-4 * expected.maps.max())


def test_the_very_first_callers_of_openvino_do_not_wait_for_each_other(models):
    program = (
        "import sys, threading, numpy, pathlib; from adctl.runtimes.loading import open_runtime; "
        "runtime = open_runtime(pathlib.Path(sys.argv[1]), 'cpu'); start = threading.Barrier(2); "
        "call = lambda: (start.wait(), runtime.predict(numpy.zeros((4, *runtime.input.shape), 'u1'))); "
        "callers = [threading.Thread(target=call) for _ in range(2)]; "
        "[caller.start() for caller in callers]; [caller.join() for caller in callers]"
    )
    for _ in range(4):  # where its types are not made ready, every third process hangs
        subprocess.run([sys.executable, "-c", program, str(models["openvino"])], check=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_searches_the_bank_in_eight_bits_and_finds_what_torch_does(patchcore, exports, precision, tmp_path):
    write_format("openvino", exports.source, tmp_path / "model.xml", precision)
    runtime = open_runtime(tmp_path / "model.xml", "cpu")
    (search,) = (node for node in runtime._model.get_ops() if node.get_type_name() == "FakeQuantize")
    products = [target.get_node() for target in search.output(0).get_target_inputs()]
    assert {node.get_type_name() for node in products} == {"Convolution"}
    bank = load_file(patchcore.model)["bank"]
    stored = [node.input_value(1).get_node().input_value(0).get_node().input_value(0).get_node() for node in products]
    np.testing.assert_array_equal(np.concatenate([node.data[:, :, 0, 0] for node in stored]), bank)
    assert {node.get_element_type().to_string() for node in stored} == {"i8"}
    weights = [node for node in runtime._model.get_ops() if node.get_type_name() == "Constant"]
    kept = {node.get_element_type().to_string() for node in weights if node.data.size > 1024}
    assert kept - {"i8"} == {"f32" if precision == "fp32" else "f16"}
    pixels = pixels_for(runtime, 8)
    expected = open_runtime(patchcore.model, "cpu").predict(pixels)
    np.testing.assert_allclose(
        runtime.predict(pixels).scores, expected.scores, rtol=1e-4 if precision == "fp32" else 0.01
    )


@pytest.mark.slow
def test_the_compiled_network_scores_the_same(models):
    reference = open_runtime(models["torch"], "cpu")
    runtime = open_runtime(models["torch"], "cpu", runtime="torch-compile")
    pixels = pixels_for(runtime)
    np.testing.assert_allclose(runtime.predict(pixels).scores, reference.predict(pixels).scores, rtol=1e-4)


# ---- files that are not what they should be


@pytest.mark.parametrize("name", EXPORTED)
def test_damaged_files_are_refused(models, name, tmp_path):
    path = tmp_path / f"model{SUFFIXES[name]}"
    content = models[name].read_bytes()
    if name == "openvino":
        shutil.copy(models[name].with_suffix(".bin"), path.with_suffix(".bin"))
    for damaged in (content[: len(content) // 2], b"", b"no model at all"):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=path.name):
            open_runtime(path, "cpu")
    path.unlink()
    with pytest.raises(ModelFileError, match="no model file"):
        open_runtime(path, "cpu")


def test_a_graph_without_its_weights_is_refused(models, tmp_path):
    shutil.copy(models["openvino"], tmp_path / "model.xml")
    with pytest.raises(ModelFileError, match=r"model\.bin"):
        open_runtime(tmp_path / "model.xml")


def test_foreign_files_are_refused(tmp_path):
    import openvino

    value = openvino.opset13.parameter([1], np.float32)
    foreign = openvino.Model([openvino.opset13.relu(value)], [value], "foreign")
    openvino.save_model(foreign, tmp_path / "model.xml")
    with pytest.raises(ModelFileError, match="not written by adctl"):
        open_runtime(tmp_path / "model.xml")


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize(
    "place", ["data/sample_inputs/model.pt", "data/constants/opaque_obj_0", "data/weights/model.pt"]
)
def test_an_archive_with_a_pickle_in_it_is_never_loaded(models, tmp_path, place):
    import pickle

    path, sprung = tmp_path / "model.pt2", tmp_path / "sprung"
    with zipfile.ZipFile(models["torch-export"]) as whole, zipfile.ZipFile(path, "w") as changed:
        for entry in whole.infolist():
            if not entry.filename.endswith(place):
                changed.writestr(entry.filename, whole.read(entry))
        changed.writestr(f"archive/{place}", pickle.dumps(Trap(sprung)))
    with pytest.raises(ModelFileError, match="would unpickle"):
        open_runtime(path, "cpu")
    assert not sprung.exists()


def test_torchscript_does_not_unpickle_as_python_does(models, tmp_path):
    import pickle

    path, sprung = tmp_path / "model.ts", tmp_path / "sprung"
    with zipfile.ZipFile(models["torchscript"]) as whole, zipfile.ZipFile(path, "w") as changed:
        for entry in whole.infolist():
            trap = entry.filename.endswith("/data.pkl")
            changed.writestr(entry.filename, pickle.dumps(Trap(sprung), 2) if trap else whole.read(entry))
    with pytest.raises(ModelFileError, match=r"model\.ts"):
        open_runtime(path, "cpu")
    assert not sprung.exists()


def test_what_we_write_holds_no_pickle(models):
    with zipfile.ZipFile(models["torch-export"]) as archive:
        assert not any(archive.read(entry)[:2] == b"\x80\x02" for entry in archive.infolist())


# ---- what is missing, and devices


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_package_is_named(models, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=name) as caught:
        open_runtime(models[name])
    assert f"adctl[{name}]" in caught.value.remedy


def test_the_best_provider_there_is():
    module = importlib.import_module("adctl.runtimes.onnx")
    cpu, cuda, tensorrt = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
    assert module._choose("auto", None, [cpu]) == ("cpu", [cpu])
    assert module._choose("auto", None, [tensorrt, cuda, cpu]) == (
        "cuda:0",
        [(tensorrt, {"device_id": 0}), (cuda, {"device_id": 0}), cpu],
    )
    assert module._choose("cuda", 1, [cuda, cpu]) == ("cuda:1", [(cuda, {"device_id": 1}), cpu])
    assert module._choose("cpu", None, [cuda, cpu]) == ("cpu", [cpu])
    with pytest.raises(UsageError, match="cuda:1"):
        module._choose("auto", 1, [cpu])


def test_openvino_computes_on_the_cpu_alone(models):
    with pytest.raises(UsageError, match="--gpu 0"):
        open_runtime(models["openvino"], gpu=0)


def test_names_and_endings_are_checked(models, tmp_path):
    with pytest.raises(UsageError, match="suffix of a model file") as caught:
        open_runtime(tmp_path / "model.zip")
    assert ".xml" in caught.value.remedy
    with pytest.raises(UsageError, match="Unknown runtime 'openvin'"):
        open_runtime(models["torch"], runtime="openvin")
    with pytest.raises(UsageError, match="for the runtime 'onnxruntime', not for 'openvino'"):
        open_runtime(models["onnxruntime"], runtime="openvino")


# ---- the choice


@pytest.fixture
def run(patchcore, tmp_path):
    """A copy of a run, nothing exported yet."""
    folder = tmp_path / "run"
    shutil.copytree(patchcore.model.parent, folder, ignore=shutil.ignore_patterns("*.onnx", "*.xml", "exports.json"))
    return folder / "model.safetensors"


def test_nothing_of_other_libraries_is_printed(run, adctl, zippers):
    image = zippers / "test" / "good" / "000.png"
    words = ("--model", run, "--runs", run.parent, "--int8", "--format", "openvino", "--quiet")
    done = adctl("export", image, *words, code=None)
    assert not done.stdout
    # In eight bits, so small a model may fail the verification.
    assert all(line.startswith(("error: ", "remedy: ")) for line in done.stderr.splitlines()), done.stderr


def exported(model, **changes):
    return export(load(ExportSettings, {"model": model, "runs": model.parent, **changes}))


def prefer(folder, **changes):
    """As if the one exported file had been three times as fast, whatever else ran at the time."""
    (proof,) = read_parity_records(folder)
    save_parity_record(folder, replace(proof, **({"images_per_second": 3.0, "torch_images_per_second": 1.0} | changes)))


def test_the_fastest_proved_runtime_is_chosen_and_told(run):
    assert choose_runtime(run).reason == "there are no exported files beside the model"
    (made,) = exported(run, format=("openvino",)).exports
    assert made.check.rank_correlation > 0.9999
    assert made.check.changed_verdicts == 0
    assert abs(made.check.auroc_change) <= 0.002
    prefer(run.parent)
    chosen = choose_runtime(run)
    assert (chosen.runtime, chosen.path.name) == ("openvino", "model.xml")
    assert "3.0 times as fast as torch" in chosen.reason
    runtime = open_runtime(run, runtime="auto")
    assert runtime.name == "openvino"
    prefer(run.parent, images_per_second=0.9)
    assert "not faster" in choose_runtime(run).reason
    assert open_runtime(run, runtime="auto").name == "torch"
    assert open_runtime(run, runtime="openvino").name == "openvino"
    assert open_runtime(run).name == "torch"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tensors": "0"}, "another model"),
        ({"precision": "int8"}, "is int8"),
        ({"equal": False}, "did not score the same"),
        ({"machine": "another"}, "export it again here"),
        ({"version": "0"}, "onnxruntime 0"),
        ({"sha256": "0"}, "was changed"),
    ],
)
def test_what_is_not_proved_here_is_not_chosen(run, changes, says):
    (run.parent / "model.onnx").write_bytes(b"")
    save_parity_record(run.parent, proof_of(run.parent))
    assert choose_runtime(run).runtime == "onnxruntime"
    save_parity_record(run.parent, proof_of(run.parent, **changes))
    assert choose_runtime(run).runtime == "torch"
    assert says in choose_runtime(run).reason
    save_parity_record(run.parent, proof_of(run.parent))
    assert "GPU" in choose_runtime(run, gpu=0).reason
    (run.parent / "exports.json").write_text("[]")
    assert "damaged" in choose_runtime(run).reason


def proof_of(folder, **changes):
    """As `adctl export` writes it, of the ONNX file in a folder."""
    proof = auto_select.ParityRecord(
        "model.onnx", auto_select.digest_of(folder / "model.onnx"),
        str(auto_select.tensors_digest(folder / "model.safetensors")),
        "onnxruntime", auto_select.version_of("onnxruntime"), "fp32", auto_select.this_machine(), True, 3.0, 1.0,
    )  # fmt: skip
    return replace(proof, **changes)


def test_new_thresholds_of_the_model_file_win(models, tmp_path):
    from adctl.model_file import read_header, recalibrate

    run = tmp_path / "model.safetensors"
    for name in ("torch", "onnxruntime"):
        shutil.copy(models[name], tmp_path)
    save_parity_record(tmp_path, proof_of(tmp_path))
    again = run.with_name("model-fixed.safetensors")
    recalibrate(run, again, replace(read_header(run).calibration, threshold=1e9))
    for model in (run, again):
        runtime = open_runtime(model, runtime="auto")
        assert runtime.name == "onnxruntime"
        assert runtime.header == read_header(model)


# ---- without torch


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_scoring_an_exported_file_imports_no_torch(models, zippers, tmp_path, name):
    program = (
        "import sys; from adctl.cli.app import run; "
        "code = run(sys.argv[1:]); "
        "print(code, *[name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])"
    )
    arguments = [
        "score",
        str(zippers / "test"),
        "--model",
        str(models[name]),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "0", done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert rows
    assert all(row["score"] is not None for row in rows)


# ---- exporting


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"half": True, "int8": True}, "cannot be combined"),
        ({"half": True, "format": ("torchscript",)}, "--half cannot be combined with --format torchscript"),
        ({"int8": True, "format": ("pt2",)}, "--int8 cannot be combined with --format pt2"),
        ({"format": ("openvino",), "out": Path("a.onnx")}, "does not match --format openvino"),
    ],
)
def test_flags_that_contradict_each_other(run, changes, says):
    with pytest.raises(UsageError, match=says):
        exported(run, **changes)


def test_a_model_outside_its_run_asks_for_images_that_export_takes(run, tmp_path):
    alone = shutil.copy(run, tmp_path)
    with pytest.raises(UsageError, match="not in the folder of its training run") as refused:
        exported(Path(alone), runs=tmp_path / "none")
    assert "adctl export DIR" in refused.value.remedy


def test_what_scores_differently_is_removed(run):
    with pytest.raises(AdctlError, match="differs from the model"):
        exported(run, format=("onnx",), half=True, tolerance=1e-12)
    assert not list(run.parent.glob("*.onnx"))
    assert not read_parity_records(run.parent)


def test_eight_bits_still_tell_good_from_defective(zippers, tmp_path):
    """At the size the images have: of the smaller ones of other tests eight bits leave too little."""
    run = train_once(settings(arch="patchcore", data=zippers, runs=tmp_path, image_size=96)).model
    made = exported(run, format=("onnx",), int8=True, tolerance=10).exports[0]
    assert (made.precision, made.file.name) == ("int8", "model-int8.onnx")
    assert made.check.rank_correlation > 0.7
    assert "is int8" in choose_runtime(run).reason

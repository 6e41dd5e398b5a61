"""Files changed at random: each still opens, or ends in an error that says what is wrong; nothing else is raised.

`FUZZ_FACTOR` multiplies the number of examples; `nox -s fuzz` sets it, and runs for about an hour.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from test_report import Maker

from adctl import run_folder
from adctl.calibration.calibration_scores import read_split
from adctl.choices import EXPORT_FORMATS
from adctl.config import ReportSettings, TrainSettings, load
from adctl.data.datasets.manifests import read_manifest
from adctl.datasets import dataset_of_run
from adctl.detectors.registry import detector_class
from adctl.engine import safetensors_file
from adctl.errors import AdctlError, DataError, ModelFileError
from adctl.fetching.store import read_provenance
from adctl.model_file import ModelHeader, load_model, read_header, recalibrate, tensors_digest
from adctl.reporting.report import report
from adctl.runtimes.auto_select import choose_runtime, digest_of, files_of, verify_export
from adctl.runtimes.loading import open_runtime
from adctl.runtimes.metadata import ExportOrigin, metadata_text, read_metadata
from adctl.scoring.score_set import ScoreSet
from adctl.training.resume import load_settings

MANY = int(os.environ.get("FUZZ_FACTOR", "1"))
ODD = (
    None,
    True,
    -1,
    0,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\udcff",
    "../x",
    "\0",
    [],
    [1],
    {},
    {"a": 1},
)


def seeds(count):
    return range(count * MANY)


def mutated(value, chance: random.Random):
    """A copy of parsed JSON with one value replaced, removed, added or nested deeply."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places:
        return chance.choice(ODD)
    owner, key = chance.choice(places)
    how = chance.randrange(5)
    if how == 0:
        del owner[key]
    elif how == 1 and isinstance(owner, dict):
        owner["unknown"] = chance.choice(ODD)
    elif how == 2 and isinstance(owner[key], int | float):
        owner[key] = owner[key] * chance.choice((-1, 10**9, 0, 1e-300))
    else:
        owner[key] = chance.choice(ODD)
    return value


def _places(value):
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """A copy with a few bytes flipped, cut out, doubled, or the end missing."""
    changed = bytearray(data)
    how = chance.randrange(4)
    start = chance.randrange(len(changed))
    end = start + chance.randrange(1, 64)
    if how == 0:
        for _ in range(chance.choice((1, 1, 8))):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif how == 1:
        del changed[start:]
    elif how == 2:
        del changed[start:end]
    else:
        changed[start:start] = changed[start:end]
    return bytes(changed)


def odd_text(text: str, seed: int) -> bytes:
    """JSON changed in its values, in its bytes, or replaced by something else."""
    chance = random.Random(seed)
    if seed % 3 == 0:
        return damaged_bytes(text.encode(), chance)
    if seed % 17 == 1:
        return chance.choice((b"", b"null", b"[]", b"3", b"[" * 99999, b'{"a":' * 99999, b"\xff\xfe", b"{}"))
    return json.dumps(mutated(json.loads(text), chance)).encode()


def is_told(call, *arguments):
    """Call; anything raised must be an error of adctl with message and remedy."""
    try:
        call(*arguments)
    except AdctlError as error:
        told = error
    else:
        return False
    assert told.message
    assert told.remedy
    return True


def with_header(data: bytes, text: str) -> bytes:
    """A model file with another header text and without checksums, as adctl 0.1 wrote it."""
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    table["__metadata__"] = {"adctl": text}
    new = json.dumps(table).encode()
    return struct.pack("<Q", len(new)) + new + data[8 + length :]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    maker = Maker(tmp_path_factory.mktemp("scored"))
    for number in range(3):
        maker.add("good", 1.0 + number).add("hole", 4.0 + number)
    return maker.error().scores().folder


def test_headers_of_models(patchcore, tmp_path):
    path = tmp_path / "model.safetensors"
    text = json.dumps(safetensors_file.read_header(patchcore.model))
    small = {"bank": np.zeros((2, 2), np.int8)}
    from safetensors.numpy import save

    data = save(small)
    told = 0
    for seed in seeds(600):
        odd = odd_text(text, seed).decode("utf-8", "replace")
        path.write_bytes(with_header(data, odd))
        told += is_told(read_header, path)
    assert told > 300 * MANY


@pytest.mark.parametrize(
    "header", ["[]", "null", "3", '"x"', "[" * 99999, '{"format": 2, "arch": []}', '{"format": []}']
)
def test_headers_that_are_no_headers(header, tmp_path):
    from safetensors.numpy import save

    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(save({"a": np.zeros(2)}), header))
    with pytest.raises(ModelFileError, match="header") as caught:
        read_header(path)
    assert str(path) in caught.value.message


def test_flipped_bits_are_found(patchcore, tmp_path):
    data, path = patchcore.model.read_bytes(), tmp_path / "model.safetensors"
    start = 8 + struct.unpack("<Q", data[:8])[0]
    chance = random.Random(7)
    for number in seeds(40):
        changed = bytearray(data)
        place = chance.randrange(start, len(data)) if number % 4 else chance.randrange(start)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ModelFileError):
            load_model(path)


def test_recalibrating_keeps_the_checksums_of_tensors(patchcore, tmp_path):
    made = tmp_path / "model.safetensors"
    calibration = read_header(patchcore.model).calibration
    recalibrate(patchcore.model, made, calibration)
    assert tensors_digest(made) == tensors_digest(patchcore.model)
    data = bytearray(made.read_bytes())
    data[-1] ^= 1
    made.write_bytes(data)
    with pytest.raises(ModelFileError, match="checksum"):
        load_model(made)


def test_files_without_checksums_open_with_a_note(patchcore, tmp_path, caplog):
    path = tmp_path / "model.safetensors"
    header = safetensors_file.read_header(patchcore.model)
    path.write_bytes(with_header(patchcore.model.read_bytes(), json.dumps(header)))
    with caplog.at_level("INFO"):
        load_model(path)
    assert "no checksums" in caplog.text


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("centre", lambda value: value.double(), "float64"),
        ("centre", lambda value: value.long(), "int64"),
        ("centre", lambda value: value > 0, "bool"),
        ("centre", lambda value: value.sum(), "shape"),
        ("centre", lambda value: value[:1], "shape"),
        ("spread", lambda value: value + float("inf"), "finite"),
        ("spread", lambda value: value * float("nan"), "finite"),
        ("spread", lambda value: value * 0, "positive"),
        ("scales", lambda value: value[1:], "shape"),
        ("bank", lambda value: value.float(), "float32"),
        ("bank", lambda value: value[:, :1], "shape"),
        ("bank", lambda value: value[:0], "empty"),
    ],
)
def test_tensors_that_contradict_the_detector_are_refused(patchcore, tmp_path, name, change, reason):
    tensors, header = safetensors_file.read(patchcore.model)
    path = tmp_path / "model.safetensors"
    safetensors_file.write(path, tensors | {name: change(tensors[name])}, header)
    with pytest.raises(ModelFileError, match=reason) as caught:
        load_model(path)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("arch", "options", "name", "change"),
    [
        ("cnn", {"normalisation": "dataset"}, "normalise.std", lambda value: value * 0),
        ("cnn", {"normalisation": "dataset"}, "normalise.std", lambda value: -value),
        ("simplenet", {}, "scales", lambda value: torch.stack([value[0], value[1] * 0])),
        ("simplenet", {}, "scales", lambda value: value[:1]),
        ("simplenet", {}, "backbone.std", lambda value: -value),
        ("simplenet", {}, "discriminator.1.running_var", lambda value: value - 2),
        ("padim", {"covariance": "shared"}, "whitening", lambda value: -value),
        ("vit", {}, "order", lambda value: value * 0),
        ("vit", {}, "order", lambda value: value + 1),
    ],
)
def test_statistics_that_contradict_each_other_are_refused(arch, options, name, change):
    cls = detector_class(arch)
    detector = cls(cls.Config(image_size=32, **options))
    tensors = detector.state_dict()
    if arch in ("padim", "simplenet"):
        places, kept = math.prod(detector.grid), detector.dimensions
        shapes = {"projection": (detector.channels, kept), "mean": (places, kept), "whitening": (places, kept, kept)}
        shapes["whitening"] = shapes["whitening"][: 2 if options else 3]
        tensors |= {one: torch.ones(shape) for one, shape in shapes.items()}
    detector.load_state(tensors)
    with pytest.raises(ModelFileError, match=name) as caught:
        detector.load_state(tensors | {name: change(tensors[name])})
    assert caught.value.remedy


def test_exported_metadata(patchcore, tmp_path):
    header = read_header(patchcore.model)
    text = metadata_text(header, ExportOrigin("ab" * 32, "fp32"))
    assert read_metadata(text, tmp_path)[0] == header
    for seed in seeds(300):
        is_told(read_metadata, odd_text(text, seed).decode("utf-8", "replace"), tmp_path)


@pytest.mark.parametrize(
    "name", ["run.json", "split.json", "settings.json", "last.json", "exports.json", "fetched.json"]
)
def test_documents_of_runs(patchcore, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(patchcore.model.parent, run)
    document = run / name
    extra = {
        "last.json": {"model": "run/model.safetensors", "scores": "run"},
        "exports.json": {"schema": "adctl.exports/1", "exports": [EXPORT]},
        "fetched.json": {"categories": {"zipper": {"urls": ["a"], "sha256": "b", "bytes": 1, "verified": True}}},
    }
    settings = load(TrainSettings, {"resume": run})
    readers = {
        "run.json": lambda: dataset_of_run(run),
        "split.json": lambda: read_split(run / "model.safetensors", run.parent),
        "settings.json": lambda: load_settings(run, settings),
        "last.json": lambda: run_folder.get_last(run, "model"),
        "exports.json": lambda: (choose_runtime(run / "model.safetensors", "cpu"), verify_export(run / "model.onnx")),
        "fetched.json": lambda: read_provenance(run),
    }
    text = json.dumps(extra[name]) if name in extra else document.read_text(encoding="utf-8")
    for seed in seeds(120):
        document.write_bytes(odd_text(text, seed))
        is_told(readers[name])


EXPORT = {
    "file": "model.onnx",
    "sha256": "ab",
    "tensors": "cd",
    "runtime": "onnxruntime",
    "version": "1",
    "precision": "fp32",
    "machine": "m",
    "equal": True,
    "images_per_second": 2.0,
    "torch_images_per_second": 1.0,
}


def _report(folder):
    report(load(ReportSettings, {"scores": folder, "ci_samples": 100, "out": folder / "page.html", "overwrite": True}))


@pytest.mark.parametrize("name", ["scores.json", "results.jsonl"])
def test_scores_and_rows(scored, tmp_path, name):
    folder = tmp_path / "scored"
    shutil.copytree(scored, folder)
    text = (folder / name).read_text(encoding="utf-8")
    for seed in seeds(150):
        if name == "scores.json":
            (folder / name).write_bytes(odd_text(text, seed))
        else:
            lines = text.encode().split(b"\n")
            place = random.Random(seed).randrange(len(lines) - 1)
            lines[place] = odd_text(lines[place].decode(), seed)
            (folder / name).write_bytes(b"\n".join(lines))
        if not is_told(ScoreSet.load, folder) and seed % 5 == 0:
            is_told(_report, folder)


def test_a_report_on_odd_values_of_known_names_says_so(scored, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(scored, folder)
    manifest = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    for images in (7, {"value": 7}, {"value": None}, None):
        manifest["settings"] = {"images": images}
        (folder / "scores.json").write_text(json.dumps(manifest), encoding="utf-8")
        is_told(_report, folder)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("mask", "path"):
        changed = [row | {name: "a\0.png"} for row in rows]
        (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
        is_told(_report, folder)


def test_a_report_on_removed_rows_says_so(scored, tmp_path):
    folder = tmp_path / "scored"
    shutil.copytree(scored, folder)
    lines = (folder / "results.jsonl").read_bytes().split(b"\n")
    for kept in (0, 1, len(lines) - 2):
        (folder / "results.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[:kept]))
        with pytest.raises(DataError, match=r"results\.jsonl"):
            _report(folder)


def _swap(stored, name, value):
    del stored[name]
    if value is not None:
        stored[name] = value


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: _swap(stored, "maps", None),
        lambda stored: _swap(stored, "rows", None),
        lambda stored: _swap(stored, "maps", np.zeros((6, 8), np.float32)),
        lambda stored: _swap(stored, "maps", np.zeros((6, 8, 8), np.int32)),
        lambda stored: _swap(stored, "maps", np.full((6, 8, 8), "x", "S4")),
        lambda stored: _swap(stored, "rows", np.arange(6) + 3),
        lambda stored: _swap(stored, "rows", np.zeros(6, int)),
        lambda stored: _swap(stored, "rows", np.float64(3)),
        lambda stored: _swap(stored, "rows", np.arange(99)),
        lambda stored: _swap(stored, "sizes", np.zeros((6, 2), int)),
        lambda stored: _swap(stored, "sizes", np.full((6, 2), 99)),
        lambda stored: _swap(stored, "sizes", np.zeros(3, int)),
        lambda stored: (_swap(stored, "maps", None), stored.create_group("maps")),
        lambda stored: (
            _swap(stored, "maps", None),
            stored.create_dataset("maps", (6, 10**6, 10**6), "f4", chunks=True),
        ),
    ],
)
def test_a_report_on_damaged_maps_says_so(scored, tmp_path, damage):
    folder = tmp_path / "scored"
    shutil.copytree(scored, folder)
    with h5py.File(folder / "maps.h5", "r+") as stored:
        damage(stored)
    with pytest.raises(DataError, match=r"maps\.h5") as caught:
        _report(folder)
    assert caught.value.remedy


def test_bytes_of_maps(scored, tmp_path):
    folder = tmp_path / "scored"
    shutil.copytree(scored, folder)
    data = (folder / "maps.h5").read_bytes()
    for seed in seeds(60):
        (folder / "maps.h5").write_bytes(damaged_bytes(data, random.Random(seed)))
        is_told(lambda: list(ScoreSet.load(folder).maps()))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_manifests(tmp_path, suffix):
    (tmp_path / "a.png").write_bytes(b"")
    rows = [{"path": "a.png", "split": "train", "label": "good", "mask": "a.png", "category": "x"}]
    path = tmp_path / f"list{suffix}"
    for seed in seeds(300):
        if suffix == ".csv":
            path.write_bytes(damaged_bytes(b"path,split,label\na.png,train,good\n", random.Random(seed)))
        else:
            path.write_bytes(odd_text(json.dumps(rows[0]), seed))
        is_told(read_manifest, path)


CONFIGS = {
    ".toml": "batch_size = 4\n[train]\narch = 'padim'\n[train.options]\nridge = 0.1\n",
    ".yaml": "batch_size: 4\ntrain:\n  arch: padim\n  options: {ridge: 0.1}\n",
    ".json": '{"batch_size": 4, "train": {"arch": "padim", "options": {"ridge": 0.1}}}',
}


@pytest.mark.parametrize("suffix", CONFIGS)
def test_configs(tmp_path, suffix):
    path = tmp_path / f"settings{suffix}"
    for seed in seeds(200):
        data = CONFIGS[suffix]
        path.write_bytes(
            odd_text(data, seed) if suffix == ".json" else damaged_bytes(data.encode(), random.Random(seed))
        )
        is_told(load, TrainSettings, {"config": path})
    for deep in (
        "[" * 99999,
        "a: " + "[" * 9999,
        '{"a":' * 99999,
        "a = " + "[" * 9999,
        "? " * 9999,
        "1: 2",
        "[[1]]: 3",
    ):
        path.write_text(deep)
        assert is_told(load, TrainSettings, {"config": path})


def test_header_of_a_model_round_trips(patchcore):
    header = read_header(patchcore.model)
    assert ModelHeader.from_dict(json.loads(json.dumps(header.to_dict())), patchcore.model) == header


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
def test_bytes_of_exported_files_with_a_checksum(exports, tmp_path, kind):
    for file in files_of(exports[kind]):
        shutil.copy(file, tmp_path)
    path = tmp_path / exports[kind].name
    record = EXPORT | {"file": path.name, "sha256": digest_of(path)}
    (tmp_path / "exports.json").write_text(json.dumps({"schema": "adctl.exports/1", "exports": [record]}))
    verify_export(path)
    for file in files_of(path):
        data = file.read_bytes()
        for seed in seeds(20):
            file.write_bytes(damaged_bytes(data, random.Random(seed)))
            if file.read_bytes() != data:
                with pytest.raises(ModelFileError, match="checksum"):
                    open_runtime(path, "cpu")
        file.write_bytes(data)


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_bytes_of_archives_without_a_record(exports, tmp_path, kind):
    path = tmp_path / exports[kind].name
    data = exports[kind].read_bytes()
    told = 0
    for seed in seeds(25):
        path.write_bytes(damaged_bytes(data, random.Random(seed)))
        told += is_told(open_runtime, path, "cpu")
    assert told > 20 * MANY


_OPEN = """
import sys
from adctl.errors import AdctlError
from adctl.runtimes.loading import open_runtime
from pathlib import Path
for path in map(Path, sys.argv[1:]):
    try:
        open_runtime(path, "cpu")
    except AdctlError as error:
        assert error.message and error.remedy
"""


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_bytes_of_graphs_without_a_record(exports, tmp_path, kind):
    paths = []
    for seed in seeds(15):
        for file in files_of(exports[kind]):
            copy = tmp_path / f"{seed}{file.suffix}"
            copy.write_bytes(file.read_bytes())
        paths.append(tmp_path / f"{seed}{exports[kind].suffix}")
        paths[-1].write_bytes(damaged_bytes(paths[-1].read_bytes(), random.Random(seed)))
    # In a process of their own, since their libraries are not Python.
    done = subprocess.run([sys.executable, "-c", _OPEN, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

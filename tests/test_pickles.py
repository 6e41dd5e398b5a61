"""Nothing is ever unpickled: each file here would leave a trace if it were, through the command that reads it."""

from __future__ import annotations

import pickle
import shutil
import zipfile

import h5py
import numpy as np
import pytest
import torch
from test_report import Maker

from adctl.cli.app import run
from adctl.data.images import write_png


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The object to hide; the trace must not be there after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path / "data"))
    sprung = tmp_path / "sprung"
    hidden = Trap(sprung)
    pickle.loads(pickle.dumps(hidden)).close()
    assert sprung.exists()  # the trap works
    sprung.unlink()
    yield hidden
    assert not sprung.exists()


def refused(*arguments, capsys):
    """Run a command; it fails with a message, and not as an internal error."""
    code = run([str(argument) for argument in arguments])
    told = capsys.readouterr().err
    assert code in (1, 2, 3), told
    assert "error:" in told.lower()
    assert "Traceback" not in told
    assert "Internal error" not in told
    return told


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_weights(trap, zippers, tmp_path, capsys, suffix, legacy):
    path = tmp_path / f"weights{suffix}"
    torch.save({"weight": trap}, path, _use_new_zipfile_serialization=not legacy)
    training = ("train", "--arch", "padim", "--data", zippers, "--image-size", 64, "--device", "cpu", "--quiet")
    refused(*training, "--weights", path, capsys=capsys)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".xml", ".ts", ".pt2"])
@pytest.mark.parametrize("packed", ["plain", "zip", "torch"])
def test_models(trap, zippers, tmp_path, capsys, suffix, packed):
    path = tmp_path / f"model{suffix}"
    data = pickle.dumps(trap, 2)
    if packed == "zip":
        names = {"model__data_DOT_pkl": data, "model__version": b"3", "model__byteorder": b"little"}
        names |= {"model__archive_format": b"pt2", "model__data__weights__model_DOT_pt": data}
        zip_of(path, **names)
    elif packed == "torch":
        torch.save(trap, path)
    else:
        path.write_bytes(data)
    if suffix == ".xml":
        path.with_suffix(".bin").write_bytes(data)
    refused("score", zippers / "test", "--model", path, "--out", tmp_path / "out", "--device", "cpu", capsys=capsys)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".png"])
def test_images(trap, patchcore, tmp_path, capsys, suffix):
    path = tmp_path / "images" / f"odd{suffix}"
    path.parent.mkdir()
    hidden = np.array([[trap] * 40] * 40, object)
    with path.open("wb") as stream:
        if suffix == ".npz":
            np.savez(stream, image=hidden)
        elif suffix == ".npy":
            np.save(stream, hidden, allow_pickle=True)
        else:
            stream.write(pickle.dumps(trap))
    code = run(["score", str(path), "--model", str(patchcore.model), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert code in (1, 2, 3)
    assert "Traceback" not in capsys.readouterr().err


def test_data_in_archives(trap, tmp_path, capsys):
    data = pickle.dumps(trap)
    with (tmp_path / "odd.npy").open("wb") as stream:
        np.save(stream, np.array([trap] * 3, object), allow_pickle=True)
    odd = (tmp_path / "odd.npy").read_bytes()
    names = ("good__a_DOT_joblib", "good__b_DOT_pkl", "train__good__c_DOT_png")
    path = zip_of(tmp_path / "set.zip", **dict.fromkeys(names, data), train__good__d_DOT_npy=odd)
    refused("train", "--arch", "padim", "--data", path, "--image-size", 64, "--device", "cpu", "--quiet", capsys=capsys)
    refused("train", "--arch", "padim", "--data", tmp_path / "odd.npy", "--device", "cpu", capsys=capsys)


def test_data_in_hdf5(trap, tmp_path, capsys):
    data = np.void(pickle.dumps(trap))
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as stored:
        for number in range(10):
            stored[f"train/good/{number}.png"] = data
            stored[f"train/good/{number}.png"].attrs["label"] = data
        stored.create_dataset("images", (3,), dtype=h5py.vlen_dtype(np.uint8))[0] = np.frombuffer(data, np.uint8)
        stored.attrs["pickle"] = data
    refused("train", "--arch", "padim", "--data", path, "--image-size", 64, "--device", "cpu", "--quiet", capsys=capsys)


@pytest.mark.parametrize(
    "text",
    [
        "train: !!python/object/apply:builtins.open [sprung, w]",
        "!!python/object/new:os.system [touch sprung]",
        "arch: !!python/name:os.system",
        "options: !!python/object:test_pickles.Trap {path: sprung}",
    ],
)
def test_settings(trap, zippers, tmp_path, capsys, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert "settings.yaml" in refused("train", "--data", zippers, "--config", path, capsys=capsys)
    path = tmp_path / "settings.pkl"
    path.write_bytes(pickle.dumps(trap))
    assert "unknown ending" in refused("train", "--data", zippers, "--config", path, capsys=capsys)


@pytest.mark.parametrize("place", ["maps", "rows", "attributes", "file", "scores.json", "results.jsonl"])
def test_reports(trap, tmp_path, capsys, place):
    folder = Maker(tmp_path / "made").add("good", 1.0).add("hole", 4.0).scores().folder
    data = pickle.dumps(trap)
    if place == "file":
        (folder / "maps.h5").write_bytes(data)
    elif place.endswith(("json", "jsonl")):
        (folder / place).write_bytes(data)
    else:
        with h5py.File(folder / "maps.h5", "r+") as stored:
            if place == "attributes":
                stored.attrs["pickle"] = stored["maps"].attrs["pickle"] = np.void(data)
            else:
                del stored[place]
                stored[place] = np.array([np.void(data)] * 2)
    if place == "attributes":
        assert run(["report", str(folder)]) == 0
    else:
        refused("report", folder, capsys=capsys)


def test_calibration(trap, patchcore, tmp_path, capsys):
    good = tmp_path / "good"
    good.mkdir()
    write_png(good / "a.png", np.zeros((64, 64, 3), np.uint8))
    (good / "b.npy").write_bytes(pickle.dumps(trap))
    folder = tmp_path / "run"
    shutil.copytree(patchcore.model.parent, folder)
    model = folder / "model.safetensors"
    for name in ("run.json", "split.json", "settings.json"):
        (folder / name).write_bytes(pickle.dumps(trap))
    assert ".json is damaged" in refused("calibrate", "--model", model, "--folds", 2, "--device", "cpu", capsys=capsys)
    model.write_bytes(pickle.dumps(trap))
    refused("calibrate", "--model", model, "--good", good, "--device", "cpu", capsys=capsys)

"""Bundles of datasets, weights and wheels: created on one machine, installed offline on another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture
def index(tmp_path):
    """A package index of one tiny wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "x = 1\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


@pytest.fixture
def weights(adctl):
    """Weights that were fetched before."""
    import timm
    from safetensors.torch import save_file

    folder = adctl.folder / "data" / "weights"
    folder.mkdir(parents=True)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "test_resnet.safetensors")
    from adctl.files import sha256_file

    record = {
        "name": "test_resnet", "sha256": sha256_file(folder / "test_resnet.safetensors"), "licence": "apache-2.0",
        "bytes": (folder / "test_resnet.safetensors").stat().st_size, "verified": True, "url": "https://x/model",
    }  # fmt: skip
    (folder / "test_resnet.json").write_text(json.dumps(record))


def test_a_bundle_brings_everything_to_a_closed_machine(adctl, index, weights):
    made = adctl.json("fetch", "bundle", "out", "--requirement", "tiny", **index)["result"]
    assert made["datasets"] == {}
    assert made["weights"] == ["test_resnet"]
    out = adctl.folder / "out"
    assert {path.name for path in out.iterdir()} == {
        "bundle.json", "INSTALL.txt", "SHA256SUMS", "weights", "wheels",
    }  # fmt: skip
    assert [path.name for path in (out / "wheels").iterdir()] == ["tiny-1.0-py3-none-any.whl"]
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out, check=False, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert "pip install --no-index --find-links wheels 'tiny'" in (out / "INSTALL.txt").read_text()
    installed = adctl.folder / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links", "wheels", "--target", installed,
         "tiny"], cwd=out, check=True,
    )  # fmt: skip
    assert (installed / "tiny.py").exists()

    closed = {"ADCTL_DATA_DIR": str(adctl.folder / "closed"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    came = adctl.json("fetch", "--from", "out", **closed)["result"]
    assert came["digest"] == made["digest"]
    assert came["weights"][0]["verified"]
    states = adctl.json("fetch", "--verify", **closed)["result"]
    assert {state["name"]: state["intact"] for state in states} == {"weights/test_resnet": True}


@pytest.fixture
def parts(adctl, tmp_path):
    """A data set that was fetched from a folder, and the bundle of it."""
    folder = tmp_path / "zipper"
    for place in ("train/good/0.png", "test/good/0.png"):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_bytes(place.encode())
    adctl("fetch", "mvtec", "--category", "zipper", "--from", folder, "--accept-license")
    text = adctl("fetch", "bundle", "out", "--include", "mvtec/zipper", "--no-wheels").stdout
    assert "adctl fetch --from . --accept-license" in text
    return adctl.folder / "out"


def test_a_data_set_comes_out_of_a_bundle_as_it_went_in(adctl, parts):
    closed = {"ADCTL_DATA_DIR": str(adctl.folder / "closed")}
    refused = adctl("fetch", "--from", parts, code=2, **closed)
    assert "CC BY-NC-SA 4.0" in refused.stderr
    adctl("fetch", "--from", parts, "--accept-license", **closed)
    there, here = (adctl.folder / name / "mvtec" for name in ("closed", "data"))
    assert (there / "zipper" / "digests.sha256").read_text() == (here / "zipper" / "digests.sha256").read_text()
    assert json.loads((there / "fetched.json").read_text()) == json.loads((here / "fetched.json").read_text())
    one = {"ADCTL_DATA_DIR": str(adctl.folder / "one")}
    adctl("fetch", "mvtec", "--category", "zipper", "--from", parts, "--accept-license", **one)
    assert (adctl.folder / "one" / "mvtec" / "zipper" / "train" / "good" / "0.png").exists()
    lacking = adctl("fetch", "mvtec", "--category", "cable", "--from", parts, "--accept-license", code=1, **one)
    assert "does not contain cable" in lacking.stderr


@pytest.mark.parametrize("name", ["datasets/mvtec/zipper.tar", "bundle.json"])
def test_a_damaged_bundle_is_refused_by_name(adctl, parts, name):
    with (parts / name).open("ab") as stream:
        stream.write(b" ")
    closed = {"ADCTL_DATA_DIR": str(adctl.folder / "closed")}
    for what in ([], ["mvtec"]):
        refused = adctl("fetch", *what, "--from", parts, "--accept-license", code=1, **closed)
        assert name in refused.stderr
    assert not (adctl.folder / "closed" / "mvtec" / "zipper").exists()


def test_what_cannot_be_bundled_is_said(adctl, index, tmp_path):
    assert "nothing to bundle" in adctl("fetch", "bundle", "out", "--no-wheels", code=2).stderr
    assert "--accept-license" in adctl("fetch", "bundle", "out", "--include", "mvtec", "--no-wheels", code=2).stderr
    assert (
        "pip could not collect" in adctl("fetch", "bundle", "out", "--requirement", "none-such", code=1, **index).stderr
    )
    assert not (adctl.folder / "out").exists()
    (adctl.folder / "full").mkdir()
    (adctl.folder / "full" / "x").write_text("x")
    assert "exists already" in adctl("fetch", "bundle", "full", "--requirement", "tiny", code=1, **index).stderr
    assert "is not a bundle" in adctl("fetch", "--from", "full", code=2).stderr


def test_verify_says_by_its_exit_code_that_something_changed(adctl):
    adctl("fetch", "demo")
    assert "intact" in adctl("fetch", "--verify", "demo").stdout
    next((adctl.folder / "data" / "demo" / "zipper" / "train" / "good").iterdir()).unlink()
    told = adctl("fetch", "--verify", code=1).stdout
    assert "1 missing" in told
    assert "adctl fetch demo --force" in told


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2)])
def test_somebody_at_a_terminal_is_shown_the_licence_and_asked(adctl, tmp_path, answer, code):
    import pty

    (tmp_path / "zipper" / "train" / "good").mkdir(parents=True)
    (tmp_path / "zipper" / "train" / "good" / "0.png").write_bytes(b"good")
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "adctl", "fetch", "mvtec", "--category", "zipper", "--from", tmp_path / "zipper"]
    data = {"ADCTL_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **data}, check=False, timeout=300
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == code, shown
    assert "CC BY-NC-SA 4.0" in shown
    assert "Do you accept these terms?" in shown
    assert (tmp_path / "data" / "mvtec" / "zipper").exists() == (answer == "y")


def test_the_list_shows_licences_and_one_entry_in_full(adctl):
    lines = adctl("fetch", "--list").stdout.splitlines()
    assert lines[0].split()[:2] == ["name", "dataset"]
    assert any(line.startswith("visa ") and "CC BY 4.0" in line and "yes" in line for line in lines)
    told = adctl("fetch", "--list", "mvtec_loco").stdout
    assert "Beyond Dents and Scratches" in told
    assert "No commercial use" in told

"""Detectors of other packages: entry points, training, scoring, export, and names in model files."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, settings

from adctl.detectors import registry
from adctl.errors import ModelFileError, PluginError, UsageError
from adctl.model_file import ModelHeader, Training, build_detector
from adctl.training.plan import detector_config, effective_settings

EXAMPLE = ROOT / "examples" / "plugin_detector"
TRAINING = Training("parts", "", 1, "", (), None)


def install(package: Path, target: Path) -> None:
    """Install a package of one module: with pip where it can build, otherwise by writing what pip would write."""
    if find_spec("pip") and find_spec("hatchling"):
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", target)
        subprocess.run([sys.executable, "-m", "pip", "install", *options, package], check=True)
        return
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    for module in package.glob("adctl_*.py"):
        (target / module.name).write_bytes(module.read_bytes())
    record(target, project["name"], project["version"], project["entry-points"][registry.GROUP])


def record(target: Path, name: str, version: str, detectors: dict[str, str]) -> None:
    """Write the metadata of an installed package that provides detectors."""
    folder = target / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{arch} = {value}" for arch, value in detectors.items()]
    (folder / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines, ""]))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A function that installs a package for one test."""
    monkeypatch.syspath_prepend(tmp_path)
    registry._plugins.cache_clear()
    yield lambda name, version="1.0", **detectors: record(tmp_path, name, version, detectors)
    registry._plugins.cache_clear()


# ---- the example package, through the command line


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the example package, as PYTHONPATH."""
    target = tmp_path_factory.mktemp("site-packages")
    install(EXAMPLE, target)
    return os.pathsep.join([str(target), str(ROOT)])


def test_the_example_package_trains_scores_and_exports(adctl, zippers, installed):
    options = ("--arch", "mahalanobis", "--data", zippers, "--image-size", "64", "--set", "ridge=0.02")
    trained = adctl.json("train", *options, PYTHONPATH=installed)["result"]
    scored = adctl.json("score", zippers / "test", "--model", trained["model"], PYTHONPATH=installed)["result"]
    assert sum(scored["counts"].values()) == len(list((zippers / "test").glob("*/*.png")))
    if all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        (exported,) = adctl.json("export", "--model", trained["model"], PYTHONPATH=installed)["result"]["exports"]
        assert exported["check"]["max_score_difference"] < 1e-3
        assert exported["check"]["changed_verdicts"] == 0

    missing = adctl("score", zippers / "test", "--model", trained["model"], "--runtime", "torch", code=1)
    assert "'mahalanobis' detector of the package adctl-mahalanobis 0.1.0, which is not installed" in missing.stderr
    assert "pip install 'adctl-mahalanobis==0.1.0'" in " ".join(missing.stderr.split())


def test_the_example_package_passes_its_own_tests(installed, request):
    warnings = (request.config.option.pythonwarnings or ["error"])[-1]
    command = [sys.executable, "-m", "pytest", "-q", "-W", warnings, "-p", "no:cacheprovider", "--rootdir", EXAMPLE]
    done = subprocess.run(
        [*command, EXAMPLE], env={**os.environ, "PYTHONPATH": installed}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


# ---- settings


@pytest.fixture
def acme(packages):
    """A package whose detector is PaDiM under another name."""
    packages("acme-detectors", "2.1", acme="adctl.detectors.padim:PaDiM")


def test_settings_are_listed_with_their_origin(acme):
    table = effective_settings(settings(arch="acme", options={"ridge": 0.02}))
    assert table["ridge"] == {"value": 0.02, "from": "test"}
    assert table["blur"] == {"value": 0.7, "from": "default of acme"}


@pytest.mark.parametrize(
    ("options", "message"), [({"rigde": 0.02}, "option of acme 'rigde'"), ({"ridge": 0}, "--set ridge of acme is not")]
)
def test_settings_are_validated(acme, options, message):
    with pytest.raises(UsageError, match=message):
        detector_config(settings(arch="acme", options=options).settings)


# ---- the registry


def test_an_unknown_arch_lists_the_detectors_of_packages(packages):
    packages("acme-detectors", "2.1", acme="acme:Acme")
    with pytest.raises(UsageError) as raised:
        registry.detector_class("acmee")
    assert "Did you mean 'acme'?" in raised.value.remedy
    assert "acme (acme-detectors 2.1), clip, cnn, composition," in raised.value.remedy


def test_a_package_that_provides_a_built_in_name_is_refused_and_the_built_in_one_works(packages):
    packages("acme-detectors", padim="acme:Acme", acme="acme:Acme")
    assert registry.detector_class("padim").__module__ == "adctl.detectors.padim"
    assert registry.package_of("padim") is None
    with pytest.raises(PluginError, match="'acme-detectors' provides a detector 'padim', which adctl itself provides"):
        registry.detector_class("acme")


def test_two_packages_with_the_same_name_are_both_named(packages):
    packages("acme-detectors", acme="acme:Acme")
    packages("other-detectors", acme="other:Acme")
    with pytest.raises(PluginError) as raised:
        registry.detector_class("acme")
    assert "'acme-detectors'" in raised.value.message
    assert "'other-detectors'" in raised.value.message


def test_a_package_that_cannot_be_imported_is_named_with_the_cause(packages):
    packages("acme-detectors", "2.1", acme="no_such_module_of_acme:Acme")
    with pytest.raises(PluginError) as raised:
        registry.detector_class("acme")
    assert "'acme' of the package acme-detectors 2.1 cannot be imported" in raised.value.message
    assert "ModuleNotFoundError: No module named 'no_such_module_of_acme'" in raised.value.message


@pytest.mark.parametrize("value", ["pathlib:Path", "json:dumps"])
def test_an_entry_point_that_is_no_detector_is_refused(packages, value):
    packages("acme-detectors", acme=value)
    with pytest.raises(PluginError, match="is not a detector"):
        registry.detector_class("acme")


def test_help_reads_no_entry_points():
    program = "import sys; from adctl.cli.app import run; run(['train', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "importlib.metadata" not in done.stdout.splitlines()[-1].split()


# ---- the model file


def test_a_model_of_another_package_of_the_same_name_is_refused(packages, tmp_path):
    packages("other-detectors", acme="other:Acme")
    header = ModelHeader("acme", {}, TRAINING, package=registry.DetectorPackage("acme-detectors", "2.1"))
    with pytest.raises(ModelFileError, match=r"'acme' detector of the package acme-detectors 2\.1") as raised:
        build_detector(header, tmp_path / "model.safetensors")
    assert "pip install 'acme-detectors==2.1'" in raised.value.remedy


def test_settings_of_another_version_say_which_version_to_install(packages, tmp_path):
    packages("acme-detectors", "3.0", acme="adctl.detectors.padim:PaDiM")
    header = ModelHeader("acme", {"old": 1}, TRAINING, package=registry.DetectorPackage("acme-detectors", "2.1"))
    with pytest.raises(ModelFileError) as raised:
        build_detector(header, tmp_path / "model.safetensors")
    assert "acme-detectors 2.1, and acme-detectors 3.0 is installed" in raised.value.remedy


def test_the_header_names_the_package_and_a_header_without_one_opens(tmp_path):
    package = registry.DetectorPackage("acme-detectors", "2.1")
    header = ModelHeader("acme", {}, TRAINING, package=package)
    assert header.to_dict()["package"] == {"name": "acme-detectors", "version": "2.1"}
    assert ModelHeader.from_dict(header.to_dict(), tmp_path).package == package
    plain = ModelHeader("padim", {}, TRAINING)
    assert "package" not in plain.to_dict()
    assert ModelHeader.from_dict(plain.to_dict(), tmp_path) == plain

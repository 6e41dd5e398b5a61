"""Checks of adctl: `nox` runs lint, types and tests; the other sessions run by name, such as `nox -s slow`."""

from __future__ import annotations

import tomllib
import zipfile
from pathlib import Path

import nox
from packaging.requirements import Requirement

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OLDEST_PYTHON = PROJECT["requires-python"].removeprefix(">=")

EXAMPLES = {
    "*.py": ["python"],
    "notebooks/*.ipynb": ["jupyter", "execute"],
}
"""Command that runs each kind of example, by its pattern in `examples/`. The tests run `examples/configs/`."""

EXAMPLE_ARGUMENTS = {"tiny_text_to_image.py": ["{folder}/tiny", "--minutes", "1"]}
"""Arguments of the examples that need some; `{folder}` is a temporary folder."""

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    session.install(*_development("ruff"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    session.install(".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, warnings as errors."""
    _run_tests(session)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests as `tests` does, and print the lines that none of them runs."""
    _run_tests(session, "--cov", "--cov-report=term")


def _run_tests(session: nox.Session, *options: str) -> None:
    session.install("--editable", ".[dev]")  # so that coverage sees the files it is told to watch
    # One worker a core, each with one thread: two that both want all cores wait for each other.
    session.run(
        "pytest", "-n", "logical", "--dist", "loadfile", "-m", "not slow", *options, *session.posargs,
        env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes, then the session `minimums`."""
    session.install(".[dev]")
    session.run("pytest", "-m", "slow", *session.posargs)
    session.notify("minimums")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run the tests on randomly changed files with a hundred times the examples, for about an hour."""
    session.install(".[dev]")
    session.run("pytest", "tests/test_fuzz.py", *session.posargs, env={"FUZZ_FACTOR": "100", "OMP_NUM_THREADS": "1"})


@nox.session(python=OLDEST_PYTHON)
def minimums(session: nox.Session) -> None:
    """Run the tests with exactly the lowest versions that pyproject.toml admits, on the oldest Python."""
    folder = Path(session.create_tmp())
    lowest, resolved = folder / "lowest.txt", folder / "resolved.txt"
    lowest.write_text("\n".join(_lowest_versions()) + "\n", encoding="utf-8")
    # uv finds versions of everything else that go with these in a second, or says which bounds contradict each other;
    # pip would try hundreds. Only wheels: a bound is no use if it has to be compiled.
    session.install("uv")
    session.run(
        "uv", "pip", "compile", "--quiet", "--upgrade", "--only-binary", ":all:", "--python-version", OLDEST_PYTHON,
        "--extra", "dev", "--constraint", str(lowest), "--output-file", str(resolved), "pyproject.toml",
    )  # fmt: skip
    session.install("--requirement", str(resolved))
    session.install("--no-deps", "--editable", ".")
    # Old releases warn about newer Pythons and neighbours: no fault of adctl, so warnings are not errors here.
    session.run("pytest", "-W", "default", "-m", "not slow", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def examples(session: nox.Session) -> None:
    """Run every example as a user would."""
    session.install(".[all]", *_development("ipykernel", "nbclient"))
    folder = Path(session.create_tmp()).resolve()
    environment = {"ADCTL_RUNS": str(folder / "runs"), "ADCTL_DATA_DIR": str(folder / "data")}
    for pattern, command in EXAMPLES.items():
        for example in sorted(Path("examples").glob(pattern)):
            arguments = [text.format(folder=folder) for text in EXAMPLE_ARGUMENTS.get(example.name, ())]
            session.run(*command, str(example), *arguments, env=environment)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site of the documentation into build/site; a dead link fails."""
    session.install(".[docs]")
    session.run("mkdocs", "build", "--config-file", "docs/mkdocs.yml", "--strict", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Check and measure everything that needs a CUDA GPU; without one, say so."""
    session.install(".[all]")
    code = "import torch; print(torch.cuda.device_count())"
    if str(session.run("python", "-c", code, silent=True)).split()[-1] == "0":
        session.skip("There is no CUDA GPU that PyTorch can use.")
    session.run("python", "examples/benchmarks/gpu.py", *(session.posargs or ["build/gpu"]))


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure start-up, and quality and speed on the real images; prints tables."""
    session.install(".[all]")
    for script in sorted(Path("examples/benchmarks").glob("*.py")):
        if script.name != "gpu.py":
            session.run("python", str(script), *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """Build the sdist and the wheel into dist/ and check them, then try the wheel in the session `smoke`."""
    session.install("build", "twine")
    for old in Path("dist").glob("adctl-*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", "dist")
    session.run("twine", "check", "--strict", *map(str, Path("dist").glob("adctl-*")))
    wheel = _built_wheel()
    version = wheel.name.split("-")[1]
    if f"## [{version}] - " not in Path("CHANGELOG.md").read_text(encoding="utf-8"):
        session.error(f"CHANGELOG.md has no dated section for version {version}.")
    differing = _files_in(wheel) ^ _package_files()
    if differing:
        session.error(f"The wheel and adctl/ differ in {', '.join(sorted(differing))}.")
    session.notify("smoke")


@nox.session(reuse_venv=False)
def smoke(session: nox.Session) -> None:
    """Install the built wheel, without extras, into a clean environment and run `adctl demo` there."""
    session.install(str(_built_wheel()))
    session.run("pip", "check")
    folder = Path(session.create_tmp()).resolve()
    with session.chdir(folder):  # where Python finds the installed package, not the source tree
        session.run("adctl", "--version")
        session.run("adctl", "demo", env={"ADCTL_DATA_DIR": str(folder / "data")})


def _development(*names: str) -> list[str]:
    """Return the requirements of the `dev` extra for the named packages."""
    return [line for line in EXTRAS["dev"] if Requirement(line).name in names]


def _lowest_versions() -> list[str]:
    """Return a constraint for each dependency that users install, extras included: the lower bound of its versions."""
    groups = [PROJECT["dependencies"], *(lines for extra, lines in EXTRAS.items() if extra not in ("dev", "docs"))]
    requirements = [Requirement(line) for lines in groups for line in lines]
    return sorted({_lowest_version(requirement) for requirement in requirements if requirement.name != PROJECT["name"]})


def _lowest_version(requirement: Requirement) -> str:
    """Turn `name>=1.2,<3; marker` into `name==1.2; marker`."""
    (lowest,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
    marker = f"; {requirement.marker}" if requirement.marker else ""
    return f"{requirement.name}=={lowest}{marker}"


def _built_wheel() -> Path:
    """Return the wheel in dist/, where the session `release` leaves exactly one."""
    (wheel,) = Path("dist").glob("adctl-*.whl")
    return wheel.resolve()


def _files_in(wheel: Path) -> set[str]:
    """Return the paths of the files in a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def _package_files() -> set[str]:
    """Return the paths of the files of the package: modules, `py.typed`, templates, the catalogue of data sets."""
    paths = (path for path in Path("adctl").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.as_posix() for path in paths}

"""Checks of adctl: `nox` runs lint, types and tests; the others are asked for by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import nox

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]

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
    """Run the tests, warnings as errors, with coverage."""
    session.install("--editable", ".[dev]")  # so that coverage sees the files it is told to watch
    # One worker a core, each with one thread: two that both want all cores wait for each other.
    session.run(
        "pytest", "-n", "logical", "--dist", "loadfile", "-m", "not slow", "--cov", "--cov-report=term",
        *session.posargs, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes."""
    session.install(".[dev]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run every script in examples/ as a user would."""
    session.install(".[all]")
    for script in sorted(Path("examples").glob("*.py")):
        session.run("python", str(script), env={"ADCTL_RUNS": session.create_tmp()})


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure start-up, and quality and speed on the real images; prints tables."""
    session.install(".[all]")
    for script in sorted(Path("examples/benchmarks").glob("*.py")):
        session.run("python", str(script), *session.posargs)


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the tests with the lowest versions of the dependencies that pyproject.toml admits."""
    lowest = [_lowest(requirement) for requirement in PROJECT["dependencies"]]
    session.install(*lowest, ".[dev]")
    session.run("pytest", "-m", "not slow", *session.posargs)


def _development(*names: str) -> list[str]:
    """The requirements of the `dev` extra for the named packages."""
    return [line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith(names)]


def _lowest(requirement: str) -> str:
    """`name>=1.2,<3` to `name~=1.2.0`: the lowest minor release that is admitted, with its own fixes."""
    name, _, bounds = requirement.partition(">=")
    lowest = bounds.partition(",")[0]
    return f"{name}~={lowest}.0" if lowest.count(".") == 1 else f"{name}~={lowest}"

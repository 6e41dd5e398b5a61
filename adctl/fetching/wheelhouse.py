"""A folder of wheels, collected by pip, from which adctl is installed on a machine without a package index."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from adctl import __version__, files
from adctl.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXTRAS = "export"
_SHOWN_LINES = 3


def collect_wheels(into: Path, *, requirement: str | None, platform: str | None, python: str | None) -> str:
    """Fill a folder with the wheels of adctl and its dependencies.

    Args:
        into: Folder for the wheels.
        requirement: Requirement to collect the wheels for; None takes adctl in the running version.
        platform: Platform tag of the target machine, such as `win_amd64`; None takes that of this machine.
        python: Python version of the target machine, such as `3.12`; None takes that of this machine.

    Returns:
        Requirement to pass to `pip install` on the target machine.

    Raises:
        FetchError: pip could not collect all wheels.
    """
    files.make_folder(into)
    needed = requirement or f"adctl[{_EXTRAS}]=={__version__}"
    source = None if requirement else _source_tree()
    if source is not None:
        _pip("wheel", "--no-deps", "--wheel-dir", into, source)
    target = [] if platform is None else ["--platform", platform]
    target += [] if python is None else ["--python-version", python]
    built = ["--find-links", into] if source is not None else []
    _pip("download", "--only-binary", ":all:", "--dest", into, *built, *target, needed)
    return needed


def _source_tree() -> Path | None:
    """Return the source tree that adctl runs from, or None if it was installed from an index."""
    root = Path(__file__).parents[2]
    try:
        installed = distribution("adctl").read_text("direct_url.json") is None
    except PackageNotFoundError:
        installed = False
    return root if not installed and (root / "pyproject.toml").is_file() else None


def _pip(*arguments: object) -> None:
    command: Sequence[str] = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, arguments),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a list, and no shell
    if result.returncode:
        shown = [line for line in result.stderr.splitlines() if line.strip()][-_SHOWN_LINES:]
        raise FetchError(
            f"pip could not collect the wheels: {' '.join(shown) or 'it gave no reason'}",
            "Check the network and pip's settings (PIP_INDEX_URL), or leave the wheels out with --no-wheels.",
        )

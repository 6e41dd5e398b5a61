"""A folder of wheels that installs adctl where there is no package index; pip gathers them."""

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
_LAST_LINES = 3


def collect_wheels(into: Path, *, requirement: str | None, platform: str | None, python: str | None) -> str:
    """Fill a folder with wheels.

    Args:
        into: The folder.
        requirement: What to install over there; adctl as it runs here when None.
        platform: Of that machine, as pip names it, such as `win_amd64`; as here when None.
        python: Of that machine, such as `3.12`; as here when None.

    Returns:
        The requirement to name to `pip install`.

    Raises:
        FetchError: pip could not get all of them.
    """
    files.make_folder(into)
    named = requirement or f"adctl[{_EXTRAS}]=={__version__}"
    source = None if requirement else _source_tree()
    if source is not None:
        _pip("wheel", "--no-deps", "--wheel-dir", into, source)
    target = [] if platform is None else ["--platform", platform]
    target += [] if python is None else ["--python-version", python]
    own = ["--find-links", into] if source is not None else []
    _pip("download", "--only-binary", ":all:", "--dest", into, *own, *target, named)
    return named


def _source_tree() -> Path | None:
    """The project adctl runs from, where it was not installed from an index."""
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a list, and no shell
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()][-_LAST_LINES:]
        raise FetchError(
            f"pip could not gather the wheels: {' '.join(said) or 'it did not say why'}",
            "Check the network and pip's settings (PIP_INDEX_URL), or leave them out with --no-wheels.",
        )

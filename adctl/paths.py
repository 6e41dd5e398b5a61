"""Paths of the folders that hold downloaded data. Nothing is read or written here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]
"""A path as Python functions take it."""


def data_dir() -> Path:
    """Return the folder of downloaded datasets and weights: `ADCTL_DATA_DIR`, or the platform's user data folder."""
    configured = os.environ.get("ADCTL_DATA_DIR")
    if configured:
        return Path(configured)
    import platformdirs

    return Path(platformdirs.user_data_dir("adctl", appauthor=False))


def weights_file(name: str) -> Path:
    """Return the path at which `adctl fetch weights NAME` stores a backbone's weights."""
    return data_dir() / "weights" / f"{name}.safetensors"

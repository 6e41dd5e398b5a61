"""Where adctl keeps what it fetches. Paths only; nothing is read or written here."""

from __future__ import annotations

import os
from pathlib import Path


def data_dir() -> Path:
    """The folder of fetched data sets and weights: `ADCTL_DATA_DIR`, or the platform's user data folder."""
    given = os.environ.get("ADCTL_DATA_DIR")
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_data_dir("adctl", appauthor=False))


def weights_file(name: str) -> Path:
    """Where `adctl fetch weights NAME` puts a backbone's weights."""
    return data_dir() / "weights" / f"{name}.safetensors"

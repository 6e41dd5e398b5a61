"""Files of the server: stored images, their maps and thumbnails, and the images that persons reviewed.

    DATA/verdicts/BUCKET/ID.png          the image as it came
    DATA/verdicts/BUCKET/ID.npy          its anomaly map, float16
    DATA/verdicts/BUCKET/ID.thumb.jpg    its thumbnail
    DATA/reviews/good/ID.png             reviewed images, as `adctl train --update --good DIR` takes them
    DATA/reviews/defect/KIND/ID.png      and `--defects DIR`

Names come from the identifiers of verdicts, never from a client. A bucket holds the verdicts of a quarter of an hour.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adctl import files
from adctl.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

THUMBNAIL = ".thumb.jpg"
MAP = ".npy"

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp", "NPY": ".array.npy"}
"""Suffix of a stored image by its format."""

MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".bmp": "image/bmp",
    ".webp": "image/webp",
    ".array.npy": "application/x-npy",
}

_BUCKET = 6
"""Characters of an identifier that name its bucket: the time in steps of 17 minutes."""


_COMING_SECONDS = 2.0


class ImageStore:
    """Files below the data folder of the server.

    Args:
        folder: The data folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verdicts = folder / "verdicts"
        self.failed = 0
        """Files that could not be written since the start."""
        self._coming: set[str] = set()

    def expect(self, identifier: str) -> None:
        """Let whoever asks for the files of a verdict wait until they have arrived."""
        self._coming.add(identifier)

    def arrived(self, identifier: str) -> None:
        """Let nobody wait for the files of a verdict any more."""
        self._coming.discard(identifier)

    def wait(self, identifier: str) -> None:
        """Wait while files of a verdict are coming; not for long."""
        until = time.monotonic() + _COMING_SECONDS
        while identifier in self._coming and time.monotonic() < until:
            time.sleep(0.005)

    def path(self, identifier: str, suffix: str) -> Path:
        """Return the path of a file of a verdict; the file may not exist."""
        return self._verdicts / identifier[:_BUCKET] / f"{identifier}{suffix}"

    def write(self, identifier: str, suffix: str, data: bytes) -> bool:
        """Write a file of a verdict; return whether that was possible. A failure is logged once."""
        return self._try(lambda: files.write_bytes(self.path(identifier, suffix), data, flush=False))

    def write_thumbnail(self, identifier: str, data: bytes) -> bool:
        """Write the thumbnail of a verdict: a few kilobytes at once, as a file beside it would cost as much again."""
        return self._try(lambda: _write_at_once(self.path(identifier, THUMBNAIL), data))

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OutputError as error:
            if not self.failed:
                log.error("Images cannot be stored: %s", error.message)  # noqa: TRY400 - a message, no traceback
            self.failed += 1
            return False
        if self.failed:
            log.info("Images can be stored again; %d files are missing.", self.failed)
            self.failed = 0
        return True

    def write_map(self, identifier: str, anomaly_map: NDArray[np.float32]) -> bool:
        """Write the anomaly map of a verdict."""
        return self.write(identifier, MAP, npy_bytes(anomaly_map))

    def copy_reviewed(self, identifier: str, suffix: str, label: str, kind: str) -> str:
        """Copy the image of a verdict to the folder of its label, and remove it from that of an earlier label.

        Args:
            identifier: Identifier of the verdict.
            suffix: Suffix of its stored image; empty if there is none.
            label: `good`, `defect` or `unsure`; an unsure image is not copied.
            kind: Kind of the defect.

        Returns:
            Path of the copy below the data folder; empty if there is none.

        Raises:
            OutputError: The copy cannot be written.
        """
        earlier = set(self._reviewed(identifier))
        source = next((path for path in (self.path(identifier, suffix), *earlier) if path.is_file()), None)
        target = None
        if suffix and source is not None and label != "unsure":
            target = self._reviews / ("good" if label == "good" else f"defect/{kind}") / f"{identifier}{suffix}"
            if target not in earlier:
                with files.atomic_path(target) as partial:
                    shutil.copyfile(source, partial)
        for path in earlier - {target}:
            path.unlink(missing_ok=True)
        return "" if target is None else target.relative_to(self.folder).as_posix()

    def find_image(self, identifier: str, suffix: str) -> Path | None:
        """Return the image of a verdict: as stored, or its reviewed copy; None if neither is there."""
        if not suffix:
            return None
        stored = self.path(identifier, suffix)
        return stored if stored.is_file() else next(self._reviewed(identifier), None)

    @property
    def _reviews(self) -> Path:
        return self.folder / "reviews"

    @property
    def good(self) -> Path:
        """Folder of the images that were reviewed as good."""
        return self._reviews / "good"

    @property
    def defects(self) -> Path:
        """Folder of the images that were reviewed as defective, in one folder for each kind."""
        return self._reviews / "defect"

    def _reviewed(self, identifier: str) -> Iterator[Path]:
        yield from self.good.glob(f"{identifier}.*")
        yield from self.defects.glob(f"*/{identifier}.*")

    def buckets(self) -> list[Path]:
        """Return the folders of verdicts, the oldest first."""
        return sorted(path for path in self._verdicts.glob("*") if path.is_dir())


def _write_at_once(path: Path, data: bytes) -> None:
    """Write a small file by one call of the operating system, which a killed process does not cut in two.

    Raises:
        OutputError: The file cannot be written; nothing of it stays.
    """
    with files.output_errors(path):
        try:
            stream = path.open("wb", buffering=0)
        except FileNotFoundError:
            files.make_folder(path.parent)
            stream = path.open("wb", buffering=0)
        with stream:
            written = stream.write(data)
        if written != len(data):
            path.unlink(missing_ok=True)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def npy_bytes(values: NDArray[np.float32]) -> bytes:
    """Return an array as a NumPy file of float16."""
    stream = io.BytesIO()
    np.save(stream, values.astype(np.float16), allow_pickle=False)
    return stream.getvalue()

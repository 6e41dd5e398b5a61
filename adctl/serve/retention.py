"""Removal of old verdicts and images, by age and by size. Reviews and their images stay."""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from adctl.run_folder import encode_id
from adctl.serve.sizes import parse_bytes
from adctl.tracking.prune import parse_age

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import ServeSettings
    from adctl.serve.history import History
    from adctl.serve.image_store import ImageStore

log = logging.getLogger(__name__)

_EVERY_SECONDS = 600.0


class Retention:
    """Removes what is older than `keep`, and the oldest images beyond `keep_bytes`.

    Args:
        settings: Settings of the server.
        history: Store of the verdicts.
        images: Files of the verdicts.

    Raises:
        UsageError: A setting is no age or no number of bytes.
    """

    def __init__(self, settings: ServeSettings, history: History, images: ImageStore) -> None:
        self._age = parse_age(settings.keep)
        self._bytes = parse_bytes(settings.keep_bytes, "--keep-bytes")
        self._history = history
        self._images = images
        self._due = time.monotonic()

    def run_if_due(self) -> None:
        """Remove what is too old or too much, every ten minutes."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _EVERY_SECONDS
            self.run()

    def run(self) -> tuple[int, int]:
        """Remove what is too old or too much; return the numbers of verdicts and of folders of images."""
        oldest = datetime.now(UTC) - self._age
        bound = encode_id(int(oldest.timestamp() * 1000), bytes(10))
        folders = 0
        buckets = self._images.buckets()
        for bucket in [one for one in buckets if one.name < bound[: len(one.name)]]:
            shutil.rmtree(bucket, ignore_errors=True)
            buckets.remove(bucket)
            folders += 1
        sizes = {bucket: _size(bucket) for bucket in buckets}
        total = sum(sizes.values())
        for bucket in buckets[:-1]:  # the newest is being written
            if total <= self._bytes:
                break
            shutil.rmtree(bucket, ignore_errors=True)
            total -= sizes[bucket]
            folders += 1
        # Last, because a full disk refuses it until the files are gone.
        verdicts = self._history.remove_before(bound)
        if verdicts or folders:
            log.debug("Removed %d old verdicts and %d folders of images.", verdicts, folders)
        return verdicts, folders


def _size(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:  # another process removes files too
        for entry in entries:
            total += entry.stat(follow_symlinks=False).st_size
    return total

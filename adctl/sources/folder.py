"""Source of image files that arrive in a folder; each file is a part."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from adctl.errors import UsageError
from adctl.records import Sample
from adctl.run_folder import utc
from adctl.scoring.watch import Inbox
from adctl.sources.base import Part, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adctl.scoring.watch_log import Stamp

_PAUSE = 0.1
"""Seconds between two scans."""


class FolderSource(Source):
    """Folder, scanned as by `adctl score --watch`.

    Args:
        name: Name of the source.
        address: Path of the folder.
        done: Stamp of each file that was scored before, by the key of its part.
        settle: Seconds that a file must stay unchanged.
        lot: Lot of the parts.
        without: Folder that is left out: that of the results.

    Raises:
        UsageError: There is no such folder.
    """

    def __init__(
        self, name: str, address: str, *, done: dict[str, Stamp], settle: float, lot: str, without: Path
    ) -> None:
        super().__init__(name, address)
        folder = Path(address)
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder} to take parts from.", "Create it first, or check the path.")
        self._prefix, self._lot = f"{name}/", lot
        self._done = {
            key.removeprefix(self._prefix): stamp for key, stamp in done.items() if key.startswith(self._prefix)
        }
        self._given: set[tuple[str, Stamp]] = set()
        self._inbox = Inbox(folder.resolve(), self._done, settle=settle, without=without)

    def parts(self) -> Iterator[Part]:
        """Yield each new file."""
        self.state = "running"
        while not self.stops.is_set():
            started = time.monotonic()
            for file in self._inbox.new_files():
                if (file.key, file.stamp) in self._given:  # it waits to be judged
                    continue
                self._given.add((file.key, file.stamp))
                sample = Sample(file.path, self._prefix + file.key)
                yield Part(
                    sample.key, self.name, file.path.stem, self._lot, (sample,), time.monotonic(), utc(time.time()),
                    file.stamp, last_try=file.last_try,
                )  # fmt: skip
                if self.stops.is_set():
                    return
            self.stops.wait(max(_PAUSE, 2 * (time.monotonic() - started)))

    def done(self, part: Part) -> None:
        """Note that a file is scored."""
        self._done[part.key.removeprefix(self._prefix)] = part.stamp
        self.retry(part)

    def retry(self, part: Part) -> None:
        """Note that a file shall come again, unless it is scored."""
        self._given.discard((part.key.removeprefix(self._prefix), part.stamp))

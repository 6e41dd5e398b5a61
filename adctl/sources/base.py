"""A part, and the contract of a source."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adctl.records import Sample
    from adctl.scoring.watch_log import Stamp


@dataclass(frozen=True, eq=False)
class Part:
    """One part before it is judged.

    Attributes:
        key: Name of the part in results: the name of the source, and that of the file or of the time.
        source: Name of the source.
        part: Identifier of the part.
        lot: Lot, or empty.
        samples: Its images; empty if there is a fault.
        triggered: Moment of the trigger, by `time.monotonic`.
        time: Time of the trigger in UTC, ISO 8601.
        stamp: State of the file; for a camera, the time of the trigger in nanoseconds.
        fault: Reason why the part cannot be judged, such as a black picture; empty for none.
        last_try: Whether an unreadable file becomes an error row.
        live: Whether the part is gone if it is not taken now.
    """

    key: str
    source: str
    part: str
    lot: str
    samples: tuple[Sample, ...]
    triggered: float
    time: str
    stamp: Stamp
    fault: str = ""
    last_try: bool = True
    live: bool = False


class Source(ABC):
    """Source of parts.

    Args:
        name: Name, unique among the sources of a process.
        address: Address that the user gave.

    Attributes:
        state: Short text: `running`, or why there are no images.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.state = "starting"
        self.stops = threading.Event()

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """Yield parts until the source ends or `stops` is set.

        Raises:
            AdctlError: The source cannot be used at all.
        """

    def trigger(self, part: str = "", lot: str = "") -> bool:
        """Take a part now; return False if the source does not wait for requests."""
        del part, lot
        return False

    def done(self, part: Part) -> None:  # noqa: B027 - cameras remember nothing
        """Note that the verdict on a part is stored."""

    def retry(self, part: Part) -> None:  # noqa: B027 - a camera's picture is gone
        """Note that the file of a part could not be read yet, and shall come again."""

    def close(self) -> None:
        """Make `parts` end soon."""
        self.stops.set()

"""The contract of a sink, and the message that it delivers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adctl.names import escaped_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.records import ScoredImage
    from adctl.sinks.address import Address

SCHEMA = "adctl.part/1"

TIMEOUT = 10.0
"""Seconds that a sink waits for its peer."""

REJECTED = frozenset({"reject", "error"})
"""Verdicts with which a part must not pass: it is rejected, or could not be judged."""


@dataclass(frozen=True)
class PartVerdict:
    """Verdict on one part, as sinks deliver it.

    Attributes:
        id: Identifier; a verdict that is delivered twice has the same.
        time: Time of the verdict in UTC, ISO 8601.
        triggered: Time at which the part was before the camera, or its image file was found.
        source: Name of the source, or of the client that sent the image.
        part: Identifier of the part; the name of the image if it has none.
        lot: Lot, or empty.
        model: Name or path of the model.
        model_sha256: Digest of the model file.
        verdict: `good`, `warn`, `reject`, `uncalibrated` or `error`.
        score: Raw anomaly score; None if the part could not be judged.
        threshold: Threshold of the verdict.
        p_value: Conformal p-value.
        probability: Probability that the part is anomalous.
        frames: Number of images of the part.
        image: Name of the image that decided.
        boxes: Anomalous regions in pixels of that image.
        kind: Kind of defect by the classifier, `unknown` for none that it knows; empty if the part was not named.
        kind_probability: Probability of the most probable kind.
        error: Reason why the part could not be judged, or empty.
        schema: Version of this format.
    """

    id: str
    time: str
    triggered: str
    source: str
    part: str
    lot: str
    model: str
    model_sha256: str
    verdict: str
    score: float | None
    threshold: float | None
    p_value: float | None
    probability: float | None
    frames: int = 1
    image: str = ""
    boxes: list[dict[str, Any]] = field(default_factory=list)
    kind: str = ""
    kind_probability: float | None = None
    error: str = ""
    schema: str = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Return names and JSON-safe values."""
        return asdict(self)


def message_of(row: ScoredImage, **facts: Any) -> dict[str, Any]:
    """Return the message for the row of the image that decides on a part.

    Args:
        row: Score and verdict.
        facts: The other attributes of `PartVerdict`.
    """
    texts: dict[str, Any] = {name: escaped_name(one) if isinstance(one, str) else one for name, one in facts.items()}
    return PartVerdict(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        verdict=str(row.verdict),
        score=row.score,
        threshold=row.threshold,
        p_value=row.p_value,
        probability=row.probability,
        boxes=[asdict(box) for box in row.boxes],
        kind=escaped_name(row.kind or ""),
        kind_probability=row.kind_probability,
        error=escaped_name(row.error or ""),
        image=escaped_name(row.path),
        **texts,
    ).to_json()


class DeliveryError(Exception):
    """The peer did not take a message.

    Args:
        reason: What is wrong.
        delivered: Number of messages of the call that the peer had taken before.
    """

    def __init__(self, reason: str, delivered: int = 0) -> None:
        super().__init__(reason)
        self.delivered = delivered


class Sink(ABC):
    """Connection to one peer, used by one thread. It connects when the first message is sent.

    Args:
        address: Address of the peer.

    Attributes:
        max_age: Seconds after which a verdict is dropped, because the part has passed; 0 for never.

    Raises:
        UsageError: An option is unknown or not valid.
        MissingExtraError: A package is not installed.
    """

    max_age: float = 0.0

    def __init__(self, address: Address) -> None:
        self.address = address

    @abstractmethod
    def send(self, messages: Sequence[dict[str, Any]]) -> None:
        """Deliver messages in order, and return when the peer has acknowledged all.

        Args:
            messages: Verdicts, as `PartVerdict.to_json` gives them.

        Raises:
            DeliveryError: The peer did not take one; the sink connects anew at the next call.
        """

    def beat(self) -> None:  # noqa: B027 - many peers need none
        """Show the peer that this program runs; called about once a second.

        Raises:
            DeliveryError: The peer does not answer.
        """

    def close(self) -> None:  # noqa: B027 - some hold nothing open
        """Disconnect."""

"""Documents of the API, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from adctl.sinks.delivery import SinkStatus

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
"""Name of a model."""

Identifier = Annotated[str, Field(pattern=r"^[0-9A-HJKMNP-TV-Z]{26}$")]
"""Identifier of a verdict, review or event: a ULID."""

Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Short text of one line."""

VerdictName = Literal["good", "warn", "reject", "uncalibrated", "error"]

BINARY = {"schema": {"type": "string", "format": "binary"}}
"""Content of a body that is a file, for OpenAPI."""


class Problem(BaseModel):
    """Error, as problem details (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    remedy: str | None = None


class ModelInfo(BaseModel):
    """A served model."""

    name: str
    arch: str | None
    model_digest: str
    calibration_digest: str | None
    version: int
    loaded: bool
    runtime: str | None
    device: str | None
    image_size: list[int] | None
    method: str | None
    level: float | None
    threshold: float | None
    warn_threshold: float | None
    promise: str | None
    calibration_images: int | None
    classes: list[str] | None = Field(None, description="Kinds that the classifier names; null without one.")
    drift: str | None = Field(None, description="How the images differ from those of the calibration; null if not.")


class BoxAnswer(BaseModel):
    """Region of an image, in its pixels."""

    x: int
    y: int
    width: int
    height: int
    peak: float


class ImageAnswer(BaseModel):
    """Result for one image."""

    id: str
    name: str
    score: float | None
    p_value: float | None
    probability: float | None
    verdict: VerdictName
    boxes: list[BoxAnswer]
    threshold: float | None
    pixel_threshold: float | None
    width: int | None
    height: int | None
    kind: str | None = Field(None, description="Kind of defect by the classifier, or unknown; null if not named.")
    kind_probability: float | None = None
    map: str | None = Field(None, description="Base64 of a PNG file, or of a NumPy file [h,w] of float16.")
    error: str | None = None


class Milliseconds(BaseModel):
    """Time of each stage; of several images, the longest."""

    decode: float
    queue: float
    predict: float
    post: float
    history: float
    total: float


class HistoryState(BaseModel):
    """Whether the history has the verdicts of this answer, and how many it lacks in all."""

    stored: bool
    missing: int


class ScoreAnswer(BaseModel):
    """Answer to a request for scores."""

    request_id: str
    model: str
    results: list[ImageAnswer]
    calibration_digest: str
    model_digest: str
    milliseconds: Milliseconds
    history: HistoryState


class LoadRequest(BaseModel):
    """Model file to load."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(None, max_length=1000, description="Path below --models; left out: the present file.")


class Region(BaseModel):
    """Region that a person drew, in pixels of the image."""

    model_config = ConfigDict(extra="forbid")

    x: Annotated[int, Field(ge=0, le=1_000_000)]
    y: Annotated[int, Field(ge=0, le=1_000_000)]
    width: Annotated[int, Field(ge=1, le=1_000_000)]
    height: Annotated[int, Field(ge=1, le=1_000_000)]


class ReviewRequest(BaseModel):
    """Label of a verdict."""

    model_config = ConfigDict(extra="forbid")

    verdict_id: Identifier
    label: Literal["good", "defect", "unsure"]
    kind: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,39}$")] | None = None
    region: Region | None = None
    comment: Annotated[str, Field(max_length=2000)] | None = None


class ReviewAnswer(BaseModel):
    """Stored label."""

    id: str
    verdict_id: str
    time: str
    model: str
    label: str
    kind: str
    region: Region | None
    comment: str
    reviewer: str
    image: str


class VerdictAnswer(BaseModel):
    """Entry of the history."""

    id: str
    time: str
    request: str
    model: str
    model_sha256: str
    calibration_sha256: str
    name: str
    lot: str
    part: str
    client: str
    verdict: str
    score: float | None
    p_value: float | None
    probability: float | None
    threshold: float | None
    pixel_threshold: float | None
    width: int | None
    height: int | None
    boxes: list[BoxAnswer]
    error: str
    milliseconds: float
    image: str = Field(description="Suffix of the stored image; empty if it was not stored.")
    has_map: bool
    kind: str | None = Field(None, description="Kind of defect by the classifier, or unknown; null if not named.")
    kind_probability: float | None = None
    review: ReviewAnswer | None


class HistoryPage(BaseModel):
    """Page of the history."""

    verdicts: list[VerdictAnswer]
    cursor: str | None = Field(description="Cursor of the next page; null at the end.")


class ReviewsPage(BaseModel):
    """Page of the reviews."""

    reviews: list[ReviewAnswer]
    cursor: str | None


class AuditEntry(BaseModel):
    """Something that somebody did."""

    id: str
    time: str
    who: str
    action: str
    target: str
    details: dict[str, Any]


class AuditPage(BaseModel):
    """Newest entries of the audit log."""

    entries: list[AuditEntry]


class SourceState(BaseModel):
    """Source of parts."""

    name: str
    address: str
    state: str


class LineState(BaseModel):
    """Sources and sinks of the server."""

    sources: list[SourceState]
    sinks: list[SinkStatus]


class Status(BaseModel):
    """State in one word, or a few."""

    status: str


class HistoryGap(BaseModel):
    """Number of verdicts that the history lacks, and why."""

    missing: int
    reason: str


class ImageFailures(BaseModel):
    """Number of images that could not be stored."""

    failed: int


class Readiness(Status):
    """Whether images can be scored, and what could not be stored."""

    models: list[str]
    history: HistoryGap
    images: ImageFailures


class ServerStatus(Status):
    """Models and state of the server."""

    models: list[ModelInfo]
    queue: int
    history: HistoryGap


class Session(BaseModel):
    """Caller of the request."""

    name: str
    role: str
    csrf: str
    needs_key: bool


class LoginRequest(BaseModel):
    """Key that begins a session."""

    model_config = ConfigDict(extra="forbid")

    key: Annotated[str, Field(max_length=200)]


class LegacyLoad(BaseModel):
    """Model to load, by its path below the folder of `--models` or by its name."""

    model_path: Annotated[str, Field(max_length=1000)] | None = None
    name: Name | None = None


Finite = FiniteFloat

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "The request cannot be understood.",
        401: "A key is needed.",
        403: "The key may not do this.",
        404: "There is no such thing.",
        409: "This cannot be done now.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The content type is not accepted.",
        422: "The request or the image is not valid.",
        429: "Too many requests; see Retry-After.",
        503: "The server cannot do this now.",
    }.items()
}
"""Descriptions of errors for OpenAPI; `adctl.serve.openapi` adds their content."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of some errors."""
    return {status: PROBLEMS[status] for status in sorted({*statuses, 401, 403, 429})}

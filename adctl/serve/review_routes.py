"""Routes of the review: labels that persons give to verdicts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from adctl.serve.answers import (
    HistoryPage,
    Identifier,
    Name,
    ReviewAnswer,
    ReviewRequest,
    ReviewsPage,
    problems,
)
from adctl.serve.history_routes import Limit, verdict_of
from adctl.serve.problems import ProblemError
from adctl.serve.security import MayReview, Running

router = APIRouter(tags=["reviews"])

_KIND = "unknown"


@router.post(
    "/v1/reviews", summary="Label a verdict", status_code=201, response_model=ReviewAnswer,
    responses=problems(404, 422, 503),
)  # fmt: skip
def add(wanted: ReviewRequest, server: Running, caller: MayReview) -> dict[str, Any]:
    """Store a label; a later one of the same verdict counts. The image is copied to the folder of its label."""
    entry = verdict_of(server, wanted.verdict_id)
    if wanted.kind and wanted.label != "defect":
        raise ProblemError(422, "Only a defect has a kind.", "Leave out 'kind', or use the label 'defect'.")
    kind = (wanted.kind or _KIND) if wanted.label == "defect" else ""
    image = server.images.copy_reviewed(entry["id"], entry["image"], wanted.label, kind)
    review: dict[str, Any] = server.history.add_review(
        {
            "verdict_id": entry["id"],
            "model": entry["model"],
            "label": wanted.label,
            "kind": kind,
            "region": wanted.region.model_dump() if wanted.region else None,
            "comment": wanted.comment or "",
            "reviewer": caller.name,
            "image": image,
        }
    )
    server.history.note(caller.name, "review", entry["id"], label=wanted.label, kind=kind)
    server.tell("review", {key: review[key] for key in ("id", "verdict_id", "model", "label", "kind", "reviewer")})
    return review


@router.get("/v1/reviews", summary="List the labels", response_model=ReviewsPage, responses=problems(422, 503))
def find(
    server: Running,
    caller: MayReview,
    model: Name | None = None,
    label: Literal["good", "defect", "unsure"] | None = None,
    cursor: Identifier | None = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """Return the newest label of each verdict, the newest first."""
    del caller
    reviews, following = server.history.reviews(model, label, cursor, limit)
    return {"reviews": reviews, "cursor": following}


@router.get(
    "/v1/reviews/queue", summary="List the verdicts to label", response_model=HistoryPage, responses=problems(422, 503)
)
def queue(
    server: Running, caller: MayReview, model: Name | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> dict[str, Any]:
    """Return rejects and near misses without a label; those nearest to the threshold, which teach most, first."""
    del caller
    return {"verdicts": server.history.queue(model, limit), "cursor": None}

"""Routes of the review: labels that persons give to verdicts, and take back."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter

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
    review = server.history.add_review(
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
def queue(server: Running, caller: MayReview, model: Name | None = None, limit: Limit = 50) -> dict[str, Any]:
    """Return rejects and near misses without a label; those nearest to the threshold, which teach most, first."""
    del caller
    return {"verdicts": server.history.queue(model, limit), "cursor": None}


@router.delete("/v1/reviews/{id}", summary="Take a label back", status_code=204, responses=problems(404, 422, 503))
def withdraw(id: Identifier, server: Running, caller: MayReview) -> None:  # noqa: A002 - the name in the path
    """Remove a label, and return the image to the folder of the label before, if there was one."""
    review = server.history.review(id)
    if review is None:
        raise ProblemError(404, f"There is no review {id}.")
    if review["reviewer"] != caller.name and not caller.may("admin"):
        raise ProblemError(403, f"The label is that of '{review['reviewer']}'.", "Add a label of your own: it counts.")
    server.history.remove_review(id)
    entry = server.history.get(review["verdict_id"])
    if entry is not None:
        before = entry["review"] or {"label": "unsure", "kind": ""}
        server.images.copy_reviewed(entry["id"], entry["image"], before["label"], before["kind"])
    server.history.note(
        caller.name, "withdraw review", review["verdict_id"], label=review["label"], kind=review["kind"]
    )
    server.tell("review", {"id": id, "verdict_id": review["verdict_id"], "model": review["model"], "label": None})

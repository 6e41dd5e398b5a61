"""Route that takes a label back: a person pressed the wrong key."""

from __future__ import annotations

from fastapi import APIRouter

from adctl.serve.answers import Identifier, problems
from adctl.serve.problems import ProblemError
from adctl.serve.security import MayReview, Running

router = APIRouter(tags=["reviews"])


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

"""Routes that score images."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response

from adctl.files import to_json
from adctl.records import Verdict
from adctl.serve.answers import BINARY, Finite, Name, ScoreAnswer, Text, problems
from adctl.serve.guard import drain
from adctl.serve.image_store import npy_bytes
from adctl.serve.problems import ProblemError, busy
from adctl.serve.products import nearest_product, product_of
from adctl.serve.scoring import MapFormat, Scored, Wish
from adctl.serve.security import MayScore, Running
from adctl.serve.uploads import BODY, read_uploads

if TYPE_CHECKING:
    from adctl.serve.scoring import Upload
    from adctl.serve.served_models import ServedModel
    from adctl.serve.state import Server

_T = TypeVar("_T")

router = APIRouter(tags=["score"])

NPY = "application/x-npy"

_AT_ONCE = 8
"""Images of one request that are worked on at once; others get their turn in between."""

_PATIENCE = 2.0
"""Longest time that an answer waits for the history, in seconds."""

_SHORT = 0.1
"""Seconds of a request during which nobody looks whether the client has left, which costs more than it saves."""

_GONE = 499
"""Status of a request whose client has left; nobody reads it."""


@router.post(
    "/v1/models/{name}/score",
    summary="Score one or several images",
    response_model=ScoreAnswer,
    responses={200: {"content": {NPY: BINARY}}, **problems(400, 404, 408, 413, 415, 422, 503)},
    openapi_extra=BODY,
)
async def score(
    name: Name,
    request: Request,
    server: Running,
    caller: MayScore,
    map: Annotated[MapFormat, Query(description="Format of the anomaly maps in the answer.")] = "none",  # noqa: A002
    threshold: Annotated[Finite | None, Query(description="Threshold for this request alone.")] = None,
    lot: Text = "",
    part: Text = "",
) -> Response:
    """Score images: score, p-value, probability, verdict and boxes of each, and its anomaly map if wanted.

    With `Accept: application/x-npy` the answer to a single image is its map, as a NumPy file [h,w] of float16 that
    covers the whole image. An unreadable image among several gives an error entry, a single one status 422.
    """
    wish = Wish(map, threshold, lot, part, caller.name, request.state.request_id)
    return await respond(server, name, request, wish)


async def respond(server: Server, name: str, request: Request, wish: Wish) -> Response:
    """Return the answer to a request for scores; see `answer_to` for its errors."""
    answer, results = await answer_to(server, name, request, wish)
    if NPY in request.headers.get("accept", "") and len(results) == 1 and results[0].cells is not None:
        headers = {"X-Score": repr(results[0].row.score), "X-Verdict": str(results[0].row.verdict)}
        return Response(npy_bytes(results[0].cells), media_type=NPY, headers=headers)
    return Response(to_json(answer), media_type="application/json")


@router.post(
    "/v1/products/score",
    summary="Score images with the model of their product",
    response_model=ScoreAnswer,
    responses=problems(400, 404, 408, 413, 415, 422, 503),
    openapi_extra=BODY,
)
async def score_product(
    request: Request,
    server: Running,
    caller: MayScore,
    file: Annotated[Text, Query(description="Path or name of the image at the client, which names its product.")] = "",
    map: Annotated[MapFormat, Query(description="Format of the anomaly maps in the answer.")] = "none",  # noqa: A002
    lot: Text = "",
    part: Text = "",
) -> Response:
    """Score images with the model that the registry of the server gives their product.

    The product is found by the name patterns and folders of the registry, from the path that the client gives. If none
    fits, it is the product whose model finds the image least unusual, provided that the registry says `nearest = true`.
    """
    wish = Wish(map, None, lot, part, caller.name, request.state.request_id)
    answer, _ = await answer_to(server, product_of(server, file), request, wish)
    return Response(to_json(answer), media_type="application/json")


async def answer_to(
    server: Server, name: str | None, request: Request, wish: Wish
) -> tuple[dict[str, Any], list[Scored]]:
    """Admit a request, score its images and record the verdicts.

    Args:
        server: The server.
        name: Name of the model; None for the nearest product.
        request: The request.
        wish: Its settings.

    Raises:
        ProblemError: There is no such model, the server is busy, the request is not valid, or it takes too long.
    """
    model = None if name is None else model_of(server, name)
    if server.closing:
        raise ProblemError(503, "The server is shutting down.", headers={"Retry-After": "5"})
    if not server.admission.enter():
        server.telemetry.refused.labels("queue").inc()
        await drain(request.receive, request.headers)
        raise busy(f"{server.admission.limit} images wait already.")
    server.telemetry.queue.set(server.admission.count)
    try:
        with model.use() if model is not None else nullcontext():
            start, until = time.perf_counter(), asyncio.get_running_loop().time() + server.settings.deadline
            uploads = await read_uploads(request, server.max_upload)  # the guard limits its time
            async with asyncio.timeout_at(until):
                chosen = model or model_of(server, await nearest_product(server, uploads))
                with chosen.use():
                    results = await _score_all(server, chosen, uploads, request, wish)
                    return await _recorded(server, chosen, results, wish, start), results
    except TimeoutError as error:
        server.telemetry.refused.labels("deadline").inc()
        seconds = server.settings.deadline
        raise ProblemError(
            503, f"The request was not done within {seconds:g} s.", headers={"Retry-After": "1"}
        ) from error
    finally:
        server.admission.leave()
        server.telemetry.queue.set(server.admission.count)


def model_of(server: Server, name: str) -> ServedModel:
    """Return a loaded model.

    Raises:
        ProblemError: There is none of that name.
    """
    model = server.models.get(name)
    if model is None:
        known = ", ".join(one.name for one in server.models.loaded)
        raise ProblemError(404, f"There is no loaded model '{name}'.", f"Loaded: {known or 'none'}.")
    return model


async def _score_all(
    server: Server, model: ServedModel, uploads: list[Upload], request: Request, wish: Wish
) -> list[Scored]:
    if len(uploads) > 1:
        return await _unless_gone(request, asyncio.ensure_future(_in_groups(server, model, uploads, wish)))
    result = await _unless_gone(request, server.scorer.submit(model, uploads[0], wish))
    if result.row.verdict is Verdict.ERROR:
        raise ProblemError(422, str(result.row.error), request_id=wish.request)
    return [result]


async def _recorded(
    server: Server, model: ServedModel, results: list[Scored], wish: Wish, start: float
) -> dict[str, Any]:
    """Return the answer to a request that began at `start`, when the verdicts are in the history."""
    scored = time.perf_counter()
    stored = await _record(server, model, results, wish)
    longest = {
        stage: max(one.milliseconds.get(stage, 0.0) for one in results)
        for stage in ("decode", "queue", "predict", "post")
    }
    end = time.perf_counter()
    times = {**longest, "history": 1000 * (end - scored), "total": 1000 * (end - start)}
    server.telemetry.observe(times)
    return {
        "request_id": wish.request,
        "model": model.name,
        "results": [one.answer() for one in results],
        "calibration_digest": model.calibration_digest,
        "model_digest": model.version.model_digest,
        "milliseconds": {stage: round(value, 3) for stage, value in times.items()},
        "history": {"stored": stored, "missing": server.history.writer.missing},
    }


async def _in_groups(server: Server, model: ServedModel, uploads: list[Upload], wish: Wish) -> list[Scored]:
    results: list[Scored] = []
    for start in range(0, len(uploads), _AT_ONCE):
        group = uploads[start : start + _AT_ONCE]
        results += await asyncio.gather(*(server.scorer.submit(model, upload, wish) for upload in group))
    return results


async def _unless_gone(request: Request, doing: asyncio.Future[_T]) -> _T:
    """Return the result of the work of a request; drop the work when the client leaves."""
    try:
        await asyncio.wait({doing}, timeout=_SHORT)
        if not doing.done():
            await _until_gone(request, doing)
        if not doing.done():
            raise ProblemError(_GONE, "The client has left.")
        return doing.result()
    finally:
        if not doing.done():
            doing.cancel()


async def _until_gone(request: Request, doing: asyncio.Future[Any]) -> None:
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()


async def _record(server: Server, model: ServedModel, results: list[Scored], wish: Wish) -> bool:
    """Wait until the verdicts are in the history; return whether all are durable."""
    for one in results:
        if one.durable is None:  # an unreadable image among others
            server.scorer.record(one, model, wish)
    waiting = [asyncio.wrap_future(one.durable) for one in results if one.durable is not None]
    await asyncio.wait(waiting, timeout=_PATIENCE)
    for future, one in zip(waiting, results, strict=True):
        one.stored = future.done() and future.result()
        server.count(one, model.name)
    return all(one.stored for one in results)

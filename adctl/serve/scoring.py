"""Scoring of the images of a request: decode in threads, predict in batches, apply the threshold, store, record."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from adctl.data import images
from adctl.data.loader import ArraySample, BytesSample, LoadedImage, load_image
from adctl.errors import ImageError
from adctl.line.verdicts import deciding
from adctl.names import printable
from adctl.records import ScoredImage, Verdict
from adctl.scoring.colour_bar import ColourScale
from adctl.scoring.heatmaps import LARGEST, map_layer, overlay
from adctl.scoring.png import encode_png
from adctl.scoring.predict import PredictedImage
from adctl.scoring.score import to_row
from adctl.serve.history import MESSAGE, NEAR, History, now
from adctl.serve.image_store import SUFFIXES, npy_bytes
from adctl.serve.served_models import with_threshold
from adctl.sinks.base import message_of
from adctl.thresholds.decision import DecisionRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from adctl.config import ServeSettings
    from adctl.data.preprocess import InputSpec
    from adctl.line.verdicts import Combination
    from adctl.records import Sample
    from adctl.serve.batcher import Predicted
    from adctl.serve.image_store import ImageStore
    from adctl.serve.row_writer import Row
    from adctl.serve.served_models import ServedModel
    from adctl.sinks.delivery import Outbox

log = logging.getLogger(__name__)

MapFormat = Literal["none", "png", "npy", "overlay"]

_THUMBNAIL_SIDE = 160
_JPEG_QUALITY = 85
_SLIGHTLY = 3.0
"""Reduction up to which a thumbnail is interpolated: the mean over areas takes five times as long."""
_NAME_LENGTH = 200
_COLOURS = 3

_LATER = 0.004
"""Seconds from a result to its thumbnail, in which its answer is sent."""

_MOST_WAITING = 500
"""Thumbnails that may wait for a slow disk; further images get none."""

_PATIENCE = 5.0
"""Longest time for the thumbnails that wait at the end, in seconds."""


@dataclass(frozen=True)
class Upload:
    """One image of a request.

    Attributes:
        name: Name that the client gave; only text.
        data: Bytes of the image file; empty for an image of a camera.
        array: Pixels of an image of a camera [H,W] or [H,W,3], RGB; None for a file.
    """

    name: str
    data: bytes
    array: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Wish:
    """Settings of a request.

    Attributes:
        map: Format of the anomaly map in the answer.
        threshold: Threshold for the verdicts of this request; None for that of the model.
        lot: Lot that the parts belong to.
        part: Identifier of the part.
        client: Name of the caller's key.
        request: Identifier of the request.
        triggered: When the part was before the camera, by `time.monotonic` and as text; None for now.
        frames: Number of images of the part.
    """

    map: MapFormat = "none"
    threshold: float | None = None
    lot: str = ""
    part: str = ""
    client: str = ""
    request: str = ""
    triggered: tuple[float, str] | None = None
    frames: int = 1


@dataclass
class Scored:
    """Result for one image.

    Attributes:
        id: Identifier of the verdict.
        row: Score and verdict.
        name: Name that the client gave.
        pixel_threshold: Threshold on map values, or None.
        map: Anomaly map in the wanted format; None if none was wanted.
        cells: Raw anomaly map [h,w]; None for an unreadable image.
        image: Suffix of the stored image; empty if it was not stored.
        has_map: Whether its map was stored.
        stored: Whether the history has it.
        milliseconds: Time of each stage.
        entry: Row of the history; None if it is not recorded.
        durable: Whether the history has it, when that is known; None if it is not recorded.
    """

    id: str
    row: ScoredImage
    name: str
    pixel_threshold: float | None
    map: bytes | None = None
    cells: np.ndarray[Any, np.dtype[np.float32]] | None = None
    image: str = ""
    has_map: bool = False
    stored: bool = False
    milliseconds: dict[str, float] = field(default_factory=dict)
    entry: Row | None = None
    durable: Future[bool] | None = None

    def answer(self) -> dict[str, Any]:
        """Return what the client is told."""
        row = self.row
        found: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "score": row.score,
            "p_value": row.p_value,
            "probability": row.probability,
            "verdict": str(row.verdict),
            "boxes": [box_of(box) for box in row.boxes],
            "threshold": row.threshold,
            "pixel_threshold": self.pixel_threshold,
            "width": row.width,
            "height": row.height,
            "kind": row.kind,
            "kind_probability": row.kind_probability,
        }
        if self.map is not None:
            found["map"] = base64.b64encode(self.map).decode()
        return found if row.error is None else {**found, "error": row.error}


def box_of(box: Any) -> dict[str, Any]:
    """Return a box as JSON."""
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height, "peak": box.peak}


class _Job:
    """Image on its way through the stages.

    Attributes:
        done: Its result.
        start: Time of its beginning, by `time.perf_counter`.
        decoded: Time when it was decoded.
    """

    __slots__ = ("decoded", "done", "model", "start", "upload", "wish")

    def __init__(self, model: ServedModel, upload: Upload, wish: Wish) -> None:
        self.model, self.upload, self.wish = model, upload, wish
        self.done: Future[Scored] = Future()
        self.start = self.decoded = time.perf_counter()

    def tell(self, scored: Scored) -> None:
        """Give the result to whoever waits for it."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(scored)


@dataclass(frozen=True)
class PartJob:
    """Images of one part on their way.

    Attributes:
        model: Model that judges them.
        uploads: The images.
        wish: Facts for the history.
        start: Time of the beginning, by `time.perf_counter`.
        decoded: Time when all were decoded.
        items: Decoded images.
        futures: Prediction of each; None for an unreadable image.
    """

    model: ServedModel
    uploads: list[Upload]
    wish: Wish
    start: float
    decoded: float
    items: list[LoadedImage]
    futures: list[Future[Predicted] | None]


class Scorer:
    """Threads that decode images and finish results; shared by all models.

    Args:
        settings: Largest image, and which images are stored.
        store: Files of the verdicts.
        history: Source of identifiers, and writer of the rows.
        outbox: Sinks that get each recorded verdict.
    """

    def __init__(self, settings: ServeSettings, store: ImageStore, history: History, outbox: Outbox) -> None:
        self._settings = settings
        self._outbox = outbox
        self._store = store
        self._next_id = history.ids.next
        self._write = history.writer.add
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "adctl-serve")
        self._thumbnails: SimpleQueue[tuple[str, LoadedImage] | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write_thumbnails, name="adctl-thumbnails", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write the thumbnails that wait, and end the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._thumbnails.put(None)
        self._writer.join(_PATIENCE)

    def submit(self, model: ServedModel, upload: Upload, wish: Wish) -> asyncio.Future[Scored]:
        """Begin to score one image; an unreadable one gives a row with an error, which is not recorded.

        Each stage begins in the thread where the one before it ended if that costs less than to wake another thread.
        The row of the history is queued as soon as it is known, and the thumbnail is made after the result is told.
        """
        job = _Job(model, upload, wish)
        self._threads.submit(self._stage, self._load, job)
        return asyncio.wrap_future(job.done)

    def begin_part(self, model: ServedModel, uploads: list[Upload], wish: Wish) -> PartJob:
        """Decode the images of one part here, and queue their predictions."""
        start = time.perf_counter()
        items = [self._decode(model, upload, wish) for upload in uploads]
        futures = [None if item.error else model.batcher.submit(item) for item in items]
        return PartJob(model, uploads, wish, start, time.perf_counter(), items, futures)

    def end_part(self, job: PartJob, combine: Combination, seconds: float) -> Scored:
        """Wait for the predictions of a part, and return the result of the image that decides; it is not recorded.

        Args:
            job: Result of `begin_part`.
            combine: Choice of the deciding image.
            seconds: Longest time to wait.

        Raises:
            TimeoutError: It took longer.
        """
        predicted = [
            PredictedImage(item, None, None) if future is None else future.result(seconds).image
            for item, future in zip(job.items, job.futures, strict=True)
        ]
        ended = time.perf_counter()
        rows = [to_row(one, job.model.rule) for one in predicted]
        number, row = deciding(list(enumerate(rows)), lambda pair: pair[1], combine)
        times = {"decode": 1000 * (job.decoded - job.start), "predict": 1000 * (ended - job.decoded)}
        if row.verdict is Verdict.ERROR:
            return self.without_score(row, times)
        scored = self._finish(job.model, predicted[number], job.uploads[number], job.wish)
        scored.milliseconds = {**times, "post": 1000 * (time.perf_counter() - ended)}
        self._picture_later(scored.id, predicted[number].item)
        return scored

    def without_score(self, row: ScoredImage, milliseconds: dict[str, float] | None = None) -> Scored:
        """Return the result of a part that cannot be judged; it is not recorded."""
        return Scored(self._next_id(), row, row.key, None, milliseconds=milliseconds or {})

    def predict(self, model: ServedModel, upload: Upload) -> asyncio.Future[float | None]:
        """Begin to compute the score of one image, which is not recorded; None for an unreadable one."""
        done: Future[float | None] = Future()

        def work() -> None:
            try:
                item = self._decode(model, upload, Wish())
                if item.error is not None:
                    done.set_result(None)
                    return
                model.batcher.submit(item).add_done_callback(tell)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the score gets the error
                done.set_exception(error)

        def tell(predicted: Future[Predicted]) -> None:
            try:
                done.set_result(predicted.result().image.score)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the score gets the error
                done.set_exception(error)

        self._threads.submit(work)
        return asyncio.wrap_future(done)

    def _stage(self, work: Callable[..., None], job: _Job, *arguments: Any) -> None:
        """Do one stage of a job, unless it was cancelled; an error ends the job."""
        if job.done.cancelled():
            return
        try:
            work(job, *arguments)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the image gets the error
            if not job.done.done() and job.done.set_running_or_notify_cancel():
                job.done.set_exception(error)

    def _load(self, job: _Job) -> None:
        item = self._decode(job.model, job.upload, job.wish)
        job.decoded = time.perf_counter()
        if item.error is not None:
            job.tell(self._unreadable(item, job.upload, {"decode": 1000 * (job.decoded - job.start)}))
            return
        future = job.model.batcher.submit(item)
        job.done.add_done_callback(lambda done: done.cancelled() and future.cancel())
        future.add_done_callback(lambda predicted: self._predicted(job, predicted))

    def _predicted(self, job: _Job, future: Future[Predicted]) -> None:
        if future.cancelled():
            return
        if future.exception() is None and not future.result().alone:
            self._threads.submit(self._stage, self._conclude, job, future)  # the next batch begins meanwhile
        else:
            self._stage(self._conclude, job, future)

    def _conclude(self, job: _Job, future: Future[Predicted]) -> None:
        predicted = future.result()
        scored = self._finish(job.model, predicted.image, job.upload, job.wish)
        scored.milliseconds = {
            "decode": 1000 * (job.decoded - job.start),
            "queue": 1000 * (predicted.began - job.decoded),
            "predict": 1000 * (predicted.ended - predicted.began),
            "post": 1000 * (time.perf_counter() - predicted.ended),
        }
        if scored.row.verdict is not Verdict.ERROR:
            self.record(scored, job.model, job.wish)
        self._picture_later(scored.id, predicted.image.item)
        job.tell(scored)

    def _picture_later(self, identifier: str, item: LoadedImage) -> None:
        """Queue the thumbnail of an image."""
        if self._thumbnails.qsize() < _MOST_WAITING:
            self._store.expect(identifier)
            self._thumbnails.put((identifier, item))

    def record(self, scored: Scored, model: ServedModel, wish: Wish) -> None:
        """Queue the row of a result for the history, and with it the message for the sinks."""
        scored.entry = history_row(scored, model, wish)
        if self._outbox:
            moment, clock = wish.triggered or (time.monotonic() - sum(scored.milliseconds.values()) / 1000, now())
            self._outbox.trigger(scored.id, moment)
            scored.entry[MESSAGE] = message_of(
                scored.row, id=scored.id, triggered=clock, source=wish.client, part=wish.part or scored.name,
                lot=wish.lot, frames=wish.frames, model=model.name, model_sha256=model.version.model_digest,
            )  # fmt: skip
        scored.durable = self._write(scored.entry)

    def _decode(self, model: ServedModel, upload: Upload, wish: Wish) -> LoadedImage:
        sample: Sample
        if upload.array is not None:
            sample = ArraySample(Path(upload.name), upload.name, array=upload.array)
        else:
            sample = BytesSample(Path(upload.name), upload.name, data=upload.data)
            try:
                _require_size(sample.path, upload.data, self._settings.max_pixels)
            except ImageError as error:
                return LoadedImage(sample, None, error=error)
        spec = model.runtime.input
        if wish.map == "overlay":
            return load_image(sample, spec, LARGEST)
        return load_image(sample, spec, None if _shows_whole(spec) else _THUMBNAIL_SIDE)

    def _unreadable(self, item: LoadedImage, upload: Upload, milliseconds: dict[str, float]) -> Scored:
        reason = str(item.error)
        row = ScoredImage(upload.name, upload.name, None, None, None, None, Verdict.ERROR, error=reason)
        return Scored(self._next_id(), row, upload.name, None, milliseconds=milliseconds)

    def _finish(self, model: ServedModel, predicted: PredictedImage, upload: Upload, wish: Wish) -> Scored:
        rule, calibration = model.rule, model.calibration
        if wish.threshold is not None and calibration is not None:
            calibration = with_threshold(calibration, wish.threshold)
            assert calibration is not None
            rule = DecisionRule(calibration)
        row = to_row(predicted, rule)
        if row.verdict is not Verdict.REJECT:  # by the threshold of this request
            row = replace(row, kind=None, kind_probability=None)
        pixel_threshold = calibration.pixel_threshold if calibration else None
        scored = Scored(self._next_id(), row, upload.name, pixel_threshold, cells=predicted.anomaly_map)
        if row.verdict is not Verdict.ERROR:
            scored.map = self._picture(model, predicted, row, wish)
            if wish.threshold is None:
                model.add(row, predicted.inputs)
        self._keep(scored, predicted, upload)
        return scored

    def _picture(self, model: ServedModel, predicted: PredictedImage, row: ScoredImage, wish: Wish) -> bytes | None:
        """Return the map in the wanted format: float16 in its own resolution, or a picture of at most 512 pixels."""
        cells = predicted.anomaly_map
        if cells is None or wish.map == "none":
            return None
        if wish.map == "npy":
            return npy_bytes(cells)
        scale = model.scale or ColourScale.from_values(cells)
        if wish.map == "overlay" and predicted.item.display is not None:
            contour = (
                None if row.verdict is Verdict.GOOD or model.calibration is None else model.calibration.pixel_threshold
            )
            return encode_png(overlay(predicted.item.display, cells, scale, contour_at=contour))
        return encode_png(map_layer(cells, scale, predicted.item.height, predicted.item.width))

    def _keep(self, scored: Scored, predicted: PredictedImage, upload: Upload) -> None:
        """Store the image and its map if they are wanted."""
        item = predicted.item
        wanted = self._settings.store_images
        if wanted == "all" or (wanted == "rejects" and is_near(scored.row)):
            data = upload.data if upload.array is None else images.to_png(upload.array)
            suffix = SUFFIXES[images.header_of(item.sample.path, data).format]
            if self._store.write(scored.id, suffix, data):
                scored.image = suffix
            if predicted.anomaly_map is not None:
                scored.has_map = self._store.write_map(scored.id, predicted.anomaly_map)

    def _write_thumbnails(self) -> None:
        """Write thumbnails as they come, a moment later: the answer would wait for the lock of the interpreter."""
        while (entry := self._thumbnails.get()) is not None:
            if self._thumbnails.empty():
                time.sleep(_LATER)
            identifier, item = entry
            shown = item.pixels if item.display is None else item.display
            try:
                if shown is not None:
                    self._store.write_thumbnail(identifier, _thumbnail(shown, item.height, item.width))
            except Exception as error:  # noqa: BLE001 - the next image may be an ordinary one
                log.warning("No thumbnail of %s: %s", identifier, error)
            finally:
                self._store.arrived(identifier)


def _shows_whole(spec: InputSpec) -> bool:
    """Return whether the network's input is large enough for a thumbnail and shows the whole image in its colours."""
    whole = spec.resize == "squash" and spec.roi is None and not spec.tiled
    return whole and spec.channels == _COLOURS and not spec.masked and min(spec.height, spec.width) >= _THUMBNAIL_SIDE


def _require_size(name: Path, data: bytes, most: int) -> None:
    """Raise an `ImageError` if the header of an image is damaged or states more than `most` pixels."""
    header = images.header_of(name, data)
    if header.width * header.height > most:
        raise ImageError(
            f"{name} has {header.width} x {header.height} pixels, and this server takes at most {most} pixels.",
            "Send a smaller image, or start the server with a larger --max-pixels.",
        )


def is_near(row: ScoredImage) -> bool:
    """Return whether an image was rejected, or nearly."""
    if row.verdict in (Verdict.REJECT, Verdict.WARN):
        return True
    return row.p_value is not None and row.p_value <= NEAR


def _thumbnail(shown: images.RgbImage, height: int, width: int) -> bytes:
    """Return a JPEG file of a picture of an image with `height` x `width` pixels, in the proportions of the image."""
    scale = min(1.0, _THUMBNAIL_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if max(shown.shape[0] / size[1], shown.shape[1] / size[0]) <= _SLIGHTLY:
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    else:
        shown = images.resize(shown, size[1], size[0])
    bgr = cv2.cvtColor(shown, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return encoded.tobytes()


def name_from(text: str | None) -> str:
    """Return the name that a client gave, shortened; `image` if it gave none.

    Control characters and surrogates are escaped, because databases refuse some of them.
    """
    return printable(text or "image")[:_NAME_LENGTH]


def history_row(scored: Scored, model: ServedModel, wish: Wish) -> dict[str, Any]:
    """Return the row of the history for a result."""
    row = scored.row
    return {
        "id": scored.id,
        "time": now(),
        "request": wish.request,
        "model": model.name,
        "model_sha256": model.version.model_digest,
        "calibration_sha256": model.calibration_digest,
        "name": scored.name,
        "lot": wish.lot,
        "part": wish.part,
        "client": wish.client,
        "verdict": str(row.verdict),
        "score": row.score,
        "p_value": row.p_value,
        "probability": row.probability,
        "threshold": row.threshold,
        "pixel_threshold": scored.pixel_threshold,
        "width": row.width,
        "height": row.height,
        "boxes": [box_of(box) for box in row.boxes],
        "error": row.error or "",
        "milliseconds": round(sum(scored.milliseconds.values()), 3),
        "image": scored.image,
        "has_map": scored.has_map,
        "kind": row.kind,
        "kind_probability": row.kind_probability,
    }

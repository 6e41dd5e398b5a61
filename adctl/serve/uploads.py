"""Images of a request: a raw body, or the files of a form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adctl.serve.answers import BINARY
from adctl.serve.problems import ProblemError
from adctl.serve.scoring import Upload, name_from

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_IMAGES = 64
"""Most images of one request."""

_MOST_FIELDS = 16
_FORM = "multipart/form-data"
_RAW = ("image/", "application/octet-stream", "application/x-npy")


BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one image file, or a form with one or several.",
        "content": {
            **dict.fromkeys(
                ("image/png", "image/jpeg", "image/tiff", "image/bmp", "image/webp", "application/x-npy"), BINARY
            ),
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["images"],
                }
            },
        },
    }
}
"""Body of requests with images, for OpenAPI."""


async def read_uploads(request: Request, max_upload: int) -> list[Upload]:
    """Read the images of a request into memory; the body is limited by the server's guard.

    Raises:
        ProblemError: The content type is not accepted, the form is damaged or has too many parts, or there is no image.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM:
        return await _of_form(request, max_upload)
    if kind and not kind.startswith(_RAW):
        raise ProblemError(
            415, f"The content type {kind} is not accepted.", f"Send the bytes of an image as image/png, or {_FORM}."
        )
    data = await request.body()
    if not data:
        raise ProblemError(422, "The body is empty.", "Send the bytes of an image file.")
    return [Upload(name_from(request.query_params.get("part")), data)]


async def _of_form(request: Request, max_upload: int) -> list[Upload]:
    parser = MultiPartParser(request.headers, request.stream(), max_files=MOST_IMAGES, max_fields=_MOST_FIELDS)
    parser.spool_max_size = max_upload + 1  # in memory: the disk may be full
    try:
        form = await parser.parse()
    except MultiPartException as error:
        status = 413 if error.message.startswith("Too many") else 400
        raise ProblemError(status, error.message, f"Send at most {MOST_IMAGES} files in one request.") from error
    except (KeyError, ValueError, AssertionError) as error:
        raise ProblemError(
            400, "The form cannot be read.", "Send it as multipart/form-data with a boundary."
        ) from error
    uploads = [
        Upload(name_from(part.filename), await part.read())
        for _, part in form.multi_items()
        if isinstance(part, UploadFile)
    ]
    await form.close()
    if not uploads:
        raise ProblemError(422, "The form holds no file.", "Add at least one file.")
    return uploads

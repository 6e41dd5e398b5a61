"""JSON from outside as typed values: the one place that checks documents of earlier runs, other programs and users.

A document is described by a dataclass or a typed dictionary. Nothing is converted: a number in quotes, a missing or
unknown key and a number that is not finite are errors, and the message names the field. Pydantic is imported when the
first document is read.
"""

from __future__ import annotations

import json
import reprlib
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from adctl import reading
from adctl.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
Others = Literal["forbid", "allow", "ignore"]
"""Treatment of keys that a document's type does not have."""

_UNPAIRED = "surrogate"
"""Word in pydantic's message on a file name that is not UTF-8, which Python writes as half of a surrogate pair."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of any shape.

    Raises:
        ValueError: The text is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse(text: str | bytes, kind: type[T], others: Others = "forbid") -> T:
    """Parse a JSON document of a known type.

    Args:
        text: JSON.
        kind: Dataclass or typed dictionary that describes the document.
        others: Treatment of unknown keys, at every level.

    Raises:
        ValueError: The text is not JSON, or not of this type; the message names the first wrong field.
    """
    from pydantic import ValidationError

    try:
        value: T | None = _adapter(cast("Any", kind), others).validate_json(text)
    except ValidationError as error:
        if _UNPAIRED not in str(error.errors(include_url=False)[0]["msg"]):
            raise ValueError(_first_fault(error)) from error
        value = _with_any_names(text, kind, others)
    if value is None:
        raise ValueError("it is null")
    return value


def convert(value: Any, kind: type[T], others: Others = "forbid") -> T:
    """Convert parsed JSON to a known type.

    Raises:
        ValueError: The value is not of this type; the message names the first wrong field.
    """
    try:
        return parse(json.dumps(value), kind, others)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read(path: Path, kind: type[T], remedy: str, others: Others = "forbid") -> T | None:
    """Read a JSON document of a known type from a file; return None if there is no such file.

    Raises:
        DataError: The file cannot be read or is damaged; the message names the first wrong field.
    """
    try:
        return parse(reading.read_bytes(path), kind, others)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}.", remedy) from error


def leading_records(content: bytes, kind: type[T], others: Others = "forbid") -> list[tuple[T, int]]:
    """Return the leading lines of JSON Lines that are complete and of a known type, each with its number of bytes.

    Args:
        content: Lines of JSON; a killed process may have left the last one half-written.
        kind: Dataclass or typed dictionary that describes a line.
        others: Treatment of unknown keys, at every level.
    """
    found: list[tuple[T, int]] = []
    for line in content.split(b"\n")[:-1]:
        try:
            found.append((parse(line, kind, others), len(line) + 1))
        except ValueError:
            break
    return found


@cache
def _adapter(kind: Any, others: Others, *, strict: bool = True) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    # Dataclasses take the configuration of the type around them, here of the union with None.
    config = ConfigDict(strict=strict, extra=others, allow_inf_nan=False)
    return TypeAdapter(kind | None, config=config)


def _with_any_names(text: str | bytes, kind: type[T], others: Others) -> T | None:
    """Parse a document that holds file names which are not UTF-8; pydantic's own parser refuses these."""
    from pydantic import ValidationError

    try:
        value: T | None = _adapter(cast("Any", kind), others, strict=False).validate_python(parse_json(text))
    except ValidationError as error:
        raise ValueError(_first_fault(error)) from error
    return value


def _first_fault(error: ValidationError) -> str:
    """Return the place and the reason of the first fault, such as `calibration.threshold: Input should be ...`."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"]))
    if fault["type"] == "json_invalid" or not place:
        return str(fault["msg"]).removeprefix("Value error, ")
    found = "" if fault["type"] == "missing" else f", not {reprlib.repr(fault['input'])}"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}{found}"

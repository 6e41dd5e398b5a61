"""OpenAPI document with an example for each parameter, body and answer, and with the problems of each route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adctl.serve.answers import Problem
from adctl.serve.examples import CONTENTS, MODELS, PARAMETERS, PROBLEMS
from adctl.serve.problems import MEDIA_TYPE, members_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST_ERROR = 400
_PROBLEM = "#/components/schemas/Problem"


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add the examples and the content of problems to an OpenAPI document, and return it."""
    schemas = document["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    for name, example in MODELS.items():
        schemas[name]["examples"] = [example]
    for operation in operations(document):
        for parameter in operation.get("parameters", ()):
            parameter["example"] = _of_parameter(parameter)
        for status, answer in operation["responses"].items():
            if int(status) >= _FIRST_ERROR and not answer.get("content"):
                example = members_of(int(status), *PROBLEMS[int(status)])
                answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": _PROBLEM}, "example": example}}
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            for kind, content in body.get("content", {}).items():
                if "example" not in content:
                    content["example"] = _of_content(kind, content["schema"])
    return document


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return each operation of an OpenAPI document."""
    for methods in document["paths"].values():
        yield from methods.values()


def _of_parameter(parameter: dict[str, Any]) -> Any:
    allowed = parameter["schema"].get("enum")
    return allowed[0] if allowed else PARAMETERS[parameter["name"]]


def _of_content(kind: str, schema: dict[str, Any]) -> Any:
    """Return the example of a content type: of its model where it is JSON."""
    if kind in CONTENTS:
        return CONTENTS[kind]
    if "anyOf" in schema:  # a body that may be left out
        return _of_content(kind, schema["anyOf"][0])
    if schema.get("type") == "array":
        return [_of_content(kind, schema["items"])]
    return MODELS[schema["$ref"].rpartition("/")[2]]

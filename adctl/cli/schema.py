"""Command `adctl schema`: the JSON Schemas of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, print_json, rows

if TYPE_CHECKING:
    from adctl.config import SchemaSettings


def run(call: Call[SchemaSettings]) -> None:
    """Print the schema of a document, or list the documents."""
    from adctl.schemas import documents, schema

    named = " ".join(call.settings.document)
    if not named:
        listed = documents()
        call.finish(listed, lambda: rows(listed.items(), "document", "content"))
        return
    found = schema(named)
    if call.as_json:
        call.finish(found, lambda: "")
    else:
        print_json(found)

"""The published JSON Schemas; `CommandLine.json` checks every document that a test prints against them."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from conftest import ROOT, check_document
from test_scoring import settings_for

import adctl
from adctl.config import COMMANDS
from adctl.errors import UsageError
from adctl.schemas import FILES, RESULTS, documents, schema
from adctl.scoring.score import score


def test_every_command_and_file_has_a_schema():
    assert set(RESULTS) == set(COMMANDS)
    assert set(documents()) == {*RESULTS, *FILES}


@pytest.mark.parametrize("name", [*RESULTS, *FILES])
def test_schemas_are_valid_and_refer_to_nothing_outside(name):
    found = schema(name)
    jsonschema.Draft202012Validator.check_schema(found)
    text = json.dumps(found)
    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) <= found["$defs"].keys()
    assert set(re.findall(r'"\$ref": "([^"]*)"', text)) == {f"#/$defs/{one}" for one in re.findall(r"defs/(\w+)", text)}


def test_fields_are_described():
    drift = schema("score")["$defs"]["Drift"]
    assert drift["description"] == "Result of comparing a folder with the calibration."
    assert drift["properties"]["drifted"]["description"] == "Whether to warn."


def test_an_unknown_document_is_told():
    with pytest.raises(UsageError, match="Unknown document 'scores'"):
        adctl.schema("scores")
    assert adctl.schema(["fetch", "check"]) == adctl.schema("fetch check") == schema("fetch check")


def test_files_are_as_their_schemas_say(patchcore, zippers, tmp_path):
    check_document(json.loads((patchcore.run / "run.json").read_text("utf-8")), "run.json")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "broken.png").write_bytes(b"x")
    (odd / "whole.png").write_bytes(next((zippers / "test" / "good").iterdir()).read_bytes())
    for images in (zippers / "test", odd):
        folder = score(settings_for(patchcore, images, tmp_path / "scored" / images.name)).folder
        check_document(json.loads((folder / "scores.json").read_text("utf-8")), "scores.json")
        for line in (folder / "results.jsonl").read_text("utf-8").splitlines():
            check_document(json.loads(line), "results.jsonl")


def test_a_schema_is_printed_bare_or_in_an_envelope(adctl):
    bare = json.loads(adctl("schema", "fetch", "check").stdout)
    assert bare == schema("fetch check")
    assert adctl.json("schema", "fetch", "check")["result"] == bare
    assert set(adctl.json("schema")["result"]) == set(documents())
    assert adctl.json("schema", "nothing", code=2)["error"]["kind"] == "UsageError"


def test_the_docs_name_the_promise():
    text = (ROOT / "docs" / "pages" / "automation.md").read_text("utf-8")
    assert "adctl schema score" in text

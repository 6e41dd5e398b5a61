"""Gates: parsing, failing, and the JUnit XML."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.errors import UsageError
from adctl.gate_files import github_annotations, write_junit, write_sarif
from adctl.gates import EXIT_CODE, Gate, GateResult, check, exit_code

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)


@given(st.from_regex(r"[a-z_][a-z0-9_.]{0,20}", fullmatch=True), st.sampled_from([">", ">=", "<", "<="]), NUMBERS)
def test_what_is_written_is_read(name, comparison, limit):
    assert Gate.parse(f" {name} {comparison} {limit!r} ") == Gate(name, comparison, limit)
    assert Gate.parse(str(Gate(name, comparison, limit))).limit == pytest.approx(limit, rel=1e-5)


@pytest.mark.parametrize(
    "text",
    ["", "p95_ms", "p95_ms=5", "p95_ms==5", ">5", "p95_ms>", "p95>1.2.3", "a>5;b", "__import__('os')>1", "a>b>1"],
)
def test_all_else_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="cannot be understood") as raised:
        Gate.parse(text)
    assert "--fail-if" in raised.value.remedy


@given(NUMBERS, NUMBERS)
def test_a_gate_fails_exactly_when_its_condition_holds(value, limit):
    holds = {">": value > limit, ">=": value >= limit, "<": value < limit, "<=": value <= limit}
    for comparison, failed in holds.items():
        (result,) = check([Gate("auroc", comparison, limit)], {"auroc": value}, "part")
        assert result.passed is not failed
        assert exit_code([result]) == (EXIT_CODE if failed else 0)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_is_not_known_does_not_pass(value):
    (result,) = check([Gate("auroc", "<", 0.9)], {"auroc": value}, "part")
    assert not result.passed


def test_an_unknown_figure_lists_the_known_ones():
    with pytest.raises(UsageError) as raised:
        check([Gate("p95", ">", 1)], {"p95_ms": 1.0}, "model")
    assert "p95_ms" in raised.value.remedy


@given(st.lists(st.tuples(st.text(), st.booleans()), max_size=4))
def test_junit_holds_every_result_whatever_it_is_called(tmp_path_factory, drawn):
    results = [GateResult(f"{text}>1", text, passed, f"because {text}") for text, passed in drawn]
    path = tmp_path_factory.mktemp("junit") / "gates.xml"
    write_junit(path, "adctl.bench", results)
    suite = ET.parse(path).getroot()[0]
    assert suite.get("tests") == str(len(drawn))
    assert suite.get("failures") == str(sum(not passed for _, passed in drawn))
    assert [case.find("failure") is None for case in suite] == [passed for _, passed in drawn]


SCHEMA = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["name"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "version": {"type": "string"},
                                    "informationUri": {"type": "string", "pattern": "^https://"},
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "additionalProperties": False,
                                            "required": ["id"],
                                            "properties": {
                                                "id": {"type": "string"},
                                                "shortDescription": {"$ref": "#/$defs/message"},
                                                "defaultConfiguration": {
                                                    "properties": {"level": {"$ref": "#/$defs/level"}}
                                                },
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["message"],
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "level": {"$ref": "#/$defs/level"},
                                "message": {"$ref": "#/$defs/message"},
                                "locations": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {
                                        "required": ["physicalLocation"],
                                        "properties": {
                                            "physicalLocation": {
                                                "required": ["artifactLocation"],
                                                "properties": {
                                                    "artifactLocation": {
                                                        "required": ["uri"],
                                                        "properties": {"uri": {"pattern": "^[!-~]+$"}},
                                                    },
                                                    "region": {
                                                        "properties": {"startLine": {"type": "integer", "minimum": 1}}
                                                    },
                                                },
                                            }
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    "$defs": {
        "level": {"enum": ["none", "note", "warning", "error"]},
        "message": {
            "type": "object",
            "required": ["text"],
            "additionalProperties": False,
            "properties": {"text": {"type": "string"}},
        },
    },
}
"""The part of the OASIS schema of SARIF 2.1.0 that concerns what is written."""


@given(st.lists(st.tuples(st.text(min_size=1), st.booleans()), max_size=4))
def test_sarif_has_a_rule_for_each_gate_and_a_result_for_each_failure(tmp_path_factory, drawn):
    results = [GateResult(f"{text}>1", text, passed, f"because {text}") for text, passed in drawn]
    path = tmp_path_factory.mktemp("sarif") / "gates.sarif"
    write_sarif(path, "adctl.bench", results, {})
    document = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(document, SCHEMA)
    (run,) = document["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert {rule["id"] for rule in rules} == {result.gate for result in results}
    assert len(run["results"]) == sum(not passed for _, passed in drawn)
    assert all(rules[found["ruleIndex"]]["id"] == found["ruleId"] for found in run["results"])


def test_sarif_places_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = [GateResult("a>1", name, False, "because.") for name in ("in", "out")]
    places = {"in": tmp_path / "my scores" / "scores.json", "out": Path("/else/where.json")}
    write_sarif(tmp_path / "gates.sarif", "adctl.report", failed, places)
    found = json.loads((tmp_path / "gates.sarif").read_text())["runs"][0]["results"]
    uris = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in found]
    assert uris == ["my%20scores/scores.json", "file:///else/where.json"]


def test_annotations_are_one_line_each_whatever_the_text():
    gates = [GateResult("a>1", "x", True, "fine"), GateResult("a,b:1", "50 %", False, "one\ntwo::three")]
    assert github_annotations("adctl report", gates, ["a note"]) == [
        "::error title=adctl report%3A a%2Cb%3A1::50 %25: one%0Atwo::three",
        "::warning title=adctl report::a note",
    ]

"""Gates: parsing, failing, and the JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adctl.errors import UsageError
from adctl.gates import EXIT_CODE, Gate, GateResult, check, exit_code, write_junit

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

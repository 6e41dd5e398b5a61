"""Results of gates for continuous-integration systems: JUnit XML, SARIF, and annotations of GitHub Actions.

The formats of files are listed in `adctl.choices.GATE_FORMATS`. Standard library only.
"""

from __future__ import annotations

import os
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree as ET  # used only for writing

from adctl import __version__, files
from adctl.choices import GATE_FORMATS
from adctl.errors import UsageError
from adctl.names import encodable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from adctl.config import GateSettings
    from adctl.gates import GateResult

_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_HOME = "https://github.com/adctl/adctl"
# Characters that XML 1.0 does not allow, escaped or not.
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def gate_files(settings: GateSettings) -> dict[str, Path]:
    """Return the files of gate results that the settings name, by format."""
    named = {name: getattr(settings, name) for name in GATE_FORMATS}
    return {name: path for name, path in named.items() if path is not None}


def require_conditions(settings: GateSettings) -> None:
    """Raise if a file of gate results is wanted but no condition is given.

    Raises:
        UsageError: There is no condition.
    """
    for name in gate_files(settings):
        if not settings.fail_if:
            raise UsageError(f"--{name} needs a condition to check.", "Add --fail-if 'image_auroc<0.95'.")


def write_gate_files(
    settings: GateSettings, suite: str, results: Sequence[GateResult], places: Mapping[str, Path]
) -> None:
    """Write each file of gate results that the settings name.

    Args:
        settings: Settings of the command.
        suite: Name of the command, such as `adctl.report`.
        results: Results of the gates.
        places: File of each subject: a model or the scores of a dataset.

    Raises:
        OutputError: A file cannot be written.
    """
    for name, path in gate_files(settings).items():
        pkgutil.resolve_name(GATE_FORMATS[name])(path, suite, results, places)


def write_junit(
    path: Path, suite: str, results: Sequence[GateResult], places: Mapping[str, Path] | None = None
) -> None:
    """Write gate results as JUnit XML, the test report format that CI systems display.

    Args:
        path: The file to write.
        suite: Name of the test suite, such as `adctl.report`.
        results: The results; each becomes one test case.
        places: Not used; JUnit XML names subjects.

    Raises:
        OutputError: The file cannot be written.
    """
    del places
    failures = sum(not result.passed for result in results)
    counted = {"tests": str(len(results)), "failures": str(failures), "errors": "0", "skipped": "0"}
    root = ET.Element("testsuites", counted)
    parent = ET.SubElement(root, "testsuite", {"name": suite, **counted})
    for result in results:
        names = {"classname": _xml_text(f"{suite}.{result.subject}"), "name": _xml_text(result.gate), "time": "0"}
        case = ET.SubElement(parent, "testcase", names)
        if result.passed:
            ET.SubElement(case, "system-out").text = _xml_text(result.message)
        else:
            ET.SubElement(case, "failure", {"message": _xml_text(result.message)})
    ET.indent(root)
    files.write_bytes(path, ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def write_sarif(path: Path, suite: str, results: Sequence[GateResult], places: Mapping[str, Path]) -> None:
    """Write gate results as SARIF, the format of GitHub code scanning and many editors.

    Each gate is a rule and each failed gate a result. OASIS, Static Analysis Results Interchange Format 2.1.0.

    Args:
        path: The file to write.
        suite: Name of the command, such as `adctl.report`.
        results: Results of the gates.
        places: File of each subject, which is the location of its results.

    Raises:
        OutputError: The file cannot be written.
    """
    gates = list(dict.fromkeys(result.gate for result in results))
    driver = {
        "name": "adctl",
        "version": __version__,
        "informationUri": _HOME,
        "rules": [
            {
                "id": gate,
                "shortDescription": {"text": f"{suite} fails if {gate}"},
                "defaultConfiguration": {"level": "error"},
            }
            for gate in gates
        ],
    }
    run = {
        "tool": {"driver": driver},
        "results": [
            _sarif_result(result, gates.index(result.gate), places.get(result.subject, Path(result.subject)))
            for result in results
            if not result.passed
        ],
        "columnKind": "unicodeCodePoints",
        "properties": {"schema": "adctl.gates/1"},
    }
    files.write_json(path, {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})


def _sarif_result(result: GateResult, rule: int, file: Path) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": _uri(file)}, "region": {"startLine": 1}}
    return {
        "ruleId": result.gate,
        "ruleIndex": rule,
        "level": "error",
        "message": {"text": f"{result.subject}: {result.message}"},
        "locations": [{"physicalLocation": place}],
    }


def _uri(path: Path) -> str:
    """Return a path as a URI reference, relative to the working folder if the file lies in it."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()  # noqa: PTH100 - links stay as the user named them
    if absolute.is_relative_to(here):
        return quote(encodable(absolute.relative_to(here).as_posix()))
    return "file://" + quote(encodable(absolute.as_posix()))


def github_annotations(suite: str, results: Iterable[GateResult], notes: Iterable[str] = ()) -> list[str]:
    """Return workflow commands that GitHub Actions shows beside the job: an error for each failed gate, then warnings.

    Args:
        suite: Name of the command, such as `adctl report`.
        results: Results of the gates; those that passed give no line.
        notes: Texts of the warnings.
    """
    failed = [result for result in results if not result.passed]
    errors = [_annotation("error", f"{suite}: {one.gate}", f"{one.subject}: {one.message}") for one in failed]
    return errors + [_annotation("warning", suite, note) for note in notes]


def _annotation(kind: str, title: str, message: str) -> str:
    named = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={named}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

"""Command `adctl export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import ExportSettings
    from adctl.exporting.export import Exported, ExportResult
    from adctl.exporting.parity import ParityCheck


def run(call: Call[ExportSettings]) -> None:
    """Export the model and verify the export."""
    from adctl.exporting.export import export

    result = export(call.loaded, call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: ExportResult) -> RenderableType:
    from adctl.classification.header import is_classifier

    words = _KINDS if is_classifier(result.model) else _ANOMALIES
    columns = [dict(_column(one, words)) for one in result.exports]
    lines = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return rows([*lines, ("next", f"adctl score --model {result.exports[0].file}", *[""] * (len(columns) - 1))])


@dataclass(frozen=True)
class _Words:
    """Names of the compared values.

    Attributes:
        score: A value of an image, which decides.
        map: The other value.
        verdicts: The decisions.
        quality: Share of right decisions.
    """

    score: str
    map: str
    verdicts: str
    quality: str


_ANOMALIES = _Words("score", "map", "verdicts", "AUROC")
_KINDS = _Words("probability", "distance", "names", "accuracy")


def _kinds(check: ParityCheck | None) -> list[tuple[str, str]]:
    """Describe the comparison of the classifier in the graph."""
    if check is None:
        return []
    differences = f"{check.max_score_difference:.2e} / {check.mean_score_difference:.2e}"
    return [
        ("kinds verified on", f"{check.images} image files"),
        ("probability difference, max / mean", differences),
        ("changed names", str(check.changed_verdicts)),
    ]


def _column(exported: Exported, words: _Words) -> list[tuple[str, str]]:
    check = exported.check
    rank = "unknown" if check.rank_correlation is None else f"{check.rank_correlation:.6f}"
    quality = "no labelled images"
    if check.auroc is not None and check.auroc_change is not None:
        quality = f"{check.auroc_change:+.4f} from {check.auroc:.4f}"
    return [
        ("exported", str(exported.file)),
        ("precision, size", f"{exported.precision}, {exported.bytes / 1e6:.1f} MB"),
        ("verified on", f"{check.images} image files"),
        (
            f"{words.score} difference, max / mean",
            f"{check.max_score_difference:.2e} / {check.mean_score_difference:.2e}",
        ),
        (f"{words.map} difference, max / mean", f"{check.max_map_difference:.2e} / {check.mean_map_difference:.2e}"),
        ("rank correlation", rank),
        (f"changed {words.verdicts}", str(check.changed_verdicts)),
        (f"{words.quality} change", quality),
        *_kinds(exported.kinds),
        ("speed", f"{exported.images_per_second:.1f} images/s; torch {exported.torch_images_per_second:.1f}"),
    ]

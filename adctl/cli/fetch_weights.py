"""Command `adctl fetch weights`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.fetch import digest_state
from adctl.cli.output import Call, rows
from adctl.errors import UsageError

if TYPE_CHECKING:
    from adctl.config import FetchWeightsSettings


def run(call: Call[FetchWeightsSettings]) -> None:
    """Fetch the weights of one model."""
    from adctl.fetching.download import Transfer
    from adctl.fetching.weights import fetch_weights

    settings = call.settings
    if settings.model_name is None:
        raise UsageError("No model was given.", "Name a timm model: adctl fetch weights wide_resnet50_2")
    result = fetch_weights(
        settings.model_name, source=settings.source, transfer=Transfer.of(settings), reporter=call.reporter
    )
    lines = [
        ("weights", str(result.path)),
        ("sha256", f"{result.sha256} ({digest_state(verified=result.verified)})"),
        ("licence", result.licence or "not stated"),
    ]
    call.finish(result, lambda: rows(lines))

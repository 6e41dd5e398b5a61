"""Command `adctl fetch verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from adctl.config import FetchSettings, FetchVerifySettings
    from adctl.fetching.verifying import VerifyResult


def run(call: Call[FetchVerifySettings] | Call[FetchSettings]) -> int:
    """Verify fetched files; return 1 if one is not intact."""
    from adctl.fetching.verifying import verify

    results = verify(call.settings.what, categories=call.settings.category, reporter=call.reporter)
    call.finish(results, lambda: rows(map(_line, results), "what", "files", "state", "remedy"))
    return 0 if all(result.intact for result in results) else 1


def _line(result: VerifyResult) -> tuple[str, ...]:
    counts = {"changed": result.changed, "missing": result.missing, "not listed": result.unlisted}
    differ = [f"{len(paths)} {how}, such as {paths[0]}" for how, paths in counts.items() if paths]
    state = "no digests recorded" if result.intact is None else "; ".join(differ) or "intact"
    return (result.name, str(result.files), state, result.remedy)

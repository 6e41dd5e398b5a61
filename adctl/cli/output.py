"""Output of commands: results on stdout, as text or as one JSON document; all else on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from adctl.cli import interrupts, streams
from adctl.config import COMMANDS, LoadedSettings, S, load, names_of
from adctl.files import to_json
from adctl.names import printable
from adctl.progress import Reporter, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console, RenderableType

    from adctl.errors import AdctlError
    from adctl.gates import GateResult

_UNWRAPPED = 2000

PROGRESS_VARIABLE = "ADCTL_PROGRESS"

_LINE_SECONDS = 0.5

_ESTIMATED_OVER = 300.0
"""Seconds of past work from which the time left is estimated; a single step of a training may take half a minute."""


class Call(Generic[S]):
    """One call of a command: its settings, its reporter, and how its result is shown.

    Args:
        path: Key of `adctl.config.COMMANDS`.
        given: Values from the command line by name, None where nothing was typed; switches included.

    Attributes:
        as_json: Whether the result is shown as JSON.
        reporter: Shows progress.
        loaded: Settings of the command with their origins.
    """

    def __init__(self, path: str, given: dict[str, Any]) -> None:
        self._path = path
        self._given = given
        self.as_json = self.asked("json")
        self._warnings: list[str] = []
        _set_up_logging(self._warnings, verbose=self.asked("verbose"), quiet=self.asked("quiet"))
        self.reporter: Reporter = _reporter(quiet=self.asked("quiet"))
        cls: Any = COMMANDS[path]
        flags = {name: given.get(name) for name in names_of(cls)}
        self.loaded: LoadedSettings[S] = load(cls, flags, Path(given["config"]) if given.get("config") else None)

    @property
    def settings(self) -> S:
        """Settings of the command."""
        return self.loaded.settings

    def asked(self, switch: str) -> bool:
        """Return whether a switch such as --json was typed."""
        return bool(self._given.get(switch))

    def finish(self, result: Any, show: Callable[[], RenderableType]) -> None:
        """Show the result: as JSON if asked for, otherwise as text unless --quiet was typed."""
        if self.as_json:
            print_json(document(self._path.split()[0], result=result, warnings=self._warnings))
        elif not self.asked("quiet"):
            print_text(show())

    def annotate(self, title: str, gates: Iterable[GateResult], notes: Iterable[str] = ()) -> None:
        """Print failed gates and notes as annotations, in GitHub Actions or with --annotate.

        They go to stdout, or with --json to stderr, which GitHub Actions reads too.
        """
        if not self.asked("annotate") and os.environ.get("GITHUB_ACTIONS") != "true":
            return
        from adctl import gate_files

        lines = "".join(f"{line}\n" for line in gate_files.github_annotations(title, gates, notes))
        if self.as_json:
            streams.write_stderr(lines)
        else:
            sys.stdout.write(lines)


class RichReporter(Reporter):
    """Titles of stages at once, and bars with the time left after a second; silent if stderr is no terminal.

    Args:
        quiet: Show nothing on a terminal either.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, in_bytes: bool = False) -> Iterator[Update]:
        """Show the title, and a bar after the stage has taken one second."""
        console = stderr()
        if self.quiet or not console.is_terminal:
            yield _only_check
            return
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            *((DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=_ESTIMATED_OVER,
        )
        task = bar.add_task(title, total=total, note="")
        start, whole = time.monotonic(), total
        streams.show_status(f"{title} ...")

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            interrupts.check()
            bar.update(task, completed=done, total=whole if total is None else total, note=note)
            if not bar.live.is_started and time.monotonic() - start > 1:
                streams.clear_status()
                bar.start()

        try:
            yield advance
        finally:
            bar.stop()


class JsonReporter(Reporter):
    """Stages and their progress as lines of JSON on stderr, for programs that show the progress of a command."""

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, in_bytes: bool = False) -> Iterator[Update]:
        """Write a line when the stage starts, and at most two a second as the work advances."""
        whole, written = total, 0.0

        def advance(done: int, total: int | None = None, note: str = "") -> None:
            nonlocal written
            interrupts.check()
            now = time.monotonic()
            if done == 0 or now - written >= _LINE_SECONDS:
                written = now
                line = {"stage": title, "done": done, "total": whole if total is None else total, "note": note}
                streams.write_stderr(to_json(line) + "\n")

        advance(0)
        yield advance


def _reporter(*, quiet: bool) -> Reporter:
    return JsonReporter() if os.environ.get(PROGRESS_VARIABLE) == "json" else RichReporter(quiet=quiet)


def _only_check(done: int, total: int | None = None, note: str = "") -> None:
    del done, total, note
    interrupts.check()


def rows(lines: Iterable[Sequence[str]], *headers: str) -> RenderableType:
    """Return a plain table: with headers, or with names at the left and values at the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=bool(headers), pad_edge=False, header_style="bold")
    gathered = list(lines)
    for index in range(len(headers or gathered[0])):
        header = headers[index] if headers else ""
        table.add_column(header, style="cyan" if index == 0 else "", overflow="fold", no_wrap=index == 0)
    for line in gathered:
        table.add_row(*(Text(printable(cell, keep="\n")) for cell in line))
    return table


def sparkline(values: Sequence[float]) -> str:
    """Return values as a row of bars, scaled from the lowest to the highest."""
    bars = "▁▂▃▄▅▆▇█"
    low, high = min(values), max(values)
    return "".join(bars[round((value - low) / ((high - low) or 1) * (len(bars) - 1))] for value in values)


def document(command: str, **content: Any) -> dict[str, Any]:
    """Return the envelope of every JSON document: schema, success and content."""
    return {"schema": f"adctl.{command}/1", "ok": "error" not in content, **content}


def print_text(shown: RenderableType) -> None:
    """Print results as text on stdout; if that is no terminal, lines are not wrapped or padded."""
    from rich.console import Console

    streams.clear_status()
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(shown)
        return
    wide = Console(highlight=False, width=_UNWRAPPED)
    with wide.capture() as captured:
        wide.print(shown)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def print_json(value: Any) -> None:
    """Print one JSON document on stdout, in UTF-8 whatever the locale is; numbers that are not finite become null."""
    streams.write_stdout(to_json(_finite(_jsonable(value)), indent=2) + "\n")


def _jsonable(value: Any) -> Any:
    """Return a result as lists, dictionaries, texts and numbers."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, inf_nan_mode="constants", fallback=_plain)


def _plain(value: Any) -> Any:
    """Return arrays and numbers of NumPy as lists and numbers, and everything else as text."""
    return value.tolist() if type(value).__module__ == "numpy" else str(value)


def _finite(value: Any) -> Any:
    """Return null for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def print_error(error: AdctlError, *, as_json: bool) -> None:
    """Print the message and the remedy on stderr, and as JSON on stdout if asked for."""
    if as_json:
        content = {
            "kind": type(error).__name__,
            "message": error.message,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
        }
        print_json(document("error", error=content))
    from rich.text import Text

    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), printable(error.message, keep="\n")), soft_wrap=True)
    if error.remedy:
        console.print(Text.assemble(("remedy: ", "bold"), printable(error.remedy, keep="\n")), soft_wrap=True)


def stderr() -> Console:
    """Return the console of progress, notes and errors, on a line of its own."""
    from rich.console import Console

    streams.clear_status()
    return Console(stderr=True, highlight=False)


def _set_up_logging(kept: list[str], *, verbose: bool, quiet: bool) -> None:
    import warnings

    logger = logging.getLogger("adctl")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    logger.handlers = [_StderrHandler(logging.ERROR if quiet else logging.DEBUG), _KeepHandler(kept)]
    if not verbose:
        warnings.simplefilter("ignore")
        # These libraries log messages for their own users.
        for name in ("timm", "lightning_fabric", "torch", "torch.onnx"):
            logging.getLogger(name).setLevel(logging.ERROR)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        stderr().print(Text(prefix + printable(record.getMessage(), keep="\n"), style=style), soft_wrap=True)


class _KeepHandler(logging.Handler):
    """Log handler that keeps warnings for the JSON document."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record.getMessage())

"""The Typer application and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from adctl import __version__
from adctl.cli import interrupts
from adctl.errors import AdctlError, UsageError

INTERRUPTED = 130

_EPILOG = (
    "Exit codes: 0 done, 1 failure, 2 bad usage, 3 images rejected (score --fail-on-anomaly) or a gate failed "
    "(bench --fail-if, --against; report --fail-if), 130 interrupted. "
    "Settings: flag, then ADCTL_NAME, then --config FILE, then default."
)

_SUMMARIES = {
    "fetch": "Bring data sets and backbone weights to this machine, verified.",
    "train": "Learn what good parts look like: images to one calibrated model file.",
    "calibrate": "Choose the threshold again, from good images the model has not learned from.",
    "score": "Find what is wrong with new images: a score, a map and a verdict for each.",
    "report": "Turn scores into one HTML page, PDF, slides or tables, compare several sets, gate CI.",
    "export": "Write the model for another runtime, and prove on images that it scores the same.",
    "bench": "Measure speed and memory of model files, interleaved so that drift cancels; gates for CI.",
    "demo": "Show everything on generated zippers: fetch, train, calibrate, score, report.",
}


@cache
def _command(name: str) -> Any:
    """The function NAME of the module `adctl.cli.NAME`, as a command."""
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command()(getattr(importlib.import_module(f"adctl.cli.{name}"), name))
    return typer.main.get_command(alone)


class _Commands(Mapping[str, Any]):
    """The commands by name, each built when it is asked for: building all takes as long as importing typer."""

    def __getitem__(self, name: str) -> Any:
        if name not in _SUMMARIES:
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_SUMMARIES)

    def __len__(self) -> int:
        return len(_SUMMARIES)


class _Group(TyperGroup):
    """Names its commands without building them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


# Typer draws its boxes with rich, which triples the time of --help: plain help it is.
app = typer.Typer(
    name="adctl",
    help="Visual anomaly detection: learns from good parts, finds what is wrong with new ones.",
    epilog=_EPILOG,
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adctl {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code is returned, and no exception leaves.

    Args:
        arguments: What was typed after `adctl`.
    """
    from adctl.cli.output import print_error

    as_json = "--json" in arguments
    interrupts.install()
    try:
        code: Any = app(arguments, standalone_mode=False)
    except AdctlError as error:
        print_error(error, as_json=as_json)
        return error.exit_code
    except _click_error() as error:
        return _usage_error(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("Interrupted. What was complete is kept; nothing is half-written.\n")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:  # noqa: BLE001 - the boundary: a defect of adctl, told as one
        return _defect(error, as_json=as_json, verbose="--verbose" in arguments or "-v" in arguments)
    return code if isinstance(code, int) else 0


def _click_error() -> type[Exception]:
    """Click's base error. Newer typers carry a click of their own, so it is reached through typer."""
    base = typer.BadParameter.__mro__[2]
    assert issubclass(base, Exception)
    return base


def _usage_error(error: Exception, *, as_json: bool) -> int:
    from adctl.cli.output import print_error

    context = getattr(error, "ctx", None)
    command = f"{context.command_path} " if context is not None else "adctl "
    message = str(getattr(error, "format_message", lambda: error)())
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        sys.stderr.write(f"{message}\n")
        return UsageError.exit_code
    print_error(UsageError(message, f"See '{command}--help'."), as_json=as_json)
    return UsageError.exit_code


def _defect(error: Exception, *, as_json: bool, verbose: bool) -> int:
    import tempfile
    import traceback

    from adctl.cli.output import print_error

    text = "".join(traceback.format_exception(error))
    if verbose:
        sys.stderr.write(text)
    with tempfile.NamedTemporaryFile("w", prefix="adctl-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(text)
    told = AdctlError(
        f"adctl met something it was not made for: {type(error).__name__}: {error}",
        f"This is a defect of adctl. Please report it with the details in {log.name}.",
    )
    print_error(told, as_json=as_json)
    return told.exit_code

"""The Typer application, and the one place where errors become messages and exit codes."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from adctl import __version__
from adctl.cli import interrupts, streams
from adctl.cli.command import UNLIMITED, ClickError, Command, split_subcommand
from adctl.config import COMMANDS
from adctl.errors import AdctlError, UsageError

_MEMORY_SIGNS = ("Cannot allocate memory", "cannot allocate memory", "failed to map segment", "can't start new thread")
_MEMORY_REMEDY = "Use fewer or smaller images at once (--batch-size), or raise the limit of memory (ulimit -v)."

_INTERRUPTED = 130

_EPILOG = (
    "Exit codes: 0 success, 1 failure, 2 wrong usage, 3 images rejected (score --fail-on-anomaly) or a gate failed "
    "(bench --fail-if, bench --against, report --fail-if), 130 interrupted, "
    "143 or 129 ended by SIGTERM or SIGHUP. "
    "A setting comes from its flag, else from the variable ADCTL_NAME, else from --config FILE, else it is the default."
)


class _Group(TyperGroup):
    """Group that lists its commands without building them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = {path: None for path in COMMANDS if " " not in path}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Build a command when it is used: building all of them takes as long as importing Typer."""
        return Command(cmd_name) if cmd_name in self.commands else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return name, command and arguments; the name of a subcommand has two words."""
        name, command, rest = super().resolve_command(ctx, args)
        path, own = split_subcommand(str(name), rest)
        return path, command if path == name else Command(path), own

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write name and summary of each command."""
        lines = [(name, COMMANDS[name].summary) for name in self.commands]
        with formatter.section("Commands"):
            formatter.write_dl([*lines, ("help", "Show the help of a command, such as 'adctl help train'.")])


# Typer draws its boxes with rich, which triples the time of --help: plain help it is.
app = typer.Typer(
    name="adctl",
    help="Visual anomaly detection: learn from images of good parts, find defects in new images.",
    epilog=_EPILOG,
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": UNLIMITED},
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
    """Run one command line and return its exit code; no exception leaves.

    Args:
        arguments: Arguments after `adctl`; `help X` is `X --help`.
    """
    interrupts.install()
    streams.prepare()
    code = _run(arguments)
    streams.clear_status()
    failure = streams.stdout_failure()
    if failure is None:
        return code
    streams.write_stderr(f"error: Cannot write to the standard output: {failure}.\n")
    return AdctlError.exit_code


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        code: Any = app([*arguments[1:], "--help"] if arguments[:1] == ["help"] else arguments, standalone_mode=False)
    except AdctlError as error:
        return _print_error(error, as_json=as_json)
    except ClickError as error:
        return _usage_error(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary: an error in adctl itself, reported as one
        return _unexpected_error(error, as_json=as_json, verbose="--verbose" in arguments or "-v" in arguments)
    if code == _INTERRUPTED:  # newer versions of Typer return this code for Ctrl-C
        streams.write_stderr("Interrupted. Complete results are kept; no file is half-written.\n")
        return interrupts.exit_code()
    return code if isinstance(code, int) else 0


def _lacks_memory(error: BaseException) -> bool:
    """Return whether memory ran out, also where a limit stops a library from loading."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or any(sign in str(seen) for sign in _MEMORY_SIGNS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _print_error(error: AdctlError, *, as_json: bool) -> int:
    from adctl.cli.output import print_error

    print_error(error, as_json=as_json)
    return error.exit_code


def _usage_error(error: Exception, *, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    command = f"{context.command_path} " if context is not None else "adctl "
    message = str(getattr(error, "format_message", lambda: error)())
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        streams.write_stderr(f"{message}\n")
        return UsageError.exit_code
    return _print_error(UsageError(message, f"See '{command}--help'."), as_json=as_json)


def _unexpected_error(error: Exception, *, as_json: bool, verbose: bool) -> int:
    if _lacks_memory(error):
        return _print_error(AdctlError(f"There is not enough memory: {error}.", _MEMORY_REMEDY), as_json=as_json)
    return _internal_error(error, as_json=as_json, verbose=verbose)


def _internal_error(error: Exception, *, as_json: bool, verbose: bool) -> int:
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    if verbose:
        streams.write_stderr(text)
    details = "what --verbose prints"
    with (
        suppress(OSError),  # the folder of temporary files may be full
        tempfile.NamedTemporaryFile(
            "w", prefix="adctl-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log,
    ):
        log.write(text)
        log.flush()
        details = f"the details in {log.name}"
    message = f"Internal error: {type(error).__name__}: {error}"
    return _print_error(AdctlError(message, f"Please report it, with {details}."), as_json=as_json)

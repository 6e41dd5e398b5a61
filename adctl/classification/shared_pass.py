"""One backbone pass for a detector and a classifier: the classifier goes on from the features of the detector.

A forward hook keeps the levels that the detector's backbone computes. Stages that only the classifier has run on the
images to name alone. B images, C channels, h x w cells.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adctl.detectors.components.backbones import Backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.classification.classifier import Classification, Classifier


class Continuation:
    """Classification that goes on from the levels of a detector's backbone.

    Args:
        detector: Backbone of the detector.
        classifier: Classifier with the same backbone, see `obstacles`.
    """

    def __init__(self, detector: Backbone, classifier: Classifier) -> None:
        self._classifier = classifier
        self._levels = detector.levels
        self._later = _later_stages(detector, classifier.backbone)

    def __call__(self, found: Sequence[Tensor]) -> Classification:
        """Return logits and distances of the images with these levels [B,C,h,w] of the detector's network."""
        levels, last = dict(zip(self._levels, found, strict=True)), found[-1]
        for stage, level in self._later:
            last = stage(last)
            if level is not None:
                levels[level] = last
        return self._classifier.classify(self._classifier.pooled(self._classifier.backbone.without_margin(levels)))


class SharedPass:
    """Features of a detector's backbone, continued for a classifier.

    Args:
        detector: Backbone of the detector.
        classifier: Classifier with the same backbone, see `shared_pass`.
    """

    def __init__(self, detector: Backbone, classifier: Classifier) -> None:
        self._continue = Continuation(detector, classifier)
        self._kept = threading.local()
        detector.network.register_forward_hook(self._keep)

    def start(self) -> None:
        """Forget the features of earlier images."""
        self._kept.pieces = []

    def _keep(self, module: nn.Module, inputs: object, levels: list[Tensor]) -> None:
        del module, inputs
        self._kept.pieces = [*getattr(self._kept, "pieces", ()), levels]

    def classify(self, images: int, chosen: Sequence[int]) -> Classification | None:
        """Classify some of the images that the detector has scored since `start`, in the same thread.

        Args:
            images: Number of images that the detector was given.
            chosen: Positions of the images to name.

        Returns:
            Logits and distances of the chosen images; None if the backbone did not see each image once.
        """
        pieces: list[list[Tensor]] = getattr(self._kept, "pieces", [])
        self._kept.pieces = []
        if sum(len(piece[0]) for piece in pieces) != images:
            return None
        with torch.inference_mode():
            return self._continue([torch.cat(level)[list(chosen)] for level in zip(*pieces, strict=True)])


def shared_pass(detector: nn.Module, classifier: Classifier) -> SharedPass | None:
    """Return the shared pass of a detector and a classifier that get the same pixels; None if there is none."""
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, Backbone) or obstacles(detector, classifier):
        return None
    return SharedPass(backbone, classifier)


def obstacles(detector: nn.Module, classifier: Classifier) -> tuple[str, ...]:
    """Return what keeps a detector and a classifier from one backbone pass, in words; empty if nothing does.

    Both need the same input, and the same backbone with the same weights and margins; and the detector's backbone must
    compute the classifier's early levels.
    """
    first, second = getattr(detector, "backbone", None), classifier.backbone
    if not isinstance(first, Backbone):
        return ("the detector has no backbone that a classifier could use",)
    pairs: list[tuple[str, Any, Any]] = [("backbone", first.name, second.name)]
    pairs += [
        (name.replace("_", " "), getattr(detector.input, name), getattr(classifier.input, name))
        for name in ("height", "width", "channels", "resize", "bit_depth", "tile", "scales", "roi", "masked")
    ]
    if first.margin != second.margin:
        ours, theirs = ("replicate" if one.margin else "zeros" for one in (first, second))
        pairs.append(("border", ours, theirs))
    found = [
        f"{name} {ours} in the detector and {theirs} in the classifier"
        for name, ours, theirs in pairs
        if ours != theirs
    ]
    if found:
        return tuple(found)
    if not set(second.levels) <= {*first.levels, *(level for _, level in _later_stages(first, second))}:
        return (f"feature levels {first.levels} in the detector and {second.levels} in the classifier",)
    statistics = torch.equal(first.mean, second.mean) and torch.equal(first.std, second.std)
    if statistics and _same_weights(first.network, second.network):
        return ()
    if classifier.config.fine_tune != "none":
        return (f"the backbone of the classifier was tuned (fine_tune={classifier.config.fine_tune})",)
    return ("the weights of the backbones differ",)


def _same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Return whether all the weights of the shallower network are those of the deeper one."""
    smaller, larger = sorted((first.state_dict(), second.state_dict()), key=len)
    return all(name in larger and torch.equal(value, larger[name]) for name, value in smaller.items())


def _later_stages(first: Backbone, second: Backbone) -> list[tuple[nn.Module, int | None]]:
    """Return the stages of the second network behind those of the first, each with the level that it gives, if any."""
    ours, theirs = _stages(first), _stages(second)
    if len(ours) >= len(theirs):
        return []
    given = [name for name, level in theirs if level]
    level_of = dict(zip(given, second.levels, strict=True)) if len(given) == len(second.levels) else {}
    return [(second.network.get_submodule(name), level_of.get(name)) for name, _ in theirs[len(ours) :]]


def _stages(backbone: Backbone) -> list[tuple[str, bool]]:
    """Return the name of each stage of a sequential network, and whether its output is a level; empty for others."""
    network: Any = backbone.network
    blocks, outputs = getattr(network, "blocks", None), getattr(network, "_stage_out_idx", None)
    if isinstance(blocks, nn.Sequential) and isinstance(outputs, dict) and network.feature_hooks is None:
        stem = [("conv_stem", False), ("bn1", 0 in outputs)]
        return stem + [(f"blocks.{number}", number + 1 in outputs) for number in range(len(blocks))]
    if isinstance(network, nn.ModuleDict) and isinstance(returned := getattr(network, "return_layers", None), dict):
        return [(name, name in returned) for name in network]
    return []

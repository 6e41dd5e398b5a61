"""Loss of a classifier that is trained together with its backbone, and the parameters that it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from adctl.classification.balance import balanced_indices, prior_shift, smoothed, soft_cross_entropy
from adctl.engine.phases import Batch, LossTerms, Optimize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.classification.classifier import Classifier
    from adctl.classification.heads import HeadTargets
    from adctl.data.loader import ImageSource


_TRAINED = ("weight", "bias")
"""Buffers of the head that are parameters while it is trained with the backbone."""


class KindImages:
    """Images with the number of each one's kind, rare kinds repeated or frequent ones thinned out.

    Args:
        source: The images.
        labels: Number of each image's kind [N].
        strategy: `oversample`, `undersample`, or another word for all images as they are.
        seed: Seed of the choice.
    """

    def __init__(self, source: ImageSource, labels: NDArray[np.int64], strategy: str = "none", seed: int = 0) -> None:
        self._source, self._labels, self._strategy, self._seed = source, labels, strategy, seed
        self.resample(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> KindImages:
        """Return the same images: the copy of a network in another process chooses those that it is trained on."""
        del memo
        return self

    def resample(self, epoch: int) -> None:
        """Choose the images of an epoch anew."""
        self._chosen = balanced_indices(self._labels, self._strategy, self._seed + epoch)
        self.labels = self._labels[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        """Return the path of an image, for messages."""
        return self._source.name(int(self._chosen[index]))

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """Yield batches of pixels [B,H,W,C], uint8; see `adctl.engine.context.Images`."""
        if order is None and self._strategy not in {"oversample", "undersample"}:
            return self._source.batches(size)
        places = range(len(self)) if order is None else order
        return self._source.batches(size, [int(self._chosen[place]) for place in places])


@dataclass(frozen=True)
class Mixing:
    """Parameters of the mixing of images; 0 for none.

    Attributes:
        mixup: Alpha of Mixup (Zhang et al., ICLR 2018).
        cutmix: Alpha of CutMix (Yun et al., ICCV 2019); with both, each batch takes one of them.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def transform(self, kinds: int) -> v2.Transform | None:
        """Return the transform of images and soft labels, or None."""
        chosen: list[v2.Transform] = []
        if self.mixup > 0:
            chosen.append(v2.MixUp(alpha=self.mixup, num_classes=kinds))
        if self.cutmix > 0:
            chosen.append(v2.CutMix(alpha=self.cutmix, num_classes=kinds))
        return v2.RandomChoice(chosen) if chosen else None


class ClassifierObjective(nn.Module):
    """Loss of a batch: weighted cross-entropy or focal loss of mixed, smoothed labels.

    Args:
        classifier: The network.
        targets: Kinds, weights and parameters of the loss.
        mixing: Mixing of images.
        monitor: `loss`, `balanced_accuracy` or `macro_f1`.
    """

    weights: Tensor
    shift: Tensor

    def __init__(self, classifier: Classifier, targets: HeadTargets, mixing: Mixing, monitor: str) -> None:
        super().__init__()
        # In a list, so that the network is no part of this module.
        self._network = [classifier]
        self._targets, self._monitor = targets, monitor
        self._mix = mixing.transform(targets.kinds)
        self._seen: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self.register_buffer("weights", torch.from_numpy(targets.weights).float())
        self.register_buffer("shift", prior_shift(targets.counts.clip(1), targets.adjustment))

    def loss(self, batch: Batch) -> LossTerms:
        """Return the mean loss of a batch; in evaluation mode without mixing and smoothing."""
        assert batch.labels is not None
        classifier, targets = self._network[0], self._targets
        if not self.training:
            logits = classifier.head(classifier.features(batch.images))
            self._seen.append((batch.labels.cpu().numpy(), logits.argmax(1).cpu().numpy()))
            goal = smoothed(batch.labels, targets.kinds, 0.0)
            return {"classes": soft_cross_entropy(logits + self.shift, goal, self.weights, targets.gamma).mean()}
        images, goal = batch.images, smoothed(batch.labels, targets.kinds, targets.smoothing)
        if self._mix is not None and len(images) > 1:
            images, goal = self._mix(images, goal)
        logits = classifier.head(classifier.features(images)) + self.shift
        return {"classes": soft_cross_entropy(logits, goal, self.weights, targets.gamma).mean()}

    def start_epoch(self, images: KindImages, epoch: int) -> None:
        """Forget earlier validation, and choose the images of an epoch."""
        self._seen = []
        images.resample(epoch)

    def monitored(self) -> float:
        """Return 1 minus the chosen metric on the validation images seen last."""
        from sklearn.metrics import balanced_accuracy_score, f1_score

        truth, called = (np.concatenate(part) for part in zip(*self._seen, strict=True))
        self._seen = []
        if self._monitor == "macro_f1":
            return 1 - float(f1_score(truth, called, average="macro"))
        return 1 - float(balanced_accuracy_score(truth, called))


def optimize_phase(
    classifier: Classifier, targets: HeadTargets, mixing: Mixing, images: KindImages, *, validated: bool
) -> Optimize:
    """Return the phase that trains head, attention and the unfrozen stages of the backbone together.

    The head starts from its fit to the frozen features (Kumar et al., "Fine-Tuning can Distort Pretrained Features",
    ICLR 2022). Batch normalisation keeps its statistics. Stages nearer to the input learn more slowly (Howard and
    Ruder, "Universal Language Model Fine-tuning", ACL 2018, section 3.2).

    Args:
        classifier: The network, its head fitted.
        targets: Kinds, weights and parameters of the loss.
        mixing: Mixing of images.
        images: Training images.
        validated: Whether there are validation images.
    """
    config = classifier.config
    for name in _TRAINED:
        value = classifier.head.get_buffer(name).clone()
        del classifier.head._buffers[name]  # noqa: SLF001 - torch has no other way to make a buffer a parameter
        classifier.head.register_parameter(name, nn.Parameter(value))
    scales = _rate_scales(classifier)
    for parameter in classifier.backbone.parameters():
        parameter.requires_grad_(id(parameter) in scales)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    objective = ClassifierObjective(classifier, targets, mixing, config.monitor)
    return Optimize(
        loss=objective.loss,
        parameters=trained,
        title="fine-tuning",
        objective=objective,
        start_epoch=lambda epoch, _: objective.start_epoch(images, epoch),
        rate_scale=lambda parameter: scales.get(id(parameter), 1.0),
        monitored=objective.monitored if validated and config.monitor != "loss" else None,
    )


def freeze(classifier: Classifier) -> None:
    """Make the parameters of the head buffers again, so that a tuned classifier is stored like a frozen one.

    They are buffers still if other processes trained.
    """
    for name in [name for name in _TRAINED if name in classifier.head._parameters]:  # noqa: SLF001 - as above
        value = classifier.head.get_parameter(name).detach().clone()
        del classifier.head._parameters[name]  # noqa: SLF001 - as above
        classifier.head.register_buffer(name, value)
    classifier.requires_grad_(requires_grad=False)


def _rate_scales(classifier: Classifier) -> dict[int, float]:
    """Return the factor of the learning rate of each unfrozen parameter of the backbone, by its identity."""
    config, network = classifier.config, classifier.backbone.network
    blocks: Any = getattr(network, "blocks", None)
    children = blocks if isinstance(blocks, nn.Sequential) else network.children()
    stages = [stage for stage in children if next(stage.parameters(), None) is not None]
    if config.fine_tune == "last":
        stages = stages[-1:]
    scales: dict[int, float] = {}
    if config.fine_tune == "all":  # what lies in no stage, such as the stem, learns as slowly as the first
        scales = {id(one): config.backbone_rate * config.rate_decay ** len(stages) for one in network.parameters()}
    for depth, stage in enumerate(reversed(stages)):
        rate = config.backbone_rate * config.rate_decay**depth
        scales |= {id(parameter): rate for parameter in stage.parameters()}
    return scales

"""Heads: from features to the logits of kinds. scikit-learn fits them, tensors store them, torch evaluates them.

B images, D features, K kinds. Every head standardises the features first. Nothing is pickled: trees are stored as
arrays of their nodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from adctl.classification.balance import prior_shift, smoothed, soft_cross_entropy
from adctl.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from adctl.classification.config import ClassifierConfig

_EPSILON = 1e-3
_NEAREST = 0.05
"""Distance below which a neighbour's vote hardly grows, as a share of the distance of the farthest neighbour."""

_STEPS = 200
"""Maximum number of iterations of a linear head."""


@dataclass(frozen=True)
class HeadTargets:
    """Targets of a head.

    Attributes:
        labels: Number of each image's kind [N].
        weights: Weight of each kind [K].
        kinds: K.
        gamma: Exponent of the focal loss; 0 for cross-entropy.
        smoothing: Share of each label that is spread over all kinds.
        adjustment: Strength of logit adjustment.
    """

    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    kinds: int
    gamma: float = 0.0
    smoothing: float = 0.0
    adjustment: float = 0.0

    @property
    def image_weights(self) -> NDArray[np.float64]:
        """Weight of each image [N]."""
        return np.asarray(self.weights[self.labels], np.float64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Images of each kind [K]."""
        return np.bincount(self.labels, minlength=self.kinds)


class Head(nn.Module, ABC):
    """Base class of heads.

    Attributes:
        mean: Mean of each feature [D].
        scale: Standard deviation of each feature [D].
    """

    fitted: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers that fitting fills, besides mean and scale."""

    soft: ClassVar[bool] = False
    """Whether the head is trained by a loss, which takes soft labels, focal loss and logit adjustment."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: ClassifierConfig, kinds: int) -> None:
        super().__init__()
        self.config, self.kinds = config, kinds
        for name in ("mean", "scale", *self.fitted):
            self.register_buffer(name, torch.empty(0))

    def fit(self, features: NDArray[np.float32], targets: HeadTargets) -> None:
        """Fit to features [N,D]."""
        mean, scale = features.mean(0), np.maximum(features.std(0), _EPSILON)
        self._set("mean", mean)
        self._set("scale", scale)
        for name, value in self.fit_standard((features - mean) / scale, targets).items():
            self._set(name, value)

    @abstractmethod
    def fit_standard(self, features: NDArray[np.float32], targets: HeadTargets) -> Mapping[str, NDArray[Any]]:
        """Fit to standardised features [N,D]; return the buffers named in `fitted`."""

    @abstractmethod
    def standard_logits(self, features: Tensor) -> Tensor:
        """Return the logits [B,K] of standardised features [B,D]."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [B,K] of features [B,D]."""
        return self.standard_logits((features - self.mean) / self.scale)

    def prepare(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Give the buffers the shapes of stored tensors, which are loaded afterwards.

        Raises:
            ModelFileError: A tensor is missing.
        """
        for name in ("mean", "scale", *self.fitted):
            if prefix + name not in tensors:
                raise ModelFileError(f"The model file has no '{prefix}{name}'.", "Use an intact copy.")
            self.register_buffer(name, torch.empty_like(tensors[prefix + name]))

    def _set(self, name: str, value: NDArray[Any]) -> None:
        value = np.asarray(value, np.float32) if value.dtype == np.float64 else value
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value)))


class LinearHead(Head):
    """Softmax regression by L-BFGS on any loss of `adctl.classification.balance`, with weight decay."""

    fitted = ("weight", "bias")
    soft = True
    weight: Tensor
    bias: Tensor

    def fit_standard(self, features: NDArray[np.float32], targets: HeadTargets) -> Mapping[str, NDArray[Any]]:
        """Minimise the loss, a convex one unless it is focal."""
        rows = torch.from_numpy(features)
        weight = torch.zeros(targets.kinds, rows.shape[1], requires_grad=True)
        bias = torch.zeros(targets.kinds, requires_grad=True)
        goal = smoothed(torch.from_numpy(targets.labels), targets.kinds, targets.smoothing)
        weights = torch.from_numpy(targets.weights).float()
        shift = prior_shift(targets.counts.clip(1), targets.adjustment)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = soft_cross_entropy(rows @ weight.T + bias + shift, goal, weights, targets.gamma).sum()
            loss = loss + weight.square().sum() / (2 * self.config.regularisation)
            loss.backward()
            return loss

        with torch.inference_mode(mode=False), torch.enable_grad():
            optimizer.step(closure)
        return {"weight": weight.detach().numpy(), "bias": bias.detach().numpy()}

    def standard_logits(self, features: Tensor) -> Tensor:
        """Return the logits [B,K]."""
        return features @ self.weight.T + self.bias


class LogisticHead(LinearHead):
    """Multinomial logistic regression of scikit-learn."""

    soft = False

    def fit_standard(self, features: NDArray[np.float32], targets: HeadTargets) -> Mapping[str, NDArray[Any]]:
        """Fit weights [K,D] and biases [K]."""
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=self.config.regularisation, max_iter=10 * _STEPS)
        model.fit(features, targets.labels, targets.image_weights)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two kinds share one row
            weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
        return {"weight": weight, "bias": bias}


class SvmHead(Head):
    """One support vector machine for each kind against the others, with a Gaussian kernel (scikit-learn)."""

    fitted = ("support", "dual", "bias", "width")
    support: Tensor
    dual: Tensor
    bias: Tensor
    width: Tensor

    def fit_standard(self, features: NDArray[np.float32], targets: HeadTargets) -> Mapping[str, NDArray[Any]]:
        """Fit support vectors [S,D], their factors [K,S], biases [K] and the width of the kernel."""
        from sklearn.svm import SVC

        width = 1 / features.shape[1]  # standardised features have the variance 1
        dual, bias = np.zeros((targets.kinds, len(features))), np.zeros(targets.kinds)
        for kind in range(targets.kinds):
            machine = SVC(C=100 * self.config.regularisation, gamma=width)
            machine.fit(features, targets.labels == kind, targets.image_weights)
            dual[kind, machine.support_] = machine.dual_coef_[0]
            bias[kind] = machine.intercept_[0]
        used = dual.any(0)
        return {"support": features[used], "dual": dual[:, used], "bias": bias, "width": np.array(width)}

    def standard_logits(self, features: Tensor) -> Tensor:
        """Return the distances [B,K] to the margins, as logits."""
        kernel = (-self.width * square_distances(features, self.support)).exp()
        return kernel @ self.dual.T + self.bias


class NeighboursHead(Head):
    """Weighted votes of the nearest training images; the closer an image is, the more its vote counts."""

    fitted = ("examples", "votes")
    examples: Tensor
    votes: Tensor

    def fit_standard(self, features: NDArray[np.float32], targets: HeadTargets) -> Mapping[str, NDArray[Any]]:
        """Keep features [N,D] and votes [N,K]."""
        return {"examples": features, "votes": np.eye(targets.kinds)[targets.labels] * targets.image_weights[:, None]}

    def standard_logits(self, features: Tensor) -> Tensor:
        """Return the logarithms of the shares of votes [B,K], with half a vote more for each kind.

        Half a vote is the estimator of Krichevsky and Trofimov, "The Performance of Universal Encoding", 1981.
        """
        count = min(self.config.neighbours, len(self.examples))
        nearest = square_distances(features, self.examples).topk(count, 1, largest=False).indices
        # Differences rather than a matrix product, whose rounding would decide how near an equal image is.
        distances = (self.examples[nearest] - features.unsqueeze(1)).square().sum(2).sqrt()
        # Relative to the farthest of the neighbours, so that the unit of the features does not matter.
        farthest = distances.amax(1, keepdim=True) + _EPSILON
        closeness = farthest / (distances + _NEAREST * farthest)
        votes = (self.votes[nearest] * closeness.unsqueeze(2)).sum(1)
        shares = votes / votes.sum(1, keepdim=True) + 0.5 / count
        return (shares / shares.sum(1, keepdim=True)).log()


class TreeHead(Head):
    """Base of heads of trees, which are stored as arrays of nodes: T trees of at most M nodes.

    Attributes:
        left: Number of the left child of each node [T,M]; a leaf is its own child.
        right: Number of the right child of each node [T,M].
        feature: Feature that a node compares [T,M].
        threshold: Value up to which the left child follows [T,M], float32, rounded down.
        value: Value of each node [T,M,V].
        levels: Tensor [L], of which only the length counts: the depth of the deepest tree.
    """

    fitted = ("left", "right", "feature", "threshold", "value", "levels")
    left: Tensor
    right: Tensor
    feature: Tensor
    threshold: Tensor
    value: Tensor
    levels: Tensor

    def leaves(self, features: Tensor) -> Tensor:
        """Return the values [B,T,V] of the leaves that standardised features [B,D] reach."""
        trees = torch.arange(len(self.left), device=features.device).unsqueeze(0)
        node = torch.zeros(features.shape[0], self.left.shape[0], dtype=torch.long, device=features.device)
        for _ in range(len(self.levels)):
            goes_left = features.gather(1, self.feature[trees, node]) <= self.threshold[trees, node]
            node = torch.where(goes_left, self.left[trees, node], self.right[trees, node])
        return self.value[trees, node]


def tree_arrays(trees: list[Any], values: list[NDArray[np.float64]]) -> dict[str, NDArray[Any]]:
    """Return fitted trees of scikit-learn as the arrays of `TreeHead`.

    Args:
        trees: Trees with `children_left`, `children_right`, `feature`, `threshold`, `max_depth`.
        values: Values of the nodes of each tree [M,V].
    """
    nodes = max(tree.node_count for tree in trees)
    shape = (len(trees), nodes)
    left, right, feature = (np.zeros(shape, np.int64) for _ in range(3))
    threshold = np.zeros(shape, np.float32)
    value = np.zeros((*shape, values[0].shape[1]), np.float32)
    for number, (tree, own) in enumerate(zip(trees, values, strict=True)):
        count, leaf = tree.node_count, tree.children_left < 0
        itself = np.arange(count)
        left[number, :count] = np.where(leaf, itself, tree.children_left)
        right[number, :count] = np.where(leaf, itself, tree.children_right)
        feature[number, :count] = np.where(leaf, 0, tree.feature)
        threshold[number, :count] = _rounded_down(tree.threshold)
        value[number, :count] = own
    depth = max(tree.max_depth for tree in trees)
    return {
        "left": left,
        "right": right,
        "feature": feature,
        "threshold": threshold,
        "value": value,
        "levels": np.zeros(depth, np.float32),
    }


def _rounded_down(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 not above each value: comparisons with float32 features then give the same."""
    rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)


class ForestHead(TreeHead):
    """Random forest (scikit-learn): the mean share of kinds in the leaves."""

    def fit_standard(self, features: NDArray[np.float32], targets: HeadTargets) -> Mapping[str, NDArray[Any]]:
        """Fit the trees."""
        from sklearn.ensemble import RandomForestClassifier

        model = RandomForestClassifier(self.config.trees, min_samples_leaf=2, random_state=self.config.seed)
        model.fit(features, targets.labels, targets.image_weights)
        trees = [tree.tree_ for tree in model.estimators_]
        shares = [tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True) for tree in trees]
        return tree_arrays(trees, shares)

    def standard_logits(self, features: Tensor) -> Tensor:
        """Return the logarithms of the mean shares [B,K]."""
        return (self.leaves(features).mean(1) + _EPSILON).log()


class BoostingHead(TreeHead):
    """Gradient boosting (scikit-learn): for each kind, a sum of small trees."""

    def fit_standard(self, features: NDArray[np.float32], targets: HeadTargets) -> Mapping[str, NDArray[Any]]:
        """Fit the trees; those of a kind follow each other with a distance of K."""
        from sklearn.ensemble import GradientBoostingClassifier

        model = GradientBoostingClassifier(
            n_estimators=self.config.trees,
            max_depth=self.config.depth,
            subsample=0.5,
            max_features="sqrt",
            init="zero",
            random_state=self.config.seed,
        )
        model.fit(features, targets.labels, targets.image_weights)
        rate, columns = model.learning_rate, model.estimators_.shape[1]
        trees, values = [], []
        for number, tree in enumerate(one.tree_ for one in model.estimators_.ravel()):
            value = np.zeros((tree.node_count, targets.kinds))
            # Two kinds share one sum, which counts for the second.
            value[:, number % columns if columns > 1 else 1] = rate * tree.value[:, 0, 0]
            trees.append(tree)
            values.append(value)
        return tree_arrays(trees, values)

    def standard_logits(self, features: Tensor) -> Tensor:
        """Return the sums over the trees [B,K]."""
        return self.leaves(features).sum(1)


HEADS: dict[str, type[Head]] = {
    "linear": LinearHead,
    "logistic": LogisticHead,
    "svm": SvmHead,
    "knn": NeighboursHead,
    "forest": ForestHead,
    "gradient_boosting": BoostingHead,
}
"""Heads by name."""


def check_head(config: ClassifierConfig, *, gamma: float, smoothing: float, mixing: bool) -> None:
    """Check that the head takes what the settings ask of it.

    Raises:
        UsageError: The head takes no soft labels, focal loss or logit adjustment, or images are mixed for a frozen
            backbone.
    """
    tuned = config.fine_tune != "none"
    if tuned and config.head not in ("linear", "logistic"):
        raise UsageError(
            f"The head '{config.head}' cannot be trained with the backbone.", "Use --set head=linear with fine_tune."
        )
    if mixing and not tuned:
        raise UsageError(
            "Mixup and CutMix mix images, and a frozen backbone with a head learns from each image once.",
            "Train the backbone too, with --set fine_tune=last, or leave the flags out.",
        )
    asked = {
        "--balance focal": gamma > 0,
        "--label-smoothing": smoothing > 0,
        "logit_adjustment": config.logit_adjustment,
    }
    if not tuned and not HEADS[config.head].soft:
        for flag, given in asked.items():
            if given:
                raise UsageError(
                    f"The head '{config.head}' is not trained by a loss, so it takes no {flag}.",
                    "Use --set head=linear, or train the backbone too with --set fine_tune=last.",
                )


def square_distances(rows: Tensor, others: Tensor) -> Tensor:
    """Return the squared distances [B,N] of rows [B,D] and [N,D]; rounding can make them slightly negative."""
    return rows.square().sum(1, keepdim=True) - 2 * rows @ others.T + others.square().sum(1)

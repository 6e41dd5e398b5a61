"""Gaussian distribution of features at each place, and distances to it without some of the images it was fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from adctl.detectors.components.feature_statistics import CovarianceSums, exact

if TYPE_CHECKING:
    from torch import Tensor

FEWEST_IMAGES = 0.25
"""Fraction of the images below which a place does not get a distribution of its own."""


@dataclass(frozen=True)
class FittedPlaces:
    """Facts of a fit at P places that leaving out images needs.

    Attributes:
        count: Number of images that have a cell at each place, tensor [P] of float64.
        variance: Mean variance over the dimensions at each place, tensor [P].
        share: Fraction of the mean variance that is added to each variance.
        pooled: Sums over all places, which places that few images have use; None if all images have all cells.
    """

    count: Tensor
    variance: Tensor
    share: float
    pooled: CovarianceSums | None = None

    @property
    def ridge(self) -> Tensor:
        """Number that was added to each variance."""
        return self.share * self.variance.mean()

    def variance_without(self, offsets: Tensor, rest: Tensor, together: int) -> Tensor:
        """Return the mean variance [P,F] at each place without the images of offsets [P,F*f,D] from the mean.

        Args:
            offsets: Offsets, zero where an image has no cell.
            rest: Number of the other images [P,F].
            together: Number f of images.
        """
        parts = offsets.unflatten(1, (-1, together))
        squares = exact(parts.square().sum(2).mean(2))
        shift = squares / rest**2 if together == 1 else exact(parts.sum(2)).square().mean(2) / rest**2
        variance: Tensor = (self.count.unsqueeze(1) * self.variance.unsqueeze(1) - squares) / rest - shift
        return variance

    def pooled_without(self, features: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return distribution of all places without the features [P,f,D] of some images, whose cells are inside [P,f].

        Returns:
            Which places [P] have too few other images for a distribution of their own; mean [D] and covariance [D,D].
        """
        assert self.pooled is not None
        count = self.count - inside.sum(1)
        rows = exact(features[inside])
        others = CovarianceSums(
            max(1, int(self.pooled.count) - len(rows)),
            self.pooled.total - rows.sum(0),
            self.pooled.products - rows.mT @ rows,
        )
        return count < FEWEST_IMAGES * count.max(), *others.mean_and_covariance()


def with_pooled_places(sums: CovarianceSums) -> tuple[Tensor, Tensor, CovarianceSums | None]:
    """Return mean [P,D] and covariance [P,D,D]; places that few images have get those of all places together.

    The sums over all places are returned too, None if all images have all cells.
    """
    if isinstance(sums.count, int):
        return *sums.mean_and_covariance(), None
    pooled = CovarianceSums(int(sums.count.sum()), sums.total.sum(0), sums.products.sum(0))
    few = sums.count < FEWEST_IMAGES * sums.count.max()
    sums.count = sums.count.clamp(min=1)
    mean, covariance = sums.mean_and_covariance()
    mean[few], covariance[few] = pooled.mean_and_covariance()
    return mean, covariance, pooled


def whitening_matrices(covariance: Tensor) -> Tensor:
    """Return matrices W with W W^T = covariance^-1, [P,D,D]: the transposed inverses of the Cholesky factors."""
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.transpose(1, 2).float()


def squares_without(
    fit: FittedPlaces, mean: Tensor, whitening: Tensor, features: Tensor, inside: Tensor | None, together: int
) -> Tensor:
    """Return squared distances [P,F*f] of features to the distributions without their own f images.

    Args:
        fit: Facts of the fit.
        mean: Mean [P,D].
        whitening: Whitening matrices [P,D,D].
        features: Features [P,F*f,D] of images that were learned from.
        inside: Whether each cell [P,F*f] lies in its image; None if all do.
        together: Number f of consecutive images that are left out together.
    """
    offsets = features - mean.unsqueeze(1)
    if inside is None:
        weights = exact(torch.ones_like(offsets[:1, :, 0]))
    else:
        weights, offsets = exact(inside), offsets * inside.unsqueeze(2)
    ones = weights.unflatten(1, (-1, together)).unsqueeze(3)  # vectors [1,F,f,1] or [P,F,f,1]
    rest = (fit.count.unsqueeze(1) - ones.sum((2, 3))).clamp(min=1)
    variance = fit.variance_without(offsets, rest, together)
    if inside is None:
        return _changed(fit, whitening, offsets, ones, rest, fit.share * variance.mean(0)).flatten(1)
    sets = [slice(start, start + together) for start in range(0, features.shape[1], together)]
    pools = [fit.pooled_without(features[:, part], inside[:, part]) for part in sets]
    for number, (few, _, covariance) in enumerate(pools):
        variance[few, number] = covariance.diagonal().mean()
    ridge = fit.share * variance.mean(0)
    squares = _changed(fit, whitening, offsets, ones, rest, ridge).flatten(1)
    for part, added, (few, middle, covariance) in zip(sets, ridge, pools, strict=True):
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        factor = whitening_matrices((covariance + added * identity).unsqueeze(0))[0]
        squares[few, part] = exact(((features[few][:, part] - middle.float()) @ factor).square().sum(2))
    return squares


def _changed(
    fit: FittedPlaces, whitening: Tensor, offsets: Tensor, ones: Tensor, rest: Tensor, ridge: Tensor
) -> Tensor:
    """Return squared distances [P,F,f] by the Woodbury identity, with another number of images and another ridge.

    Args:
        fit: Facts of the fit.
        whitening: Whitening matrices [P,D,D].
        offsets: Offsets [P,F*f,D] from the mean, zero outside the images.
        ones: Vectors [1,F,f,1] or [P,F,f,1] of ones, zero outside the images.
        rest: Number of the other images [P,F].
        ridge: Number [F] that is added to each variance without the f images.
    """
    together = ones.shape[2]
    count, rest, ridge = fit.count[:, None, None, None], rest[..., None, None], ridge[:, None, None]
    growth, whitened = count / rest, offsets @ whitening
    products = _products(whitened, together) / growth
    products += (fit.ridge / ridge - 1 / growth) * fit.ridge * _products(whitened @ whitening.mT, together)
    identity, both = torch.eye(together, dtype=ones.dtype, device=ones.device), ones @ ones.mT
    left = rest * (identity - both / count.clamp(min=1)) - products
    solved = products / left if together == 1 else torch.linalg.solve(left, products)
    shift = identity + both / rest
    squares: Tensor = (shift @ (products + products @ solved) @ shift).diagonal(dim1=2, dim2=3)
    return squares


def _products(vectors: Tensor, together: int) -> Tensor:
    """Return the products [P,F,f,f] of vectors [P,F*f,D] with the f of their own set, of float64."""
    if together == 1:
        return exact(vectors.square().sum(2))[..., None, None]
    parts = exact(vectors).unflatten(1, (-1, together))
    products: Tensor = parts @ parts.mT
    return products

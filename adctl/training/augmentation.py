"""Augmentation of good training images, for detectors with gradient training.

| policy   | geometry                            | light and focus                                          | mixing |
|----------|-------------------------------------|----------------------------------------------------------|--------|
| `none`   | -                                   | -                                                        | -      |
| `light`  | 2 degrees, shift 2 %                | brightness, contrast 5 %                                 | -      |
| `medium` | 5 degrees, shift 5 %, zoom 5 %      | brightness, contrast 15 %; one image in four slightly    | -      |
|          |                                     | blurred, one in four slightly noisy                      |        |
| `heavy`  | 10 degrees, shift 8 %, zoom 10 %    | twice one of six: brightness 20 %, contrast 30 %,        | MixUp, |
|          |                                     | saturation 30 %, sharpness, blur, noise                  | CutMix |
| `custom` | transforms of the config file, in their order                                                            |

The detector learns that augmented images are good, so augmentations must not resemble defects. No policy mirrors
images, because a part mounted the wrong way round is defective. No policy changes the hue or the contrast of single
channels, because a wrong colour is a defect. Moved images are continued by reflection beyond their border, because
black corners would be learned as good. `heavy` draws from its list like RandAugment (Cubuk et al. 2020), without the
operations that break these rules, and mixes one image in eight by MixUp (Zhang et al. 2018) and one in eight by CutMix
(Yun et al. 2019). It suits small datasets with large variation, and makes faint defects harder to detect.

Custom transforms are named after classes of `torchvision.transforms.v2` (or of albumentations), or `ReflectedAffine`.
In each entry `probability` is the fraction of images to transform; all other values are arguments of the class:
`[{name = "RandomHorizontalFlip"}, {name = "ColorJitter", brightness = 0.2, probability = 0.5}]`.
torchvision's rotations and shifts leave black corners; `ReflectedAffine` does not.

All random numbers come from torch's global generators; albumentations is seeded from them. This module does not know
files or detectors.
"""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses
from torchvision.transforms import v2

from adctl.data import synthetic as defects
from adctl.engine.batching import is_out_of_memory
from adctl.engine.phases import Batch
from adctl.errors import MissingExtraError, UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Transform = Callable[[Tensor], Tensor]
"""Function from an image [C,H,W] to another."""

Step = Callable[[list[Tensor]], list[Tensor]]
"""Function from all images of a batch, each [C,H,W], to others."""

POLICIES = ("none", "light", "medium", "heavy", "custom")
LIBRARIES = ("torchvision", "albumentations")

_DEFECTIVE_SHARE = 0.5
_MIXED_SHARE = 0.125
_MIXUP_ALPHA = 0.2
_EXAMPLE = '[{name = "RandomRotation", degrees = 5}]'

_MIXERS = ("CutMix", "MixUp")
_UNFIT = {
    # composed of other transforms, or of code
    "Compose", "Lambda", "LinearTransformation", "RandomApply", "RandomChoice", "RandomOrder", "Transform",
    # change the dtype or the scale of values, or need another dtype than float32
    "ConvertImageDtype", "JPEG", "Normalize", "PILToTensor", "ToDtype", "ToImage", "ToPILImage", "ToPureTensor",
    "ToTensor",
    # for boxes, key points or video; return several images
    "ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat", "FiveCrop", "RandomIoUCrop",
    "SanitizeBoundingBoxes", "SanitizeKeyPoints", "SetClampingMode", "TenCrop", "UniformTemporalSubsample",
}  # fmt: skip
"""Classes of torchvision that cannot augment a single image."""


class Augmentation:
    """Random augmentation of a training batch, independent for each image.

    Args:
        policy: A name from `POLICIES`.
        library: A name from `LIBRARIES`.
        custom: Transforms of the policy `custom`; see the module.
        synthetic: Kinds of synthetic defects for half of the images, see `adctl.data.synthetic`; None for none.

    Raises:
        UsageError: A name is unknown, or an argument is not valid.
        MissingExtraError: The library is not installed.
    """

    def __init__(
        self,
        policy: str,
        *,
        library: str = "torchvision",
        custom: Sequence[Mapping[str, Any]] | None = None,
        synthetic: Sequence[str] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise unknown_name("augmentation policy", policy, POLICIES)
        if library not in LIBRARIES:
            raise unknown_name("augmentation library", library, LIBRARIES)
        _require_list(policy, custom)
        self.synthetic = None if synthetic is None else defects.check_kinds(synthetic)
        self._steps = _STEPS[library](policy, custom or ())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Batch:
        """Return an augmented batch of images [B,C,H,W], float32 in [0, 1]; the given tensor is not changed.

        Raises:
            UsageError: A custom transform fails, or changes the size of the images.
        """
        clean = self._vary(images)
        if self.synthetic is None:
            return Batch(clean, clean)
        painted, mask = defects.paint(clean, self.synthetic, _DEFECTIVE_SHARE)
        return Batch(painted, clean, mask)

    def _vary(self, images: Tensor) -> Tensor:
        if not self._steps:
            return images
        varied = list(images)
        for step in self._steps:
            varied = step(varied)
        for image in varied:
            _require_same_shape(images[0], image)
        # Keep the memory layout, because channels-last batches train a quarter faster on a CPU.
        return torch.empty_like(images).copy_(torch.stack(varied)).clamp_(0, 1)


class ReflectedAffine(nn.Module):
    """Random rotation, shift and zoom of an image, continued by reflection beyond its border.

    Args:
        degrees: Maximum rotation in either direction.
        shift: Maximum shift in either direction along each axis, fraction of the side.
        zoom: Maximum change of scale in either direction, fraction below 1.

    Raises:
        ValueError: A value is negative, or `zoom` is not below 1.
    """

    def __init__(self, degrees: float = 0.0, shift: float = 0.0, zoom: float = 0.0) -> None:
        super().__init__()
        if min(degrees, shift, zoom) < 0 or zoom >= 1:
            raise ValueError("degrees, shift and zoom must not be negative, and zoom must be below 1")
        self.degrees, self.shift, self.zoom = float(degrees), float(shift), float(zoom)

    def forward(self, image: Tensor) -> Tensor:
        """Transform an image [C,H,W]."""
        turn, right, down, zoom = (2 * torch.rand(4) - 1).tolist()
        angle, scale = math.radians(turn * self.degrees), 1 / (1 + zoom * self.zoom)
        height, width = image.shape[1:]
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        # Maps coordinates in the new image to those in the old one, both in [-1, 1]; a shift of 1 is half a side.
        rows = [
            [cos, -sin * height / width, 2 * right * self.shift],
            [sin * width / height, cos, 2 * down * self.shift],
        ]
        grid = F.affine_grid(image.new_tensor([rows]), [1, *image.shape], align_corners=False)
        # Bicubic, because bilinear interpolation would blur training images more than scored images.
        moved = F.grid_sample(image[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        return moved[0].clamp(0, 1)


class _Each:
    """Transform of each image, with a probability."""

    def __init__(self, transform: Transform, probability: float = 1.0) -> None:
        self.transform, self.probability = transform, probability

    def __call__(self, images: list[Tensor]) -> list[Tensor]:
        chosen = _draw(len(images), self.probability)
        return [self.transform(image) if take else image for image, take in zip(images, chosen, strict=True)]


class _Mixed:
    """Mixing of images with others of the batch, by torchvision's MixUp or CutMix on pairs."""

    def __init__(self, mixer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], probability: float) -> None:
        self.mixer, self.probability = mixer, probability

    def __call__(self, images: list[Tensor]) -> list[Tensor]:
        count = len(images)
        if count == 1:
            return images
        chosen = _draw(count, self.probability)
        partners = (torch.arange(count) + torch.randint(1, count, (count,))) % count
        return [
            self._mix(image, images[partner]) if take else image
            for image, partner, take in zip(images, partners.tolist(), chosen, strict=True)
        ]

    def _mix(self, image: Tensor, partner: Tensor) -> Tensor:
        no_labels = torch.zeros(2, dtype=torch.long, device=image.device)
        mixed, _ = self.mixer(torch.stack([image, partner]), no_labels)
        return mixed[0]


class _Albumentation:
    """Transform of albumentations, seeded from torch for each image."""

    def __init__(self, transform: Any) -> None:
        self.transform = _albumentations().Compose([transform])

    def __call__(self, image: Tensor) -> Tensor:
        self.transform.set_random_seed(int(torch.randint(2**31, ())))
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        varied = self.transform(image=pixels)["image"]
        return torch.from_numpy(np.ascontiguousarray(varied)).to(image).permute(2, 0, 1)


class _Guarded:
    """Custom transform; its errors are reported as errors of the config file."""

    def __init__(self, name: str, transform: Transform) -> None:
        self.name, self.transform = name, transform

    def __call__(self, image: Tensor) -> Tensor:
        try:
            return self.transform(image)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            size = " x ".join(str(side) for side in image.shape)
            raise UsageError(
                f"The augmentation '{self.name}' failed on an image of {size}: {error}",
                "Change its arguments in the config file.",
            ) from error


def _torchvision_steps(policy: str, custom: Sequence[Mapping[str, Any]]) -> list[Step]:
    if policy == "light":
        return [_Each(ReflectedAffine(2, 0.02)), _Each(v2.ColorJitter(0.05, 0.05))]
    if policy == "medium":
        return [
            _Each(ReflectedAffine(5, 0.05, 0.05)),
            _Each(v2.ColorJitter(0.15, 0.15)),
            _Each(v2.GaussianBlur(5, (0.3, 1.0)), 0.25),
            _Each(v2.GaussianNoise(sigma=0.01), 0.25),
        ]
    if policy == "heavy":
        light = [v2.ColorJitter(brightness=0.2), v2.ColorJitter(contrast=0.3), v2.ColorJitter(saturation=0.3)]
        focus = [v2.RandomAdjustSharpness(2.0, p=1.0), v2.GaussianBlur(7, (0.5, 1.2)), v2.GaussianNoise(sigma=0.02)]
        one = _Each(v2.RandomChoice([*light, *focus]))
        return [_Each(ReflectedAffine(10, 0.08, 0.1)), one, one, *_mixing()]
    return [_torchvision_step(entry) for entry in custom]


def _albumentations_steps(policy: str, custom: Sequence[Mapping[str, Any]]) -> list[Step]:
    """Return the steps of a policy with albumentations; mixing needs several images, so it uses torchvision."""
    a = _albumentations()

    def affine(degrees: float, shift: float, zoom: float = 0.0) -> Any:
        moves: dict[str, Any] = {"rotate": (-degrees, degrees), "translate_percent": (-shift, shift)}
        scale = (1 / (1 + zoom), 1 / (1 - zoom))
        return a.Affine(**moves, scale=scale, interpolation=_CUBIC, border_mode=_REFLECT, p=1.0)

    def light(brightness: float = 0, contrast: float = 0, saturation: float = 0) -> Any:
        return a.ColorJitter(brightness, contrast, saturation, hue=0, p=1.0)

    def blur(least: float, most: float) -> Any:
        return a.GaussianBlur(blur_limit=0, sigma_limit=(least, most), p=1.0)

    def noise(sigma: float) -> Any:
        return a.GaussNoise(std_range=(sigma, sigma), p=1.0)

    def each(transform: Any, probability: float = 1.0) -> Step:
        return _Each(_Albumentation(transform), probability)

    if policy == "light":
        return [each(affine(2, 0.02)), each(light(0.05, 0.05))]
    if policy == "medium":
        chances = [each(blur(0.3, 1.0), 0.25), each(noise(0.01), 0.25)]
        return [each(affine(5, 0.05, 0.05)), each(light(0.15, 0.15)), *chances]
    if policy == "heavy":
        sharpness = a.Sharpen(alpha=(1 / 13, 1 / 13), lightness=(1.0, 1.0), p=1.0)  # the kernel of torchvision's
        lights = [light(brightness=0.2), light(contrast=0.3), light(saturation=0.3)]
        one = each(a.OneOf([*lights, sharpness, blur(0.5, 1.2), noise(0.02)], p=1.0))
        return [each(affine(10, 0.08, 0.1)), one, one, *_mixing()]
    return [_albumentations_step(a, entry) for entry in custom]


_CUBIC, _REFLECT = 2, 2  # of OpenCV, whose names albumentations takes
_STEPS: dict[str, Callable[[str, Sequence[Mapping[str, Any]]], list[Step]]] = {
    "torchvision": _torchvision_steps,
    "albumentations": _albumentations_steps,
}


def _mixing() -> list[Step]:
    return [
        _Mixed(v2.MixUp(alpha=_MIXUP_ALPHA, num_classes=1), _MIXED_SHARE),
        _Mixed(v2.CutMix(num_classes=1), _MIXED_SHARE),
    ]


def _torchvision_step(entry: Mapping[str, Any]) -> Step:
    name, probability, arguments = _read(entry)
    known = _torchvision_classes()
    if name not in known:
        raise unknown_name("torchvision transform", name, known)
    if name in _MIXERS:
        return _Mixed(_build(name, known[name], {"num_classes": 1, **arguments}), probability)
    return _Each(_Guarded(name, _build(name, known[name], _with_enumerations(name, arguments))), probability)


def _albumentations_step(a: Any, entry: Mapping[str, Any]) -> Step:
    name, probability, arguments = _read(entry)
    bases = (a.ImageOnlyTransform, a.DualTransform, a.BasicTransform, a.Lambda)
    known = {
        key: kind
        for key, kind in vars(a).items()
        if isinstance(kind, type) and issubclass(kind, a.BasicTransform) and kind not in bases
    }
    if name not in known:
        raise unknown_name("albumentations transform", name, known)
    return _Each(_Guarded(name, _Albumentation(_build(name, known[name], arguments))), probability)


def _torchvision_classes() -> dict[str, type]:
    found = {name: kind for name, kind in vars(v2).items() if isinstance(kind, type) and issubclass(kind, v2.Transform)}
    return {name: kind for name, kind in found.items() if name not in _UNFIT} | {"ReflectedAffine": ReflectedAffine}


def _with_enumerations(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the names of interpolations and policies by the enumeration members that torchvision expects."""
    kinds = {"interpolation": v2.InterpolationMode, "policy": v2.AutoAugmentPolicy}
    values = dict(arguments)
    for key in kinds.keys() & values.keys():
        try:
            values[key] = kinds[key](values[key])
        except ValueError:
            known = [member.value for member in kinds[key]]
            raise unknown_name(f"{key} of {name}", str(values[key]), known) from None
    return values


def _build(name: str, kind: type, arguments: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # albumentations only warns about unknown arguments
            return kind(**arguments)
    except Exception as error:
        raise UsageError(
            f"The augmentation '{name}' does not accept the arguments {dict(arguments)}: {error}",
            "Change its arguments in the config file.",
        ) from error


def _read(entry: Mapping[str, Any]) -> tuple[str, float, dict[str, Any]]:
    """Return name, probability and the other arguments of an entry."""
    arguments = dict(entry)
    name, probability = arguments.pop("name", None), arguments.pop("probability", 1.0)
    if not isinstance(name, str):
        raise UsageError(f"An augmentation has no name: {dict(entry)}.", f"Write entries as in {_EXAMPLE}.")
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise UsageError(
            f"The 'probability' of the augmentation '{name}' must be from 0 to 1. Got {probability!r} instead.",
            "Change it in the config file.",
        )
    return name, float(probability), arguments


def _albumentations() -> Any:
    # Without this, albumentations asks the network for newer versions when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        return importlib.import_module("albumentations")
    except ImportError as error:
        raise MissingExtraError("albumentations", "albumentations") from error


def _draw(count: int, probability: float) -> list[bool]:
    chosen: list[bool] = (torch.rand(count) < probability).tolist()
    return chosen


def _require_list(policy: str, custom: Sequence[Mapping[str, Any]] | None) -> None:
    if policy == "custom" and not custom:
        raise UsageError(
            "The augmentation policy 'custom' has no transforms.", f"List them in the config file, as in {_EXAMPLE}."
        )
    if policy != "custom" and custom:
        raise UsageError(
            f"Transforms are given, but the augmentation policy is '{policy}'.",
            "Choose the policy custom, or leave the transforms out.",
        )


def _require_same_shape(before: Tensor, after: Tensor) -> None:
    if before.shape != after.shape:
        was, became = ("x".join(str(side) for side in image.shape) for image in (before, after))
        raise UsageError(
            f"The augmentations change the size of images from {was} to {became}.",
            f"Set the size of transforms that crop, pad or resize to {list(before.shape[1:])}, or leave them out.",
        )

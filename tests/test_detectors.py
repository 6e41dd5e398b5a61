"""The detector contract for every built-in detector, and features of single detectors."""

from __future__ import annotations

import pytest
import torch

from adctl.choices import DETECTORS
from adctl.detectors.registry import detector_class
from adctl.errors import UsageError
from adctl.model_file import load_model
from adctl.testing import DetectorContract

EPOCHS = {"vit": 4}
"""A transformer needs more epochs before it reconstructs anything."""

EXPORTED_ELSEWHERE = {"cnn", "diffusion", "ensemble", "padim", "patchcore", "vit"}
"""Their export is tested with several settings or formats by other files."""


class ExportedElsewhere(DetectorContract):
    """The contract without the export: that of wide images tests the same and that sides are not exchanged."""

    @pytest.mark.slow
    def test_an_exported_detector_scores_as_torch_does(self, trained, tmp_path):
        super().test_an_exported_detector_scores_as_torch_does(trained, tmp_path)


NEED_BASE = {"clip", "prompt"}
"""They read a base model, and have the contract in test_prompt.py, with a small one."""

for arch in sorted(set(DETECTORS) - NEED_BASE):
    name = f"Test_{arch}"
    globals()[name] = type(name, (ExportedElsewhere,), {"arch": arch, "epochs": EPOCHS.get(arch, 2)})
    base = ExportedElsewhere if arch in EXPORTED_ELSEWHERE else DetectorContract
    globals()[f"{name}_wide"] = type(f"{name}_wide", (base,), {"arch": arch, "image_size": (64, 128), "epochs": 2})


def test_unknown_arch_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        detector_class("patchcor")
    assert "Did you mean 'patchcore'?" in caught.value.remedy
    assert "padim" in caught.value.remedy


@torch.inference_mode()
def test_any_timm_backbone_works_transformers_too(zippers, tmp_path):
    from conftest import settings

    from adctl.training.single_run import train_once

    result = train_once(
        settings(
            arch="patchcore",
            data=zippers,
            runs=tmp_path,
            backbone="vit_tiny_patch16_224",
            weights="random",
            image_size=64,
        )
    )
    detector, _ = load_model(result.model)
    assert detector(torch.rand(2, 3, 64, 64)).maps.shape == (2, 4, 4)


def test_a_size_the_patches_do_not_divide_is_refused():
    cls = detector_class("patchcore")
    for size in (72, (64, 72)):
        with pytest.raises(UsageError, match="vit_tiny"):
            cls(cls.Config(backbone="vit_tiny_patch16_224", image_size=size))


@torch.inference_mode()
def test_a_transformer_takes_images_that_are_not_square():
    cls = detector_class("dinomaly")
    detector = cls(cls.Config(backbone="vit_tiny_patch16_224", image_size=(64, 96), width=16, depth=2)).eval()
    assert detector(torch.rand(2, 3, 64, 96)).maps.shape == (2, 4, 6)


def test_a_detector_for_squares_refuses_other_shapes():
    class Square(detector_class("padim")):
        any_shape = False

    with pytest.raises(UsageError, match="square images only, not 64x96") as caught:
        Square(Square.Config(image_size=(64, 96)))
    assert "--image-size 64" in caught.value.remedy

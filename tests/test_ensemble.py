"""Ensemble: shared features, joined p-values, exports, and settings that do not fit together."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import settings

from adctl.detectors.components.p_values import PValues
from adctl.detectors.ensemble import Ensemble, EnsembleConfig
from adctl.errors import ModelFileError, TrainingError, UsageError
from adctl.exporting.export import write_format
from adctl.exporting.graph import ExportSource
from adctl.model_file import load_model
from adctl.runtimes.loading import open_runtime
from adctl.training.plan import detector_config
from adctl.training.single_run import train_once


@pytest.fixture(scope="module")
def ensemble(zippers, tmp_path_factory):
    return train_once(settings(arch="ensemble", data=zippers, runs=tmp_path_factory.mktemp("runs")))


def test_p_values_are_those_of_good_values_and_fall_exponentially_beyond_them():
    values = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p_values = PValues()
    p_values.fit(5 - values.log())  # 5 + an exponential distribution: -log p = value - 5
    tested = torch.tensor([5.1, 6.0, 8.0, 11.0, 50.0])
    torch.testing.assert_close(p_values(tested), tested - 5, rtol=0.1, atol=0.02)
    rising = p_values(torch.linspace(-10, 100, 500))
    assert (rising.diff() > 0).all()


def test_p_values_of_equal_values_are_finite():
    p_values = PValues()
    p_values.fit(torch.full((100,), 3.0))
    found = p_values(torch.tensor([2.9, 3.0, 3.1]))
    assert torch.isfinite(found).all()
    assert found[2] > found[0]


@torch.inference_mode()
def test_images_pass_the_backbone_once_and_members_are_those_that_train_alone(ensemble, patchcore):
    detector, _ = load_model(ensemble.model)
    alone, _ = load_model(patchcore.model)
    passes = []
    detector.backbone.register_forward_hook(lambda *_: passes.append(1))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    joined = detector(images)
    assert len(passes) == 1
    member = detector.members["patchcore"]
    assert torch.equal(member.bank, alone.bank)
    shared = detector._shared(images)
    torch.testing.assert_close(member.forward(shared).maps, alone(images).maps)
    assert joined.maps.shape[1:] == detector.members["padim"].grid
    assert not any("members" in name and "backbone" in name for name in detector.state_dict())


@torch.inference_mode()
def test_openvino_scores_as_torch_does(ensemble, tmp_path):
    write_format("openvino", ExportSource.read(ensemble.model), tmp_path / "model.xml", "fp32")
    pixels = torch.randint(
        0, 256, (3, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    ).numpy()
    expected, found = (open_runtime(path, "cpu").predict(pixels) for path in (ensemble.model, tmp_path / "model.xml"))
    assert found.scores == pytest.approx(expected.scores, rel=1e-3)
    assert found.maps == pytest.approx(expected.maps, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"padim": {"image_size": 128}, "patchcore": {}}, "all members take the same input, but padim has image_size"),
        ({"padim": {}, "patchcore": {"layers": [1]}}, "patchcore has layers"),
        ({"padim": {"covariance": "shared"}, "patchcore": {}}, "padim needs covariance=full"),
        ({"padim": {}, "patchcore": {"search": "ivf"}}, "patchcore needs search=exact"),
        ({"padim": {"dimension": 9}, "patchcore": {}}, "padim: dimension: Extra inputs"),
        ({"padim": {}, "cnn": {}}, "'cnn' cannot be a member; padim and patchcore can"),
        ({"padim": {}}, "at least 2 members"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(members, reason):
    with pytest.raises(UsageError, match="--set members of ensemble is not valid") as caught:
        detector_config(settings(arch="ensemble", options={"members": members}).settings)
    assert reason in caught.value.message


def test_too_few_images_for_p_values_are_refused():
    detector = Ensemble(EnsembleConfig(image_size=64)).eval()
    with torch.inference_mode():
        phase = detector.phases()[0]
        phase.absorb(phase.embed(torch.rand(3, 3, 64, 64)))
        with pytest.raises(TrainingError, match="at least 4 good images; there are 3"):
            phase.finish(lambda _done, _total: None)


def test_a_file_with_p_values_that_rise_is_refused(ensemble):
    detector, _ = load_model(ensemble.model)
    state = {**detector.state_dict(), "p_values.padim.slopes": -detector.get_buffer("p_values.padim.slopes")}
    with pytest.raises(ModelFileError, match="not positive"):
        Ensemble(detector.config).load_state(state)
    assert math.isfinite(float(detector.get_buffer("p_values.padim.slopes").sum()))

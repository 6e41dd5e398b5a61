"""Contract tests for detectors: adctl runs them over its own, and packages that provide a detector run them too.

    from adctl.testing import DetectorContract

    class TestMine(DetectorContract):
        arch = "mahalanobis"

The detector is registered by an entry point of the group `adctl.detectors`: its name = `module:Class`. It must:

- subclass `adctl.detectors.base.Detector`, with a `Config` that subclasses `DetectorConfig`: a frozen pydantic model
  of JSON-safe settings, each with a default and a description;
- give `phases()` for the trainer: `Observe` (one pass without gradients; its `embed` changes nothing), `Optimize`
  (epochs of gradient steps), both in any order, or none;
- score images [B,C,H,W] of float32 in [0, 1] with `forward`: a `Prediction` of scores [B] and maps [B,h,w] of float32,
  finite, higher for more anomalous images. An image gets the same score alone and in any batch, at any time;
- keep what training finds in its parameters and in the buffers named in `fitted`: empty at first, loaded from the
  model file. Nothing else may influence a score;
- be exportable: `torch.export` traces `forward` with any number of images. A detector that cannot be exported raises a
  UsageError in `check_exportable` and sets `exportable = False` in its test;
- accept any `image_size`, or refuse it with an error of `adctl.errors`. `any_shape = True` says that the height of its
  input may differ from its width (`config.sides`); other detectors get square images. `masks_margin` says whether it
  can leave out the margins of `resize=pad`; other detectors see them in grey. `largest_auto_side` lets large images
  have a larger input.

The model is trained once for each class of tests, on a small generated dataset. pytest is required; onnx, onnxscript
and onnxruntime are required for the export test, which is skipped without them.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adctl.config import LoadedSettings, TrainSettings, names_of, validated
from adctl.data.images import resize
from adctl.detectors.base import CostEstimate, Detector, Prediction
from adctl.detectors.registry import detector_class, package_of
from adctl.engine.batching import to_input
from adctl.engine.phases import Observe, Optimize
from adctl.errors import AdctlError, ModelFileError, UsageError
from adctl.exporting.export import write_format
from adctl.exporting.graph import ExportSource
from adctl.fetching.demo_dataset import generate, render
from adctl.image_sizes import both_sides
from adctl.model_file import ModelHeader, Training, load_model, save_model
from adctl.runtimes.loading import open_runtime
from adctl.training.single_run import train_once

try:
    import pytest
except ImportError as error:
    raise ImportError("adctl.testing needs pytest. Install it with: pip install pytest") from error

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_IMAGES = 5
_BANDS = 6
_SIZES = (33, 50, 96, (64, 96))


@dataclass(frozen=True)
class TrainedDetector:
    """A detector trained on generated images.

    Attributes:
        detector: Detector loaded from its model file, in evaluation mode on the CPU.
        header: Header of the model file.
        images: Images [5,C,H,W] of noise in [0, 1], of the size that the detector takes.
    """

    detector: Detector
    header: ModelHeader
    images: Tensor


class DetectorContract:
    """Contract of a detector, one test for each clause. Subclass it and set `arch`.

    Attributes:
        arch: Name of the detector, as after `adctl train --arch`.
        options: Settings of the detector for the test, as after `--set`.
        image_size: Size of the images, pixels: the side of a square, or height and width.
        epochs: Epochs of gradient training, where there is any.
        exportable: Whether `adctl export` can write the detector.
        waits_for_host: Whether scoring exchanges values with the host, so that a GPU cannot compute it in one go.
    """

    arch: ClassVar[str] = ""
    options: ClassVar[dict[str, Any]] = {}
    image_size: ClassVar[int | tuple[int, int]] = 64
    epochs: ClassVar[int] = 2
    exportable: ClassVar[bool] = True
    waits_for_host: ClassVar[bool] = False

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory: pytest.TempPathFactory) -> TrainedDetector:
        """Train the detector on the zippers of the demo dataset."""
        given = {
            "arch": cls.arch,
            "options": cls.options,
            "data": _zippers(tmp_path_factory.getbasetemp()),
            "runs": tmp_path_factory.mktemp("runs"),
            "image_size": cls.image_size,
            "epochs": cls.epochs,
            "device": "cpu",
        }
        settings = LoadedSettings(validated(TrainSettings, given), dict.fromkeys(names_of(TrainSettings), "test"))
        result = train_once(settings)
        assert result is not None
        detector, header = load_model(result.model)
        size = detector.input
        shape = (_IMAGES, size.planes, size.height, size.width)
        return TrainedDetector(detector, header, torch.rand(shape, generator=torch.Generator().manual_seed(0)))

    def untrained(self, **options: Any) -> Detector:
        """Create a detector that has learned nothing, with the settings of the test and further ones."""
        cls = detector_class(self.arch)
        return cls(cls.Config(**{"image_size": self.image_size, **self.options, **options}))

    def test_scores_and_maps_have_the_right_shape_and_are_finite(self, trained: TrainedDetector) -> None:
        """Scores are [B] and maps [B,h,w], float32 and finite."""
        prediction = _predict(trained.detector, trained.images)
        assert isinstance(prediction, Prediction)
        assert prediction.scores.shape == (_IMAGES,)
        assert prediction.maps.ndim == 3  # noqa: PLR2004 - [B,h,w]
        assert prediction.maps.shape[0] == _IMAGES
        assert prediction.scores.dtype == prediction.maps.dtype == torch.float32
        assert torch.isfinite(prediction.scores).all()
        assert torch.isfinite(prediction.maps).all()

    def test_the_same_images_get_the_same_scores(self, trained: TrainedDetector) -> None:
        """Scoring is deterministic."""
        first, second = (_predict(trained.detector, trained.images) for _ in range(2))
        assert torch.equal(first.scores, second.scores)
        assert torch.equal(first.maps, second.maps)

    def test_an_image_gets_the_same_score_alone_and_in_a_batch(self, trained: TrainedDetector) -> None:
        """The other images of a batch do not matter."""
        together = _predict(trained.detector, trained.images)
        for index in range(_IMAGES):
            alone = _predict(trained.detector, trained.images[index : index + 1])
            torch.testing.assert_close(alone.scores[0], together.scores[index], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.maps[0], together.maps[index], rtol=1e-3, atol=1e-4)

    def test_a_defect_raises_the_score_where_it_is(self, trained: TrainedDetector) -> None:
        """A large, bright defect raises the score, and the map is highest there; this is not a measure of quality."""
        height, width = trained.detector.input.height, trained.detector.input.width
        good = resize(render(7, None, max(height, width))[0], height, width)
        bad = good.copy()
        bad[height // 2 : height // 2 + 10, 8:18] = (255, 0, 255)
        prediction = _predict(trained.detector, to_input(np.stack([good, bad]), torch.device("cpu")))
        assert prediction.scores[1] > prediction.scores[0]
        difference = prediction.maps[1] - prediction.maps[0]
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        near = min(height, width) // 4
        assert abs((row + 0.5) * height / difference.shape[0] - (height // 2 + 5)) < near
        assert abs((column + 0.5) * width / difference.shape[1] - 13) < near

    def test_a_saved_detector_scores_the_same_when_loaded(self, trained: TrainedDetector, tmp_path: Path) -> None:
        """The model file holds everything that a score depends on."""
        save_model(tmp_path / "copy.safetensors", trained.detector, trained.header)
        loaded, header = load_model(tmp_path / "copy.safetensors")
        assert header == trained.header
        assert torch.equal(_predict(loaded, trained.images).scores, _predict(trained.detector, trained.images).scores)

    def test_the_model_file_names_the_package(self, trained: TrainedDetector) -> None:
        """The header names the detector and the package that provides it."""
        assert (trained.header.arch, trained.header.package) == (self.arch, package_of(self.arch))

    def test_the_config_is_json_safe(self, trained: TrainedDetector) -> None:
        """Settings survive a JSON round trip."""
        config = trained.detector.config
        assert type(config)(**json.loads(config.model_dump_json())) == config

    def test_every_option_has_a_default_and_a_description(self) -> None:
        """All settings can be left out, and `--print-config` can explain each."""
        for name, field in detector_class(self.arch).Config.model_fields.items():
            assert field.description, name
            assert not field.is_required(), name

    def test_an_unknown_option_is_refused(self) -> None:
        """A misspelt setting is never ignored."""
        with pytest.raises(ValidationError):
            self.untrained(no_such_option=1)

    def test_an_unfitted_detector_says_so(self) -> None:
        """Buffers that training fills are empty before."""
        detector = self.untrained()
        if detector.fitted:
            with pytest.raises(ModelFileError, match="not fitted"):
                detector.check_fitted()

    def test_phases_can_be_run(self) -> None:
        """Each phase is an `Observe` or an `Optimize` with a title; an `Optimize` has parameters to train."""
        for phase in self.untrained().phases():
            assert isinstance(phase, Observe | Optimize)
            assert phase.title
            if isinstance(phase, Optimize):
                parameters = list(phase.parameters)
                assert parameters
                assert all(one.requires_grad for one in parameters)

    def test_embedding_changes_nothing(self, trained: TrainedDetector) -> None:
        """The first pass can be repeated with a smaller batch when memory runs out; without one, all is well."""
        detector = copy.deepcopy(trained.detector)
        phases = detector.phases()
        if not phases or not isinstance(phases[0], Observe):
            return
        before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
        with torch.inference_mode():
            first, second = phases[0].embed(trained.images), phases[0].embed(trained.images)
        assert _tensors_in(first)
        assert all(map(torch.equal, _tensors_in(first), _tensors_in(second)))
        after = detector.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_new_good_images_are_added_or_need_all_images(self, trained: TrainedDetector) -> None:
        """A detector that can learn from new images alone scores them no higher afterwards, and can be saved."""
        detector = copy.deepcopy(trained.detector)
        before = _predict(detector, trained.images).scores
        phases = detector.update_phases(trained.header.training.images)
        for phase in phases:
            assert isinstance(phase, Observe)
            with torch.inference_mode():
                phase.absorb(phase.embed(trained.images))
                phase.finish(lambda _done, _total: None)
        if phases:
            after = _predict(detector, trained.images).scores
            assert torch.isfinite(after).all()
            assert (after <= before * (1 + 1e-3)).all()
            loaded = self.untrained(**trained.header.config)
            loaded.load_state(detector.state_dict())
            torch.testing.assert_close(_predict(loaded.eval(), trained.images).scores, after)

    def test_the_cost_of_training_is_known_before(self) -> None:
        """`adctl train --dry-run` can estimate memory, operations and disk space."""
        cost = self.untrained().estimate_cost(100)
        assert isinstance(cost, CostEstimate)
        assert min(cost.memory, cost.flops, cost.disk) >= 0

    def test_images_of_many_channels_are_accepted_or_refused(self) -> None:
        """`channels` is used, or refused with an error that gives the reason."""
        try:
            detector = self.untrained(channels=_BANDS)
        except (AdctlError, ValidationError):
            return
        assert detector.input.channels == _BANDS

    @pytest.mark.parametrize("size", _SIZES)
    def test_any_size_is_accepted_or_refused(self, size: int | tuple[int, int]) -> None:
        """An image size is used, or refused with an error that gives the reason."""
        try:
            detector = self.untrained(image_size=size)
        except (AdctlError, ValidationError):
            return
        assert (detector.input.height, detector.input.width) == both_sides(size)

    def test_scoring_on_a_gpu_waits_for_nothing(self, trained: TrainedDetector) -> None:
        """Scoring a batch needs no value from the host and gives it none, so that a GPU computes it in one go."""
        if self.exportable and not self.waits_for_host:
            assert host_transfers(trained.detector) == []

    def test_an_exported_detector_scores_as_torch_does(self, trained: TrainedDetector, tmp_path: Path) -> None:
        """ONNX Runtime gives the same scores and maps, for one image and for several."""
        if not self.exportable:
            with pytest.raises(UsageError):
                trained.detector.check_exportable()
            return
        check_onnx(self.arch, trained.detector, trained.images, tmp_path)


def host_transfers(detector: Detector) -> list[str]:
    """Return the operations of a forward pass on a GPU for which host and GPU wait for each other.

    They are found without a GPU, by tensors without values (`FakeTensorMode`). Creating a tensor from Python numbers is
    one of them: use a buffer, or functions such as `torch.full` on the device. The test is skipped if this release of
    PyTorch asks the driver of a GPU for the plan of a convolution, as 2.9 does.

    Args:
        detector: Fitted detector, in evaluation mode.
    """
    shape = (_IMAGES, detector.input.planes, detector.input.height, detector.input.width)
    copied = copy.deepcopy(detector).cpu()  # drops tensors that a detector keeps for its device
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in copied.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty_like(weight, device="cuda"), requires_grad=False))
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(value, device="cuda"))
        try:
            with _HostTransfers() as watched:
                copied(torch.empty(shape, device="cuda"))
        except torch.AcceleratorError:
            pytest.skip("this release of PyTorch needs a GPU for tensors without values")
    found: list[str] = watched.found
    return found


class _HostTransfers(TorchDispatchMode):
    """Recorder of the operations between host and GPU, and of those whose results the host has to know."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        given, returned = (
            {leaf.device.type for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)}
            for value in ((args, kwargs), result)
        )
        if len(given | returned) > 1 or torch.Tag.data_dependent_output in func.tags:
            self.found.append(str(func))
        return result


def check_onnx(arch: str, detector: Detector, images: Tensor, folder: Path) -> None:
    """Export a detector to ONNX and check that it scores as with torch, one image alone and all together.

    Args:
        arch: Name of the detector.
        detector: Fitted detector on the CPU, in evaluation mode.
        images: Images [B,C,H,W] in [0, 1].
        folder: Folder for the files.

    Raises:
        AssertionError: Scores differ by more than 0.1 %, or maps by more than 1 %.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    header = ModelHeader(arch, detector.config.model_dump(mode="json"), Training("none", "none", 0, "", (), None))
    save_model(folder / "model.safetensors", detector, header)
    write_format("onnx", ExportSource.read(folder / "model.safetensors"), folder / "model.onnx")
    runtime = open_runtime(folder / "model.onnx", "cpu")
    for count in (1, len(images)):
        pixels = (images[:count] * 255).to(torch.uint8)
        exported = runtime.predict(pixels.permute(0, 2, 3, 1).contiguous().numpy())
        scores, maps = _predict(detector, pixels / 255)
        np.testing.assert_allclose(exported.scores, scores.numpy(), rtol=1e-3)
        np.testing.assert_allclose(exported.maps, maps.numpy(), rtol=1e-2, atol=1e-5)


def _tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a tensor, sequence or dataclass."""
    if isinstance(value, torch.Tensor):
        return [value]
    if value is None or isinstance(value, int | float):
        return []
    parts = vars(value).values() if is_dataclass(value) else value
    return [tensor for part in parts for tensor in _tensors_in(part)]


@torch.inference_mode()
def _predict(detector: Detector, images: Tensor) -> Prediction:
    return detector(images)


@cache
def _zippers(folder: Path) -> Path:
    """Generate a small zipper category, once for each test session."""
    root = folder / "contract"
    generate(root, train=20, good=6, per_defect=1, size=96)
    return root / "zipper"

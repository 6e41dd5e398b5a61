"""The engine: batches, retries with smaller batches, gradient steps, model files."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from conftest import Pixels
from torch import nn

from adctl.engine import safetensors_file
from adctl.engine.batching import BatchLimit, is_out_of_memory
from adctl.engine.context import FitContext
from adctl.engine.device import choose_device
from adctl.engine.history import FitSettings
from adctl.engine.lr_schedule import LearningRateSchedule
from adctl.engine.phases import Observe, Optimize
from adctl.engine.trainer import FitJob, fit
from adctl.engine.training_log import FolderTrainingLog
from adctl.errors import ModelFileError, TrainingError, UsageError
from adctl.model_file import FORMAT, load_model

CPU = torch.device("cpu")


class Mean(nn.Module):
    """Learns the mean image."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(3, 8, 8))
        self.largest = 0

    def phases(self):
        return [Optimize(self.loss, self.parameters(), "test")]

    def loss(self, batch):
        self.largest = max(self.largest, len(batch.images))
        return {"l2": (batch.clean - self.value).square().mean()}


def fitted(count=12, **plan):
    model = Mean()
    return model, fit_one(model, Pixels(count), **plan)


def fit_one(model, train, validation=None, *, around=None, resume=False, devices=None, **plan):
    """Fit a module that has `phases`."""
    chosen = FitSettings(**{"epochs": 2, "precision": "32", **plan})
    return fit(FitJob(model, train, validation, chosen, CPU, around or FitContext(), resume), devices)


def test_accumulated_batches_equal_the_large_batch():
    large, _ = fitted(batch_size=12)
    small, _ = fitted(batch_size=4, accumulate=3)
    uneven, _ = fitted(batch_size=5, accumulate=3)
    torch.testing.assert_close(small.value, large.value)
    torch.testing.assert_close(uneven.value, large.value)
    assert small.largest == 4


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not():
    assert torch.equal(fitted(batch_size=4)[0].value, fitted(batch_size=4)[0].value)
    assert not torch.equal(fitted(batch_size=4)[0].value, fitted(batch_size=4, seed=1)[0].value)


def test_a_history_that_cannot_be_written_ends_no_training(tmp_path, caplog):
    (tmp_path / "history.csv").mkdir()
    (tmp_path / "loss.png").mkdir()
    model, report = fitted(epochs=3, around=FitContext(training_log=FolderTrainingLog(tmp_path)))
    assert len(report.history) == 3
    assert model.value.abs().sum() > 0
    assert caplog.text.count("Cannot write") == 1


def test_history_has_an_entry_an_epoch_and_the_loss_falls():
    _, report = fitted(batch_size=4, epochs=20, learning_rate=0.05)
    assert [epoch.number for epoch in report.history] == list(range(1, 21))
    assert report.history[-1].loss < report.history[0].loss
    assert report.history[0].terms.keys() == {"l2"}


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best_weights():
    class Wanders(Mean):
        def loss(self, batch):
            if self.training:
                return {"push": -self.value.mean() * 10}
            return {"far": self.value.square().mean()}

    report = fit_one(Wanders(), Pixels(4), Pixels(2), epochs=50, patience=3)
    assert len(report.history) == 4
    assert report.best_epoch == 1


def test_a_loss_that_is_not_finite_stops_with_a_remedy():
    class Breaks(Mean):
        def loss(self, batch):
            return {"nan": self.value.sum() * float("nan")}

    with pytest.raises(TrainingError, match=r"nan is nan.*image 2.*in epoch 1, step 1") as caught:
        fit_one(Breaks(), Pixels(4))
    assert "--learning-rate" in caught.value.remedy


def test_running_out_of_memory_halves_the_batch_and_absorbs_each_image_once():
    seen: list[torch.Tensor] = []
    sizes = []

    def embed(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images

    class Looks(Mean):
        def phases(self):
            return [Observe(embed, seen.append, lambda _: None)]

    images = Pixels(10)
    fit_one(Looks(), images, batch_size=8)
    gathered = torch.cat(seen)
    expected = torch.from_numpy(images.values).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(gathered, expected)
    assert sizes[:2] == [8, 4]


def test_memory_that_does_not_hold_one_image_is_an_error():
    def embed(images):
        raise MemoryError

    with pytest.raises(TrainingError, match="single image"):
        list(BatchLimit(4).run(embed, torch.zeros(4, 3, 8, 8)))


def test_other_errors_pass_through():
    def embed(images):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(BatchLimit(4).run(embed, torch.zeros(4, 3, 8, 8)))


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes"), False),
    ],
)
def test_out_of_memory_is_recognised(error, memory):
    assert is_out_of_memory(error) is memory


def test_learning_rate_warms_up_and_falls_to_nothing():
    shares = [LearningRateSchedule("cosine", 200).factor(step) for step in range(201)]
    assert shares[:10] == sorted(shares[:10])
    assert max(shares) == pytest.approx(1.0)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0.0)


def test_devices():
    assert choose_device("cpu").device.type == "cpu"
    assert choose_device("auto").reason
    with pytest.raises(UsageError) as caught:
        choose_device("auto", gpu=99)
    assert "--device cpu" in caught.value.remedy
    with pytest.raises(UsageError, match="contradict"):
        choose_device("cpu", gpu=0)


def test_a_checkpoint_is_the_same_bytes_each_time(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.eye(2)}
    for name in ("one", "two"):
        safetensors_file.write(tmp_path / name, tensors, {"z": 1, "a": {"ü": 2}})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read, header = safetensors_file.read(tmp_path / "one")
    assert header == {"z": 1, "a": {"ü": 2}}
    assert torch.equal(read["a"], torch.eye(2))


def test_model_files_that_cannot_be_used_say_why(tmp_path, patchcore):
    whole = patchcore.model.read_bytes()
    cases = {
        "absent.safetensors": (None, "no model file"),
        "empty.safetensors": (b"", "not a complete model file"),
        "short.safetensors": (whole[: len(whole) // 2], "not a complete model file"),
        "text.safetensors": (b"hello, this is no model at all" * 9, "not a complete model file"),
        "newer.safetensors": (changed(whole, format=FORMAT + 1), "reads up to"),
        "arch.safetensors": (changed(whole, arch="novel"), "does not know"),
        "config.safetensors": (changed(whole, config={"image_size": -1}), "not valid"),
        "missing.safetensors": (changed(whole, training={}), "training.dataset: "),
        "foreign.safetensors": (foreign(whole), "not a model of adctl"),
    }
    for name, (data, message) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelFileError, match=message) as caught:
            load_model(tmp_path / name)
        assert caught.value.remedy, name


def test_a_pickle_is_never_loaded(tmp_path):
    from adctl.detectors.components.backbones import find_weights

    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    torch.save({"weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match="which adctl never loads"):
        find_weights("resnet18", str(tmp_path / "w.pth"))


def parts(data: bytes) -> tuple[dict, bytes]:
    """A safetensors file's header and the rest."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def changed(data: bytes, **values) -> bytes:
    header, rest = parts(data)
    inner = json.loads(header["__metadata__"]["adctl"])
    del inner["header_sha256"], inner["tensor_sha256"]  # as in files of adctl 0.1
    header["__metadata__"]["adctl"] = json.dumps(inner | values)
    return joined(header, rest)


def foreign(data: bytes) -> bytes:
    header, rest = parts(data)
    header["__metadata__"] = {"format": "pt"}
    return joined(header, rest)

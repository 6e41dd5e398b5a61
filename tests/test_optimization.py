"""Gradient training: resuming, memory, processes, weight averages, schedules; float64 where results must be equal."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import Pixels
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from adctl.engine import distributed
from adctl.engine.batching import largest_batch_size
from adctl.engine.checkpoints import CheckpointFolder
from adctl.engine.context import FitContext
from adctl.engine.ema import ExponentialMovingAverage
from adctl.engine.gradient_checkpointing import checkpoint_activations
from adctl.engine.history import Epoch, FitSettings, to_csv
from adctl.engine.lr_schedule import SCHEDULES, LearningRateSchedule
from adctl.engine.phases import Batch, Critic, Optimize
from adctl.engine.trainer import FitJob, fit
from adctl.engine.training_log import TrainingLog, loss_figure
from adctl.errors import ModelFileError, TrainingError, UsageError
from adctl.progress import Reporter
from adctl.tracking.loggers.run_loggers import LoggedTrainingLog, Loggers

CPU = torch.device("cpu")


class Rebuilds(nn.Module):
    """A small autoencoder; with `noisy` its loss draws random numbers, with `norm` it has batch statistics."""

    def __init__(self, *, noisy: bool = False, norm: bool = False, double: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = [nn.BatchNorm2d(4)] if norm else []
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))
        self.noisy = noisy
        self.double_ = double
        self.fails_above: int | None = None
        self.sizes: list[int] = []
        if double:
            self.double()

    def phases(self):
        return [Optimize(self.loss, self.parameters(), "test", preview=self.forward)]

    def forward(self, images):
        return self.layers(images.double() if self.double_ else images)

    def loss(self, batch):
        self.sizes.append(len(batch.images))
        if self.fails_above is not None and self.training and len(batch.images) > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        images = batch.images + 0.1 * torch.randn_like(batch.images) if self.noisy else batch.images
        rebuilt = self(images)
        return {"mse": (rebuilt - batch.clean).square().mean(), "l1": 0.1 * (rebuilt - batch.clean).abs().mean()}


def train(model, images=None, validation=None, *, around=None, resume=False, devices=None, **plan):
    chosen = FitSettings(**{"epochs": 3, "precision": "32", "batch_size": 4, **plan})
    work = FitJob(model, images or Pixels(18), validation, chosen, CPU, around or FitContext(), resume)
    return fit(work, devices)


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


@pytest.mark.parametrize(("size", "times"), [(4, 3), (3, 4), (5, 3), (1, 12)])
def test_accumulation_equals_the_large_batch_in_float64(size, times):
    large, small = Rebuilds(double=True), Rebuilds(double=True)
    images = Pixels(size * times * 2)
    train(large, images, batch_size=size * times)
    train(small, images, batch_size=size, accumulate=times)
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-9, atol=1e-12)


class Dies(TrainingLog):
    """Stops the training after an epoch, as a lost process would, but for what is on the disk."""

    def __init__(self, after: int) -> None:
        self.after = after

    def epoch(self, history, preview):
        if history[-1].number == self.after:
            raise InterruptedError


@pytest.mark.parametrize("after", [1, 2, 3, 5])
@pytest.mark.parametrize("more", [{}, {"ema": 0.9}, {"schedule": "plateau"}, {"checkpoint_minutes": 1e-9}], ids=str)
def test_a_resumed_training_equals_the_uninterrupted_one(tmp_path, after, more):
    images, validation = Pixels(18), Pixels(4, seed=1)
    plan = {"epochs": 6, "checkpoint_epochs": 1, **more}
    whole = Rebuilds(noisy=True, norm=True)
    expected = train(whole, images, validation, **plan)

    folder = CheckpointFolder(tmp_path)
    with pytest.raises(InterruptedError):
        train(
            Rebuilds(noisy=True, norm=True), images, validation, **plan,
            around=FitContext(training_log=Dies(after), checkpoints=folder),
        )  # fmt: skip
    resumed = Rebuilds(noisy=True, norm=True)
    report = train(resumed, images, validation, **plan, around=FitContext(checkpoints=folder), resume=True)

    assert torch.equal(weights(resumed), weights(whole))
    assert [(one.number, one.loss, one.terms, one.validation) for one in report.history] == [
        (one.number, one.loss, one.terms, one.validation) for one in expected.history
    ]
    assert report.best_epoch == expected.best_epoch
    if after > 1 or "checkpoint_minutes" in more:
        assert report.resumed_at


def test_only_the_last_checkpoints_stay_and_a_damaged_one_is_named(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    train(Rebuilds(), epochs=5, checkpoint_epochs=1, around=FitContext(checkpoints=folder))
    paths = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step-00000020.safetensors", "step-00000025.safetensors"]
    paths[-1].write_bytes(paths[-1].read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="step-00000025"):
        train(Rebuilds(), epochs=5, around=FitContext(checkpoints=folder), resume=True)
    folder.clear()
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    folder = CheckpointFolder(tmp_path)
    train(Rebuilds(), epochs=2, checkpoint_epochs=1, around=FitContext(checkpoints=folder))
    with pytest.raises(ModelFileError, match="another network"):
        train(Rebuilds(norm=True), epochs=2, around=FitContext(checkpoints=folder), resume=True)


def test_running_out_of_memory_halves_the_batch_loses_no_step_and_says_so(caplog):
    calm, tight = Rebuilds(double=True, norm=False), Rebuilds(double=True, norm=False)
    tight.fails_above = 3
    images = Pixels(24)
    expected = train(calm, images, batch_size=8)
    report = train(tight, images, batch_size=8)
    torch.testing.assert_close(weights(tight), weights(calm), rtol=1e-9, atol=1e-12)
    assert [one.loss for one in report.history] == pytest.approx([one.loss for one in expected.history])
    assert report.batch_size == 2
    assert report.global_batch_size == 8
    assert "Memory ran out at batch size 8: continuing with 4." in caplog.text


def test_running_out_of_memory_leaves_batch_statistics_as_they_were():
    once, twice = Rebuilds(norm=True), Rebuilds(norm=True)
    twice.fails_above = 4
    images = Pixels(8)
    train(once, images, batch_size=4, accumulate=2, epochs=1)
    train(twice, images, batch_size=8, epochs=1)
    torch.testing.assert_close(weights(twice), weights(once))


def test_two_processes_give_the_weights_of_one_with_the_same_global_batch():
    images, validation = Pixels(21), Pixels(4, seed=1)
    one, two = Rebuilds(double=True), Rebuilds(double=True)
    expected = train(one, images, validation, batch_size=8, epochs=2)
    report = train(two, images, validation, batch_size=4, epochs=2, devices=distributed.Devices("cpu", (0, 1)))
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-9, atol=1e-12)
    assert report.global_batch_size == expected.global_batch_size == 8
    assert report.devices == 2
    assert [one.loss for one in report.history] == pytest.approx([one.loss for one in expected.history], rel=1e-5)


class Breaks(Rebuilds):
    def loss(self, batch):
        return {name: value * math.nan for name, value in super().loss(batch).items()}


def test_an_error_in_another_process_reaches_the_user():
    with pytest.raises(TrainingError, match="not finite") as caught:
        train(Breaks(), devices=distributed.Devices("cpu", (0, 1)))
    assert "--learning-rate" in caught.value.remedy


def test_a_broken_loss_names_the_batch_and_the_last_good_checkpoint(tmp_path):
    folder = CheckpointFolder(tmp_path)
    train(Rebuilds(), epochs=2, checkpoint_epochs=1, around=FitContext(checkpoints=folder))
    with pytest.raises(TrainingError, match=r"mse is nan.*image \d+, image \d+") as caught:
        train(Breaks(), epochs=3, around=FitContext(checkpoints=folder), resume=True)
    assert "step-00000010" in caught.value.remedy


def test_fewer_images_than_a_batch_and_a_single_left_over_one():
    assert train(Rebuilds(norm=True), Pixels(3), batch_size=8).history[-1].loss > 0
    model = Rebuilds(norm=True)
    train(model, Pixels(9), batch_size=4, epochs=1)
    assert model.sizes == [4, 4]


def test_the_average_of_weights_is_what_is_kept():
    plain, averaged = Rebuilds(), Rebuilds()
    train(plain, epochs=2)
    train(averaged, epochs=2, ema=0.99)
    assert not torch.equal(weights(plain), weights(averaged))


def test_weight_average_follows_and_swaps_back():
    parameter = nn.Parameter(torch.zeros(3))
    average = ExponentialMovingAverage([parameter], 0.5)
    with torch.no_grad():
        parameter.fill_(1.0)
    for _ in range(60):
        average.update()
    with average.applied():
        torch.testing.assert_close(parameter.detach(), torch.ones(3))
    with torch.no_grad():
        parameter.fill_(5.0)
    with average.applied():
        assert parameter.max() < 2
    assert parameter.min() == 5


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_warm_up_to_the_peak_and_never_exceed_it(name):
    schedule = LearningRateSchedule(name, 100, warmup=0.1)
    shares = [schedule.factor(step) for step in range(100)]
    assert shares[:10] == pytest.approx(np.linspace(0.1, 1, 10))
    assert max(shares) == pytest.approx(1)
    if name == "step":
        assert shares[20] == 1
        assert shares[45] == pytest.approx(0.1)
        assert shares[95] == pytest.approx(0.01)


def test_plateau_halves_when_the_loss_stands_still():
    schedule = LearningRateSchedule("plateau", 100, warmup=0)
    for _ in range(6):
        schedule.epoch_done(1.0)
    assert schedule.factor(50) == 0.5


def test_recomputed_activations_change_nothing_but_memory():
    kept, again = Rebuilds(norm=True), Rebuilds(norm=True)
    images = torch.rand(4, 3, 8, 8)
    sum(kept.loss(Batch(images, images)).values()).backward()
    with checkpoint_activations(again, (nn.Sequential,)) as count:
        sum(again.loss(Batch(images, images)).values()).backward()
    assert count == 1
    torch.testing.assert_close(again.layers[0].weight.grad, kept.layers[0].weight.grad)
    torch.testing.assert_close(weights(again), weights(kept))  # batch statistics counted once


def test_an_automatic_batch_fits_the_memory_there_is(monkeypatch):
    import psutil

    def step(size):
        (torch.rand(size, 1000, requires_grad=True) ** 2).sum().backward()

    memory = psutil.virtual_memory()
    assert largest_batch_size(step, 16, CPU) == 16
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=60_000))
    assert largest_batch_size(step, 16, CPU) in (2, 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=100))
    with pytest.raises(TrainingError, match="single image"):
        largest_batch_size(step, 16, CPU)


def test_a_gpu_is_tried_for_real():
    tried = []

    def step(size):
        tried.append(size)
        if size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_batch_size(step, 16, torch.device("meta")) == 4
    assert tried == [16, 8, 4]


def test_an_automatic_batch_that_shrinks_keeps_the_step(monkeypatch, caplog):
    monkeypatch.setattr("adctl.engine.trainer.largest_batch_size", lambda *_: 2)
    model = Rebuilds()
    report = train(model, Pixels(16), batch_size="auto", epochs=1)
    assert max(model.sizes) == 2
    assert (report.batch_size, report.global_batch_size) == (2, 8)
    assert "each step uses 4 batches" in caplog.text


class Adversary(Rebuilds):
    """Trains a critic beside the network."""

    def __init__(self):
        super().__init__()
        self.judge = [nn.Linear(192, 1)]  # in a list: no part of the module

    def phases(self):
        critic = self.judge[0]

        def opposed():
            return {"far": critic(self.seen).square().mean()}

        return [Optimize(self.loss, self.parameters(), "test", critic=Critic(opposed, critic.parameters()))]

    def loss(self, batch):
        self.seen = batch.images.flatten(1)
        return super().loss(batch)


def test_a_critic_is_trained_beside_and_reported_apart():
    model = Adversary()
    before = model.judge[0].weight.detach().clone()
    report = train(model)
    assert not torch.equal(model.judge[0].weight, before)
    last = report.history[-1]
    assert last.terms.keys() == {"mse", "l1", "critic/far"}
    assert last.loss == pytest.approx(last.terms["mse"] + last.terms["l1"])


def test_the_journal_leaves_a_table_a_picture_and_tensorboard_files(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Scores(Rebuilds):
        def forward(self, images):
            from adctl.detectors.base import Prediction

            rebuilt = super().forward(images)
            return Prediction(rebuilt.flatten(1).mean(1), (images - rebuilt).square().mean(1))

        def phases(self):
            return [Optimize(self.loss, self.parameters(), "test", preview=self.layers)]

        def loss(self, batch):
            return {"mse": (self.layers(batch.images) - batch.clean).square().mean()}

    loggers = Loggers(["tensorboard"])
    loggers.start(tmp_path, {"arch": "test"})
    journal = LoggedTrainingLog(tmp_path, loggers)
    report = train(Scores(), validation=Pixels(4, seed=1), around=FitContext(training_log=journal))
    assert (tmp_path / "history.csv").read_text(encoding="utf-8") == to_csv(report.history)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    loggers.finish(succeeded=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/training", "loss/validation", "terms/mse", "learning_rate", "memory/GiB"} <= set(tags["scalars"])
    assert tags["images"] == ["validation"]
    assert [event.value for event in events.Scalars("loss/training")] == pytest.approx(
        [epoch.loss for epoch in report.history]
    )


@pytest.mark.parametrize("text", ["", "a", "0", "1,1", "-1"])
def test_devices_that_mean_nothing_are_refused(text):
    with pytest.raises(UsageError, match="of --devices is not valid"):
        distributed.parse_devices(text, "cpu")


def test_devices_are_how_many_or_which():
    assert distributed.parse_devices("2", "cpu").numbers == (0, 1)
    assert distributed.parse_devices("0,3", "cpu").numbers == (0, 3)
    with pytest.raises(UsageError, match="no CUDA GPU 9"):
        distributed.parse_devices("0,9", "cuda")


def test_a_small_data_set_gets_more_epochs_and_as_much_more_patience(caplog):
    caplog.set_level("INFO")
    report = train(Rebuilds(), Pixels(8), epochs=2, min_steps=9, batch_size=4, patience=50)
    assert len(report.history) == 5
    assert "5 epochs" in caplog.text
    waits = train(Rebuilds(), Pixels(8), epochs=2, min_steps=20, batch_size=4, patience=1, learning_rate=1e-30)
    assert waits.stopped_early
    assert len(waits.history) == waits.best_epoch + 5


@pytest.mark.parametrize(
    ("epochs", "first", "last"),
    [(1, 1, 1), (2, 1, 0.3), (20, 1, 0.1), (37, 0.401, 0.4), (200, 5000, 0.02), (12, 3, -1)],
)
def test_the_chart_of_the_loss_has_few_numbers_that_do_not_overlap(epochs, first, last):
    losses = np.linspace(first, last, epochs) if last <= 0 else np.geomspace(first, last, epochs)
    history = [Epoch(n, float(loss), {}, float(loss), 1e-3, 1.0) for n, loss in enumerate(losses, 1)]
    figure = loss_figure(history, "zipper")
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert axes.get_title() == "Loss by epoch · zipper"
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if low <= tick.get_loc() <= high]
        texts = [tick.label1 for tick in ticks if tick.label1.get_text()]
        assert 1 <= len(texts) <= 11
        places = [label.get_window_extent() for label in texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(places, 2))
    shown = [label.get_text().replace("\N{MINUS SIGN}", "-") for label in axes.get_xticklabels()]
    assert all(float(text).is_integer() for text in shown)


def test_progress_counts_steps_and_tells_the_loss():
    shown = []

    class Kept(Reporter):
        @contextmanager
        def stage(self, title, total=None, *, in_bytes=False):
            yield lambda done, note: shown.append((done, total, note))

    report = train(Rebuilds(), epochs=2, batch_size=6, around=FitContext(Kept()))
    assert [done for done, *_ in shown] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in shown} == {6}
    assert shown[-1][2] == f"epoch 2 of 2, loss {report.history[-1].loss:.4g}"

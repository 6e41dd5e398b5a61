"""Stored features: equal in memory and on disk, memory as estimated, and no files left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, settings
from hypothesis import given
from hypothesis import strategies as st

from adctl.detectors.components import feature_buffer
from adctl.detectors.components.feature_buffer import FeatureBuffer
from adctl.detectors.registry import detector_class
from adctl.errors import OutputError


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def on_disk(patch):
    patch.setattr(feature_buffer, "SHARE", 0.0)


@given(
    batches=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    room=st.integers(0, 4000),
    chunk=st.sampled_from([1, 100, 500, 2**20]),
)
def test_features_come_back_as_they_went_in_wherever_they_lie(batches, room, chunk):
    features = torch.randn(sum(batches), 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_buffer, "room", lambda: room)
        patch.setattr(feature_buffer, "CHUNK", chunk)
        store = FeatureBuffer()
        for batch in features.split(batches):
            store.add(batch)
        for _ in range(2):
            assert torch.equal(torch.cat(list(store)), features.half())
        halves = (piece.float().flatten(1) for piece in store.drain())
        rows = store.rows(halves, len(features), 12)
        assert torch.equal(rows, features.half().float().flatten(1))
        assert list(store) == []
        assert (store.on_disk > 0) == (4 * rows.numel() > room)


def fitted(images, **options):
    cls = detector_class("patchcore")
    torch.manual_seed(0)
    detector = cls(cls.Config(image_size=64, coreset_ratio=0.2, **options)).eval()
    (phase,) = detector.phases()
    told = []
    with torch.inference_mode():
        for batch in images.split(4):
            phase.absorb(phase.embed(batch))
        phase.finish(lambda done, total: told.append((done, total)))
    return detector, told


def test_a_model_fitted_by_way_of_the_disk_is_the_same_bit_for_bit(temporary, monkeypatch):
    images = torch.rand(18, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    one, told = fitted(images)
    assert not list(temporary.glob("adctl*"))
    on_disk(monkeypatch)
    other, _ = fitted(images)
    for name in one.fitted:
        assert torch.equal(one.get_buffer(name), other.get_buffer(name)), name
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (len(one.bank), len(one.bank))
    assert not list(temporary.glob("adctl*"))


def test_nothing_is_left_after_an_error(temporary, monkeypatch):
    on_disk(monkeypatch)
    cls = detector_class("patchcore")
    detector = cls(cls.Config(image_size=64, coreset_ratio=0.1)).eval()
    (phase,) = detector.phases()

    def interrupted(done, total):
        raise KeyboardInterrupt

    with torch.inference_mode():
        phase.absorb(phase.embed(torch.rand(4, 3, 64, 64)))
        with pytest.raises(KeyboardInterrupt):
            phase.finish(interrupted)
    del detector, phase
    gc.collect()
    assert not list(temporary.glob("adctl*"))


def test_a_full_disk_is_an_error_with_a_remedy(monkeypatch):
    try:
        full = Path("/dev/full").open("rb+", buffering=0)  # noqa: SIM115 - closed by the store
    except OSError:
        pytest.skip("no /dev/full")
    on_disk(monkeypatch)
    monkeypatch.setattr(feature_buffer.tempfile, "TemporaryFile", lambda **_: full)
    store = FeatureBuffer()
    store.add(torch.rand(2, 3, 4, 4))
    with pytest.raises(OutputError, match="No space left") as caught:
        list(store)
    assert "TMPDIR" in caught.value.remedy


def test_the_forecast_tells_when_the_disk_is_needed(zippers, monkeypatch):
    from adctl.training.plan import plan_training
    from adctl.training.resource_estimate import estimate_resources

    loaded = settings(arch="patchcore", data=zippers).settings
    assert estimate_resources(plan_training(loaded), loaded).disk == 0
    on_disk(monkeypatch)
    assert estimate_resources(plan_training(loaded), loaded).disk > 0


PROGRAM = """
import sys, threading, time, torch
from adctl.detectors.components import feature_buffer
from adctl.detectors.patchcore import PatchCore

feature_buffer.SHARE = float(sys.argv[1])
IMAGES = 320

def private():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

detector = PatchCore(PatchCore.Config(coreset_ratio=0.001)).eval()
(phase,) = detector.phases()
features = torch.rand(8, detector.channels, *detector.grid)
with torch.inference_mode():
    phase.embed(torch.rand(8, 3, 256, 256))
    start, peaks, over = private(), [], threading.Event()
    thread = threading.Thread(target=lambda: [peaks.append(private()) for _ in iter(lambda: over.wait(0.005), True)])
    thread.start()
    for number in range(IMAGES // 8):
        phase.absorb(features.roll(number, 1) * torch.rand(8, 1, 1, 1))
    phase.finish(lambda done, total: None)
    over.set()
    thread.join()
forecast = detector.estimate_cost(IMAGES)
print(max(peaks) - start, forecast.memory, forecast.disk)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_memory_stays_within_what_was_forecast(share):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(share)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    measured, memory, disk = map(int, done.stdout.split())
    assert (disk > 0) == (share == 0)
    assert measured < 1.1 * memory + 60 * 2**20  # libraries and scratch, whatever the number of images
    assert share == 0 or measured > 0.6 * memory

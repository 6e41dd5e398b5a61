"""The energy meter on folders as the kernel shows them."""

from __future__ import annotations

import os

import pytest

from adctl.engine import energy
from adctl.engine.energy import EnergyMeter


@pytest.fixture
def powercap(tmp_path):
    """Two packages with a core and a memory zone, and a zone of the whole platform."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram",
             "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}  # fmt: skip
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000000000\n")
        (tmp_path / zone / "energy_uj").write_text("900000000\n")
    return tmp_path


def count(powercap, zone, microjoules):
    (powercap / zone / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_and_memory_are_added_and_no_part_twice(powercap):
    meter = EnergyMeter(powercap=powercap)
    for zone, more in (("0", 5), ("0:0", 4), ("0:1", 2), ("1", 10), ("2", 30)):
        count(powercap, f"intel-rapl:{zone}", 900_000_000 + more * 1_000_000)
    assert meter.stop() == 17


def test_a_counter_that_starts_again(powercap, monkeypatch):
    monkeypatch.setattr(energy, "_SAMPLE_SECONDS", 3600)
    meter = EnergyMeter(powercap=powercap)
    count(powercap, "intel-rapl:0", 20_000_000)
    meter.add()  # as the sampling thread does
    count(powercap, "intel-rapl:0", 990_000_000)
    meter.add()
    count(powercap, "intel-rapl:0", 10_000_000)
    assert meter.stop() == 120 + 970 + 20


def test_a_counter_that_cannot_be_read_any_more_keeps_what_was_read(powercap):
    meter = EnergyMeter(powercap=powercap)
    count(powercap, "intel-rapl:0", 905_000_000)
    meter.add()
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    count(powercap, "intel-rapl:1", "damaged")
    assert meter.stop() == 5


def test_a_machine_that_does_not_tell(tmp_path, powercap):
    assert EnergyMeter(powercap=tmp_path / "none").stop() is None
    if os.geteuid():  # root reads everything
        for path in powercap.glob("*/energy_uj"):
            path.chmod(0)
        assert EnergyMeter(powercap=powercap).stop() is None


def test_a_gpu_is_counted_by_its_identifier(tmp_path, monkeypatch):
    import sys
    import types

    import torch

    readings = iter((1000.0, 1000.0, 4500.0))

    class NVMLError(Exception):
        pass

    fake = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-abc": "handle"}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=lambda _: next(readings),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="abc"))
    assert EnergyMeter([torch.device("cuda", 0)], tmp_path).stop() == 3.5

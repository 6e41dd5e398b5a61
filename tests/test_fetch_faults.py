"""Faults of the server: each leads to the complete, verified dataset or to a clear error."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from faulty_server import FATAL, PASSING, web_sites

from adctl.errors import DataError, FetchError
from adctl.fetching.datasets import fetch_dataset
from adctl.fetching.download import Transfer
from adctl.fetching.download_segments import read_partial
from adctl.fetching.finding import list_datasets
from adctl.fetching.verifying import verify

CONTENT = {
    f"zipper/{place}": random.Random(place).randbytes(50_000)
    for place in ("train/good/000.png", "train/good/001.png", "test/good/000.png", "test/crack/000.png",
                  "ground_truth/crack/000_mask.png")
}  # fmt: skip
FAULTS = {name: (faults, None) for name, faults in PASSING.items()} | {
    name: ([], always) for name, (always, _) in FATAL.items()
}


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in CONTENT.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


ARCHIVE = archive()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("ADCTL_CATALOGUE", str(tmp_path / "catalogue.toml"))
    with web_sites() as start:
        site = start()
        site.body = ARCHIVE
        yield site


@pytest.fixture
def catalogue(tmp_path, site):
    """A data set of one category on the site."""

    def write(digest: str | None) -> None:
        urls = json.dumps([site.url.replace("file.bin", "zipper.tar.gz")])
        vouched = f'sha256 = "{digest}"' if digest else ""
        (tmp_path / "catalogue.toml").write_text(
            '[datasets.parts]\ntitle = "Parts"\nkind = "archive"\nlicence = "x"\ncommercial = true\n'
            f'categories = ["zipper"]\n[[datasets.parts.whole]]\nurls = {urls}\n{vouched}\n'
        )

    return write


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("digest", [hashlib.sha256(ARCHIVE).hexdigest(), None], ids=["digest", "no digest"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_never_makes_a_wrong_data_set(site, catalogue, tmp_path, name, digest, connections):
    catalogue(digest)
    faults, site.always = FAULTS[name]
    site.faults = list(faults)
    how = Transfer(timeout=0.3, backoff=0, connections=connections, smallest_piece=50_000)
    try:
        got = fetch_dataset("parts", transfer=how)
    except (FetchError, DataError) as error:
        failure = error
    else:
        failure = None
    if failure is not None:
        assert name in FATAL
        assert failure.remedy
        assert not any(entry.fetched for entry in list_datasets())
        assert not (tmp_path / "home" / "parts" / "zipper").exists()
        return
    assert name in PASSING or name == "stalls for ever"
    assert got.verified == bool(digest)
    assert got.sha256 == hashlib.sha256(ARCHIVE).hexdigest()
    for place, data in CONTENT.items():
        assert (got.root / place).read_bytes() == data
    assert [result.intact for result in verify("parts")] == [True]


def test_the_command_line_takes_its_patience_from_its_options(site, catalogue, adctl, tmp_path):
    catalogue(hashlib.sha256(ARCHIVE).hexdigest())
    site.faults = [PASSING["stall"][0], PASSING["503"][0]]
    options = {"ADCTL_BACKOFF": "0.01", "ADCTL_CATALOGUE": str(tmp_path / "catalogue.toml")}
    told = adctl.json("fetch", "parts", "--timeout", "0.5", **options)
    assert told["result"]["verified"]
    assert len(site.seen) == 3
    site.always = PASSING["503"][0]
    failed = adctl("fetch", "parts", "--force", "--attempts", "2", code=1, **options)
    assert "gave up after 2 attempts" in failed.stderr
    assert len(site.seen) == 5


@pytest.mark.parametrize("connections", ["1", "3"])
def test_a_killed_fetch_leaves_nothing_that_looks_whole_and_is_gone_on_with(site, catalogue, tmp_path, connections):
    catalogue(hashlib.sha256(ARCHIVE).hexdigest())
    site.always = PASSING["stall"][0]
    options = ["--connections", connections, "--timeout", "60"]
    environment = {**os.environ, "ADCTL_SMALLEST_PIECE": "50000", "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-m", "adctl", "fetch", "parts", *options], env=environment) as running:
        part = tmp_path / "home" / "parts" / ".fetching" / "zipper.tar.gz.part"
        url = site.url.replace("file.bin", "zipper.tar.gz")
        while read_partial(part, part.with_name(f"{part.name}.json"), url).have < 50_000:
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
    assert not any(entry.fetched for entry in list_datasets())
    seen = len(site.seen)
    site.always = None
    site.done.set()
    got = fetch_dataset("parts", transfer=Transfer(timeout=5))
    assert all((got.root / place).read_bytes() == data for place, data in CONTENT.items())
    assert all(site.ranges[seen:])
    assert not (got.root / ".fetching").exists()

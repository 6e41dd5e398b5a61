"""The split depends only on the content of the images, and its parts do not overlap."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adctl.data.datasets.layouts import open_mvtec
from adctl.data.split import MIN_GOOD, Split, split_good, training_digest
from adctl.errors import DataError, ImageError
from adctl.records import GOOD, Sample

DATA = Path(os.environ.get("ADCTL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
PARTS = ("train", "validation", "calibration")


def make(folder, contents, prefix=""):
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for index, content in enumerate(contents):
        path = folder / f"{prefix}{index:03}.png"
        path.write_bytes(str(content).encode())
        samples.append(Sample(path, f"train/good/{path.name}", GOOD))
    return samples


@pytest.fixture
def samples(tmp_path):
    return make(tmp_path / "images", range(40))


def contents(part):
    return sorted(sample.path.read_bytes() for sample in part)


def test_shares_are_counts_and_parts_are_disjoint(samples):
    split = split_good(samples, calibration=0.2, validation=0.1, seed=0)
    assert [len(getattr(split, name)) for name in PARTS] == [28, 4, 8]
    everything = split.train + split.validation + split.calibration
    assert sorted(everything, key=lambda s: s.key) == samples
    for name in PARTS:
        part = getattr(split, name)
        assert list(part) == sorted(part, key=lambda s: s.key)


def test_neither_names_nor_order_nor_place_matter(samples, tmp_path):
    shuffled = list(range(40))
    random.Random(1).shuffle(shuffled)
    others = make(tmp_path / "elsewhere", shuffled, prefix="x")
    random.Random(2).shuffle(others)
    one = split_good(samples, calibration=0.2, validation=0.1, seed=3)
    two = split_good(others, calibration=0.2, validation=0.1, seed=3)
    for name in PARTS:
        assert contents(getattr(one, name)) == contents(getattr(two, name))
    assert training_digest(one.train, one.digests) == training_digest(two.train, two.digests)


def test_known_split_stays_the_same_for_ever(samples):
    split = split_good(samples, calibration=0.1, validation=0.05, seed=0)
    assert contents(split.calibration) == [b"17", b"18", b"29", b"8"]
    assert contents(split.validation) == [b"39", b"9"]


def test_seed_chooses_another_split(samples):
    parts = {tuple(s.key for s in split_good(samples, calibration=0.2, validation=0.1, seed=n).train) for n in range(5)}
    assert len(parts) == 5


def test_calibration_does_not_depend_on_the_validation_share(samples):
    one = split_good(samples, calibration=0.2, validation=0, seed=0)
    two = split_good(samples, calibration=0.2, validation=0.3, seed=0)
    assert one.calibration == two.calibration
    assert one.validation == ()


def test_copies_go_together(tmp_path):
    samples = make(tmp_path, [n // 3 for n in range(60)])
    split = split_good(samples, calibration=0.2, validation=0.1, seed=0)
    assert [len(getattr(split, name)) for name in PARTS] == [42, 6, 12]
    seen = [set(contents(getattr(split, name))) for name in PARTS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 20


@settings(max_examples=40, deadline=None)
@given(calibration=st.floats(0.001, 0.4), validation=st.floats(0, 0.4), seed=st.integers(0, 2**63))
def test_counts_are_rounded_shares_of_at_least_one(tmp_path_factory, calibration, validation, seed):
    folder = tmp_path_factory.getbasetemp() / "counts"
    samples = make(folder, range(MIN_GOOD))
    split = split_good(samples, calibration=calibration, validation=validation, seed=seed)
    for share, part in ((calibration, split.calibration), (validation, split.validation)):
        assert abs(len(part) - share * MIN_GOOD) <= 0.5 or len(part) == 1
        assert bool(part) == (share > 0)
    assert split.train


@pytest.mark.parametrize(("given_", "reason"), [(range(7), "7 different"), ([0] * 20, "1 different (20 with")])
def test_too_few_different_images(tmp_path, given_, reason):
    with pytest.raises(DataError) as error:
        split_good(make(tmp_path, given_), calibration=0.2, validation=0.1, seed=0)
    assert reason in error.value.message
    assert "at least 8" in error.value.remedy


def test_shares_that_leave_nothing_to_fit_on(samples):
    with pytest.raises(DataError, match="No good image is left") as error:
        split_good(samples, calibration=0.6, validation=0.4, seed=0)
    assert "--calibration-share" in error.value.remedy


def test_vanished_image(samples):
    samples[3].path.unlink()
    with pytest.raises(ImageError, match=r"003\.png"):
        split_good(samples, calibration=0.2, validation=0.1, seed=0)


def test_json_round_trip(samples, tmp_path):
    split = split_good(samples, calibration=0.2, validation=0.1, seed=7)
    value = json.loads(json.dumps(split.to_dict()))
    (tmp_path / "split.json").write_text(json.dumps(value))
    assert Split.read(tmp_path / "split.json", reversed(samples), "") == split
    assert (value["seed"], value["calibration_share"], value["validation_share"]) == (7, 0.2, 0.1)
    assert set(value["digests"]) == {sample.key for sample in samples}


def test_reading_a_split_names_what_is_gone(samples, tmp_path):
    value = split_good(samples, calibration=0.2, validation=0.1, seed=7).to_dict()
    (tmp_path / "split.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"missing from the dataset: 1, such as train/good/039\.png"):
        Split.read(tmp_path / "split.json", samples[:-1], "")


def test_training_digest_tells_sets_apart(samples):
    digests = split_good(samples, calibration=0.2, validation=0.1, seed=0).digests
    whole = training_digest(samples, digests)
    assert len(whole) == 64
    assert whole == training_digest(samples[::-1], digests)
    assert whole != training_digest(samples[1:], digests)
    assert whole != training_digest([*samples, samples[0]], digests)


def test_real_data():
    if not (DATA / "magnetic_tile").is_dir():
        pytest.skip(f"magnetic_tile is not in {DATA}; set ADCTL_TEST_DATA")
    split = split_good(open_mvtec(DATA / "magnetic_tile").train, calibration=0.2, validation=0.1, seed=0)
    assert [len(getattr(split, name)) for name in PARTS] == [280, 40, 80]

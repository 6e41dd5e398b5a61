"""Groups of images: where they come from, and that no split and no fold divides them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import settings
from PIL import Image

from adctl.data.checks.check import check
from adctl.data.datasets.grouping import with_groups
from adctl.data.datasets.layouts import open_data, open_folders
from adctl.data.folds import assign_folds, split_fold
from adctl.data.groups import assign_groups, group_counts, suggest_groups, try_groups, units_of
from adctl.data.split import file_digest, split_good
from adctl.errors import DataError, UsageError
from adctl.records import GOOD, Sample


def named(*keys):
    return [Sample(Path(key), f"train/good/{key}", GOOD) for key in keys]


def on_disk(folder, sizes):
    """Samples with different contents: a file for each image of each group."""
    samples = []
    for group, size in sizes.items():
        for index in range(size):
            path = folder / f"{group}_{index:02}.png"
            path.write_bytes(f"{group} {index}".encode())
            samples.append(Sample(path, f"good/{path.name}", GOOD, group=group))
    return samples


def write_image(path, value, taken=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 255, (16, 16, 3), np.uint8)
    exif = Image.Exif()
    if taken:
        exif[0x0132] = taken
    Image.fromarray(noise).save(path, exif=exif)


@pytest.mark.parametrize(
    ("how", "keys", "groups"),
    [
        ("lot{group}_", ["lot7_1.png", "lot12_1.png"], ["7", "12"]),
        ("{group}_", ["kos01_Part0.jpg", "kos02_Part0.jpg"], ["kos01", "kos02"]),
        ("cam*-{group}.", ["cam1-a.png", "cam2-b.png"], ["a", "b"]),
        ("part_{group}", ["part_03.png", "x_part_04_front.png"], ["03", "04"]),
        ("{group}/top/", ["a/top/1.png", "b/top/1.png"], ["a", "b"]),
        ("folder", ["a/1.png", "b/c/1.png"], ["a", "b"]),
        ("folder:2", ["a/x/1.png", "b/x/1.png"], ["a/x", "b/x"]),
        ("v1.{group}_", ["v1.a_0.png", "v1.b_0.png"], ["a", "b"]),
    ],
)
def test_names_and_folders_give_groups(how, keys, groups):
    assert [sample.group for sample in assign_groups(named(*keys), how)] == groups


@pytest.mark.parametrize(
    ("how", "keys", "message"),
    [
        ("lot{group}_", ["a_1.png", "b_2.png"], "matches none of the 2 good images, such as train/good/a_1.png"),
        ("{group}_", ["a_1.png", "b2.png"], "does not match 1 of the 2 good images, such as train/good/b2.png"),
        ("{group}_", ["a_1.png", "a_2.png"], "all 2 good images are of one group, a"),
        ("folder", ["1.png", "2.png"], "matches none of the 2"),
        ("lot", ["1.png"], "it has no {group}"),
        ("{group}{group}", ["1.png"], "or several"),
        ("folder:0", ["1.png"], "not valid"),
    ],
)
def test_a_grouping_that_does_not_fit_is_refused(how, keys, message):
    with pytest.raises(UsageError) as error:
        assign_groups(named(*keys), how)
    assert message in error.value.message
    assert error.value.remedy


def test_a_pattern_that_matches_nothing_is_told_of_one_that_would():
    with pytest.raises(UsageError) as error:
        assign_groups(named("a_1.png", "a_2.png", "b_1.png", "b_2.png"), "lot{group}")
    assert "--group '{group}_'" in error.value.remedy


@pytest.mark.parametrize(
    ("keys", "group"),
    [
        ([f"lot{lot}_{n}.png" for lot in range(3) for n in range(4)], "{group}_"),
        ([f"part-{lot}-top-{n}.png" for lot in range(3) for n in range(4)], "part-{group}-"),
        ([f"{lot * 4 + n}_lot{lot}_x.png" for lot in range(3) for n in range(4)], "*_{group}_"),
        ([f"{lot}/{n}.png" for lot in range(3) for n in range(4)], "folder"),
        ([f"{n:03}.png" for n in range(12)], None),
        ([f"img_{n:03}.png" for n in range(12)], None),
        ([f"all/{n:03}.png" for n in range(12)], None),
        (["a.png"], None),
    ],
)
def test_a_likely_grouping_is_suggested_and_can_be_used(keys, group):
    found = suggest_groups(named(*keys))
    assert (found.group if found else None) == group
    if found is not None:
        assert group_counts(assign_groups(named(*keys), found.group)) == found.counts


def test_days_come_from_exif_else_from_the_file(tmp_path):
    for number in range(8):
        write_image(tmp_path / f"{number}.png", number, f"2026:11:{20 + number % 2} 10:00:00")
    samples = [Sample(path, path.name, GOOD) for path in sorted(tmp_path.iterdir())]
    assert set(group_counts(assign_groups(samples, "day"))) == {"2026-11-20", "2026-11-21"}
    assert suggest_groups(samples).group == "day"
    write_image(tmp_path / "none.png", 9)
    assert len(try_groups([Sample(tmp_path / "none.png", "none.png")], "day")[0].group) == len("2026-11-20")


def test_a_suggestion_is_never_used(tmp_path):
    for lot in "ab":
        for number in range(4):
            write_image(tmp_path / "good" / f"{lot}_{number}.png", ord(lot) * 10 + number)
    found = with_groups(open_folders(tmp_path / "good"), None)
    assert group_counts(found.train) == {}
    assert "--group '{group}_'" in found.notes[-1]
    assert group_counts(with_groups(open_folders(tmp_path / "good"), "{group}_").train) == {"a": 4, "b": 4}
    assert check(tmp_path / "good", group="{group}_")[0].groups == {"a": 4, "b": 4}


@pytest.mark.parametrize(("second", "expected"), [("b", {"a": 4, "b": 4}), ("a", {})])
def test_a_manifest_names_groups(tmp_path, second, expected):
    lines = ["path,label,group"]
    for lot, group in (("x", "a"), ("y", second)):
        for number in range(4):
            write_image(tmp_path / f"{lot}{number}.png", ord(lot) * 10 + number)
            lines.append(f"{lot}{number}.png,good,{group}")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    found = with_groups(open_data(tmp_path / "images.csv"), None)
    assert group_counts(found.train) == expected
    assert any("one group, a" in note for note in found.notes) == (not expected)


def test_no_split_and_no_fold_divides_a_group(tmp_path):
    sizes = {f"g{number}": size for number, size in enumerate([1, 2, 3, 4, 5, 6, 7, 8])}
    samples = on_disk(tmp_path, sizes)
    random.Random(0).shuffle(samples)
    digests = {sample.key: file_digest(sample) for sample in samples}
    for seed in range(5):
        split = split_good(samples, calibration=0.25, validation=0.2, seed=seed)
        parts = [{sample.group for sample in part} for part in (split.train, split.validation, split.calibration)]
        assert all(parts)
        assert sum(map(len, parts)) == len(sizes)
        assert 4 <= len(split.calibration) <= 14
    folds = assign_folds(samples, digests, 4)
    assert sum(len({sample.group for sample in fold}) for fold in folds) == len(sizes)
    assert {len(fold) for fold in folds} == {9}
    held_out = split_fold(samples, [], folds=4, fold=2, validation=0.2, seed=0)
    assert not {s.group for s in held_out.calibration} & {s.group for s in (*held_out.train, *held_out.validation)}


def test_copies_join_groups(tmp_path):
    samples = on_disk(tmp_path, {"a": 3, "b": 3, "c": 3})
    digests = {sample.key: file_digest(sample) for sample in samples}
    digests[samples[0].key] = digests[samples[8].key]
    assert sorted(map(len, units_of(samples, digests))) == [3, 6]
    single = [Sample(sample.path, sample.key, GOOD) for sample in samples]
    assert sorted(map(len, units_of(single, digests))) == [1] * 7 + [2]


def test_groups_of_one_image_are_images(tmp_path):
    samples = on_disk(tmp_path, {f"g{number}": 1 for number in range(20)})
    single = [Sample(sample.path, sample.key, GOOD) for sample in samples]
    one, two = (split_good(images, calibration=0.2, validation=0.1, seed=1) for images in (samples, single))
    assert [s.key for s in one.calibration] == [s.key for s in two.calibration]


def test_too_few_groups(tmp_path):
    samples = on_disk(tmp_path, {"a": 10, "b": 10})
    with pytest.raises(DataError, match="only 2") as error:
        split_good(samples, calibration=0.2, validation=0.1, seed=0)
    assert "--group" in error.value.remedy
    with pytest.raises(DataError, match="2 groups are too few for 5 folds"):
        assign_folds(samples, {sample.key: file_digest(sample) for sample in samples}, 5)


def test_a_run_keeps_its_groups(tmp_path, zippers):
    from adctl.datasets import dataset_of_run
    from adctl.training.single_run import train_once

    good = tmp_path / "good"
    good.mkdir()
    for number, image in enumerate(sorted((zippers / "train" / "good").iterdir())):
        (good / f"lot{number % 4}_{number}.png").write_bytes(image.read_bytes())
    made = train_once(settings(arch="padim", good=good, group="lot{group}_", runs=tmp_path / "runs", name="line"))
    split = json.loads((made.run / "split.json").read_text())
    lots = [{Path(key).name[:4] for key in split[part]} for part in ("train", "calibration")]
    assert not lots[0] & lots[1]
    assert set(group_counts(dataset_of_run(made.run).train)) == set("0123")

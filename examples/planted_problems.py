"""Test of `adctl fetch check`: plant twelve problems in a copy of a dataset, one of each kind, and check the copy.

usage: python examples/planted_problems.py [FOLDER]      FOLDER: one category in MVTec AD layout, with masks;
                                                         default: newly generated zippers

Prints the planted problems that were found, and the findings in the original dataset. The exit code is 1 if a planted
problem was missed, or if there is a finding that was neither planted nor in the original.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from adctl.fetching.demo_dataset import generate

if TYPE_CHECKING:
    from collections.abc import Iterator

PLANTED = "planted_"
"""Prefix of the names of planted files."""


def plant(root: Path, spare: set[Path]) -> dict[str, Path]:
    """Plant one problem of each kind.

    Args:
        root: Copy of the dataset; it is changed.
        spare: Images to leave unchanged, because the original dataset has findings about them.

    Returns:
        The file that the finding must name, by kind.
    """
    train, test = root / "train" / "good", root / "test" / "good"
    good, tests = _unchanged(train, spare), _unchanged(test, spare)
    defects = (image for folder in _defects(root) for image in _unchanged(folder, spare))
    planted = {
        "corrupt": train / f"{PLANTED}corrupt.jpg",
        "empty-file": train / f"{PLANTED}empty.png",
        "duplicate": train / f"{PLANTED}copy.jpg",
        "near-duplicate": train / f"{PLANTED}saved_again.jpg",
        "leak": test / f"{PLANTED}leak.jpg",
        "near-leak": test / f"{PLANTED}leak_saved_again.jpg",
        "odd-exposure": train / f"{PLANTED}overexposed.png",
    }
    data = next(good).read_bytes()
    planted["corrupt"].write_bytes(data[: len(data) // 2])
    planted["empty-file"].touch()
    shutil.copy(next(good), planted["duplicate"])
    _save_again(next(good), planted["near-duplicate"])
    shutil.copy(next(good), planted["leak"])
    _save_again(next(good), planted["near-leak"])
    _overexpose(next(tests), planted["odd-exposure"])
    return planted | _plant_masks(root, defects)


def _plant_masks(root: Path, defects: Iterator[Path]) -> dict[str, Path]:
    image = next(defects)
    _mask_of(root, image).unlink()
    planted = {"missing-mask": image, "orphan-mask": _mask_of(root, image).with_name(f"{PLANTED}orphan_mask.png")}
    cv2.imwrite(str(planted["orphan-mask"]), np.full((64, 64), 255, np.uint8))
    changes = {
        "mask-size": lambda mask: mask[:-1, :-2],
        "empty-mask": lambda mask: mask * 0,
        "inverted-mask": lambda mask: 255 - mask,
    }
    for kind, change in changes.items():
        image = next(image for image in defects if _small(_mask_of(root, image)))
        path = planted[kind] = _mask_of(root, image)
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
    return planted


def _small(mask: Path) -> bool:
    """Return whether the defect is small enough for the inverted mask to be recognised as inverted."""
    pixels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    return pixels is not None and 0 < (pixels > 0).mean() < 1 / 4


def _unchanged(folder: Path, spare: set[Path]) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path not in spare and not path.name.startswith(PLANTED))


def _defects(root: Path) -> list[Path]:
    return [folder for folder in sorted((root / "test").iterdir()) if folder.name != "good"]


def _mask_of(root: Path, image: Path) -> Path:
    return root / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"


def _save_again(image: Path, copy: Path) -> None:
    """Save a copy that is a little smaller, brighter and more strongly compressed, as happens when images are sent."""
    pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    smaller = cv2.resize(pixels, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(copy), cv2.convertScaleAbs(smaller, alpha=1.05, beta=4), [cv2.IMWRITE_JPEG_QUALITY, 80])


def _overexpose(image: Path, copy: Path) -> None:
    pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(copy), cv2.convertScaleAbs(pixels, alpha=0.15, beta=225))


def check(folder: Path) -> list[dict[str, Any]]:
    """Return the findings of `adctl fetch check FOLDER`."""
    command = [sys.executable, "-m", "adctl", "fetch", "check", str(folder), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    findings: list[dict[str, Any]] = json.loads(done.stdout)["result"][0]["findings"]
    return findings


def cases(findings: list[dict[str, Any]], root: Path) -> set[tuple[str, frozenset[str]]]:
    """Return the kind of each case and its files, relative to the dataset."""
    return {
        (finding["kind"], frozenset(str(Path(path).relative_to(root)) for path in case["paths"]))
        for finding in findings
        for case in finding["cases"]
    }


def main() -> int:
    """Plant, check and compare."""
    if len(sys.argv) > 1:
        return compare(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder).resolve())
        return compare(Path(folder).resolve() / "zipper")


def compare(source: Path) -> int:
    """Print the findings before and after planting, and return the exit code."""
    before = cases(check(source), source)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / source.name
        shutil.copytree(source, root, copy_function=shutil.copyfile)
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        planted = plant(root, {root / name for _, names in before for name in names})
        after = cases(check(root), root)
        missed = 0
        for kind, path in planted.items():
            name = str(path.relative_to(root))
            found = any(kind == each and name in names for each, names in after)
            missed += not found
            print(f"{'found ' if found else 'MISSED'}  {kind:<16}{name}")
        names = {str(path.relative_to(root)) for path in planted.values()}
        false = [case for case in after - before if not case[1] & names]
    print(f"\nplanted {len(planted)}, missed {missed}, other new findings: {len(false)}")
    for kind, paths in false:
        print(f"  {kind}: {', '.join(sorted(paths))}")
    print(f"findings in the original dataset: {len(before)}")
    for kind in sorted({kind for kind, _ in before}):
        print(f"  {kind}: {sum(each == kind for each, _ in before)}")
    return 1 if missed or false else 0


if __name__ == "__main__":
    sys.exit(main())

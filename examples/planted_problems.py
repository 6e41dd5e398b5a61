"""Plant twelve problems in a copy of a data set, one of each kind, and see whether `adctl fetch check` finds them.

usage: python examples/planted_problems.py [FOLDER]      FOLDER: one category in MVTec AD layout, with masks;
                                                         freshly drawn zippers when left out

Prints what was planted and found, and what was found in the untouched data set; exits with 1 when a planted problem
is missed, or when something is found that is neither planted nor in the untouched data set.
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
"""Start of the names of all planted files."""


def plant(root: Path, spare: set[Path]) -> dict[str, Path]:
    """Plant one problem of each kind.

    Args:
        root: The copy, which is changed.
        spare: Images to leave alone, because something is the matter with them already.

    Returns:
        The file that a finding of each kind must name.
    """
    good = _untouched(root / "train" / "good", spare)
    tests = _untouched(root / "test" / "good", spare)
    defects = (image for folder in _defects(root) for image in _untouched(folder, spare))
    here, there = root / "train" / "good", root / "test" / "good"
    planted = {
        "corrupt": here / f"{PLANTED}corrupt.jpg",
        "empty-file": here / f"{PLANTED}nothing.png",
        "duplicate": here / f"{PLANTED}copy.jpg",
        "near-duplicate": here / f"{PLANTED}saved_again.jpg",
        "leak": there / f"{PLANTED}leak.jpg",
        "near-leak": there / f"{PLANTED}leak_saved_again.jpg",
        "odd-exposure": here / f"{PLANTED}overexposed.png",
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
    planted = {"missing-mask": image, "orphan-mask": _mask_of(root, image).with_name(f"{PLANTED}nobody_mask.png")}
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
    """Whether the inverse of a mask is seen to be one."""
    pixels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    return pixels is not None and 0 < (pixels > 0).mean() < 1 / 4


def _untouched(folder: Path, spare: set[Path]) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path not in spare and not path.name.startswith(PLANTED))


def _defects(root: Path) -> list[Path]:
    return [folder for folder in sorted((root / "test").iterdir()) if folder.name != "good"]


def _mask_of(root: Path, image: Path) -> Path:
    return root / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"


def _save_again(image: Path, copy: Path) -> None:
    """A little smaller, a little brighter, compressed more strongly: what happens to a picture that is passed on."""
    pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    smaller = cv2.resize(pixels, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(copy), cv2.convertScaleAbs(smaller, alpha=1.05, beta=4), [cv2.IMWRITE_JPEG_QUALITY, 80])


def _overexpose(image: Path, copy: Path) -> None:
    pixels = cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(copy), cv2.convertScaleAbs(pixels, alpha=0.15, beta=225))


def check(folder: Path) -> list[dict[str, Any]]:
    """The findings of `adctl fetch check FOLDER`."""
    command = [sys.executable, "-m", "adctl", "fetch", "check", str(folder), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    findings: list[dict[str, Any]] = json.loads(done.stdout)["result"][0]["findings"]
    return findings


def cases(findings: list[dict[str, Any]], root: Path) -> set[tuple[str, frozenset[str]]]:
    """Kind and files of each case, the files relative to the data set."""
    return {
        (found["kind"], frozenset(str(Path(path).relative_to(root)) for path in case["paths"]))
        for found in findings
        for case in found["cases"]
    }


def main() -> int:
    """Plant, check and compare."""
    if len(sys.argv) > 1:
        return compare(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder).resolve())
        return compare(Path(folder).resolve() / "zipper")


def compare(source: Path) -> int:
    """What is found in a category before and after planting."""
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
    print(
        f"\nplanted {len(planted)}, missed {missed}, found beside them and not in the untouched data set: {len(false)}"
    )
    for kind, paths in false:
        print(f"  {kind}: {', '.join(sorted(paths))}")
    print(f"in the untouched data set: {len(before)}")
    for kind in sorted({kind for kind, _ in before}):
        print(f"  {kind}: {sum(each == kind for each, _ in before)}")
    return 1 if missed or false else 0


if __name__ == "__main__":
    sys.exit(main())

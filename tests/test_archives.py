"""Unpacking untrusted archives: completely and inside the target folder, or refused with the reason."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adctl.errors import FetchError, OutputError
from adctl.fetching import archives as module
from adctl.fetching.archives import extract

CONTENT = {"a/one.png": b"1" * 700, "a/b/two.png": b"2" * 5000, "three.txt": b"3", "a/empty": b""}
ENDINGS = ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"]


def pack(path: Path, content: dict[str, bytes]) -> Path:
    """An archive of the format its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path
    compression = path.name.rpartition(".tar")[2].removeprefix(".")
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, data in content.items():
            archive.addfile(tar_entry(name, len(data)), io.BytesIO(data))
    return path


def tar_entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname, entry.mode = size, kind, link, 0o4000
    return entry


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def into(tmp_path):
    return tmp_path / "out" / "here"


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_is_unpacked_whatever_its_name(tmp_path, into, ending):
    archive = pack(tmp_path / f"x.{ending}", CONTENT).rename(tmp_path / "download")
    told = []
    written = extract(archive, into, progress=lambda done, total: told.append((done, total)))
    assert tree(into) == CONTENT
    assert written == sum(map(len, CONTENT.values()))
    assert told[-1] == (archive.stat().st_size,) * 2
    assert told == sorted(told)
    assert list(into.parent.iterdir()) == [into]


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_what_is_wanted_is_written(tmp_path, into, ending):
    archive = pack(tmp_path / f"x.{ending}", CONTENT)
    extract(archive, into, wanted=lambda path: PurePosixPath("a") in path.parents)
    assert set(tree(into)) == set(CONTENT) - {"three.txt"}


def test_permissions_are_not_taken_over(tmp_path, into):
    extract(pack(tmp_path / "x.tar", CONTENT), into)
    mode = (into / "three.txt").stat().st_mode
    assert mode & stat.S_IRUSR
    assert not mode & stat.S_ISUID


LEADING_OUT = ["../evil", "a/../../evil", "/evil", "//evil", "C:evil", "C:\\evil", "..\\evil", "a/b/../../../evil"]


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_that_lead_out_are_refused(tmp_path, into, ending, name):
    archive = pack(tmp_path / f"x.{ending}", {"good": b"1", name: b"2"})
    with pytest.raises(FetchError, match="evil") as error:
        extract(archive, into)
    assert error.value.remedy
    assert not into.exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", archive.name]


@given(names=st.lists(st.text(alphabet="./\\ab:é", min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("ending", ["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_name_whatever_reaches_outside(tmp_path, ending, names):
    for path in tmp_path.iterdir():
        subprocess.run(["rm", "-rf", path], check=True)
    archive = pack(tmp_path / f"x.{ending}", dict.fromkeys(names, b"data"))
    box = tmp_path / "box"
    try:
        extract(archive, box / "here")
    except (FetchError, OutputError):
        assert not list(box.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "box"}
    assert {path.name for path in box.iterdir()} <= {"here"}


ODD = {
    "symbolic link": tar_entry("odd", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "harmless link": tar_entry("odd", kind=tarfile.SYMTYPE, link="good"),
    "hard link": tar_entry("odd", kind=tarfile.LNKTYPE, link="good"),
    "device": tar_entry("odd", kind=tarfile.CHRTYPE),
    "disk": tar_entry("odd", kind=tarfile.BLKTYPE),
    "pipe": tar_entry("odd", kind=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("wanted", [None, lambda path: path.name == "good"], ids=["all", "some"])
@pytest.mark.parametrize("name", ODD)
def test_links_and_devices_in_tar_are_refused(tmp_path, into, name, wanted):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tar_entry("good", 1), io.BytesIO(b"1"))
        tar.addfile(ODD[name])
        tar.addfile(tar_entry("odd", 1), io.BytesIO(b"2"))
    with pytest.raises(FetchError, match=r"x.tar contains 'odd' as a (link|device)"):
        extract(archive, into, wanted=wanted)
    assert not into.exists()


@pytest.mark.parametrize(("mode", "says"), [(stat.S_IFLNK, "link"), (stat.S_IFIFO, "device")])
def test_links_and_devices_in_zip_are_refused(tmp_path, into, mode, says):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        odd = zipfile.ZipInfo("odd")
        odd.external_attr = (mode | 0o777) << 16
        packed.writestr(odd, "/etc/passwd")
    with pytest.raises(FetchError, match=f"'odd' as a {says}"):
        extract(archive, into)
    assert not into.exists()


@pytest.mark.parametrize("name", [b"\0ood", b"go\0d"])
def test_names_that_hide_their_end_are_refused(tmp_path, into, name):
    archive = pack(tmp_path / "x.zip", {"good": b"1"})
    archive.write_bytes(archive.read_bytes().replace(b"good", name))
    with pytest.raises(FetchError, match="null character"):
        extract(archive, into)


def test_encrypted_entries_are_refused(tmp_path, into):
    archive = pack(tmp_path / "x.zip", {"secret": b"1"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    with pytest.raises(FetchError, match="'secret' encrypted"):
        extract(archive, into)


@pytest.mark.parametrize("ending", ["tar", "zip"])
@pytest.mark.parametrize("second", ["a", "a/b", "./a"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_entry_does_not_replace_another(tmp_path, into, ending, second):
    archive = tmp_path / f"x.{ending}"
    if ending == "tar":
        with tarfile.open(archive, "w") as tar:
            for name in ("a", second):
                tar.addfile(tar_entry(name, 1), io.BytesIO(b"1"))
    else:
        with zipfile.ZipFile(archive, "w") as packed:
            for name in ("a", second):
                packed.writestr(name, b"1")
    with pytest.raises(FetchError, match=r"twice|as a file and as a folder"):
        extract(archive, into)
    assert not into.exists()


@pytest.mark.parametrize("wanted", [None, lambda path: not path.parts], ids=["all", "none"])
@pytest.mark.parametrize("ending", ["tar.gz", "tar.xz", "tar.bz2"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, into, ending, wanted, monkeypatch):
    monkeypatch.setattr(module, "_ALWAYS_ALLOWED", 100_000)
    archive = pack(tmp_path / f"x.{ending}", {"zeros": bytes(4_000_000)})
    with pytest.raises(FetchError, match="bomb"):
        extract(archive, into, wanted=wanted)
    assert not list(into.parent.iterdir())


def test_a_zip_bomb_is_refused(tmp_path, into, monkeypatch):
    monkeypatch.setattr(module, "_ALWAYS_ALLOWED", 100_000)
    archive = pack(tmp_path / "x.zip", {f"zeros{number}": bytes(1_000_000) for number in range(4)})
    with pytest.raises(FetchError, match="bomb"):
        extract(archive, into)
    assert not list(into.parent.iterdir())


def test_endless_entries_are_refused(tmp_path, into, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    with pytest.raises(FetchError, match="more than 3 entries"):
        extract(pack(tmp_path / "x.tar", CONTENT), into)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_is_foreseen(tmp_path, into, ending, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=3000))
    with pytest.raises(OutputError, match=r"too small .* 3.0 kB are free"):
        extract(pack(tmp_path / f"x.{ending}", CONTENT), into)
    assert not list(into.parent.iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_archive_cut_short_anywhere_is_refused(tmp_path, ending):
    whole = pack(tmp_path / f"x.{ending}", CONTENT).read_bytes()
    archive = tmp_path / "cut"
    # The zeros that end a plain tar may be shorter without harm.
    harmless = len(whole) - len(whole.rstrip(b"\0")) if ending == "tar" else 0
    for length in {*range(0, len(whole) - harmless, max(1, len(whole) // 40)), len(whole) - harmless - 1}:
        archive.write_bytes(whole[:length])
        with pytest.raises(FetchError, match="damaged"):
            extract(archive, tmp_path / "out" / "here")
        assert not list((tmp_path / "out").iterdir()), length


def test_a_tar_cut_between_two_entries_is_refused(tmp_path, into):
    whole = pack(tmp_path / "x.tar", CONTENT).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:1536])  # one header, its 700 bytes padded to 1024
    with pytest.raises(FetchError, match="damaged"):
        extract(tmp_path / "x.tar", into)


@pytest.mark.parametrize("ending", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_flipped_byte_is_noticed(tmp_path, into, ending):
    archive = pack(tmp_path / f"x.{ending}", {"noise": os.urandom(50_000)})
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(FetchError, match="damaged"):
        extract(archive, into)
    assert not list(into.parent.iterdir())


@pytest.mark.parametrize("data", [b"", b"<html>Please log in</html>", b"PK", b"\x1f\x8b", os.urandom(4096)])
def test_what_is_no_archive_is_refused(tmp_path, into, data):
    (tmp_path / "x.tar.xz").write_bytes(data)
    with pytest.raises(FetchError, match=r"Cannot unpack .*x.tar.xz"):
        extract(tmp_path / "x.tar.xz", into)
    with pytest.raises(FetchError, match="No such file"):
        extract(tmp_path / "missing.zip", into)


def test_what_is_there_is_left_alone(tmp_path, into):
    into.mkdir(parents=True)
    (into / "mine").write_bytes(b"1")
    with pytest.raises(OutputError, match="exists already"):
        extract(pack(tmp_path / "x.zip", CONTENT), into)
    assert tree(into) == {"mine": b"1"}


def test_interrupted_means_nothing_there(tmp_path, into):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(pack(tmp_path / "x.tar.gz", CONTENT), into, progress=interrupt)
    assert not list(into.parent.iterdir())


def test_killed_means_nothing_that_looks_whole(tmp_path, into):
    archive = pack(tmp_path / "x.tar.gz", CONTENT)
    program = (
        "import os, sys, pathlib; from adctl.fetching.archives import extract; "
        "extract(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), progress=lambda done, total: os._exit(9))"
    )
    root = Path(module.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program, archive, into], cwd=root, check=False).returncode == 9
    assert not into.exists()
    assert all(path.name.startswith(".") for path in into.parent.iterdir())
    extract(archive, into)
    assert tree(into) == CONTENT

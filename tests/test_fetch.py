"""Fetching datasets and weights from a server on loopback and from local files, and finding them later."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import tarfile
import threading
import types
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from adctl.data.datasets.layouts import open_mvtec
from adctl.errors import AdctlError, DataError, FetchError, OutputError, UsageError
from adctl.fetching import download as download_module
from adctl.fetching import store
from adctl.fetching.catalogue import DatasetKind, catalogue, find_entry
from adctl.fetching.datasets import FetchResult, fetch_dataset, licence_to_accept
from adctl.fetching.finding import find_dataset, list_datasets
from adctl.fetching.verifying import verify
from adctl.fetching.weights import fetch_weights
from adctl.paths import data_dir
from adctl.progress import Reporter

CATEGORIES = ("bottle", "cable", "zipper")


def files_of(category: str) -> dict[str, bytes]:
    data = category.encode()
    return {
        f"{category}/train/good/000.png": data + b" good",
        f"{category}/test/good/000.png": data + b" test",
        f"{category}/test/crack/000.png": data + b" crack",
        f"{category}/ground_truth/crack/000_mask.png": data + b" mask",
        f"{category}/readme.txt": b"cite us",
    }


def pack(content: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


PARTS = {category: pack(files_of(category)) for category in CATEGORIES}
WHOLE = pack({"license.txt": b"x", **{k: v for category in CATEGORIES for k, v in files_of(category).items()}})
SHA256 = hashlib.sha256(WHOLE).hexdigest()


class Site:
    """Files by path; Hugging Face's headers where asked for; counts requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.linked: dict[str, str] = {}
        self.seen: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        path = self.path.partition("?")[0]
        site.seen.append(f"{self.command} {path}")
        if path in site.linked:
            self.send_response(302)
            self.send_header("Location", f"{site.url.replace('127.0.0.1', 'localhost')}/lfs{path}")
            self.send_header("X-Linked-Etag", f'"{site.linked[path]}"')
            self.send_header("X-Linked-Size", str(len(site.files[f"/lfs{path}"])))
            self.end_headers()
            return
        body = site.files.get(path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.site = Site(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.site
        server.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where fetched things go."""
    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def mvtec(site, home, tmp_path, monkeypatch):
    """A small MVTec AD on the site, in place of the real one."""
    site.files = {f"/{name}.tar.xz": data for name, data in PARTS.items()} | {"/all.tar.xz": WHOLE}
    known = find_entry("mvtec")
    whole = {
        "urls": [f"{site.url.replace('//', '//user:word@')}/all.tar.xz?token=1"], "sha256": SHA256, "size": len(WHOLE),
    }  # fmt: skip
    parts = {name: {"urls": [f"{site.url}/{name}.tar.xz"]} for name in CATEGORIES}
    facts = {name: getattr(known, name) for name in ("title", "licence", "terms", "homepage", "citation")}
    write_catalogue(tmp_path / "catalogue.toml", "mvtec", {**facts, "commercial": False, "parts": parts}, [whole])
    monkeypatch.setenv("ADCTL_CATALOGUE", str(tmp_path / "catalogue.toml"))


def write_catalogue(path: Path, name: str, facts: dict, wholes: list[dict]) -> None:
    """A catalogue of one data set; JSON's strings, numbers and lists are TOML's too."""
    parts = facts.pop("parts", {})
    lines = [f"[datasets.{name}]", 'kind = "archive"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
    for whole in wholes:
        lines += [f"[[datasets.{name}.whole]]", *(f"{key} = {json.dumps(value)}" for key, value in whole.items())]
    for category, part in parts.items():
        lines += [f"[datasets.{name}.parts.{category}]", *(f"{k} = {json.dumps(v)}" for k, v in part.items())]
    path.write_text("\n".join(lines), encoding="utf-8")


class Heard(Reporter):
    """Remembers stages and how far each got; breaks off where told to."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.stages: dict[str, list[tuple[int, int | None]]] = {}
        self.stop_at = stop_at

    @contextmanager
    def stage(self, title, total=None, *, in_bytes=False):
        told = self.stages.setdefault(title, [])

        def update(done, total=None):
            told.append((done, total))
            if self.stop_at is not None and title.startswith(self.stop_at):
                raise KeyboardInterrupt

        yield update


def tree(folder: Path) -> dict[str, bytes]:
    """All files by relative path, but for the lists of digests."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "digests.sha256"
    }


def categories_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.exists() else set()


def accept(**options):
    return fetch_dataset("mvtec", accept_license=True, **options)


# ---- the catalogue


def test_what_the_catalogue_says_is_usable():
    entries = catalogue()
    assert len(entries["mvtec"].categories) == 15
    for entry in entries.values():
        assert entry.title
        assert entry.licence
        assert entry.terms or entry.commercial
        assert entry.citation or entry.kind is DatasetKind.GENERATED
        assert len(set(entry.categories)) == len(entry.categories)
        assert bool(entry.steps) == (entry.kind is DatasetKind.MANUAL)
        assert bool(entry.remotes) == (entry.kind is DatasetKind.ARCHIVE)
        assert set(entry.parts) <= set(entry.categories)
        names = [remote.filename for remote in entry.remotes]
        assert len(set(names)) == len(names)
        for remote in entry.remotes:
            # A plain address will do as a second one where a digest vouches for what comes from it.
            assert remote.urls[0].startswith("https://")
            assert remote.has_digest or all(url.startswith("https://") for url in remote.urls)
            assert remote.filename.rpartition(".")[2] in {"xz", "gz", "zip", "tar"}
            assert remote.sha256 is None or len(bytes.fromhex(remote.sha256)) == 32
            assert remote.md5 is None or len(bytes.fromhex(remote.md5)) == 16
    assert [name for name, entry in entries.items() if not entry.restricted] == [
        "visa",
        "dagm",
        "fashion_mnist",
        "trays",
        "demo",
    ]
    with pytest.raises(UsageError) as error:
        find_entry("mvtek")
    assert "Did you mean 'mvtec'?" in error.value.remedy


@pytest.mark.parametrize("text", ["[", "[datasets.x]\nkind = 'archive'", "x = 1", "[datasets]\nx = 1"])
def test_an_own_catalogue_that_cannot_be_used_is_named(tmp_path, monkeypatch, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    monkeypatch.setenv("ADCTL_CATALOGUE", str(path))
    with pytest.raises(UsageError, match=r"own\.toml"):
        catalogue()


# ---- data sets


def test_a_licence_has_to_be_accepted_before_anything_is_asked_for(mvtec, site, home):
    with pytest.raises(UsageError, match=r"CC BY-NC-SA 4\.0.*No commercial use") as error:
        fetch_dataset("mvtec")
    assert "--accept-license" in error.value.remedy
    assert site.seen == []
    assert not home.exists()


def test_the_whole_data_set_comes_verified_and_tidy(mvtec, site, home):
    heard = Heard()
    got = accept(reporter=heard)
    assert got == FetchResult(
        "mvtec", home / "mvtec", CATEGORIES, "CC BY-NC-SA 4.0", len(WHOLE), verified=True, sha256=SHA256, already=False
    )
    assert list(heard.stages)[:2] == ["downloading all.tar.xz", "unpacking all.tar.xz"]
    assert heard.stages["downloading all.tar.xz"][-1] == (len(WHOLE), len(WHOLE))
    assert heard.stages["writing cable"][-1] == (5, 5)
    assert {path.name for path in got.root.iterdir()} == {*CATEGORIES, "fetched.json"}
    assert tree(got.root / "cable") == {k.partition("/")[2]: v for k, v in files_of("cable").items()}
    assert open_mvtec(got.root, "zipper").mask_count == 1


def test_the_record_says_where_it_came_from_without_secrets(mvtec, site, home):
    accept()
    text = (home / "mvtec" / "fetched.json").read_text(encoding="utf-8")
    assert json.loads(text)["categories"]["bottle"] == {
        "urls": [f"{site.url}/all.tar.xz"], "sha256": SHA256, "bytes": len(WHOLE), "verified": True,
    }  # fmt: skip
    assert "word" not in text
    assert "token" not in text


def test_one_category_is_downloaded_alone_and_called_unverified(mvtec, site, home):
    got = accept(categories=["zipper"])
    assert site.seen == ["GET /zipper.tar.xz"]
    assert (got.categories, got.verified) == (("zipper",), False)
    assert got.sha256 == hashlib.sha256(PARTS["zipper"]).hexdigest()
    assert categories_in(home / "mvtec") == {"zipper"}


def test_two_categories_are_two_downloads(mvtec, site, home):
    got = accept(categories=["zipper", "bottle", "zipper"])
    assert (got.categories, got.sha256, got.bytes) == (
        ("bottle", "zipper"), None, len(PARTS["bottle"]) + len(PARTS["zipper"]),
    )  # fmt: skip


def test_what_is_there_is_not_fetched_again_unless_forced(mvtec, site, home):
    first = accept(categories=["zipper"])
    again = fetch_dataset("mvtec", categories=["zipper"])
    assert again == dataclasses.replace(first, already=True)
    assert len(site.seen) == 1
    (home / "mvtec" / "zipper" / "train" / "good" / "000.png").write_bytes(b"spoilt")
    (home / "mvtec" / "zipper" / "mine.txt").write_bytes(b"mine")
    assert not accept(categories=["zipper"], force=True).already
    assert len(site.seen) == 2
    assert "mine.txt" not in tree(home / "mvtec" / "zipper")
    assert tree(home / "mvtec" / "zipper")["train/good/000.png"] == b"zipper good"


def test_a_second_fetch_adds_to_the_first(mvtec, site, home):
    accept(categories=["zipper"])
    got = accept()
    assert site.seen == ["GET /zipper.tar.xz", "GET /all.tar.xz"]
    assert (got.categories, got.verified) == (CATEGORIES, False)
    assert set(json.loads((home / "mvtec" / "fetched.json").read_text())["categories"]) == set(CATEGORIES)


def test_unknown_categories_are_named(mvtec):
    with pytest.raises(UsageError, match="'zippr'") as error:
        accept(categories=["zippr"])
    assert "zipper" in error.value.remedy


SPOILT = {
    "corrupt": WHOLE[:100] + bytes([WHOLE[100] ^ 1]) + WHOLE[101:],
    "short": WHOLE[:-1],
    "a login page": b"<html>",
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_whole_archive_that_is_not_the_promised_one_is_refused(mvtec, site, home, name):
    site.files["/all.tar.xz"] = SPOILT[name]
    with pytest.raises(FetchError) as error:
        accept()
    assert "adctl fetch mvtec --from ARCHIVE_OR_FOLDER --accept-license" in error.value.remedy
    assert "word" not in str(vars(error.value))
    assert tree(home / "mvtec") == {}


@pytest.mark.parametrize("name", SPOILT)
def test_a_part_without_digest_is_refused_when_it_cannot_be_unpacked(mvtec, site, home, name):
    part = PARTS["zipper"]
    site.files["/zipper.tar.xz"] = {
        "corrupt": part[:100] + bytes([part[100] ^ 1]) + part[101:], "short": part[:-1],
    }.get(name, SPOILT[name])  # fmt: skip
    with pytest.raises(FetchError):
        accept(categories=["zipper"])
    assert not (home / "mvtec" / "zipper").exists()
    site.files["/zipper.tar.xz"] = part
    assert accept(categories=["zipper"]).categories == ("zipper",)


def test_an_archive_of_something_else_is_refused(mvtec, site, home):
    site.files["/zipper.tar.xz"] = pack(files_of("cable"))
    with pytest.raises(DataError, match="zipper"):
        accept(categories=["zipper"])
    assert categories_in(home / "mvtec") <= {".fetching"}


@pytest.mark.parametrize("stage", ["downloading", "unpacking", "writing", "computing digests"])
def test_wherever_it_is_interrupted_nothing_looks_whole_that_is_not(mvtec, site, home, stage):
    with pytest.raises(KeyboardInterrupt):
        accept(categories=["zipper"], reporter=Heard(stop_at=stage))
    assert not any(entry.fetched for entry in list_datasets())
    with pytest.raises(UsageError, match="has not been fetched"):
        find_dataset("zipper", "mvtec")
    got = accept(categories=["zipper"])
    assert tree(got.root / "zipper") == {k.partition("/")[2]: v for k, v in files_of("zipper").items()}
    assert not (home / "mvtec" / ".fetching").exists()


def test_interrupted_unpacking_spares_a_download_that_can_be_checked(mvtec, site, home):
    with pytest.raises(KeyboardInterrupt):
        accept(reporter=Heard(stop_at="unpacking"))
    assert accept().verified
    assert len(site.seen) == 1
    assert categories_in(home / "mvtec") == set(CATEGORIES)


def test_there_has_to_be_room_before_anything_is_asked_for(mvtec, site, home, monkeypatch):
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=len(WHOLE) + 1))
    with pytest.raises(OutputError, match=r"MVTec AD needs .* are free"):
        accept()
    assert site.seen == []


def test_what_nobody_vouches_for_is_compared_with_the_last_time(mvtec, site, home):
    first = accept(categories=["zipper"])
    assert accept(categories=["zipper"], force=True).notes == ()
    site.files["/zipper.tar.xz"] = pack(files_of("zipper") | {"zipper/new.txt": b"new"})
    (note,) = accept(categories=["zipper"], force=True).notes
    assert first.sha256 in note


@pytest.mark.parametrize("where", ["unpacked/.all.x.partial", "unpacked/all", "replaced"])
def test_what_a_killed_run_left_is_swept_away(mvtec, home, where):
    left = home / "mvtec" / ".fetching" / where / "zipper" / "train" / "good"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"1")
    assert not list_datasets()[0].fetched
    accept()
    assert categories_in(home / "mvtec") == set(CATEGORIES)


def test_two_at_once_wait_for_each_other(mvtec, home, monkeypatch):
    monkeypatch.setattr(store, "_LOCK_TIMEOUT", 0.1)
    with store.fetch_lock(home / "mvtec"), pytest.raises(FetchError, match="Another adctl process"):
        accept()
    assert accept().categories == CATEGORIES


# ---- from a file or folder


@pytest.fixture
def local(tmp_path):
    """The data set as people carry it about: archives and folders."""
    folder = tmp_path / "stick"
    for category in CATEGORIES:
        for name, data in files_of(category).items():
            path = folder / "MVTec AD" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (folder / "all.tar.xz").write_bytes(WHOLE)
    (folder / "spoilt").mkdir()
    (folder / "spoilt" / "all.tar.xz").write_bytes(SPOILT["corrupt"])
    (folder / "zipper.tar.xz").write_bytes(PARTS["zipper"])
    with zipfile.ZipFile(folder / "own.zip", "w") as packed:
        for name, data in files_of("zipper").items():
            packed.writestr(f"mvtec/{name}", data)
    with zipfile.ZipFile(folder / "bare.zip", "w") as packed:
        for name, data in files_of("zipper").items():
            packed.writestr(name.partition("/")[2], data)
    return folder


@pytest.mark.parametrize(
    ("source", "asked", "came", "verified"),
    [
        ("all.tar.xz", (), CATEGORIES, True),
        ("all.tar.xz", ("cable",), ("cable",), True),
        ("zipper.tar.xz", (), ("zipper",), False),
        ("own.zip", (), ("zipper",), False),
        ("bare.zip", ("zipper",), ("zipper",), False),
        ("MVTec AD", (), CATEGORIES, False),
        ("MVTec AD", ("bottle", "zipper"), ("bottle", "zipper"), False),
        ("MVTec AD/cable", (), ("cable",), False),
        (".", ("zipper",), ("zipper",), False),
        (".", (), CATEGORIES, True),
    ],
)
def test_without_a_network_it_comes_from_a_file_or_folder(mvtec, site, home, local, source, asked, came, verified):
    got = accept(source=local / source, categories=asked)
    assert (got.categories, got.verified, got.already) == (came, verified, False)
    assert categories_in(home / "mvtec") == set(came)
    for category in came:
        assert tree(home / "mvtec" / category) == {k.partition("/")[2]: v for k, v in files_of(category).items()}
    assert site.seen == []
    assert (local / source).exists()


@pytest.mark.parametrize(
    ("source", "asked", "kind", "says"),
    [
        ("none.zip", (), UsageError, "none.zip"),
        ("zipper.tar.xz", ("cable",), DataError, "cable"),
        ("bare.zip", (), UsageError, "not its name"),
        ("MVTec AD/cable/test", (), DataError, "any category"),
        ("MVTec AD/cable/readme.txt", (), FetchError, "readme.txt"),
        ("spoilt/all.tar.xz", (), FetchError, "damaged or another file"),
        ("spoilt", (), FetchError, "damaged or another file"),
    ],
)
def test_a_file_or_folder_that_does_not_hold_it_is_refused(mvtec, home, local, source, asked, kind, says):
    with pytest.raises(AdctlError, match=says) as error:
        accept(source=local / source, categories=asked)
    assert type(error.value) is kind
    assert error.value.remedy
    assert categories_in(home / "mvtec") <= {".fetching"}


def test_the_licence_holds_for_local_files_too(mvtec, local):
    with pytest.raises(UsageError, match="CC BY-NC-SA"):
        fetch_dataset("mvtec", source=local / "all.tar.xz")


def test_what_has_to_be_brought_by_hand_says_how(home):
    with pytest.raises(UsageError, match=r"ask for access at https://huggingface\.co/") as error:
        fetch_dataset("real_iad", accept_license=True)
    assert "adctl fetch real_iad --from FOLDER" in error.value.remedy


def test_a_licence_is_only_asked_for_where_it_matters(mvtec, home):
    assert licence_to_accept("mvtec").licence == "CC BY-NC-SA 4.0"
    assert licence_to_accept("visa") is None
    accept(categories=["zipper"])
    assert licence_to_accept("mvtec", ["zipper"]) is None
    assert licence_to_accept("mvtec", ["cable"]) is not None


# ---- verifying


def test_what_changed_since_is_found(mvtec, home):
    accept()
    assert [(result.name, result.intact, result.files) for result in verify()] == [
        ("mvtec/bottle", True, 5), ("mvtec/cable", True, 5), ("mvtec/zipper", True, 5),
    ]  # fmt: skip
    zipper = home / "mvtec" / "zipper"
    (zipper / "train" / "good" / "000.png").write_bytes(b"other")
    (zipper / "readme.txt").unlink()
    (zipper / "mine.txt").write_bytes(b"mine")
    (home / "mvtec" / "cable" / "mine.txt").write_bytes(b"mine")
    (home / "mvtec" / "bottle" / "digests.sha256").unlink()
    bottle, cable, changed = verify("mvtec")
    assert bottle.intact is None
    assert (cable.intact, cable.unlisted) == (True, ("mine.txt",))
    assert (changed.intact, changed.changed, changed.missing) == (False, ("train/good/000.png",), ("readme.txt",))
    assert changed.remedy == "adctl fetch mvtec --category zipper --force"
    assert [result.name for result in verify("mvtec", categories=["cable"])] == ["mvtec/cable"]
    accept(categories=["zipper", "bottle"], force=True)
    assert all(result.intact for result in verify())


def test_there_has_to_be_something_to_verify(mvtec, home):
    with pytest.raises(UsageError, match="There is nothing to verify"):
        verify()
    with pytest.raises(UsageError, match="has not been fetched") as error:
        verify("mvtec", categories=["zipper"])
    assert "adctl fetch mvtec --category zipper" in error.value.remedy


# ---- the built-in set


@pytest.fixture
def small_demo(monkeypatch):
    from adctl.fetching import demo_dataset

    real, small = demo_dataset.generate, {"train": 3, "good": 1, "per_defect": 1, "size": 32}
    monkeypatch.setattr(demo_dataset, "generate", lambda root, **o: real(root, **small, **o))


def test_the_built_in_set_is_drawn_once(home, small_demo):
    heard = Heard()
    got = fetch_dataset("demo", reporter=heard)
    assert (got.root, got.categories, got.verified, got.already) == (home / "demo", ("zipper",), True, False)
    assert len(open_mvtec(got.root, "zipper").train) == 3
    assert heard.stages["generating demo"]
    assert [result.intact for result in verify()] == [True]
    assert json.loads((home / "demo" / "fetched.json").read_text())["name"] == "demo"
    assert fetch_dataset("demo") == dataclasses.replace(got, already=True)
    before = tree(home / "demo" / "zipper")
    (home / "demo" / "zipper" / "train" / "good" / "000.png").unlink()
    assert not fetch_dataset("demo", force=True).already
    assert tree(home / "demo" / "zipper") == before


# ---- finding


def test_a_data_set_is_found_by_name_or_category_real_ones_first(mvtec, home, small_demo):
    fetch_dataset("demo")
    assert find_dataset("zipper", None) == home / "demo"
    accept(categories=["zipper"])
    assert find_dataset("zipper", None) == home / "mvtec"
    assert find_dataset("zipper", "demo") == home / "demo"
    assert find_dataset(None, "mvtec") == home / "mvtec"


@pytest.mark.parametrize(
    ("category", "dataset", "commands"),
    [
        ("zipper", "mvtec", ["adctl fetch mvtec --category zipper"]),
        (None, "mvtec", ["adctl fetch mvtec"]),
        ("zipper", "demo", ["adctl fetch demo"]),
        (None, "demo", ["adctl fetch demo"]),
        ("zipper", None, ["adctl fetch mvtec --category zipper"]),
        ("candle", None, ["adctl fetch visa --category candle"]),
        ("commutator", None, ["adctl fetch kolektor_sdd"]),
        ("usb", None, ["adctl fetch real_iad --category usb --from FOLDER"]),
    ],
)
def test_what_is_not_there_comes_with_the_command_that_brings_it(home, category, dataset, commands):
    with pytest.raises(UsageError) as error:
        find_dataset(category, dataset)
    assert error.value.remedy.partition(": ")[2].split(", or ") == commands


@pytest.mark.parametrize(
    ("category", "dataset"), [("zippr", None), ("zippr", "mvtec"), ("bottle", "demo"), (None, "x")]
)
def test_what_does_not_exist_is_not_offered(home, category, dataset):
    with pytest.raises(UsageError, match="Unknown"):
        find_dataset(category, dataset)


def test_the_list_says_what_is_here(mvtec, home):
    accept(categories=["cable"])
    lines = {entry.name: entry for entry in list_datasets()}
    assert next(iter(lines)) == "mvtec"
    assert list(lines)[-1] == "demo"
    assert (lines["mvtec"].fetched, lines["mvtec"].here, lines["mvtec"].size) == (True, ("cable",), len(WHOLE))
    assert (lines["demo"].fetched, lines["demo"].size, lines["demo"].root) == (False, None, home / "demo")


def test_the_data_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("ADCTL_DATA_DIR", str(tmp_path))
    assert data_dir() == tmp_path
    monkeypatch.delenv("ADCTL_DATA_DIR")
    assert "adctl" in data_dir().parts


# ---- weights

MODEL = "test_resnet"
PAGE = "/timm/test_resnet.r160_in1k/resolve/main"


@pytest.fixture
def hub(site, home, monkeypatch):
    """Hugging Face with one small model, as safetensors."""
    import timm
    from safetensors.torch import save

    tensors = timm.create_model(MODEL).state_dict()
    put(site, f"{PAGE}/model.safetensors", save(tensors))
    monkeypatch.setenv("HF_ENDPOINT", f"{site.url}/")
    return tensors


def put(site, path: str, data: bytes) -> None:
    site.files[f"/lfs{path}"] = data
    site.linked[path] = hashlib.sha256(data).hexdigest()


def test_weights_come_verified_and_are_found_by_training(hub, site, home):
    import torch

    from adctl.detectors.components.backbones import find_weights

    got = fetch_weights(MODEL)
    assert (got.path, got.verified, got.already) == (home / "weights" / f"{MODEL}.safetensors", True, False)
    assert got.sha256 == hashlib.sha256(got.path.read_bytes()).hexdigest()
    assert json.loads((home / "weights" / f"{MODEL}.json").read_text())["sha256"] == got.sha256
    assert site.seen == [f"HEAD {PAGE}/model.safetensors", f"GET {PAGE}/model.safetensors",
                         f"GET /lfs{PAGE}/model.safetensors"]  # fmt: skip
    found = find_weights(MODEL, None)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in hub.items())
    assert {path.name for path in got.path.parent.iterdir() if path.suffix != ".lock"} == {
        f"{MODEL}.safetensors", f"{MODEL}.json",
    }  # fmt: skip


def test_weights_are_fetched_once_and_again_when_damaged(hub, site, home):
    first = fetch_weights(MODEL)
    assert fetch_weights(MODEL) == dataclasses.replace(first, already=True)
    assert len(site.seen) == 3
    first.path.write_bytes(b"damaged")
    assert fetch_weights(MODEL) == first


def test_weights_come_from_a_file_too(hub, site, home, tmp_path):
    first = fetch_weights(MODEL)
    carried = tmp_path / "carried.safetensors"
    carried.write_bytes(first.path.read_bytes())
    seen = len(site.seen)
    got = fetch_weights(MODEL, source=carried, root=tmp_path / "other")
    assert (got.sha256, got.verified, len(site.seen)) == (first.sha256, False, seen)
    assert [result.name for result in verify("weights")] == [f"weights/{MODEL}"]
    first.path.write_bytes(b"damaged")
    assert [result.intact for result in verify("weights")] == [False]
    carried.write_bytes(b"damaged")
    with pytest.raises(FetchError, match="not a safetensors file"):
        fetch_weights(MODEL, source=carried, root=tmp_path / "third")
    with pytest.raises(UsageError, match="no file"):
        fetch_weights(MODEL, source=tmp_path / "none", root=tmp_path / "third")


def test_a_tagged_name_is_its_own_file(hub, home):
    assert fetch_weights(f"{MODEL}.r160_in1k").path == home / "weights" / f"{MODEL}.r160_in1k.safetensors"


def test_weights_that_are_not_the_promised_ones_are_refused(hub, site, home):
    site.linked[f"{PAGE}/model.safetensors"] = "0" * 64
    with pytest.raises(FetchError, match="SHA-256") as error:
        fetch_weights(MODEL)
    assert "--from FILE" in error.value.remedy
    assert not (home / "weights" / f"{MODEL}.safetensors").exists()


def test_what_is_no_safetensors_file_is_refused(hub, site, home):
    put(site, f"{PAGE}/model.safetensors", b"<html>")
    with pytest.raises(FetchError, match="not a safetensors file"):
        fetch_weights(MODEL)
    assert not (home / "weights" / f"{MODEL}.safetensors").exists()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_ema"])
def test_checkpoints_become_safetensors(hub, site, home, wrapper):
    import torch
    from safetensors.torch import load_file

    stream = io.BytesIO()
    torch.save({wrapper: hub, "epoch": 3} if wrapper else hub, stream)
    del site.linked[f"{PAGE}/model.safetensors"]
    put(site, f"{PAGE}/pytorch_model.bin", stream.getvalue())
    got = fetch_weights(MODEL)
    assert got.verified
    found = load_file(got.path)
    assert all(torch.equal(found[name], tensor) for name, tensor in hub.items())


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", [Evil(), [1, 2], "text"], ids=["code", "list", "text"])
def test_checkpoints_are_never_unpickled(hub, site, home, capsys, content):
    import torch

    stream = io.BytesIO()
    torch.save(content, stream)
    del site.linked[f"{PAGE}/model.safetensors"]
    put(site, f"{PAGE}/pytorch_model.bin", stream.getvalue())
    with pytest.raises(FetchError, match="never unpickles"):
        fetch_weights(MODEL)
    assert "unpickled" not in capsys.readouterr().out
    assert not (home / "weights" / f"{MODEL}.safetensors").exists()


def test_weights_that_nobody_has_are_one_clear_error(hub, site):
    site.linked.clear()
    with pytest.raises(FetchError, match="no weights of 'test_resnet'"):
        fetch_weights(MODEL)


@pytest.mark.parametrize(
    ("name", "says", "remedy"),
    [
        ("resnet8", "Unknown timm model", "resnet18"),
        ("resnet18.nope", "Unknown timm model", "resnet18."),
        ("../evil", "Unknown timm model", "timm.list_pretrained"),
        ("beit3_giant_patch14_224", "no pretrained weights", "beit3"),
    ],
)
def test_names_that_timm_does_not_know_come_with_close_ones(hub, site, home, name, says, remedy):
    with pytest.raises(UsageError, match=says) as error:
        fetch_weights(name)
    assert remedy in error.value.remedy
    assert len(error.value.remedy) < 300
    assert site.seen == []
    assert not home.exists()


def test_the_list_of_one_tells_where_it_comes_from_and_whether_that_is_verified(adctl):
    shown = "".join(adctl("fetch", "--list", "mvtec").stdout.split())
    for remote in find_entry("mvtec").remotes:
        assert remote.urls[0] in shown
    assert "sha256cf4313b13603bec6" in shown
    assert "lengthunknown,unverified" in shown
    (first, *_) = adctl.json("fetch", "--list", "cifar10")["result"]["files"]
    assert first["md5"] == "c32a1d4ab5d03f1284b67883e8d87530"

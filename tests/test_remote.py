"""Remote folders on a real S3 server on loopback: downloaded once, then only changed files."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from adctl.data.datasets import remote
from adctl.data.datasets.layouts import list_images, open_mvtec
from adctl.data.datasets.remote import absolute_path, is_remote, local_copy
from adctl.errors import FetchError, MissingExtraError, UsageError

BUCKET = "parts"


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, zippers, monkeypatch, tmp_path):
    """An S3 file system with a category of zippers in a bucket."""
    import s3fs

    secrets = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**secrets, "AWS_ENDPOINT_URL": server, "ADCTL_DATA_DIR": str(tmp_path / "data")}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    if filesystem.exists(BUCKET):
        filesystem.rm(BUCKET, recursive=True)
    filesystem.mkdir(BUCKET)
    filesystem.put(str(zippers), f"{BUCKET}/zipper", recursive=True)
    filesystem.pipe(
        f"{BUCKET}/zipper/train/good/überprüft 検査.png", next((zippers / "train/good").iterdir()).read_bytes()
    )
    filesystem.pipe(f"{BUCKET}/zipper/large.bin", b"not read")
    yield filesystem
    s3fs.S3FileSystem.clear_instance_cache()


ADDRESS = Path(f"s3://{BUCKET}/zipper")


def mirrored(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_remote_folder_is_a_category(bucket, zippers):
    root = local_copy(ADDRESS)
    dataset = open_mvtec(root)
    assert dataset.category == "zipper"
    assert len(dataset.train) == 21
    expected = mirrored(zippers)
    assert {name: data for name, data in mirrored(root).items() if name in expected} == expected
    assert not (root / "large.bin").exists()


def test_only_what_has_changed_is_copied(bucket, zippers, monkeypatch):
    local_copy(ADDRESS)
    copied = []
    real = remote._copy_one
    monkeypatch.setattr(
        remote, "_copy_one", lambda fs, entry, target: (copied.append(target.name), real(fs, entry, target))
    )
    root = local_copy(ADDRESS)
    assert copied == []
    first, second, *_ = sorted(bucket.ls(f"{BUCKET}/zipper/train/good"))
    bucket.pipe(first, bucket.cat(second) + b" ")
    bucket.rm(second)
    local_copy(ADDRESS)
    assert copied == [Path(first).name]
    assert (root / "train/good" / Path(first).name).read_bytes() == bucket.cat(first)
    assert not (root / "train/good" / Path(second).name).exists()


def test_what_was_cut_short_is_made_good(bucket, monkeypatch):
    real = remote._copy_one
    lock, count = threading.Lock(), iter(range(1000))

    def cut(filesystem, entry, target):
        with lock:
            number = next(count)
        if number == 5:
            raise ConnectionError("the line was cut")
        real(filesystem, entry, target)

    monkeypatch.setattr(remote, "_copy_one", cut)
    with pytest.raises(FetchError, match="the line was cut"):
        local_copy(ADDRESS)
    monkeypatch.setattr(remote, "_copy_one", real)
    assert len(open_mvtec(local_copy(ADDRESS)).train) == 21


def test_fewer_bytes_than_promised(bucket, monkeypatch):
    monkeypatch.setattr(bucket, "get_file", lambda _, target: Path(target).write_bytes(b"x"))
    with pytest.raises(FetchError, match="but 1 were received"):
        local_copy(ADDRESS)


def test_a_remote_archive(bucket, zippers, tmp_path):
    import shutil

    shutil.make_archive(str(tmp_path / "zip"), "zip", zippers)
    bucket.put(str(tmp_path / "zip.zip"), f"{BUCKET}/packed.zip")
    assert len(open_mvtec(local_copy(Path(f"s3://{BUCKET}/packed.zip"))).train) == 20


def test_images_to_score(bucket):
    samples, _ = list_images([f"s3://{BUCKET}/zipper/test/good"])
    assert len(samples) == 6


def test_nothing_there(bucket):
    for address in (f"s3://{BUCKET}/nothing", "s3://nobucket/x"):
        with pytest.raises(UsageError) as error:
            local_copy(Path(address))
        assert address in error.value.message


def test_nobody_answers(bucket, monkeypatch):
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1, raising=False)
    with pytest.raises(FetchError) as error:
        local_copy(ADDRESS)
    assert "network" in error.value.remedy


def test_an_unknown_scheme_and_a_missing_package(monkeypatch):
    with pytest.raises(UsageError, match="Protocol not known"):
        local_copy(Path("nonsense://parts/x"))
    import fsspec

    def absent(address):
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec, "url_to_fs", absent)
    with pytest.raises(MissingExtraError, match="gcsfs"):
        local_copy(Path("gs://parts/x"))


@pytest.mark.parametrize(
    ("path", "remote"),
    [("s3://b/x", True), ("s3:/b/x", True), ("C:/x", False), ("C:\\x", False), ("/a/b:c", False), ("a:b", False),
     ("//server/share/x", False), ("\\\\server\\share", False), ("https://host/x", True), ("parts/s3:/x", False)],
)  # fmt: skip
def test_what_is_an_address(path, remote):
    assert is_remote(path) == remote
    assert is_remote(Path(path)) == remote


def test_addresses_are_written_down_as_they_are(tmp_path):
    assert absolute_path(Path("s3://b/x/")) == "s3://b/x"
    assert absolute_path(tmp_path / "x") == str(tmp_path / "x")


def test_train_on_a_bucket_and_score_it(bucket, adctl, server):
    adctl("train", "--data", f"s3://{BUCKET}/zipper", "--image-size", "64")
    assert adctl.json("score", f"s3://{BUCKET}/zipper/test")["result"]["counts"]["error"] == 0
    assert adctl.json("score")["result"]["counts"]["error"] == 0

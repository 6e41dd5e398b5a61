"""Downloads from a faulty web server on loopback: a complete and correct file, or none."""

from __future__ import annotations

import random
import shutil
import socket
import ssl
import subprocess
import types
from typing import TYPE_CHECKING

import pytest
from faulty_server import (
    BODY,
    FATAL,
    MD5,
    PASSING,
    SHA256,
    chunked,
    cut,
    flipped,
    reset,
    serve,
    status,
    web_sites,
    without_length,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adctl.errors import FetchError, OutputError
from adctl.fetching import download as module
from adctl.fetching.download import Transfer, download, head
from adctl.fetching.http import without_secrets

if TYPE_CHECKING:
    pass


@pytest.fixture
def sites():
    with web_sites() as start:
        yield start


@pytest.fixture
def site(sites):
    return sites()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "files" / "file.bin"


@pytest.fixture
def slept():
    return []


@pytest.fixture
def fetch(target, slept):
    """Download without waiting between tries."""

    def run(*urls, **options):
        names = {"attempts", "timeout", "backoff", "connections", "smallest_piece"}
        how = Transfer(**{"timeout": 0.3, **{name: options.pop(name) for name in names & set(options)}})
        return download(urls, target, transfer=how, **{"sleep": slept.append, **options})

    return run


def test_a_whole_file_comes_with_its_digest(site, target, fetch):
    told = []
    got = fetch(site.url, progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == BODY
    assert (got.path, got.sha256, got.bytes, got.verified) == (target, SHA256, len(BODY), False)
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("digest", [{"sha256": SHA256}, {"sha256": SHA256.upper()}, {"md5": MD5}], ids=str)
def test_a_right_digest_makes_it_verified(site, fetch, digest):
    assert fetch(site.url, size=len(BODY), **digest).verified


@pytest.mark.parametrize("digest", [SHA256, None], ids=["digest", "no digest"])
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_got_over(site, target, fetch, name, digest):
    site.faults = list(PASSING[name])
    assert fetch(site.url, sha256=digest).sha256 == SHA256
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("name", FATAL)
def test_what_does_not_pass_is_one_clear_error(site, target, fetch, name):
    site.always, says = FATAL[name]
    target.parent.mkdir()
    target.write_bytes(b"what was there before")
    with pytest.raises(FetchError, match=says) as error:
        fetch(site.url, sha256=SHA256)
    assert error.value.remedy
    assert target.read_bytes() == b"what was there before"


def test_a_wrong_file_is_not_kept_for_resuming(site, target, fetch):
    site.always = flipped
    with pytest.raises(FetchError):
        fetch(site.url, sha256=SHA256)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("fault", [flipped, status(404), status(500), reset, serve, cut(0)])
def test_the_next_mirror_helps_out(sites, target, fetch, fault):
    bad, good = sites(), sites()
    bad.always = fault
    assert fetch(bad.url, good.url, sha256=SHA256).verified
    assert target.read_bytes() == BODY


def test_a_missing_file_is_not_asked_for_again(sites, fetch, slept):
    bad, good = sites(), sites()
    bad.always = status(404)
    fetch(bad.url, good.url)
    assert (len(bad.seen), slept) == (1, [])


def test_waits_grow_and_the_server_may_ask_for_more(site, fetch, slept):
    site.faults = [status(503), status(503), status(429, Retry_After="9")]
    fetch(site.url)
    assert slept == [1.0, 2.0, 9.0]


def test_a_try_that_brings_much_does_not_count_against_the_server(site, target, fetch):
    site.body = random.Random(1).randbytes(9 << 20)
    site.always = cut(3 << 19)
    fetch(site.url, attempts=2)
    assert target.read_bytes() == site.body


def test_resuming_asks_for_the_rest_and_for_the_same_file(site, fetch):
    site.faults = [cut(100_000)]
    fetch(site.url)
    assert site.ranges == [None, "bytes=100000-"]
    assert site.seen[1][2]["If-Range"] == '"one"'


def test_a_later_run_goes_on_where_an_interrupted_one_stopped(site, target, fetch):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(site.url, progress=interrupt)
    assert not target.exists()
    fetch(site.url)
    assert target.read_bytes() == BODY
    assert site.ranges[0] is None
    assert site.ranges[1].startswith("bytes=")


def test_a_file_that_changed_meanwhile_is_fetched_anew(site, target, fetch):
    site.faults = [cut()]
    with pytest.raises(FetchError):
        fetch(site.url, attempts=1)
    site.body, site.etag = BODY[::-1], '"two"'
    fetch(site.url)
    assert target.read_bytes() == BODY[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_proof_of_sameness_only_a_digest_allows_resuming(site, target, fetch, etag):
    site.etag = etag
    site.faults = [cut(), cut()]
    fetch(site.url)
    assert site.ranges == [None, None, None]
    site.faults = [cut()]
    fetch(site.url, sha256=SHA256)
    assert site.ranges[-1] == "bytes=100000-"
    assert target.read_bytes() == BODY


def test_a_part_of_another_address_is_not_built_upon(sites, target, fetch):
    one, two = sites(), sites()
    one.always = cut()
    two.body = BODY[::-1]
    fetch(one.url, two.url, attempts=1)
    assert target.read_bytes() == BODY[::-1]


def test_a_part_damaged_on_disk_is_thrown_away(site, target, fetch):
    site.faults = [cut()]
    with pytest.raises(FetchError):
        fetch(site.url, sha256=SHA256, attempts=1)
    part = target.with_name("file.bin.part")
    part.write_bytes(bytes(part.stat().st_size))
    assert fetch(site.url, sha256=SHA256).verified
    assert target.read_bytes() == BODY


def test_a_finished_part_needs_no_request(site, target, fetch):
    site.faults = [cut(len(BODY) - 1)]
    with pytest.raises(FetchError):
        fetch(site.url, attempts=1)
    with target.with_name("file.bin.part").open("ab") as part:
        part.write(BODY[-1:])
    fetch(site.url)
    assert len(site.seen) == 1
    assert target.read_bytes() == BODY


@given(
    cuts=st.lists(st.integers(0, 2000), max_size=3), length=st.integers(0, 2000), etag=st.sampled_from(['"a"', None])
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_it_is_cut_the_file_is_the_same(site, tmp_path, cuts, length, etag):
    site.body, site.etag, site.faults = BODY[:length], etag, [cut(after) for after in cuts]
    download([site.url], tmp_path / "cut.bin", transfer=Transfer(timeout=1), sleep=lambda _: None)
    assert (tmp_path / "cut.bin").read_bytes() == BODY[:length]
    site.faults.clear()


def test_a_promised_size_is_held_against_the_server(site, target, fetch):
    with pytest.raises(FetchError, match="299999 are expected"):
        fetch(site.url, size=len(BODY) - 1)
    site.always = chunked()
    with pytest.raises(FetchError, match="length is 300000"):
        fetch(site.url, size=len(BODY) - 1)
    assert not target.exists()


def test_a_file_of_unknown_length_needs_a_digest(site, target, fetch):
    site.always = without_length
    with pytest.raises(FetchError, match="does not state the length"):
        fetch(site.url)
    assert not target.exists()
    assert fetch(site.url, sha256=SHA256).verified


@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk_is_noticed_before_it_is_full(site, target, fetch, monkeypatch, known):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"300.0 kB .* 1.0 kB are free"):
        fetch(site.url, size=len(BODY) if known else None)
    assert len(site.seen) == (not known)
    assert not target.exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "/etc/passwd", "http://"])
def test_only_the_web_is_read(target, fetch, url):
    with pytest.raises(FetchError, match="not an http or https address"):
        fetch(url)
    with pytest.raises(FetchError, match="not an http or https address"):
        head(url)


def test_nobody_there(target, fetch, slept):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with pytest.raises(FetchError, match="refused"):
        fetch(url)
    with pytest.raises(FetchError, match="the host is unknown"):
        fetch("http://nowhere.invalid/x")
    assert slept == []


def test_secrets_stay_out_of_messages_and_files(site, target, fetch):
    site.always = status(403)
    url = site.url.replace("http://", "http://me:pass%20word@") + "?token=hidden#also"
    with pytest.raises(FetchError) as error:
        fetch(url)
    assert site.url in error.value.message
    assert not any(secret in str(vars(error.value)) for secret in ("pass", "me:", "hidden", "also"))
    assert site.seen[0][2]["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    site.always = cut()
    with pytest.raises(FetchError):
        fetch(url, attempts=1)
    assert "hidden" not in target.with_name("file.bin.part.json").read_text()
    assert without_secrets("https://u:p@host:1/a/b?c#d") == "https://host:1/a/b"


def test_a_password_is_not_carried_to_another_host(sites, fetch):
    one, two = sites(), sites()
    one.always = status(302, Location=two.url)
    fetch(one.url.replace("http://", "http://me:word@"))
    assert "Authorization" not in two.seen[0][2]


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A certificate for 127.0.0.1 that this process trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    pem = tmp_path / "host.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-keyout", pem, "-out", tmp_path / "cert.pem", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes(pem.read_bytes() + (tmp_path / "cert.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_encrypted_addresses_do_not_lead_to_plain_ones(sites, certificate, target, fetch, monkeypatch):
    safe, plain = sites(certificate), sites()
    url = safe.url.replace("http:", "https:")
    assert fetch(url).sha256 == SHA256
    safe.always = status(302, Location=plain.url)
    with pytest.raises(FetchError, match="from https to http"):
        fetch(url)
    assert plain.seen == []
    plain.always = status(302, Location=url)
    safe.always = None
    assert fetch(plain.url).sha256 == SHA256
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(FetchError, match="certificate"):
        fetch(url)


def test_head_tells_headers_and_stays_on_its_host(site, sites):
    assert head(site.url)["Content-Length"] == str(len(BODY))
    site.faults = [status(307, Location="/renamed")]
    assert head(site.url)["ETag"] == '"one"'
    assert [(method, path) for method, path, _ in site.seen[-2:]] == [("HEAD", "/data/file.bin"), ("HEAD", "/renamed")]
    other = sites()
    site.faults = [status(302, Location=other.url, X_Linked_Size="5")]
    assert head(site.url)["X-Linked-Size"] == "5"
    assert other.seen == []
    site.faults = [status(404)]
    assert head(site.url) is None
    site.faults = [status(500)]
    assert head(site.url, sleep=lambda _: None) is not None
    site.always = status(401)
    with pytest.raises(FetchError, match="401"):
        head(site.url)


# ---- several connections at once

PARTS = {"smallest_piece": 50_000, "connections": 4}


def test_a_large_file_comes_in_parts(site, target, fetch):
    told = []
    got = fetch(site.url, sha256=SHA256, progress=lambda done, total: told.append((done, total)), **PARTS)
    assert (got.verified, target.read_bytes()) == (True, BODY)
    assert sorted(map(str, site.ranges)) == ["None", "bytes=150000-224999", "bytes=225000-299999", "bytes=75000-149999"]
    assert {headers.get("If-Range") for _, _, headers in site.seen} == {None, '"one"'}
    assert told == sorted(told)
    assert told[-1] == (len(BODY), len(BODY))
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("why", ["no ranges", "no proof", "small"])
def test_parts_are_only_asked_for_where_they_are_safe(site, target, fetch, why):
    if why == "no ranges":
        site.always = lambda site, handler: serve(site, handler, ranges=False)
    if why == "no proof":
        site.etag = None
    fetch(site.url, **(PARTS | {"smallest_piece": 200_000} if why == "small" else PARTS))
    assert site.ranges == [None]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("digest", [SHA256, None], ids=["digest", "no digest"])
@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_got_over_in_parts_too(site, target, fetch, name, digest):
    site.faults = list(PASSING[name])
    assert fetch(site.url, sha256=digest, **PARTS).sha256 == SHA256
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("name", FATAL)
def test_what_does_not_pass_in_parts_ends_in_one_clear_error_or_the_right_file(site, target, fetch, name):
    site.always, says = FATAL[name]
    if name == "stalls for ever":  # each of many connections is given a little, and that adds up
        assert fetch(site.url, sha256=SHA256, **PARTS).verified
        assert target.read_bytes() == BODY
        return
    with pytest.raises(FetchError, match=says):
        fetch(site.url, sha256=SHA256, **PARTS)
    assert not target.exists()


def test_cut_parts_go_on_where_they_stopped(site, target, fetch):
    site.faults = [serve, cut(10_000), cut(20_000), cut(30_000)]
    fetch(site.url, **PARTS)
    assert target.read_bytes() == BODY
    again = [span for span in site.ranges[4:] if span]
    assert len(again) == 3
    assert not {"bytes=75000-149999", "bytes=150000-224999", "bytes=225000-299999"} & set(again)


def test_a_later_run_goes_on_with_the_parts_of_an_interrupted_one(site, target, fetch):
    def interrupt(done, total):
        if done >= 150_000:
            raise KeyboardInterrupt

    site.faults = [serve, serve, cut(10), cut(10)]
    with pytest.raises(KeyboardInterrupt):
        fetch(site.url, progress=interrupt, **PARTS)
    seen = len(site.seen)
    fetch(site.url, **PARTS)
    assert target.read_bytes() == BODY
    assert all(span for span in site.ranges[seen:])


def test_a_server_that_mixes_parts_up_is_asked_once_more_in_one_go(site, target, fetch):
    def mixed_up(site, handler):
        if handler.headers.get("Range"):
            serve(site, handler, body=site.body[::-1])
        else:
            serve(site, handler)

    site.always = mixed_up
    assert fetch(site.url, sha256=SHA256, **PARTS).verified
    assert target.read_bytes() == BODY
    assert site.ranges[-1] is None


@pytest.mark.parametrize("damage", ["[[0, 300000, 900000]]", "[[0, 5, 5]]", "[[5, 300000, 0]]", '"x"', "[[0]]", "[1]"])
def test_a_note_that_cannot_be_right_is_not_believed(site, target, fetch, damage):
    site.faults = [cut()]
    with pytest.raises(FetchError):
        fetch(site.url, attempts=1)
    note = target.with_name("file.bin.part.json")
    note.write_text(note.read_text().replace('"pieces": []', f'"pieces": {damage}'))
    fetch(site.url)
    assert target.read_bytes() == BODY
    assert site.ranges == [None, None]


@given(
    length=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 900), max_size=5),
    connections=st.integers(1, 5),
    smallest=st.integers(1, 900),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_it_is_divided_and_cut_the_file_is_the_same(site, tmp_path, length, cuts, connections, smallest):
    site.body, site.faults = BODY[:length], [cut(after) for after in cuts]
    how = Transfer(attempts=8, timeout=1, connections=connections, smallest_piece=smallest)
    download([site.url], tmp_path / "cut.bin", transfer=how, sleep=lambda _: None)
    assert (tmp_path / "cut.bin").read_bytes() == BODY[:length]
    site.faults.clear()

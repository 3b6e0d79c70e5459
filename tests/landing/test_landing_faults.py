# SPDX-License-Identifier: Apache-2.0
"""Any fault of a file, its link or its server ends in a specific error, with nothing in the bucket."""

from __future__ import annotations

import base64
import hashlib
import logging
import resource
import signal
import time
import traceback
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.exceptions import WanDownloadError, WanError, WanStorageError
from airflow_provider_wan.http.addresses import AddressRefusedError, check_link
from tests.landing.landing_support import FileServer, Serving, box, buy, landing, mp4, mvhd, to
from tests.landing.test_video_file import VIDEOS, encoded
from tests.raw_servers import RawServer, always, reply
from tests.sandboxes import VIDEO_BYTES, Bucket
from wan_sandbox.server import Sandbox

#: call, fault, its parameters, the error message, whether a retry can help
BAD: list[tuple[str, str, dict[str, Any], str, bool]] = [
    ("media", "login_page", {}, r"text/html \(a login or error page\?\) and not a video", True),
    ("media", "html", {}, r"text/html \(a login or error page\?\)", True),
    ("media", "wrong_type", {"content_type": "text/plain"}, "gave text/plain and not a video", True),
    ("media", "wrong_type", {"content_type": "application/json"}, "gave application/json", True),
    ("media", "empty_file", {}, "is empty", True),
    ("media", "empty", {}, "and not a video|is empty", True),
    ("media", "cut_file", {}, "not a whole video: it is cut", True),
    ("media", "cut_file", {"bytes": 1}, "not a whole video: it ends in the middle", True),
    ("media", "cut_file", {"bytes": VIDEO_BYTES - 1}, "not a whole video: it is cut", True),
    ("media", "garbage", {}, "not a whole video", True),
    ("media", "drop_at", {"bytes": 100}, r"broke off after .* of 50000 .*, for", True),
    ("media", "wrong_length", {"add": 1000}, "broke off after 50000 bytes of 51000", True),
    ("media", "wrong_length", {"add": -1000}, "not a whole video: it is cut", True),
    (
        "media",
        "promise",
        {"length": 10**10},
        r"larger than max_size_bytes=2147483648: it has at least 10,000,000,000 bytes",
        False,
    ),
    ("media", "promise", {"length": 10**9}, "broke off after 25000 bytes of 1000000000", True),
    ("media", "stall", {"bytes": 1000}, "broke off after 2000 bytes of 50000", True),
    ("media", "drip", {"every_s": 0.02, "bytes": 8}, r"broke off after .*only \d+ bytes in", True),
    ("media", "hang", {}, "broke off after 0 bytes", True),
    ("media", "reset", {}, "broke off after 0 bytes", True),
    ("media", "expired", {}, "link to the video .* does not work any more", True),
    ("media", "status", {"status": 404}, "does not work any more", True),
    ("media", "status", {"status": 503}, "HTTP 503", True),
    ("media", "status", {"status": 451}, "HTTP 451 from the file server", True),
    ("media", "status", {"status": 429, "retry_after": "31536000"}, "asks to wait 31536000 s", True),
    ("media", "redirect", {}, r"leads to 169\.254\.169\.254, which is not among the hosts", False),
    ("media", "redirect", {"location": "https://evil.example.com/v.mp4"}, "leads to evil.example.com", False),
    ("media", "redirect", {"location": "file:///etc/passwd"}, "or no host", False),
    ("media", "redirect", {"location": "//[broken"}, "no address", False),
    ("media", "redirect", {"location": "https://u:p@files.example.com/"}, "carries credentials", False),
    ("media", "redirect", {"location": ""}, "too many redirects", False),
    ("result", "link_other_host", {}, "leads to files.example.com, which is not among the hosts", False),
    ("result", "link_private", {}, r"leads to 169\.254\.169\.254", False),
    ("result", "link_http", {}, "leads to files.example.com", False),
    ("result", "link_credentials", {}, "carries credentials", False),
]


@pytest.mark.parametrize(("call", "fault", "params", "said", "retry_helps"), BAD, ids=str)
def test_each_bad_file_or_link_is_its_own_error(
    bucket: Bucket,
    sandbox: Sandbox,
    call: str,
    fault: str,
    params: dict[str, Any],
    said: str,
    retry_helps: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    record = buy()
    sandbox.add_fault(call, fault, **params)
    with pytest.raises(WanDownloadError, match=said) as caught:
        landing(bucket, tries=2, head_s=2, stall_s=2).land(record, to(bucket))
    assert caught.value.retry_helps is retry_helps
    assert str(record.request_id) in str(caught.value)
    assert bucket.objects() == {}
    for text in ("".join(traceback.format_exception(caught.value)), caplog.text):
        assert "Signature" not in text
        assert "secret" not in text
    ledger = sandbox.ledger()
    assert not ledger["token_leaked"]
    assert not ledger["too_early"]


#: Temporary faults, one after the other.
PASSING: list[list[tuple[str, str, dict[str, Any]]]] = [
    [("media", "drop_at", {"count": 3})],
    [("media", "stall", {"count": 1})],
    [("media", "drip", {"every_s": 0.02, "bytes": 8, "count": 1})],
    [("media", "reset", {"count": 2}), ("media", "hang", {"count": 1})],
    [("media", "status", {"status": 503, "count": 2}), ("media", "status", {"status": 429, "count": 1})],
    [("media", "status", {"status": 503, "retry_after": "1", "count": 1})],
    [("media", "wrong_length", {"add": 1000, "count": 1})],
    [("media", "drop_at", {"count": 1}), ("media", "no_ranges", {"count": 1})],
    [("media", "drop_at", {"count": 1}), ("media", "wrong_range", {"count": 1})],
    [("media", "expired", {"count": 2})],
    [("media", "drop_at", {"count": 1}), ("media", "expired", {"count": 1})],
    [("media", "chunked", {})],
    [("media", "no_type", {})],
    [("media", "no_etag", {})],
    [("media", "wrong_type", {"content_type": "application/octet-stream"})],
    [("result", "status", {"status": 502, "count": 2})],
]


@pytest.mark.parametrize("faults", PASSING, ids=str)
def test_temporary_failures_are_outlasted(
    bucket: Bucket, sandbox: Sandbox, faults: list[tuple[str, str, dict[str, Any]]]
) -> None:
    record = buy()
    for call, fault, params in faults:
        sandbox.add_fault(call, fault, **params)
    asked = any("retry_after" in params for _, _, params in faults)
    patient = landing(bucket, head_s=2, stall_s=2, **({"sleep": time.sleep} if asked else {}))
    landed = patient.land(record, to(bucket))
    assert (landed.videos[0].size_bytes, landed.videos[0].crc32c) == (
        VIDEO_BYTES,
        bucket.objects()["v/clip.mp4"]["crc32c"],
    )
    assert not sandbox.ledger()["too_early"]


def test_expired_link_is_renewed_twice(bucket: Bucket, sandbox: Sandbox) -> None:
    record = buy()
    sandbox.add_fault("media", "expired")
    with pytest.raises(WanDownloadError):
        landing(bucket).land(record, to(bucket))
    calls = sandbox.ledger()["calls"]
    assert (calls["media"], calls["result"]) == (3, 3)


def test_a_redirect_within_the_list_is_followed(bucket: Bucket, sandbox: Sandbox) -> None:
    with FileServer(Serving(mp4())) as files:
        record = buy()
        sandbox.add_fault("media", "redirect", location=f"{files.url}/moved.mp4", status=308)
        landing(bucket, [sandbox.url, files.url]).land(record, to(bucket))
        assert bucket.read("v/clip.mp4") == mp4()


def test_a_redirect_to_another_port_of_the_same_host_gets_no_byte(bucket: Bucket, sandbox: Sandbox) -> None:
    with RawServer(always(reply(mp4()))) as elsewhere:
        record = buy()
        sandbox.add_fault("media", "redirect", location=f"{elsewhere.url}/v.mp4")
        with pytest.raises(WanDownloadError, match="not among the hosts"):
            landing(bucket).land(record, to(bucket))
        assert not elsewhere.connections


HOSTS = (
    "*.runcomfy.net",
    "cdn.example.com",
    "http://127.0.0.1:8787",
    "https://[::1]:8443",
    "https://own.example",
)


@pytest.mark.parametrize(
    "url",
    [
        "https://files.runcomfy.net/a.mp4",
        "https://FILES.RunComfy.NET:443/a.mp4",
        "https://a.b.runcomfy.net/a?Expires=1&Signature=x#t",
        "https://cdn.example.com/a",
        "http://127.0.0.1:8787/media/a.mp4",
        "https://[::1]:8443/a",
        "https://own.example:443/a",
        "https://files.runcomfy.net./a.mp4",
    ],
)
def test_a_link_on_the_list_may_be_followed(url: str) -> None:
    check_link(url, HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        "http://files.runcomfy.net/a.mp4",
        "https://files.runcomfy.net:8443/a.mp4",
        "https://runcomfy.net/a.mp4",
        "https://evilruncomfy.net/a.mp4",
        "https://files.runcomfy.net.evil.com/a.mp4",
        "https://evil.com/files.runcomfy.net",
        "https://evil.com?files.runcomfy.net",
        "https://evil.com#.runcomfy.net",
        "https://evil.com\\.runcomfy.net/",
        "https://evil.com%2f.runcomfy.net/",
        "https://evil.com%00.runcomfy.net/",
        "https://files.runcomfy.net@evil.com/",
        "https://user@files.runcomfy.net/",
        "https://:password@files.runcomfy.net/",
        "https://@files.runcomfy.net/",
        "https://fi\tles.runcomfy.net/",
        "https://files.runcomfy.net/a\r\nHost: evil.com",
        " https://files.runcomfy.net/",
        "https://files.runcomfy.net:99999/",
        "https://files.runcomfy.net:x/",
        "https://files。runcomfy.net/",
        "https://[::1/",
        "https://",
        "https:files.runcomfy.net",
        "//files.runcomfy.net/a",
        "ftp://files.runcomfy.net/a",
        "file:///etc/passwd",
        "data:video/mp4;base64,AAAA",
        "http://127.0.0.1:8788/a",
        "https://127.0.0.1:8787/a",
        "http://127.0.0.1/a",
        "http://0x7f.1:8787/a",
        "http://cdn.example.com/a",
        "",
    ],
)
def test_no_other_link_may_be_followed(url: str) -> None:
    with pytest.raises(AddressRefusedError) as caught:
        check_link(url, HOSTS)
    assert "password" not in str(caught.value)


@pytest.fixture
def record(sandbox: Sandbox) -> Record:
    return buy()


def land_from(files: FileServer, record: Record, bucket: Bucket, sandbox: Sandbox, **policy: Any) -> None:
    """Land the one file of a server as the video of a request."""
    rule = sandbox.add_fault("result", "link", url=f"{files.url}/v.mp4")
    try:
        landing(bucket, [files.url], **policy).land(record, to(bucket))
    finally:
        sandbox.control(f"faults/{rule}", method="DELETE")


def test_interrupted_download_resumes_at_its_offset(bucket: Bucket, sandbox: Sandbox, record: Record) -> None:
    file = mp4(bytes(range(256)) * 100)
    with FileServer(Serving(file, cut=10_000), Serving(file, cut=5_000), Serving(file)) as files:
        land_from(files, record, bucket, sandbox)
    assert bucket.read("v/clip.mp4") == file
    asked = [sorted(line for line in head.split("\r\n") if "ange:" in line) for head in files.heads]
    assert asked == [[], *(['If-Range: "1"', f"Range: bytes={at}-"] for at in (10_000, 15_000))]


@pytest.mark.parametrize("ranges", ["yes", "no", "blind"])
def test_file_that_changes_between_two_connections_is_downloaded_again(
    bucket: Bucket, sandbox: Sandbox, record: Record, ranges: Any
) -> None:
    old, new = mp4(b"o" * 20_000), mp4(b"n" * 20_000)
    with FileServer(Serving(old, cut=10_000), Serving(new, etag='"2"', ranges=ranges)) as files:
        land_from(files, record, bucket, sandbox)
    assert bucket.read("v/clip.mp4") == new


def test_a_file_without_a_validator_is_fetched_from_the_start(bucket: Bucket, sandbox: Sandbox, record: Record) -> None:
    old, new = mp4(b"o" * 20_000), mp4(b"n" * 20_000)
    plans = Serving(old, etag=None, cut=10_000), Serving(new, etag=None, ranges="blind")
    with FileServer(*plans) as files:
        land_from(files, record, bucket, sandbox)
    assert bucket.read("v/clip.mp4") == new
    assert not [head for head in files.heads if "range:" in head.lower()]


def test_breaks_without_end_are_outlasted_as_long_as_the_file_grows(
    bucket: Bucket, sandbox: Sandbox, record: Record
) -> None:
    file = mp4(bytes(9_000_000))
    with FileServer(Serving(file, cut=1_100_000)) as files:
        land_from(files, record, bucket, sandbox, tries=2)
        assert files.connections == 9
    assert bucket.objects()["v/clip.mp4"]["size_bytes"] == len(file)


def test_server_that_always_restarts_the_file_fails_the_download(
    bucket: Bucket, sandbox: Sandbox, record: Record
) -> None:
    file = mp4(bytes(9_000_000))
    with FileServer(Serving(file, cut=2_000_000, ranges="no")) as files:
        with pytest.raises(WanDownloadError, match="broke off"):
            land_from(files, record, bucket, sandbox, tries=3)
        assert files.connections == 3
    assert bucket.objects() == {}


def test_a_file_without_a_length_lands_only_if_its_boxes_end(bucket: Bucket, sandbox: Sandbox, record: Record) -> None:
    open_ended = mp4()[:-14] + box(b"mdat", b"frames", size=0)
    with (
        FileServer(Serving(open_ended, framing="close")) as files,
        pytest.raises(WanDownloadError, match="cannot be checked whether it is whole"),
    ):
        land_from(files, record, bucket, sandbox)
    with FileServer(Serving(mp4(), framing="close", cut=60)) as files, pytest.raises(WanDownloadError):
        land_from(files, record, bucket, sandbox)
    assert bucket.objects() == {}
    with FileServer(Serving(mp4(), framing="close")) as files:
        land_from(files, record, bucket, sandbox)
    assert bucket.read("v/clip.mp4") == mp4()


def test_more_than_the_size_limit_is_refused_without_reading_on(
    bucket: Bucket, sandbox: Sandbox, record: Record
) -> None:
    file = mp4(bytes(500_000))
    for framing in ("length", "chunked", "close"):
        with (
            FileServer(Serving(file, framing=framing)) as files,  # type: ignore[arg-type]
            pytest.raises(WanDownloadError, match="larger than max_size_bytes=400000") as caught,
        ):
            land_from(files, record, bucket, sandbox, max_size_bytes=400_000)
        assert not caught.value.retry_helps
        assert files.connections == 1
    assert bucket.objects() == {}


def test_a_length_beyond_all_numbers_is_an_ordinary_error(bucket: Bucket, sandbox: Sandbox, record: Record) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"
    with RawServer(always(head + mp4()[:50])) as wire:
        sandbox.add_fault("result", "link", url=wire.url)
        with pytest.raises(WanDownloadError):
            landing(bucket, [wire.url], tries=1).land(record, to(bucket))
    assert bucket.objects() == {}


def test_a_file_that_is_sent_encoded_is_refused(bucket: Bucket, sandbox: Sandbox, record: Record) -> None:
    with RawServer(always(reply(mp4(), Content_Type="video/mp4", Content_Encoding="gzip"))) as wire:
        sandbox.add_fault("result", "link", url=wire.url)
        with pytest.raises(WanDownloadError, match="encoded"):
            landing(bucket, [wire.url]).land(record, to(bucket))
    assert bucket.objects() == {}


@pytest.mark.parametrize("kind", ["webm", "quicktime"])
def test_a_video_is_landed_by_its_real_type(bucket: Bucket, sandbox: Sandbox, record: Record, kind: str) -> None:
    options, content_type = VIDEOS[kind]
    with FileServer(Serving(encoded(**options), content_type="application/octet-stream")) as files:
        land_from(files, record, bucket, sandbox)
    assert bucket.client.bucket(bucket.name).get_blob("v/clip.mp4").content_type == content_type


CHECKSUMS = {
    "x-goog-hash": lambda data: f"crc32c=AAAAAA==,md5={_base64(hashlib.md5(data).digest())}",
    "Content-MD5": lambda data: _base64(hashlib.md5(data).digest()),
    "Digest": lambda data: f"sha-256={_base64(hashlib.sha256(data).digest())}",
    "Repr-Digest": lambda data: f"sha-256=:{_base64(hashlib.sha256(data).digest())}:",
    "X-Goog-Generation": lambda data: f'1\r\nETag: "{hashlib.md5(data).hexdigest()}"',
}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


@pytest.mark.parametrize("header", CHECKSUMS)
def test_a_file_that_differs_from_the_checksum_of_its_source_is_fetched_again(
    bucket: Bucket, sandbox: Sandbox, record: Record, header: str
) -> None:
    good, damaged = mp4(b"g" * 9000), mp4(b"d" * 9000)
    given = f"{header}: {CHECKSUMS[header](good)}".replace("crc32c=AAAAAA==,", "")
    plans = [Serving(damaged, etag=None, more=given), Serving(good, etag=None, more=given)]
    with FileServer(*plans) as files:
        land_from(files, record, bucket, sandbox)
        assert files.connections == 2
    assert bucket.read("v/clip.mp4") == good


@pytest.mark.parametrize("asked_s", [120, 7200])
def test_a_long_wait_that_a_file_server_asks_for_travels_with_the_error(
    bucket: Bucket, sandbox: Sandbox, asked_s: int
) -> None:
    """The task does not sleep for that long: it would hold the worker slot."""
    record = buy()
    sandbox.add_fault("media", "status", status=503, retry_after=str(asked_s))
    with pytest.raises(WanDownloadError, match=f"asks to wait {asked_s} s") as caught:
        landing(bucket).land(record, to(bucket))
    assert caught.value.retry_after_s == asked_s
    assert sandbox.ledger()["calls"]["media"] == 1


@pytest.mark.parametrize("size", [6_003_000, 8_000_000], ids=["at the very end", "on the way"])
def test_full_temporary_directory_is_reported(bucket: Bucket, sandbox: Sandbox, record: Record, size: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with FileServer(Serving(mp4(bytes(size)))) as files:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, before[1]))
        try:
            with pytest.raises(WanDownloadError, match=r"temporary directory .* TMPDIR"):
                land_from(files, record, bucket, sandbox)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, old)
        assert files.connections == 1


FILES = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda payload: mp4(payload), st.binary(max_size=3000)),
    st.builds(lambda tail: mp4() + tail, st.binary(max_size=30)),
    st.builds(lambda body: box(b"ftyp") + box(b"mdat", body) + box(b"moov", mvhd()), st.binary(max_size=500)),
)
CONNECTIONS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(st.none(), st.integers(0, 3000)),
        st.sampled_from(["length", "chunked", "close"]),
        st.sampled_from(["yes", "no", "blind"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=FILES, second=FILES, connections=CONNECTIONS)
def test_any_bytes_with_any_cuts_land_complete_or_not_at_all(
    bucket: Bucket, sandbox: Sandbox, record: Record, first: bytes, second: bytes, connections: list[Any]
) -> None:
    for name in bucket.objects():
        bucket.client.bucket(bucket.name).blob(name).delete()
    versions = [first, second]
    plans = [
        Serving(versions[which], etag=f'"{which}"' if tagged else None, cut=cut, framing=framing, ranges=ranges)
        for which, cut, framing, ranges, tagged in connections
    ]
    with FileServer(*plans) as files:
        try:
            land_from(files, record, bucket, sandbox, tries=3)
        except WanError:
            assert bucket.objects() == {}
        else:
            assert bucket.read("v/clip.mp4") in versions


# -- the bucket's own trouble ----------------------------------------------------------------------------------

STUMBLES = [
    ("reset", {}),
    ("lost_ack", {}),
    ("status", {"status": 503}),
    ("quota", {}),
    ("hang", {"seconds": 0.2}),
]


@pytest.mark.parametrize(("fault", "params"), STUMBLES, ids=str)
def test_failing_bucket_receives_one_complete_object(
    bucket: Bucket, sandbox: Sandbox, fault: str, params: dict[str, Any]
) -> None:
    record = buy()
    for call in ("bucket.upload", "bucket.metadata"):
        if fault != "lost_ack" or call == "bucket.upload":
            sandbox.add_fault(call, fault, count=1, **params)
    landed = landing(bucket).land(record, to(bucket))
    assert [one["writes"] for one in bucket.objects().values()] == [1, 1, 1]
    assert landed.videos[0].generation == bucket.objects()["v/clip.mp4"]["generation"]
    assert sandbox.ledger()["calls"]["media"] == 1


@pytest.mark.parametrize(("fault", "params"), STUMBLES, ids=str)
def test_large_upload_resumes_where_it_was_interrupted(
    bucket: Bucket, sandbox: Sandbox, record: Record, fault: str, params: dict[str, Any]
) -> None:
    file = mp4(bytes(17 * 1024 * 1024))
    for call in ("bucket.upload.start", "bucket.upload.chunk"):
        sandbox.add_fault(call, fault, count=1, **params)
    sandbox.add_fault("bucket.upload.chunk", fault, count=1, skip=1, **params)
    with FileServer(Serving(file)) as files:
        land_from(files, record, bucket, sandbox)
    stored = bucket.objects()["v/clip.mp4"]
    assert (stored["size_bytes"], stored["writes"]) == (len(file), 1)


@pytest.mark.parametrize("size", [1000, 17 * 1024 * 1024], ids=["small", "large"])
def test_a_damaged_upload_never_becomes_an_object(bucket: Bucket, sandbox: Sandbox, record: Record, size: int) -> None:
    for call in ("bucket.upload", "bucket.upload.chunk"):
        sandbox.add_fault(call, "corrupt", at="wire", count=1)
    with FileServer(Serving(mp4(bytes(size)))) as files:
        with pytest.raises(WanStorageError) as caught:
            land_from(files, record, bucket, sandbox)
        assert caught.value.retry_helps
        assert bucket.objects() == {}
        land_from(files, record, bucket, sandbox)
    assert bucket.objects()["v/clip.mp4"]["writes"] == 1


@pytest.mark.parametrize(
    ("call", "fault", "params", "said"),
    [
        ("bucket.metadata", "forbidden", {}, "roles/storage.objectUser"),
        ("bucket.upload", "forbidden", {}, "roles/storage.objectUser"),
        ("bucket.*", "status", {"status": 503}, "failed"),
        ("bucket.upload", "quota", {}, "failed"),
        ("bucket.upload", "reset", {}, "failed"),
        ("bucket.upload", "precondition", {}, "failed"),
    ],
)
def test_a_bucket_that_is_out_is_an_error_of_its_own_and_bounded(
    bucket: Bucket,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    fault: str,
    params: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setattr("airflow_provider_wan.hooks.gcs.RETRY_FOR_S", 0.2)
    monkeypatch.setattr("airflow_provider_wan.landing.objects.UPLOAD_RETRY_FOR_S", 0.2)
    record = buy()
    sandbox.add_fault(call, fault, **params)
    with pytest.raises(WanStorageError, match=said) as caught:
        landing(bucket).land(record, to(bucket))
    assert caught.value.retry_helps is (fault != "forbidden")
    assert "http" not in str(caught.value)
    assert bucket.objects() == {}
    if call != "bucket.upload":
        assert "media" not in sandbox.ledger()["calls"], "nothing is fetched for a bucket that is out"


def test_missing_bucket_is_reported(bucket: Bucket, sandbox: Sandbox) -> None:
    with pytest.raises(WanStorageError, match=r"no such bucket or object|failed"):
        landing(bucket).land(buy(), to(Bucket(bucket.client, "no-such-bucket", sandbox)))


def test_a_file_of_empty_boxes_does_not_land(bucket: Bucket, sandbox: Sandbox, record: Record) -> None:
    empty = box(b"ftyp", b"isom\0\0\0\1") + box(b"moov") + box(b"mdat")
    assert len(empty) == 32
    with FileServer(Serving(empty)) as files, pytest.raises(WanDownloadError, match="no 'mvhd' box"):
        land_from(files, record, bucket, sandbox)
    assert bucket.objects() == {}

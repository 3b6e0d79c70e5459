# SPDX-License-Identifier: Apache-2.0
"""Downloads: public links that expire, ranges, and every way in which a file or its sending can be wrong."""

from __future__ import annotations

import hashlib
import socket
from typing import Any

import pytest
import requests

from sandbox.tests.api_client import Client, download, eventually
from sandbox.tests.conftest import VIDEO_BYTES
from wan_sandbox.server import Sandbox


@pytest.fixture
def link(client: Client) -> str:
    return client.link(client.done())


def test_a_file_comes_with_length_type_and_etag(link: str) -> None:
    answer = download(link)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "video/mp4"
    assert int(answer.headers["Content-Length"]) == len(answer.content) == VIDEO_BYTES
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == download(link).headers["ETag"]


def test_a_head_tells_the_same_without_the_file(link: str) -> None:
    answer = requests.head(link, timeout=10)
    assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(VIDEO_BYTES))
    assert answer.content == b""


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=100-", 100, VIDEO_BYTES),
        ("bytes=-7", VIDEO_BYTES - 7, VIDEO_BYTES),
        (f"bytes=49990-{VIDEO_BYTES + 99}", 49_990, VIDEO_BYTES),
    ],
)
def test_a_range_gives_that_part(link: str, asked: str, start: int, stop: int) -> None:
    whole = download(link).content
    answer = download(link, Range=asked)
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{VIDEO_BYTES}"
    assert answer.content == whole[start:stop]


@pytest.mark.parametrize("asked", ["bytes=a-b", "bytes=0-1,5-6", "lines=1-2", "bytes=-"])
def test_a_range_that_means_nothing_gives_the_whole(link: str, asked: str) -> None:
    answer = download(link, Range=asked)
    assert (answer.status_code, len(answer.content)) == (200, VIDEO_BYTES)


def test_a_range_behind_the_end_is_416(link: str) -> None:
    answer = download(link, Range=f"bytes={VIDEO_BYTES}-")
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{VIDEO_BYTES}")


def test_if_range_gives_the_part_only_of_the_same_file(link: str) -> None:
    etag = download(link).headers["ETag"]
    assert download(link, **{"Range": "bytes=10-", "If-Range": etag}).status_code == 206
    assert download(link, **{"Range": "bytes=10-", "If-Range": '"other"'}).status_code == 200


def test_a_token_on_a_public_link_is_refused_and_noted_without_the_token(client: Client, link: str) -> None:
    answer = download(link, Authorization="Bearer sandbox-token")
    assert answer.status_code == 400
    assert download(f"{link}&token=sandbox-token").status_code == 400
    leaks = client.sandbox.ledger()["token_leaked"]
    assert [leak["where"] for leak in leaks] == ["Authorization", "URL"]
    assert "sandbox-token" not in str(leaks)


def test_a_link_expires_and_the_result_gives_a_fresh_one() -> None:
    with Sandbox(video_bytes=VIDEO_BYTES, check_images=False, link_ttl_seconds=1) as sandbox:
        client = Client(sandbox)
        request_id = client.done()
        link = client.link(request_id)
        eventually(lambda: not download(link).ok)
        expired = download(link)
        assert (expired.status_code, expired.headers["Content-Type"]) == (
            403,
            "application/xml; charset=utf-8",
        )
        assert download(client.link(request_id)).status_code == 200


def test_a_link_that_was_changed_does_not_work(link: str) -> None:
    expires = link.partition("Expires=")[2].partition("&")[0]
    assert download(link.replace(expires, str(int(expires) + 1000))).status_code == 403
    assert download(link.partition("?")[0]).status_code == 403


def read_raw(link: str) -> bytes:
    """Read an answer to its end, whatever its header promises."""
    host, _, path = link.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port)), timeout=10) as connection:
        connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        parts = []
        try:
            while part := connection.recv(1 << 16):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


def body_and_head(link: str) -> tuple[str, bytes]:
    head, _, body = read_raw(link).partition(b"\r\n\r\n")
    return head.decode(), body


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "length"),
    [
        ({"fault": "login_page"}, 200, "text/html", None),
        ({"fault": "html"}, 200, "text/html", None),
        ({"fault": "expired"}, 403, "application/xml", None),
        ({"fault": "empty_file"}, 200, "video/mp4", 0),
        ({"fault": "cut_file", "bytes": 30_000}, 200, "video/mp4", 30_000),
        ({"fault": "cut_file", "part": 0.9}, 200, "video/mp4", 45_000),
        ({"fault": "wrong_type"}, 200, "text/plain", VIDEO_BYTES),
        ({"fault": "wrong_type", "content_type": "application/json"}, 200, "application/json", VIDEO_BYTES),
        ({"fault": "no_type"}, 200, "", VIDEO_BYTES),
        ({"fault": "garbage", "bytes": 300_000}, 200, "video/mp4", 300_000),
        ({"fault": "chunked"}, 200, "video/mp4", VIDEO_BYTES),
        ({"fault": "endless", "bytes": 700_000}, 200, "video/mp4", 700_000),
        ({"fault": "status", "status": 404, "body": "html"}, 404, "text/html", None),
        ({"fault": "shape", "latency_s": 0.01, "bytes_per_s": 5_000_000}, 200, "video/mp4", VIDEO_BYTES),
        ({"fault": "drip", "bytes": 20_000, "every_s": 0.001}, 200, "video/mp4", VIDEO_BYTES),
        ({"fault": "delay", "seconds": 0.01}, 200, "video/mp4", VIDEO_BYTES),
    ],
    ids=lambda value: value["fault"] if isinstance(value, dict) else "",
)
def test_a_spoiled_download_arrives_as_the_fault_says(
    client: Client, link: str, fault: dict[str, Any], status: int, content_type: str, length: int | None
) -> None:
    client.sandbox.add_fault("media", **fault)
    answer = download(link)
    assert answer.status_code == status
    assert answer.headers.get("Content-Type", "").partition(";")[0] == content_type
    if length is not None:
        assert len(answer.content) == length
    if fault["fault"] in {"chunked", "endless"}:
        assert "Content-Length" not in answer.headers
    client.sandbox.clear_faults()
    assert len(download(link).content) == VIDEO_BYTES


def test_a_cut_connection_is_resumed_by_range(client: Client, link: str) -> None:
    whole = download(link).content
    client.sandbox.add_fault("media", "drop_at", bytes=12_345, count=1)
    head, body = body_and_head(link)
    assert f"Content-Length: {VIDEO_BYTES}" in head
    assert body == whole[:12_345]
    assert body + download(link, Range="bytes=12345-").content == whole


@pytest.mark.parametrize(
    ("add", "promised", "sent"),
    [(1000, VIDEO_BYTES + 1000, VIDEO_BYTES), (-1000, VIDEO_BYTES - 1000, VIDEO_BYTES - 1000)],
)
def test_a_wrong_length_is_promised(client: Client, link: str, add: int, promised: int, sent: int) -> None:
    client.sandbox.add_fault("media", "wrong_length", add=add)
    head, body = body_and_head(link)
    assert f"Content-Length: {promised}" in head
    assert len(body) == sent


def test_ten_gigabytes_are_promised_and_never_come(client: Client, link: str) -> None:
    client.sandbox.add_fault("media", "promise", seconds=0.1)
    head, body = body_and_head(link)
    assert "Content-Length: 10000000000" in head
    assert len(body) == VIDEO_BYTES // 2


def test_a_stall_sends_a_part_and_then_nothing(client: Client, link: str) -> None:
    client.sandbox.add_fault("media", "stall", bytes=1000)
    answer = requests.get(link, stream=True, timeout=2)
    with answer, pytest.raises(requests.ConnectionError, match="timed out"):
        list(answer.iter_content(100))


def test_a_file_can_change_between_two_parts(client: Client, link: str) -> None:
    client.sandbox.add_fault("media", "changed_etag")
    first = download(link, Range="bytes=0-99")
    second = download(link, **{"Range": "bytes=100-", "If-Range": first.headers["ETag"]})
    assert first.status_code == 206
    assert second.status_code == 200
    assert second.headers["ETag"] != first.headers["ETag"]
    assert second.content.endswith(b"free")


def test_a_server_can_be_without_etag_or_ranges_or_give_the_wrong_part(client: Client, link: str) -> None:
    whole = download(link).content
    sandbox = client.sandbox
    sandbox.add_fault("media", "no_etag", count=1)
    assert not {"ETag", "Last-Modified"} & set(download(link).headers)
    sandbox.add_fault("media", "no_ranges", count=1)
    answer = download(link, Range="bytes=5-")
    assert (answer.status_code, answer.headers["Accept-Ranges"]) == (200, "none")
    sandbox.add_fault("media", "wrong_range", count=1)
    answer = download(link, Range="bytes=5-9")
    assert (answer.headers["Content-Range"], answer.content) == (f"bytes 0-9/{VIDEO_BYTES}", whole[:10])


def test_a_download_can_be_redirected_anywhere(client: Client, link: str) -> None:
    client.sandbox.add_fault("media", "redirect", count=1)
    assert download(link).headers["Location"].startswith("http://169.254.169.254/")
    client.sandbox.add_fault("media", "redirect", status=307, location="https://evil.example.com/a")
    answer = download(link)
    assert (answer.status_code, answer.headers["Location"]) == (307, "https://evil.example.com/a")


def test_garbage_is_the_same_garbage_in_parts(client: Client, link: str) -> None:
    client.sandbox.add_fault("media", "garbage", bytes=600_000)
    whole = download(link).content
    assert hashlib.sha256(whole).digest() == hashlib.sha256(download(link).content).digest()
    assert download(link, Range="bytes=300000-").content == whole[300_000:]


def test_a_request_that_is_not_done_has_no_file(client: Client) -> None:
    request_id = client.buy()
    assert download(f"{client.sandbox.url}/media/{request_id}/video-0.mp4").status_code == 403
    assert download(f"{client.sandbox.url}/media/none/video-0.mp4").status_code == 404

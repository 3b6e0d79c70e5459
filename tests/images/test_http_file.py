# SPDX-License-Identifier: Apache-2.0
"""Images at https URLs, over real sockets: their beginning and whole files, from correct and faulty servers."""

from __future__ import annotations

import base64
import hashlib
import socket
import traceback
from collections.abc import Callable
from contextlib import closing, suppress

import google_crc32c
import pytest

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.readers import WEB_MOST_BYTES, WebReader
from tests.image_samples import encoded, noise, photo
from tests.raw_servers import (
    Answer,
    RawServer,
    always,
    closed_port,
    drip,
    read_head,
    read_request,
    reply,
)

#: Not spelled out: a traceback shows the lines of this file too.
SECRET = "ab" * 20
FILE = bytes(range(256)) * 12_000  # 3 MB


def read(url: str, start: int, length: int, *, allow_private: bool = True) -> tuple[bytes, int | None]:
    with closing(WebReader(url, allow_private=allow_private, total_s=5)) as reader:
        return reader.read(start, length), reader.size_bytes


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 100), (777, 5), (0, 2_500_000), (2_999_000, 100), (3_071_990, 100), (len(FILE), 10)],
)
def test_part_of_a_file_is_read_with_one_request(start: int, length: int) -> None:
    heads: list[str] = []
    with RawServer(always(reply(FILE), heads=heads)) as wire:
        assert read(wire.url, start, length) == (FILE[start : start + length], len(FILE))
    assert len(heads) == 1
    assert "Range:" not in heads[0]


def test_several_parts_of_a_file_are_read_with_one_request() -> None:
    heads: list[str] = []
    with (
        RawServer(always(reply(FILE), heads=heads)) as wire,
        closing(WebReader(wire.url, allow_private=True)) as reader,
    ):
        assert reader.read(500_000, 10) == FILE[500_000:500_010]
        assert reader.read(5, 10) == FILE[5:15]
        assert reader.size_bytes == len(FILE)
    assert len(heads) == 1


def test_file_is_read_no_further_than_needed() -> None:
    sent: list[int] = []

    def answer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n")
        with suppress(OSError):
            for _ in range(600):
                sock.sendall(bytes(100_000))
                sent.append(100_000)

    with RawServer(answer) as wire:
        assert read(wire.url, 0, 1000) == (bytes(1000), 60_000_000)
    assert sum(sent) < 60_000_000


def test_server_that_sends_a_part_unasked_is_refused() -> None:
    part = reply(FILE[:100], "206 Partial Content", Content_Range=f"bytes 0-99/{len(FILE)}")
    with RawServer(always(part)) as wire, pytest.raises(WanDownloadError, match="gave another one"):
        read(wire.url, 0, 100)


def test_no_more_is_read_than_is_loaded_of_a_whole_file() -> None:
    with (
        RawServer(always(reply(FILE))) as wire,
        pytest.raises(WanInputError, match="are not read from the web"),
    ):
        read(wire.url, WEB_MOST_BYTES, 1)


def test_a_length_beyond_all_numbers_is_an_ordinary_error() -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nbody"
    with RawServer(always(head)) as wire, suppress(WanDownloadError):
        assert read(wire.url, 0, 4)[0] == b"body"


@pytest.mark.parametrize("location", ["http://[broken/", "//[::1"])
def test_a_redirect_to_a_malformed_address_is_refused(location: str) -> None:
    with (
        RawServer(always(reply(status="302 Found", Location=location))) as wire,
        pytest.raises(WanInputError, match="no address"),
    ):
        read(wire.url, 0, 10)


def test_a_redirect_is_followed_and_its_target_checked() -> None:
    with (
        RawServer(always(reply(FILE))) as there,
        RawServer(always(reply(status="307 On", Location=f"{there.url}/b"))) as wire,
    ):
        assert read(wire.url, 3, 10)[0] == FILE[3:13]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_a_private_host_is_refused_unless_the_connection_allows_it(host: str) -> None:
    with RawServer(always(reply(FILE))) as wire:
        with pytest.raises(WanDownloadError, match="allow_private_images") as caught:
            read(f"http://{host}:{wire.port}/a.jpg", 0, 10, allow_private=False)
        assert not caught.value.retry_helps
        assert not wire.connections


def test_nothing_is_sent_to_a_name_that_resolves_to_a_private_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **kw: look_up("127.0.0.1", *more, **kw))
    heads: list[str] = []
    with (
        RawServer(always(reply(FILE), heads=heads)) as wire,
        pytest.raises(WanDownloadError, match="is not public") as caught,
    ):
        read(f"http://images.example.com:{wire.port}/a.jpg", 0, 10, allow_private=False)
    assert not caught.value.retry_helps
    assert not heads


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("401 Unauthorized", WanInputError),
        ("403 Forbidden", WanInputError),
        ("404 Not Found", WanInputError),
        ("410 Gone", WanInputError),
        ("408 Timeout", WanDownloadError),
        ("429 Busy", WanDownloadError),
        ("500 Error", WanDownloadError),
        ("204 Nothing", WanDownloadError),
    ],
)
def test_an_error_answer_is_reported(status: str, kind: type[Exception]) -> None:
    answer = always(reply(b"no", status=status))
    for call in (
        lambda url: read(url, 0, 10),
        lambda url: WebReader(url, allow_private=True).read_all(),
    ):
        with RawServer(answer) as wire, pytest.raises(kind, match="Nothing was") as refused:
            call(f"{wire.url}/a.jpg?X-Amz-Signature={SECRET}")
        said = str(refused.value)
        assert f"/a.jpg answers an anonymous reader with HTTP {status[:3]}" in said or status[0] == "2"
        assert SECRET not in said
        assert "RunComfy" not in said, "only what was seen"


@pytest.mark.parametrize("where", ["refused", "cut", "garbage", "not tls"])
def test_server_that_is_down_is_a_retryable_error(where: str) -> None:
    def cut(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(reply(FILE[:1000])[:500])

    def no_tls(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with RawServer(cut) as cuts, RawServer(always(b"\0\0\0\0")) as garbage, RawServer(no_tls) as plain:
        url = {
            "refused": f"http://127.0.0.1:{closed_port()}",
            "cut": cuts.url,
            "garbage": garbage.url,
            "not tls": f"https://127.0.0.1:{plain.port}",
        }[where]
        with pytest.raises(WanDownloadError, match="could not be read") as caught:
            read(f"{url}/a.jpg?X-Amz-Signature={SECRET}", 0, 1000)
    assert caught.value.retry_helps
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# -- whole images ----------------------------------------------------------------------------------------------------


JPEG = encoded(photo(), "JPEG")


def whole(answer: Answer, *, limit_bytes: int = 1_000_000, total_s: float = 10.0) -> bytes:
    with RawServer(answer) as server:
        reader = WebReader(f"{server.url}/a.jpg?sig=s3cret", allow_private=True, total_s=total_s)
        return reader.read_all(limit_bytes)


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.8/a.jpg",
        "http://0x7f000001/",
        "http://[::1]/a.jpg",
    ],
)
def test_a_redirect_to_a_private_address_is_not_followed(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(always(reply(status="302 Found", Location=location))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with pytest.raises(WanDownloadError, match="not a public address") as refused:
            inspect(WebReader("http://images.example.com/a.jpg"))
        assert proxy.connections == 1
    assert not refused.value.retry_helps


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://h/a.jpg", "gopher://h/"])
def test_a_redirect_to_another_scheme_is_not_followed(location: str) -> None:
    with pytest.raises(WanInputError, match="not http or https"):
        whole(always(reply(status="302 Found", Location=location)))


def test_too_many_redirects_are_refused() -> None:
    with pytest.raises(WanInputError, match="too many redirects"):
        whole(always(reply(status="302 Found", Location="/a.jpg")))


@pytest.mark.parametrize("of", ["head", "body"])
def test_a_host_that_sends_too_slowly_is_given_up(of: str) -> None:
    server: RawServer

    def answer(sock: socket.socket) -> None:
        read_head(sock)
        if of == "body":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n")
        drip(sock, server.over, b"HTTP/1.1 200 OK\r\nX-Long: a" if of == "head" else JPEG)

    with RawServer(answer) as server:
        image = WebReader(f"{server.url}/a.jpg", allow_private=True, total_s=0.4)
        with pytest.raises(WanDownloadError, match="could not be read") as given_up:
            image.read_all() if of == "body" else inspect(image)
    assert given_up.value.retry_helps


def test_an_image_that_is_cut_off_in_transit_is_a_download_error() -> None:
    def answer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(reply(JPEG)[:-100])

    with pytest.raises(WanDownloadError, match=r"could not be read|was cut off"):
        whole(answer)


@pytest.mark.parametrize("honest", [True, False])
def test_more_than_the_limit_is_not_loaded(honest: bool) -> None:
    def answer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(reply(bytes(5000)) if honest else b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(5000))

    with pytest.raises(WanInputError, match="more than 4,000 bytes"):
        whole(answer, limit_bytes=4000)


@pytest.mark.parametrize("fmt", ["WEBP", "JPEG"])
def test_a_large_image_is_inspected_with_one_request(fmt: str) -> None:
    options = {"lossless": True} if fmt == "WEBP" else {"quality": 100}
    data = encoded(noise(1000, 1000), fmt, **options)
    assert len(data) > 1_000_000
    heads: list[str] = []
    with RawServer(always(reply(data), heads=heads)) as wire:
        facts = inspect(WebReader(wire.url, allow_private=True))
    assert (facts.width, facts.height, facts.size_bytes) == (1000, 1000, len(data))
    assert len(heads) == 1


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


#: Checksums as servers write them: Cloud Storage, RFC 1864, RFC 3230 and RFC 9530.
CHECKSUMS: dict[str, Callable[[bytes], dict[str, str]]] = {
    "x-goog-hash crc32c": lambda data: {
        "x-goog-hash": f"crc32c={_base64(google_crc32c.value(data).to_bytes(4, 'big'))}"  # type: ignore[no-untyped-call]
    },
    "x-goog-hash md5": lambda data: {"x-goog-hash": f"md5={_base64(hashlib.md5(data).digest())}"},
    "MD5 ETag": lambda data: {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "x-goog-generation": "1"},
    "Content-MD5": lambda data: {"Content-MD5": _base64(hashlib.md5(data).digest())},
    "Digest": lambda data: {"Digest": f"sha-256={_base64(hashlib.sha256(data).digest())}"},
    "Repr-Digest": lambda data: {"Repr-Digest": f"sha-256=:{_base64(hashlib.sha256(data).digest())}:"},
}


@pytest.mark.parametrize("kind", CHECKSUMS)
def test_checksum_of_the_server_is_verified(kind: str) -> None:
    right, wrong = (CHECKSUMS[kind](data) for data in (JPEG, JPEG + b"x"))
    assert whole(always(reply(JPEG, **right))) == JPEG
    with pytest.raises(WanDownloadError, match="differs from the one that the server gives") as refused:
        whole(always(reply(JPEG, **wrong)))
    assert refused.value.retry_helps
